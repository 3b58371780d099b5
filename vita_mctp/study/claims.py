"""What the papers say against what was found: each claim of `assets/claims.yaml` gets its verdict from the facts.

A claim is some conditions on facts, `STUDY.FACT > 0.5` or `STUDY.FACT < STUDY.FACT`. It holds where every interval
lies within its bound, it does not hold here where one lies wholly outside, and cannot be told otherwise. Two facts of
a study are compared by their paired difference, the fact `A minus B`, where the study has it. `study all` runs each
study that is not done yet for this model, then writes the page of all claims.
"""

from __future__ import annotations

import operator
import re
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from vita_mctp.checkpoints.opening import find_model
from vita_mctp.environment import weights_hash
from vita_mctp.errors import ConfigError, DataError
from vita_mctp.evaluation.metrics import Estimate
from vita_mctp.evaluation.report import interval, table
from vita_mctp.files import write_output
from vita_mctp.schema import Schema, read_json
from vita_mctp.study import SIZES, Facts, Findings, StudyOptions, make, read
from vita_mctp.yaml_file import parse_yaml

TRAINED = ("predictors", "depth")
"""Studies that train for hours, whose findings are taken where they are."""

_BENCHES = ("modes_nano", "modes_hidden512", "modes_half_b", "first_audio_nano", "first_audio_half_b")


class Verdict(StrEnum):
    HOLDS = "holds"
    FAILS = "does not hold here"
    OPEN = "cannot be told at this size"
    NEEDS = "needs weights or a GPU"
    MISSING = "not run"


class Claim(Schema):
    """at: figure, table or section. holds: conditions. show: labels and the facts behind them. tell: the command that
    would tell, where the facts are not there or the claim is about other weights. says: by verdict, one plain sentence
    with labels in braces; surprise: by verdict, how much of one it is.
    """

    source: str
    at: str
    claim: str
    holds: tuple[str, ...] = ()
    show: dict[str, str] = Field(default_factory=dict)
    unit: Literal["%", "x", "ms", "number"] = "%"
    note: str = ""
    tell: str = ""
    says: dict[str, str] = Field(default_factory=dict)
    surprise: dict[str, int] = Field(default_factory=dict)

    def verdict(self, facts: Facts) -> Verdict:
        if not self.holds:
            return Verdict.NEEDS
        found = [_judge(condition, facts) for condition in self.holds]
        if None in found or not facts.keys() >= set(self.show.values()):
            return Verdict.MISSING if self.tell.startswith("vita-mctp study ") or not self.tell else Verdict.NEEDS
        worst = (verdict for verdict in (Verdict.FAILS, Verdict.OPEN) if verdict in found)
        return next(worst, Verdict.HOLDS)

    def shown(self, facts: Facts) -> dict[str, str]:
        """By label, a fact's value and interval."""
        return {label: _shown(facts[name], self.unit) for label, name in self.show.items() if name in facts}

    def sentence(self, facts: Facts) -> str:
        """Empty where there is none for its verdict, or a number of it is missing."""
        text, shown = self.says.get(_KEYS[self.verdict(facts)], ""), self.shown(facts)
        if not shown.keys() >= set(_LABEL.findall(text)):
            return ""
        return _LABEL.sub(lambda found: shown[found[1]].split(" (")[0], text)


_KEYS = {Verdict.HOLDS: "holds", Verdict.FAILS: "fails", Verdict.OPEN: "open"} | dict.fromkeys(
    (Verdict.NEEDS, Verdict.MISSING), ""
)
_SIGNS: Mapping[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    ">": operator.gt,
    "<=": operator.le,
    ">=": operator.ge,
}
_LABEL = re.compile(r"\{([^}]+)\}")
_CONDITION = re.compile(r"(.+?) (<=|>=|<|>) (.+)")


def _parts(condition: str) -> tuple[str, str, str]:
    """Fact, sign and bound. Raises ConfigError for what is no condition."""
    found = _CONDITION.fullmatch(condition)
    if found is None:
        raise ConfigError(f"claims.yaml: {condition!r} is no condition; wanted such as STUDY.FACT > 0.5")
    return found[1], found[2], found[3]


def _judge(condition: str, facts: Facts) -> Verdict | None:
    """None where a fact is missing."""
    name, word, against = _parts(condition)
    sign, paired = _SIGNS[word], _paired(name, against, facts)
    if paired is not None:
        facts, against = {name: paired}, "0"
    if re.fullmatch(r"-?[\d.]+", against):
        limit = Estimate.exact(float(against), 0)
    elif against in facts:
        limit = facts[against]
    else:
        return None
    if name not in facts:
        return None
    ends = (facts[name].low, facts[name].high, limit.low, limit.high)
    numbers = [value for value in ends if value is not None]
    if len(numbers) < len(ends) or (word in ("<", ">") and not any(numbers)):
        return Verdict.OPEN  # the latter: no difference at all was seen, which so few answers may do by chance
    outcomes = {sign(value, bound) for value in numbers[:2] for bound in numbers[2:]}
    return Verdict.OPEN if len(outcomes) > 1 else Verdict.HOLDS if outcomes.pop() else Verdict.FAILS


def _paired(name: str, against: str, facts: Facts) -> Estimate | None:
    """What is known of their difference on the same samples, in either order."""
    study, _, own = name.partition(".")
    other = against.removeprefix(f"{study}.")
    found, reverse = facts.get(f"{study}.{own} minus {other}"), facts.get(f"{study}.{other} minus {own}")
    if found is not None or reverse is None or reverse.low is None or reverse.high is None:
        return found
    return Estimate(None, -reverse.high, -reverse.low, reverse.n)


def _shown(fact: Estimate, unit: str) -> str:
    scale, digits, sign = {"%": (100, 1, " %"), "x": (1, 2, " times"), "ms": (1, 0, " ms"), "number": (1, 2, "")}[unit]
    text = interval(fact, scale, digits)
    if text == "-":
        return text
    value, _, ends = text.partition(" ")
    return f"{value}{sign}" if fact.low == fact.high else f"{value}{sign} {ends}"


def read_claims() -> tuple[Claim, ...]:
    """Raises ConfigError for a file that is not as `Claim` says."""
    text = (resources.files("vita_mctp") / "assets" / "claims.yaml").read_text(encoding="utf-8")
    claims = enumerate(parse_yaml(text, "claims.yaml"), 1)
    return tuple(Claim.parse(values, f"claims.yaml, claim {number}") for number, values in claims)


@dataclass(frozen=True)
class Evidence:
    """Facts by STUDY.FACT; what was run for each study or bench, in a line; and where and when each study was made."""

    facts: Facts
    runs: dict[str, str]
    made: tuple[str, ...] = ()

    @classmethod
    def gather(cls, studies: Path, benches: Path) -> Evidence:
        """Of the studies' findings and of recorded benches, in two folders."""
        facts: Facts = {}
        runs: dict[str, str] = {}
        made = []
        for name in (*SIZES, *TRAINED):
            findings = read(studies / f"{name}.md")
            if findings is not None:
                facts |= {f"{name}.{fact}": value for fact, value in findings.facts.items()}
                runs[name] = _run_line(findings)
                parts = ("command", "weights", "date", "commit", "versions")
                facets = ", ".join(f"{part} {findings.about[part]}" for part in parts)
                made.append(f"[{findings.title}]({name}.md): {facets}")
        for name in _BENCHES:
            path = benches / f"{name}.json"
            if path.exists():
                values = read_json(path, DataError)
                found = _bench_values(values["rows"])
                facts |= {f"{name}.{fact}": Estimate.exact(value, 1) for fact, value in found.items()}
                runs[name] = f"`{values['command'].partition(' --json')[0]}` ({values['subject']}, one run)"
        return cls(facts, runs, tuple(made))

    def runs_of(self, claim: Claim) -> str:
        facts = (*(_parts(condition)[0] for condition in claim.holds), *claim.show.values())
        names = [name.partition(".")[0] for name in facts]
        return "; ".join(self.runs[name] for name in dict.fromkeys(names) if name in self.runs)


def _run_line(findings: Findings) -> str:
    about = findings.about
    seeds = f"{about['seeds']} seeds" if "seeds" in about else f"seed {about['seed']}"
    command = str(about["command"]).partition(" --model")[0]
    return f"`{command}` ({about['model']}, n = {about['n']}, {seeds})"


def _bench_values(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Of `bench modes`: each mode's speed-up; of `bench first-audio`: Vanilla's time over Boost's, by part."""
    if "speed-up" in rows[0]:
        found = {f"{row['mode']}.speed-up": row["speed-up"] for row in rows}
        return found | {"boost over balance": found["boost.speed-up"] / found["balance.speed-up"]}
    times = {(row["mode"], row["part"]): row["p50"] for row in rows}
    parts = {"first chunk": ("prefill", "first chunk"), "sum": ("sum",)}
    seconds = {(mode, name): sum(times[mode, part] for part in of) for name, of in parts.items() for mode, _ in times}
    return {f"{name}, vanilla over boost": seconds["vanilla", name] / seconds["boost", name] for name in parts}


_HEAD = """\
# What the papers claim, and what was found

Every claim of VITA-Audio, VocalNet (paper and summary) and VocalNet-M2 that can be stated as a number or an order, held
against what this repository's small models and benches show. **A small model is another model**: where a claim does not
hold here, the released weights may still do what their paper says, and the other way round. The verdicts are computed
from the results: *holds* where every 95 % interval lies within the claim's bound, *does not hold here* where one lies
wholly outside, *cannot be told* where one crosses it. Bounds that a paper does not state are in `claims.yaml`."""


_COLUMNS = ("claim", "source", "what was run here", "result", "verdict")


def page(evidence: Evidence, command: str, pictures: Sequence[str]) -> str:
    """docs/results/claims.md."""
    claims, facts = read_claims(), evidence.facts
    verdicts = [claim.verdict(facts) for claim in claims]
    counts = Counter(verdicts)
    summary = ", ".join(f"{counts[each]} {each}" for each in Verdict if counts[each])
    pairs = zip(claims, verdicts, strict=True)
    ranked = sorted(pairs, key=lambda pair: -pair[0].surprise.get(_KEYS[pair[1]], 0))
    sentences = list(filter(None, (claim.sentence(facts) for claim, _ in ranked)))
    parts = [
        _HEAD,
        f"    {command}",
        f"{len(claims)} claims: {summary}.",
        "## The three most surprising findings",
        "\n".join(f"{number}. {text}" for number, text in enumerate(sentences[:3], 1)),
        "## The other findings",
        "\n".join(f"- {text}" for text in sentences[3:]),
        *(f"![{name.removesuffix('.svg')}]({name})" for name in pictures),
        "## Every claim",
        table(_COLUMNS, [_row(claim, evidence) for claim in claims]),
        "## Made from" if evidence.made else "",
        "\n".join(f"- {line}" for line in evidence.made),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _row(claim: Claim, evidence: Evidence) -> tuple[str, ...]:
    verdict = claim.verdict(evidence.facts)
    result = "; ".join(f"{label} {value}" for label, value in claim.shown(evidence.facts).items())
    untold = verdict in (Verdict.NEEDS, Verdict.MISSING)
    words = f"**{verdict}**{f': `{claim.tell}`' if untold and claim.tell else ''}"
    note = f" {claim.note}" if claim.note else ""
    run = "-" if untold else evidence.runs_of(claim) or "-"
    return f"{claim.claim}{note}", f"{claim.source}, {claim.at}", run, result or "-", words


_PICTURES = ("attention-questions.svg", "masking-questions.svg", "blocks-questions.svg", "stages.svg")
"""Those that the page of claims shows."""


def study_everything(
    options_of: Callable[[str, bool], StudyOptions], out: Path, benches: Path, *, quick: bool = False
) -> Path:
    """Runs what `out` has no findings of, writes each study's page as it is done, and claims.md; its path.

    options_of: (study, quick) -> its options. benches: the folder of recorded benches.
    Findings of other weights, sizes or seeds are made again.
    """
    for name in SIZES:
        options = options_of(name, quick)
        target = out / f"{name}.md"
        if not _is_done(options, target):
            sys.stderr.write(f"study {name}: {options.n} answers\n")
            make(name, options, target)
    words = ["vita-mctp", "study", "all", "--model", options.model, "--seed", str(options.seed)]
    words += (["--quick"] if quick else []) + ([] if options.runs is None else ["--runs", str(options.runs)])
    words += [] if options.n == SIZES[name][quick] else ["--n", str(options.n)]
    shown = [name for name in _PICTURES if (out / name).exists()]
    target = out / "claims.md"
    write_output(target, page(Evidence.gather(out, benches), shlex.join(words), shown).encode())
    return target


def _is_done(options: StudyOptions, target: Path) -> bool:
    found = read(target)
    if found is None:
        return False
    asked = {"weights": weights_hash(find_model(options.model)), "n": options.n, "seed": options.seed}
    runs = "" if options.runs is None else str(options.runs)
    return all(found.about.get(key) == value for key, value in asked.items()) and found.about.get("runs", "") == runs
