"""What all tests share: a speech model small enough to be made anew, and what a machine may lack.

The model has random weights, a handful of words and the ramp codec. Debian packages are no part of the set-up: without
them the tests that synthesise speech are skipped, except where `CI` is set, which has to hold them all.
"""

import json
import os
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
import ramp  # noqa: F401  (registers the codec)

from vita_mctp.errors import MissingExtraError

os.environ["HF_HUB_OFFLINE"] = "1"  # no test asks a hub; those of the downloads bring their own
os.environ.setdefault("OMP_NUM_THREADS", "1")  # two threads on a shared core are ten times slower than one

RAMP_CODES = 64
WORDS = "what is two plus three five the day after monday is tuesday convert speech to text user assistant system"


def _skipping() -> Generator[None, object, object]:
    try:
        return (yield)
    except MissingExtraError as error:
        if "CI" in os.environ or "apt-get" not in str(error):
            raise
        pytest.skip(str(error))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup() -> Generator[None, object, object]:
    return (yield from _skipping())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, object, object]:
    return (yield from _skipping())


@pytest.fixture(scope="session")
def cosyvoice2_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """(folder of goldens, recorded tensors with a voice prompt) -> a decoder's folder of its own with that voice."""
    from vita_mctp.codecs.flow_decoder.folder import VoicePrompt

    def folder(golden: Path, given: dict[str, Any]) -> Path:
        made = tmp_path_factory.mktemp("cosyvoice2")
        for name in ("flow.safetensors", "hift.safetensors"):
            (made / name).symlink_to(golden / name)
        sizes = json.loads((golden / "index.json").read_text())["config"]
        (made / "config.json").write_text(json.dumps(cosyvoice2_sizes(sizes)))
        voice = VoicePrompt.none(sizes["flow"]["output_size"], sizes["flow"]["spk_embed_dim"])
        if "embedding" in given:
            voice = VoicePrompt(given["prompt_token"][0].long(), given["prompt_feat"][0].T, given["embedding"][0])
        voice.write(made / "voice.safetensors")
        return made

    return folder


def cosyvoice2_sizes(recorded: dict[str, Any]) -> dict[str, Any]:
    """Those of the goldens as a config.json has them."""
    flow, hift = ({**recorded[part]} for part in ("flow", "hift"))
    estimator, rate = flow.pop("estimator"), flow.pop("cfm")["inference_cfg_rate"]
    kept = ("output_size", "attention_heads", "linear_units", "num_blocks", "up_blocks", "static_chunk_size")
    flow["encoder"] = {key: flow["encoder"][key] for key in kept if key in flow["encoder"]}
    flow["decoder"] = {
        "in_channels": 3 * flow["output_size"],
        "n_spks": 1,
        "spk_emb_dim": flow["output_size"],
        "cfm_params": {"inference_cfg_rate": rate},
        "estimator": {"static_chunk_size": 100} | estimator,
    }
    hift["f0_predictor"] = {"in_channels": hift["in_channels"], **hift["f0_predictor"]}
    return {"flow": flow, "hift": hift}


@pytest.fixture(scope="session")
def cosyvoice2_values() -> Callable[[dict[str, Any]], dict[str, Any]]:
    return cosyvoice2_sizes


@pytest.fixture(scope="session")
def tiny_speech_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder that `SpeechLM.from_pretrained` opens; nobody may write to it."""
    import torch

    from vita_mctp.models.vita import VitaMctpConfig, VitaMctpForCausalLM
    from vita_mctp.text.tokenizer import train_tokenizer

    folder = tmp_path_factory.mktemp("tiny")
    tokenizer = train_tokenizer([WORDS], 600, folder, RAMP_CODES)
    torch.manual_seed(0)
    config = VitaMctpConfig(
        vocab_size=tokenizer.vocabulary.padded_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_nextn_predict_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        initializer_range=0.2,
    )
    model = VitaMctpForCausalLM(config)
    model.generation_config.mtp_inference_mode = [1, 10, 4, 10]
    model.save_pretrained(folder)
    (folder / "codec").mkdir()
    (folder / "codec" / "ramp.json").write_text(json.dumps({"codebook_size": RAMP_CODES}))
    codec = {"name": "ramp", "folder": "codec"}
    speech = {
        "tokenizer_kind": "glm4voice",
        "audio_tokenizer": codec,
        "audio_decoder": codec,
        "max_new_tokens": 120,
        "block_sizes": [4, 8],
        "max_history_turns": 2,
        "voice_prompts": True,
        "sampling": {"speech_to_speech": {"temperature": 1.0}, "tts": {"temperature": 1.0}},
    }
    (folder / "speech.json").write_text(json.dumps(speech))
    return folder


THINKER = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "initializer_range": 0.3,
    "encoder_sizes": {"d_model": 64, "encoder_layers": 1, "encoder_attention_heads": 1, "encoder_ffn_dim": 32},
}


def thinker_tokenizer(folder: Path) -> int:
    """Writes one, and gives back how many rows its thinker has."""
    from vita_mctp.text.tokenizer import train_tokenizer
    from vita_mctp.text.vocabulary import VocabularyKind

    return train_tokenizer([WORDS], 600, folder, RAMP_CODES, kind=VocabularyKind.CONTINUOUS).vocabulary.padded_size


def write_speech(folder: Path, decoder: str) -> None:
    """A thinker's speech.json, its decoder's folder being `codec`."""
    speech = {
        "tokenizer_kind": "sensevoice_glm4voice",
        "audio_tokenizer": {"name": "whisper"},
        "audio_decoder": {"name": decoder, "folder": "codec"},
        "max_question_seconds": 30.0,
        "max_new_tokens": 30,
    }
    (folder / "speech.json").write_text(json.dumps(speech))


@pytest.fixture(scope="session")
def tiny_vocalnet_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A VocalNet of the Qwen2 kind that `SpeechLM.from_pretrained` opens; nobody may write to it."""
    import torch

    from vita_mctp.models.vocalnet import VocalNetQwen2, VocalNetQwen2Config

    folder = tmp_path_factory.mktemp("vocalnet")
    rows = thinker_tokenizer(folder)
    torch.manual_seed(3)
    config = VocalNetQwen2Config(
        **THINKER,
        vocab_size=rows,
        decoder_ffn_dim=48,
        decoder_num_heads=4,
        decoder_num_layers=2,
        encoder_num_layers=1,
        mtp_num=4,
        unit_vocab_size=RAMP_CODES,
        speech_bos_token_id=RAMP_CODES,
        speech_sos_token_id=RAMP_CODES + 1,
        speech_eos_token_id=RAMP_CODES + 2,
        speech_padding_token_id=RAMP_CODES + 3,
    )
    model = VocalNetQwen2(config)
    model.speech_generator.output_proj.bias.data[RAMP_CODES + 2] = 1.0  # it comes to an end now and then
    model.save_pretrained(folder)
    (folder / "codec").mkdir()
    (folder / "codec" / "ramp.json").write_text(json.dumps({"codebook_size": RAMP_CODES}))
    write_speech(folder, "ramp")
    return folder


XY_GOLDENS = Path(__file__).parent / "parity" / "goldens" / "xy_tokenizer"


@pytest.fixture(scope="session")
def make_m2(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """MTP layers -> a VocalNet-M2 with a tiny XY-Tokenizer that `SpeechLM.from_pretrained` opens."""

    def made(levels: int) -> Path:
        import torch

        from vita_mctp.models.vocalnet_m2 import M2Qwen3, M2Qwen3Config

        folder = tmp_path_factory.mktemp(f"m2_{levels}")
        rows = thinker_tokenizer(folder)
        sizes = json.loads((XY_GOLDENS / "index.json").read_text())["config"]
        quantizer = sizes["quantizer_kwargs"]
        talker = {
            "hidden_size": 32,
            "ffn_size": 48,
            "num_heads": 4,
            "num_layers": 2,
            "text_size": THINKER["hidden_size"],
            "thinker_size": THINKER["hidden_size"],
            "fusion_size": 24,
            "mtp_levels": levels,
            "num_codebooks": quantizer["num_quantizers"],
            "codebook_size": quantizer["codebook_size"],
        }
        torch.manual_seed(4)
        model = M2Qwen3(M2Qwen3Config(**THINKER, vocab_size=rows, talker=talker))
        for heads in (model.talker.heads, *(level.heads for level in model.talker.mtp_layers)):
            heads[0].bias.data[model.talker.sizes.eos] = -0.5  # not at once
        model.save_pretrained(folder)
        (folder / "codec").mkdir()
        (folder / "codec" / "model.safetensors").symlink_to(XY_GOLDENS / "model.safetensors")
        (folder / "codec" / "config.json").write_text(json.dumps(sizes))
        write_speech(folder, "xy_tokenizer")
        return folder

    return made


@pytest.fixture(scope="session")
def tiny_m2_folder(make_m2: Callable[[int], Path]) -> Path:
    """With four MTP layers; nobody may write to it."""
    return make_m2(4)
