"""Interleaved speech language models with Multiple Cross-modal Token Prediction (MCTP): several tokens a pass.

Importing it makes VITA-Audio's models known to transformers' AutoConfig and AutoModelForCausalLM.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from vita_mctp.transformers_known import register_models

if TYPE_CHECKING:
    from vita_mctp.answer import Answer
    from vita_mctp.speech_lm import SpeechLM
    from vita_mctp.types import Wave

__version__ = "0.1.0"
__all__ = ["Answer", "SpeechLM", "Wave", "__version__"]

_LAZY = {"Answer": "vita_mctp.answer", "SpeechLM": "vita_mctp.speech_lm", "Wave": "vita_mctp.types"}
"""What needs other packages, which are imported when it is first asked for."""

register_models()


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)
