"""What a machine has, and whether the model answers its built-in question rightly on it."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Any

import torch
from transformers.utils import is_flash_attn_2_available

from vita_mctp import __version__
from vita_mctp.errors import VitaError
from vita_mctp.evaluation.text_scores import same_text
from vita_mctp.speech_lm import SpeechLM

_PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "soundfile", "soxr")
_EXTRA = re.compile(r"""([\w.-]+).*extra == ["'](\w+)["']""")
"""A requirement of an extra, as package metadata states it."""
_FOR_DEVELOPERS = "dev"
_ABSENT = "not installed"


@dataclass(frozen=True)
class SelfTest:
    """How the built-in question went; failure is None when it was answered rightly, with sound."""

    model: str
    expected: str | None = None
    answered: str | None = None
    audio_seconds: float = 0.0
    first_sound_seconds: float | None = None
    real_time_factor: float | None = None
    failure: str | None = None


@dataclass(frozen=True)
class Report:
    """What `vita-mctp doctor` prints. extras: by name, the packages that are missing."""

    versions: dict[str, str]
    devices: list[str]
    threads: int
    cpu_count: int
    attention_kernels: dict[str, bool]
    extras: dict[str, list[str]]
    self_test: SelfTest

    @property
    def healthy(self) -> bool:
        return self.self_test.failure is None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"healthy": self.healthy}

    def as_text(self) -> str:
        test = self.self_test
        rows = [*self.versions.items(), *(("device", device) for device in self.devices)]
        rows += [("threads", f"{self.threads} (of {self.cpu_count} cores)")]
        kernels = self.attention_kernels.items()
        rows += [("attention", f"{name}: {'available' if there else _ABSENT}") for name, there in kernels]
        for extra, missing in self.extras.items():
            lacks = f"lacks {', '.join(missing)} (pip install 'vita-mctp[{extra}]')"
            rows += [("extra", f"{extra}: {lacks if missing else 'installed'}")]
        if test.answered is not None:
            rows += [("question", f"answered {test.answered!r}, wanted {test.expected!r}")]
        if test.first_sound_seconds is not None and test.real_time_factor is not None:
            first, factor = f"first sound after {test.first_sound_seconds:.2f} s", f"{test.real_time_factor:.2f}"
            rows += [("speed", f"{first}, real-time factor {factor}, cold")]
        verdict = "answers rightly" if test.failure is None else f"FAILED: {test.failure}"
        rows += [("model", f"{test.model}: {verdict}")]
        return "\n".join(f"{name:<18}{text}" for name, text in rows)


def examine(model: str, **loading: Any) -> Report:
    """Looks at this machine and asks the model its built-in question; a failure is part of the report.

    loading: options of `SpeechLM.from_pretrained`.
    """
    versions = {"vita-mctp": __version__, "python": platform.python_version()}
    versions |= {name: _version(name) for name in _PACKAGES}
    kernels = {"eager": True, "sdpa": True, "flex": True, "flash": bool(is_flash_attn_2_available())}
    threads, cores = torch.get_num_threads(), os.cpu_count() or 1
    return Report(versions, _devices(), threads, cores, kernels, missing_of_extras(), _self_test(model, loading))


def missing_of_extras() -> dict[str, list[str]]:
    """By extra, which of its packages are not installed; nothing where this package itself is not."""
    try:
        stated = requires("vita-mctp") or []
    except PackageNotFoundError:
        return {}
    missing: dict[str, list[str]] = {}
    for match in filter(None, map(_EXTRA.match, stated)):
        package, extra = match.groups()
        if extra != _FOR_DEVELOPERS:
            absent = [] if _version(package) != _ABSENT else [package]
            missing.setdefault(extra, []).extend(absent)
    return missing


def _self_test(model: str, loading: Mapping[str, Any]) -> SelfTest:
    try:
        speech_lm = SpeechLM.from_pretrained(model, **loading)
        check = speech_lm.settings.self_check
        if check is None:
            return SelfTest(model, failure="its speech.json has no self_check; ask it a question of your own")
        answer = speech_lm.ask(check.question)
    except VitaError as error:
        return SelfTest(model, failure=str(error))
    failure = None
    if not same_text(check.answer, answer.text):
        failure = "it gave a wrong answer; install the package afresh"
    elif answer.wave.seconds == 0:
        failure = "its answer has no sound; install the package afresh"
    times = answer.done.timings
    sound = (times.audio_seconds, times.first_sound, times.real_time_factor)
    return SelfTest(model, check.answer, answer.text, *sound, failure=failure)


def _devices() -> list[str]:
    names = [f"cpu ({platform.machine()})"]
    return names + [f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count())]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return _ABSENT
