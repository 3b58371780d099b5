"""The closed-domain corpus, made by Debian's speech synthesisers alone.

Start at `corpus.build_corpus` and `corpus.Corpus`; what is said is in `domain` and `sentences`, who says it in `voices`
and `plan`.
"""
