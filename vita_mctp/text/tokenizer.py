"""Qwen2.5's byte-level BPE with the released additions: text to ids, and ids to text that never splits a character.

Runs on the `tokenizers` library alone, which loads in milliseconds.
"""

from __future__ import annotations

import codecs
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from vita_mctp.errors import CheckpointError, ConfigError
from vita_mctp.text.vocabulary import (
    CONTEXT_OF_AUDIO,
    END_OF_TEXT,
    IM_END,
    IM_START,
    RELEASED_CODES,
    Vocabulary,
    VocabularyKind,
    audio_token,
    released_additions,
)

TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"

_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Qwen2.5's pre-tokenizer: what it separates is never merged."""

SPACE = "Ġ"
"""In byte-level BPE."""


class TextTokenizer:
    """Text <-> ids over one `Vocabulary`. Immutable; any number of conversations may use one."""

    def __init__(self, backend: Tokenizer, vocabulary: Vocabulary) -> None:
        self.vocabulary, self._backend = vocabulary, backend
        self._added = backend.get_added_tokens_decoder()
        self._bytes: dict[int, bytes] = {}

    @classmethod
    def from_folder(
        cls, folder: str | Path, kind: VocabularyKind | str | None = None, num_audio: int | None = None
    ) -> TextTokenizer:
        """Read a Qwen2.5 tokenizer folder and add what it lacks of the released additions, in the released order.

        kind, num_audio: None takes what the folder has, else the released discrete kind with 16,384 codes. Raises
        CheckpointError if the folder has no readable tokenizer.json or holds another kind or number of audio tokens.
        """
        return cls.from_backend(read_backend(Path(folder) / TOKENIZER_FILE), kind, num_audio)

    @classmethod
    def from_backend(
        cls, backend: Tokenizer, kind: VocabularyKind | str | None = None, num_audio: int | None = None
    ) -> TextTokenizer:
        """As `from_folder`, from a tokenizer in memory, which is extended in place."""
        present = _audio_tokens_of(backend)
        kind = _settle_kind(backend, kind, extended=bool(present))
        num_audio = num_audio or present or RELEASED_CODES
        if present not in (0, num_audio):
            raise CheckpointError(
                f"the tokenizer holds {present} audio tokens; wanted {num_audio}: leave num_audio out"
            )
        if not present:
            backend.add_special_tokens([AddedToken(t, normalized=False) for t in released_additions(kind)])
            codes = (audio_token(code) for code in range(num_audio))
            backend.add_tokens([AddedToken(token, normalized=False, special=False) for token in codes])
        return cls(backend, Vocabulary.from_lookup(backend.token_to_id, num_audio))

    def encode(self, text: str) -> list[int]:
        """Ids of text in which special tokens (`<|im_end|>`, `<|audio_7|>` ...) count as such."""
        return list(self._backend.encode(text, add_special_tokens=False).ids)

    def encode_ordinary(self, text: str) -> list[int]:
        """Ids of text in which nothing is special: what a user typed cannot end a turn or forge speech."""
        return list(self._ordinary.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """Text of ids; bytes that form no character become U+FFFD. `skip_special` hides markers and audio codes."""
        return b"".join(self.token_bytes(token, skip_special=skip_special) for token in ids).decode("utf-8", "replace")

    def token_bytes(self, token: int, *, skip_special: bool = True) -> bytes:
        """UTF-8 bytes of one id, perhaps only part of a character; empty for an id outside the vocabulary."""
        added = self._added.get(token)
        if skip_special and ((added and added.special) or self.vocabulary.is_audio(token)):
            return b""
        if token not in self._bytes:
            self._bytes[token] = self._spell(token)
        return self._bytes[token]

    def save(self, folder: str | Path) -> None:
        """Write tokenizer.json and tokenizer_config.json, as transformers' AutoTokenizer reads them."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self._backend.save(str(folder / TOKENIZER_FILE))
        (folder / CONFIG_FILE).write_text(json.dumps(_TRANSFORMERS_CONFIG, indent=2) + "\n", encoding="utf-8")

    @cached_property
    def _ordinary(self) -> Tokenizer:
        """Same model without added tokens."""
        ordinary = Tokenizer(self._backend.model)
        ordinary.normalizer = self._backend.normalizer
        ordinary.pre_tokenizer = self._backend.pre_tokenizer
        return ordinary

    def _spell(self, token: int) -> bytes:
        written = self._backend.id_to_token(token) if token >= 0 else None
        if written is None:
            return b""
        return written.encode() if token in self._added else bytes(_BYTE_OF_CHAR[char] for char in written)


def read_backend(path: Path) -> Tokenizer:
    """A tokenizer.json. Raises CheckpointError."""
    try:
        return Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"cannot read the tokenizer {path}: {error.strerror}; name its folder") from error
    except Exception as error:  # what tokenizers raises for every malformed file
        raise CheckpointError(f"{path} is no tokenizer file ({error}); fetch it again") from error


class IncrementalDecoder:
    """Ids in, finished characters out. A character may be cut anywhere, also around an audio segment."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer
        self._pending = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, ids: Sequence[int]) -> str:
        """Text that became final with these ids; markers and audio codes neither show nor interrupt."""
        return self._pending.decode(b"".join(map(self._tokenizer.token_bytes, ids)))

    def flush(self) -> str:
        """What is left at the end: U+FFFD for half a character, else nothing."""
        return self._pending.decode(b"", final=True)


def _audio_tokens_of(backend: Tokenizer) -> int:
    """Number of consecutive audio tokens the tokenizer knows, from code 0 on."""
    first = backend.token_to_id(audio_token(0))
    return 0 if first is None else backend.get_vocab_size(with_added_tokens=True) - first


def _settle_kind(backend: Tokenizer, kind: VocabularyKind | str | None, extended: bool) -> VocabularyKind:
    try:
        asked = VocabularyKind.DISCRETE if kind is None else VocabularyKind(kind)
    except ValueError:
        known = ", ".join(each.value for each in VocabularyKind)
        raise ConfigError(f"unknown tokenizer kind {kind!r}; known are {known}") from None
    if not extended:
        return asked
    continuous = backend.token_to_id(CONTEXT_OF_AUDIO) is not None
    found = VocabularyKind.CONTINUOUS if continuous else VocabularyKind.DISCRETE
    if kind is not None and found is not asked:
        raise CheckpointError(f"the tokenizer is of kind {found.value}; wanted {asked.value}: load the matching model")
    return found


def _byte_of_char() -> dict[str, int]:
    """Inverse of GPT-2's table: printable Latin-1 bytes stand for themselves, the others for U+0100 onwards."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}
    assert table.keys() == set(pre_tokenizers.ByteLevel.alphabet())
    return table


_BYTE_OF_CHAR = _byte_of_char()

_TRANSFORMERS_CONFIG = {
    "tokenizer_class": "Qwen2Tokenizer",
    "add_prefix_space": False,
    "bos_token": None,
    "clean_up_tokenization_spaces": False,
    "eos_token": IM_END,
    "errors": "replace",
    "model_max_length": 32768,
    "pad_token": END_OF_TEXT,
    "split_special_tokens": False,
    "unk_token": None,
}


def train_tokenizer(
    texts: Iterable[str],
    vocab_size: int,
    folder: str | Path,
    num_audio: int,
    kind: VocabularyKind = VocabularyKind.DISCRETE,
) -> TextTokenizer:
    """Train byte-level BPE on `texts` and save it to `folder`, ready for `TextTokenizer.from_folder` and AutoTokenizer.

    Every word of the texts is one token, with a space before it and without. vocab_size: most ids of the BPE model
    (bytes and merges), special and audio tokens not counted; ConfigError if it is too small. The same texts give the
    same files.
    """
    backend = _blank_tokenizer()
    split, normal = backend.pre_tokenizer.pre_tokenize_str, backend.normalizer.normalize_str
    counts = Counter(word for text in texts for word, _ in split(normal(text)))
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    units = _with_and_without_space(counts)
    size = len(alphabet) + sum(map(len, units))  # enough for any way of merging
    trainer = trainers.BpeTrainer(vocab_size=size, show_progress=False, initial_alphabet=alphabet)
    fitted = Tokenizer(models.BPE())  # the units are in byte-level characters already
    fitted.train_from_iterator((unit for unit, count in units.items() for _ in range(count)), trainer)
    backend.model = fitted.model
    if backend.get_vocab_size() > vocab_size:
        raise ConfigError(
            f"one token for each of {len(counts)} words wants {backend.get_vocab_size()} ids, got {vocab_size}; "
            "raise vocab_size"
        )
    backend.add_special_tokens([AddedToken(token, normalized=False) for token in (END_OF_TEXT, IM_START, IM_END)])
    tokenizer = TextTokenizer.from_backend(backend, kind, num_audio)
    tokenizer.save(folder)
    return tokenizer


def _blank_tokenizer() -> Tokenizer:
    backend = Tokenizer(models.BPE())
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    return backend


def _with_and_without_space(counts: Counter[str]) -> dict[str, int]:
    bare = Counter[str]()
    for word, count in counts.items():
        bare[word.removeprefix(SPACE)] += count
    bare.pop("", None)
    spaced = {SPACE + word: count for word, count in bare.items() if word[0].isalpha()}
    return bare | spaced
