"""A corpus of a few utterances with made-up codes, and recipes for models of a few thousand parameters."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from vita_mctp.nano.corpus import FORMAT, INDEX
from vita_mctp.nano.domain import build_domain
from vita_mctp.nano.voices import PHONES

NUM_CODES = 24
TINY_STAGES: dict[int, dict[str, Any]] = {
    1: {
        "num_mctp_blocks": 0,
        "freeze_backbone": False,
        "model": {
            "hidden_size": 16,
            "num_layers": 2,
            "num_heads": 2,
            "intermediate_size": 24,
            "num_audio_codes": NUM_CODES,
            "audio_code_levels": [4, 6],
        },
    },
    2: {"num_mctp_blocks": 1, "freeze_backbone": True, "parent": "tiny1"},
    3: {"num_mctp_blocks": 3, "freeze_backbone": True, "parent": "tiny2"},
    4: {"num_mctp_blocks": 3, "freeze_backbone": False, "parent": "tiny3"},
}


def tiny_recipe(stage: int, **changes: Any) -> dict[str, Any]:
    """The YAML values of one stage of four steps."""
    values = {
        "name": f"tiny{stage}",
        "stage": stage,
        "optimizer": {"lr": 0.003, "name": "muon", "muon_lr": 0.004, "mctp_lr_multiplier": 2.0},
        "schedule": {"kind": "wsd", "decay_fraction": 0.5},
        "data": {"mixture": "mixture.yaml", "row_length": 128, "tokens_per_step": 512, "rows_per_forward": 2},
        "max_tokens": 2048,
        "log_interval": 1,
        "checkpoint_interval": 3,
    }
    return values | TINY_STAGES[stage] | changes


@pytest.fixture
def recipe_values() -> Callable[..., dict[str, Any]]:
    return tiny_recipe


@pytest.fixture
def write_recipe(tmp_path: Path) -> Callable[..., Path]:
    """(stage, **changes) -> the recipe's path, its mixture beside it."""
    sets = [{"name": name} for name in ("asr", "tts_answers", "sqa", "text")]
    (tmp_path / "mixture.yaml").write_text(yaml.safe_dump({"seed": 5, "sets": sets}))

    def write(stage: int, **changes: Any) -> Path:
        path = tmp_path / f"stage{stage}.yaml"
        path.write_text(yaml.safe_dump(tiny_recipe(stage, **changes)))
        return path

    return write


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders `corpus` and `tokens`: 8 trained questions, their answers, a sentence, babble, a held-out question."""
    domain = build_domain()
    asked = domain.train[:8]
    parts = {
        "questions": [qa.question for qa in asked],
        "answers": sorted({qa.answer for qa in asked}),
        "sentences": ["one plus one is nine"],
        "babble": ["red seven monday"],
        "eval_questions": [domain.held_out[0].question],
    }
    corpus, tokens = tmp_path_factory.mktemp("corpus"), tmp_path_factory.mktemp("tokens")
    for part, texts in parts.items():
        records = [_record(text) for text in texts]
        (corpus / f"{part}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        np.save(corpus / f"{part}.npy", np.zeros(100, dtype=np.int16))
    header = {"format": FORMAT, "phones": PHONES, "vocabulary": domain.vocabulary, "shards": [[p, p] for p in parts]}
    (corpus / INDEX).write_text(json.dumps(header))
    _write_codes(tokens, [text for texts in parts.values() for text in texts])
    return {"corpus": corpus, "tokens": tokens}


def _record(text: str) -> dict[str, Any]:
    times = {"phone_ends": None, "word_starts": None, "word_ends": None}
    return {
        "text": text,
        "kind": "addition",
        "voice": "flite:slt:1:1",
        "start": 0,
        "length": 100,
        "phones": [],
        **times,
    }


def _write_codes(folder: Path, texts: list[str]) -> None:
    """Two codes a word, a function of the word; variant 1 is shifted by one code."""
    codes: list[int] = []
    index = []
    for utterance, text in enumerate(texts):
        for variant in (0, 1):
            own = [(len(word) * 5 + ord(word[0]) + variant + n) % NUM_CODES for word in text.split() for n in (0, 1)]
            index.append((utterance, variant, len(codes), len(own)))
            codes += own
    np.save(folder / "codes.npy", np.array(codes, dtype=np.int16))
    np.save(folder / "index.npy", np.array(index, dtype=np.int64))
