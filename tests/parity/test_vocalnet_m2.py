"""VocalNet-M2's talker against recorded numbers of its definition: fusion, stretching, logits, losses, frames."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from vita_mctp.decoding.frames import FrameAnswer
from vita_mctp.models.vocalnet_m2.talker import IGNORED, M2Sizes, M2Talker

LOGITS, LOSSES = 3e-4, 1e-4


def test_the_definition(m2_file: Path) -> None:
    recorded, tensors = json.loads(m2_file.read_text()), load_file(m2_file.with_suffix(".safetensors"))
    config = recorded["config"]
    sizes = M2Sizes(
        hidden_size=config["hidden"],
        ffn_size=config["ffn"],
        num_heads=config["heads"],
        num_layers=config["layers"],
        text_size=config["text_emb"],
        thinker_size=config["thinker_hidden"],
        fusion_size=config["fusion_inner"],
        mtp_levels=config["mtp_layers"],
        num_codebooks=config["codebooks"],
        codebook_size=config["codebook_size"],
    )
    talker = M2Talker(sizes).eval()
    talker.load_state_dict({name: tensors[name].float() for name in talker.state_dict()})
    count = len(recorded["text_lens"])
    near = {"atol": LOGITS, "rtol": 0.0}
    fused = [
        talker.fuse(tensors[f"train.{i}.text_embedding"], tensors[f"train.{i}.thinker_hidden"]) for i in range(count)
    ]
    for i, rows in enumerate(fused):
        torch.testing.assert_close(rows, tensors[f"train.{i}.fused"], **near)
        wanted = tensors[f"train.{i}.upsampled"]
        torch.testing.assert_close(talker.stretch(rows, 0, len(wanted)), wanted, **near)
    batch = talker.batch(fused, [tensors[f"train.{i}.codes"] for i in range(count)])
    for k, hidden in enumerate(talker.chain(batch)):
        for i in range(count):
            labels = tensors[f"train.{i}.labels.layer{k}"]
            assert torch.equal(batch.labels(k)[i, : len(labels)], labels)
            known = labels[:, 0] != IGNORED
            found = talker.logits(k, hidden[i, : len(labels)])
            torch.testing.assert_close(found[known], tensors[f"train.{i}.logits.layer{k}"][known], **near)
    losses = talker.losses(batch)
    assert losses.tolist() == pytest.approx(recorded["loss_per_layer"], abs=LOSSES)
    assert losses.sum().item() == pytest.approx(recorded["total"], abs=len(losses) * LOSSES)
    for name, case in recorded["decode"].items():
        text = talker.fuse(tensors[f"decode.{name}.text_embedding"], tensors[f"decode.{name}.thinker_hidden"])
        answer = FrameAnswer(talker, case["K"], case["max_frames"])
        said = list(answer.push(text, last=True))
        assert all(0 <= code < sizes.codebook_size for frame in said for code in frame)
        assert answer.frames == [tuple(frame) for frame in tensors[f"decode.{name}.frames"].tolist()], name
