"""Makes a nano VocalNet from a finished nano: its backbone writes, and a new talker learns to speak its hidden states.

Every part resumes where it stopped, and is left alone once finished. Below one run folder: the corpus and what
`talker_data` makes of it, talker/ with checkpoints and curves, and final/, a folder to ask.

B answers of a batch, K levels behind level 0.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional
from transformers import GenerationConfig

from vita_mctp.checkpoints.opening import NANO, OpenedModel, open_model
from vita_mctp.checkpoints.speech import SpeechSettings, copy_speech
from vita_mctp.codecs.nano import NanoDigitsDecoder, digits_of
from vita_mctp.codecs.nano.config import NanoCodecConfig
from vita_mctp.models.nano_vocalnet import NanoVocalNet, NanoVocalNetConfig, new_talker
from vita_mctp.nano.fitting import Schedule, fit, resume, write_log
from vita_mctp.nano.run import save_half
from vita_mctp.nano.talker_data import ASKED, HELD_OUT, SENTENCES, WRITTEN, SpokenText, make_spoken_texts
from vita_mctp.nano.voices import Sizes
from vita_mctp.schema import Schema
from vita_mctp.text.chat import IGNORED
from vita_mctp.training.optimizer import SideBySide
from vita_mctp.training.start import grid_embeddings
from vita_mctp.types import IntArray
from vita_mctp.yaml_file import read_yaml

log = logging.getLogger(__name__)
TALKER_FOLDER, FINAL_FOLDER = "talker", "final"
_POOL = 16
"""Batches that are sorted by length together, so that little is padding."""
_TESTED = 128
_GRID_STD = 0.02
_NOT_HIDDEN = ("embedding", "output_proj", "heads", "query")
_TESTED_AT_ONCE = 32
_OWN_MODE = {"vocalnet": "3x,as_trained", "m2": "1x"}


class TalkerSchedule(Schedule):
    """batch: answers of one step. muon_scale: Muon's rate, of the hidden matrices, by AdamW's of all else.

    streaming: of the answers, the fraction trained with the streaming mask. sentences: of the answers, the fraction
    that are sentences to say; the rest answer questions.
    """

    steps: int = Field(default=1500, gt=0)
    warmup: int = Field(default=50, ge=0)
    batch: int = Field(default=16, gt=0)
    muon_scale: float = Field(default=2.0, gt=0)
    streaming: float = Field(default=0.5, ge=0, le=1)
    sentences: float = Field(default=0.6, ge=0, le=1)


class TalkerRecipe(Schema):
    """Everything that decides a nano talker. talker: of its sizes, what is neither the thinker's nor the codec's.

    kind: VocalNet's says codes, M2's the digits of the codec's quantiser, each of them a codebook.
    """

    thinker: str = NANO
    kind: Literal["vocalnet", "m2"] = "vocalnet"
    talker: dict[str, int | float | str]
    corpus: Sizes = Field(default_factory=lambda: Sizes(sentences=2500, babble=0))
    schedule: TalkerSchedule = Field(default_factory=TalkerSchedule)
    seed: int = Field(default=0, ge=0)


class Lessons:
    """Batches of answers and a VocalNet talker's losses over them."""

    def __init__(self, thinker: OpenedModel, texts: Mapping[str, Sequence[SpokenText]]) -> None:
        self.texts, self.codec = texts, NanoCodecConfig.load(Path(thinker.speech.audio_decoder.folder))
        model = thinker.load_model(dtype="float32")
        vocabulary = thinker.load_tokenizer(self.codec.codebook_size).vocabulary
        with torch.inference_mode():
            self.table = model.embed(torch.arange(vocabulary.audio_0)[None])[0].clone()
        self.width, self.text_end = self.table.shape[1], self.table[vocabulary.endoftext]

    def new_talker(self, recipe: TalkerRecipe) -> Any:
        """Of the recipe's seed; codes that are near on the quantiser's grid begin near to each other."""
        given = {"text_size": self.width, "num_units": self.codec.codebook_size}
        talker = new_talker("vocalnet", {**recipe.talker, **given}, recipe.seed)
        width = talker.sizes.hidden_size
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            grid = grid_embeddings(self.codec.levels, width, _GRID_STD)
            heads = (each for name, each in talker.named_modules() if name.endswith("output_proj"))
            for table in (talker.embedding, *heads):
                if isinstance(table, nn.Linear | nn.Embedding):  # a group's head has a table for each of its tokens
                    table.weight.view(-1, talker.sizes.vocab_size, width)[:, : len(grid)] = grid
        return talker

    def order(self, schedule: TalkerSchedule, seed: int, first: int) -> Iterator[tuple[list[SpokenText], list[bool]]]:
        """Endless batches from number `first` on, and which answers of each are streamed; a function of the seed."""
        answers = [*self.texts[ASKED], *self.texts[WRITTEN]]
        for pool in count(first // _POOL):
            rng = np.random.default_rng((seed, pool))
            said = rng.random(_POOL * schedule.batch) < schedule.sentences
            drawn = [_draw(self.texts[SENTENCES] if each else answers, rng) for each in said]
            drawn.sort(key=lambda text: (len(text.ids), len(text.codes)))
            groups = [drawn[start : start + schedule.batch] for start in range(0, len(drawn), schedule.batch)]
            flags = rng.random((_POOL, schedule.batch)) < schedule.streaming
            order: IntArray = rng.permutation(_POOL)
            for group in order[first % _POOL if pool == first // _POOL else 0 :]:
                yield groups[group], flags[group].tolist()

    def rows(self, talker: Any, text: SpokenText) -> Tensor:
        """What the talker reads of a text, all of it (rows, width)."""
        return torch.cat([text.states[1:], self.text_end[None]])

    def batch(self, talker: Any, texts: Sequence[SpokenText], streaming: Sequence[bool]) -> Any:
        """As `talker.batch` makes it."""
        return talker.batch([self.rows(talker, text) for text in texts], [text.codes for text in texts], streaming)

    def losses(self, talker: Any, batch: Any) -> dict[str, Tensor]:
        """By level, in nats a code; `total` is what is minimised."""
        found = talker.losses(batch)
        return {"total": talker.loss(found), **{f"level{k}": each for k, each in enumerate(found)}}

    @torch.inference_mode()
    def test(self, talker: Any, texts: Sequence[SpokenText], streaming: bool) -> dict[str, list[float]]:
        """By level, over texts that are not trained on: `nats` a code, and the fraction of codes that are `right`."""
        sums, ordered = np.zeros((1, 3)), sorted(texts, key=lambda text: len(text.ids))
        for start in range(0, len(ordered), _TESTED_AT_ONCE):
            several = ordered[start : start + _TESTED_AT_ONCE]
            batch = self.batch(talker, several, [streaming] * len(several))
            levels = [self.scores(talker, batch, k, hidden) for k, hidden in enumerate(talker.chain(batch))]
            sums = sums + np.array(levels)
        nats, right, targets = sums.T
        return {"nats": (nats / targets).tolist(), "right": (right / targets).tolist()}

    def scores(self, talker: Any, batch: Any, k: int, hidden: Tensor) -> tuple[float, int, int]:
        """Of level k: nats and right codes summed over its targets, and how many targets."""
        labels = batch.labels(k)
        known = labels != talker.sizes.pad
        logits = talker.logits(k, hidden[:, batch.text_columns :])[known].float()
        right = int((logits.argmax(-1) == labels[known]).sum())
        return float(functional.cross_entropy(logits, labels[known], reduction="sum")), right, int(known.sum())


class FrameLessons(Lessons):
    """The same for M2's talker: a code's digits are a frame of codebooks."""

    def new_talker(self, recipe: TalkerRecipe) -> Any:
        levels = self.codec.levels
        given = {"text_size": self.width, "thinker_size": self.width}
        given |= {"num_codebooks": len(levels), "codebook_size": max(levels)}
        return new_talker("m2", {**recipe.talker, **given}, recipe.seed)

    def rows(self, talker: Any, text: SpokenText) -> Tensor:
        fused: Tensor = talker.fuse(self.table[text.ids], text.states)
        return fused

    def batch(self, talker: Any, texts: Sequence[SpokenText], streaming: Sequence[bool]) -> Any:
        """Its attention is causal, and text stands where it is said: there is one mask."""
        frames = [torch.from_numpy(digits_of(text.codes.numpy(), self.codec.levels)) for text in texts]
        return talker.batch([self.rows(talker, text) for text in texts], frames)

    def losses(self, talker: Any, batch: Any) -> dict[str, Tensor]:
        found = talker.losses(batch)
        return {"total": found.sum(), **{f"level{k}": each for k, each in enumerate(found)}}

    def scores(self, talker: Any, batch: Any, k: int, hidden: Tensor) -> tuple[float, int, int]:
        labels = batch.labels(k)
        known = labels[..., 0] != IGNORED
        logits, expected = talker.logits(k, hidden[known]).float(), labels[known]
        nats = functional.cross_entropy(logits.flatten(0, 1), expected.flatten(), reduction="sum")
        return float(nats), int((logits.argmax(-1) == expected).all(-1).sum()), len(expected)


def open_lessons(recipe: TalkerRecipe, texts: Mapping[str, Sequence[SpokenText]]) -> Lessons:
    return (FrameLessons if recipe.kind == "m2" else Lessons)(open_model(recipe.thinker), texts)


def _draw(texts: Sequence[SpokenText], rng: np.random.Generator) -> SpokenText:
    return texts[int(rng.integers(len(texts)))]


def _optimizer(talker: nn.Module, schedule: TalkerSchedule) -> torch.optim.Optimizer:
    hidden: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, weight in talker.named_parameters():
        apart = weight.ndim != 2 or any(part in name for part in _NOT_HIDDEN)
        (others if apart else hidden).append(weight)
    scaled = [{"params": hidden, "scale": schedule.muon_scale}]
    muon = torch.optim.Muon(scaled, schedule.learning_rate, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(others, schedule.learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
    return SideBySide([muon, adamw])


def train_talker(talker: Any, lessons: Lessons, schedule: TalkerSchedule, folder: Path, seed: int) -> None:
    """To the schedule's end, resuming from `folder` if it holds a checkpoint."""
    optimizer = _optimizer(talker, schedule)
    step = resume(talker, optimizer, folder)
    batches = lessons.order(schedule, seed, step)

    def losses(_: int) -> dict[str, Tensor]:
        texts, streaming = next(batches)
        return lessons.losses(talker, lessons.batch(talker, texts, streaming))

    def test(done: int) -> None:
        for streaming in (False, True):
            found = lessons.test(talker.eval(), lessons.texts[HELD_OUT][:_TESTED], streaming)
            rounded = {name: [round(value, 4) for value in values] for name, values in found.items()}
            write_log(folder, {"step": done, "streaming": streaming, **rounded})
        talker.train()

    fit(talker.train(), optimizer, schedule, folder, step, losses, test)
    talker.eval()


def make_nano_vocalnet(recipe_path: Path, folder: Path, processes: int = 1) -> Path:
    """Runs every part below `folder` by a recipe; the folder to ask.

    Raises:
        ConfigError: the recipe is wrong.
        MissingExtraError: flite or espeak-ng is not installed.
    """
    recipe = TalkerRecipe.parse(read_yaml(recipe_path), str(recipe_path))
    thinker = open_model(recipe.thinker)
    progress = partial(log.info, "corpus: %d of %d shards")
    texts = make_spoken_texts(thinker, folder, recipe.corpus, recipe.seed, processes, progress)
    lessons = open_lessons(recipe, texts)
    talker = lessons.new_talker(recipe)
    train_talker(talker, lessons, recipe.schedule, folder / TALKER_FOLDER, recipe.seed)
    return ship(thinker, talker, recipe.kind, folder / FINAL_FOLDER)


def ship(thinker: OpenedModel, talker: Any, kind: str, folder: Path) -> Path:
    """Gathers the thinker without its blocks, the talker and the codec, in half precision."""
    model = thinker.load_model(dtype="float32")
    depth = model.config.num_backbone_layers
    values = model.config.to_dict() | {
        "model_type": NanoVocalNetConfig.model_type,
        "num_hidden_layers": depth,
        "layer_types": model.config.layer_types[:depth],
        "num_nextn_predict_layers": 0,
        "talker": talker.sizes.to_json_values(),
        "talker_kind": kind,
    }
    values.pop("architectures")
    joined = NanoVocalNet(NanoVocalNetConfig.from_dict(values))
    weights = model.state_dict() | {f"speech_generator.{name}": value for name, value in talker.state_dict().items()}
    joined.load_state_dict({name: weights[name] for name in joined.state_dict()})
    tokenizer = thinker.load_tokenizer(NanoCodecConfig.load(Path(thinker.speech.audio_decoder.folder)).codebook_size)
    vocabulary = tokenizer.vocabulary
    joined.generation_config = GenerationConfig(
        do_sample=False,
        eos_token_id=list(vocabulary.eos_ids),
        pad_token_id=vocabulary.pad,
        mtp_inference_mode=_OWN_MODE[kind],
    )
    joined.save_pretrained(folder)
    save_half(load_file(folder / "model.safetensors"), folder / "model.safetensors")
    tokenizer.save(folder)
    copy_speech(thinker.folder, folder)
    if kind == "m2":
        settings = SpeechSettings.from_folder(folder)
        decoder = settings.audio_decoder.model_copy(update={"name": NanoDigitsDecoder.name})
        settings.but(audio_decoder=decoder).write(folder)
    return folder
