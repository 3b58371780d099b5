"""What a model is worth: one pipeline from benchmarks over systems and judges to scores and a report.

`benchmarks` (read by `layouts`) give `cases`; `systems` answer them, `judges` transcribe the answers' sound; `work`
does this and scores it by `text_scores`, `answer_scores` and `sound_scores`; `pool` shares the work out and keeps it;
`run` puts it together; `report` puts runs side by side, and `intervals` says how sure a metric is. `doctor` asks once.
"""
