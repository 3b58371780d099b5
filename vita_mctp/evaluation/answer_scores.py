"""Whether an answer is right: the very words, all words contained, DPR's has_answer, or a language model's word.

docs/scoring.md names the public script that each rule follows.
"""

from __future__ import annotations

import hashlib
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import regex

from vita_mctp.environment import require, versions
from vita_mctp.errors import ConfigError, EndpointError
from vita_mctp.evaluation.judges import open_client, refuses_sample
from vita_mctp.evaluation.text_scores import same_text

LLM_PREFIX = "llm:"
ANSWER_RULES = ("exact", "contains", "has_answer")
_CONTAINS_DROPPED = re.compile(f"[{string.punctuation.replace(chr(39), '')}]")
"""As the script builds it: every ASCII mark but the apostrophe and the backslash, which there escapes a bracket."""

_DPR_TOKEN = regex.compile(r"[\p{L}\p{N}\p{M}]+|[^\p{Z}\p{C}]")
_VOTE = {"yes": True, "no": False}
_VOTES, _TEMPERATURE, _TOP_P, _MAX_TOKENS = 3, 0.5, 0.95, 1024
_SHOWN = 200
"""Characters of an unparsable reply that its reason quotes."""


@dataclass(frozen=True)
class Verdict:
    """correct is None where the rule could not decide: a failed sample, counted wrong. reason: what decided."""

    correct: bool | None
    reason: str


Judge = Callable[[str, Sequence[str], str], Verdict]
"""(question, references, answer) -> the verdict; an empty answer is judged as any other."""


@dataclass(frozen=True)
class AnswerRule:
    """version: what a metric depends on: the rule's own revision and the packages or model behind it."""

    name: str
    version: str
    judge: Judge


def _exact(question: str, references: Sequence[str], answer: str) -> Verdict:
    """A reference's words, all of them and in order, and no others; case and punctuation apart."""
    right = any(same_text(reference, answer) for reference in references)
    return Verdict(right, "" if right else f"is none of {', '.join(map(repr, references))}")


def _contains(question: str, references: Sequence[str], answer: str) -> Verdict:
    """Every word of a reference is in the answer, in any order; a reference that is a number may also be in digits.

    The public script looks for substrings: "art" is in "party", and a reference without words always counts.
    """
    said, names = _without_marks(answer), [_without_marks(reference).strip() for reference in references]
    for name in [*names, *_in_digits(names)]:
        if all(word in said for word in name.split(" ")):
            return Verdict(True, f"contains {name!r}")
    return Verdict(False, f"contains none of {', '.join(map(repr, references)) or 'no references'}")


def _without_marks(text: str) -> str:
    return _CONTAINS_DROPPED.sub(" ", text).lower()


def _in_digits(references: Sequence[str]) -> list[str]:
    """The references' values where every one of them names a number, else nothing: "twenty one" -> "21"."""
    from word2number import w2n

    try:
        return [str(w2n.word_to_num(reference)) for reference in references]
    except (ValueError, IndexError):  # the library's ways to say that this is no number
        return []


def _has_answer(question: str, references: Sequence[str], answer: str) -> Verdict:
    """A reference's tokens are a run of the answer's: runs of letters, digits and marks, or single other signs."""
    said = _dpr_tokens(answer)
    for reference in references:
        tokens = _dpr_tokens(reference)
        if any(said[start : start + len(tokens)] == tokens for start in range(len(said) - len(tokens) + 1)):
            return Verdict(True, f"has {reference!r}")
    return Verdict(False, f"has none of {', '.join(map(repr, references)) or 'no references'}")


def _dpr_tokens(text: str) -> list[str]:
    return [token.lower() for token in _DPR_TOKEN.findall(unicodedata.normalize("NFD", text))]


@dataclass(frozen=True)
class LlmJudge:
    """A language model reads question, references and answer, and says Yes or No; most of three votes decide.

    Votes are drawn at temperature 0.5 and top-p 0.95, as VoiceBench draws them. A vote that is neither Yes nor No, and
    a refusal of the sample, give no verdict; an endpoint that fails after its retries ends the run. prompt holds the
    fields {question}, {reference} and {answer}; client is openai's.
    """

    model: str
    prompt: str
    client: Any

    def __call__(self, question: str, references: Sequence[str], answer: str) -> Verdict:
        from openai import OpenAIError

        asked = self.prompt.format(question=question, reference=" or ".join(references), answer=answer)
        votes: Counter[bool] = Counter()
        for seed in range(_VOTES):
            try:
                reply = self._reply(asked, seed)
            except OpenAIError as error:
                complaint = f"the judge {self.model} did not reply: {error}"
                if refuses_sample(error):
                    return Verdict(None, complaint)
                raise EndpointError(f"{complaint}; mend it and run again") from None
            vote = _VOTE.get(reply.strip().removesuffix(".").lower())
            if vote is None:
                return Verdict(None, f"the judge {self.model} was to reply Yes or No and said {reply[:_SHOWN]!r}")
            votes[vote] += 1
        return Verdict(votes[True] > votes[False], f"{votes[True]} of {_VOTES} votes of {self.model} say Yes")

    def _reply(self, asked: str, seed: int) -> str:
        messages = [{"role": "user", "content": asked}]
        settings = {"temperature": _TEMPERATURE, "top_p": _TOP_P, "max_tokens": _MAX_TOKENS, "seed": seed}
        completion = self.client.chat.completions.create(model=self.model, messages=messages, **settings)
        return "".join(choice.message.content or "" for choice in completion.choices[:1])


def answer_rule(name: str) -> AnswerRule:
    """The rule of that name; "llm:URL#MODEL" asks the model at an OpenAI-compatible endpoint.

    Raises ConfigError for an unknown name, MissingExtraError for a rule whose packages are not installed.
    """
    if name.startswith(LLM_PREFIX):
        client, model = open_client(name.removeprefix(LLM_PREFIX), "judge model")
        prompt = (files("vita_mctp.evaluation") / "prompts" / "answer_judge.txt").read_text(encoding="utf-8")
        digest = hashlib.sha256(prompt.encode()).hexdigest()[:8]
        version = f"llm/1 ({model}, prompt {digest}, {_VOTES} votes at temperature {_TEMPERATURE})"
        return AnswerRule("llm", version, LlmJudge(model, prompt, client))
    if name == "exact":
        return AnswerRule(name, "exact/1", _exact)
    if name == "has_answer":
        return AnswerRule(name, f"has_answer/1 ({versions('regex')})", _has_answer)
    if name == "contains":
        require(f"the rule {name}", "eval", "word2number")
        return AnswerRule(name, f"contains/1 ({versions('word2number')})", _contains)
    known = ", ".join((*ANSWER_RULES, f"{LLM_PREFIX}URL#MODEL"))
    raise ConfigError(f"there is no answer rule {name!r}; choose one of {known}")
