"""VITA-Audio's family: configuration, backbone with its chain of MCTP blocks, losses, and the Plus variant.

What needs transformers is imported when it is first asked for; `modeling` and `plus` then register their models with
transformers' AutoConfig and AutoModelForCausalLM.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vita_mctp.models.vita.configuration import VitaMctpConfig, is_mctp_parameter
    from vita_mctp.models.vita.modeling import VitaMctpForCausalLM, VitaMctpOutput
    from vita_mctp.models.vita.plus import VitaMctpPlusConfig, VitaMctpPlusForCausalLM

__all__ = [
    "VitaMctpConfig",
    "VitaMctpForCausalLM",
    "VitaMctpOutput",
    "VitaMctpPlusConfig",
    "VitaMctpPlusForCausalLM",
    "is_mctp_parameter",
]

_MODULES = ("configuration", "modeling", "plus")


def __getattr__(name: str) -> object:
    if name in __all__:
        for module in _MODULES:
            if hasattr(found := import_module(f"{__name__}.{module}"), name):
                return getattr(found, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
