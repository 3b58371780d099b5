"""Trains a small tokenizer of Qwen2.5's form for a closed domain."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from vita_mctp.errors import ConfigError
from vita_mctp.text.tokenizer import TextTokenizer
from vita_mctp.text.vocabulary import END_OF_TEXT, IM_END, IM_START, VocabularyKind

_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Qwen2.5's pre-tokenizer: what it separates is never merged."""

SPACE = "Ġ"
"""The space's character in byte-level BPE."""


def train_tokenizer(
    texts: Iterable[str],
    vocab_size: int,
    folder: str | Path,
    num_audio: int,
    words_as_tokens: bool = True,
    kind: VocabularyKind = VocabularyKind.DISCRETE,
) -> TextTokenizer:
    """Train byte-level BPE on `texts` and save it to `folder`, ready for `TextTokenizer.from_folder` and AutoTokenizer.

    vocab_size: most ids of the BPE model (bytes and merges), special and audio tokens not counted. words_as_tokens:
    every word of the texts is one token, with a space before it and without; ConfigError if vocab_size is too small for
    that. The same texts give the same files.
    """
    backend = _blank_tokenizer()
    counts = _count_words(backend, texts)
    units = _with_and_without_space(counts) if words_as_tokens else counts
    _train(backend, units, _size_for_whole_words(units) if words_as_tokens else vocab_size)
    if words_as_tokens and backend.get_vocab_size() > vocab_size:
        raise ConfigError(
            f"one token for each of {len(counts)} words wants {backend.get_vocab_size()} ids, got {vocab_size}; "
            "raise vocab_size or turn words_as_tokens off"
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


def _count_words(backend: Tokenizer, texts: Iterable[str]) -> dict[str, int]:
    """How often each pre-token occurs, in byte-level characters."""
    counts: dict[str, int] = {}
    for text in texts:
        for word, _ in backend.pre_tokenizer.pre_tokenize_str(backend.normalizer.normalize_str(text)):
            counts[word] = counts.get(word, 0) + 1
    return counts


def _with_and_without_space(counts: dict[str, int]) -> dict[str, int]:
    bare: dict[str, int] = {}
    for word, count in counts.items():
        key = word.removeprefix(SPACE)
        bare[key] = bare.get(key, 0) + count
    bare.pop("", None)
    spaced = {SPACE + word: count for word, count in bare.items() if word[0].isalpha()}
    return bare | spaced


def _size_for_whole_words(units: dict[str, int]) -> int:
    """Enough ids for any way of merging every unit into one token."""
    return len(pre_tokenizers.ByteLevel.alphabet()) + sum(map(len, units))


def _train(backend: Tokenizer, units: dict[str, int], vocab_size: int) -> None:
    """Fit the BPE model on pre-tokens that are already in byte-level characters."""
    fitted = Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    fitted.train_from_iterator((unit for unit, count in units.items() for _ in range(count)), trainer)
    backend.model = fitted.model
