"""How nano's encoder learns natural voices through the language model."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from vita_mctp.checkpoints.opening import find_model, open_model
from vita_mctp.codecs.nano.config import LogMel, NanoCodecConfig
from vita_mctp.codecs.nano.networks import NanoEncoder
from vita_mctp.nano.codec_data import BatchMaker, open_features, tokenize_corpus
from vita_mctp.nano.corpus import Corpus, Utterance, build_corpus
from vita_mctp.nano.domain import build_domain
from vita_mctp.nano.encoder_training import (
    EncoderSchedule,
    Questions,
    _in_room,
    disturb,
    embed_softly,
    lm_loss,
    straight_through,
    train_encoder,
    unrounded,
)
from vita_mctp.nano.run import HEARD_TOKENS, NATURAL_TOKENS, CodecRecipe, tokenize_as_heard
from vita_mctp.nano.samples import CodeStore
from vita_mctp.nano.voices import Sizes
from vita_mctp.text.chat import ChatFormat

CONFIG = NanoCodecConfig()
CODEC = find_model("nano") / "codec"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return build_corpus(tmp_path_factory.mktemp("speech") / "corpus", sizes=Sizes(questions=3, sentences=4, babble=2))


def test_digits_round_to_the_encoders_codes() -> None:
    encoder = NanoEncoder.from_folder(CODEC)
    noise = 0.1 * np.random.default_rng(0).standard_normal((1, 12800)).astype(np.float32)
    frames = torch.from_numpy(LogMel(CONFIG)(noise))
    points, codes = encoder(frames)
    digits = straight_through(unrounded(encoder, frames))
    torch.testing.assert_close(encoder.quantizer.points(digits), points)
    table = torch.arange(CONFIG.codebook_size, dtype=torch.float32)[:, None]
    torch.testing.assert_close(embed_softly(unrounded(encoder, frames), table, CONFIG.levels)[..., 0], codes.float())


def test_the_gradient_is_the_slope_between_neighbouring_codes() -> None:
    table = torch.tensor([0.0, 1.0, 4.0, 10.0, 11.0, 14.0])[:, None]  # 3 x 2: the first digit counts ones
    digits = torch.tensor([[[1.25, 0.5]]], requires_grad=True)
    embedding = embed_softly(digits, table, (3, 2))
    assert embedding.item() == 1.0, "the code of (1, 0)"
    embedding.sum().backward()
    assert digits.grad is not None
    assert digits.grad[0, 0].tolist() == [3.0, 10.0]


def test_the_loss_is_the_language_models_own() -> None:
    opened = open_model("nano")
    lm = opened.load_model(dtype="float32")
    chat = ChatFormat(opened.load_tokenizer(CONFIG.codebook_size))
    asked = build_domain().train[0]
    sample = Questions(chat, {asked.answer: (1, 2, 3, 4)}).sample(asked.question, 5, asr=False)
    assert asked.answer in chat.tokenizer.decode([token for token in sample.labels if token >= 0])
    ids, labels = torch.tensor([sample.ids]), torch.tensor([sample.labels])
    blocks = lm.config.num_nextn_predict_layers
    whole = lm(ids, labels)  # type: ignore[operator]
    expected = whole.lm_loss + torch.stack([whole.lm_loss, *whole.mtp_losses]).mean()
    torch.testing.assert_close(lm_loss(lm, lm.embed(ids), labels, blocks), expected)


def test_disturbed_frames_are_drawn_from_their_seed() -> None:
    noise = 0.1 * np.random.default_rng(0).standard_normal((6, 12800)).astype(np.float32)
    frames = torch.from_numpy(LogMel(CONFIG)(noise))
    one, again, other = (disturb(frames, CONFIG, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, again) and not torch.equal(one, other)
    assert one.shape == frames.shape and bool(torch.isfinite(one).all())


def test_a_room_fills_what_follows_a_sound() -> None:
    frames = torch.full((1, 60, CONFIG.num_mels), -8.0)
    frames[:, 10] = 2.0
    echo = _in_room(frames, torch.full((1, 1, 1), 0.3), torch.full((1, 1, 1), 6.0), 0.01)[0, :, 0]
    assert torch.allclose(echo[:11], frames[0, :11, 0], atol=0.12), "before it: what was there, and its echo"
    slope = (echo[30] - echo[20]).item()
    assert slope == pytest.approx(-60 / 8.686 * 0.1 / 0.3, abs=0.05), "60 dB in 0.3 s"


class Natural(Corpus):
    """The same, spoken by a natural voice."""

    def utterance(self, index: int) -> Utterance:
        return replace(super().utterance(index), voice="kokoro:af_heart:1:1", phone_ends=None)


def test_every_form_of_a_recording_has_codes_of_its_own(corpus: Corpus, tmp_path: Path) -> None:
    natural = Natural(corpus.folder)
    store = open_features(natural, tmp_path / "features", CONFIG, recordings=2)
    asked = natural.indices("questions")[0]
    forms = [store.frames(item) for item in store.items if item.utterance == asked]
    assert len(forms) == 3 and len({form.tobytes() for form in forms}) > 1
    encoder = NanoEncoder.from_folder(CODEC)
    tokenize_corpus(BatchMaker(store, natural, CONFIG, store.items, 4096, 0), encoder, tmp_path / "tokens", 2, 0)
    index = np.load(tmp_path / "tokens" / "index.npy")
    assert index[index[:, 0] == asked, 1].tolist() == [*range(7)], "the clean one's, and two of each form"


def test_codes_are_of_disturbed_questions_and_of_the_clean_answer_voice(corpus: Corpus, tmp_path: Path) -> None:
    for name in ("corpus", "natural"):
        (tmp_path / name).symlink_to(corpus.folder)
    tokenize_as_heard(CODEC, tmp_path, CodecRecipe(augmented_variants=1, natural_variants=3))
    asked, said = corpus.indices("questions")[0], corpus.indices("answers")[0]
    heard, natural = (CodeStore.load(tmp_path / tokens) for tokens in (HEARD_TOKENS, NATURAL_TOKENS))
    assert heard.codes(asked, 0) != heard.codes(asked, 1) and heard.codes(asked, 0) == heard.codes(asked, 2)
    assert heard.codes(said, 0) == natural.codes(said, 0)
    assert len({natural.codes(asked, variant) for variant in range(4)}) > 1


def weights(encoder: torch.nn.Module) -> list[Tensor]:
    return [weight.detach().clone() for weight in encoder.parameters()]


def test_the_encoder_alone_learns_and_goes_on_where_it_stopped(corpus: Corpus, tmp_path: Path) -> None:
    opened = open_model("nano")
    speech = (corpus, open_features(corpus, tmp_path / "features", CONFIG))
    schedule = EncoderSchedule(
        steps=2, readout_steps=1, warmup=1, max_frames=600, bf16=False, log_every=1, save_every=1
    )
    encoder = train_encoder(opened, speech, speech, schedule, tmp_path / "encoder", seed=0)
    assert any(
        not torch.equal(*pair) for pair in zip(weights(encoder), weights(NanoEncoder.from_folder(CODEC)), strict=True)
    )
    again = train_encoder(opened, speech, speech, schedule, tmp_path / "encoder", seed=0)
    assert all(torch.equal(*pair) for pair in zip(weights(again), weights(encoder), strict=True))
    rows = (tmp_path / "encoder" / "log.jsonl").read_text().splitlines()
    assert len(rows) == 2 and "lm" not in rows[0] and "lm" in rows[1]
