"""The released streaming calls, wave for wave and mel for mel, with random numbers given or drawn likewise."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from glm4_reference_decoder import Glm4VoiceReferenceDecoder, ReferenceState
from safetensors.torch import load_file
from torch import Tensor

from vita_mctp.codecs.flow_decoder.hift import SourceNoise, starting_phase
from vita_mctp.codecs.glm4_voice.decoder import Glm4VoiceDecoder
from vita_mctp.types import AudioBlock, AudioCodes

Tolerances = Callable[[Path], dict[str, Any]]


@cache
def load_parts(folder: Path) -> Glm4VoiceDecoder:
    return Glm4VoiceDecoder.from_folder(folder)


class Recorder(Glm4VoiceReferenceDecoder):
    """Keeps what the flow gave at each call."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.frames: list[Tensor] = []

    def _new_frames(self, state: ReferenceState) -> tuple[Tensor, torch.Generator]:
        frames, generator = super()._new_frames(state)
        self.frames.append(frames)
        return frames, generator


def open_case(folder: Path, case: dict[str, Any]) -> tuple[Recorder, dict[str, Tensor]]:
    """The decoder drawing the case's noise, where the case holds one."""
    golden = load_file(folder / "stream" / case["file"])
    if "noise_base" not in golden:
        return Recorder(load_parts(folder)), golden
    base, phase = golden["noise_base"], starting_phase(golden["phase_raw"][..., 0])

    def draw(_: torch.Generator, harmonics: int, samples: int) -> SourceNoise:
        assert len(base) == harmonics
        return SourceNoise(phase, base[None, :, torch.arange(samples) % base.shape[1]])

    return Recorder(load_parts(folder), draw), golden


def blocks_of(case: dict[str, Any], golden: dict[str, Tensor]) -> list[AudioBlock]:
    pieces = golden["token"][0].split(case["blocks"])
    return [AudioBlock(tuple(piece.tolist()), index, index == len(pieces) - 1) for index, piece in enumerate(pieces)]


def assert_same_wave(got: np.ndarray, wanted: Tensor, near: dict[str, float]) -> None:
    assert got.shape == tuple(wanted.shape)
    difference = np.abs(got - wanted.numpy()).astype(np.float64)
    assert difference.max() <= near["max_abs"]
    assert np.sqrt((difference**2).mean()) <= near["rms"]


def test_waves_and_mel_frames_of_every_call(stream_case: Any, tolerances: Tolerances) -> None:
    folder, case = stream_case
    decoder, golden = open_case(folder, case)
    near = {"rtol": 0, "atol": tolerances(folder)["stream mel_out/flow_mel_tail"]["atol"]}
    state, waves = decoder.start(), []
    for block in blocks_of(case, golden):
        known = state.known.shape[1]
        chunk, state = decoder.decode_block(block, state)
        waves.append(chunk.samples)
        returned = state.known[:, known:].transpose(1, 2)
        torch.testing.assert_close(returned, golden.get(f"mel_out.{block.index}", golden.get("mel")), **near)
        if (tail := golden.get(f"flow_mel_tail.{block.index}")) is not None:
            torch.testing.assert_close(decoder.frames[-1][..., -tail.shape[-1] :], tail, **near)
    lengths = [chunk["wave_samples"] for chunk in case.get("chunks", [])] or [case["total_samples"]]
    assert [len(wave) for wave in waves] == lengths
    assert_same_wave(np.concatenate(waves), golden["wave"][0], tolerances(folder)["stream/offline wave"])
    if len(waves) == 1:
        codes = AudioCodes(golden["token"][0].long().numpy(), decoder.codebook_size, decoder.frame_rate, decoder.name)
        assert_same_wave(decoder.decode(codes).samples, golden["wave"][0], tolerances(folder)["stream/offline wave"])
