"""The mixtures of the paper's Table 2, and the page that says where their sets come from."""

from __future__ import annotations

from pathlib import Path

import pytest

from vita_mctp.data.hub import HUB_SETS
from vita_mctp.data.mixture import Mixture

FOLDER = Path(__file__).parents[2] / "data_mixtures"
SPEECH_QA = {"voice_assistant_400k", "audioqa_1m"}


@pytest.mark.parametrize("stage", [1, 2, 3, 4])
def test_each_stage_holds_every_set_at_its_ratio(stage: int) -> None:
    ratios = {each.name: each.ratio for each in Mixture.from_file(FOLDER / f"stage{stage}.yaml").sets}
    asked = {name: ratios.pop(name) for name in SPEECH_QA}
    assert len(ratios) == 12 + 4 + 9 + 8
    assert set(asked.values()) == {2.0 if stage == 4 else 0.0}
    assert set(ratios.values()) == {0.05 if stage == 4 else 1.0}


def test_the_sources_tell_of_every_set_and_of_whether_it_streams() -> None:
    lines = [line.split(" | ") for line in (FOLDER / "SOURCES.md").read_text().splitlines() if line.startswith("| ")]
    rows = {cells[0].strip("| "): cells for cells in lines if cells[0] != "| name"}
    mixtures = ("stage1", "vocalnet", "vocalnet_m2", "vocalnet_m2_stage1")
    assert set(rows) == {each.name for name in mixtures for each in Mixture.from_file(FOLDER / f"{name}.yaml").sets}
    assert {name for name, cells in rows.items() if cells[-1].startswith("yes")} == set(HUB_SETS)
    for name, hub_set in HUB_SETS.items():
        assert all(part.repository in rows[name][5] for part in hub_set.parts), name


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_mixture_is_read(path: Path) -> None:
    assert Mixture.from_file(path).sets
