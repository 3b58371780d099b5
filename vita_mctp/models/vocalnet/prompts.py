"""VocalNet's chats as ids: what is asked, and what is trained on. Each thinker has its own language model's format.

A recording stands as `<speech>` in a turn, and as SPEECH among the ids until it is known how many rows it takes. What a
user wrote is plain text: nothing in it is special.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from vita_mctp.errors import ConfigError, DataError
from vita_mctp.text.chat import (
    IGNORED,
    Clip,
    FeatureSpan,
    Message,
    Sample,
    SpokenAnswer,
    codes_of,
    positions_of,
    role_of,
    with_instructions,
)
from vita_mctp.text.tokenizer import TextTokenizer
from vita_mctp.text.vocabulary import AUDIO_TAG
from vita_mctp.types import AudioFeatures, HeardAudio, Prompt, Role, Task, Turn

SPEECH = -200
"""Stands for a recording among the ids."""
SPEECH_TAG = "<speech>"

_ROLES = {"human": Role.USER, "gpt": Role.ASSISTANT}
_TASK = (
    "You are a helpful language and speech assistant. You are able to understand the speech content that the user "
    "provides, and assist the user with a variety of tasks using natural language and speech."
)
_FILLER = 0
"""An id at the positions that a recording's rows overwrite."""


@dataclass(frozen=True)
class Format:
    """head, tail: around a turn's content, whose ids they are. opening: before all turns.

    end: of an answer, which stops the loop. text_end: of the row that is spoken last; end_row: whether the row that
    predicted `end` is trained to be spoken.
    """

    opening: tuple[str, ...]
    head: tuple[str, ...]
    tail: tuple[str, ...]
    system: str
    end: str
    text_end: str
    trims: bool
    end_row: bool

    def markers(self) -> tuple[str, ...]:
        """Special tokens that a tokenizer must have."""
        return tuple(part for part in (*self.opening, *self.head, *self.tail) if part.startswith("<|"))


LLAMA = Format(
    opening=("<|begin_of_text|>",),
    head=("<|start_header_id|>", "{role}", "<|end_header_id|>", "\n\n"),
    tail=("<|eot_id|>",),
    system=f"Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n{_TASK}",
    end="<|eot_id|>",
    text_end="<|eot_id|>",
    trims=True,
    end_row=False,
)
"""Llama 3.1's and 3.2's own template, at the date that the models were trained with."""

QWEN = Format(
    opening=(),
    head=("<|im_start|>", "{role}\n"),
    tail=("<|im_end|>", "\n"),
    system=f"You are Qwen, created by Alibaba Cloud. {_TASK}",
    end="<|im_end|>",
    text_end="<|endoftext|>",
    trims=False,
    end_row=True,
)
"""Qwen2.5's. The last turn's newline is `<|endoftext|>`, before an answer's head too, where training has none."""


class VocalNetChat:
    """Prompts and samples for one tokenizer. Stateless."""

    def __init__(self, tokenizer: TextTokenizer, form: Format) -> None:
        self._tokenizer, self.form = tokenizer, form

    @property
    def codes(self) -> tuple[int, int]:
        """Of the talker's codec."""
        vocabulary: Any = self._tokenizer.vocabulary
        return vocabulary.num_audio, vocabulary.codebooks

    def turn(self, task: Task, question: str | Sequence[int] | AudioFeatures) -> Turn:
        """The user's turn. Raises ConfigError for a task that VocalNet was not trained for."""
        if task not in (Task.SPEECH_TO_SPEECH, Task.TEXT):
            raise ConfigError(f"the task {task.value} is not one of VocalNet's; wanted speech_to_speech or text")
        if isinstance(question, str):
            return Turn(Role.USER, tuple(self._tokenizer.encode_ordinary(question)))
        if not isinstance(question, AudioFeatures):
            raise ConfigError("VocalNet hears features, not codes; take the whisper feature extractor")
        return Turn(Role.USER, (_FILLER,) * question.positions, (HeardAudio(question, 0),))

    def ask(
        self,
        question: Turn,
        task: Task,
        *,
        voice: Sequence[int] | AudioFeatures | None = None,
        history: Sequence[Turn] = (),
        instructions: str = "",
    ) -> Prompt:
        """The system turn, the dialogue so far, the question, and the head of the answer. It has one voice."""
        ids, heard = self._opening(instructions), list[HeardAudio]()
        for turn in (*history, question):
            ids += self._head(turn.role)
            heard += [audio.moved(len(ids)) for audio in turn.heard]
            ids += [*turn.content, *self._ids(self.form.tail)]
        return Prompt(tuple(self._before_answer(ids)), task, tuple(heard))

    def speech(self, codes: Iterable[int]) -> tuple[int, ...]:
        raise ConfigError("VocalNet hears features, not codes; take the whisper feature extractor")

    def prompt_ids(self, conversations: Sequence[tuple[str, str]]) -> list[int]:
        """Of a chat whose last turn asks, up to where its answer begins; a recording is SPEECH."""
        ids = self._opening()
        for role, content in conversations:
            ids += self._said(role, content)
        return self._before_answer(ids)

    def sample(self, messages: Sequence[Message], clips: Sequence[Clip], ratio: Any = None) -> Sample:
        """The last answer is trained on, and spoken where it has a recording; a system text is not this model's.

        What the thinker is never shown in training, Qwen's last `<|endoftext|>`, is left out. Raises DataError as
        `labelled`, for an answer without text, and for recordings and tags that do not match.
        """
        turns, heard, said, left = list[tuple[str, str]](), list[Clip](), list[Clip](), list(clips)
        contents = "".join(message.content for message in messages)
        if contents.count(AUDIO_TAG) != len(clips) or SPEECH_TAG in contents:
            raise DataError(f"the chat has {len(clips)} recordings and other tags; wanted an {AUDIO_TAG} for each")
        for message in messages:
            role, count = role_of(message), message.content.count(AUDIO_TAG)
            own, left = left[:count], left[count:]
            if role is Role.USER:
                heard += own
                turns.append(("human", message.content.replace(AUDIO_TAG, SPEECH_TAG)))
            elif role is Role.ASSISTANT:
                said = own
                turns.append(("gpt", message.content.replace(AUDIO_TAG, "")))
        if not turns or not turns[-1][1].strip():
            raise DataError("the answer has no text; wanted what the recording says: write it before the tag")
        ids, labels = self.labelled(turns)
        if self._ends_line:
            ids, labels = ids[:-1], labels[:-1]
        spans = list[FeatureSpan]()
        for number, clip in enumerate(heard):
            start, length = ids.index(SPEECH), positions_of(clip)
            ids[start : start + 1] = [_FILLER] * length
            labels[start : start + 1] = [IGNORED] * length
            spans.append(FeatureSpan(number, start, length))
        answer = len(ids) - sum(label != IGNORED for label in labels)
        spoken = self._spoken(answer, len(ids), self._codes(said[-1])) if said else None
        return Sample(tuple(ids), tuple(labels), tuple(spans), spoken)

    def _codes(self, clip: Clip) -> tuple[int, ...]:
        codes, (_, codebooks) = codes_of(clip), self.codes
        if len(codes) % codebooks:
            raise DataError(f"an answer has {len(codes)} codes; wanted frames of {codebooks}: tokenise it by its codec")
        return codes

    def _spoken(self, start: int, stop: int, codes: tuple[int, ...]) -> SpokenAnswer:
        """Of an answer whose tokens, its end the last one, stand at [start, stop), what is spoken in training."""
        text_end = self._ids([self.form.text_end])[0]
        return SpokenAnswer(start, stop - (1 if self.form.end_row else 2), without_repeats(codes), text_end)

    def labelled(self, conversations: Sequence[tuple[str, str]]) -> tuple[list[int], list[int]]:
        """Ids and labels of (from, value) turns as in the authors' data; the last answer alone is trained on.

        A `<speech>` in a turn is put in front of it, on a line of its own. A first turn of the model's is left out.
        Raises DataError for an unknown speaker, and for a chat that does not end with an answer.
        """
        turns = list(conversations)
        turns = turns[1:] if turns and turns[0][0] == "gpt" else turns
        if not turns or turns[-1][0] != "gpt":
            raise DataError("the chat does not end with an answer (gpt); wanted one to train on")
        ids = self._opening()
        for role, content in turns:
            ids += self._said(role, _speech_first(content))
        ids = self._close(ids)
        answer = len(self._said(*turns[-1])) - len(self._head(Role.ASSISTANT))
        return ids, [IGNORED] * (len(ids) - answer) + ids[-answer:]

    def _said(self, speaker: str, content: str) -> list[int]:
        """A turn's ids, tokenised as one text with the end of its head, as the templates have it."""
        if speaker not in _ROLES:
            raise DataError(f"a turn is from {speaker!r}; wanted human or gpt")
        content = content.strip() if self.form.trims else content
        *head, last = self._heading(_ROLES[speaker])
        pieces = (last + content).split(SPEECH_TAG)
        ids = self._ids(head) + self._tokenizer.encode_ordinary(pieces[0])
        for piece in pieces[1:]:
            ids += [SPEECH, *self._tokenizer.encode_ordinary(piece)]
        return ids + self._ids(self.form.tail)

    def _opening(self, instructions: str = "") -> list[int]:
        *head, last = self._heading(Role.SYSTEM)
        system = self._tokenizer.encode_ordinary(last + with_instructions(self.form.system, instructions))
        return [*self._ids(self.form.opening), *self._ids(head), *system, *self._ids(self.form.tail)]

    def _close(self, ids: list[int]) -> list[int]:
        """Qwen's last newline becomes the end of the text."""
        return [*ids[:-1], *self._ids([self.form.text_end])] if self._ends_line else ids

    def _before_answer(self, ids: list[int]) -> list[int]:
        return [*self._close(ids), *(self._ids(["\n"]) if self._ends_line else []), *self._head(Role.ASSISTANT)]

    @property
    def _ends_line(self) -> bool:
        return self.form.tail[-1] == "\n"

    def _head(self, role: Role) -> list[int]:
        return self._ids(self._heading(role))

    def _heading(self, role: Role) -> Iterator[str]:
        return (part.format(role=role.value) for part in self.form.head)

    def _ids(self, parts: Sequence[str] | Iterator[str]) -> list[int]:
        return [id for part in parts for id in self._tokenizer.encode(part)]


def without_repeats(codes: Sequence[int]) -> tuple[int, ...]:
    """Each code that follows its like is left out, as in what the released talkers learnt from."""
    return tuple(code for code, before in zip(codes, (None, *codes), strict=False) if code != before)


def _speech_first(content: str) -> str:
    if SPEECH_TAG not in content:
        return content
    rest = content.replace(SPEECH_TAG, "").strip()
    return f"{SPEECH_TAG}\n{rest}" if rest else SPEECH_TAG
