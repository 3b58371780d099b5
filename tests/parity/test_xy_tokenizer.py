"""XY-Tokenizer against its reference: every stage of encoding and decoding, long recordings, all names at full size."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vita_mctp.codecs.registry import audio_decoder
from vita_mctp.codecs.xy_tokenizer import XyDecoder, XyTokenizer, load_network, training_buffers
from vita_mctp.codecs.xy_tokenizer.networks import XyConfig, XyNetwork, sinusoids
from vita_mctp.types import AudioCodes, Wave


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Path]:
    """A folder with the tiny model of a folder of goldens and its sizes."""

    @cache
    def folder(golden: Path) -> Path:
        made = tmp_path_factory.mktemp("xy")
        (made / "model.safetensors").symlink_to(golden / "model.safetensors")
        (made / "config.json").write_text(json.dumps(json.loads((golden / "index.json").read_text())["config"]))
        return made

    return folder


def codes_of(codes: Tensor, decoder: XyDecoder | XyTokenizer) -> AudioCodes:
    return AudioCodes(codes.T.long().numpy(), decoder.codebook_size, decoder.frame_rate, decoder.name)


@torch.inference_mode()
def test_every_stage_of_encoding(xy_case: Any, opened: Callable[[Path], Path]) -> None:
    given, tokenizer = xy_case.tensors, XyTokenizer.from_folder(opened(xy_case.folder))
    wave, network = Wave((given["audio_int16"].float() / 32768).numpy(), 16_000), tokenizer.network
    mel, states = tokenizer.features(wave.samples)
    semantic, acoustic = (
        encoder(mel[None], states) for encoder in (network.semantic_encoder, network.acoustic_encoder)
    )
    adapted = network.semantic_encoder_adapter(semantic)
    packed = network.pack(mel, states)
    ids, distances = network.quantizer.distances(packed)
    best = distances.square().topk(2, largest=False).values

    for key in [key for key in given if key.startswith("log_mel")]:  # recorded a few frames further than is used
        every = int(key.removeprefix("log_mel_every")) if "every" in key else 1
        known = mel[:, ::every].shape[1]
        torch.testing.assert_close(mel[:, ::every], given[key][:, :known], rtol=0, atol=1e-4)
    xy_case.check("semantic", semantic[0].T)
    xy_case.check("semantic_adapter", adapted[0].T)
    xy_case.check("acoustic", acoustic[0].T)
    xy_case.check("pre_rvq", network.pre_rvq_adapter(torch.cat([adapted, acoustic], 2))[0].T)
    xy_case.check("downsample", packed[0].T)
    xy_case.check("z", network.quantizer.input_proj(packed.transpose(1, 2))[0])
    xy_case.check("gap", (best[..., 1] - best[..., 0]).T)
    xy_case.check("zq", network.quantizer.decode(ids)[0].T)
    xy_case.check("codes", torch.from_numpy(tokenizer.encode(wave).ids).T)


@torch.inference_mode()
def test_every_stage_of_decoding(xy_case: Any, opened: Callable[[Path], Path]) -> None:
    decoder = XyDecoder.from_folder(opened(xy_case.folder))
    network, codes = decoder.network, xy_case.tensors["codes"]
    quantised = network.quantizer.decode(codes.T.long())
    adapted = network.post_rvq_adapter(quantised)

    xy_case.check("dec_zq", quantised[0].T)
    xy_case.check("dec_post_rvq", adapted[0].T)
    xy_case.check("dec_mel", network.acoustic_decoder(network.upsample(adapted))[0])
    xy_case.check("dec_wave", torch.from_numpy(decoder.decode_whole(codes_of(codes, decoder)).samples))


def test_a_recording_longer_than_a_window(
    xy_long_case: Any, opened: Callable[[Path], Path], two_tones: Callable[..., Tensor]
) -> None:
    given, folder = xy_long_case.tensors, opened(xy_long_case.folder)
    count = int(xy_long_case.index["files"][xy_long_case.name]["what"].split()[0])
    tokenizer, decoder = XyTokenizer.from_folder(folder), XyDecoder.from_folder(folder)
    codes = tokenizer.encode(Wave((two_tones(given, count).float() / 32768).numpy(), 16_000))

    xy_long_case.check("codes", torch.from_numpy(codes.ids).T)
    xy_long_case.check("dec_wave", torch.from_numpy(decoder.decode_whole(codes).samples))


def test_windows_of_our_own(xy_windowed_case: Any, opened: Callable[[Path], Path]) -> None:
    entry = xy_windowed_case.index["files"][xy_windowed_case.name]
    windows = {key: entry[key] for key in ("hop", "left", "right")}
    decoder = audio_decoder("xy_tokenizer", opened(xy_windowed_case.folder), options={"windows": windows})
    assert isinstance(decoder, XyDecoder)
    wave = decoder.decode(codes_of(xy_windowed_case.tensors["codes"], decoder))
    xy_windowed_case.check("dec_wave", torch.from_numpy(wave.samples))


def test_positions(xy_positions: Any) -> None:
    rows = xy_positions.tensors["row"].long()
    table = sinusoids(1500, xy_positions.tensors["value"].shape[1])
    xy_positions.check("value", table[rows])


def test_the_released_tensors_by_name_and_shape(xy_full_size: Path) -> None:
    listed = json.loads(xy_full_size.read_text())
    config = XyConfig.from_folder(xy_full_size.parent)
    assert config == XyConfig()
    with torch.device("meta"):
        network = XyNetwork(config)
    tensors = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    found = {name: tuple(size for size in shape if size != "bool") for name, shape in listed.items()}
    assert tensors | training_buffers(config.quantizer_kwargs) == found
    assert sum(map(prod, found.values())) == 534_066_522
    assert sum(parameter.numel() for parameter in network.parameters()) == 519_621_074


def test_half_of_the_network_is_loaded_by_each(xy_windowed_case: Any, opened: Callable[[Path], Path]) -> None:
    folder = opened(xy_windowed_case.folder)
    _, whole = load_network(folder)
    halves = [XyTokenizer.from_folder(folder).network, XyDecoder.from_folder(folder).network]
    names = [set(half.state_dict()) for half in halves]
    assert names[0] | names[1] == set(whole.state_dict())
    assert {name.split(".")[0] for name in names[0] & names[1]} == {"quantizer"}
