"""Who writes down what an answer's sound says: recognisers that have nothing to do with the model.

Each transcribes one wave at a time, whole; nothing is carried to the next. Their packages are asked for by name only.
"""

from __future__ import annotations

import importlib
import io
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import soundfile

from vita_mctp.audio import resample
from vita_mctp.environment import require, versions
from vita_mctp.errors import ConfigError, EndpointError
from vita_mctp.types import Wave

ENDPOINT = "endpoint:"
SAMPLE_RATE = 16_000
_WHISPER = "whisper:"
_SHORTEST_SECONDS = 0.05
"""Less sound than this holds no word, and some recognisers' front ends fail on it."""

_PADDING_SECONDS = 0.15
_DITHER = 3e-4
"""Silence around each wave and a noise floor of -70 dBFS under it, as in the recordings PocketSphinx knows."""


class Transcriber(Protocol):
    """Wave -> its words; an empty text where it hears none."""

    def transcribe(self, wave: Wave) -> str: ...


class PocketSphinx:
    """PocketSphinx with a language model in ARPA text, and the vocabulary's part of its own US English dictionary.

    Without one it takes the US English model and dictionary of its own package.
    Raises MissingExtraError where the package is not installed, ConfigError for words that its dictionary lacks.
    """

    def __init__(self, arpa: str | None = None, vocabulary: Sequence[str] = ()) -> None:
        require("judging", "eval", "pocketsphinx")
        from pocketsphinx import Decoder, get_model_path

        if arpa is None:
            self._decoder: Any = Decoder(logfn=os.devnull, cmn="batch")
            return
        lexicon = _pronunciations(Path(get_model_path("en-us/cmudict-en-us.dict")), vocabulary)
        with tempfile.TemporaryDirectory() as folder:
            model, dictionary = Path(folder) / "domain.arpa", Path(folder) / "domain.dict"
            model.write_text(arpa)
            dictionary.write_text(lexicon)
            self._decoder = Decoder(lm=str(model), dict=str(dictionary), logfn=os.devnull, cmn="batch")

    def transcribe(self, wave: Wave) -> str:
        if not len(wave.samples):
            return ""
        self._decoder.start_utt()
        self._decoder.process_raw(_pcm(wave), full_utt=True)
        self._decoder.end_utt()
        hypothesis = self._decoder.hyp()
        return "" if hypothesis is None else hypothesis.hypstr


def _pronunciations(dictionary: Path, vocabulary: Sequence[str]) -> str:
    """The lines of `word phones` and `word(2) phones` that the vocabulary needs: a small dictionary loads at once."""
    words, found, lines = set(vocabulary), set(), []
    for line in dictionary.read_text(encoding="utf-8").splitlines():
        word = line.split(maxsplit=1)[0].split("(")[0]
        if word in words:
            found.add(word)
            lines.append(line)
    if missing := sorted(words - found):
        raise ConfigError(f"PocketSphinx's dictionary lacks {', '.join(missing)}; leave them out of the vocabulary")
    return "\n".join(lines) + "\n"


def _pcm(wave: Wave) -> bytes:
    """16-bit mono at 16 kHz; the same bytes for the same wave."""
    samples = np.pad(resample(wave, SAMPLE_RATE).samples, round(_PADDING_SECONDS * SAMPLE_RATE))
    dithered = samples + np.random.default_rng(0).normal(0, _DITHER, len(samples))
    return (np.clip(dithered, -1, 1) * 32767).astype("<i2").tobytes()


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
        options = {"language": self.language, "task": "transcribe"}
        return str(self.pipeline(sound, return_timestamps=True, generate_kwargs=options)["text"]).strip()


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
class EndpointTranscriber:
    """An OpenAI-compatible transcription endpoint; one that fails after its client's retries ends the run."""

    client: Any
    model: str
    language: str

    @classmethod
    def open(cls, address: str, language: str) -> EndpointTranscriber:
        return cls(*open_client(address, "transcription endpoint"), language)

    def transcribe(self, wave: Wave) -> str:
        from openai import OpenAIError

        file = ("speech.wav", wav_bytes(wave), "audio/wav")
        try:
            heard = self.client.audio.transcriptions.create(model=self.model, file=file, language=self.language)
        except OpenAIError as error:
            raise EndpointError(f"the judge {self.model} did not transcribe: {error}; mend it and run again") from None
        return str(heard.text).strip()


@dataclass(frozen=True)
class _SkipShort:
    """Spares a transcriber what is too short to hold a word."""

    transcriber: Transcriber

    def transcribe(self, wave: Wave) -> str:
        return self.transcriber.transcribe(wave) if wave.seconds >= _SHORTEST_SECONDS else ""


@dataclass(frozen=True)
class _Kind:
    """extra, packages: what it needs. load: (language, device) -> the transcriber."""

    extra: str
    packages: tuple[str, ...]
    load: Callable[[str, str], Transcriber]


def resolve(name: str) -> Any:
    """What a "module:attribute" names: a benchmark's or a judge's part that a higher level brings along."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _pocketsphinx(name: str) -> _Kind:
    return _Kind("eval", ("pocketsphinx",), lambda language, device: resolve(name)())


def _whisper(checkpoint: str) -> _Kind:
    return _Kind("eval", ("transformers",), lambda language, device: Whisper.load(checkpoint, language, device))


def _sense_voice(language: str, device: str) -> Transcriber:
    return FunAsr.load("iic/SenseVoiceSmall", device, language=language, use_itn=False)


_KINDS = {
    "whisper-large-v3": _whisper("openai/whisper-large-v3"),
    "paraformer-zh": _Kind("funasr", ("funasr",), lambda language, device: FunAsr.load("paraformer-zh", device)),
    "sensevoice": _Kind("funasr", ("funasr",), _sense_voice),
    "pocketsphinx": _pocketsphinx(f"{__name__}:PocketSphinx"),
    "pocketsphinx-nano": _pocketsphinx("vita_mctp.nano.transcribers:bigram_transcriber"),
    "pocketsphinx-nano-loop": _pocketsphinx("vita_mctp.nano.transcribers:word_loop_transcriber"),
}
JUDGES = (*_KINDS, f"{_WHISPER}FOLDER|HUB_ID", f"{ENDPOINT}URL#MODEL")


def judge_version(name: str) -> str:
    """The judge and the packages behind it, as a summary states them, without loading it.

    Raises ConfigError for an unknown name, MissingExtraError when a package is not installed.
    """
    kind = _kind(name)
    require(f"the judge {name}", kind.extra, *kind.packages)
    return f"{name} ({versions(*kind.packages)})"


def open_judge(name: str, language: str, device: str = "cpu") -> Transcriber:
    """Raises as `judge_version`; language: the answers', as "en"."""
    judge_version(name)
    return _SkipShort(_kind(name).load(language, device))


def _kind(name: str) -> _Kind:
    if name.startswith(_WHISPER):
        return _whisper(name.removeprefix(_WHISPER))
    if name.startswith(ENDPOINT):
        address = name.removeprefix(ENDPOINT)
        return _Kind("eval", ("openai",), lambda language, device: EndpointTranscriber.open(address, language))
    if name not in _KINDS:
        raise ConfigError(f"there is no judge {name!r}; choose one of {', '.join(JUDGES)}")
    return _KINDS[name]


def open_client(address: str, purpose: str) -> tuple[Any, str]:
    """openai's client and the model for "URL#MODEL". The key comes from OPENAI_API_KEY; many servers want none."""
    url, _, model = address.partition("#")
    if not (url.startswith(("http://", "https://")) and model):
        raise ConfigError(f"{address!r} names no {purpose}; give URL#MODEL, such as http://localhost:8000/v1#whisper")
    require(f"asking a {purpose}", "eval", "openai")
    from openai import OpenAI

    return OpenAI(base_url=url, api_key=os.environ.get("OPENAI_API_KEY", "none")), model


def wav_bytes(wave: Wave, subtype: str = "PCM_16") -> bytes:
    """A WAV file, of 16-bit samples unless another of libsndfile's subtypes is named."""
    file = io.BytesIO()
    soundfile.write(file, wave.samples, wave.sample_rate, format="WAV", subtype=subtype)
    return file.getvalue()
