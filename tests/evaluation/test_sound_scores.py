"""Scores of sound rise with quality, know a voice from another's, and refuse what holds no speech."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Wav2Vec2FeatureExtractor, WavLMConfig, WavLMForXVector

from vita_mctp import environment
from vita_mctp.audio import read_wave, resample
from vita_mctp.checkpoints.opening import find_model
from vita_mctp.errors import AudioError, CheckpointError, ConfigError, MissingExtraError
from vita_mctp.evaluation.sound_scores import SOUND_RULES, sound_rule
from vita_mctp.types import Wave

RATE = 16_000


SPEECH = resample(read_wave(find_model("nano") / "question.wav"), RATE)


def noisy(level: float) -> Wave:
    hiss = np.random.default_rng(0).standard_normal(len(SPEECH.samples))
    return Wave((SPEECH.samples + level * hiss).clip(-1, 1).astype(np.float32), RATE)


def cut(wave: Wave, seconds: float) -> Wave:
    return Wave(wave.samples[: round(seconds * wave.sample_rate)], wave.sample_rate)


@pytest.mark.slow
def test_dnsmos_prefers_less_noise() -> None:
    pytest.importorskip("speechmos")
    rule = sound_rule("dnsmos")
    clean, hissing = rule.score(SPEECH), rule.score(noisy(0.03))
    assert set(clean) == {"ovrl_mos", "sig_mos", "bak_mos", "p808_mos"}
    assert all(clean[name] > hissing[name] for name in set(clean) - {"sig_mos"})  # that one looks past the noise


def test_distillmos_prefers_less_noise() -> None:
    pytest.importorskip("distillmos")
    rule = sound_rule("distillmos")
    assert 1 < rule.score(noisy(0.1))["mos"] < rule.score(SPEECH)["mos"] < 5


@pytest.fixture(scope="module")
def speaker_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny, of random weights, in the layout of the released ones."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("speaker")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    convolutions = {"conv_dim": (8, 8), "conv_kernel": (10, 8), "conv_stride": (10, 8), "num_feat_extract_layers": 2}
    head = {"tdnn_dim": (8, 8), "tdnn_kernel": (3, 1), "tdnn_dilation": (1, 1), "xvector_output_dim": 8}
    embedding = {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "classifier_proj_size": 8}
    WavLMForXVector(WavLMConfig(**sizes, **convolutions, **head, **embedding)).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(folder)
    return folder


def test_a_voice_is_like_itself_and_less_like_noise(speaker_model: Path) -> None:
    rule = sound_rule(f"speaker:{speaker_model}")
    assert rule.score(SPEECH, SPEECH)["speaker_similarity"] == pytest.approx(1)
    assert rule.score(SPEECH, noisy(0.5))["speaker_similarity"] < 0.9999
    assert rule.version == f"speaker/1 ({speaker_model})"


def test_a_speaker_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        sound_rule(f"speaker:{tmp_path}")


@pytest.mark.parametrize(
    ("wave", "complaint"),
    [
        (Wave(np.zeros(0, np.float32), RATE), r"lasts 0\.00 s"),
        (cut(SPEECH, 0.3), r"lasts 0\.30 s"),
        (Wave(np.zeros(RATE, np.float32), RATE), "silent"),
    ],
)
def test_what_holds_no_speech_is_refused(speaker_model: Path, wave: Wave, complaint: str) -> None:
    rule = sound_rule(f"speaker:{speaker_model}")
    with pytest.raises(AudioError, match=f"the wave .*{complaint}"):
        rule.score(wave, SPEECH)
    with pytest.raises(AudioError, match=f"the reference .*{complaint}"):
        rule.score(SPEECH, wave)


def test_the_reference_may_have_another_rate(speaker_model: Path) -> None:
    rule = sound_rule(f"speaker:{speaker_model}")
    assert rule.score(SPEECH, resample(SPEECH, 24_000))["speaker_similarity"] == pytest.approx(1, abs=0.01)


def test_a_comparison_wants_a_reference(speaker_model: Path) -> None:
    with pytest.raises(ConfigError, match="speaker compares a wave with a recording"):
        sound_rule(f"speaker:{speaker_model}").score(SPEECH)


def test_unknown_rules_are_told_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=", ".join(SOUND_RULES)):
        sound_rule("mos")


def test_missing_packages_are_asked_for_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "find_spec", lambda name: None if name in ("librosa", "requests") else object())
    with pytest.raises(MissingExtraError, match=r"librosa, requests.*pip install 'vita-mctp\[sound\]'"):
        sound_rule("dnsmos")
