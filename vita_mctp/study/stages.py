"""`study stages`: recognition, synthesis and answers, by decoding mode and by training stage, each beside its cost.

VITA-Audio paper, tables 4 to 8. Quality is the nano benchmark's, by the evaluation's own pipeline, so that a study that
was killed goes on; cost is the engine's alone, in processor time where one thread computes, the modes in turns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from vita_mctp.bench import Line, Panel, spent
from vita_mctp.bench.verified import count_passes
from vita_mctp.checkpoints.opening import find_model
from vita_mctp.decoding.engine import Engine
from vita_mctp.decoding.request import Request
from vita_mctp.environment import weights_hash
from vita_mctp.errors import ConfigError
from vita_mctp.evaluation.benchmarks import ASR, SQA, TTS
from vita_mctp.evaluation.metrics import SPEECH, TEXT, ResultRow, by_tag, compare, counted, ratio
from vita_mctp.evaluation.report import interval, percent
from vita_mctp.evaluation.run import RunConfig, evaluate
from vita_mctp.evaluation.systems import FINISHED, FinishedAnswers, LocalModel, System, SystemConfig
from vita_mctp.nano.cases import RIGHT_ANSWERS
from vita_mctp.nano.synthesis import SAMPLE_RATE
from vita_mctp.speech_lm import SpeechLM
from vita_mctp.study import Facts, Result, StudyOptions, Table
from vita_mctp.study.masking import JUDGE, Counts
from vita_mctp.study.samples import QUESTIONS, speak_answers, stage_models
from vita_mctp.types import Task, Wave

MODES = ("vanilla", "verified", "balance", "boost", "turbo", "1,1")
QUICK_MODES = ("vanilla", "boost")
STAGE_MODES = {SQA: "boost", ASR: "vanilla", TTS: "turbo"}
"""In which the paper's tables 4 to 7 compare stages; of a stage without blocks, Vanilla."""

_SCORES = {
    f"{ASR}.wer": (ASR, "plain", TEXT),
    f"{TTS}.wer": (TTS, "plain", SPEECH),
    f"{SQA}.written": (SQA, "exact", TEXT),
    f"{SQA}.heard": (SQA, "exact", SPEECH),
}
"""A fact, and the benchmark, rule and side that it is of."""

_TIMED = 60
"""Questions whose decoding is timed, at most."""

Scores = dict[str, Counts]


@dataclass(frozen=True)
class Cost:
    """Of one answer. first_passes: of the backbone, until there are codes for the first chunk of sound."""

    tokens: int
    passes: int
    first_passes: int
    seconds: float


def run(options: StudyOptions) -> Result:
    """Raises as `evaluate` and `SpeechLM.from_pretrained`."""
    modes = QUICK_MODES if options.quick else MODES
    speech_lm = SpeechLM.from_pretrained(options.model, device=options.device, dtype=options.dtype)
    if speech_lm.speaking is not None:
        raise ConfigError(f"{options.model} speaks by a talker, which has no such modes; see study predictors")
    asked = _Asked(options)
    scores = {mode: asked.scores(speech_lm, options.model, mode, (ASR, TTS, SQA)) for mode in modes}
    stages = {name: asked.stage(folder) for name, folder in stage_models(options)}
    costs = _costs(speech_lm, options, modes)
    floor = asked.floor()
    facts = _mode_facts(scores, costs, options.seed) | _stage_facts(stages, options.seed)
    facts["recording.heard"] = ratio(*floor, options.seed)
    tables = [_mode_table(facts, modes), *([_stage_table(facts, tuple(stages))] if stages else [])]
    title = "Modes and stages: how good, how fast"
    return Result(title, _NOTES, facts, tables, {"": _panels(facts, modes)}, {"judge": JUDGE})


_NOTES = (
    "ASR WER: transcripts of held-out questions in three kinds of voices. TTS WER: what the judge hears of held-out "
    "sentences. written, heard: right answers to held-out questions, word for word, by the text and by what the judge "
    "hears. S -> T to S -> S: the part of the written right answers that is not heard right.",
    "The judge errs too: of the recordings of right answers by the answer voice itself, it hears word for word the "
    "fraction `recording.heard` of this page's JSON.",
    "tokens a pass: of the backbone, prompts' passes included. passes to the first sound: until there are codes for "
    "the first chunk. speed: tokens a processor second over Vanilla's, same questions in turns, greedy, engine alone.",
    "1,1: one token of the backbone, one of the first block. verified: Vanilla's answers.",
    "Training stages, where there are any: of the run that `runs` names, not of the model above, whose codec they use.",
    "Brackets are bootstrap 95 % intervals over answers.",
)


@dataclass(frozen=True)
class _Asked:
    """The benchmark runs of this study, below its folder."""

    options: StudyOptions

    def scores(self, speech_lm: SpeechLM, model: str, mode: str, tasks: Sequence[str]) -> Scores:
        config = SystemConfig(model=model, mode=mode, seed=self.options.seed)
        found: Scores = {}
        for task in tasks:
            rows = self._run(f"nano-{task}", config, LocalModel(speech_lm, config), Path(model).name)
            scored = counted(rows)
            found |= {fact: scored[rule, on] for fact, (of, rule, on) in _SCORES.items() if of == task}
        return found

    def stage(self, folder: Path) -> Scores:
        speech_lm = SpeechLM.from_pretrained(folder, device=self.options.device, dtype=self.options.dtype)
        found: Scores = {}
        for task, mode in STAGE_MODES.items():
            chosen = mode if speech_lm.language_model.runner.num_blocks else "vanilla"
            found |= self.scores(speech_lm, str(folder), chosen, (task,))
        return found

    def floor(self) -> Counts:
        """How often the judge hears right answers of the answer voice itself."""
        waves = self.options.folder / "benchmark" / "waves"
        rows = self._run("nano-voice", SystemConfig(model=f"{FINISHED}{waves}"), FinishedAnswers(waves), "recording")
        return counted(by_tag(rows, "said")[RIGHT_ANSWERS])["exact", SPEECH]

    def _run(self, benchmark: str, config: SystemConfig, system: System, name: str) -> Sequence[ResultRow]:
        options = self.options
        data = str(options.folder / "benchmark")
        run_config = RunConfig(benchmark=benchmark, system=config, data=data, limit=options.n, judges=(JUDGE,))
        weights = weights_hash(find_model(options.model))
        folder = options.folder / "runs" / f"{benchmark}-{name}-{config.mode}-{options.n}-{options.seed}-{weights}"
        return evaluate(run_config, folder, open_system=lambda worker: system, weights=weights).rows


def _costs(speech_lm: SpeechLM, options: StudyOptions, modes: Sequence[str]) -> dict[str, list[Cost]]:
    """Of each mode, answer by answer; the first question is decoded once more than counted."""
    corpus = speak_answers(options.folder / "speech", options.n, options.seed)
    indices = corpus.indices(QUESTIONS)[:_TIMED]
    costs: dict[str, list[Cost]] = {mode: [] for mode in modes}
    for number, index in enumerate((indices[0], *indices)):
        heard = speech_lm.hear(Wave(corpus.utterance(index).samples, SAMPLE_RATE))
        for mode in modes:
            decoding = speech_lm.decoding(Task.SPEECH_TO_SPEECH, mode, temperature=0.0)
            found = cost_of(speech_lm, speech_lm.request(speech_lm.prompt(heard, mode=decoding.mode), decoding))
            costs[mode] += [found] if number else []
    return costs


def cost_of(speech_lm: SpeechLM, request: Request) -> Cost:
    engine = Engine(speech_lm.language_model.runner, classify=speech_lm.tokenizer.vocabulary.kind)
    device = torch.device(speech_lm.language_model.device)
    first_block = (*speech_lm.settings.block_sizes, speech_lm.audio_decoder.block_size)[0]
    start, steps = spent(device), []
    state = engine.start(request)
    while state.reason is None:
        steps += engine.advance([state])
    seconds = spent(device) - start
    passes, first = count_passes(steps, request.mode, first_block)
    return Cost(sum(map(len, steps)), passes, first or passes, seconds)


def _mode_facts(scores: Mapping[str, Scores], costs: Mapping[str, Sequence[Cost]], seed: int) -> Facts:
    facts: Facts = {}
    plain = costs["vanilla"]
    for mode, found in scores.items():
        for name, counts in found.items():
            facts[f"{mode}.{name}"] = ratio(*counts, seed)
            facts[f"{mode}.{name} above vanilla"] = compare(scores["vanilla"][name], counts, seed).difference
            facts[f"{mode}.{name} above boost"] = compare(scores["boost"][name], counts, seed).difference
        written, heard = found[f"{SQA}.written"][0], found[f"{SQA}.heard"][0]
        lost = [w - h for w, h in zip(written, heard, strict=True)]
        facts[f"{mode}.{SQA}.gap"] = ratio(lost, written, seed)
        of = costs[mode]
        one = [1.0] * len(of)
        facts[f"{mode}.tokens a pass"] = ratio([c.tokens for c in of], [c.passes for c in of], seed)
        facts[f"{mode}.passes to the first sound"] = ratio([c.first_passes for c in of], one, seed)
        before, now = ([c.seconds / c.tokens for c in side] for side in (plain, of))
        facts[f"{mode}.speed"] = ratio(before, now, seed)
    return facts


def _stage_facts(stages: Mapping[str, Scores], seed: int) -> Facts:
    facts: Facts = {}
    first = next(iter(stages.values()), {})
    for stage, found in stages.items():
        for name, counts in found.items():
            facts[f"{stage}.{name}"] = ratio(*counts, seed)
            facts[f"{stage}.{name} above the first"] = compare(first[name], counts, seed).difference
    return facts


def _mode_table(facts: Facts, modes: Sequence[str]) -> Table:
    quality = {"ASR WER, %": f"{ASR}.wer", "TTS WER, %": f"{TTS}.wer", "written, %": f"{SQA}.written"}
    quality |= {"heard, %": f"{SQA}.heard", "S -> T to S -> S, %": f"{SQA}.gap"}
    cost = ("tokens a pass", "passes to the first sound", "speed")
    rows = []
    for mode in modes:
        cells = [percent(facts[f"{mode}.{name}"]) for name in quality.values()]
        cells += [interval(facts[f"{mode}.{name}"], 1, 2) for name in cost]
        rows.append((mode, *cells))
    return "Decoding modes", ("mode", *quality, *cost), tuple(rows)


def _stage_table(facts: Facts, stages: Sequence[str]) -> Table:
    head = ("stage", *(f"{name}, %" for name in _SCORES))
    rows = [(stage, *(percent(facts[f"{stage}.{name}"]) for name in _SCORES)) for stage in stages]
    return "Training stages", head, tuple(rows)


def _panels(facts: Facts, modes: Sequence[str]) -> list[Panel]:
    lines = []
    for label, name in (("answers written right", f"{SQA}.written"), ("answers heard right", f"{SQA}.heard")):
        found = [facts[f"{mode}.{name}"] for mode in modes]
        spread = [(100 * (each.low or 0.0), 100 * (each.high or 0.0)) for each in found]
        lines.append(Line(label, list(modes), [100 * (each.value or 0.0) for each in found], "bars", spread))
    passes = [facts[f"{mode}.passes to the first sound"].value for mode in modes]
    return [
        Panel("Right answers", "", "%", lines),
        Panel("Passes of the backbone to the first sound", "", "passes", [Line("passes", list(modes), passes, "bars")]),
    ]
