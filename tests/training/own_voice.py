"""What twenty recordings of one voice bring nano: `python tests/training/own_voice.py --voice flite:rms --out FOLDER`.

The voice stands for a person's: one that nano never heard, of flite, espeak-ng or, with the extra `kokoro`, Kokoro.
Writes the manifests and runs below FOLDER, and prints the rows of docs/finetuning.md. `--set` is for the training.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vita_mctp.audio import write_wave
from vita_mctp.cli import main
from vita_mctp.evaluation.metrics import TEXT
from vita_mctp.nano.domain import QA, build_domain, rank
from vita_mctp.nano.synthesis import SAMPLE_RATE
from vita_mctp.nano.voices import ANSWER_VOICE, STATISTICAL_VOICES, Voice, speak
from vita_mctp.types import Wave

RECIPE = Path(__file__).parents[2] / "stages" / "nano" / "lora.yaml"


def manifest(path: Path, asked: Iterable[QA], voice: Voice, answers: bool) -> Path:
    """Each question as a transcript to write; with `answers` also as a question, answered in text and nano's voice."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines: list[dict[str, Any]] = []
    for number, qa in enumerate(asked):
        heard, said = f"{path.stem}-{number:03d}.wav", f"answer-{path.stem}-{number:03d}.wav"
        write_wave(path.parent / heard, Wave(speak(qa.question, voice).samples, SAMPLE_RATE))
        lines.append(_line("Convert the speech to text.\n<|audio|>", qa.question, heard))
        if answers:
            write_wave(path.parent / said, Wave(speak(qa.answer, ANSWER_VOICE).samples, SAMPLE_RATE))
            lines.append(_line("<|audio|>", f"{qa.answer}<|audio|>", heard, said))
        else:
            lines.append(_line("<|audio|>", qa.answer, heard))
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def _line(asked: str, answer: str, *audios: str) -> dict[str, Any]:
    messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
    return {"messages": messages, "audios": list(audios)}


def measured(model: str, test: Path, mode: str, out: Path) -> list[str]:
    """Word errors of the transcripts, and right written answers, in percent."""
    cells = []
    for task, rule in (("asr", "plain"), ("sqa", "exact")):
        folder = out / f"{task}-{test.stem}-{mode}"
        command = ["evaluate", task, str(test), "--model", model, "--mode", mode, "--rule", rule, "--out", str(folder)]
        assert main([*command, *(["--judge", "none"] if task == "sqa" else [])]) == 0
        metrics = json.loads((folder / "summary.json").read_text())["metrics"]
        found = next(each for each in metrics if each["on"] == TEXT)
        cells.append(f"{100 * found['value']:.1f} ({100 * found['low']:.1f} to {100 * found['high']:.1f})")
    return cells


def compare(given: argparse.Namespace) -> str:
    engine, _, base = given.voice.partition(":")
    voice, out = Voice(engine, base), given.out
    domain = build_domain()
    trained = sorted(domain.train, key=lambda qa: rank(qa.question, "own voice"))[: given.recordings]
    held_out = sorted(domain.held_out, key=lambda qa: rank(qa.question, "own voice"))[: given.n]
    mine = manifest(out / "mine.jsonl", trained, voice, given.answers)
    tests = {
        f"this voice ({voice.name})": manifest(out / "own.jsonl", held_out, voice, False),
        "a voice that it knows": manifest(out / "known.jsonl", held_out, STATISTICAL_VOICES[1], False),
    }
    changes = [part for setting in given.set for part in ("--set", setting)]
    assert main(["train", str(RECIPE), "--manifest", str(mine), "--out", str(out / "runs"), *changes]) == 0
    models = {"before": "nano", "after": str(out / "runs" / "lora" / "final")}
    rows = ["| who asks | mode | WER, before | after | right, before | after |", "|---|---|---|---|---|---|"]
    for who, test in tests.items():
        for mode in given.modes:
            (wer, right), (wer_after, right_after) = (
                measured(model, test, mode, out / name) for name, model in models.items()
            )
            rows.append(f"| {who} | {mode.title()} | {wer} | {wer_after} | {right} | {right_after} |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--voice", default="flite:rms")
    parser.add_argument("--out", type=Path, default=Path("runs/own_voice"))
    parser.add_argument("--n", type=int, default=100)
    parser.add_argument("--recordings", type=int, default=20)
    parser.add_argument("--modes", nargs="+", default=["boost", "vanilla"])
    parser.add_argument("--answers", action="store_true")
    parser.add_argument("--set", action="append", default=[])
    print(compare(parser.parse_args()))
