"""One name for one thing: the words that this project's glossary replaces are in no name and in no text."""

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

IN_NAMES = {
    "place": "index, position, path, device",
    "places": "indices, positions, paths, devices",
    "hearing": "audio tokenizer, feature extractor",
    "ears": "audio tokenizer, feature extractor",
    "listener": "transcriber, judge model",
    "figure": "metric",
    "figures": "metrics, result",
    "share": "fraction, ratio",
    "shares": "fractions, ratios",
    "told": "metrics, result",
    "session": "answer, conversation",
    "asking": "run config, options",
    "wanted": "run config, options",
    "tools": "run config, options",
    "material": "run config, options",
}
"""A word of a name in code, and what to say instead."""

IN_TEXTS = {
    r"(?<!in )(?<!take )(?<!takes )(?<!decimal )\bplaces?\b": "index, position, path, device",
    r"\b(hearing|ears)\b": "audio tokenizer, feature extractor",
    r"\blisteners?\b": "transcriber, judge model",
    r"\bfigures\b": "metrics, result",
    r"\b(a|the|whose|its|'s|same) shares?\b|\bshares? of\b": "fraction, ratio",
    r"\bMAIN\b": "level 0",
}
"""A pattern in docstrings, comments, help texts and pages, and what to say instead."""

FOREIGN = {
    "session_state",
    "allowed_session",
    "share",  # gradio's own option
    "share_memory",
    "InferenceSession",
    "SessionOptions",
}
"""Names that are another library's."""


def tracked(*patterns: str) -> list[Path]:
    listed = subprocess.run(["git", "ls-files", *patterns], cwd=ROOT, capture_output=True, text=True, check=True)
    return [path for name in listed.stdout.splitlines() if (path := ROOT / name).is_file()]


def names_in(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Names that a file gives: of classes, functions, arguments, variables and attributes assigned."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.id if isinstance(node, ast.Name) else node.attr, node.lineno


def words(name: str) -> set[str]:
    return {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)}


@pytest.mark.parametrize("path", tracked("vita_mctp/*.py"), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_name_is_a_house_word(path: Path) -> None:
    found = [
        f"{path.name}:{line}: {name}: say {IN_NAMES[word]}"
        for name, line in names_in(ast.parse(path.read_text()))
        if name not in FOREIGN
        for word in words(name) & IN_NAMES.keys()
    ]
    assert found == []


@pytest.mark.parametrize(
    "path",
    tracked("vita_mctp/*.py", "docs/*.md", "*.md", "stages/*.yaml", "data_mixtures/*"),
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_no_text_says_a_house_word(path: Path) -> None:
    if path.name in ("decisions.md", "CHANGELOG.md"):  # these tell what was, in the words of then
        return
    found = [
        f"{path.name}:{number}: {match.group(0)!r}: say {instead}"
        for number, line in enumerate(path.read_text().splitlines(), 1)
        for pattern, instead in IN_TEXTS.items()
        for match in re.finditer(pattern, line)
    ]
    assert found == []
