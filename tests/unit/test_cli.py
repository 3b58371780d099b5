"""The command, called in this process on a model of random weights; a few times as a process of its own."""

import errno
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from typer.main import get_command

from vita_mctp import cli
from vita_mctp.cli import COMMANDS as GROUPS
from vita_mctp.cli import main, parse
from vita_mctp.cli import talk as commands
from vita_mctp.evaluation import doctor

RAMP = f"import sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r}); import ramp\n"
"""In a process of its own: makes known the codec of the model of random weights."""
COMMAND = [sys.executable, "-c", f"{RAMP}from vita_mctp.cli import main; sys.exit(main())"]


@pytest.fixture(scope="module")
def question(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("question") / "question.wav"
    soundfile.write(path, 0.4 * np.sin(np.arange(32000) / 9), 16000)
    return str(path)


@pytest.fixture
def model(tiny_speech_folder: Path) -> list[str]:
    return ["--model", str(tiny_speech_folder)]


def test_ask_prints_text_and_figures_and_writes_the_wave(
    tmp_path: Path, question: str, model: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    answer = tmp_path / "answer.wav"
    assert main(["ask", question, "-o", str(answer), "--mode", "turbo", "--seed", "1", *model]) == 0
    printed = capsys.readouterr()
    text, _, figures = printed.out.rstrip("\n").rpartition("\n")
    assert text and printed.err == ""
    assert figures.startswith("mode turbo, ") and figures.count(", ") == 6 and figures.endswith(", on cpu")
    for name in ("tokens/s", "first audio tokens after", "first sound after", "real-time factor"):
        assert name in figures
    info = soundfile.info(answer)
    assert (info.samplerate, info.channels) == (16000, 1) and info.frames > 0 and info.frames % 1280 == 0


def test_json_prints_one_object_for_each_event_and_the_figures_last(
    tmp_path: Path, question: str, model: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    answer = tmp_path / "answer.flac"
    assert main(["ask", question, "-o", str(answer), "--seed", "1", "--json", *model]) == 0
    *events, done = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {event["event"] for event in events} == {"text", "audio"}
    assert done["event"] == "done" and done["mode"] == "boost" and done["output"] == str(answer)
    assert done["text"] == "".join(event["text"] for event in events if event["event"] == "text")
    audio = [event for event in events if event["event"] == "audio"]
    assert [event["is_last"] for event in audio] == [False] * (len(audio) - 1) + [True]
    assert soundfile.info(answer).frames == sum(event["samples"] for event in audio)
    assert done["audio_seconds"] == pytest.approx(soundfile.info(answer).frames / 16000)
    assert done["real_time_factor"] == pytest.approx(done["total_seconds"] / done["audio_seconds"])
    assert 0 < done["first_audio_tokens_seconds"] < done["first_sound_seconds"] < done["total_seconds"]


def test_the_same_seed_gives_the_same_file(tmp_path: Path, question: str, model: list[str]) -> None:
    for name in ("a.wav", "b.wav"):
        assert main(["ask", question, "-o", str(tmp_path / name), "--seed", "7", *model]) == 0
    assert (tmp_path / "a.wav").read_bytes() == (tmp_path / "b.wav").read_bytes()


def test_say_speaks_and_transcribe_writes(
    tmp_path: Path, question: str, model: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["say", "two plus three", "-o", str(tmp_path / "speech.ogg"), "--seed", "2", *model]) == 0
    assert soundfile.info(tmp_path / "speech.ogg").format == "OGG"
    capsys.readouterr()
    assert main(["transcribe", question, *model]) == 0
    printed = capsys.readouterr()
    assert printed.out.strip() and "tokens/s" not in printed.out and printed.err == ""


def test_an_answer_may_be_cut_off(model: list[str], question: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["transcribe", question, "--json", "--max-new-tokens", "3", *model]) == 0
    done = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (done["tokens"], done["reason"]) == (3, "length")
    for count in ("0", "-1", "many"):
        with pytest.raises(SystemExit) as left:
            main(["transcribe", question, "--max-new-tokens", count])
        error = capsys.readouterr().err
        assert left.value.code == 2 and error.count("\n") == 1 and "--max-new-tokens" in error


def test_the_checkpoints_own_mode_is_the_default_and_a_voice_may_be_given(
    tmp_path: Path, question: str, model: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    say = ["say", "two plus three", "-o", str(tmp_path / "a.wav"), "--seed", "2", *model]
    waves = []
    for more, mode in (([], "boost"), (["--mode", "1,6"], "1,6"), (["--voice-prompt", question], "boost")):
        assert main([*say, *more]) == 0
        assert capsys.readouterr().out.splitlines()[-1].startswith(f"mode {mode}, ")
        waves.append((tmp_path / "a.wav").read_bytes())
    assert waves[2] != waves[0]
    assert main(["transcribe", question, "--json", *model]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["mode"] == "vanilla"


def test_what_speaks_may_be_named(tmp_path: Path, model: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    codec = tmp_path / "codec"
    codec.mkdir()
    say = ["say", "two plus three", "-o", str(tmp_path / "a.wav"), *model, "--audio-decoder"]
    assert main([*say, str(codec)]) == 2 and "ramp.json" in capsys.readouterr().err
    (codec / "ramp.json").write_text('{"codebook_size": 64, "sample_rate": 8000}')
    assert main([*say, str(codec)]) == 0 and soundfile.info(tmp_path / "a.wav").samplerate == 8000


def test_a_voice_that_cannot_be_used_is_refused(
    tmp_path: Path, question: str, model: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    say = ["say", "two", "-o", str(tmp_path / "a.wav"), "--voice-prompt"]
    for arguments, complaint in (([str(tmp_path / "gone.wav"), *model], "gone.wav"), ([question], "one voice")):
        assert main([*say, *arguments]) == 2
        assert complaint in capsys.readouterr().err and list(tmp_path.iterdir()) == []


def test_pipes_carry_the_question_in_and_the_answer_out(question: str, model: list[str]) -> None:
    data = Path(question).read_bytes()
    done = subprocess.run([*COMMAND, "ask", "-", "-o", "-", "--seed", "1", *model], input=data, capture_output=True)
    assert done.returncode == 0
    samples, rate = soundfile.read(io.BytesIO(done.stdout))
    assert rate == 16000 and len(samples) > 0
    assert b"real-time factor" in done.stderr


def test_a_reader_that_leaves_ends_the_command_quietly(tmp_path: Path, question: str, model: list[str]) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    command = [*COMMAND, "ask", question, "-o", str(tmp_path / "a.wav"), *model]
    done = subprocess.run(command, stdout=write_end, stderr=subprocess.PIPE)
    os.close(write_end)
    assert done.returncode == 141 and done.stderr == b""
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_under_the_text_is_one_line(question: str, model: list[str]) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run([*COMMAND, "transcribe", question, *model], stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 2
    assert (
        done.stderr.startswith(b"vita-mctp: error: cannot write the text: No space left")
        and done.stderr.count(b"\n") == 1
    )


def test_an_interrupt_is_quiet(
    tmp_path: Path, question: str, model: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)

    monkeypatch.setattr(commands, "write_wave", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    try:
        assert main(["ask", question, "-o", str(tmp_path / "a.wav"), *model]) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err == "vita-mctp: error: interrupted\n" and list(tmp_path.iterdir()) == []


def test_doctor_tells_what_is_wrong(model: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", *model]) == 1
    report = capsys.readouterr().out
    for name in ("vita-mctp", "python", "torch", "transformers", "device", "threads", "attention", "extra"):
        assert f"\n{name}" in f"\n{report}"
    assert "FAILED: its speech.json has no self_check" in report.splitlines()[-1]


def test_doctor_knows_every_extra_and_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    stated = [
        "torch>=2",
        'gradio<7,>=6; extra == "demo"',
        'no-such.package>=1; extra == "train"',
        'mypy; extra == "dev"',
    ]
    monkeypatch.setattr(doctor, "requires", lambda _: stated)
    monkeypatch.setattr(doctor, "installed_version", lambda name: "6.31" if name == "gradio" else "not installed")
    assert doctor.missing_of_extras() == {"demo": [], "train": ["no-such.package"]}


def test_doctor_asks_the_built_in_question(
    tmp_path: Path, tiny_speech_folder: Path, question: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from vita_mctp import SpeechLM

    folder = tmp_path / "model"
    folder.mkdir()
    for item in tiny_speech_folder.iterdir():
        (folder / item.name).symlink_to(item)
    speech = json.loads((folder / "speech.json").read_text())
    right = SpeechLM.from_pretrained(tiny_speech_folder).ask(question).text
    for answer, code in ((f" {right.upper()}!", 0), ("something else", 1)):
        (folder / "speech.json").unlink()
        check = {"self_check": {"question": question, "answer": answer}}
        (folder / "speech.json").write_text(json.dumps(speech | check))
        assert main(["doctor", "--json", "--model", str(folder)]) == code
        report = json.loads(capsys.readouterr().out)
        assert report["healthy"] is (code == 0) and report["self_test"]["answered"] == right
        assert report["attention_kernels"]["sdpa"] is True and report["threads"] >= 1


def test_a_disk_that_fills_up_leaves_nothing(
    tmp_path: Path, question: str, model: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    assert main(["ask", question, "-o", str(tmp_path / "a.wav"), *model]) == 2
    assert "No space left on device" in capsys.readouterr().err and list(tmp_path.iterdir()) == []


_CHATTY = """
import os, sys
from vita_mctp import cli, speech_lm
load = speech_lm.SpeechLM.from_opened

def from_opened(*arguments, **options):
    print("Setting ds_accelerator to cpu")
    os.write(1, b"from C\\n")
    os.system("echo from a child process")
    return load(*arguments, **options)

speech_lm.SpeechLM.from_opened = from_opened
sys.exit(cli.main(sys.argv[1:]))
"""
"""The command, with a library that has something to say when it starts."""


@pytest.mark.parametrize("output", ["-", "answer.wav"])
def test_nothing_but_the_answer_goes_to_standard_output(
    output: str, tmp_path: Path, question: str, model: list[str]
) -> None:
    arguments = ["ask", question, "-o", output, "--seed", "1", "--json", *model]
    done = subprocess.run([sys.executable, "-c", RAMP + _CHATTY, *arguments], cwd=tmp_path, capture_output=True)
    assert done.returncode == 0
    for line in (b"ds_accelerator", b"from C", b"from a child process"):
        assert line in done.stderr and line not in done.stdout
    if output == "-":
        assert soundfile.info(io.BytesIO(done.stdout)).frames > 0
    else:
        assert [json.loads(line)["event"] for line in done.stdout.splitlines()][-1] == "done"


def test_a_reader_of_the_sound_that_leaves_is_no_error(question: str, model: list[str]) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    done = subprocess.run([*COMMAND, "ask", question, "-o", "-", *model], stdout=write_end, stderr=subprocess.PIPE)
    os.close(write_end)
    assert done.returncode == 141 and b"Traceback" not in done.stderr and b"Exception" not in done.stderr


def run_and_list_modules(*arguments: str) -> tuple[str, set[str]]:
    """What a command prints, and the modules that it imports."""
    code = (
        "import sys\nfrom vita_mctp.cli import main\ntry:\n    main(sys.argv[1:])\nfinally:\n"
        "    print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == 0
    return done.stdout, set(done.stderr.split())


@pytest.mark.parametrize("arguments", [["ask", "--help"], ["bench", "modes", "--help"], ["evaluate", "asr", "--help"]])
def test_help_imports_nothing_large(arguments: list[str]) -> None:
    _, modules = run_and_list_modules(*arguments)
    assert not modules & {"torch", "transformers", "rich"}


def test_the_list_of_commands_imports_none_of_them() -> None:
    shown, modules = run_and_list_modules("--help")
    ours = {name for name in modules if name.startswith("vita_mctp.")}
    known = {"vita_mctp.cli", "vita_mctp.cli.options", "vita_mctp.errors", "vita_mctp.transformers_known"}
    assert ours == known
    assert not modules & {"torch", "transformers", "rich", "pydantic", "numpy"}
    assert all(f"  {name} " in shown and summary[:20] in shown for name, (_, summary) in GROUPS.items())


def test_every_command_shows_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    app = get_command(cli.app)
    for name in GROUPS:
        command = app.get_command(None, name)  # type: ignore[attr-defined]
        for words in [[name, inner] for inner in getattr(command, "commands", {})] or [[name]]:
            with pytest.raises(SystemExit) as left:
                parse([*words, "-h"])
            shown = capsys.readouterr().out
            assert left.value.code == 0 and shown.startswith(f"Usage: vita-mctp {' '.join(words)} ")
            assert "--help" in shown and "\x1b" not in shown and "\u2500" not in shown


def test_an_option_may_take_several_words() -> None:
    modes = parse(["bench", "modes", "--modes", "turbo", "1,2", "--tokens=3", "--json", "a.json"]).params
    assert (modes["modes"], modes["tokens"], modes["json"]) == (["turbo", "1,2"], 3, Path("a.json"))
    assert parse(["bench", "scaling", "--batches", "2", "3"]).params["batches"] == [2, 3]
    assert parse(["train", "--set", "a=b", "r.yaml", "--set", "c=d"]).params["settings"] == ["a=b", "c=d"]
    ask = parse(["ask", "-", "-o", "-", "--temperature", "-3"]).params
    assert (ask["question"], ask["output"], ask["temperature"]) == ("-", "-", -3)


@pytest.mark.parametrize(
    ("arguments", "fact"),
    [
        ([], "Missing command"),
        (["nope"], "'nope'"),
        (["bench"], "vita-mctp bench --help"),
        (["ask"], "RECORDING"),
        (["ask", "q.wav"], "--output"),
        (["ask", "q.wav", "-o", "--json"], "'-o' requires an argument"),
        (["ask", "q.wav", "more.wav", "-o", "a.wav"], "more.wav"),
        (["ask", "q.wav", "-o", "a.wav", "--out", "b.wav"], "--out "),
    ],
)
def test_a_wrong_command_line_is_one_line(arguments: list[str], fact: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    error = capsys.readouterr().err
    assert left.value.code == 2 and error.count("\n") == 1 and fact in error
    assert error.startswith("vita-mctp: error: ") and error.endswith(" --help\n")


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--help"], ["ask", "--help"], ["--version"]):
        with pytest.raises(SystemExit) as left:
            main(arguments)
        assert left.value.code == 0 and "vita-mctp" in capsys.readouterr().out
