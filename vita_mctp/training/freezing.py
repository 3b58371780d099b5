"""Which parameters a stage trains: the MCTP blocks alone in stages 2 and 3, everything in 1 and 4.

VITA-Audio paper, section 3.3. The audio encoder of VITA-Audio-Plus stays as it was in every stage.
"""

from __future__ import annotations

from vita_mctp.errors import ConfigError
from vita_mctp.models.vita.configuration import is_audio_encoder_parameter, is_mctp_parameter
from vita_mctp.models.vita.modeling import VitaMctpForCausalLM


def set_trainable(model: VitaMctpForCausalLM, *, freeze_backbone: bool) -> int:
    """Set `requires_grad` on every parameter and return the number of trainable values, counted afterwards.

    MCTP parameters are always trained. Raises ConfigError when what is trainable is not what was asked for, as with
    tied or shared parameters.
    """
    wanted = 0
    for name, parameter in model.named_parameters():
        frozen = freeze_backbone or is_audio_encoder_parameter(name)
        train = not frozen or is_mctp_parameter(model.config, name)
        parameter.requires_grad_(train)
        wanted += parameter.numel() if train else 0
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    if trainable != wanted or trainable == 0:
        raise ConfigError(f"{trainable} parameter values are trainable, wanted {wanted} (and more than none)")
    return trainable


def trainable_names(model: VitaMctpForCausalLM) -> list[str]:
    """Names of the trained parameters, in the model's order."""
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]
