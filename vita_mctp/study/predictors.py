"""Which predictor speaks best (VocalNet, tables 3 and 4), and how deep M2's should be (VocalNet-M2, table 3).

One frozen thinker, one corpus, one talker's backbone. Each variant sees the very same batches, seed by seed, for the
same number of steps; then it says the same held-out sentences at each of its speeds, and an independent judge hears
them. A variant that is finished stays finished; killed, the same command goes on.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vita_mctp.checkpoints.opening import open_model
from vita_mctp.decoding.talker import Contract, TalkerOptions
from vita_mctp.environment import weights_hash
from vita_mctp.errors import CheckpointError
from vita_mctp.evaluation.metrics import Comparison, compare
from vita_mctp.evaluation.report import interval, percent
from vita_mctp.files import write_whole
from vita_mctp.nano.talker_benchmark import LONGEST, Manner, Saying, Voice, codes_per_second, length_errors, word_errors
from vita_mctp.nano.talker_data import HELD_OUT, SpokenText, key_of, make_spoken_texts
from vita_mctp.nano.talker_training import TalkerRecipe, open_lessons, train_talker
from vita_mctp.schema import Schema
from vita_mctp.study import Result, StudyOptions, Table, about
from vita_mctp.yaml_file import read_yaml

NAMES = {
    "ntp": "NTP",
    "group_linear-3": "Group-Linear 3",
    "group_linear-5": "Group-Linear 5",
    "group_transformer-3": "Group-Trans 3",
    "group_transformer-5": "Group-Trans 5",
    "parallel_linear": "MTP-Parallel-Linear",
    "deepseek": "MTP-DeepSeek",
    "vocalnet": "MTP-VocalNet",
    "mctp": "MCTP (ours)",
    "vocalnet*2": "MTP-VocalNet, 3 tokens",
    "vocalnet*6": "MTP-VocalNet, 7 tokens",
}
"""Of variants: PREDICTOR, PREDICTOR-GROUP_SIZE or PREDICTOR*LEVELS."""
_FASTEST = 5
_CHANCE = 0.05
_QUICK = {"steps": 4, "batch": 2, "warmup": 1, "log_every": 2, "save_every": 4}


@dataclass(frozen=True)
class TrainingBudget:
    """recipe: of the talker that all variants begin with. steps: of each variant and seed; None: the recipe's."""

    recipe: Path
    seeds: int = 2
    steps: int | None = None


@dataclass(frozen=True)
class Variant:
    """A talker to train, by what its sizes change, and the ways in which it is then made to speak."""

    name: str
    talker: Mapping[str, int | str]
    manners: tuple[Manner, ...]


class Outcome(Schema):
    """A variant of one seed. nats, right: by level, of held-out sentences; sayings: by the name of their manner.

    seconds: of processor, for its training.
    """

    parameters: int
    seconds: float
    nats: tuple[float, ...]
    right: tuple[float, ...]
    sayings: dict[str, tuple[Saying, ...]]


def predictor_variants() -> Iterator[Variant]:
    """Table 3's, VITA-Audio's block, table 4's; decoded as trained, DeepSeek also as its authors do."""
    for name in NAMES:
        predictor, _, group = name.partition("-")
        if "*" in name:
            predictor, _, deepest = name.partition("*")
            manners = tuple(_manner(levels) for levels in range(0, int(deepest) + 1, 2))
            yield Variant(name, {"predictor": predictor, "mtp_levels": int(deepest)}, manners)
        elif group:
            yield Variant(name, {"predictor": predictor, "mtp_levels": 0, "group_size": int(group)}, (_manner(0),))
        elif name == "ntp":
            yield Variant(name, {"predictor": predictor, "mtp_levels": 0}, (_manner(0),))
        else:
            manners = tuple(_manner(levels) for levels in (0, 2, 4))
            if name == "deepseek":
                manners += tuple(_manner(levels, "reference") for levels in (0, 2, 4))
            yield Variant(name, {"predictor": predictor, "mtp_levels": _FASTEST - 1}, manners)


def depth_variants() -> Iterator[Variant]:
    """M2 with 0 to 5 MTP layers, decoded without and with all of them."""
    for levels in range(6):
        manners = tuple(_manner(used, "reference") for used in sorted({0, levels}))
        yield Variant(f"m2-{levels}", {"mtp_levels": levels}, manners)


def _manner(levels: int, contract: Contract = "as_trained") -> Manner:
    return Manner(TalkerOptions(levels, contract, LONGEST))


@dataclass(eq=False)
class Bench:
    """What all variants have in common: lessons, texts to say, the judge."""

    options: StudyOptions
    budget: TrainingBudget

    def __post_init__(self) -> None:
        path = self.budget.recipe
        recipe = TalkerRecipe.parse(read_yaml(path), str(path))
        changes: dict[str, Any] = dict(_QUICK) if self.options.quick else {}
        if self.budget.steps is not None:
            changes["steps"] = self.budget.steps
        schedule = recipe.schedule.model_copy(update=changes)
        corpus = recipe.corpus
        if self.options.quick:
            corpus = corpus.model_copy(update={"questions": 4, "sentences": 8})
        self.recipe = recipe.model_copy(update={"thinker": self.options.model, "schedule": schedule, "corpus": corpus})
        thinker = open_model(self.options.model)
        texts = make_spoken_texts(thinker, self.options.folder / "data", corpus, recipe.seed)
        self.lessons = open_lessons(self.recipe, texts)
        self.said: list[SpokenText] = texts[HELD_OUT][: self.options.n]
        self.voice, self.weights = Voice(thinker), weights_hash(thinker.folder)

    @property
    def seeds(self) -> range:
        return range(self.options.seed, self.options.seed + self.budget.seeds)

    def outcome(self, variant: Variant, seed: int) -> Outcome:
        """Trains and listens, or reads what was found before."""
        key = key_of(self.recipe.model_dump_json(), self.weights)
        folder = self.options.folder / key / f"{variant.name}-seed{seed}"
        if (done := folder / f"result-{len(self.said)}.json").is_file():
            return Outcome.read_json(done, CheckpointError)
        sizes = {**self.recipe.talker, **variant.talker}
        if group := int(variant.talker.get("group_size", 0)):
            sizes["speech_chunk"] = int(sizes["speech_chunk"]) // group  # it counts rows
        recipe = self.recipe.model_copy(update={"talker": sizes, "seed": seed})
        talker, started = self.lessons.new_talker(recipe), time.process_time()
        train_talker(talker, self.lessons, recipe.schedule, folder, seed)
        seconds = time.process_time() - started
        tested = self.lessons.test(talker, self.said, streaming=False)
        outcome = Outcome(
            parameters=sum(weight.numel() for weight in talker.parameters()),
            seconds=seconds,
            nats=tuple(tested["nats"]),
            right=tuple(tested["right"]),
            sayings={
                manner.name: tuple(self.voice.listen(self.lessons, talker, self.said, manner))
                for manner in variant.manners
            },
        )
        write_whole(done, outcome.model_dump_json().encode())
        return outcome

    def outcomes(self, variants: Sequence[Variant]) -> dict[str, list[Outcome]]:
        """By variant, seed by seed: a study that is cut short has the first seed of all."""
        found: dict[str, list[Outcome]] = {variant.name: [] for variant in variants}
        for seed in self.seeds:
            for variant in variants:
                found[variant.name].append(self.outcome(variant, seed))
        return found


def pooled(outcomes: Sequence[Outcome], manner: str) -> list[Saying]:
    """All seeds' sayings."""
    return [saying for outcome in outcomes for saying in outcome.sayings[manner]]


def by_text(outcomes: Sequence[Outcome], manner: str) -> list[Saying]:
    """Of each text the sums over seeds: what is drawn again for an interval are texts, since seeds share them."""
    several = zip(*(outcome.sayings[manner] for outcome in outcomes), strict=True)
    names = Saying.model_fields
    return [Saying(**{name: sum(getattr(each, name) for each in seeds) for name in names}) for seeds in several]


@dataclass(frozen=True)
class Claim:
    """The second has fewer word errors than the first: the paper's numbers, and which sayings to hold them against.

    worse, than: names of variants and of manners.
    """

    text: str
    paper: str
    worse: tuple[str, str]
    than: tuple[str, str]

    @property
    def fact(self) -> str:
        """Under which the difference stands among the facts."""
        return f"{' '.join(self.than)} minus {' '.join(self.worse)}"

    def difference(self, found: Mapping[str, Sequence[Outcome]]) -> Comparison:
        """Of the second from the first, on the same texts."""
        a, b = (by_text(found[variant], manner) for variant, manner in (self.worse, self.than))
        return compare(
            ([each.edits for each in a], [each.words for each in a]),
            ([each.edits for each in b], [each.words for each in b]),
        )

    def row(self, found: Mapping[str, Sequence[Outcome]]) -> tuple[str, str, str, str]:
        """The difference, and whether chance alone would make as much of it (p above 5 %)."""
        difference = self.difference(found)
        value, p = difference.difference.value, difference.p_value
        if value is None or p is None or p > _CHANCE:
            return self.text, self.paper, _in_words(difference), "cannot be told"
        return self.text, self.paper, _in_words(difference), "holds" if value < 0 else "does not hold here"


def _in_words(difference: Comparison) -> str:
    """Percentage points with their interval, and p."""
    return f"{interval(difference.difference, 100, 1)}, p {difference.p_value:.3f}" if difference.p_value else "-"


_ONE, _THREE, _FIVE = (_manner(levels).name for levels in (0, 2, 4))
_SEVEN = _manner(6).name
_PAPER = {  # VocalNet, tables 3 and 4
    "ntp": {_ONE: 10.62},
    "group_linear-3": {_ONE: 11.50},
    "group_linear-5": {_ONE: 17.61},
    "group_transformer-3": {_ONE: 14.34},
    "group_transformer-5": {_ONE: 17.90},
    "parallel_linear": {_ONE: 8.61, _THREE: 8.00, _FIVE: 10.57},
    "deepseek": {_ONE: 9.14, _THREE: 9.02, _FIVE: 18.23},
    "vocalnet": {_ONE: 6.84, _THREE: 5.66, _FIVE: 6.46},
    "vocalnet*2": {_ONE: 7.79, _THREE: 5.70},
    "vocalnet*6": {_ONE: 7.79, _THREE: 6.14, _FIVE: 6.89, _SEVEN: 8.06},
}


def _claim(text: str, worse: tuple[str, str], than: tuple[str, str]) -> Claim:
    numbers = [_PAPER.get(variant, {}).get(manner) for variant, manner in (worse, than)]
    return Claim(text, "-" if None in numbers else f"{numbers[0]:.2f} and {numbers[1]:.2f}", worse, than)


def predictor_claims() -> Iterator[Claim]:
    """Of tables 3 and 4, and two questions of ours at the end."""
    ntp = ("ntp", _ONE)
    for name in ("group_linear-3", "group_transformer-3"):
        yield _claim(f"{NAMES[name]} is worse than NTP", (name, _ONE), ntp)
    for name in ("group_linear", "group_transformer"):
        yield _claim(f"{NAMES[name + '-5'][:-2]}: 5 is worse than 3", (f"{name}-5", _ONE), (f"{name}-3", _ONE))
    for name in ("parallel_linear", "deepseek", "vocalnet"):
        yield _claim(f"{NAMES[name]}, decoded one by one, is better than NTP", ntp, (name, _ONE))
    for name in ("parallel_linear", "deepseek"):
        for manner in (_ONE, _THREE, _FIVE):
            speed = manner.partition(",")[0]
            yield _claim(f"MTP-VocalNet is better than {NAMES[name]} at {speed}", (name, manner), ("vocalnet", manner))
    for name in ("parallel_linear", "vocalnet"):
        yield _claim(f"{NAMES[name]} is better at 3x than at 1x", (name, _ONE), (name, _THREE))
    for name in ("parallel_linear", "deepseek", "vocalnet"):
        yield _claim(f"{NAMES[name]} is worse at 5x than at 3x", (name, _FIVE), (name, _THREE))
    yield _claim("MTP-VocalNet at 5x is better than NTP", ntp, ("vocalnet", _FIVE))
    for other in ("vocalnet*2", "vocalnet*6"):
        for manner in (_ONE, _THREE):
            speed = manner.partition(",")[0]
            text = f"at {speed}, training with 5 tokens a step is better than with {NAMES[other].rpartition(', ')[2]}"
            yield _claim(text, (other, manner), ("vocalnet", manner))
    yield _claim("of 7 tokens, 5x is better than 7x", ("vocalnet*6", _SEVEN), ("vocalnet*6", _FIVE))
    yield _claim("ours: MTP-DeepSeek at 5x is better as trained", ("deepseek", "5x"), ("deepseek", _FIVE))
    yield _claim("ours: MCTP at 5x is better than MTP-VocalNet", ("vocalnet", _FIVE), ("mctp", _FIVE))


_M2_PAPER = (8.56, 7.64, 6.53, 6.64, 6.07, 6.33)


def depth_claims() -> Iterator[Claim]:
    """Of M2's table 3, whose word error rates are decoded without the MTP layers."""
    for levels in range(1, 6):
        text, paper = f"{levels} MTP layers better than none, decoded without them", _M2_PAPER
        yield Claim(text, f"{paper[0]} and {paper[levels]}", ("m2-0", "1x"), (f"m2-{levels}", "1x"))
    yield Claim("4 layers are better than 5", f"{_M2_PAPER[5]} and {_M2_PAPER[4]}", ("m2-5", "1x"), ("m2-4", "1x"))
    for levels in range(1, 6):
        text = f"ours: {levels + 1}x by all {levels} is better than 1x with none"
        yield Claim(text, "-", ("m2-0", "1x"), (f"m2-{levels}", f"{levels + 1}x"))


_STUDIES = {
    "predictors": (
        "Predictors on one backbone",
        predictor_variants,
        predictor_claims,
        "as trained: masks, positions and chained levels of training; MTP-DeepSeek without these words is decoded as "
        "its authors do, whose loop differs from training. No repetition penalty. A group's speed is its size.",
        "Table 3 trains 5 modules; here 4 stand behind the main head, which is what 5x uses. UTMOS is not measured. "
        "Table 4's 3, 5 and 7 modules are read as that many tokens a step. Table 5 is `vita-mctp bench first-audio`'s.",
    ),
    "depth": (
        "MTP layers of VocalNet-M2",
        depth_variants,
        depth_claims,
        "A code's four digits are four codebooks; a step makes a frame of each level used. Nats are of a whole frame.",
        "Table 2 (single against several codebooks, with and without pre-training) is not: these codebooks are one "
        "code's digits, and there is no corpus to pre-train on.",
    ),
}
"""Title, variants, claims, notes."""


def run(name: str, options: StudyOptions, budget: TrainingBudget) -> Result:
    """name: predictors or depth."""
    title, variants, all_claims, *notes = _STUDIES[name]
    kinds, claims = list(variants()), list(all_claims())
    bench = Bench(options, budget)
    found = bench.outcomes(kinds)
    floor = bench.voice.floor(bench.said)
    facts = {"floor": word_errors(floor)}
    for variant in kinds:
        for manner in variant.manners:
            facts[f"{variant.name} {manner.name}"] = word_errors(by_text(found[variant.name], manner.name))
    facts |= {claim.fact: claim.difference(found).difference for claim in claims}
    steps, batch = bench.recipe.schedule.steps, bench.recipe.schedule.batch
    command = f"{about(options, name)['command']} --seeds {budget.seeds} --steps {steps}"
    stated: dict[str, str | int] = {"command": command, "seeds": budget.seeds, "steps": steps}
    stated |= {"answers_a_step": batch, "recipe": str(budget.recipe)}
    floors = [percent(word_errors(floor, loop=loop)) for loop in (False, True)]
    said = (
        f"WER2, WER1: what PocketSphinx hears, with a bigram of the domain and in a word loop, of {len(bench.said)} "
        "sentences that no training saw, all seeds together; brackets: bootstrap 95 % interval over sentences, each "
        f"with all its seeds. Its floor, the answer voice's own codes: WER2 {floors[0]}, WER1 {floors[1]}.",
        "length errors: less than two thirds or more than four thirds of the answer voice's codes. codes a CPU-second: "
        "of one thread, on a machine with other work: compare within this table alone.",
        "A claim compares word errors on the same sentences: difference in percentage points, p by approximate "
        "randomisation; above 5 % it cannot be told. One small model, few steps: what holds here may not hold there.",
    )
    tables = [_speech_table(found, kinds), _level_table(found), _claim_table(found, claims)]
    return Result(title, (*said, *notes), facts, tables, about=stated)


def _speech_table(found: Mapping[str, Sequence[Outcome]], variants: Sequence[Variant]) -> Table:
    rows = []
    for variant in variants:
        for manner in variant.manners:
            sayings, texts = (of(found[variant.name], manner.name) for of in (pooled, by_text))
            errors = (percent(word_errors(texts, loop=loop)) for loop in (False, True))
            speed = _speed(variant, manner)
            row = (_title(variant.name), speed, *errors, percent(length_errors(sayings)))
            rows.append((*row, f"{codes_per_second(sayings):,.0f}"))
    head = ("variant", "speed", "WER2 %", "WER1 %", "length errors %", "codes a CPU-second")
    return "What the judge hears", head, tuple(rows)


def _speed(variant: Variant, manner: Manner) -> str:
    group = variant.talker.get("group_size")
    return f"{group}x, as trained" if group else manner.name.replace(",as_trained", ", as trained")


def _title(name: str) -> str:
    return NAMES.get(name, f"{name.removeprefix('m2-')} layers".replace("1 layers", "1 layer"))


def _level_table(found: Mapping[str, Sequence[Outcome]]) -> Table:
    rows = []
    for name, outcomes in found.items():
        nats, right = (
            " ".join(f"{statistics.mean(values):.{digits}f}" for values in zip(*each, strict=True))
            for each, digits in (([o.nats for o in outcomes], 2), ([o.right for o in outcomes], 3))
        )
        seconds = statistics.mean(outcome.seconds for outcome in outcomes)
        rows.append((_title(name), f"{outcomes[0].parameters:,}", nats, right, f"{seconds:,.0f}"))
    head = ("variant", "parameters", "nats a code, by level", "right, by level", "CPU seconds of training")
    return "Teacher-forced, on the same sentences", head, tuple(rows)


def _claim_table(found: Mapping[str, Sequence[Outcome]], claims: Sequence[Claim]) -> Table:
    head = ("claim", "WER in the paper", "difference here", "verdict")
    return "The paper's claims", head, tuple(claim.row(found) for claim in claims)
