"""One row for every sample, failures too; what is reported can be computed again from the rows alone."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vita_mctp.evaluation.journal import cannot_write, parse_lines
from vita_mctp.evaluation.normalize import same_text

ASR, ANSWER, TTS = "asr", "answer", "tts"
NO_AUDIO, NO_TEXT, UNFINISHED = "no audio", "no text", "it never ended"
"""Failures of an answer that came."""

ORIGINAL, COPY = "original", "copy"
"""The judge's floors: the answer voice itself, and its way through the codec and back."""


@dataclass(frozen=True)
class Row:
    """What came of one sample.

    task: asr, answer or tts; original or copy for the floors, whose mode is "-". prompt: the words of the question or
    of the sentence to say. reference: what is right, the question for asr and the answer for answer. text: what the
    model wrote; bigram, loop: what the judge heard in its wave. All three are empty where nothing came.
    failure: what went wrong, or None; what came before it is scored all the same.
    Seconds count from the moment the question is handed over.
    """

    id: str
    task: str
    mode: str
    group: str
    kind: str
    voice: str
    prompt: str
    reference: str
    text: str = ""
    bigram: str = ""
    loop: str = ""
    tokens: int = 0
    total_seconds: float = 0.0
    first_sound_seconds: float | None = None
    audio_seconds: float = 0.0
    stop: str | None = None
    failure: str | None = None

    @property
    def text_right(self) -> bool:
        return same_text(self.reference, self.text)

    @property
    def heard_right(self) -> bool:
        """The judge, with its bigram, hears the reference word for word."""
        return same_text(self.reference, self.bigram)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"text_right": self.text_right, "heard_right": self.heard_right}


def write_rows(path: Path, rows: Iterable[Row]) -> Iterator[Row]:
    """Writes each row as a line of JSON when it comes, and hands it on. Raises OutputError when it cannot."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w", encoding="utf-8")
    except OSError as error:
        raise cannot_write(path, error) from None
    with file:
        for row in rows:
            try:
                file.write(json.dumps(row.as_dict()) + "\n")
                file.flush()
            except OSError as error:
                raise cannot_write(path, error) from None
            yield row


def read_rows(path: Path) -> list[Row]:
    """Raises DataError naming the line that is not a row."""
    return parse_lines(path.read_text(encoding="utf-8"), path, _row)


def _row(values: dict[str, Any]) -> Row:
    return Row(**{key: value for key, value in values.items() if not key.endswith("_right")})
