"""Every way of getting a recipe wrong is one ConfigError that names the file and the key."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from vita_mctp.cli import main
from vita_mctp.errors import ConfigError, MissingExtraError
from vita_mctp.training import arguments
from vita_mctp.training.recipe import load_recipe

STAGES = Path(__file__).parents[2] / "stages"
WHOLE = {
    "name": "stage",
    "stage": 4,
    "num_mctp_blocks": 10,
    "freeze_backbone": False,
    "parent": "stage3",
    "backbone": "qwen2.5-7b",
    "max_steps": 100,
    "precision": "bf16",
    "attention": "sdpa",
    "deepspeed": "deepspeed/zero2.json",
    "gradient_checkpointing": True,
    "detach": "always",
    "label_shift": "per_sample",
    "seed": 1,
    "log_interval": 10,
    "checkpoint_interval": 10,
    "eval_interval": 0,
    "data": {
        "mixture": "mixture.yaml",
        "root": "tokens",
        "row_length": 64,
        "tokens_per_step": 128,
        "rows_per_forward": 1,
        "interleave_ratio": [1, 10],
    },
    "optimizer": {
        "lr": 0.1,
        "name": "adamw",
        "mctp_lr_multiplier": 1.0,
        "betas": [0.9, 0.95],
        "eps": 0.1,
        "weight_decay": 0.1,
        "decay_norms": True,
        "grad_clip": 1.0,
    },
    "schedule": {"kind": "wsd", "warmup_ratio": 0.1, "decay_fraction": 0.5, "final_lr_fraction": 0.1},
}
WRONG: tuple[Any, ...] = ("no such value", -1, [], {"surplus": 1}, float("nan"), True)


def leaves(values: dict[str, Any], above: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = []
    for key, value in values.items():
        found += leaves(value, (*above, key)) if isinstance(value, dict) else [(*above, key)]
    return found


def changed(path: tuple[str, ...], value: Any) -> dict[str, Any]:
    """The whole recipe with one value changed, or with a key added."""
    values = copy.deepcopy(WHOLE)
    section = values
    for part in path[:-1]:
        section = section[part]
    section[path[-1]] = value
    return values


def is_right(path: tuple[str, ...], value: Any) -> bool:
    """Wrong values that happen to be right where they are put."""
    text = {"name", "parent", "deepspeed", "mixture", "root"}
    truth = {"gradient_checkpointing", "decay_norms"}
    return (path[-1] in text and isinstance(value, str)) or (path[-1] in truth and value is True)


def is_number(path: tuple[str, ...]) -> bool:
    value: Any = WHOLE
    for part in path:
        value = value[part]
    return isinstance(value, int | float) and not isinstance(value, bool)


MUTATIONS = [(path, value) for path in leaves(WHOLE) for value in WRONG if not is_right(path, value)]
MUTATIONS += [((*path[:-1], path[-1] + "_"), 1) for path in leaves(WHOLE)]


def test_there_are_enough() -> None:
    assert len(MUTATIONS) > 150


@pytest.mark.parametrize(("path", "value"), MUTATIONS, ids=str)
def test_a_wrong_value_or_key_is_named(path: tuple[str, ...], value: Any, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(changed(path, value)))
    with pytest.raises(ConfigError) as error:
        load_recipe(file)
    message = str(error.value)
    assert str(file) in message and path[-1].rstrip("_") in message and "\n" not in message


def test_the_whole_one_is_right(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(WHOLE))
    assert load_recipe(file).num_steps == 100


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "wanted a mapping"),
        ("- a\n- b", "wanted a mapping"),
        ("\0", "not YAML"),
        ("a: &x [*x", "not YAML"),
        ("name: &x [a, a]\nparent: [*x, *x]", r"alias \*x"),
        ("name: !!binary a", "tag"),
        ("seed: 1\nseed: 2", "seed occurs twice"),
        ("data: {root: a, root: b}", "root occurs twice"),
        ("base: ../other.yaml", "the name of a recipe in the same folder"),
        ("base: 3", "the name of a recipe in the same folder"),
        ("base: recipe.yaml", "is built on this recipe itself"),
        ("base: absent.yaml", r"cannot read .*absent\.yaml"),
        ("base: other.yaml", "wanted a mapping"),
    ],
)
def test_files_and_bases_that_do_not_work(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(text)
    (tmp_path / "other.yaml").write_text("just a text")
    with pytest.raises(ConfigError, match=words):
        load_recipe(tmp_path / "recipe.yaml")


@pytest.mark.parametrize("setting", ["seed", "=1", "data..root=1", "seed=[", "seed=many", "nonsense=1", "data=1"])
def test_a_wrong_setting_is_named(setting: str) -> None:
    with pytest.raises(ConfigError, match=r"seed|=1|data|nonsense"):
        load_recipe(STAGES / "stage4_sft.yaml", [setting])


@pytest.mark.parametrize("name", ["../evil", "/evil", "a/b", "..", ".", "", "a\0b", "a" * 300])
def test_a_name_that_is_no_folder_within_out_is_refused(name: str, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(WHOLE | {"name": name}))
    with pytest.raises(ConfigError, match="name: got"):
        load_recipe(file)


HUGE = [path for path in leaves(WHOLE) if is_number(path)]


@pytest.mark.parametrize("path", HUGE, ids=str)
def test_sizes_beyond_any_machine_are_refused(path: tuple[str, ...], tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(changed(path, 10**30)))
    with pytest.raises(ConfigError, match=path[-1]):
        load_recipe(file)
    if path[-1] != "seed":
        file.write_text(yaml.safe_dump(changed(path, 10**12)))
        with pytest.raises(ConfigError, match=path[-1]):
            load_recipe(file)


@pytest.mark.parametrize("size", ["hidden_size", "num_layers", "num_heads", "intermediate_size", "num_audio_codes"])
def test_a_model_beyond_any_machine_is_refused(size: str) -> None:
    smoke = STAGES / "smoke" / "stage1_alignment.yaml"
    with pytest.raises(ConfigError, match=size):
        load_recipe(smoke, [f"model.{size}={10**12}"])


@pytest.mark.parametrize("betas", ["[1, 2]", "[0.9, 1.0]", "[-0.1, 0.9]", "[0.9]", "[0.9, 0.9, 0.9]"])
def test_betas_that_do_not_converge_are_refused(betas: str) -> None:
    with pytest.raises(ConfigError, match=r"optimizer\.betas"):
        load_recipe(STAGES / "stage4_sft.yaml", [f"optimizer.betas={betas}"])


@pytest.mark.parametrize("written", ["1e-3", "1E-3", "1.0e-3", "+1e-3", "0.001", "10e-4", ".1e-2"])
def test_a_rate_is_a_number_however_it_is_written(written: str, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(WHOLE).replace("lr: 0.1", f"lr: {written}"))
    assert load_recipe(file).optimizer.lr == pytest.approx(1e-3)
    assert load_recipe(STAGES / "stage4_sft.yaml", [f"optimizer.lr={written}"]).optimizer.lr == pytest.approx(1e-3)


def test_trackers_are_those_of_the_trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ["deepspeed=null", "data.tokens_per_step=4096", "data.row_length=4096", "report_to=[trackio]"]
    recipe = load_recipe(STAGES / "stage4_sft.yaml", settings)
    monkeypatch.setattr(arguments, "find_spec", lambda name: None if name == "trackio" else object())
    with pytest.raises(MissingExtraError, match="pip install trackio"):
        arguments.training_arguments(recipe, tmp_path, STAGES)
    monkeypatch.setattr(arguments, "find_spec", lambda _: object())
    assert arguments.training_arguments(recipe, tmp_path, STAGES).report_to == ["trackio"]


def test_nano_takes_neither_plan_nor_settings(capsys: pytest.CaptureFixture[str]) -> None:
    for option in (["--plan"], ["--set", "seed=1"]):
        assert main(["train", "nano", *option]) == 2
        assert "want one, as" in capsys.readouterr().err


def test_settings_change_what_they_name() -> None:
    recipe = load_recipe(STAGES / "stage4_sft.yaml", ["optimizer.lr=4e-5", "data.row_length=4096", "deepspeed=null"])
    assert recipe.optimizer.lr == 4e-5 and recipe.data.row_length == 4096 and recipe.deepspeed is None
    assert recipe.optimizer.weight_decay == 0.1 and recipe.data.tokens_per_step == 524_288


@pytest.mark.parametrize("file", sorted(STAGES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_recipe_reads_and_its_files_are_there(file: Path) -> None:
    recipe = load_recipe(file)
    assert recipe.name == file.stem and (STAGES / recipe.data.mixture).is_file()
    assert recipe.deepspeed is None or (STAGES / recipe.deepspeed).is_file()
    assert recipe.parent is None or recipe.parent in {path.stem for path in STAGES.glob("*.yaml")}
    size = "0.5b" if "0.5b" in file.stem else "7b"
    assert recipe.backbone == f"qwen2.5-{size}"
