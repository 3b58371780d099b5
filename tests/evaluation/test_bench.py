"""The benchmarks' figures against hand-worked cases, and their commands on a model made anew."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from naive import generate_naive

from vita_mctp.bench import Machine, Study, first_audio, measure_machine, models
from vita_mctp.bench.models import LoadedModel, ModelChoice, open_language_model, random_language_model
from vita_mctp.bench.modes import Traffic, bench_modes, bench_timeline, flops, generate_plain, request_of
from vita_mctp.bench.render import _table
from vita_mctp.bench.streams import bench_scaling
from vita_mctp.cli import main
from vita_mctp.decoding.modes import MODES, Mode, parse_mode
from vita_mctp.errors import ConfigError, OutOfMemoryError
from vita_mctp.models.vita import VitaMctpConfig, VitaMctpForCausalLM
from vita_mctp.types import AudioCodes

MACHINE = Machine("cpu", "float32", bytes_per_second=1e9, flops_per_second=1e12)
SIZES: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    config = VitaMctpConfig(num_hidden_layers=5, num_nextn_predict_layers=3, tie_word_embeddings=True, **SIZES)
    return LoadedModel("tiny", random_language_model(config, ModelChoice(random="tiny")))


def test_a_random_model_is_an_ordinary_one_of_its_shape(loaded: LoadedModel) -> None:
    ordinary = VitaMctpForCausalLM(loaded.model.config)
    assert not any(weight.is_meta for weight in loaded.model.state_dict().values())
    assert loaded.model.lm_head.weight is loaded.model.model.embed_tokens.weight
    ordinary.load_state_dict(loaded.model.state_dict())
    ids = torch.arange(12)[None]
    positions = torch.arange(12)[None]
    embeds = ordinary.embed(ids)
    with torch.inference_mode():
        torch.testing.assert_close(
            ordinary.eval().backbone(embeds, positions), loaded.model.backbone(embeds, positions)
        )


def test_the_same_seed_draws_the_same_model(loaded: LoadedModel) -> None:
    again = random_language_model(loaded.model.config, ModelChoice(random="tiny"))
    other = random_language_model(loaded.model.config, ModelChoice(random="tiny", seed=1))
    assert torch.equal(again.mtp_projs[2].weight, loaded.model.mtp_projs[2].weight)
    assert not torch.equal(other.mtp_projs[2].weight, loaded.model.mtp_projs[2].weight)


def test_a_shape_without_room_is_refused_before_it_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vita_mctp.checkpoints.loading.memory_available", lambda device: 10**9)
    with pytest.raises(OutOfMemoryError, match=r"random 72b .* 1[67]\d\.\d GB .* 1\.00 GB are free"):
        open_language_model(ModelChoice(random="72b", dtype=torch.bfloat16))


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"'8b'.*0\.5b, 7b, 72b"):
        models.language_model("8b")
    with pytest.raises(ConfigError, match="glm4_voice_small"):
        models.random_decoder("hifigan", torch.device("cpu"))
    with pytest.raises(ConfigError, match="no Euler steps"):
        models.open_decoders(ModelChoice(), ("nano",), (1,), ())


def test_a_step_reads_its_own_layers_the_head_and_what_was_said(loaded: LoadedModel) -> None:
    traffic, model = Traffic.of(loaded), loaded.model
    layer = sum(weight.numel() for weight in model.model.layers[0].parameters())
    head, block = 50 * 32, layer + 2 * 32 * 32 + 2 * 32
    assert traffic.weights == (4 * (2 * layer + head), *[4 * (block + head)] * 3)
    per_layer = 2 * 2 * (32 // 4) * 4
    assert traffic.cache_per_token == (2 * per_layer, per_layer, per_layer, per_layer)
    assert traffic.step(0, seen=10) == traffic.weights[0] + 10 * 2 * per_layer
    assert traffic.step(2, seen=10) == traffic.weights[2] + 8 * per_layer
    one_cycle = [traffic.step(0, 5), traffic.step(1, 6), traffic.step(2, 7), traffic.step(0, 8)]
    assert traffic.run(Mode("1,2", (1, 2)), prefill=5, tokens=4) == sum(one_cycle)


def test_quantised_layers_are_read_small(loaded: LoadedModel) -> None:
    full, small = Traffic.of(loaded), Traffic.of(LoadedModel("tiny", loaded.model, quantize="int8"))
    assert full.weights[0] / 4 < small.weights[0] < full.weights[0]
    assert small.cache_per_token == full.cache_per_token


def test_a_limit_is_the_longer_of_moving_and_computing() -> None:
    machine = Machine("cpu", "float32", bytes_per_second=10.0, flops_per_second=100.0)
    assert machine.seconds(50) == 5 and machine.seconds(50, 200) == 5 and machine.seconds(50, 800) == 8


def test_what_is_measured_of_a_machine_is_possible() -> None:
    machine = measure_machine(torch.device("cpu"), torch.float32, copy_bytes=2**22)
    assert 1e8 < machine.bytes_per_second < 1e13 and 1e8 < machine.flops_per_second < 1e15


def test_a_modes_speed_follows_from_its_time(loaded: LoadedModel) -> None:
    modes = (MODES["turbo"], MODES["vanilla"])
    study = bench_modes(loaded, MACHINE, modes=modes, tokens=30, prefill=8, runs=3)
    assert study.column("tokens") == [30, 30]
    assert study.column("speed-up")[1] == 1.0
    totals, speeds, limits = (study.column(name) for name in ("total", "tokens a second", "limit"))
    assert all(total * speed == pytest.approx(30) for total, speed in zip(totals, speeds, strict=True))  # type: ignore[operator]
    assert limits[0] > limits[1]  # type: ignore[operator]


@pytest.mark.parametrize("counts", ["vanilla", "balance", "boost", "turbo", "2,1,1,5", "1,0,0,3", "verified"])
def test_the_plain_loop_makes_the_slow_twins_tokens(loaded: LoadedModel, counts: str) -> None:
    request = request_of(loaded, parse_mode(counts, 3), 8, 30)
    assert generate_plain(loaded.model, request) == list(generate_naive(loaded.model, request).ids)


def test_the_engine_is_timed_beside_the_plain_loop(loaded: LoadedModel) -> None:
    modes = (MODES["boost"], MODES["verified"])
    study = bench_modes(loaded, MACHINE, modes=modes, tokens=30, prefill=8, runs=2, baseline=True)
    assert study.column("same ids") == [30, 30]
    for row in study.rows:
        assert row["over the plain loop"] == pytest.approx(row["tokens a second"] / row["plain loop"])  # type: ignore[operator]


def test_flops_count_what_a_mode_calls(loaded: LoadedModel) -> None:
    layer = 32 * 32 * 2 + 2 * 32 * 16 + 32 + 2 * 16 + 3 * 32 * 48 + 2 * 32
    rows, head = 8 + 10, 2 * 32 * 50 * 10
    attention = 2 * 32 * rows * rows
    assert flops(loaded, MODES["vanilla"], 8, 10) == 2 * (2 * layer * rows + attention) + head
    block = layer + 2 * 32 * 32 + 2 * 32
    assert flops(loaded, Mode("1,1", (1, 1)), 8, 10) == 2 * (2 * layer + block) * rows + 3 * attention + head


def test_tokens_beyond_the_positions_are_said(loaded: LoadedModel) -> None:
    study = bench_modes(loaded, MACHINE, modes=[MODES["turbo"]], tokens=100, prefill=8)
    assert study.column("tokens") == [56] and "56 fill the model's 64" in study.notes[0]
    with pytest.raises(ConfigError, match="64 positions"):
        bench_modes(loaded, MACHINE, modes=[MODES["turbo"]], tokens=1, prefill=64)


def test_a_timeline_names_each_tokens_source(loaded: LoadedModel) -> None:
    mode = Mode("1,3,2,1", (1, 3, 2, 1))
    study = bench_timeline(loaded, MACHINE, modes=[mode], tokens=7, prefill=4)
    main, (one, two, three) = "backbone", [f"block {k}" for k in range(3)]
    assert study.column("source") == [main, one, two, three, main, main, one]
    moments = study.column("came after")
    assert moments == sorted(moments) and study.column("token") == [*range(1, 8)]  # type: ignore[type-var]
    backbone, blocks = study.panels[0].lines
    assert backbone.ys == [1, 5, 6] and blocks.ys == [2, 3, 4, 7]


def test_scaling_covers_history_batch_and_blocks_and_says_what_it_left_out(loaded: LoadedModel) -> None:
    sizes = {"histories": (4, 30, 60), "batches": (1, 3)}
    study = bench_scaling(loaded, MACHINE, mode=MODES["turbo"], tokens=11, prefill=4, **sizes)
    assert study.column("value") == [4, 30, 1, 3, 0, 1, 2, 3]
    least = study.column("least")
    assert least[1] > least[0] == least[2] < least[3]  # type: ignore[operator]
    assert any("a history of 60" in note for note in study.notes)


def test_measuring_changes_no_weight(loaded: LoadedModel) -> None:
    before = {name: weight.clone() for name, weight in loaded.model.state_dict().items()}
    bench_modes(loaded, MACHINE, modes=[MODES["boost"]], tokens=12, prefill=4)
    bench_scaling(loaded, MACHINE, mode=MODES["turbo"], tokens=4, histories=(4,), batches=(2,), prefill=4)
    assert all(torch.equal(before[name], weight) for name, weight in loaded.model.state_dict().items())


def test_all_rows_have_the_same_columns() -> None:
    with pytest.raises(ValueError, match="a row has a; wanted: a, b"):
        Study("x", "X", [{"a": 1, "b": 2}, {"a": 1}], {}, ())


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "-"),
        ("exact", "exact"),
        (4096, "4,096"),
        (1234.56, "1,235"),
        (12.345, "12.3"),
        (0.012345, "0.012"),
        (0.0, "0.00"),
    ],
)
def test_a_fraction_shows_three_digits(value: str | float | None, shown: str) -> None:
    page = _table(Study("x", "X", [{"a": value}], {"a": "ms"}, ()))
    assert page.splitlines() == ["| a, ms |", "| --- |", f"| {shown} |"]


@pytest.fixture
def small_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vita_mctp.bench.measure_machine", lambda device, dtype: MACHINE)


@pytest.mark.usefixtures("small_copies")
@pytest.mark.parametrize(
    ("arguments", "rows"),
    [
        (["modes", "--tokens", "14", "--modes", "vanilla", "boost"], 2),
        (["first-audio", "--runs", "2", "--warm-up", "1", "--modes", "1,10,4,10"], 5),
        (["timeline", "--tokens", "6", "--modes", "turbo"], 6),
        (["scaling", "--tokens", "3", "--histories", "9", "--batches", "1", "2"], 6),
        (["streams", "--tokens", "40", "--streams", "1", "3", "--modes", "boost"], 2),
        (["drafts", "--runs", "1", "--prefill", "6"], 8),
        (["decoder", "--seconds", "4", "--streams", "1", "2"], 2),
    ],
)
def test_every_study_prints_a_table_and_writes_json_and_a_plot(
    arguments: list[str], rows: int, tiny_speech_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    target, plot = tmp_path / "out.json", tmp_path / "out.svg"
    options = ["--model", str(tiny_speech_folder), "--json", str(target), "--plot", str(plot)]
    assert main(["bench", *arguments, *options]) == 0
    printed = capsys.readouterr().out
    table = [line for line in printed.splitlines() if line.startswith("| ")]
    assert len(table) == rows + 2 and "load average" in printed and "random" not in printed
    found = json.loads(target.read_text())
    assert found["benchmark"] == arguments[0] and len(found["rows"]) == rows and not found["random_weights"]
    assert found["machine"]["bytes_per_second"] == 1e9 and {"commit", "threads", "load"} <= set(found["environment"])
    assert ElementTree.parse(plot).getroot().tag.endswith("svg")


@pytest.mark.usefixtures("small_copies")
def test_the_table_of_a_gpu_is_made_on_a_cpu_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--device", "cpu", "--dtype", "float32", "--json", str(tmp_path / "gpu.json")]
    sizes = ["--tokens", "40", "--streams", "1", "2", "--modes", "vanilla", "turbo"]
    assert main(["bench", "gpu", "--shapes", "nano", *sizes, *where]) == 0
    rows = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    assert [(row["shape"], row["mode"], row["streams"]) for row in rows] == [
        ("random nano", mode, n) for mode in ("vanilla", "turbo") for n in (1, 2)
    ]
    assert all(row["limit"] * row["of the limit"] == pytest.approx(100 * row["tokens a second"]) for row in rows)
    assert all(row["first 11 tokens p50"] > 0 and row["peak memory"] > 0 for row in rows)


@pytest.mark.usefixtures("small_copies")
def test_random_weights_are_named_as_such(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "modes", "--random", "nano", "--tokens", "12", "--modes", "turbo"]) == 0
    printed = capsys.readouterr().out
    assert "random nano" in printed and "**Weights are random**" in printed


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["modes", "--random", "8b"], "0.5b"),
        (["modes", "--tokens", "0"], "'--tokens': '0'"),
        (["modes", "--modes", "--runs", "1"], "--modes"),
        (["modes", "--model", "nano", "--random", "7b"], "one of them"),
        (["modes", "--json", "pyproject.toml/place.json"], "folder"),
        (["modes", "--plot", "picture.gif"], ".svg or .png"),
        (["scaling", "--modes", "boost", "turbo"], "one mode"),
        (["decoder", "--steps", "2"], "no Euler steps"),
    ],
)
def test_wrong_options_end_in_one_line(arguments: list[str], word: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code: Any = main(["bench", *arguments])
    except SystemExit as stop:
        code = stop.code
    error = capsys.readouterr().err
    assert code == 2 and error.count("\n") == 1 and word in error


def test_scaling_wants_a_mode_that_begins_as_it_goes_on(loaded: LoadedModel) -> None:
    with pytest.raises(ConfigError, match="boost"):
        bench_scaling(loaded, MACHINE, mode=MODES["boost"], tokens=4, histories=(4,), batches=(2,), prefill=4)


def test_a_shape_takes_the_kernels_of_load_model() -> None:
    config = models.language_model("nano")
    config.update({"num_hidden_layers": 3, "num_nextn_predict_layers": 1, "vocab_size": 64})
    model = models.random_language_model(config, ModelChoice(attn="flex"))
    assert model.config._attn_implementation == "flex_attention"
    with pytest.raises(ConfigError, match="warp"):
        models.random_language_model(config, ModelChoice(attn="warp"))


def test_the_stages_of_a_random_model_lead_to_a_first_sound(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a narrow codec; the released one is a thousand times as large."""
    small = models.random_decoder("glm4_voice_small", torch.device("cpu"))
    codes = AudioCodes(np.arange(20), 50, Fraction(25, 2), "narrow")
    monkeypatch.setattr(first_audio, "random_decoder", lambda *_: small)
    monkeypatch.setattr(first_audio, "random_tokenizer", lambda *_: SimpleNamespace(encode=lambda wave: codes))
    monkeypatch.setattr(first_audio, "open_language_model", lambda choice: loaded)
    stages, own, asked = first_audio.open_stages(ModelChoice(random="tiny"), None)
    found = first_audio.first_sound(stages, own.device, asked, MODES["boost"])
    assert len(found.parts) == 4 and min(found.parts) > 0 and found.prompt == 20
