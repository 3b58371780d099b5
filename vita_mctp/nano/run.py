"""Makes the nano model from nothing: corpus, codec, vocoder, codes, four stages, shipped folder.

Every part resumes where it stopped, and is left alone once finished. Below one run folder: corpus/ features/ codec/
vocoder/ tokens/, one folder per stage, and nano/, which is what the package ships.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from vita_mctp.audio import write_wave
from vita_mctp.checkpoints.speech import CodecRef, SelfCheck, SpeechSettings
from vita_mctp.codecs.nano.codec import DECODER_FILE, ENCODER_FILE, NAME
from vita_mctp.codecs.nano.config import NanoCodecConfig
from vita_mctp.codecs.nano.networks import NanoVocoder
from vita_mctp.errors import ConfigError
from vita_mctp.nano.codec_data import BatchMaker, CodecBatch, FeatureStore, Item, build_features
from vita_mctp.nano.codec_training import CodecSchedule, CodecTrainer, train_codec
from vita_mctp.nano.corpus import flite
from vita_mctp.nano.corpus.corpus import Corpus, build_corpus
from vita_mctp.nano.corpus.domain import build_domain
from vita_mctp.nano.corpus.plan import Sizes
from vita_mctp.nano.corpus.voices import PHONES, Voice, speak
from vita_mctp.nano.start import train
from vita_mctp.nano.tokens import CODES_FILE, tokenize_corpus
from vita_mctp.nano.vocoder_training import Speaker, VocoderSchedule, VoiceCrops, newest_speaker, train_speaker
from vita_mctp.strict import build_strict
from vita_mctp.text.vocabulary import VocabularyKind
from vita_mctp.types import Wave
from vita_mctp.yaml_file import read_yaml

log = logging.getLogger(__name__)
CODEC_FOLDER = "codec"
CHECK_FILE, CHECK_QUESTION = "question.wav", "what is eight plus twelve"
CHECK_VOICE = Voice("flite", "awb")
"""What `vita-mctp doctor` asks: never trained on in these words."""

ANSWER_PARTS = ("answers", "sentences")
TEST_PARTS = ("eval_questions", "eval_questions_unseen_flite", "eval_questions_unseen_espeak", "eval_sentences")


@dataclass(frozen=True)
class CodecRecipe:
    """Everything that decides the codec: sizes, schedules, how often each utterance is tokenised."""

    sizes: NanoCodecConfig = field(default_factory=NanoCodecConfig)
    codec: CodecSchedule = field(default_factory=CodecSchedule)
    vocoder: VocoderSchedule = field(default_factory=VocoderSchedule)
    max_frames: int = 8192
    """Log-mel frames of one step of codec training."""
    augmented_variants: int = 3
    """Codes of each utterance to be heard, besides those of the clean recording."""
    corpus: Sizes = field(default_factory=Sizes)
    seed: int = 0


class CodecRun:
    """The codec's part of a run folder."""

    def __init__(self, folder: Path, recipe: CodecRecipe) -> None:
        self.folder, self.recipe = folder, recipe
        self.corpus = Corpus(folder / "corpus")
        self._store: FeatureStore | None = None

    @property
    def store(self) -> FeatureStore:
        """The corpus's log-mel frames, computed on first use."""
        if self._store is None:
            folder = self.folder / "features"
            if not (folder / "frames.f16").is_file():
                build_features(self.corpus, folder, self.recipe.sizes)
            self._store = FeatureStore(folder, self.recipe.sizes.num_mels)
        return self._store

    def maker(self, items: list[Item]) -> BatchMaker:
        """Batches of these items under the recipe's sizes and seed."""
        return BatchMaker(self.store, self.corpus, self.recipe.sizes, items, self.recipe.max_frames, self.recipe.seed)

    def trainer(self) -> CodecTrainer:
        """Fresh weights from the recipe's seed."""
        torch.manual_seed(self.recipe.seed)
        return CodecTrainer(self.recipe.sizes, len(PHONES), len(self.corpus.vocabulary))

    def train_codec(self) -> None:
        """Encoder, mel decoder and readouts."""
        held_out = {
            index for part in self.corpus.parts if part.startswith("eval_") for index in self.corpus.indices(part)
        }
        items = [item for item in self.store.items if item.utterance not in held_out]
        tests = {}
        for part in TEST_PARTS:
            indices = set(self.corpus.indices(part)[:160])
            tests[part] = self._test_batches([i for i in self.store.items if i.utterance in indices and not i.grid])
        train_codec(self.trainer(), self.maker(items), tests, self.recipe.codec, self.folder / "codec")

    def _test_batches(self, items: list[Item]) -> list[CodecBatch]:
        maker = self.maker(items)
        return [maker.batch(group, None) for group in maker.groups(sorted(items, key=lambda item: item.num_frames))]

    def trained_codec(self) -> CodecTrainer:
        """The codec as trained, frozen. ConfigError when its training has not ended."""
        path = self.folder / "codec" / "checkpoint.safetensors"
        if not path.is_file():
            raise ConfigError(f"{path} is missing: train the codec first")
        trainer = self.trainer()
        tensors = load_file(path)
        trainer.load_state_dict({k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")})
        trainer.eval().requires_grad_(False)
        return trainer

    def train_speaker(self) -> None:
        """Vocoder, then vocoder and mel decoder together."""
        trainer = self.trained_codec()
        torch.manual_seed(self.recipe.seed)
        speaker = Speaker(
            trainer.encoder, trainer.mel_decoder.train().requires_grad_(True), NanoVocoder(self.recipe.sizes)
        )
        crops = VoiceCrops(self.corpus, self.store, ANSWER_PARTS, self.recipe.sizes, self.recipe.vocoder)
        train_speaker(speaker, crops, self.recipe.vocoder, self.folder / "vocoder", self.recipe.seed)

    def tokenize(self) -> None:
        """Codes of every utterance."""
        if not (self.folder / "tokens" / CODES_FILE).is_file():
            encoder = self.trained_codec().encoder
            maker = self.maker(self.store.items)
            tokenize_corpus(maker, encoder, self.folder / "tokens", self.recipe.augmented_variants, self.recipe.seed)

    def export(self, folder: Path) -> None:
        """Write config.json and half-precision weights as the package ships them."""
        folder.mkdir(parents=True, exist_ok=True)
        newest = newest_speaker(self.folder / "vocoder")
        if newest is None:
            raise ConfigError(f"no vocoder in {self.folder}: train it first")
        self.recipe.sizes.save(folder)
        save_half(self.trained_codec().encoder.state_dict(), folder / ENCODER_FILE)
        save_half(load_file(newest[1]), folder / DECODER_FILE)


def make_nano(recipes: Path, folder: Path, processes: int = 1) -> Path:
    """Run every part below `folder` by the recipes codec.yaml and stage*.yaml; the folder to ship.

    Raises:
        ConfigError: a recipe is wrong.
        MissingExtraError: flite or espeak-ng is not installed.
    """
    recipe = build_strict(CodecRecipe, read_yaml(recipes / "codec.yaml"), str(recipes / "codec.yaml"))
    build_corpus(folder / "corpus", recipe.seed, processes, recipe.corpus, _report_shards)
    run = CodecRun(folder, recipe)
    run.train_codec()
    run.train_speaker()
    run.tokenize()
    final = None
    for path in sorted(recipes.glob("stage*.yaml")):
        final = train(path, corpus=folder / "corpus", tokens=folder / "tokens", out=folder)
        if final is None:  # a SIGTERM ended the stage, everything saved
            raise KeyboardInterrupt
    if final is None:
        raise ConfigError(f"no stage*.yaml in {recipes}; give the folder of the nano recipes")
    return ship(run, final, folder / "nano")


def ship(run: CodecRun, stage: Path, folder: Path) -> Path:
    """Gather a finished stage and the codec in half precision, with speech.json and a question to check them by."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(stage / name, folder / name)
    save_half(load_file(stage / "model.safetensors"), folder / "model.safetensors")
    run.export(folder / CODEC_FOLDER)
    question = next(qa for qa in build_domain().held_out if qa.question == CHECK_QUESTION)
    write_wave(folder / CHECK_FILE, Wave(speak(question.question, CHECK_VOICE).samples, flite.SAMPLE_RATE))
    codec = CodecRef(name=NAME, folder=CODEC_FOLDER)
    SpeechSettings(
        tokenizer_kind=VocabularyKind.DISCRETE,
        audio_tokenizer=codec,
        audio_decoder=codec,
        max_question_seconds=15.0,
        max_new_tokens=256,
        self_check=SelfCheck(question=CHECK_FILE, answer=question.answer),
    ).write(folder)
    return folder


def save_half(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors in half precision; the loaders widen them."""
    save_file({name: value.half().contiguous() for name, value in tensors.items()}, path, metadata={"format": "pt"})


def _report_shards(done: int, total: int) -> None:
    log.info("corpus: %d of %d shards", done, total)
