"""VocalNet-M2's talker over caches, however its text is cut, against its training forward."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from naive import say_naive

from vita_mctp.decoding.frames import Frame, FrameAnswer
from vita_mctp.errors import ConfigError
from vita_mctp.models.vocalnet_m2.talker import M2Sizes, M2Talker


def tiny_talker(
    levels: int, codebooks: int, stretch: int, seed: int = 0, heads: int = 2, size: int = 8, layers: int = 2
) -> M2Talker:
    sizes = M2Sizes(
        hidden_size=heads * size,
        ffn_size=24,
        num_heads=heads,
        num_layers=layers,
        text_size=6,
        thinker_size=10,
        fusion_size=12,
        mtp_levels=levels,
        num_codebooks=codebooks,
        codebook_size=6,
        stretch=stretch,
    )
    torch.manual_seed(seed)
    talker = M2Talker(sizes)
    for parameter in talker.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=1.4 / parameter.shape[-1] ** 0.5)
    return talker.double().eval()


@settings(max_examples=30, deadline=None)
@given(
    talker=st.builds(
        tiny_talker,
        st.integers(0, 5),
        st.integers(1, 8),
        st.integers(1, 4),
        st.integers(0, 99),
        st.integers(1, 3),
        st.sampled_from([2, 4, 8]),
        st.integers(1, 3),
    ),
    levels=st.integers(0, 5),
    cuts=st.lists(st.integers(0, 3), min_size=1),
)
def test_a_stream_is_the_training_forward(talker: M2Talker, levels: int, cuts: list[int]) -> None:
    sizes, levels = talker.sizes, min(levels, talker.sizes.mtp_levels)
    fused = torch.randn(sum(cuts), sizes.hidden_size, dtype=torch.float64)
    answer, made = FrameAnswer(talker, levels, 17), list[Frame]()
    for part in fused.split(cuts):
        made += answer.push(part, last=False)
        assert len(made) <= answer._text.shape[0] * sizes.stretch + levels + 1
    made += answer.push(None, last=True)
    assert made == say_naive(talker, fused, levels, 17)
    assert all(0 <= code < sizes.codebook_size for frame in made for code in frame), "what the codec may be given"


def test_losses_of_padded_answers_are_of_each_alone() -> None:
    talker = tiny_talker(2, 2, 3)
    texts = [torch.randn(n, 16, dtype=torch.float64) for n in (4, 2)]
    codes = [torch.randint(0, 6, (n, 2)) for n in (9, 5)]
    together = talker.losses(talker.batch(texts, codes))
    alone = [talker.losses(talker.batch([text], [said])) for text, said in zip(texts, codes, strict=True)]
    for k, loss in enumerate(together):
        rows = [len(said) + 1 - k for said in codes]
        wanted = sum(each[k] * count for each, count in zip(alone, rows, strict=True)) / sum(rows)
        assert loss.item() == pytest.approx(wanted.item())


def test_more_levels_than_there_are() -> None:
    with pytest.raises(ConfigError, match="levels 3"):
        FrameAnswer(tiny_talker(2, 2, 3), 3)
