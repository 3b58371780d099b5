"""Counts of verified drafts against cases worked by hand, and the prompts that they are counted on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from naive import generate_naive

from vita_mctp.bench import Machine
from vita_mctp.bench.models import LoadedModel, ModelChoice, random_language_model
from vita_mctp.bench.verified import Asked, Spelling, bench_verified
from vita_mctp.decoding.modes import MODES
from vita_mctp.decoding.request import Request
from vita_mctp.errors import MissingExtraError
from vita_mctp.models.vita import VitaMctpConfig
from vita_mctp.nano.cases import draft_sets
from vita_mctp.speech_lm import SpeechLM
from vita_mctp.types import TokenKind

MACHINE = Machine("cpu", "float32", bytes_per_second=1e9, flops_per_second=1e12)


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
    config = VitaMctpConfig(
        vocab_size=50,
        num_hidden_layers=5,
        num_nextn_predict_layers=3,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        **sizes,
    )
    return LoadedModel("tiny", random_language_model(config, ModelChoice(random="tiny")))


def kind(token: int) -> TokenKind:
    return TokenKind.AUDIO if token % 2 else TokenKind.TEXT


def test_counts_of_drafts_add_up(loaded: LoadedModel) -> None:
    requests = [Request((i, 2 * i, 3), MODES["vanilla"], 12, id=str(i)) for i in range(5)]
    answers = [generate_naive(loaded.model, request).ids for request in requests]
    texts = [" ".join(str(token) for token in ids if kind(token) is TokenKind.TEXT) for ids in answers]
    asked = [Asked(requests[0], texts[0]), *[Asked(request, "wrong") for request in requests[1:]]]
    never_stops = replace(MODES["verified"], stop_below=0.0)
    spelling = Spelling(kind, lambda ids: " ".join(map(str, ids)), first_block=2)
    study = bench_verified(loaded, MACHINE, sets={"five": asked}, spelling=spelling, verified=never_stops)
    found = {str(row["what"]): row["five"] for row in study.rows}
    assert found["Vanilla's ids exactly"] == found["Vanilla's ids exactly, 16 at once"] == found["answers"] == 5
    assert found["tokens"] == 60 and found["right, verified, %"] == found["right, vanilla, %"] == 20
    third = [[i for i, token in enumerate(ids) if kind(token) is TokenKind.AUDIO] for ids in answers]
    second_code = [moments[1] + 1 for moments in third if len(moments) > 1]
    assert found["passes to the first sound, vanilla"] == pytest.approx(sum(second_code) / 5)
    tokens_a_pass, drafted = found["tokens a backbone pass"], found["drafts a pass"]
    unused, ran = found["block steps unused, %"], found["blocks run a pass"]
    assert isinstance(tokens_a_pass, float) and isinstance(ran, float) and isinstance(unused, float)
    assert tokens_a_pass == pytest.approx(1 + ran * (1 - unused / 100)) and drafted <= ran  # type: ignore[operator]


def test_the_prompts_are_held_out_ones(tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    pytest.importorskip("vita_mctp.nano.synthesis")
    speech_lm = SpeechLM.from_pretrained("nano")
    sizes = {"questions": 2, "sentences": 1}
    try:
        sets, spelling = draft_sets(speech_lm, tmp_path, **sizes, temperature=0.5, seed=3)
    except MissingExtraError:
        pytest.skip("no synthesiser")
    assert [len(asked) for asked in sets.values()] == [2, 2, 1, 2]
    greedy, sampled = sets["questions"][0].request, list(sets.values())[-1][0].request
    assert greedy.prompt_ids == sampled.prompt_ids and np.isclose(sampled.sampling.temperature, 0.5)
    assert sets["questions"][0].right and not sets["sentences never trained on"][0].right
    assert spelling.first_block == 8
