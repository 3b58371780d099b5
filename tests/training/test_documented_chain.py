"""Every command of docs/training.md, run in small: from recordings to a model that answers, then one's own voice.

The commands are those of the page. What makes them small is said here: a corpus that flite reads, nano's codec in
the place of GLM-4-Voice's, a processor in the place of eight GPUs, and nano's sizes in the place of Qwen2.5's. The
stages run as written under each launcher once, with DeepSpeed in two processes, and else in this process.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from documented import COMMANDS, ROOT, arguments
from plus_parts import write_qwen, write_sensevoice

from vita_mctp.audio import read_wave, write_wave
from vita_mctp.checkpoints.loading import load_model
from vita_mctp.cli import main
from vita_mctp.data import hub
from vita_mctp.models.vita import VitaMctpPlusForCausalLM
from vita_mctp.nano.domain import QA, build_domain
from vita_mctp.nano.synthesis import SAMPLE_RATE
from vita_mctp.nano.voices import Voice, speak
from vita_mctp.training.run_folder import read_record
from vita_mctp.types import Wave

pytestmark = pytest.mark.slow

NANO = ROOT / "vita_mctp" / "assets" / "nano"
MODEL = yaml.safe_load((ROOT / "stages" / "nano" / "stage1_alignment.yaml").read_text())["model"]
SIZES = ("backbone=null", "max_steps=2", "log_interval=1", "data.row_length=256", "data.tokens_per_step=1024")
SETS = {1: ("librispeech", "libritts", "lima"), 4: ("librispeech", "libritts", "voice_assistant_400k", "lima")}
"""What the mixtures of stage 1, and of the stages behind it, hold here."""

USER, ANSWERER, OWN = (Voice("flite", name) for name in ("awb", "slt", "kal16"))


def sound(path: Path, text: str, voice: Voice) -> str:
    write_wave(path, Wave(speak(text, voice).samples, SAMPLE_RATE))
    return path.name


def pair(question: str, answer: str, audios: Iterable[str] = ()) -> dict[str, Any]:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": messages, "audios": list(audios)}


def write_manifest(folder: Path, samples: Iterable[dict[str, Any]]) -> None:
    (folder / "manifest.jsonl").write_text("".join(json.dumps(sample) + "\n" for sample in samples))


def spoken_pairs(folder: Path, asked: Iterable[QA], answerer: Voice) -> list[dict[str, Any]]:
    """Question and answer aloud, with their recordings."""
    return [
        pair("<|audio|>", f"{qa.answer}<|audio|>", [sound(folder / f"q{n}.wav", qa.question, USER), said])
        for n, qa in enumerate(asked)
        for said in [sound(folder / f"a{n}.wav", qa.answer, answerer)]
    ]


def read_aloud(folder: Path, asked: Iterable[QA], voice: Voice) -> list[dict[str, Any]]:
    names = [(sound(folder / f"s{n}.wav", qa.answer, voice), qa) for n, qa in enumerate(asked)]
    return [pair(f"Convert the text to speech.\n{qa.answer}", "<|audio|>", [name]) for name, qa in names]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty machine's working folder: the repository's stages, a hub with one set, recordings of one's own."""
    asked, data = build_domain().train[:12], tmp_path / "data"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PWD", str(tmp_path))
    monkeypatch.setitem(hub.HUB_SETS, "librispeech", streamed(tmp_path / "hub", asked))
    shutil.copytree(ROOT / "stages", tmp_path / "stages")
    shutil.copytree(NANO, tmp_path / "boost")
    shutil.copy(NANO / "question.wav", tmp_path)
    write_qwen(tmp_path / "Qwen2.5-7B-Instruct")
    write_sensevoice(tmp_path / "SenseVoiceSmall")
    (tmp_path / "data_mixtures").mkdir()
    for stage in (1, 2, 3, 4):
        write_mixture(tmp_path / "data_mixtures" / f"stage{stage}.yaml", SETS[1 if stage == 1 else 4])
    write_mixture(tmp_path / "mine.yaml", ("mine",))
    for name in ("libritts", "voice_assistant_400k", "lima", "mine"):
        (data / name).mkdir(parents=True)
    write_manifest(data / "libritts", read_aloud(data / "libritts", asked, ANSWERER))
    write_manifest(data / "voice_assistant_400k", spoken_pairs(data / "voice_assistant_400k", asked, ANSWERER))
    write_manifest(data / "lima", [pair(qa.question, qa.answer) for qa in asked])
    own = data / "mine"
    write_manifest(own, [*read_aloud(own, asked, OWN), *spoken_pairs(own, asked, OWN)])
    return tmp_path


def write_mixture(path: Path, sets: Iterable[str]) -> None:
    path.write_text(yaml.safe_dump({"seed": 1, "sets": [{"name": name} for name in sets]}))


def streamed(folder: Path, asked: Iterable[QA]) -> hub.HubSet:
    """LibriSpeech's entry, its rows being these questions in a parquet file on this machine."""
    datasets, pyarrow = pytest.importorskip("datasets"), pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    (folder / "data").mkdir(parents=True)
    names = [sound(folder / f"{number}.flac", qa.question, USER) for number, qa in enumerate(asked)]
    audio = [{"bytes": (folder / name).read_bytes(), "path": name} for name in names]
    features = datasets.Features(audio=datasets.Audio(), text=datasets.Value("string"))
    rows = {"audio": audio, "text": [qa.question for qa in asked]}
    table = pyarrow.Table.from_pydict(rows, schema=features.arrow_schema)
    parquet.write_table(table, folder / "data" / "train-00000-of-00001.parquet")
    return replace(hub.HUB_SETS["librispeech"], parts=(hub.HubPart(str(folder / "data"), None, "train"),))


def in_small(words: list[str]) -> list[str]:
    """A command's arguments on this machine."""
    here = {"glm4_voice": "nano", "glm-4-voice-tokenizer": str(NANO / "codec"), "cuda": "cpu", "bfloat16": "float32"}
    words = [here.get(word, word) for word in words]
    if words[0] != "train" or "--plan" in words:
        return words
    changes = list(SIZES)
    if words[1] == "stages/stage1_alignment.yaml":
        changes += [f"model={json.dumps(MODEL)}", f"tokenizer={NANO}"]
    return [*words, *(part for change in changes for part in ("--set", change))]


def run(line: str) -> None:
    """In this process, but for the first stages and for what says how else stages are launched."""
    launcher, _, _ = line.partition("vita_mctp.cli")
    words = in_small(arguments(os.path.expandvars(line)))
    if words[0] == "demo":
        serve(words)
    elif launcher != line and ("torchrun" not in launcher or "stage1" in words[1]):
        launch(shlex.split(launcher), words)
    else:
        own = ["--set", "deepspeed=null"] if words[0] == "train" and "--plan" not in words else []
        assert main([*words, *own]) == 0, words


def launch(launcher: list[str], words: list[str]) -> None:
    """Two processes in the place of eight (accelerate starts one on a processor), from the stage's beginning."""
    shutil.rmtree(Path("runs") / Path(words[1]).stem, ignore_errors=True)
    here = {"8": "2", "--multi_gpu": "--cpu"}
    port = {"torchrun": ["--standalone"], "deepspeed": ["--master_port", free_port()]}.get(launcher[0], [])
    programs = Path(sys.executable).parent
    command = [str(programs / launcher[0]), *port, *(here.get(word, word) for word in launcher[1:]), "vita_mctp.cli"]
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"  # ninja too, which compiles DeepSpeed's helper
    done = subprocess.run(
        [*command, *words], capture_output=True, text=True, env=os.environ | {"PATH": path}, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def serve(words: list[str]) -> None:
    """The page answers, and is closed again."""
    port = free_port()
    page = subprocess.Popen([sys.executable, "-m", "vita_mctp.cli", *words, "--port", port])
    try:
        deadline = time.monotonic() + 120
        while not answers(f"http://127.0.0.1:{port}/"):
            assert page.poll() is None and time.monotonic() < deadline, "no page"
            time.sleep(0.2)
    finally:
        page.terminate()
        page.wait()


def answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=10) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


def give_nanos_codec(checkpoint: Path) -> None:
    """Nano's codec in the place of GLM-4-Voice's folders, which lie beside a model or in the hub's cache."""
    shutil.copytree(NANO / "codec", checkpoint / "codec")
    for name in ("speech.json", "question.wav"):
        shutil.copy(NANO / name, checkpoint)


def test_the_page_leads_from_recordings_to_models_that_answer(
    machine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = {}
    for line in COMMANDS:
        if "stages/smoke" in line:
            continue  # in test_smoke.py
        if " --model runs/stage4_sft/final" in line and not (machine / "runs/stage4_sft/final/codec").exists():
            give_nanos_codec(machine / "runs" / "stage4_sft" / "final")
        capsys.readouterr()
        run(line)
        said[line] = capsys.readouterr().out
        if " data/librispeech" in line and "from-hub" not in line:
            for name in SETS[4][1:]:
                run(line.replace("librispeech", name))
    runs = machine / "runs"
    trained = ("stage1_alignment", "stage2_single_mctp", "stage3_mctp_chain", "stage4_sft", "stage4_lora")
    records = [read_record(runs / name / "final") for name in (*trained, "stage1_alignment_plus")]
    assert [record.parent for record in records] == [None, *trained[:3], "../boost", None]
    zero2 = "deepspeed/zero2.json"
    assert [record.recipe["deepspeed"] for record in records] == [zero2, zero2, zero2, None, None, zero2]
    assert load_model(runs / "stage4_sft" / "final").config.num_nextn_predict_layers == 10
    assert isinstance(load_model(runs / "stage1_alignment_plus" / "final"), VitaMctpPlusForCausalLM)
    fine_tuned = next(text for line, text in said.items() if "ask" in line and "stage4_lora" in line)
    assert "eight plus twelve is twenty" in fine_tuned and read_wave(machine / "answer.wav").seconds > 1
