"""The embedded model: its corpus, codec training, recipe run and benchmark."""
