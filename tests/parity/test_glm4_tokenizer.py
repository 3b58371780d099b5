"""The speech tokenizer against the reference: resampling, features, masks, hidden states, distances and every id.

B segments, N codes, T encoder frames.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from vita_mctp.audio.resample import sinc_resample
from vita_mctp.codecs.base import AudioTokenizer
from vita_mctp.codecs.glm4_voice.tokenizer import (
    Glm4VoiceTokenizer,
    TokenizerConfig,
    attended_frames,
    empty_encoder,
    load_tokenizer_config,
    parse_tokenizer_config,
    squared_distances,
    training_buffers,
)
from vita_mctp.codecs.registry import audio_tokenizer
from vita_mctp.types import FloatArray, Wave

Tolerances = Callable[[Path], dict[str, Any]]
HEAD, TAIL, EVERY = 4000, 2000, 31
"""What a recording keeps of resampled samples."""


def recordings(golden: dict[str, Tensor], case: dict[str, Any]) -> list[tuple[FloatArray, int]]:
    """(channels, T) samples and the rate of each utterance of a call."""
    return [
        (golden[f"audio_int16.{index}"].numpy().astype(np.float32) / 32768, rate)
        for index, rate in enumerate(case["sample_rates"])
    ]


def waves(golden: dict[str, Tensor], case: dict[str, Any]) -> list[Wave]:
    return [Wave(channels[0], rate) for channels, rate in recordings(golden, case)]


def frames_of(config: TokenizerConfig, case: dict[str, Any]) -> list[int]:
    return [-(-samples // config.samples_per_frame) for samples in case["segments"]]


def test_ids_of_every_call(tokenizer_case: Any) -> None:
    folder, case = tokenizer_case
    golden, tokenizer = load_file(folder / case["file"]), audio_tokenizer("glm4_voice", folder / "model")
    assert isinstance(tokenizer, AudioTokenizer) and isinstance(tokenizer, Glm4VoiceTokenizer)
    codes = tokenizer.encode_batch(waves(golden, case))
    assert [row.ids.tolist() for row in codes] == case["tokens"]
    assert [len(row.ids) for row in codes] == case["n_tokens"]
    assert golden["token_ids"][golden["token_mask"].bool()].tolist() == [id for row in codes for id in row.ids]
    for wave, row in zip(waves(golden, case), codes, strict=True):  # alone as in a batch
        assert tokenizer.encode(wave).ids.tolist() == row.ids.tolist()


def test_resampled_channel(tokenizer_case: Any, tolerances: Tolerances) -> None:
    folder, case = tokenizer_case
    golden, near = load_file(folder / case["file"]), tolerances(folder)["resampled_ch0"]["atol"]
    rate = load_tokenizer_config(folder / "model").features.sampling_rate
    for index, (channels, own_rate) in enumerate(recordings(golden, case)):
        heard = sinc_resample(channels, own_rate, rate)[0]
        assert len(heard) == -(-channels.shape[1] * rate // own_rate)
        pieces = {"head4000": heard[:HEAD], "tail2000": heard[-TAIL:], "every31": heard[::EVERY]}
        for piece, samples in pieces.items():
            if own_rate != rate:
                expected = golden[f"resampled_ch0_{piece}.{index}"].numpy()
                np.testing.assert_allclose(samples, expected, atol=near, rtol=0)


@torch.inference_mode()
def test_features_masks_hidden_states_and_distances(tokenizer_case: Any, tolerances: Tolerances) -> None:
    folder, case = tokenizer_case
    golden, near = load_file(folder / case["file"]), tolerances(folder)
    tokenizer = Glm4VoiceTokenizer.from_folder(folder / "model")
    cut = [segment for wave in waves(golden, case) for segment in tokenizer.segments(wave)]
    assert list(map(len, cut)) == case["segments"]

    features = tokenizer.features(cut)
    index = golden.get("input_features_frame_index", torch.arange(features.shape[2])).long()
    expected = golden.get("input_features", golden.get("input_features_at_frames"))
    torch.testing.assert_close(features[:, :, index], expected, atol=near["input_features"]["atol"], rtol=0)

    lengths = frames_of(tokenizer.config, case)
    frames = torch.arange(features.shape[2] // 2) < torch.tensor(lengths)[:, None]
    assert torch.equal(frames, golden["attention_mask"].bool()[:, ::2])
    valid = golden["token_mask"].bool()
    assert torch.equal(frames[:, :: tokenizer.encoder.pooling], valid)

    hidden = tokenizer.encoder(features, lengths)
    recorded = golden["hidden_pre_vq"]
    torch.testing.assert_close(hidden[valid], recorded[valid], atol=near["hidden_pre_vq"]["atol"], rtol=0)
    distances = squared_distances(hidden, tokenizer.encoder.codebook.weight).topk(2, largest=False).values
    for rank, name in enumerate(("top1_distance", "top2_distance")):
        limits = near["top1_distance/top2_distance"]
        torch.testing.assert_close(distances[valid][:, rank], golden[name][valid], **limits)


def test_mel_filters(mel_filters_file: Path) -> None:
    extractor = Glm4VoiceTokenizer.from_folder(mel_filters_file.parent / "model").extractor
    assert torch.equal(torch.from_numpy(extractor.mel_filters).float(), load_file(mel_filters_file)["mel_filters"])


def test_who_attends_to_whom(block_mask_file: Path) -> None:
    golden = load_file(block_mask_file)
    valid = golden["attention_mask"].bool()
    names = [name for name in golden if name.startswith("allowed_block")]
    assert names
    for name in names:
        block = int(name.removeprefix("allowed_block"))
        seen = attended_frames(valid.sum(dim=1).tolist(), valid.shape[1], block)
        assert torch.equal(seen[:, 0], golden[name].bool()), name


def test_full_size_has_every_released_tensor(tokenizer_tensors_file: Path) -> None:
    released = json.loads(tokenizer_tensors_file.read_text())
    model = json.loads((tokenizer_tensors_file.parent / "tokenizer_config.json").read_text())
    features = {"sampling_rate": 16000, "n_fft": 400, "hop_length": 160, "chunk_length": 30}
    config = parse_tokenizer_config(model, features | {"feature_size": model["num_mel_bins"]})
    encoder = empty_encoder(config.encoder)
    built = {name: tuple(tensor.shape) for name, tensor in encoder.state_dict().items()}
    assert built | training_buffers(config.encoder) == {name: tuple(shape) for name, shape, _ in released["tensors"]}
    assert len(released["tensors"]) == released["n_tensors"]
    assert sum(parameter.numel() for parameter in encoder.parameters()) == released["n_parameters"]


def set_block(tokenizer: Glm4VoiceTokenizer, block: int) -> None:
    tokenizer.encoder.block = block


def compute_positions(tokenizer: Glm4VoiceTokenizer) -> None:
    positions, width = tokenizer.encoder.embed_positions.weight.shape
    scales = torch.exp(-torch.arange(width // 2) * np.log(10_000) / (width // 2 - 1))
    angles = torch.arange(positions)[:, None] * scales
    tokenizer.encoder.embed_positions.weight.copy_(torch.cat([angles.sin(), angles.cos()], dim=1))


MUTATIONS: dict[str, Callable[[Glm4VoiceTokenizer], None]] = {
    "block 50 instead of 200": lambda tokenizer: set_block(tokenizer, 50),
    "full attention": lambda tokenizer: set_block(tokenizer, tokenizer.config.encoder.max_source_positions),
    "block 4 (almost frame-causal)": lambda tokenizer: set_block(tokenizer, 4),
    "computed sinusoids instead of stored positions": compute_positions,
}
"""Those of the recorded ones that a loaded tokenizer can be bent into."""


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_mutated_tokenizer_changes_as_many_ids_as_the_mutated_reference(mutations_file: Path, mutation: str) -> None:
    recorded = json.loads(mutations_file.read_text())
    if mutation not in recorded:
        pytest.skip(f"{mutations_file} records no such mutation")
    cases = {case["file"]: case for case in json.loads((mutations_file.parent / "cases.json").read_text())}
    tokenizer = Glm4VoiceTokenizer.from_folder(mutations_file.parent / "model")
    MUTATIONS[mutation](tokenizer)
    for file, changed in recorded[mutation].items():
        codes = tokenizer.encode_batch(waves(load_file(mutations_file.parent / file), cases[file]))
        expected = np.concatenate(cases[file]["tokens"])
        assert int((np.concatenate([row.ids for row in codes]) != expected).sum()) == changed, file
