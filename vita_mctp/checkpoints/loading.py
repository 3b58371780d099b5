"""Opens a checkpoint folder as a model, and grows the chain of MCTP blocks (VITA-Audio paper, section 3.3)."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer, Qwen2RMSNorm
from transformers.utils import is_flash_attn_2_available

from vita_mctp.checkpoints.placement import (
    explained_out_of_memory,
    memory_needed,
    parse_device,
    place,
    refuse_too_large,
)
from vita_mctp.checkpoints.quantization import Quantization
from vita_mctp.checkpoints.weights import stored_dtype, tensor_shapes, verify_folder
from vita_mctp.errors import CheckpointError, ConfigError, MissingExtraError
from vita_mctp.models.vita.configuration import VitaMctpConfig
from vita_mctp.models.vita.modeling import VitaMctpForCausalLM
from vita_mctp.models.vita.plus import ENCODER_PREFIX, VitaMctpPlusConfig, VitaMctpPlusForCausalLM
from vita_mctp.models.vita.sensevoice import SenseVoiceSizes

PLAIN_QWEN2 = "qwen2"
"""model_type of a Qwen2 or Qwen2.5 checkpoint without MCTP blocks."""

KERNELS = {"eager": "eager", "sdpa": "sdpa", "flex": "flex_attention", "flash": "flash_attention_2"}


def load_model(
    folder: str | Path,
    *,
    dtype: torch.dtype | None = torch.float32,
    device: torch.device | str = "cpu",
    attn: str = "sdpa",
    quantize: Quantization | None = None,
    num_mctp_blocks: int | None = None,
    seed: int = 0,
) -> VitaMctpForCausalLM:
    """The model stored in a folder, in eval mode, every tensor of it accounted for; its class is the one stored.

    Args:
        folder: config.json and safetensors in the released layout of VITA-Audio or VITA-Audio-Plus, or of a plain Qwen2
            or Qwen2.5 (which has no blocks).
        dtype: of the loaded weights, whatever is stored; None = as stored.
        device: where they go, layer by layer: no more than the model itself is ever in memory.
        attn: eager, sdpa, flex or flash (or transformers' longer names).
        quantize: makes the linear layers of backbone and blocks int8 or int4 on the way; int4 wants bfloat16.
        num_mctp_blocks: None = as stored; more than stored = `expand`ed to that many.
        seed: of the projection that `expand` draws when there was no block.

    Raises:
        CheckpointError: a file or tensor is missing, surplus, cut short or of another shape than the config says.
        ConfigError: unknown `attn`, another kind of model, fewer blocks asked for than stored, or new ones quantised.
        MissingExtraError: flash attention or quantisation is asked for and not installed.
        OutOfMemoryError: the weights do not fit the device.
    """
    folder = Path(folder)
    verify_folder(folder)
    config = read_config(folder)
    if num_mctp_blocks is not None and num_mctp_blocks < config.num_nextn_predict_layers:
        raise ConfigError(f"{folder} has {config.num_nextn_predict_layers} MCTP blocks, cannot load {num_mctp_blocks}")
    model_class = VitaMctpPlusForCausalLM if isinstance(config, VitaMctpPlusConfig) else VitaMctpForCausalLM
    if quantize is not None and num_mctp_blocks not in (None, config.num_nextn_predict_layers):
        raise ConfigError("new MCTP blocks are there to be trained, which quantised ones cannot be: leave one out")
    kernel, place_at, stored = _kernel(attn), parse_device(device), stored_dtype(folder)
    wanted = dtype or stored
    if quantize == "int4" and wanted != torch.bfloat16:
        raise ConfigError(f"int4 weights compute in bfloat16, not in {wanted}: take --dtype bfloat16, or int8")
    needed = memory_needed(tensor_shapes(folder), wanted, quantize)
    refuse_too_large(folder, needed, place_at)
    with explained_out_of_memory(folder, needed, place_at):
        # as stored, weights stay mapped from their files until `place` gives each layer its own
        model = model_class.from_pretrained(folder, config=config, dtype=stored, attn_implementation=kernel)
        place(model, place_at, wanted, quantize)
        if num_mctp_blocks is not None:
            expand(model, num_mctp_blocks, seed=seed)
    return cast(VitaMctpForCausalLM, model.eval())


def read_config(folder: Path) -> VitaMctpConfig:
    """The folder's configuration; a plain Qwen2 one becomes one with no MCTP blocks.

    That of a released VITA-Audio-Plus leaves out its audio encoder, whose sizes are read off its tensors.

    Raises:
        CheckpointError: config.json is no JSON object, or one of its values has the wrong type.
        ConfigError: it describes another kind of model.
    """
    file = folder / "config.json"
    try:
        values = dict(json.loads(file.read_bytes()))
        kind = values.get("model_type")
        if kind == PLAIN_QWEN2:
            values |= {"model_type": VitaMctpConfig.model_type, "num_nextn_predict_layers": 0}
        elif kind == VitaMctpPlusConfig.model_type:
            if "audio_config" not in values:
                values["audio_config"] = _encoder_sizes(folder)
            return cast(VitaMctpConfig, VitaMctpPlusConfig.from_dict(values))
        elif kind != VitaMctpConfig.model_type:
            known = f"{VitaMctpConfig.model_type}, {VitaMctpPlusConfig.model_type} or {PLAIN_QWEN2}"
            raise ConfigError(f"{folder} holds a {kind} model; {known} is wanted")
        return cast(VitaMctpConfig, VitaMctpConfig.from_dict(values))
    except (OSError, ValueError, TypeError, StrictDataclassError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{file} is damaged ({reason}): download it again") from error


def _encoder_sizes(folder: Path) -> dict[str, int]:
    shapes = tensor_shapes(folder)
    encoder = {name.removeprefix(ENCODER_PREFIX): shape for name, shape in shapes.items() if ENCODER_PREFIX in name}
    try:
        return asdict(SenseVoiceSizes.from_shapes(encoder))
    except KeyError as error:
        raise CheckpointError(
            f"{folder} lacks {ENCODER_PREFIX}{error.args[0]}: a VITA-Audio-Plus model has an audio encoder"
        ) from None


def expand(model: VitaMctpForCausalLM, num_mctp_blocks: int, *, seed: int = 0) -> VitaMctpForCausalLM:
    """Appends MCTP blocks in place until there are `num_mctp_blocks`; returns the model.

    Block k copies block k-1. Block 0 copies the last backbone layer, draws its projection from
    normal(0, initializer_range) with `seed`, and has norms of ones.

    Raises:
        ConfigError: the model already has more blocks.
    """
    config = model.config
    if num_mctp_blocks < config.num_nextn_predict_layers:
        raise ConfigError(
            f"the model has {config.num_nextn_predict_layers} MCTP blocks, cannot leave {num_mctp_blocks}"
        )
    for k in range(config.num_nextn_predict_layers, num_mctp_blocks):
        config.layer_types = [*config.layer_types, "full_attention"]
        config.num_hidden_layers += 1
        config.num_nextn_predict_layers += 1
        _append_block(model, k, seed)
    return model


def _append_block(model: VitaMctpForCausalLM, k: int, seed: int) -> None:
    config = model.config
    layers = model.model.layers
    layers.append(_copy(Qwen2DecoderLayer(config, len(layers)), layers[-1]))
    hidden, eps = config.hidden_size, config.rms_norm_eps
    projection = nn.Linear(2 * hidden, hidden, bias=False)
    norms = [Qwen2RMSNorm(hidden, eps=eps), Qwen2RMSNorm(hidden, eps=eps)]
    if k > 0:
        _copy(projection, model.mtp_projs[-1])
        _copy(norms[0], model.mtp_embed_norms[-1])
        _copy(norms[1], model.mtp_hidden_norms[-1])
    else:
        generator = torch.Generator().manual_seed(seed)
        nn.init.normal_(projection.weight, std=config.initializer_range, generator=generator)
    like = model.model.norm.weight
    model.mtp_projs.append(projection.to(like))
    model.mtp_embed_norms.append(norms[0].to(like))
    model.mtp_hidden_norms.append(norms[1].to(like))


def _copy(new: Any, old: nn.Module) -> Any:
    """`new` with the weights, device, type and mode of `old`."""
    new.to(next(old.parameters())).load_state_dict(old.state_dict())
    return new.train(old.training)


def _kernel(attn: str) -> str:
    kernel = KERNELS.get(attn, attn)
    if kernel not in KERNELS.values():
        raise ConfigError(f"unknown attention kernel {attn!r}: wanted one of {', '.join(KERNELS)}")
    if kernel == "flash_attention_2" and not is_flash_attn_2_available():
        raise MissingExtraError(
            "attn='flash' needs the package flash-attn and a CUDA GPU: install it, or use attn='sdpa'"
        )
    return kernel
