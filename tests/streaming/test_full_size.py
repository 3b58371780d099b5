"""The released layout at full size, with random weights: a checkpoint of the 0.5B class and both GLM-4-Voice codecs.

Minutes and gigabytes: run with `-m slow -s`, which prints what each part took. Rows of the audio tokens are enlarged,
so that a model that knows nothing says many of them.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer
from torch import nn
from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM

from vita_mctp.checkpoints.conversion import convert_qwen
from vita_mctp.codecs.flow_decoder.hift import Hift
from vita_mctp.codecs.glm4_voice.decoder import Glm4Flow, load_decoder_config
from vita_mctp.codecs.glm4_voice.tokenizer import empty_encoder, load_tokenizer_config, training_buffers
from vita_mctp.text.tokenizer import train_tokenizer
from vita_mctp.text.vocabulary import END_OF_TEXT, IM_END, IM_START

FULL_SIZE = Path(__file__).parents[1] / "parity" / "goldens" / "glm4_voice" / "full_size"
TINY_TOKENIZER = FULL_SIZE.parent / "tokenizer" / "model"
BASE_IDS = 151_643
"""Of Qwen2.5's byte-level BPE, special tokens not counted."""
MAX_NEW_TOKENS = 48
SAMPLES_PER_CODE = 1764
METER = """
import json, resource, subprocess, sys, time
started = time.perf_counter()
subprocess.run(sys.argv[1:], check=True)
print(json.dumps([time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss]))
"""
"""Stands between, since a process's peak begins with that of the one that starts it, which has built a model."""

pytestmark = pytest.mark.slow


def write_base(folder: Path) -> Path:
    """Qwen2.5-0.5B's sizes; of its vocabulary the bytes, and unreachable words up to the true number."""
    train_tokenizer(["a b"], 600, folder, 8)
    file = folder / "tokenizer.json"
    values = json.loads(file.read_text())
    vocabulary = values["model"]["vocab"]
    vocabulary |= {f"unused {number}": number for number in range(len(vocabulary), BASE_IDS)}
    values["added_tokens"] = []
    file.write_text(json.dumps(values))
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in (END_OF_TEXT, IM_START, IM_END)])
    tokenizer.add_tokens([f"<|unused_{number}|>" for number in range(19)])
    tokenizer.save(str(file))
    config = Qwen2Config(
        vocab_size=151_936,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        rope_theta=1e6,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    Qwen2ForCausalLM(config).bfloat16().save_pretrained(folder)
    return folder


def write_model(folder: Path, base: Path) -> None:
    convert_qwen(base, folder, num_mctp_blocks=10)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors["model.embed_tokens.weight"][json.loads((folder / "config.json").read_text())["speech_token_offset"] :] *= 4
    save_file(tensors, file, metadata={"format": "pt"})
    GenerationConfig(
        do_sample=True,
        temperature=0.7,
        top_p=0.8,
        top_k=20,
        repetition_penalty=1.05,
        eos_token_id=[151_645, 151_643],
        mtp_inference_mode=[1, 10, 4, 10],
    ).save_pretrained(folder)


def drawn(module: Callable[[], nn.Module], seed: int) -> dict[str, torch.Tensor]:
    """The module's tensors with random values, small enough for deep stacks."""
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in module().state_dict().items()}
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) * 0.02 for name, shape in shapes.items()}


def write_codecs(folder: Path) -> None:
    tokenizer, decoder = folder / "glm-4-voice-tokenizer", folder / "glm-4-voice-decoder"
    tokenizer.mkdir()
    shutil.copy(FULL_SIZE / "tokenizer_config.json", tokenizer / "config.json")
    shutil.copy(TINY_TOKENIZER / "preprocessor_config.json", tokenizer)
    config = load_tokenizer_config(tokenizer).encoder
    tensors = drawn(lambda: empty_encoder(config), 1)
    tensors |= {name: torch.zeros(shape) for name, shape in training_buffers(config).items()}
    save_file(tensors, tokenizer / "model.safetensors", metadata={"format": "pt"})
    decoder.mkdir()
    shutil.copy(FULL_SIZE / "decoder_config.json", decoder / "config.json")
    sizes = load_decoder_config(decoder)
    torch.save(drawn(lambda: Glm4Flow(sizes.flow), 2), decoder / "flow.pt")
    torch.save(drawn(lambda: Hift(sizes.hift), 3), decoder / "hift.pt")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("released")
    write_codecs(folder)
    write_model(folder / "VITA-Audio-Boost", write_base(folder / "base"))
    shutil.rmtree(folder / "base")
    return folder / "VITA-Audio-Boost"


def test_a_question_is_answered_aloud_through_the_command(model: Path, tmp_path: Path) -> None:
    rate, seconds = 22_050, 3
    question, answer = tmp_path / "question.wav", tmp_path / "answer.wav"
    tone = 0.3 * np.sin(440 * 2 * np.pi * np.arange(seconds * rate) / rate)
    soundfile.write(question, np.stack([tone, 0 * tone], 1), rate)
    ask = ("ask", str(question), "-o", str(answer), "--model", str(model), "--json")
    command = (sys.executable, "-m", "vita_mctp.cli", *ask, "--max-new-tokens", str(MAX_NEW_TOKENS))
    run = subprocess.run((sys.executable, "-ISc", METER, *command), capture_output=True, text=True, check=True)
    assert run.stderr == ""
    *_, last, figures = run.stdout.splitlines()
    done, (wall, peak) = json.loads(last), json.loads(figures)
    sound, spoken_rate = soundfile.read(answer)
    assert spoken_rate == rate and len(sound) == pytest.approx(done["audio_seconds"] * rate)
    assert len(sound) % SAMPLES_PER_CODE == 0 and len(sound) > 10 * SAMPLES_PER_CODE
    assert done["tokens"] == MAX_NEW_TOKENS and done["mode"] == "boost"
    first_codes, first_sound, total = (
        done[f"{name}_seconds"] for name in ("first_audio_tokens", "first_sound", "total")
    )
    parts = {
        "start and load": wall - total,
        "hear, read the prompt, first 10 codes": first_codes,
        "first chunk of sound": first_sound - first_codes,
        "all the rest": total - first_sound,
    }
    print(f"\n{done['tokens']} tokens, {done['audio_seconds']:.2f} s of sound, {torch.get_num_threads()} threads")
    print("\n".join(f"{name}: {value:.1f} s" for name, value in parts.items()))
    print(f"peak memory: {peak / 2**20:.2f} GiB")
