"""What is measured: a model as a user loads it, or one of random weights in a known shape."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from vita_mctp.bench import shapes
from vita_mctp.checkpoints.loading import load_model, read_config
from vita_mctp.checkpoints.placement import explained_out_of_memory, memory_needed, place, refuse_too_large
from vita_mctp.checkpoints.quantization import Quantization
from vita_mctp.checkpoints.resolve import resolve_settings
from vita_mctp.checkpoints.settings import find_model
from vita_mctp.codecs import registry
from vita_mctp.codecs.base import AudioDecoder
from vita_mctp.codecs.flow_decoder.hift import Hift
from vita_mctp.codecs.flow_decoder.layers import fold_weight_norm
from vita_mctp.codecs.flow_decoder.windows import Windows
from vita_mctp.codecs.glm4_voice.decoder import DecoderParts, Glm4VoiceDecoder
from vita_mctp.codecs.glm4_voice.encoder import WhisperVqEncoder
from vita_mctp.codecs.glm4_voice.flow import Glm4Flow
from vita_mctp.codecs.glm4_voice.reference_decoder import Glm4VoiceReferenceDecoder
from vita_mctp.codecs.glm4_voice.tokenizer import Glm4VoiceTokenizer
from vita_mctp.codecs.nano import NanoDecoder
from vita_mctp.codecs.nano.config import NanoCodecConfig
from vita_mctp.codecs.nano.networks import NanoMelDecoder, NanoVocoder
from vita_mctp.codecs.ramp import RampDecoder
from vita_mctp.errors import ConfigError
from vita_mctp.models.vita import VitaMctpConfig, VitaMctpForCausalLM

Net = TypeVar("Net", bound=nn.Module)

DECODERS = ("glm4_voice", "glm4_voice_reference", "glm4_voice_small", "glm4_voice_small_reference", "nano", "ramp")
"""Audio decoders that can be drawn at random (ramp has no weights), all but the small ones in released sizes."""

_CPU = torch.device("cpu")
_DEVIATION = 0.02
"""Of random weights, as transformers initialises Qwen2."""


@dataclass(frozen=True)
class Wanted:
    """model: as `find_model` takes it. random: a name in `shapes`, instead. dtype: None is what config.json names."""

    model: str = "nano"
    random: str | None = None
    device: torch.device = _CPU
    dtype: torch.dtype | None = None
    attn: str = "sdpa"
    quantize: Quantization | None = None
    seed: int = 0

    @property
    def name(self) -> str:
        return self.model if self.random is None else f"random {self.random}"


@dataclass(frozen=True, eq=False)
class Subject:
    """A language model to measure. quantize: what its weights are stored as, if not in their type."""

    name: str
    model: VitaMctpForCausalLM
    quantize: Quantization | None = None

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.model.embed_tokens.weight.dtype


def open_subject(wanted: Wanted) -> Subject:
    """Raises what `load_model` raises; OutOfMemoryError, before any weight is made, for a shape that does not fit."""
    if wanted.random is not None:
        return Subject(
            wanted.name, random_language_model(shapes.language_model(wanted.random), wanted), wanted.quantize
        )
    folder = find_model(wanted.model)
    dtype = wanted.dtype or read_config(folder).dtype or torch.float32
    model = load_model(folder, dtype=dtype, device=wanted.device, attn=wanted.attn, quantize=wanted.quantize)
    return Subject(wanted.name, model, wanted.quantize)


def random_language_model(config: VitaMctpConfig, wanted: Wanted) -> VitaMctpForCausalLM:
    """A model of this shape in eval mode, made without memory and then filled where it is to run."""
    dtype = wanted.dtype or torch.float32
    config._attn_implementation = wanted.attn
    with torch.device("meta"):
        model = VitaMctpForCausalLM(config).to(dtype)
    needed = memory_needed({name: tuple(weight.shape) for name, weight in model.named_parameters()}, dtype)
    refuse_too_large(wanted.name, needed, wanted.device)
    with explained_out_of_memory(wanted.name, needed, wanted.device):
        model.to_empty(device=wanted.device)
        model.model.rotary_emb = type(model.model.rotary_emb)(config).to(wanted.device)
        if config.tie_word_embeddings:
            model.lm_head.weight = model.model.embed_tokens.weight
        _fill(model, wanted.seed)
        place(model, wanted.device, dtype, wanted.quantize)
    return model.eval().requires_grad_(False)


@torch.no_grad()
def _fill(model: nn.Module, seed: int) -> None:
    generator = torch.Generator(next(model.parameters()).device).manual_seed(seed)
    for name, weight in model.named_parameters():
        if weight.ndim > 1:
            weight.normal_(0, _DEVIATION, generator=generator)
        else:
            weight.fill_(0.0 if name.endswith("bias") else 1.0)


@dataclass(frozen=True, eq=False)
class Voice:
    """An audio decoder to measure, and the sizes of the blocks that it is fed with, the last one repeating."""

    name: str
    decoder: AudioDecoder
    block_sizes: tuple[int, ...]
    device: torch.device

    @property
    def modules(self) -> list[nn.Module]:
        """Its networks; a decoder without weights has none."""
        return [part for part in vars(self.decoder).values() if isinstance(part, nn.Module)]


def open_voices(wanted: Wanted, names: Sequence[str], steps: Sequence[int], block_sizes: Sequence[int]) -> list[Voice]:
    """Random decoders of these names, or, without any, the one of the wanted model.

    Args:
        steps: Euler steps of each window of glm4_voice, the last number for all further ones; empty: its own.
        block_sizes: codes in each block; empty: what each decoder takes best.

    Raises:
        ConfigError: an unknown name, or steps for decoders that have none to choose.
    """
    if names:
        decoders = [random_decoder(name, wanted.device, wanted.seed) for name in names]
        labels = [f"random {name}" for name in names]
    else:
        ref = resolve_settings(find_model(wanted.model)).audio_decoder
        decoders = [registry.audio_decoder(ref.name, Path(ref.folder), wanted.device)]
        labels = [f"{ref.name} of {wanted.model}"]
    if steps and not any(isinstance(decoder, Glm4VoiceDecoder) for decoder in decoders):
        raise ConfigError(f"{', '.join(labels)}: no Euler steps to choose; leave --steps out")
    decoders = [_stepped(decoder, steps) for decoder in decoders]
    return [
        Voice(label, decoder, tuple(block_sizes) or _best_blocks(decoder), _device(decoder))
        for label, decoder in zip(labels, decoders, strict=True)
    ]


def random_decoder(name: str, device: torch.device, seed: int = 0) -> AudioDecoder:
    """A decoder with torch's own initial weights, which leave the signal finite through deep stacks.

    Raises:
        ConfigError: another name than those in DECODERS.
    """
    if name not in DECODERS:
        raise ConfigError(f"unknown random audio decoder {name!r}; known: {', '.join(DECODERS)}")
    if name == "ramp":
        return RampDecoder()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name == "nano":
            sizes = NanoCodecConfig()
            return NanoDecoder(sizes, _ready(NanoMelDecoder(sizes)), _ready(NanoVocoder(sizes)))
        config = shapes.glm4_voice_decoder(small="small" in name)
        flow, hift = _ready(Glm4Flow(config.flow)).to(device), _ready(Hift(config.hift)).to(device)
    fold_weight_norm(hift)
    if name.endswith("reference"):
        return Glm4VoiceReferenceDecoder(DecoderParts(config, flow, hift))
    return Glm4VoiceDecoder(flow, hift)


def random_tokenizer(device: torch.device, seed: int = 0) -> Glm4VoiceTokenizer:
    """GLM-4-Voice's tokenizer at its released size."""
    config = shapes.glm4_voice_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Glm4VoiceTokenizer(config, _ready(WhisperVqEncoder(config.encoder)).to(device))


def _stepped(decoder: AudioDecoder, steps: Sequence[int]) -> AudioDecoder:
    """Decoders that have no choice of steps stay as they are, the reference among them."""
    if not steps or not isinstance(decoder, Glm4VoiceDecoder):
        return decoder
    return Glm4VoiceDecoder(decoder.flow, decoder.hift, decoder.windows.but(steps=list(steps)))


def _best_blocks(decoder: AudioDecoder) -> tuple[int, ...]:
    """The smooth decoder's windows for both decoders of GLM-4-Voice, so that their chunks can be compared."""
    if isinstance(decoder, Glm4VoiceDecoder):
        return decoder.windows.chunk_sizes
    return Windows().chunk_sizes if isinstance(decoder, Glm4VoiceReferenceDecoder) else (decoder.block_size,)


def _device(decoder: AudioDecoder) -> torch.device:
    weights = (weight for part in vars(decoder).values() if isinstance(part, nn.Module) for weight in part.parameters())
    first = next(weights, None)
    return torch.device("cpu") if first is None else first.device


def _ready(module: Net) -> Net:
    return module.eval().requires_grad_(False)
