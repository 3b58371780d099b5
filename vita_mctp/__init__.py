"""Interleaved single-backbone speech LLM with Multiple Cross-modal Token Prediction (MCTP) blocks."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vita_mctp.speech_lm import Answer, SpeechLM

__version__ = "0.1.0"
__all__ = ["Answer", "SpeechLM", "__version__"]


def __getattr__(name: str) -> object:
    """Imports what needs torch when it is first asked for."""
    if name in ("Answer", "SpeechLM"):
        from vita_mctp import speech_lm

        return getattr(speech_lm, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
