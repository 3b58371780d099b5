"""The recorded talkers, for the parity tests: sizes from a folder's index.json, weights from its safetensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from vita_mctp.models.vocalnet.sizes import TalkerSizes
from vita_mctp.models.vocalnet.talkers import Talker, make_talker


def index_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "index.json").read_text())


def sizes_of(folder: Path, **changes: Any) -> TalkerSizes:
    config = index_of(folder)["config"]
    values = {
        "hidden_size": config["llm_hidden_size"],
        "ffn_size": config["decoder_ffn_dim"],
        "num_heads": config["decoder_num_heads"],
        "projector_layers": config["encoder_num_layers"],
        "backbone_layers": config["decoder_num_layers"],
        "mtp_levels": config["mtp_num"],
        "num_units": config["unit_vocab_size"],
        "text_chunk": config["txt_token_num"],
        "speech_chunk": config["speech_token_num"],
        "loss_decay": config["loss_decay"],
    }
    return TalkerSizes(**values | changes)


def talker_in(folder: Path, own: Mapping[str, Tensor] | None = None, **changes: Any) -> Talker:
    """own: weights before those of the recorded decoder, which fill in what has their name and shape."""
    talker = make_talker(sizes_of(folder, **changes))
    shared = load_file(folder / "decoder_state_dict.safetensors")
    wanted = talker.state_dict()
    weights = {name: tensor for name, tensor in shared.items() if name in wanted and tensor.shape == wanted[name].shape}
    talker.load_state_dict({name: tensor.float() for name, tensor in (weights | dict(own or {})).items()})
    return talker.eval()


def said(tokens: Tensor) -> list[Tensor]:
    """Padded tokens -> of each answer its own."""
    return [row[row != -100] for row in tokens]


def rows_spoken(hidden: Tensor, labels: Tensor, text_end: Tensor | None, end_id: int | None) -> list[Tensor]:
    """Of each answer the rows that a talker is trained on; end_id: None where the end's own row is kept, and no other
    row takes its place."""
    rows = []
    for states, each in zip(hidden, labels, strict=True):
        kept = states[(each != -100) & (each != end_id if end_id is not None else True)]
        drop = text_end is not None and end_id is not None
        rows.append(torch.cat([kept[:-1], text_end.view(1, -1)]) if drop and text_end is not None else kept)
    return rows
