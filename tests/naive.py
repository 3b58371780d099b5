"""Slow twins of engine and talkers: every token recomputes the whole chain over all tokens so far, with no cache.

Decoding is teacher forcing: a level's token at position p depends only on true tokens, never on the level's own earlier
guesses, so what the engine gets from its caches must equal what this file computes from nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vita_mctp.decoding.frames import Frame, FrameTalkerModel, _best
from vita_mctp.decoding.request import Classify, Request, Result, SequenceState, all_text
from vita_mctp.decoding.runners.eager import as_numpy
from vita_mctp.decoding.sampling import is_typical, softmax
from vita_mctp.decoding.talker import TalkerModel, TalkerOptions
from vita_mctp.models.registry import SpeechModel
from vita_mctp.study.samples import teacher_forced_chain
from vita_mctp.types import TokenEvent


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


def generate_lossy_naive(model: SpeechModel, request: Request) -> list[int]:
    """The ids of a lossy mode: rounds of drafts, each by the whole chain, and their check, by the whole backbone."""
    blocks, mode = model.config.num_nextn_predict_layers, request.mode
    state = SequenceState.start(request, blocks, request.token_budget(model.config.vocab_size, 1 << 30))
    drafts: list[int] = []
    while state.reason is None:
        for draft in [*drafts, None]:
            scores = as_numpy(teacher_forced_chain(model, state.ids, deepest=0)[0][-1])
            token = state.sampler.choose(scores, state.ids)
            if draft is not None and is_typical(scores, draft, mode.typical):
                token = draft
            state.record([(token, 0)], all_text)
            if token != draft or state.reason is not None:
                break
        drafts, product, seen = [], 1.0, list(state.ids)
        room = state.budget - len(state.ids) + len(request.prompt_ids)
        while len(drafts) < min(blocks, room) and product >= mode.stop_below and not request.eos_ids & set(drafts):
            scores = as_numpy(teacher_forced_chain(model, seen, deepest=len(drafts) + 1)[-1][-1])
            drafts.append(state.sampler.choose(scores, seen))
            product *= float(softmax(scores)[drafts[-1]])
            seen.append(drafts[-1])
    return state.ids[len(request.prompt_ids) :]


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


@torch.inference_mode()
def say_naive(talker: FrameTalkerModel, fused: Tensor, levels: int, max_frames: int) -> list[Frame]:
    """The slow twin of `FrameAnswer` on a whole text: each frame by the training forward on all before it."""
    frames, said = list[Frame](), list[Frame]()
    while len(frames) < max_frames:
        step: Sequence[Tensor] = list(talker.chain(talker.batch([fused], [_codes(talker, frames)])))
        for k in range(levels + 1):
            logits = talker.logits(k, step[k][0, -1])
            frames.append(_best(logits))
            if frames[-1][0] == talker.sizes.eos:
                return said
            said.append(_best(logits[:, : talker.sizes.codebook_size]))
    return said


def _codes(talker: FrameTalkerModel, frames: Sequence[Frame]) -> Tensor:
    return torch.tensor(frames, dtype=torch.long).view(-1, talker.sizes.num_codebooks)
