"""VITA-Audio's family: configuration, backbone with its chain of MCTP blocks, losses, and the Plus variant.

Importing this package registers the model with transformers' AutoConfig and AutoModelForCausalLM.
"""

from transformers import AutoConfig, AutoModelForCausalLM

from vita_mctp.models.vita.configuration import VitaMctpConfig, is_mctp_parameter
from vita_mctp.models.vita.modeling import VitaMctpForCausalLM, VitaMctpOutput
from vita_mctp.models.vita.plus import VitaMctpPlusConfig, VitaMctpPlusForCausalLM

AutoConfig.register(VitaMctpConfig.model_type, VitaMctpConfig, exist_ok=True)
AutoModelForCausalLM.register(VitaMctpConfig, VitaMctpForCausalLM, exist_ok=True)
AutoConfig.register(VitaMctpPlusConfig.model_type, VitaMctpPlusConfig, exist_ok=True)
AutoModelForCausalLM.register(VitaMctpPlusConfig, VitaMctpPlusForCausalLM, exist_ok=True)

__all__ = [
    "VitaMctpConfig",
    "VitaMctpForCausalLM",
    "VitaMctpOutput",
    "VitaMctpPlusConfig",
    "VitaMctpPlusForCausalLM",
    "is_mctp_parameter",
]
