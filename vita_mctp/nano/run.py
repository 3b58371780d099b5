"""Makes the nano model from nothing: corpus, codec, vocoder, codes, four stages; then natural voices; shipped folder.

Every part resumes where it stopped, and is left alone once finished. Below one run folder: corpus/ features/ codec/
vocoder/ tokens/, one folder per stage, natural/ and encoder/, heard_tokens/ and natural_tokens/, and nano/, which is
what the package ships.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import torch
from pydantic import Field
from safetensors.torch import load_file, save_file
from torch import Tensor

from vita_mctp.audio import write_wave
from vita_mctp.checkpoints.opening import OpenedModel, open_model
from vita_mctp.checkpoints.speech import CodecRef, SelfCheck, SpeechSettings
from vita_mctp.codecs.nano import NAME
from vita_mctp.codecs.nano.config import DECODER_FILE, ENCODER_FILE, NanoCodecConfig
from vita_mctp.codecs.nano.networks import NanoEncoder, NanoVocoder
from vita_mctp.data.row_stream import Pool
from vita_mctp.errors import ConfigError
from vita_mctp.nano import kokoro
from vita_mctp.nano.codec_data import (
    CODES_FILE,
    BatchMaker,
    FeatureStore,
    Item,
    open_features,
    tokenize_corpus,
)
from vita_mctp.nano.codec_training import (
    CodecSchedule,
    CodecTrainer,
    Speaker,
    VocoderSchedule,
    VoiceCrops,
    train_codec,
    train_speaker,
)
from vita_mctp.nano.corpus import Corpus, build_corpus, build_planned
from vita_mctp.nano.domain import build_domain
from vita_mctp.nano.encoder_training import MOST_CUT, MOST_STRETCHED, EncoderSchedule, as_heard, train_encoder
from vita_mctp.nano.fitting import trained_weights
from vita_mctp.nano.samples import CodeStore, nano_pools, nano_tokenizer
from vita_mctp.nano.synthesis import SAMPLE_RATE
from vita_mctp.nano.voices import PHONES, Sizes, Voice, natural_plan, speak
from vita_mctp.schema import Schema
from vita_mctp.text.chat import ChatFormat
from vita_mctp.text.tokenizer import TextTokenizer
from vita_mctp.text.vocabulary import VocabularyKind
from vita_mctp.training.arguments import Evaluate
from vita_mctp.training.recipe import Recipe
from vita_mctp.training.stage import TrainingData, train_stage
from vita_mctp.types import Wave
from vita_mctp.yaml_file import read_yaml

log = logging.getLogger(__name__)
CODEC_FOLDER = "codec"
HEARD_TOKENS, NATURAL_TOKENS = "heard_tokens", "natural_tokens"
NATURAL_RECIPE = "natural_sft.yaml"
"""Fine-tuning on what the later encoder hears; beside the stages' recipes."""
CHECK_FILE, CHECK_QUESTION = "question.wav", "what is eight plus twelve"
CHECK_VOICE = Voice("flite", "awb")
"""What `vita-mctp doctor` asks: never trained on in these words."""

ANSWER_PARTS = ("answers", "sentences")
TEST_PARTS = ("eval_questions", "eval_questions_unseen_flite", "eval_questions_unseen_espeak", "eval_sentences")


class CodecRecipe(Schema):
    """Everything that decides the codec: sizes, schedules, how often each utterance is tokenised.

    max_frames: log-mel frames of one step of codec training. augmented_variants: codes of each utterance to be heard,
    besides those of the clean recording; natural_variants: the same of each form of a natural voice's.
    """

    sizes: NanoCodecConfig = Field(default_factory=NanoCodecConfig)
    codec: CodecSchedule = Field(default_factory=CodecSchedule)
    vocoder: VocoderSchedule = Field(default_factory=VocoderSchedule)
    max_frames: int = Field(default=8192, gt=0)
    augmented_variants: int = Field(default=3, ge=0)
    natural_variants: int = Field(default=8, ge=0)
    corpus: Sizes = Field(default_factory=Sizes)
    encoder: EncoderSchedule = Field(default_factory=EncoderSchedule)
    seed: int = Field(default=0, ge=0)


@dataclass(eq=False)
class CodecRun:
    """The codec's part of a run folder."""

    folder: Path
    recipe: CodecRecipe

    @cached_property
    def corpus(self) -> Corpus:
        return Corpus(self.folder / "corpus")

    @cached_property
    def store(self) -> FeatureStore:
        """The corpus's log-mel frames, computed once."""
        return open_features(self.corpus, self.folder / "features", self.recipe.sizes)

    def maker(self, items: list[Item]) -> BatchMaker:
        """Batches of these items under the recipe's sizes and seed."""
        return BatchMaker(self.store, self.corpus, self.recipe.sizes, items, self.recipe.max_frames, self.recipe.seed)

    def trainer(self) -> CodecTrainer:
        """Fresh weights from the recipe's seed."""
        torch.manual_seed(self.recipe.seed)
        return CodecTrainer(self.recipe.sizes, len(PHONES), len(self.corpus.vocabulary))

    def train_codec(self) -> None:
        """Encoder, mel decoder and readouts."""
        parts = [part for part in self.corpus.parts if part.startswith("eval_")]
        held_out = set(self.corpus.indices(*parts))
        items = [item for item in self.store.items if item.utterance not in held_out]
        tests = {}
        for part in TEST_PARTS:
            chosen = set(self.corpus.indices(part)[:160])
            held = [item for item in self.store.items if item.utterance in chosen and not item.grid]
            maker = self.maker(sorted(held, key=lambda item: item.num_frames))
            tests[part] = [maker.batch(group, None) for group in maker.groups(maker.items)]
        train_codec(self.trainer(), self.maker(items), tests, self.recipe.codec, self.folder / "codec")

    def trained_codec(self) -> CodecTrainer:
        """The codec as trained, frozen. Raises ConfigError when its training has not ended."""
        trainer = self.trainer()
        trainer.load_state_dict(trained_weights(self.folder / "codec"))
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
        speaker = trained_weights(self.folder / "vocoder")
        self.recipe.sizes.save(folder)
        save_half(self.trained_codec().encoder.state_dict(), folder / ENCODER_FILE)
        save_half(speaker, folder / DECODER_FILE)


def make_nano(recipes: Path, folder: Path, processes: int = 1) -> Path:
    """Run every part below `folder` by the recipes codec.yaml and stage*.yaml; the folder to ship.

    Raises:
        ConfigError: a recipe is wrong.
        MissingExtraError: flite or espeak-ng is not installed.
    """
    recipe = CodecRecipe.parse(read_yaml(recipes / "codec.yaml"), str(recipes / "codec.yaml"))
    build_corpus(folder / "corpus", recipe.seed, processes, recipe.corpus, partial(log.info, "corpus: %d of %d shards"))
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
    nano = ship(run, final, folder / "nano")
    if recipe.encoder.questions and kokoro.is_installed():
        hear_natural_voices(open_model(nano), recipe.encoder, folder, recipe.seed)
        tokenize_as_heard(nano / CODEC_FOLDER, folder, recipe)
        tuned = train(recipes / NATURAL_RECIPE, corpus=folder / "corpus", tokens=folder / "tokens", out=folder)
        if tuned is None:
            raise KeyboardInterrupt
        save_half(load_file(tuned / "model.safetensors"), nano / "model.safetensors")
    elif recipe.encoder.questions:
        log.warning("hears no natural voices: the extra kokoro, or the styles that go with it, are missing")
    return nano


def hear_natural_voices(model: OpenedModel, schedule: EncoderSchedule, folder: Path, seed: int) -> None:
    """Trains the encoder of a finished nano on, beside the corpus in `folder`, and puts it into the model's folder."""
    natural = build_planned(
        folder / "natural", natural_plan(schedule.questions, seed, schedule.babble, schedule.spliced), seed
    )
    known, codec = Corpus(folder / "corpus"), Path(model.speech.audio_tokenizer.folder)
    config = NanoCodecConfig.load(codec)
    speech = (known, open_features(known, folder / "features", config))
    asked = (natural, open_features(natural, folder / "natural_features", config, schedule.recordings))
    encoder = train_encoder(model, speech, asked, schedule, folder / "encoder", seed)
    save_half(encoder.state_dict(), codec / ENCODER_FILE)


def tokenize_as_heard(codec: Path, folder: Path, recipe: CodecRecipe) -> None:
    """Codes of the corpus and of the natural voices in `folder`, disturbed as the encoder learnt to hear them."""
    config, encoder = NanoCodecConfig.load(codec), NanoEncoder.from_folder(codec)
    hear = partial(as_heard, config=config, clean=recipe.encoder.clean)
    for speech, features, tokens, variants, changes in (
        ("corpus", "features", HEARD_TOKENS, recipe.augmented_variants, (0, 0.0)),
        ("natural", "natural_features", NATURAL_TOKENS, recipe.natural_variants, (MOST_CUT, MOST_STRETCHED)),
    ):
        if not (folder / tokens / CODES_FILE).is_file():
            corpus = Corpus(folder / speech)
            store = open_features(corpus, folder / features, config, recipe.encoder.recordings)
            maker = BatchMaker(store, corpus, config, store.items, recipe.max_frames, recipe.seed, *changes)
            tokenize_corpus(maker, encoder, folder / tokens, variants, recipe.seed, hear)


def train(
    recipe_path: Path | str,
    *,
    corpus: Path | str,
    tokens: Path | str,
    out: Path | str,
    resume: bool = True,
    evaluate: Evaluate | None = None,
    settings: Sequence[str] = (),
) -> Path | None:
    """Run one of nano's stages, or finish it where it stopped; arguments, result and errors as `train_stage`'s.

    Args:
        corpus, tokens: folders of the synthetic corpus and of its codes (see `CodeStore`).
    """

    def pools(recipe: Recipe, tokenizer: TextTokenizer) -> Mapping[str, Pool]:
        chat, ratios, said = ChatFormat(tokenizer), recipe.data.ratios, CodeStore.load(Path(tokens))
        spoken = Corpus(Path(corpus))
        if Path(recipe_path).name != NATURAL_RECIPE:
            return nano_pools((spoken, said), chat, ratios)
        beside = Path(corpus).parent
        natural = Corpus(beside / "natural"), CodeStore.load(beside / NATURAL_TOKENS)
        return nano_pools((spoken, CodeStore.load(beside / HEARD_TOKENS)), chat, ratios, said, natural)

    def tokenizer(recipe: Recipe, folder: Path) -> TextTokenizer:
        if recipe.model is None:
            raise ConfigError(f"{recipe.name}: nano begins from nothing, so `model` is needed")
        return nano_tokenizer(folder, recipe.model.num_audio_codes)

    data = TrainingData(pools, tokenizer)
    return train_stage(Path(recipe_path), data, out=Path(out), settings=settings, resume=resume, evaluate=evaluate)


def ship(run: CodecRun, stage: Path, folder: Path) -> Path:
    """Gather a finished stage and the codec in half precision, with speech.json and a question to check them by."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(stage / name, folder / name)
    generation = folder / "generation_config.json"
    defaults = json.loads(generation.read_bytes()) | {"mtp_inference_mode": "verified"}  # not the rhythm of training
    generation.write_text(json.dumps(defaults, indent=2) + "\n")
    save_half(load_file(stage / "model.safetensors"), folder / "model.safetensors")
    run.export(folder / CODEC_FOLDER)
    question = next(qa for qa in build_domain().held_out if qa.question == CHECK_QUESTION)
    write_wave(folder / CHECK_FILE, Wave(speak(question.question, CHECK_VOICE).samples, SAMPLE_RATE))
    codec = CodecRef(name=NAME, folder=CODEC_FOLDER)
    SpeechSettings(
        tokenizer_kind=VocabularyKind.DISCRETE,
        audio_tokenizer=codec,
        audio_decoder=codec,
        max_question_seconds=15.0,
        cut_to_speech=True,
        max_new_tokens=256,
        spoken_words=build_domain().vocabulary,
        self_check=SelfCheck(question=CHECK_FILE, answer=question.answer),
    ).write(folder)
    return folder


def save_half(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors in half precision; the loaders widen them."""
    save_file({name: value.half().contiguous() for name, value in tensors.items()}, path, metadata={"format": "pt"})
