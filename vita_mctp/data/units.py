"""VocalNet's data as its authors keep it: a JSON list of conversations, questions as recordings, answers' units as npy.

    [{"id": "a1", "speech": "audios/a1.wav", "units": "cosyvoice2_tokens/a1.npy",
      "conversations": [{"from": "human", "value": "<speech>"}, {"from": "gpt", "value": "Four."}]}]

Paths start at the list's folder. The npy files hold a pickled dict, which is read without running anything in it, or a
plain array: (L,) units, or (F, Q) frames of Q codebooks.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import soundfile
from pydantic import ConfigDict, Field

from vita_mctp.codecs.features import WhisperFrontEnd
from vita_mctp.data.manifest import ManifestSample, Recording, decode, read_bytes
from vita_mctp.data.token_store import StoredSample
from vita_mctp.errors import DataError
from vita_mctp.schema import Schema, read_json
from vita_mctp.text.chat import Message
from vita_mctp.text.vocabulary import AUDIO_TAG
from vita_mctp.types import AudioFeatures, IntArray

_ALLOWED = {
    *((module, "_reconstruct") for module in ("numpy.core.multiarray", "numpy._core.multiarray")),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
}
"""All that a dict of arrays is made of."""
TAG = "<speech>"
"""Stands for the recording in a turn."""
_FORM = "wanted an integer array, or a dict with one under speech_token"


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return super().find_class(module, name)


def read_units(path: Path, num_units: int, codebooks: int = 1) -> IntArray:
    """The units (L,) of an answer, or of several codebooks its frames (F, Q).

    Raises DataError for a file that cannot be read, holds something else, or has a unit outside [0, num_units).
    """
    try:
        loaded = _load(path)
    except (OSError, ValueError, EOFError, pickle.UnpicklingError, AttributeError, ImportError, IndexError) as error:
        raise DataError(f"{path} has no units ({error}); {_FORM}") from None
    found = loaded.get("speech_token") if isinstance(loaded, dict) else loaded
    units = np.asarray(found)
    if units.dtype.kind not in "iu" or units.ndim > 2 or not units.size:
        raise DataError(f"{path} holds {units.dtype} of {units.shape}; {_FORM}")
    if codebooks > 1 and (units.ndim != 2 or units.shape[1] != codebooks):
        raise DataError(f"{path} holds {units.shape}; wanted frames of {codebooks} codebooks, (F, {codebooks})")
    if units.min() < 0 or units.max() >= num_units:
        raise DataError(f"{path} has units {units.min()}..{units.max()}; wanted them in [0, {num_units})")
    return (units if codebooks > 1 else units.reshape(-1)).astype(np.int64)


class _Turn(Schema):
    speaker: Annotated[str, Field(alias="from", pattern="^(human|gpt)$")]
    value: Annotated[str, Field(min_length=1)]


class _Entry(Schema):
    model_config = ConfigDict(extra="ignore")

    conversations: Annotated[tuple[_Turn, ...], Field(min_length=1)]
    speech: str | None = None
    units: str | None = None


class UnitStore:
    """Such a list, read as a `TokenStore` is. Its answers' codes are not made here; its questions are Whisper's."""

    def __init__(self, file: Path, num_units: int, codebooks: int) -> None:
        """Raises DataError for a file that is no list."""
        self._file, self._units = file, (num_units, codebooks)
        self._entries = read_json(file, DataError)
        if not isinstance(self._entries, list) or not self._entries:
            raise DataError(f"{file} holds {type(self._entries).__name__}; wanted a list of conversations, not empty")

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int) -> StoredSample:
        """Raises DataError for an entry, a recording or units that are no such thing, naming the entry."""
        entry, where = self._entry(index), self._where(index)
        messages = [Message(turn.speaker, turn.value.replace(TAG, AUDIO_TAG)) for turn in entry.conversations]
        if sum(message.content.count(AUDIO_TAG) for message in messages) != (entry.speech is not None):
            raise DataError(f"{where}: wanted one {TAG} where there is `speech`, else none; write the turns anew")
        codes, positions = list[tuple[int, ...]](), list[int]()
        if entry.speech is not None:
            codes, positions = [()], [self._positions(self._file.parent / entry.speech, where)]
        if entry.units is not None:
            last = messages[-1]
            messages[-1] = Message(last.role, f"{last.content}{AUDIO_TAG}")
            units = read_units(self._file.parent / entry.units, *self._units)
            codes, positions = [*codes, tuple(units.reshape(-1).tolist())], [*positions, 0]
        return StoredSample(ManifestSample(tuple(messages), (), where), tuple(codes), tuple(positions))

    def features(self, index: int, audio: int) -> AudioFeatures:
        """Of the question. Raises as `[]`."""
        path, where = self._file.parent / str(self._entry(index).speech), self._where(index)
        frames = WhisperFrontEnd().encode(decode(read_bytes(Recording(path), where), where)).frames
        return AudioFeatures(frames, self._positions(path, where))

    def _entry(self, index: int) -> _Entry:
        return _Entry.parse(self._entries[index], self._where(index), DataError)

    def _where(self, index: int) -> str:
        return f"{self._file}: entry {index}"

    @staticmethod
    def _positions(path: Path, where: str) -> int:
        """From the recording's header alone, where it has one."""
        try:
            header = soundfile.info(path)
            seconds = header.frames / header.samplerate
        except (OSError, RuntimeError):
            seconds = decode(read_bytes(Recording(path), where), where).seconds
        if (found := WhisperFrontEnd.positions_in(seconds)) < 1:
            raise DataError(f"{where}: {path} lasts {seconds:.3f} s; wanted a tenth of a second: record it again")
        return found


def _load(path: Path) -> Any:
    content = io.BytesIO(path.read_bytes())
    version = np.lib.format.read_magic(content)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(content)
    if dtype.kind != "O":
        return np.load(path, allow_pickle=False)
    loaded = _PlainUnpickler(content).load()
    return loaded.item() if shape == () else loaded
