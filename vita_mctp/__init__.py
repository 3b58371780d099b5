"""Interleaved speech language models with Multiple Cross-modal Token Prediction (MCTP): several tokens a pass."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vita_mctp.answer import Answer
    from vita_mctp.speech_lm import SpeechLM

__version__ = "0.1.0"
__all__ = ["Answer", "SpeechLM", "__version__"]

_LAZY = {"Answer": "vita_mctp.answer", "SpeechLM": "vita_mctp.speech_lm"}
"""What needs torch, which is imported when it is first asked for."""


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)
