"""Interleaved single-backbone speech LLM with Multiple Cross-modal Token Prediction (MCTP) blocks."""

__version__ = "0.1.0"
