"""`vita-mctp chat`: a conversation in the terminal, typed, with recordings, or through the microphone."""

from __future__ import annotations

import os
import sys
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np

from vita_mctp.audio import check_target
from vita_mctp.cancel import Cancel
from vita_mctp.cli import PROGRAM, USAGE_ERROR, write, write_to
from vita_mctp.cli.options import DecodingOptions, ModelOptions, command, flag, new_app, opt
from vita_mctp.cli.talk import find
from vita_mctp.decoding.modes import parse_mode
from vita_mctp.errors import AudioError, ConfigError, VitaError
from vita_mctp.types import Done, Role, TextDelta, Wave, WaveChunk

if TYPE_CHECKING:
    from vita_mctp.conversation.items import Item
    from vita_mctp.speech_lm import SpeechLM

app = new_app()

_RATE = 16_000
_SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")
_HELP = """\
type a question, or give the path of a recording; an empty line records from the microphone until the next one
/mode MODE  answer in another mode     /reset  forget what was said     /help     /quit
"""


@command(app)
def chat(
    decoding: DecodingOptions,
    model: ModelOptions,
    out: Annotated[Path | None, opt("FOLDER", "write each answer's sound there: answer-1.wav ...")] = None,
    mute: Annotated[bool, flag("--mute", "play nothing")] = False,
) -> int:
    """Goes on until /quit or the end of the input; 2 where the input is no terminal and a question failed."""
    parse_mode(decoding.mode, num_blocks=0)
    if out is not None:
        check_target(out / "answer.wav")
    _, load = find(model)
    conversation = Conversation(load(), decoding, out, None if mute else _sound_device())
    interactive, failed = sys.stdin.isatty(), False
    if interactive:
        write_to(sys.stderr, _HELP)
    while (line := _next_line(interactive)) is not None:
        try:
            if not conversation.take(line.strip()):
                break
        except VitaError as error:
            failed = True
            write_to(sys.stderr, f"{PROGRAM}: error: {' '.join(str(error).split())}\n")
        except KeyboardInterrupt:  # stops an answer, not the conversation
            if not interactive:
                raise
            write("\n")
    return USAGE_ERROR if failed and not interactive else 0


def _next_line(interactive: bool) -> str | None:
    if interactive:
        write_to(sys.stderr, "> ")
    return sys.stdin.readline() or None


def _sound_device() -> Any:
    """The package sounddevice; None where it, or what it needs of the system, is not installed."""
    try:
        import sounddevice
    except (ImportError, OSError):
        return None
    return sounddevice


class Conversation:
    """What was said so far, and how it goes on. out: for the answers' sound. device: sounddevice, or None."""

    def __init__(self, speech_lm: SpeechLM, decoding: DecodingOptions, out: Path | None, device: Any) -> None:
        from vita_mctp.conversation.reply import ModelReplies, ReplyOptions

        self.speech_lm, self.out, self.device = speech_lm, out, device
        self.replies, self.options = ModelReplies(speech_lm), ReplyOptions(**asdict(decoding))
        self.items: list[Item] = []
        self.answers = 0

    def take(self, line: str) -> bool:
        """Obeys or answers one line; False ends the conversation. Raises VitaError."""
        from vita_mctp.conversation.items import Item

        name, _, value = line.partition(" ")
        if name == "/quit":
            return False
        if name == "/help":
            write_to(sys.stderr, _HELP)
        elif name == "/reset":
            self.items.clear()
        elif name == "/mode":
            self._change_mode(value.strip())
        elif line.startswith("/") and not os.path.exists(line):  # noqa: PTH110 (pathlib's raises for a long text)
            raise ConfigError(f"{name} is unknown; wanted a question, a recording, or one of the commands of /help")
        elif not line:
            self._answer(self._heard(Item(Role.USER, wave=self._record())))
        elif Path(line).suffix.lower() in _SUFFIXES or os.path.isfile(line):  # noqa: PTH113
            self._answer(self._heard(Item(Role.USER, wave=self.speech_lm.settings.read_recording(line))))
        else:
            self._answer(Item(Role.USER, text=line))
        return True

    def _change_mode(self, name: str) -> None:
        self.speech_lm.decoding(mode=name)
        self.options = replace(self.options, mode=name)

    def _heard(self, item: Item) -> Item:
        """Shows what a recording says, if the model transcribes."""
        assert item.wave is not None
        try:
            write(f"heard: {self.speech_lm.transcribe(item.wave)}\n")
        except ConfigError:
            return item
        return item

    def _answer(self, question: Item) -> None:
        from vita_mctp.answer import join_chunks
        from vita_mctp.conversation.items import Item

        chunks: list[WaveChunk] = []
        with closing(self.replies.reply([*self.items, question], self.options, Cancel())) as events:  # type: ignore[type-var]
            for event in events:
                if isinstance(event, TextDelta):
                    write(event.text)
                elif isinstance(event, WaveChunk):
                    chunks.append(event)
                elif isinstance(event, Done):
                    write("\n")
                    question.turn, answer = event.turns
                    self.items += [question, Item(Role.ASSISTANT, event.text, turn=answer)]
        self.answers += 1
        self._sound(join_chunks(chunks))

    def _sound(self, wave: Wave) -> None:
        if self.out is not None:
            path = self.out / f"answer-{self.answers}.wav"
            wave.save(path)
            write_to(sys.stderr, f"{path}\n")
        if self.device is not None and sys.stdout.isatty() and wave.samples.size:
            try:
                self.device.play(wave.samples, wave.sample_rate)
                self.device.wait()
            except self.device.PortAudioError as error:
                raise AudioError(f"no loudspeaker plays the answer ({error}); wanted one: give --mute") from None

    def _record(self) -> Wave:
        """From the microphone, until Enter."""
        if self.device is None or not sys.stdin.isatty():
            raise ConfigError(
                "an empty line records, which wants a terminal and sounddevice: pip install 'vita-mctp[mic]'; "
                "or give a recording's path"
            )
        blocks: list[Any] = []
        try:
            with self.device.InputStream(_RATE, channels=1, callback=lambda data, *_: blocks.append(data.copy())):
                write_to(sys.stderr, "recording; Enter ends it ")
                sys.stdin.readline()
        except self.device.PortAudioError as error:
            raise AudioError(f"the microphone does not record ({error}); wanted one: give a recording's path") from None
        samples = np.concatenate([np.zeros((0, 1), np.float32), *blocks])
        return self.speech_lm.settings.read_recording(samples[:, 0], _RATE)
