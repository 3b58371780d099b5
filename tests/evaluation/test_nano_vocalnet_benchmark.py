"""The page of a nano VocalNet: every manner of both talkers has a row, beside the judge's floor."""

from pathlib import Path

import pytest

from vita_mctp.checkpoints.opening import open_model
from vita_mctp.errors import ConfigError
from vita_mctp.nano.talker_benchmark import evaluate_nano_vocalnet
from vita_mctp.nano.talker_training import TalkerRecipe, open_lessons, ship

SIZES = {"hidden_size": 16, "ffn_size": 24, "num_heads": 2, "mtp_levels": 2}
TALKERS = {
    "vocalnet": (SIZES | {"projector_layers": 1, "backbone_layers": 1, "text_chunk": 2, "speech_chunk": 6}, 8),
    "m2": (SIZES | {"num_layers": 1, "fusion_size": 12}, 2),
}


@pytest.mark.parametrize("kind", TALKERS)
def test_every_manner_has_a_row(kind: str, tmp_path: Path) -> None:
    sizes, manners = TALKERS[kind]
    recipe = TalkerRecipe.parse({"kind": kind, "talker": sizes}, "the test")
    talker = open_lessons(recipe, {}).new_talker(recipe)
    for head in (talker.heads[0],) if kind == "m2" else (talker.output_proj,):
        head.bias.data[talker.sizes.eos] = 1.0  # so that it ends
    folder = ship(open_model("nano"), talker, kind, tmp_path / "final")
    evaluate_nano_vocalnet(str(folder), 1, tmp_path, tmp_path / "page.md")
    page = (tmp_path / "page.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("|")][2:]
    assert len(rows) == 1 + manners and all(row.count("|") == 8 for row in rows)
    assert "to 1 of them" in page, "the thinker answers rightly, whatever the talker makes of it"


def test_a_model_without_a_talker_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no talker"):
        evaluate_nano_vocalnet("nano", 1, tmp_path, tmp_path / "page.md")
