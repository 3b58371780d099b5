"""Trains the nano model, stage by stage: `train(recipe, corpus=..., tokens=..., out=...)`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from vita_mctp.data.row_stream import Pool
from vita_mctp.errors import ConfigError
from vita_mctp.nano.corpus.corpus import Corpus
from vita_mctp.nano.data import CodeStore, nano_pools, nano_tokenizer
from vita_mctp.text.chat import ChatFormat
from vita_mctp.text.tokenizer import TextTokenizer
from vita_mctp.training.arguments import Evaluate
from vita_mctp.training.recipe import Recipe
from vita_mctp.training.stage import TrainingData, train_stage


def train(
    recipe_path: Path | str,
    *,
    corpus: Path | str,
    tokens: Path | str,
    out: Path | str,
    resume: bool = True,
    evaluate: Evaluate | None = None,
    settings: Sequence[str] = (),
) -> Path | None:
    """Run one of nano's stages, or finish it where it stopped; arguments, result and errors as `train_stage`'s.

    Args:
        corpus, tokens: folders of the synthetic corpus and of its codes (see `CodeStore`).
    """

    def pools(recipe: Recipe, tokenizer: TextTokenizer) -> Mapping[str, Pool]:
        store = CodeStore.load(Path(tokens))
        return nano_pools(Corpus(Path(corpus)), store, ChatFormat(tokenizer), recipe.data.interleave_ratio)

    def tokenizer(recipe: Recipe, folder: Path) -> TextTokenizer:
        if recipe.model is None:
            raise ConfigError(f"{recipe.name}: nano begins from nothing, so `model` is needed")
        return nano_tokenizer(folder, recipe.model.num_audio_codes)

    data = TrainingData(pools, tokenizer)
    return train_stage(Path(recipe_path), data, out=Path(out), settings=settings, resume=resume, evaluate=evaluate)
