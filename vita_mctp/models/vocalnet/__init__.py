"""VocalNet's family: a thinker of any kind that hears through Whisper, and a talker that speaks its hidden states."""
