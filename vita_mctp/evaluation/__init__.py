"""What the model is worth: `doctor` asks one question, `nano.evaluate_nano` makes the nano model's table.

Samples (`samples`) become rows (`runner`, `rows`), heard by the `judge`; rows become figures (`summary`, `scoring`) and
a page (`report`).
"""
