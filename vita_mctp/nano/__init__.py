"""The embedded model's wing: its corpus, the training of its codec, the run of its recipes, its benchmark.

What is said is in `domain` and `sentences`, who says it in `voices`, by which `synthesis`; `corpus` keeps it.
`codec_data` and `codec_training` make the codec, `samples` the language model's training samples;
`run` runs it all. `benchmark` measures the result, heard by `transcribers` that know the domain.
"""
