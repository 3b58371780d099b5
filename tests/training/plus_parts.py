"""What VITA-Audio-Plus is put together from, a few thousand weights each."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import Qwen2Config, Qwen2ForCausalLM

from vita_mctp.audio.mel import FEATURE_SIZE
from vita_mctp.checkpoints.conversion import ENCODER_FILE
from vita_mctp.codecs.features import STATISTICS_FILE
from vita_mctp.models.vita.configuration import SenseVoiceSizes
from vita_mctp.models.vita.plus import SenseVoice
from vita_mctp.text.tokenizer import train_tokenizer

ENCODER = SenseVoiceSizes(
    input_size=FEATURE_SIZE, output_size=8, linear_units=12, num_blocks=2, tp_blocks=1, ctc_size=5
)


def write_qwen(folder: Path) -> None:
    """A Qwen2.5 of two layers, its tokenizer without any of our additions."""
    folder.mkdir()
    train_tokenizer(["convert the speech to text number one two"], 600, folder, 8)
    file = folder / "tokenizer.json"
    values = json.loads(file.read_text())
    values["added_tokens"] = values["added_tokens"][:3]
    file.write_text(json.dumps(values))
    words = Tokenizer.from_file(str(file)).get_vocab_size()
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 4, "num_key_value_heads": 2}
    torch.manual_seed(0)
    Qwen2ForCausalLM(Qwen2Config(vocab_size=words, num_hidden_layers=2, **sizes)).save_pretrained(folder)


def write_sensevoice(folder: Path) -> None:
    """An encoder, and the statistics that normalise its features."""
    folder.mkdir()
    torch.manual_seed(0)
    torch.save(SenseVoice(ENCODER).state_dict(), folder / ENCODER_FILE)
    random = np.random.default_rng(0)
    layers = {"AddShift": random.uniform(-14, -12, FEATURE_SIZE), "Rescale": random.uniform(0.2, 0.3, FEATURE_SIZE)}
    lines = [f"<{name}> [ {' '.join(map(str, values))} ]" for name, values in layers.items()]
    (folder / STATISTICS_FILE).write_text("\n".join(lines))
