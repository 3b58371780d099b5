"""Families by model_type: one that only this test knows is opened and asked through the front door."""

from __future__ import annotations

import ast
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaModel, LlamaPreTrainedModel
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from vita_mctp import SpeechLM
from vita_mctp.checkpoints.opening import find_model, open_model
from vita_mctp.codecs import registry as codecs
from vita_mctp.errors import CheckpointError, ConfigError
from vita_mctp.models import registry
from vita_mctp.models.registry import ModelFamily, Shapes, family_of, register
from vita_mctp.models.strict import StrictLoading
from vita_mctp.text.tokenizer import train_tokenizer
from vita_mctp.text.vocabulary import VocabularyKind
from vita_mctp.types import AudioFeatures, HeardAudio, Wave

ROOT = Path(__file__).parents[2]
FRAME = 400
"""Samples of one frame of features."""
QUESTION = Wave((0.4 * np.sin(np.arange(4000) / 9)).astype(np.float32), 16000)


class EchoConfig(LlamaConfig):
    model_type = "echo"
    num_nextn_predict_layers: int = 0

    @property
    def num_backbone_layers(self) -> int:
        return self.num_hidden_layers


class EchoModel(StrictLoading, LlamaPreTrainedModel):
    """A Llama without blocks; every two frames of a recording become one row."""

    config_class = EchoConfig

    def __init__(self, config: EchoConfig) -> None:
        super().__init__(config)
        self.model = LlamaModel(config)
        self.ear = nn.Linear(2 * FRAME, config.hidden_size)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def embed(self, ids: Tensor) -> Tensor:
        return self.model.embed_tokens(ids)

    def listen(self, embeds: Tensor, heard: Sequence[Sequence[HeardAudio]]) -> Tensor:
        embeds = embeds.clone()
        for row, audios in enumerate(heard):
            for audio in audios:
                pairs = torch.from_numpy(audio.features.frames).reshape(-1, 2 * FRAME)
                embeds[row, audio.start : audio.end] = self.ear(pairs)
        return embeds

    def backbone(
        self, embeds: Tensor, position_ids: Tensor, attention_mask: Tensor | None = None, cache: Any = None
    ) -> Tensor:
        width, past = embeds.shape[1], 0 if cache is None else cache.get_seq_length()
        mask = torch.ones(1, 1, width, past + width, dtype=torch.bool).tril(past)
        mask = mask if attention_mask is None else attention_mask
        rotary = self.model.rotary_emb(embeds, position_ids)
        names = signature(LlamaDecoderLayer.forward).parameters
        argument = "cache" if "cache" in names else "past_key_values"  # transformers 5.24 renamed it
        for layer in self.model.layers:
            embeds = layer(embeds, attention_mask=mask, position_embeddings=rotary, **{argument: cache})
        return self.model.norm(embeds)

    def block(self, *_: Any, **__: Any) -> Tensor:
        raise AssertionError("it has no blocks")

    def logits(self, hidden: Tensor) -> Tensor:
        return self.lm_head(hidden)


class EchoFamily(ModelFamily):
    def read_config(self, folder: Path, values: Mapping[str, Any], shapes: Callable[[], Shapes]) -> Any:
        if not isinstance(values.get("hidden_size"), int):
            raise CheckpointError(f"{folder / 'config.json'}: hidden_size: wanted a number")
        return EchoConfig.from_dict(dict(values))

    def resize_vocabulary(self, model: Any, size: int, seed: int) -> None:
        raise NotImplementedError

    def flops_per_token(self, config: Any, *, backbone_trains: bool, context: int) -> float:
        raise NotImplementedError

    def activation_bytes(self, config: Any, positions: int) -> int:
        raise NotImplementedError


class PairExtractor:
    """Its encoder makes one row of two frames."""

    name, feature_size, sample_rate = "pairs", FRAME, 16000

    @classmethod
    def from_folder(cls, folder: Path) -> PairExtractor:
        return cls()

    @staticmethod
    def positions(frames: int) -> int:
        return frames // 2

    def encode(self, wave: Wave) -> AudioFeatures:
        count = max(1, len(wave.samples) // (2 * FRAME)) * 2
        padded = np.resize(wave.samples, count * FRAME).reshape(count, FRAME).astype(np.float32)
        return AudioFeatures(padded, self.positions(count))


@pytest.fixture
def echo(tmp_path: Path, tiny_speech_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of the imaginary family, which is known while the test runs."""
    monkeypatch.setattr(registry, "_FAMILIES", dict(registry._FAMILIES))
    monkeypatch.setattr(codecs, "_CLASSES", {kind: dict(names) for kind, names in codecs._CLASSES.items()})
    codecs.register("pairs", extractor=f"{__name__}:PairExtractor")
    register("echo", EchoFamily(lambda: EchoModel, VocabularyKind.CONTINUOUS))
    folder = tmp_path / "echo"
    tokenizer = train_tokenizer(["say it again"], 600, folder, 64, kind=VocabularyKind.CONTINUOUS)
    torch.manual_seed(1)
    config = EchoConfig(
        vocab_size=tokenizer.vocabulary.padded_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.3,
    )
    EchoModel(config).save_pretrained(folder)
    shutil.copytree(tiny_speech_folder / "codec", folder / "codec")
    speech = {
        "tokenizer_kind": "sensevoice_glm4voice",
        "audio_tokenizer": {"name": "pairs"},
        "audio_decoder": {"name": "ramp", "folder": "codec"},
        "max_new_tokens": 24,
    }
    (folder / "speech.json").write_text(json.dumps(speech))
    yield folder


def test_an_imaginary_family_is_asked_through_the_front_door(echo: Path) -> None:
    speech_lm, model = SpeechLM.from_pretrained(echo), open_model(echo).load_model()
    assert type(model) is EchoModel
    heard = speech_lm.hear(QUESTION)
    assert isinstance(heard, AudioFeatures) and heard.positions == len(heard.frames) // 2 == 5
    prompt = speech_lm.prompt(heard)
    (span,) = prompt.heard
    context = speech_lm.tokenizer.vocabulary.context_of_audio
    assert set(prompt.ids[span.start : span.end]) == {context} and prompt.ids.count(context) == 5
    answer = speech_lm.ask(QUESTION)
    assert answer.done.mode == "1,0" and answer.done.timings.tokens > 0
    assert answer.done.codes == speech_lm.ask(QUESTION).done.codes
    with torch.no_grad():  # the engine's caches against the whole sequence at once
        ids = [event.id for event in speech_lm.generate(prompt)]
        embeds = model.embed(torch.tensor([[*prompt.ids, *ids]]))
        hidden = model.backbone(model.listen(embeds, [prompt.heard]), torch.arange(embeds.shape[1])[None])
        greedy = model.logits(hidden)[0].argmax(-1).tolist()
    assert greedy[len(prompt.ids) - 1 : -1] == ids


def test_what_an_imaginary_family_cannot_do_is_said(echo: Path) -> None:
    from vita_mctp.checkpoints.loading import load_model

    with pytest.raises(ConfigError, match="echo model has no blocks to add"):
        load_model(echo, num_mctp_blocks=2)
    (echo / "speech.json").unlink()
    with pytest.raises(ConfigError, match="echo model without speech"):
        SpeechLM.from_pretrained(echo)
    (echo / "config.json").write_text('{"model_type": "echo", "hidden_size": "wide"}')
    with pytest.raises(CheckpointError, match="hidden_size"):
        open_model(echo).load_model()
    with pytest.raises(ConfigError, match="already stands for"):
        register("echo", EchoFamily(lambda: EchoModel, VocabularyKind.DISCRETE))
    with pytest.raises(ConfigError, match="llama"):
        family_of("llama")


def test_a_model_is_looked_for_once(tiny_speech_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vita_mctp.checkpoints import opening
    from vita_mctp.checkpoints.speech import SpeechSettings

    calls: list[str] = []
    found, read = opening.find_model, SpeechSettings.from_folder.__func__  # type: ignore[attr-defined]
    monkeypatch.setattr(opening, "find_model", lambda name: calls.append("find") or found(name))
    monkeypatch.setattr(
        SpeechSettings, "from_folder", classmethod(lambda cls, folder: calls.append("settings") or read(cls, folder))
    )
    SpeechLM.from_pretrained(tiny_speech_folder).chat("monday")
    assert sorted(calls) == ["find", "settings"]


def test_a_runs_folder_is_its_finished_model(tiny_speech_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_speech_folder, tmp_path / "run" / "final")
    assert find_model(tmp_path / "run") == tmp_path / "run" / "final"
    assert SpeechLM.from_pretrained(tmp_path / "run").say("monday", seed=1).wave.seconds > 0


@pytest.mark.parametrize("family", ["vita", "vocalnet", "vocalnet_m2"])
def test_nobody_names_a_familys_classes(family: str) -> None:
    named = []
    for path in (ROOT / "vita_mctp").rglob("*.py"):
        if f"models/{family}" in path.as_posix() or path.name == "nano_vocalnet.py":  # M2 is a VocalNet; that joins two
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            named += [str(path) for name in names if name and f"{name}.".startswith(f"vita_mctp.models.{family}.")]
    assert named == []
