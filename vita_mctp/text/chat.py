"""ChatML: conversations to training samples with labels, and questions to prompts.

A turn is `<|im_start|>` role newline content `<|im_end|>` newline, its parts tokenised separately. Trained on are the
content of the assistant's turns, their `<|im_end|>` and the newline behind it. Speech stands in a content as
`<|audio|>`, and becomes a segment of audio codes or, for a model that hears features, of placeholders that the
model overwrites with what its encoder makes of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from random import Random

from vita_mctp.errors import ConfigError, DataError
from vita_mctp.text.interleave import BOOST_RATIO, Ratio, interleave
from vita_mctp.text.tokenizer import TextTokenizer
from vita_mctp.text.vocabulary import AUDIO_TAG, CONTEXT_OF_AUDIO, VocabularyKind
from vita_mctp.types import AudioFeatures, HeardAudio, Prompt, Role, Task, Turn

IGNORED = -100
"""Label of a position that is not trained on."""

ASR_INSTRUCTION = "Convert the speech to text."
TTS_INSTRUCTION = "Convert the text to speech."
SPEECH_TO_SPEECH_SYSTEM = "Your Name: Luke\nYour Gender: male\n\nRespond in a text-audio interleaved manner."


_ROLES = {role.value: role for role in Role} | {"human": Role.USER, "gpt": Role.ASSISTANT}


@dataclass(frozen=True)
class Message:
    """One message of a training conversation; each `<|audio|>` in it stands for the conversation's next clip."""

    role: str
    content: str


@dataclass(frozen=True)
class Clip:
    """A recording as codes, as the positions that its features take (continuous input only), or as both."""

    codes: tuple[int, ...] | None = None
    positions: int | None = None


@dataclass(frozen=True)
class FeatureSpan:
    """Positions [start, start + length) of a sample, to be overwritten with the features of clip number `clip`.

    load: reads them, for samples that are to be trained on.
    """

    clip: int
    start: int
    length: int
    load: Callable[[], AudioFeatures] | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class SpokenAnswer:
    """What a talker learns to say: the text at positions [start, stop) of a sample, in these codes.

    codes: of several codebooks frame by frame, end to end. text_end: id whose embedding is spoken last; None: none.
    alone: the text stands without a question, so that no hidden state predicts it. streaming: by which mask.
    """

    start: int
    stop: int
    codes: tuple[int, ...]
    text_end: int | None = None
    alone: bool = False
    streaming: bool = False

    def moved(self, by: int) -> SpokenAnswer:
        return replace(self, start=self.start + by, stop=self.stop + by)


@dataclass(frozen=True)
class Sample:
    """A training sample: ids and labels of equal length, labels unshifted, IGNORED where not trained on."""

    ids: tuple[int, ...]
    labels: tuple[int, ...]
    features: tuple[FeatureSpan, ...] = ()
    spoken: SpokenAnswer | None = None

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.labels):
            raise ValueError(f"a sample wants as many labels as ids, got {len(self.labels)} and {len(self.ids)}")

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class PromptStyle:
    """What stands around a spoken question; defaults as released."""

    system: str | None = SPEECH_TO_SPEECH_SYSTEM
    before_speech: str = "\n"


RELEASED_STYLE = PromptStyle()


@dataclass
class _Draft:
    """A sample being written."""

    ids: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    features: list[FeatureSpan] = field(default_factory=list)

    def add(self, ids: Sequence[int], trained: bool = False) -> None:
        self.ids += ids
        self.labels += ids if trained else [IGNORED] * len(ids)


class ChatFormat:
    """Builds prompts and samples for one tokenizer. Stateless."""

    def __init__(self, tokenizer: TextTokenizer, style: PromptStyle = RELEASED_STYLE) -> None:
        self.tokenizer = tokenizer
        self.style = style
        self._v = tokenizer.vocabulary
        self._newline = tokenizer.encode("\n")
        self._heads = {role: [self._v.im_start, *tokenizer.encode(role.value), *self._newline] for role in Role}
        self._tail = [self._v.im_end, *self._newline]

    def turn(self, task: Task, question: str | Sequence[int] | AudioFeatures) -> Turn:
        """The user's turn that asks for a task: a text to read, or the ids or features of a segment of speech to hear.

        Raises ConfigError for features where the vocabulary has no placeholder for them.
        """
        before = {Task.ASR: ASR_INSTRUCTION + "\n", Task.TTS: TTS_INSTRUCTION + "\n", Task.TEXT: ""}
        said = self.text(question) if isinstance(question, str) else question
        return self._turn(Role.USER, before.get(task, self.style.before_speech), said)

    def ask(
        self,
        question: Turn,
        task: Task,
        *,
        system: str | None = "",
        voice: Sequence[int] | AudioFeatures | None = None,
        history: Sequence[Turn] = (),
        instructions: str = "",
    ) -> Prompt:
        """The system turn if there is one, the dialogue so far, the question, and the head of the answer.

        system: "" takes the task's own text, which only spoken questions have; None leaves it out. voice: the ids or
        the features of a segment of speech in the voice that is to answer. instructions: of the user, behind that text.
        """
        own = self.style.system if task is Task.SPEECH_TO_SPEECH else None
        text = with_instructions(own if system == "" else system, instructions)
        return self.prompt([*self._system(text, voice), *history, question], task)

    def prompt(self, turns: Sequence[Turn], task: Task) -> Prompt:
        """Finished turns and the head of the answer."""
        ids: list[int] = []
        heard: list[HeardAudio] = []
        for turn in turns:
            ids += self._heads[turn.role]
            heard += [audio.moved(len(ids)) for audio in turn.heard]
            ids += (*turn.content, *self._tail)
        return Prompt((*ids, *self._heads[Role.ASSISTANT]), task, tuple(heard))

    def speech(self, codes: Iterable[int]) -> tuple[int, ...]:
        """Content that is one audio segment."""
        return (self._v.begin_of_audio, *map(self._v.audio_id, codes), self._v.end_of_audio)

    def text(self, text: str) -> tuple[int, ...]:
        """Content that is text; special tokens written in it are plain text."""
        return tuple(self.tokenizer.encode_ordinary(text))

    @property
    def codes(self) -> tuple[int, int]:
        """How many audio codes there are, and codebooks."""
        return self._v.num_audio, 1

    def sample(
        self,
        messages: Sequence[Message],
        clips: Sequence[Clip] = (),
        ratio: Ratio | Sequence[int] = BOOST_RATIO,
        *,
        reference: bool = False,
    ) -> Sample:
        """A conversation as a training sample, each answer's text and speech interleaved by `ratio`.

        The text of a TTS request is put before the spoken answer: before the one that follows the request, or with
        `reference` before every later answer of the conversation, as in the released code (which also loses text when
        an answer's speech is empty). Clips enter as codes in every role, with the continuous kind in answers only.

        Raises DataError for an unknown role, tags and clips that do not match, or an answer with two audio segments.
        """
        tags = sum(message.content.count(AUDIO_TAG) for message in messages)
        if tags != len(clips):
            raise DataError(f"the conversation has {tags} {AUDIO_TAG} tags and {len(clips)} recordings; give one a tag")
        draft, next_clip, spoken = _Draft(), 0, ""
        for message in messages:
            role = role_of(message)
            content = message.content
            if message.role == Role.USER.value:
                requested = spoken_text(content)
                spoken = requested if requested is not None else (spoken if reference else "")
            elif role is Role.ASSISTANT:
                content, spoken = spoken + content, (spoken if reference else "")
            tagged = clips[next_clip : next_clip + content.count(AUDIO_TAG)]
            draft.add(self._heads[role])
            start = len(draft.ids)
            ids, spans = self._content(content, tagged, discrete=self._hears_codes or role is Role.ASSISTANT)
            if role is Role.ASSISTANT:
                ids = interleave(ids, ratio, self._v.begin_of_audio, self._v.end_of_audio, reference=reference)
            draft.add(ids, trained=role is Role.ASSISTANT)
            draft.features += [FeatureSpan(next_clip + s.clip, start + s.start, s.length) for s in spans]
            draft.add(self._tail, trained=role is Role.ASSISTANT)
            next_clip += len(tagged)
        return Sample(tuple(draft.ids), tuple(draft.labels), tuple(draft.features))

    @property
    def _hears_codes(self) -> bool:
        return self._v.input_kind is VocabularyKind.DISCRETE

    def _system(self, text: str | None, voice: Sequence[int] | AudioFeatures | None) -> Iterator[Turn]:
        """At most one system turn: the voice, then the text."""
        if voice is not None:
            yield self._turn(Role.SYSTEM, "Your Voice: ", voice, (*self._newline, *self.text(text or "")))
        elif text:
            yield Turn(Role.SYSTEM, self.text(text))

    def _turn(self, role: Role, before: str, said: Sequence[int] | AudioFeatures, after: Sequence[int] = ()) -> Turn:
        """A recording given as features stands where its placeholders do, so that two of them cannot be mixed up."""
        head = self.tokenizer.encode(before)
        if not isinstance(said, AudioFeatures):
            return Turn(role, (*head, *said, *after))
        heard = HeardAudio(said, start=len(head) + 1)
        return Turn(role, (*head, *self._placeholders(said.positions), *after), (heard,))

    def _placeholders(self, positions: int) -> list[int]:
        """A segment whose inner embeddings, at so many positions, the model overwrites."""
        if self._v.context_of_audio is None:
            raise ConfigError(f"the vocabulary has no {CONTEXT_OF_AUDIO}: this model hears audio codes, not features")
        return [self._v.begin_of_audio, *[self._v.context_of_audio] * positions, self._v.end_of_audio]

    def _content(self, content: str, clips: Sequence[Clip], discrete: bool) -> tuple[list[int], list[FeatureSpan]]:
        """Ids of a content with its tags replaced, and the feature spans relative to it."""
        ids: list[int] = []
        spans: list[FeatureSpan] = []
        for number, part in enumerate(re.split(f"({re.escape(AUDIO_TAG)})", content)):
            if part != AUDIO_TAG:
                ids += self.tokenizer.encode(part)
                continue
            clip = clips[number // 2]
            if discrete:
                ids += self.speech(codes_of(clip))
            else:
                length = positions_of(clip)
                spans.append(FeatureSpan(number // 2, len(ids) + 1, length))
                ids += self._placeholders(length)
        return ids, spans


def in_a_rhythm(messages: Sequence[Message], ratios: Sequence[Ratio], draw: int) -> tuple[Sequence[Message], Ratio]:
    """A conversation and the ratio to interleave its answers by, drawn from `ratios` by the number `draw`.

    The system text names a ratio that is not the first, so that the model knows it. Without one, the first is taken.
    """
    ratio = Random(draw).choice(ratios)
    if ratio == ratios[0] or role_of(messages[0]) is not Role.SYSTEM:
        return messages, ratios[0]
    return [replace(messages[0], content=name_rhythm(messages[0].content, ratio.counts)), *messages[1:]], ratio


def with_instructions(system: str | None, instructions: str) -> str:
    """A system text, a blank line and what the user wants of the model: what it was trained on stays as it was."""
    return "\n\n".join(text for text in (system, instructions) if text)


def name_rhythm(system: str, counts: Sequence[int]) -> str:
    """A system text that asks for answers interleaved by these counts."""
    return f"{system} {','.join(map(str, counts))}"


def role_of(message: Message) -> Role:
    """Raises DataError for a role that is not known."""
    if message.role not in _ROLES:
        raise DataError(f"unknown role {message.role!r}; known are {', '.join(_ROLES)}")
    return _ROLES[message.role]


def spoken_text(content: str) -> str | None:
    """The text that a TTS request wants spoken; None if the message is none."""
    return content.replace(TTS_INSTRUCTION + "\n", "").strip() if TTS_INSTRUCTION in content else None


def codes_of(clip: Clip) -> tuple[int, ...]:
    if clip.codes is None:
        raise DataError("a recording is to be given as audio codes, and has none; tokenise it first")
    return clip.codes


def positions_of(clip: Clip) -> int:
    if clip.positions is None:
        raise DataError("a recording is heard as features, which were not kept; tokenize it with --features")
    return clip.positions
