"""What audio decoders of CosyVoice's line share: codes -> mel by flow matching, mel -> samples by HiFT, in windows."""
