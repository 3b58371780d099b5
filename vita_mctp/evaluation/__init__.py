"""What a model is worth: one pipeline from benchmarks over systems and judges to scores and a report.

`benchmarks` says what a benchmark and a sample is, `published` has those of the field; `systems` answer, `judges`
transcribe the answers' sound; `work` does this and scores it by `text_scores`, `answer_scores` and `sound_scores`;
`pool` keeps what comes of it; `run` puts it together. `metrics` sums up and says how sure
it is, `report` puts runs side by side. `doctor` asks one question.
"""
