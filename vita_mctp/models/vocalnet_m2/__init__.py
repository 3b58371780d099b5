"""VocalNet-M2: VocalNet with a talker over several codebooks, which needs no flow model to be heard."""
