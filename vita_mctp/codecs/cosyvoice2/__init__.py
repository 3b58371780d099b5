"""The speech decoder of CosyVoice2, as VocalNet uses it, and how a recording becomes its voice."""
