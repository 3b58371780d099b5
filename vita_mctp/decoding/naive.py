"""Slow twins of engine and talker: every token recomputes the whole chain over all tokens so far, with no cache.

Decoding is teacher forcing: a level's token at position p depends only on true tokens, never on the level's own earlier
guesses, so what the engine gets from its caches must equal what this file computes from nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vita_mctp.decoding.request import Classify, Request, Result, SequenceState, all_text
from vita_mctp.decoding.runners.eager import as_numpy
from vita_mctp.decoding.talker import TalkerModel, TalkerOptions
from vita_mctp.types import HeardAudio, TokenEvent

if TYPE_CHECKING:
    from vita_mctp.models.registry import SpeechModel


@torch.inference_mode()
def teacher_forced_chain(
    model: SpeechModel, ids: Sequence[int], deepest: int | None = None, heard: Sequence[HeardAudio] = ()
) -> list[Tensor]:
    """Logits of levels 0..deepest (default: all that `ids` are long enough for).

    Entry 0 is the backbone's (T, V), row p predicting token p + 1. Entry k is level k's (T-k, V): it starts at position
    k, reading token p and the hidden state of level k - 1 at p - 1.
    """
    device = next(model.parameters()).device
    length = len(ids)
    embeds = model.embed(torch.tensor([list(ids)], device=device))
    positions = torch.arange(length, device=device)[None]
    hidden = model.backbone(model.listen(embeds, [heard]), positions, attention_mask=_causal_mask(embeds))
    chain = [model.logits(hidden)[0]]
    deepest = model.config.num_nextn_predict_layers if deepest is None else deepest
    for level in range(1, min(deepest, length - 1) + 1):
        seen = embeds[:, level:]
        hidden = model.block(level - 1, seen, hidden[:, :-1], positions[:, level:], attention_mask=_causal_mask(seen))
        chain.append(model.logits(hidden)[0])
    return chain


def generate_naive(model: SpeechModel, request: Request, classify: Classify = all_text) -> Result:
    """What `Engine.generate` returns for `request`, with O(T^2) recomputation."""
    config = model.config
    budget = request.token_budget(config.vocab_size, config.max_position_embeddings)
    state = SequenceState.start(request, config.num_nextn_predict_layers, budget)
    events: list[TokenEvent] = []
    while state.reason is None:
        level, state.cursor = state.cursor.step()
        logits = teacher_forced_chain(model, state.ids, deepest=level, heard=request.heard)[level][-1]
        events += state.record([(state.sampler.choose(as_numpy(logits), state.ids), level)], classify)
    return Result(request.id, tuple(events))


@torch.inference_mode()
def speak_naive(
    talker: TalkerModel, texts: Sequence[Tensor], options: TalkerOptions, *, streaming: bool
) -> list[list[int]]:
    """What `TalkerAnswer`, as trained, makes of each call: one `whole`, or a `push` for each of `texts`, the last last.

    Tokens come from the training forward. K + 1 of them are drawn without a look at what they predict of each other.
    """
    sizes, g = talker.sizes, talker.sizes.group_size
    history: list[int] = []
    calls: list[list[int]] = []
    for number, _ in enumerate(texts, 1):
        text, last = torch.cat(list(texts[:number])), number == len(texts)
        room = None if last else sizes.speech_chunk * g
        made: list[int] = []
        while sizes.eos not in history and (
            len(history) + 1 < options.max_tokens if room is None else len(made) < room
        ):
            drawn: list[int] = []
            for k in range(options.levels + 1):
                said = torch.tensor(history + drawn, dtype=torch.long)
                batch = talker.batch([text], [said], [streaming])
                hidden = list(talker.chain(batch))[k][0, batch.text_columns + len(history) // g]
                drawn += talker.logits(k, hidden).argmax(-1).tolist()
                if sizes.eos in drawn or len(made) + len(drawn) == room:
                    break
            drawn = drawn[: drawn.index(sizes.eos) + 1] if sizes.eos in drawn else drawn
            made, history = made + drawn, history + drawn
        calls.append(made)
    return calls


def _causal_mask(embeds: Tensor) -> Tensor:
    """Additive causal mask (1, 1, T, T) for embeds (1, T, H)."""
    length = embeds.shape[1]
    mask = torch.full((length, length), torch.finfo(embeds.dtype).min, dtype=embeds.dtype, device=embeds.device)
    return mask.triu(1)[None, None]
