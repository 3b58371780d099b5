"""VITA-Audio's family: a Qwen2 backbone with a chain of MCTP blocks, and the Plus variant, which hears features.

A name is imported when it is asked for, a model with torch. Importing a model's class registers it with transformers'
AutoConfig and AutoModelForCausalLM.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vita_mctp.models.vita.configuration import VitaMctpConfig, VitaMctpPlusConfig
    from vita_mctp.models.vita.family import VITA, VITA_PLUS
    from vita_mctp.models.vita.modeling import VitaMctpForCausalLM, VitaMctpOutput
    from vita_mctp.models.vita.plus import VitaMctpPlusForCausalLM
    from vita_mctp.models.vita.values import is_mctp_parameter

_MODULES = {
    "VITA": "family",
    "VITA_PLUS": "family",
    "VitaMctpConfig": "configuration",
    "VitaMctpForCausalLM": "modeling",
    "VitaMctpOutput": "modeling",
    "VitaMctpPlusConfig": "configuration",
    "VitaMctpPlusForCausalLM": "plus",
    "is_mctp_parameter": "values",
}
__all__ = [
    "VITA",
    "VITA_PLUS",
    "VitaMctpConfig",
    "VitaMctpForCausalLM",
    "VitaMctpOutput",
    "VitaMctpPlusConfig",
    "VitaMctpPlusForCausalLM",
    "is_mctp_parameter",
]


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
