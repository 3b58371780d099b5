"""The speech tokenizer and the speech decoder of GLM-4-Voice, as VITA-Audio uses them."""
