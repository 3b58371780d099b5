"""How speech sounds, scored from its waves: `distillmos` how natural, `dnsmos` how clean, both from the wave alone;
`speaker` whose voice it is.

T samples at 16 kHz. `speaker` compares two voices, whatever is said.
"""

from __future__ import annotations

import contextlib
import functools
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vita_mctp.audio import resample
from vita_mctp.environment import require, versions
from vita_mctp.errors import AudioError, CheckpointError, ConfigError
from vita_mctp.types import Wave

SAMPLE_RATE = 16_000
_SHORTEST_SECONDS = 0.5
SPEAKER_MODEL = "microsoft/wavlm-base-plus-sv"
"""WavLM with an x-vector head, trained to tell speakers apart."""

SOUND_RULES = ("distillmos", "dnsmos", "speaker")
_MOS = ("ovrl_mos", "sig_mos", "bak_mos", "p808_mos")
Samples = NDArray[np.float32]
Measure = Callable[[Samples, Samples], dict[str, float]]


@dataclass(frozen=True)
class SoundRule:
    """values: the names of what it measures. wants_reference: whether a wave is scored against another one.

    measure: (T,) and (T,) -> values by name.
    """

    name: str
    version: str
    values: tuple[str, ...]
    wants_reference: bool
    measure: Measure

    def score(self, wave: Wave, reference: Wave | None = None) -> dict[str, float]:
        """Values by name, higher being better. The reference may have any rate, as the wave may.

        Raises AudioError for what is too short or silent, ConfigError where a reference is wanted and none came.
        """
        samples = _samples(wave, "the wave")
        if not self.wants_reference:
            return self.measure(samples, samples)
        if reference is None:
            raise ConfigError(f"{self.name} compares a wave with a recording; give it a reference or choose dnsmos")
        return self.measure(samples, _samples(reference, "the reference"))


def sound_rule(name: str) -> SoundRule:
    """The rule of that name; "speaker:MODEL" takes another x-vector model than WavLM's, a hub name or a folder.

    Raises ConfigError for an unknown name, MissingExtraError for a rule whose packages are not installed,
    CheckpointError for a model that is not there.
    """
    if name == "dnsmos":
        require("the rule dnsmos", "sound", "speechmos", "librosa", "onnxruntime", "requests")
        return SoundRule(name, f"dnsmos/1 ({versions('speechmos')})", _MOS, False, _dnsmos)
    if name == "distillmos":
        require("the rule distillmos", "judge", "distillmos", "torchaudio")
        return SoundRule(name, f"distillmos/1 ({versions('distillmos')})", ("mos",), False, _distillmos)
    rule, _, model = name.partition(":")
    if rule == "speaker":
        model = model or SPEAKER_MODEL
        return SoundRule(rule, f"speaker/1 ({model})", ("speaker_similarity",), True, _speaker_measure(model))
    raise ConfigError(f"there is no sound rule {name!r}; choose one of {', '.join(SOUND_RULES)}, speaker:MODEL")


def _samples(wave: Wave, whose: str) -> Samples:
    """(T,) at 16 kHz, long and loud enough to be scored."""
    if wave.seconds < _SHORTEST_SECONDS:
        raise AudioError(f"{whose} lasts {wave.seconds:.2f} s; a score wants at least {_SHORTEST_SECONDS} s of speech")
    samples = resample(wave, SAMPLE_RATE).samples
    if not samples.any():
        raise AudioError(f"{whose} is silent; a score wants speech")
    return samples


def _dnsmos(samples: Samples, _: Samples) -> dict[str, float]:
    """ITU-T P.835 predictions (signal, background, overall; 1 to 5) and P.808's, means over windows of 9 s."""
    from speechmos import dnsmos

    return {name: float(value) for name, value in dnsmos.run(samples, SAMPLE_RATE).items()}


def _distillmos(samples: Samples, _: Samples) -> dict[str, float]:
    """The mean opinion, 1 to 5, that a small copy of a network on XLS-R expects of people (arXiv:2502.05356)."""
    import torch

    with torch.inference_mode():
        return {"mos": float(_distillmos_network()(torch.from_numpy(samples)[None])[0, 0])}


@functools.cache
def _distillmos_network() -> Any:
    with contextlib.redirect_stdout(io.StringIO()):  # it says where its weights are
        from distillmos import ConvTransformerSQAModel

        return ConvTransformerSQAModel().eval()


def _speaker_measure(model: str) -> Measure:
    from transformers import AutoFeatureExtractor, AutoModelForAudioXVector

    try:
        extractor = AutoFeatureExtractor.from_pretrained(model)
        network = AutoModelForAudioXVector.from_pretrained(model).eval()
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"speaker model {model} cannot be loaded: {str(error).splitlines()[0]}; download it, or name its folder"
        ) from None
    return functools.partial(_speaker, extractor, network)


def _speaker(extractor: Any, network: Any, samples: Samples, reference: Samples) -> dict[str, float]:
    """The cosine between two voices' embeddings, -1 to 1; each is embedded alone, so neither is padded."""
    import torch

    with torch.inference_mode():
        one, other = (
            network(**extractor(voice, sampling_rate=SAMPLE_RATE, return_tensors="pt")).embeddings[0]
            for voice in (samples, reference)
        )
        return {"speaker_similarity": float(torch.cosine_similarity(one, other, dim=0))}
