"""The released VocalNets on the meta device: their tensors' names, shapes and number, as published in their configs."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from vita_mctp.models.registry import family_of
from vita_mctp.models.vocalnet.sizes import TalkerSizes
from vita_mctp.models.vocalnet.talkers import make_talker

WHISPER_LARGE_V3 = {"d_model": 1280, "encoder_layers": 32, "encoder_attention_heads": 20, "encoder_ffn_dim": 5120}
ENCODER_PARAMETERS = 636_968_960
LLAMA, QWEN = "omni_speech2s_llama", "omni_speech2s_qwen"
THINKERS: dict[str, tuple[str, dict[str, Any], int, int]] = {
    "1B": (
        LLAMA,
        {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32}
        | {"vocab_size": 128256, "num_key_value_heads": 8, "tie_word_embeddings": True, "head_dim": 64},
        8192,
        2_722_499_038,
    ),
    "8B": (
        LLAMA,
        {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32}
        | {"vocab_size": 128256, "num_key_value_heads": 8, "tie_word_embeddings": False},
        16384,
        11_829_907_934,
    ),
    "7B": (
        QWEN,
        {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28}
        | {"vocab_size": 152064, "num_key_value_heads": 4, "tie_word_embeddings": False},
        14336,
        10_698_610_654,
    ),
}
TALKER_PARTS = {
    "1B": (13_445_120, 134_225_920, 268_451_840, 13_451_685, 402_833_465),
    "7B": (23_528_960, 411_056_128, 822_112_256, 23_535_525, 1_145_335_865),
    "8B": (26_890_240, 536_887_296, 1_073_774_592, 26_896_805, 1_476_722_745),
}


def layer_shapes(hidden: int, inner: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {f"self_attn.{part}_proj.weight": (hidden, hidden) for part in "qkvo"}
    shapes |= {f"mlp.{part}_proj.weight": (inner, hidden) for part in ("gate", "up")}
    shapes |= {"mlp.down_proj.weight": (hidden, inner)}
    return shapes | {f"{part}_layernorm.weight": (hidden,) for part in ("input", "post_attention")}


@pytest.mark.parametrize("name", THINKERS)
def test_a_released_talkers_tensors(name: str) -> None:
    _, sizes, inner, _ = THINKERS[name]
    hidden, rows = sizes["hidden_size"], 6565
    with torch.device("meta"):
        talker = make_talker(TalkerSizes(hidden_size=hidden, ffn_size=inner, num_heads=32))
    stacks = [f"encode_layers.{i}." for i in range(2)] + [f"decode_layers.{i}." for i in range(4)]
    stacks += [f"mtp_layers.{i}.decoder_layer." for i in range(5)]
    wanted = {prefix + key: shape for prefix in stacks for key, shape in layer_shapes(hidden, inner).items()}
    wanted |= {"embedding.weight": (rows, hidden), "norm.weight": (hidden,)}
    for head in ("", *(f"mtp_layers.{i}." for i in range(5))):
        wanted |= {f"{head}output_proj.weight": (rows, hidden), f"{head}output_proj.bias": (rows,)}
    wanted |= {f"mtp_layers.{i}.norm_final.weight": (hidden,) for i in range(5)}
    assert len(wanted) == 118
    assert {key: tuple(tensor.shape) for key, tensor in talker.state_dict().items()} == wanted
    prefixes = ("embedding.", "encode_layers.", "decode_layers.", "output_proj.", "mtp_layers.")
    counts = [sum(p.numel() for key, p in talker.named_parameters() if key.startswith(part)) for part in prefixes]
    assert tuple(counts) == TALKER_PARTS[name]


@pytest.mark.parametrize("name", THINKERS)
def test_a_whole_released_models_parameters(name: str) -> None:
    kind, sizes, inner, total = THINKERS[name]
    family = family_of(kind)
    speech = {
        "encoder_sizes": WHISPER_LARGE_V3,
        "decoder_ffn_dim": inner,
        "decoder_num_heads": 32,
        "decoder_num_layers": 4,
        "encoder_num_layers": 2,
        "mtp_num": 5,
        "unit_vocab_size": 6561,
    }
    ids = ("bos", "sos", "eos", "padding")
    speech |= {f"speech_{part}_token_id": 6561 + index for index, part in enumerate(ids)}
    with torch.device("meta"):
        model = family.model_class(family.config_class(**sizes, **speech))
    counts = {key: parameter.numel() for key, parameter in model.named_parameters()}
    encoder = sum(count for key, count in counts.items() if key.startswith("model.speech_encoder."))
    assert (sum(counts.values()), encoder) == (total, ENCODER_PARAMETERS)
    small = [key for key in counts if family.shrinks.fullmatch(key.removesuffix(".weight"))]
    assert len(small) == 7 * sizes["num_hidden_layers"]
    assert {key for key in counts if key.startswith("model.speech_projector.")} == {
        f"model.speech_projector.linear{i}.{part}" for i in (1, 2) for part in ("weight", "bias")
    }
