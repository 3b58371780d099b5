"""The nano codec behind the common protocols: one for hearing any voice, one for speaking with the answer voice."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import soxr
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from vita_mctp.codecs.nano.config import NanoCodecConfig
from vita_mctp.codecs.nano.decoder import MelState, NanoMelDecoder
from vita_mctp.codecs.nano.encoder import NanoEncoder
from vita_mctp.codecs.nano.features import LogMel
from vita_mctp.codecs.nano.quantizer import FiniteScalarQuantizer
from vita_mctp.codecs.nano.vocoder import NanoVocoder, VocoderState
from vita_mctp.errors import CheckpointError
from vita_mctp.types import AudioBlock, AudioCodes, FloatArray, Wave, WaveChunk

NAME = "nano"
ENCODER_FILE = "encoder.safetensors"
DECODER_FILE = "decoder.safetensors"


class NanoTokenizer:
    """Any voice at any rate -> codes. 1.2 s of context on either side of a code."""

    name = NAME

    def __init__(self, config: NanoCodecConfig, encoder: NanoEncoder) -> None:
        self.config, self.encoder, self.features = config, encoder, LogMel(config)
        self.codebook_size, self.frame_rate = config.codebook_size, config.frame_rate
        self.sample_rate = config.sample_rate

    @classmethod
    def from_folder(cls, folder: Path) -> NanoTokenizer:
        """Read config.json and encoder.safetensors; CheckpointError names what is missing or does not fit."""
        config = NanoCodecConfig.load(folder)
        encoder = NanoEncoder(config)
        load_weights(encoder, folder / ENCODER_FILE)
        return cls(config, encoder)

    @torch.inference_mode()
    def encode(self, wave: Wave) -> AudioCodes:
        samples = wave.samples
        if wave.sample_rate != self.sample_rate:
            samples = soxr.resample(samples, wave.sample_rate, self.sample_rate).astype(np.float32)
        _, codes = self.encoder(self.features(pad_to_codes(samples, self.config)))
        return AudioCodes(codes[0].numpy(), self.codebook_size, self.frame_rate, self.name)


class StreamState(NamedTuple):
    """One answer's place in the decoder."""

    mel: MelState | None
    vocoder: VocoderState | None


class NanoDecoder:
    """Codes -> the answer voice, offline or in blocks."""

    name = NAME
    block_size = 8

    def __init__(self, config: NanoCodecConfig, mel_decoder: NanoMelDecoder, vocoder: NanoVocoder) -> None:
        self.config, self.mel_decoder, self.vocoder = config, mel_decoder, vocoder
        self.quantizer = FiniteScalarQuantizer(config.levels)
        self.codebook_size, self.frame_rate = config.codebook_size, config.frame_rate
        self.sample_rate = config.sample_rate

    @classmethod
    def from_folder(cls, folder: Path) -> NanoDecoder:
        """Read config.json and decoder.safetensors; CheckpointError names what is missing or does not fit."""
        config = NanoCodecConfig.load(folder)
        modules = nn.ModuleDict({"mel_decoder": NanoMelDecoder(config), "vocoder": NanoVocoder(config)})
        load_weights(modules, folder / DECODER_FILE)
        mel_decoder, vocoder = modules["mel_decoder"], modules["vocoder"]
        assert isinstance(mel_decoder, NanoMelDecoder) and isinstance(vocoder, NanoVocoder)
        return cls(config, mel_decoder, vocoder)

    def start(self, seed: int = 0) -> StreamState:
        """This decoder draws nothing; `seed` is accepted and has no effect."""
        return StreamState(None, None)

    @torch.inference_mode()
    def decode_block(self, block: AudioBlock, state: StreamState) -> tuple[WaveChunk, StreamState]:
        codes = torch.tensor(block.codes, dtype=torch.long)[None]
        frames, mel = self.mel_decoder(self.quantizer.embed(codes), state.mel, block.is_last)
        samples, vocoder = self.vocoder(frames, state.vocoder, block.is_last)
        chunk = WaveChunk(_to_array(samples), self.sample_rate, block.index, block.is_last)
        return chunk, StreamState(mel, vocoder)

    def decode(self, codes: AudioCodes) -> Wave:
        block = AudioBlock(tuple(codes.ids.tolist()), 0, is_last=True)
        chunk, _ = self.decode_block(block, self.start())
        return Wave(chunk.samples, self.sample_rate)


def pad_to_codes(samples: FloatArray, config: NanoCodecConfig) -> Tensor:
    """(T,) samples -> (1, T') with zeros up to a whole number of codes."""
    wave = torch.from_numpy(np.ascontiguousarray(samples))
    return functional.pad(wave, (0, -len(wave) % config.samples_per_code))[None]


def load_weights(module: nn.Module, path: Path) -> None:
    """Fill `module` from a safetensors file, half precision widened; every tensor must be there and fit."""
    try:
        tensors = load_file(path)
    except FileNotFoundError:
        raise CheckpointError(f"no nano codec in {path.parent}: {path.name} is missing") from None
    except SafetensorError as error:
        raise CheckpointError(f"{path} is damaged ({error}); get the file again") from None
    wanted = module.state_dict()
    if missing := sorted(set(wanted) - set(tensors)):
        raise CheckpointError(f"{path}: missing tensor {missing[0]} ({len(missing)} in all)")
    if surplus := sorted(set(tensors) - set(wanted)):
        raise CheckpointError(f"{path}: unknown tensor {surplus[0]} ({len(surplus)} in all)")
    for name, tensor in tensors.items():
        if tensor.shape != wanted[name].shape:
            raise CheckpointError(f"{path}: {name} is {tuple(tensor.shape)}, wanted {tuple(wanted[name].shape)}")
    module.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    module.eval().requires_grad_(False)


def _to_array(samples: Tensor) -> FloatArray:
    array: FloatArray = samples[0].clamp(-1.0, 1.0).numpy()
    return array


__all__ = ["NanoDecoder", "NanoTokenizer", "load_weights", "pad_to_codes"]
