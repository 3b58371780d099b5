"""The S3 speech tokenizer and the voice prompt against their references, on a tiny model with the port's names."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from vita_mctp.audio.resample import sinc_resample
from vita_mctp.codecs.cosyvoice2.voice import prepare_voice, prompt_samples, speaker_features
from vita_mctp.codecs.s3_tokenizer import S3Config, S3Network, S3Tokenizer
from vita_mctp.types import FloatArray, IntArray, Wave


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], S3Tokenizer]:
    """The tiny model of a folder of goldens, through the real loader."""

    @cache
    def tokenizer(golden: Path) -> S3Tokenizer:
        folder, sizes = tmp_path_factory.mktemp("s3"), json.loads((golden / "index.json").read_text())["config"]
        (folder / "model.safetensors").symlink_to(golden / "model.safetensors")
        values = {key: value for key, value in sizes.items() if key in S3Config.model_fields}
        (folder / "config.json").write_text(json.dumps(values))
        return S3Tokenizer.from_folder(folder)

    return tokenizer


def samples_of(audio_int16: Tensor) -> FloatArray:
    samples: FloatArray = (audio_int16.float() / 32768).numpy()
    return samples


@torch.inference_mode()
def test_features_states_and_codes(s3_case: Any, opened: Callable[[Path], S3Tokenizer]) -> None:
    tokenizer, given = opened(s3_case.folder), s3_case.tensors
    wave = Wave(samples_of(given["audio_int16"]), 16_000)
    features = tokenizer.features(wave.samples)
    hidden = tokenizer.network.encoder(features[None])

    s3_case.check("log_mel", features)
    s3_case.check("hidden", hidden)
    s3_case.check("fsq_value", tokenizer.network.levels(hidden))
    s3_case.check("codes", torch.from_numpy(tokenizer.encode(wave).ids))


def test_a_batch_gives_each_what_it_has_alone(s3_batch_file: Path, opened: Callable[[Path], S3Tokenizer]) -> None:
    recorded, folder = json.loads(s3_batch_file.read_text()), s3_batch_file.parent
    if not all((folder / f"{name}.safetensors").is_file() for name in recorded["order"]):
        pytest.skip("not all of its recordings are here")
    sounds = [load_file(folder / f"{name}.safetensors")["audio_int16"] for name in recorded["order"]]
    found = opened(folder).encode_batch([Wave(samples_of(sound), 16_000) for sound in sounds])
    assert [codes.ids.tolist() for codes in found] == recorded["codes"]


def encode_in_windows(tokenizer: S3Tokenizer, wave: Wave) -> IntArray:
    """As the S3Tokenizer package does it: windows that overlap, of the features of the whole recording."""
    features = tokenizer.features(wave.samples)
    starts = range(0, features.shape[1], 2600) if features.shape[1] > 3000 else [0]
    pieces = tokenizer._encode([features[:, start : start + 3000] for start in starts])
    cut = [ids[50 * bool(index) :] for index, ids in enumerate(pieces)]
    return np.concatenate([*(ids[:-50] for ids in cut[:-1]), cut[-1]])


def test_long_recordings_in_pieces_and_in_windows(
    s3_long_case: Any, opened: Callable[[Path], S3Tokenizer], two_tones: Callable[..., Tensor]
) -> None:
    given, tokenizer = s3_long_case.tensors, opened(s3_long_case.folder)
    count = int(s3_long_case.index["files"][s3_long_case.name]["what"].split()[0])
    wave = Wave(samples_of(two_tones(given, count)), 16_000)
    pieces = [tokenizer.features(wave.samples[at : at + 480_000]) for at in (0, 480_000)]
    index = given["piece0_log_mel_frame_index"].long()

    s3_long_case.check("piece0_log_mel_at_frames", pieces[0][:, index])
    s3_long_case.check("piece1_log_mel", pieces[1])
    s3_long_case.check("piece1_hidden", tokenizer.network.encoder(pieces[1][None]))
    s3_long_case.check("codes_pieces", torch.from_numpy(tokenizer.encode(wave).ids))
    s3_long_case.check("codes_windows", torch.from_numpy(encode_in_windows(tokenizer, wave)))


class TinyModels:
    """The tiny tokenizer in the place of the ONNX one, and the speaker model's input in the place of its output."""

    def __init__(self, tokenizer: S3Tokenizer) -> None:
        self.tokenizer = tokenizer

    def codes(self, samples: FloatArray) -> IntArray:
        return self.tokenizer.encode(Wave(samples, 16_000)).ids

    def embedding(self, samples: FloatArray) -> FloatArray:
        return speaker_features(samples)


def test_a_recording_becomes_a_voice(voice_case: Any, opened: Callable[[Path], S3Tokenizer]) -> None:
    given, tokenizer = voice_case.tensors, opened(voice_case.folder)
    rate = int(re.search(r"at (\d+) Hz", voice_case.index["files"][voice_case.name]["what"])[1])  # type: ignore[index]
    wave = Wave(samples_of(given["audio_int16"]).mean(axis=0, dtype=np.float32), rate)
    samples, models = prompt_samples(wave), TinyModels(tokenizer)
    voice = prepare_voice(wave, models)

    voice_case.check("loaded_16k", torch.from_numpy(sinc_resample(wave.samples, rate, 16_000)))
    voice_case.check("prepared_16k", torch.from_numpy(samples))
    voice_case.check("resampled_24k", torch.from_numpy(sinc_resample(samples, 16_000, 24_000)))
    voice_case.check("log_mel", tokenizer.features(samples))
    voice_case.check("codes_before_cut", torch.from_numpy(models.codes(samples)))
    voice_case.check("prompt_token", voice.codes)
    voice_case.check("prompt_feat", voice.mel.T)
    wanted = given["fbank_minus_mean_every4"]
    near = voice_case.index["files"][voice_case.name]["tolerance"]["fbank_minus_mean_every4"]
    torch.testing.assert_close(voice.embedding[::4], wanted, rtol=0, atol=near)


def test_the_ports_tensors_by_name_and_shape(s3_full_size: Path) -> None:
    listed = json.loads(s3_full_size.read_text())
    with torch.device("meta"):
        network = S3Network(S3Config())
    assert {name: list(tensor.shape) for name, tensor in network.state_dict().items()} == listed
    assert sum(parameter.numel() for parameter in network.parameters()) == 123_714_568
