"""What is measured: a model as a user loads it, or one of random weights in a known shape."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from vita_mctp.checkpoints.loading import (
    attention_kernel,
    explained_out_of_memory,
    memory_needed,
    move_model,
    refuse_too_large,
)
from vita_mctp.checkpoints.opening import open_model
from vita_mctp.checkpoints.options import Quantization
from vita_mctp.codecs.base import AudioDecoder
from vita_mctp.codecs.cosyvoice2.decoder import (
    BLOCK_SIZE,
    RELEASED,
    WINDOWS,
    CosyVoice2Config,
    CosyVoice2Decoder,
    CosyVoice2Flow,
)
from vita_mctp.codecs.flow_decoder.folder import VoicePrompt
from vita_mctp.codecs.flow_decoder.hift import Hift
from vita_mctp.codecs.flow_decoder.layers import fold_weight_norm
from vita_mctp.codecs.flow_decoder.windows import WindowedDecoder, Windows
from vita_mctp.codecs.glm4_voice.decoder import DecoderConfig, Glm4Flow, Glm4VoiceDecoder, parse_decoder_config
from vita_mctp.codecs.glm4_voice.tokenizer import (
    Glm4VoiceTokenizer,
    TokenizerConfig,
    WhisperVqEncoder,
    parse_tokenizer_config,
)
from vita_mctp.codecs.nano import NanoDecoder
from vita_mctp.codecs.nano.config import NanoCodecConfig
from vita_mctp.codecs.nano.networks import NanoMelDecoder, NanoVocoder
from vita_mctp.decoding.runners import Runner, runner_for
from vita_mctp.errors import ConfigError
from vita_mctp.models.registry import family_of

Net = TypeVar("Net", bound=nn.Module)

DECODERS = ("cosyvoice2", "glm4_voice", "glm4_voice_small", "nano")
"""Audio decoders that can be drawn at random, all but the small one in released sizes."""

_CPU = torch.device("cpu")
_DEVIATION = 0.02
"""Of random weights, as transformers initialises Qwen2."""


@dataclass(frozen=True)
class ModelChoice:
    """model: as `open_model` takes it. random: a name that `language_model` knows, instead.

    dtype: None is what config.json names.
    """

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
class LoadedModel:
    """A language model to measure. quantize: what its weights are stored as, if not in their type."""

    name: str
    model: Any
    quantize: Quantization | None = None

    @cached_property
    def runner(self) -> Runner:
        return runner_for(self.model)

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.model.embed_tokens.weight.dtype


def open_language_model(choice: ModelChoice) -> LoadedModel:
    """Raises what `load_model` raises; OutOfMemoryError, before any weight is made, for a shape that does not fit."""
    if choice.random is not None:
        model = random_language_model(language_model(choice.random), choice)
        return LoadedModel(choice.name, model, choice.quantize)
    model = open_model(choice.model).load_model(
        dtype=choice.dtype, device=choice.device, attn=choice.attn, quantize=choice.quantize
    )
    return LoadedModel(choice.name, model, choice.quantize)


def random_language_model(config: Any, choice: ModelChoice) -> Any:
    """A model of this shape in eval mode, made without memory and then filled where it is to run."""
    dtype = choice.dtype or torch.float32
    config._attn_implementation = attention_kernel(choice.attn)
    with torch.device("meta"):
        model = family_of(config.model_type).model_class(config).to(dtype)
    needed = memory_needed({name: tuple(weight.shape) for name, weight in model.named_parameters()}, dtype)
    refuse_too_large(choice.name, needed, choice.device)
    with explained_out_of_memory(choice.name, needed, choice.device):
        model.to_empty(device=choice.device)
        model.model.rotary_emb = type(model.model.rotary_emb)(config).to(choice.device)
        if config.tie_word_embeddings:
            model.lm_head.weight = model.model.embed_tokens.weight
        _fill(model, choice.seed)
        move_model(model, choice.device, dtype, choice.quantize)
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
class LoadedDecoder:
    """An audio decoder to measure, and the sizes of the blocks that it is fed with, the last one repeating."""

    name: str
    decoder: AudioDecoder
    block_sizes: tuple[int, ...]
    device: torch.device


def open_decoders(
    choice: ModelChoice, names: Sequence[str], steps: Sequence[int], block_sizes: Sequence[int]
) -> list[LoadedDecoder]:
    """Random decoders of these names, or, without any, the one of the chosen model.

    Args:
        steps: Euler steps of each window of a flow decoder, the last number for all further ones; empty: its own.
        block_sizes: codes in each block; empty: what each decoder takes best.

    Raises:
        ConfigError: an unknown name, or steps for decoders that have none to choose.
    """
    if names:
        decoders = [random_decoder(name, choice.device, choice.seed) for name in names]
        labels = [f"random {name}" for name in names]
    else:
        opened = open_model(choice.model)
        decoders = [opened.load_audio_decoder(choice.device)]
        labels = [f"{opened.speech.audio_decoder.name} of {choice.model}"]
    if steps and not any(isinstance(decoder, WindowedDecoder) for decoder in decoders):
        raise ConfigError(f"{', '.join(labels)}: no Euler steps to choose; leave --steps out")
    decoders = [_stepped(decoder, steps) for decoder in decoders]
    return [
        LoadedDecoder(label, decoder, tuple(block_sizes) or _best_blocks(decoder), _device(decoder))
        for label, decoder in zip(labels, decoders, strict=True)
    ]


def random_decoder(name: str, device: torch.device, seed: int = 0) -> AudioDecoder:
    """A decoder with torch's own initial weights, which leave the signal finite through deep stacks.

    Raises:
        ConfigError: another name than those in DECODERS.
    """
    if name not in DECODERS:
        raise ConfigError(f"unknown random audio decoder {name!r}; known: {', '.join(DECODERS)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name == "nano":
            sizes = NanoCodecConfig()
            networks = nn.ModuleDict({"mel_decoder": NanoMelDecoder(sizes), "vocoder": NanoVocoder(sizes)})
            return NanoDecoder(sizes, {name: weight.numpy() for name, weight in networks.state_dict().items()})
        if name == "cosyvoice2":
            return _random_cosyvoice2(device)
        config = glm4_voice_decoder(small="small" in name)
        flow, hift = _ready(Glm4Flow(config.flow)).to(device), _ready(Hift(config.hift)).to(device)
    fold_weight_norm(hift)
    return Glm4VoiceDecoder(flow, hift)


def _random_cosyvoice2(device: torch.device) -> CosyVoice2Decoder:
    """Behind a voice of five seconds."""
    config = CosyVoice2Config.read_json(RELEASED)
    flow, hift = _ready(CosyVoice2Flow(config.flow)).to(device), _ready(Hift(config.hift)).to(device)
    fold_weight_norm(hift)
    voice = VoicePrompt(torch.arange(125), torch.randn(80, 250), torch.randn(192))
    return CosyVoice2Decoder(flow, hift, BLOCK_SIZE, Windows.parse(WINDOWS, "windows"), voice)


def random_tokenizer(device: torch.device, seed: int = 0) -> Glm4VoiceTokenizer:
    """GLM-4-Voice's tokenizer at its released size."""
    config = glm4_voice_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Glm4VoiceTokenizer(config, _ready(WhisperVqEncoder(config.encoder)).to(device))


def _stepped(decoder: AudioDecoder, steps: Sequence[int]) -> AudioDecoder:
    """Decoders that have no choice of steps stay as they are."""
    if not steps or not isinstance(decoder, WindowedDecoder):
        return decoder
    return decoder.in_windows(decoder.windows.but(steps=list(steps)))


def _best_blocks(decoder: AudioDecoder) -> tuple[int, ...]:
    return decoder.windows.chunk_sizes if isinstance(decoder, WindowedDecoder) else (decoder.block_size,)


def weight_bytes(part: object) -> int:
    """Of all the networks that an audio tokenizer or decoder holds; one without weights has none."""
    return sum(weight.numel() * weight.element_size() for weight in _weights(part))


def _weights(part: object) -> Iterator[Tensor]:
    for value in vars(part).values():
        if isinstance(value, nn.Module):
            yield from value.parameters()


def _device(decoder: AudioDecoder) -> torch.device:
    return next((weight.device for weight in _weights(decoder)), _CPU)


def _ready(module: Net) -> Net:
    return module.eval().requires_grad_(False)


BLOCKS = 10
_POSITIONS = 32_768
_SHAPES = Path(__file__).parents[1] / "assets" / "shapes.json"
"""Qwen2.5's sizes as VITA-Audio has them, layers being the backbone's, and those of the released codec.

glm4_voice_decoder_small: what differs in a decoder narrow enough to be studied over long answers on a CPU: widths and
depths, no rate.
"""


def language_model(name: str) -> Any:
    """Raises ConfigError for a size that is not known."""
    known = _shapes()["language_models"]
    if name not in known:
        raise ConfigError(f"unknown size {name!r} of a random language model; known: {', '.join(known)}")
    values = known[name] | {"num_hidden_layers": known[name]["num_hidden_layers"] + BLOCKS}
    return family_of("qwen2_mtp").config_class(
        num_nextn_predict_layers=BLOCKS, max_position_embeddings=_POSITIONS, **values
    )


def glm4_voice_decoder(small: bool = False) -> DecoderConfig:
    """small: with every rate and window of the released one, and a few hundredths of its arithmetic."""
    shapes = _shapes()
    values = shapes["glm4_voice_decoder"]
    return parse_decoder_config(_merged(values, shapes["glm4_voice_decoder_small"]) if small else values)


def glm4_voice_tokenizer() -> TokenizerConfig:
    shapes = _shapes()
    return parse_tokenizer_config(shapes["glm4_voice_tokenizer"], shapes["glm4_voice_features"])


def _shapes() -> dict[str, Any]:
    return json.loads(_SHAPES.read_bytes())


def _merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    nested = {key: _merged(values[key], change) for key, change in changes.items() if isinstance(change, Mapping)}
    return {**values, **changes, **nested}
