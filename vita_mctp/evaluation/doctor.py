"""What a machine has, and whether the model answers its built-in question rightly on it."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, requires
from typing import Any

import torch
from transformers.utils import is_flash_attn_2_available

from vita_mctp import __version__
from vita_mctp.environment import ABSENT, installed_version
from vita_mctp.errors import VitaError
from vita_mctp.evaluation.text_scores import same_text
from vita_mctp.speech_lm import SpeechLM

_PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "soundfile", "soxr")
_EXTRA = re.compile(r"""([\w.-]+).*extra == ["'](\w+)["']""")
"""A requirement of an extra, as package metadata states it."""
_FOR_DEVELOPERS = "dev"


def examine(model: str, **loading: Any) -> dict[str, Any]:
    """Looks at this machine and asks the model its built-in question; a failure is part of the report, as JSON values.

    loading: options of `SpeechLM.from_pretrained`. extras: by name, the packages that are missing. self_test: how the
    question went; its failure is None when it was answered rightly, with sound, and then the report is healthy.
    """
    self_test = _self_test(model, loading)
    gpus = [f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count())]
    return {
        "versions": {"vita-mctp": __version__, "python": platform.python_version()}
        | {name: installed_version(name) for name in _PACKAGES},
        "devices": [f"cpu ({platform.machine()})", *gpus],
        "threads": torch.get_num_threads(),
        "cpu_count": os.cpu_count() or 1,
        "attention_kernels": {"eager": True, "sdpa": True, "flex": True, "flash": bool(is_flash_attn_2_available())},
        "extras": missing_of_extras(),
        "self_test": self_test,
        "healthy": self_test["failure"] is None,
    }


def as_text(report: Mapping[str, Any]) -> str:
    """A report of `examine`, a line each."""
    test = report["self_test"]
    rows = [*report["versions"].items(), *(("device", device) for device in report["devices"])]
    rows += [("threads", f"{report['threads']} (of {report['cpu_count']} cores)")]
    kernels = report["attention_kernels"].items()
    rows += [("attention", f"{name}: {'available' if there else ABSENT}") for name, there in kernels]
    for extra, missing in report["extras"].items():
        lacks = f"lacks {', '.join(missing)} (pip install 'vita-mctp[{extra}]')"
        rows += [("extra", f"{extra}: {lacks if missing else 'installed'}")]
    if test["answered"] is not None:
        rows += [("question", f"answered {test['answered']!r}, wanted {test['expected']!r}")]
    if test["first_sound_seconds"] is not None and test["real_time_factor"] is not None:
        first = f"first sound after {test['first_sound_seconds']:.2f} s"
        rows += [("speed", f"{first}, real-time factor {test['real_time_factor']:.2f}, cold")]
    verdict = "answers rightly" if report["healthy"] else f"FAILED: {test['failure']}"
    rows += [("model", f"{test['model']}: {verdict}")]
    return "\n".join(f"{name:<18}{text}" for name, text in rows)


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
            absent = [] if installed_version(package) != ABSENT else [package]
            missing.setdefault(extra, []).extend(absent)
    return missing


def _self_test(model: str, loading: Mapping[str, Any]) -> dict[str, Any]:
    names = ("expected", "answered", "audio_seconds", "first_sound_seconds", "real_time_factor", "failure")
    test: dict[str, Any] = {"model": model, **dict.fromkeys(names)}
    try:
        speech_lm = SpeechLM.from_pretrained(model, **loading)
        check = speech_lm.settings.self_check
        if check is None:
            return test | {"failure": "its speech.json has no self_check; ask it a question of your own"}
        answer = speech_lm.ask(check.question)
    except VitaError as error:
        return test | {"failure": str(error)}
    if not same_text(check.answer, answer.text):
        test["failure"] = "it gave a wrong answer; install the package afresh"
    elif answer.wave.seconds == 0:
        test["failure"] = "its answer has no sound; install the package afresh"
    times = answer.done.timings
    measured = {name: getattr(times, name) for name in ("audio_seconds", "real_time_factor")}
    said = {"expected": check.answer, "answered": answer.text, "first_sound_seconds": times.first_sound}
    return test | measured | said
