"""The front end of VITA-Audio-Plus, against Kaldi's own and against what stacking and normalising mean."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vita_mctp.audio.mel import FEATURE_SIZE, HOP, NUM_MELS, SAMPLE_RATE, WINDOW, kaldi_fbank, stack_frames
from vita_mctp.codecs.base import AudioFeatureExtractor
from vita_mctp.codecs.features import FeatureStatistics, SenseVoiceFrontEnd
from vita_mctp.codecs.registry import feature_extractor
from vita_mctp.errors import AudioError, CheckpointError
from vita_mctp.types import Wave


def sound(kind: str, length: int) -> np.ndarray:
    generator, seconds = np.random.default_rng(length), np.arange(length) / SAMPLE_RATE
    shapes = {
        "noise": generator.normal(0, 0.1, length),
        "tone": 0.3 * np.sin(2 * np.pi * 440 * seconds),
        "whisper": generator.normal(0, 1e-5, length),
        "offset": generator.normal(0, 0.1, length) + 0.2,
        "silence": np.zeros(length),
    }
    return shapes[kind].clip(-1, 1).astype(np.float32)


@pytest.mark.parametrize("length", [WINDOW, WINDOW + HOP - 1, WINDOW + HOP, 16_000, 48_321])
@pytest.mark.parametrize("kind", ["noise", "tone", "whisper", "offset", "silence"])
def test_equals_kaldi_native_fbank(kind: str, length: int) -> None:
    knf = pytest.importorskip("kaldi_native_fbank")
    samples = sound(kind, length)
    options = knf.FbankOptions()
    options.frame_opts.samp_freq, options.frame_opts.window_type, options.frame_opts.dither = SAMPLE_RATE, "hamming", 0
    options.mel_opts.num_bins = NUM_MELS
    theirs = knf.OnlineFbank(options)
    theirs.accept_waveform(SAMPLE_RATE, (samples * 2**15).tolist())
    theirs.input_finished()
    expected = np.stack([theirs.get_frame(index) for index in range(theirs.num_frames_ready)])
    ours = kaldi_fbank(samples)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, expected, atol=1e-3)  # natural logarithms; the nearest misses lie at 2e-4


def test_a_stacked_frame_is_a_frame_between_its_neighbours() -> None:
    for length in range(1, 30):
        frames = np.arange(length, dtype=np.float32)[:, None] * [[1.0, -1.0]]
        stacked = stack_frames(frames.astype(np.float32))
        assert stacked.shape == (-(-length // 6), 14)
        for index, row in enumerate(stacked):
            wanted = [min(max(6 * index + offset, 0), length - 1) for offset in range(-3, 4)]
            assert row.tolist() == [value for frame in wanted for value in (frame, -frame)]


def write_statistics(file: Path, shift: np.ndarray, scale: np.ndarray) -> None:
    """In the form of SenseVoiceSmall's am.mvn."""
    layers = [
        f"<{name}> {len(values)} {len(values)}\n<LearnRateCoef> 0 [ {' '.join(map(str, values))} ]\n"
        for name, values in (("AddShift", shift), ("Rescale", scale))
    ]
    file.write_text(f"<Nnet>\n<Splice> 560 560\n[ 0 ]\n{''.join(layers)}</Nnet>\n")


def test_features_are_normalised_with_the_statistics_of_the_folder(tmp_path: Path) -> None:
    shift, scale = np.linspace(-8, -14, FEATURE_SIZE), np.linspace(0.1, 0.3, FEATURE_SIZE)
    write_statistics(tmp_path / "am.mvn", shift, scale)
    wave = Wave(sound("noise", 16_000), SAMPLE_RATE)
    front_end = feature_extractor("sensevoice", tmp_path)
    assert isinstance(front_end, AudioFeatureExtractor)
    plain, features = SenseVoiceFrontEnd().encode(wave).frames, front_end.encode(wave).frames
    assert features.dtype == np.float32 and features.shape == (17, FEATURE_SIZE)  # 98 frames of 10 ms
    np.testing.assert_allclose(features, (plain + shift) * scale, rtol=1e-5, atol=1e-5)


def test_any_rate_is_heard_alike() -> None:
    tone = (0.3 * np.sin(2 * np.pi * 440 * np.arange(48_000) / 48_000)).astype(np.float32)
    at_48k, at_16k = (SenseVoiceFrontEnd().encode(Wave(tone[::step], 48_000 // step)).frames for step in (1, 3))
    loudest = np.abs(at_48k - at_16k)[at_16k == at_16k.max(axis=1, keepdims=True)]
    assert at_48k.shape == at_16k.shape and loudest.max() < 0.02


@pytest.mark.parametrize("damage", ["", "<Nnet>", "<AddShift> [ 1 2 ] <Rescale> [ 1 2 ]", "<AddShift> [ a b ]"])
def test_damaged_statistics_are_named(tmp_path: Path, damage: str) -> None:
    (tmp_path / "am.mvn").write_text(damage)
    with pytest.raises(CheckpointError, match=r"am\.mvn: .* behind <AddShift>; wanted 560.*SenseVoiceSmall"):
        FeatureStatistics.from_file(tmp_path / "am.mvn")


def test_missing_statistics_and_too_short_waves_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"cannot read .*am\.mvn.*FunAudioLLM/SenseVoiceSmall"):
        SenseVoiceFrontEnd.from_folder(tmp_path)
    with pytest.raises(AudioError, match="399 samples at 16 kHz; wanted at least 400"):
        kaldi_fbank(np.zeros(399, np.float32))
