"""A recording becomes a voice by the folder's two ONNX models, here stand-ins of a few nodes, and is spoken in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import load_file

from vita_mctp.audio.io import write_wave
from vita_mctp.cli import main
from vita_mctp.codecs.cosyvoice2.voice import OnnxModels, prepare_voice, prompt_samples, trim
from vita_mctp.codecs.registry import audio_decoder
from vita_mctp.errors import AudioError, CheckpointError
from vita_mctp.types import AudioBlock, Wave

TINY = Path(__file__).parents[1] / "parity" / "goldens" / "cosyvoice2"


@pytest.fixture
def folder(cosyvoice2_folder: Callable[..., Path]) -> Path:
    """A decoder without a voice; its tokenizer gives the loudest of 96 bands of each fourth frame."""
    made = cosyvoice2_folder(TINY, {})
    (made / "voice.safetensors").unlink()
    float_, int32 = TensorProto.FLOAT, TensorProto.INT32
    ends = {"from": [0, 0], "to": [96, 1 << 30], "axes": [1, 2], "step": [1, 4]}
    speech = helper.make_graph(
        [
            helper.make_node("Slice", ["feats", *ends], ["some"]),
            helper.make_node("ArgMax", ["some"], ["ids"], axis=1, keepdims=0),
        ],
        "speech_tokenizer",
        [
            helper.make_tensor_value_info("feats", float_, [1, 128, "frames"]),
            helper.make_tensor_value_info("feats_length", int32, [1]),
        ],
        [helper.make_tensor_value_info("ids", TensorProto.INT64, [1, "codes"])],
        [numpy_helper.from_array(np.array(value, np.int64), name) for name, value in ends.items()],
    )
    spread = np.random.default_rng(0).standard_normal((80, 192)).astype(np.float32)
    speaker = helper.make_graph(
        [
            helper.make_node("Abs", ["input"], ["sizes"]),
            helper.make_node("ReduceMean", ["sizes", "time"], ["mean"], keepdims=0),
            helper.make_node("MatMul", ["mean", "spread"], ["output"]),
        ],
        "campplus",
        [helper.make_tensor_value_info("input", float_, [1, "frames", 80])],
        [helper.make_tensor_value_info("output", float_, [1, 192])],
        [numpy_helper.from_array(np.array([1]), "time"), numpy_helper.from_array(spread, "spread")],
    )
    for name, graph in (("speech_tokenizer_v2.onnx", speech), ("campplus.onnx", speaker)):
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
        onnx.save(model, made / name)
    return made


def spoken(seconds: float, rate: int = 24_000) -> Wave:
    steps = np.arange(int(seconds * rate))
    sound = np.sin(steps / rate * 2 * np.pi * 220) * np.sin(steps / rate * 9) * 0.5
    return Wave(sound.astype(np.float32), rate)


def test_the_command_makes_one_file_with_which_speaking_needs_no_onnx(folder: Path, tmp_path: Path) -> None:
    source, target = tmp_path / "speaker.wav", folder / "voice.safetensors"
    write_wave(source, spoken(1.0))
    assert (
        main(["convert", "voice", str(tmp_path / "speaker.wav"), str(folder), str(folder / "voice.safetensors")]) == 0
    )
    for name in ("speech_tokenizer_v2.onnx", "campplus.onnx"):
        (folder / name).unlink()
    voice = load_file(target)
    count = len(voice["codes"])
    assert 31 <= count <= 33 and voice["mel"].shape == (80, 2 * count) and voice["embedding"].shape == (192,)
    decoder = audio_decoder("cosyvoice2", folder, options={"windows": {"steps": [1]}})
    chunk, _ = decoder.decode_block(AudioBlock((1, 2, 3), 0, is_last=True), decoder.start())
    assert len(chunk.samples) == 3 * 960 and np.isfinite(chunk.samples).all()


def test_codes_and_mel_end_together(folder: Path) -> None:
    for samples in (4_000, 4_321, 9_999):
        voice = prepare_voice(Wave(spoken(1.0, 16_000).samples[:samples], 16_000), OnnxModels(folder))
        assert voice.mel.shape[1] == 2 * len(voice.codes) > 0


def test_silence_at_the_ends_goes_and_a_loud_voice_is_scaled() -> None:
    loud = spoken(1.0, 16_000).samples * 1.9
    padded = np.concatenate([np.zeros(3_000, np.float32), loud, np.zeros(5_000, np.float32)])
    assert abs(len(trim(padded)) - len(loud)) <= 2 * 440
    samples = prompt_samples(Wave(padded, 16_000))
    assert np.abs(samples).max() == pytest.approx(0.8) and not samples[-4_800:].any()


@pytest.mark.parametrize("wave", [Wave(np.zeros(0, np.float32), 16_000), spoken(1.0, 8_000)])
def test_what_is_no_voice_is_refused(wave: Wave, folder: Path) -> None:
    with pytest.raises(AudioError, match="16000 Hz or more"):
        prepare_voice(wave, OnnxModels(folder))


@pytest.mark.parametrize("content", [None, b"", b"no model"])
def test_a_model_that_is_missing_or_damaged_is_named(folder: Path, content: bytes | None) -> None:
    path = folder / "campplus.onnx"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"campplus\.onnx.*download") as caught:
        OnnxModels(folder)
    assert "\n" not in str(caught.value)
