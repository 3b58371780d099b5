"""Makes the nano model from nothing: corpus, codec, vocoder, codes. Each part resumes where it stopped.

Below one run folder: corpus/ features/ codec/ vocoder/ tokens/.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from vita_mctp.codec.nano.codec import DECODER_FILE, ENCODER_FILE
from vita_mctp.codec.nano.config import NanoCodecConfig
from vita_mctp.codec.nano.vocoder import NanoVocoder
from vita_mctp.data.synthetic.corpus import Corpus
from vita_mctp.data.synthetic.voices import PHONES
from vita_mctp.errors import ConfigError
from vita_mctp.training.nano_codec import CodecSchedule, CodecTrainer, train_codec
from vita_mctp.training.nano_codec_data import BatchMaker, FeatureStore, Item, build_features
from vita_mctp.training.nano_tokens import CODES_FILE, tokenize_corpus
from vita_mctp.training.nano_vocoder import VocoderSchedule, VoiceCrops, train_vocoder

log = logging.getLogger(__name__)
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

    def _test_batches(self, items: list[Item]) -> list:  # type: ignore[type-arg]
        maker = self.maker(items)
        return [maker.batch(group, None) for group in maker.groups(sorted(items, key=lambda item: item.count))]

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

    def train_vocoder(self, with_codec: bool) -> None:
        """On the voice's own frames, then with `with_codec` on frames from the trained codec."""
        torch.manual_seed(self.recipe.seed)
        trainer = self.trained_codec() if with_codec else None
        indices = self.corpus.indices("answers", "sentences")
        crops = VoiceCrops(self.corpus, indices, self.recipe.sizes, self.recipe.vocoder)
        codec = (trainer.encoder, trainer.mel_decoder) if trainer else None
        train_vocoder(NanoVocoder(self.recipe.sizes), codec, crops, self.recipe.vocoder, self.folder / "vocoder")

    def tokenize(self) -> None:
        """Codes of every utterance."""
        if not (self.folder / "tokens" / CODES_FILE).is_file():
            encoder = self.trained_codec().encoder
            maker = self.maker(self.store.items)
            tokenize_corpus(maker, encoder, self.folder / "tokens", self.recipe.augmented_variants, self.recipe.seed)

    def export(self, folder: Path) -> None:
        """Write config.json and half-precision weights as the package ships them."""
        folder.mkdir(parents=True, exist_ok=True)
        trainer, vocoder = self.trained_codec(), NanoVocoder(self.recipe.sizes)
        newest = max((self.folder / "vocoder").glob("vocoder-*.safetensors"), key=lambda p: int(p.stem.split("-")[1]))
        vocoder.load_state_dict(load_file(newest))
        speaker = nn.ModuleDict({"mel_decoder": trainer.mel_decoder, "vocoder": vocoder})
        self.recipe.sizes.save(folder)
        for name, module in ((ENCODER_FILE, trainer.encoder), (DECODER_FILE, speaker)):
            save_file({key: value.half().contiguous() for key, value in module.state_dict().items()}, folder / name)
