"""`vita-mctp chat`, through pipes, and with a microphone and loudspeakers that are not there."""

import io
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from vita_mctp import SpeechLM
from vita_mctp.checkpoints.opening import find_model
from vita_mctp.cli import chat, main
from vita_mctp.cli.options import DecodingOptions
from vita_mctp.errors import AudioError, ConfigError
from vita_mctp.types import Wave

QUESTION = find_model("nano") / "question.wav"


def test_a_conversation_through_pipes(tmp_path: Path) -> None:
    said = f"What is 7 plus 6?\n/mode boost\n{QUESTION}\n/reset\n/quit\nnever asked\n"
    command = [sys.executable, "-m", "vita_mctp.cli", "chat", "--out", str(tmp_path)]
    done = subprocess.run(command, input=said, capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stdout == "seven plus six is thirteen\nheard: what is eight plus twelve\neight plus twelve is twenty\n"
    assert done.stderr.splitlines() == [str(tmp_path / f"answer-{number}.wav") for number in (1, 2)]
    assert all(soundfile.info(tmp_path / f"answer-{number}.wav").frames > 0 for number in (1, 2))


def test_what_fails_is_one_line_and_the_conversation_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("gone.wav\n/sing\n/mode warp\n\nwhat is two plus two\n"))
    assert main(["chat"]) == 2
    printed = capsys.readouterr()
    assert printed.out == "two plus two is four\n"
    errors = printed.err.splitlines()
    assert len(errors) == 4 and all(line.startswith("vita-mctp: error: ") for line in errors)
    for line, fact in zip(errors, ("gone.wav", "/sing", "warp", "sounddevice"), strict=True):
        assert fact in line


def test_earlier_turns_are_shown_to_a_model_that_knows_them(
    tiny_speech_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat, "write", lambda text: None)
    model = SpeechLM.from_pretrained(tiny_speech_folder)
    talk = chat.Conversation(model, DecodingOptions(max_new_tokens=9, seed=1), None, None)
    for _ in range(2):
        assert talk.take("two plus three")
    turns = [item.turn for item in talk.items]
    assert len(turns) == 4 and None not in turns
    assert talk.take("/reset") and not talk.items


def test_the_microphone_is_heard_and_the_answer_played(monkeypatch: pytest.MonkeyPatch) -> None:
    samples, rate = soundfile.read(QUESTION, dtype="float32")
    played, shown = list[int](), list[str]()
    monkeypatch.setattr(chat, "write", shown.append)

    class Input:
        def __init__(self, rate_wanted: int, channels: int, callback: object) -> None:
            assert rate_wanted == rate and channels == 1
            callback(samples[:, None], len(samples), None, None)  # type: ignore[operator]

        def __enter__(self) -> None: ...

        def __exit__(self, *_: object) -> None: ...

    device = SimpleNamespace(
        InputStream=Input, PortAudioError=OSError, play=lambda wave, _: played.append(np.size(wave)), wait=lambda: None
    )
    terminal = io.StringIO("\n")
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdin", terminal)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    talk = chat.Conversation(SpeechLM.from_pretrained("nano"), DecodingOptions(), None, device)
    assert talk.take("")
    assert "".join(shown).endswith("eight plus twelve is twenty\n") and played[0] > 0
    with pytest.raises(ConfigError, match="sounddevice"):
        chat.Conversation(talk.speech_lm, DecodingOptions(), None, None).take("")


def test_a_long_question_is_a_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """Longer than any file's name may be."""
    asked = list[str]()
    talk = chat.Conversation(SpeechLM.from_pretrained("nano"), DecodingOptions(), None, None)
    monkeypatch.setattr(talk, "_answer", lambda item: asked.append(item.text))
    long = "what is two plus two and " * 20
    assert talk.take(long) and asked == [long]
    with pytest.raises(ConfigError, match="unknown"):
        talk.take(f"/{long}")


def test_a_machine_without_loudspeakers_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class PortAudioError(Exception): ...

    def play(*_: object) -> None:
        raise PortAudioError("Error querying device -1")

    device = SimpleNamespace(PortAudioError=PortAudioError, play=play, wait=lambda: None)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    talk = chat.Conversation(SpeechLM.from_pretrained("nano"), DecodingOptions(), None, device)
    with pytest.raises(AudioError, match="--mute"):
        talk._sound(Wave(np.zeros(16, np.float32), 16_000))
    talk._sound(Wave(np.zeros(0, np.float32), 1))  # of an answer without sound there is nothing to play
