"""Who writes down what an answer's sound says: recognisers that have nothing to do with the model.

Each hears one wave at a time, whole; nothing is carried to the next. Their packages are asked for by name only.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import soundfile

from vita_mctp.audio import resample
from vita_mctp.errors import ConfigError, EndpointError
from vita_mctp.evaluation.extras import require, versions
from vita_mctp.evaluation.judge import SAMPLE_RATE, Listener, PocketSphinx, domain_bigram
from vita_mctp.nano.corpus.domain import build_domain
from vita_mctp.types import Wave

ENDPOINT = "endpoint:"
_WHISPER = "whisper:"
_SHORTEST_SECONDS = 0.05
"""Less sound than this holds no word, and some recognisers' front ends fail on it."""


@dataclass(frozen=True, eq=False)
class Whisper:
    """A Whisper checkpoint by transformers; answers over 30 seconds are heard by timestamps, none is cut off."""

    pipeline: Any
    language: str

    @classmethod
    def load(cls, checkpoint: str, language: str, device: str) -> Whisper:
        from transformers import pipeline

        return cls(pipeline("automatic-speech-recognition", model=checkpoint, device=device), language)

    def transcribe(self, wave: Wave) -> str:
        sound = {"raw": resample(wave, SAMPLE_RATE).samples, "sampling_rate": SAMPLE_RATE}
        wanted = {"language": self.language, "task": "transcribe"}
        return str(self.pipeline(sound, return_timestamps=True, generate_kwargs=wanted)["text"]).strip()


@dataclass(frozen=True, eq=False)
class FunAsr:
    """Paraformer or SenseVoice by FunASR."""

    model: Any
    options: dict[str, Any]

    @classmethod
    def load(cls, checkpoint: str, device: str, **options: Any) -> FunAsr:
        from funasr import AutoModel

        return cls(AutoModel(model=checkpoint, device=device, disable_update=True), options)

    def transcribe(self, wave: Wave) -> str:
        from funasr.utils.postprocess_utils import rich_transcription_postprocess

        heard = self.model.generate(input=resample(wave, SAMPLE_RATE).samples, **self.options)
        return "" if not heard else str(rich_transcription_postprocess(heard[0]["text"])).strip()


@dataclass(frozen=True, eq=False)
class EndpointListener:
    """An OpenAI-compatible transcription endpoint; one that fails after its client's retries ends the run."""

    client: Any
    model: str
    language: str

    def transcribe(self, wave: Wave) -> str:
        from openai import OpenAIError

        file = ("speech.wav", wav_bytes(wave), "audio/wav")
        try:
            heard = self.client.audio.transcriptions.create(model=self.model, file=file, language=self.language)
        except OpenAIError as error:
            raise EndpointError(f"the judge {self.model} did not transcribe: {error}; mend it and run again") from None
        return str(heard.text).strip()


@dataclass(frozen=True)
class _Short:
    """Spares a listener what is too short to hold a word."""

    listener: Listener

    def transcribe(self, wave: Wave) -> str:
        return self.listener.transcribe(wave) if wave.seconds >= _SHORTEST_SECONDS else ""


@dataclass(frozen=True)
class _Kind:
    """extra, packages: what it needs. load: (language, device) -> the listener."""

    extra: str
    packages: tuple[str, ...]
    load: Callable[[str, str], Listener]


def _pocketsphinx_domain(language: str, device: str) -> Listener:
    return PocketSphinx(domain_bigram(), build_domain().vocabulary)


_KINDS = {
    "whisper-large-v3": _Kind(
        "eval", ("transformers",), lambda language, device: Whisper.load("openai/whisper-large-v3", language, device)
    ),
    "paraformer-zh": _Kind("funasr", ("funasr",), lambda language, device: FunAsr.load("paraformer-zh", device)),
    "sensevoice": _Kind(
        "funasr",
        ("funasr",),
        lambda language, device: FunAsr.load("iic/SenseVoiceSmall", device, language=language, use_itn=False),
    ),
    "pocketsphinx": _Kind("eval", ("pocketsphinx",), lambda language, device: PocketSphinx()),
    "pocketsphinx-nano": _Kind("eval", ("pocketsphinx",), _pocketsphinx_domain),
}
JUDGES = (*_KINDS, f"{_WHISPER}FOLDER|HUB_ID", f"{ENDPOINT}URL#MODEL")


def judge_version(name: str) -> str:
    """The judge and the packages behind it, as a summary states them, without loading it.

    Raises ConfigError for an unknown name, MissingExtraError when a package is not installed.
    """
    kind = _kind(name)
    require(f"the judge {name}", kind.extra, *kind.packages)
    return f"{name} ({versions(*kind.packages)})"


def open_judge(name: str, language: str, device: str = "cpu") -> Listener:
    """Raises as `judge_version`; language: the answers', as "en"."""
    judge_version(name)
    return _Short(_kind(name).load(language, device))


def open_client(address: str, purpose: str) -> tuple[Any, str]:
    """openai's client and the model for "URL#MODEL". The key comes from OPENAI_API_KEY; many servers want none."""
    url, _, model = address.partition("#")
    if not (url.startswith(("http://", "https://")) and model):
        raise ConfigError(f"{address!r} names no {purpose}; give URL#MODEL, such as http://localhost:8000/v1#whisper")
    require(f"asking a {purpose}", "eval", "openai")
    from openai import OpenAI

    return OpenAI(base_url=url, api_key=os.environ.get("OPENAI_API_KEY", "none")), model


def wav_bytes(wave: Wave) -> bytes:
    """A 16-bit WAV file."""
    file = io.BytesIO()
    soundfile.write(file, wave.samples, wave.sample_rate, format="WAV", subtype="PCM_16")
    return file.getvalue()


def _kind(name: str) -> _Kind:
    if name.startswith(_WHISPER):
        checkpoint = name.removeprefix(_WHISPER)
        return _Kind("eval", ("transformers",), lambda language, device: Whisper.load(checkpoint, language, device))
    if name.startswith(ENDPOINT):
        address = name.removeprefix(ENDPOINT)
        return _Kind("eval", ("openai",), lambda language, device: _endpoint(address, language))
    if name not in _KINDS:
        raise ConfigError(f"there is no judge {name!r}; choose one of {', '.join(JUDGES)}")
    return _KINDS[name]


def _endpoint(address: str, language: str) -> Listener:
    client, model = open_client(address, "transcription endpoint")
    return EndpointListener(client, model, language)
