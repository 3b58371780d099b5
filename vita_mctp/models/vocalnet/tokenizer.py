"""A thinker's tokenizer: text and nothing else; what its talker says has no ids."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from tokenizers import Tokenizer

from vita_mctp.errors import CheckpointError
from vita_mctp.models.vocalnet.prompts import Format
from vita_mctp.text.tokenizer import TOKENIZER_FILE, TextTokenizer, read_backend
from vita_mctp.text.vocabulary import VocabularyKind
from vita_mctp.types import TokenKind


@dataclass(frozen=True)
class ThinkerVocabulary:
    """What an answer needs to know of ids, of which the thinker embeds `size`.

    end: of an answer; text_end: of the row that is spoken last. num_audio, codebooks: of what its talker says.
    """

    end: int
    text_end: int
    size: int
    num_audio: int
    codebooks: int
    input_kind = VocabularyKind.CONTINUOUS

    @property
    def eos_ids(self) -> tuple[int, ...]:
        return (self.end,)

    @property
    def pad(self) -> int:
        return self.text_end

    @property
    def padded_size(self) -> int:
        """It grows by nothing."""
        return self.size

    @property
    def end_of_audio(self) -> int:
        """Speech has no segments here, so that this closes none."""
        return self.end

    def is_audio(self, token: int) -> bool:
        return False

    def kind(self, token: int) -> TokenKind:
        return TokenKind.STOP if token == self.end else TokenKind.TEXT


def thinker_vocabulary(tokenizer: TextTokenizer) -> ThinkerVocabulary:
    """Of a tokenizer that `thinker_tokenizer` made."""
    return cast(ThinkerVocabulary, tokenizer.vocabulary)


def thinker_tokenizer(folder: Path, form: Format, size: int, num_audio: int, codebooks: int) -> TextTokenizer:
    """size: of the thinker's embeddings. Raises CheckpointError for a tokenizer that lacks the format's markers."""
    path = folder / TOKENIZER_FILE
    backend = read_backend(path)
    end, text_end, *_ = (_id(backend, marker, path) for marker in (form.end, form.text_end, *form.markers()))
    if max(end, text_end) >= size:
        raise CheckpointError(f"{path} has the id {max(end, text_end)}, the model embeds {size}; they do not fit")
    return TextTokenizer(backend, cast(Any, ThinkerVocabulary(end, text_end, size, num_audio, codebooks)))


def _id(backend: Tokenizer, marker: str, path: Path) -> int:
    found = backend.token_to_id(marker)
    if found is None:
        raise CheckpointError(f"{path} has no {marker}; wanted the tokenizer that the model was trained with")
    return int(found)
