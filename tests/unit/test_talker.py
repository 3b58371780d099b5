"""A talker decoded over caches, as trained, against its training forward; for every predictor, size and chunking."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from naive import speak_naive
from torch import Tensor

from vita_mctp.decoding.speaking import speak_events, speak_whole
from vita_mctp.decoding.talker import Penalty, TalkerAnswer, TalkerOptions
from vita_mctp.errors import ConfigError
from vita_mctp.models.registry import Speaking
from vita_mctp.models.vocalnet.sizes import TalkerSizes
from vita_mctp.models.vocalnet.talkers import TALKERS, Talker, make_talker
from vita_mctp.types import StopReason, TokenEvent, TokenKind

GROUPS = ("group_linear", "group_transformer")


def tiny_talker(predictor: str, levels: int = 3, group: int = 3, seed: int = 0, **changes: int) -> Talker:
    grouped = predictor in GROUPS
    usual = {
        "hidden_size": 16,
        "ffn_size": 24,
        "num_heads": 2,
        "backbone_layers": 2,
        "projector_layers": 1,
        "mtp_levels": 0 if grouped or predictor == "ntp" else levels,
        "group_size": group if grouped else 1,
        "num_units": 8,
    }
    sizes = TalkerSizes.parse({**usual, "predictor": predictor, **changes}, "talker")
    torch.manual_seed(seed)
    talker = make_talker(sizes)
    for parameter in talker.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=1.4 / parameter.shape[-1] ** 0.5)
    return talker.double().eval()


@st.composite
def cases(draw: st.DrawFn) -> tuple[Talker, list[Tensor], TalkerOptions]:
    predictor = draw(st.sampled_from(list(TALKERS)))
    heads, width = draw(st.integers(1, 3)), draw(st.sampled_from([5, 12]))
    changes = {
        "text_chunk": draw(st.integers(1, 4)),
        "speech_chunk": draw(st.integers(2, 6)),
        "num_heads": heads,
        "hidden_size": heads * draw(st.sampled_from([2, 4, 6])),
        "ffn_size": draw(st.integers(1, 24)),
        "backbone_layers": draw(st.integers(1, 3)),
        "projector_layers": draw(st.integers(1, 2)),
        "num_units": draw(st.integers(1, 12)),
        "text_size": width,
    }
    talker = tiny_talker(
        predictor, draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(0, 99)), **changes
    )
    counts = [draw(st.integers(1, 5)) for _ in range(draw(st.integers(1, 3)))]
    texts = [torch.randn(count, width, dtype=torch.float64) for count in counts]
    options = TalkerOptions(draw(st.integers(0, talker.sizes.mtp_levels)), "as_trained", draw(st.integers(2, 24)))
    return talker, texts, options


@settings(max_examples=40, deadline=None)
@given(cases())
def test_a_stream_with_caches_is_the_training_forward(case: tuple[Talker, list[Tensor], TalkerOptions]) -> None:
    talker, texts, options = case
    answer = TalkerAnswer(talker, options, streaming=True)
    made = [answer.push(text, last=number == len(texts)) for number, text in enumerate(texts, 1)]
    wanted = speak_naive(talker, texts, options, streaming=True)
    if talker.sizes.group_size > 1:  # whose EOS is not kept
        wanted = [[id for id in call if id != talker.sizes.eos] for call in wanted]
    assert made == wanted


@settings(max_examples=25, deadline=None)
@given(cases())
def test_a_whole_answer_with_caches_is_the_training_forward(case: tuple[Talker, list[Tensor], TalkerOptions]) -> None:
    talker, texts, options = case
    made = TalkerAnswer(talker, options, streaming=False).whole(torch.cat(texts))
    (wanted,) = speak_naive(talker, [torch.cat(texts)], options, streaming=False)
    assert made == [id for id in wanted if id != talker.sizes.eos or talker.sizes.group_size == 1]


@settings(max_examples=20, deadline=None)
@given(cases(), st.sampled_from(["reference", "as_trained"]), st.booleans(), st.integers(0, 3), st.booleans())
def test_no_id_beyond_the_codes_reaches_the_codec(
    case: tuple[Talker, list[Tensor], TalkerOptions], contract: str, ends: bool, special: int, likely: bool
) -> None:
    """BOS, SOS, EOS and PAD are 6,561 and more in released weights; here one of them may be likely on every level."""
    talker, texts, options = case
    if likely:
        for name, parameter in talker.named_parameters():
            if name.endswith("output_proj.bias") or ("mtp_output_proj" in name and name.endswith("bias")):
                parameter.data.view(-1, talker.sizes.vocab_size)[:, talker.sizes.num_units + special] += 2
    rows, end = [*torch.cat(texts)] * 2, 9
    rules = Speaking(talker, end, rows[0], lambda ids: "." * (7 in ids), reset_interval=4)
    why = StopReason.EOS if ends else StopReason.LENGTH
    events = [TokenEvent(i, 6 + i % 2, TokenKind.TEXT, 0, hidden=row) for i, row in enumerate(rows[:-1])]
    events.append(TokenEvent(len(events), end if ends else 6, TokenKind.STOP, 0, why, hidden=rows[-1]))
    spoken = replace(options, contract=contract)
    heard = [event.code for event in speak_events(events, rules, spoken) if event.kind is TokenKind.AUDIO]
    heard += speak_whole(rules, spoken, [event.id for event in events], rows)
    authors_own = {6324, 4137}  # of an answer in which nothing was said; there are 6,561 codes where it happens
    assert all(0 <= code < talker.sizes.num_units for code in heard if code not in authors_own)


def test_a_penalty_counts_each_occurrence_and_raises_negative_logits() -> None:
    logits = torch.tensor([[8.0, -8.0, 4.0, 2.0]])
    assert Penalty(3).apply(logits, [3, 0, 0, 1]).tolist() == [[2.0, -4.0, 4.0, 2.0]]
    assert Penalty(0).apply(logits, [0, 0]).tolist() == logits.tolist()


def test_more_levels_than_there_are() -> None:
    with pytest.raises(ConfigError, match="levels 4"):
        TalkerAnswer(tiny_talker("vocalnet"), TalkerOptions(4), streaming=False)


@pytest.mark.parametrize("predictor", list(TALKERS))
def test_what_is_learnt_is_said(predictor: str) -> None:
    """A talker that was trained on two answers, one with each mask, says both of them, at its full speed.

    The texts are equally long and come at once: where speech begins depends on the longest text of a batch.
    """
    talker = tiny_talker(predictor, 2, text_chunk=3, speech_chunk=3 if predictor in GROUPS else 6).float()
    torch.manual_seed(1)
    texts = list(torch.randn(2, 7, 16))
    said = [torch.randint(0, 8, (n,)) for n in (14, 9)]
    batch = talker.batch(texts, said, [True, False])
    optimizer = torch.optim.Adam(talker.parameters(), lr=5e-3)
    for _ in range(100):
        optimizer.zero_grad()
        talker.loss(talker.losses(batch)).backward()
        optimizer.step()
    options = TalkerOptions(talker.sizes.mtp_levels, "as_trained", 40)
    made = TalkerAnswer(talker, options, streaming=True).push(texts[0], last=True)
    whole = TalkerAnswer(talker, options, streaming=False).whole(texts[1])
    assert [id for id in made if id < 8] == said[0].tolist()
    assert [id for id in whole if id < 8] == said[1].tolist()
