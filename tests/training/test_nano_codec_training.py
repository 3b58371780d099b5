"""The codec's data and training on a corpus of a few sentences."""

from pathlib import Path

import numpy as np
import pytest
import torch

from vita_mctp.codecs.nano import NanoCodecConfig, NanoDecoder, NanoTokenizer
from vita_mctp.errors import OutputError
from vita_mctp.nano.codec_data import augment, grid_positions, tokenize_corpus, warp_frames
from vita_mctp.nano.codec_training import CodecSchedule, VocoderSchedule, edit_distance, greedy_ctc, spectral_distance
from vita_mctp.nano.corpus import build_corpus
from vita_mctp.nano.run import CodecRecipe, CodecRun
from vita_mctp.nano.samples import CodeStore
from vita_mctp.nano.voices import Sizes
from vita_mctp.types import Wave

SMALL = NanoCodecConfig(
    fine_width=24,
    coarse_width=32,
    vocoder_width=24,
    encoder_fine_layers=1,
    encoder_coarse_layers=1,
    decoder_fine_layers=1,
    decoder_coarse_layers=1,
    vocoder_layers=1,
)
RECIPE = CodecRecipe(
    sizes=SMALL,
    codec=CodecSchedule(steps=6, warmup=2, bf16=False, log_every=2, save_every=3),
    vocoder=VocoderSchedule(
        steps=4, own_frames_steps=2, batch=2, crop_codes=10, warmup=1, bf16=False, log_every=1, save_every=2
    ),
    max_frames=800,
    augmented_variants=1,
    corpus=Sizes(questions=3, answers=3, sentences=4, babble=2),
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> CodecRun:
    folder = tmp_path_factory.mktemp("nano")
    build_corpus(folder / "corpus", sizes=RECIPE.corpus)
    return CodecRun(folder, RECIPE)


def test_words_start_on_code_borders() -> None:
    sources, targets = grid_positions(np.array([21.0, 33.5, 36.0, 70.0], np.float32), 95.0, step=8)
    assert sources.tolist() == [13.0, 21.0, 33.5, 36.0, 70.0, 95.0, 103.0]
    assert targets.tolist() == [0.0, 8.0, 24.0, 32.0, 64.0, 88.0, 96.0]


def test_warping_moves_frames_and_keeps_their_values() -> None:
    ramp = np.arange(40, dtype=np.float32)[:, None]
    same = warp_frames(ramp, np.array([0.0, 40.0], np.float32), np.array([0.0, 40.0], np.float32))
    np.testing.assert_allclose(same, ramp, atol=1e-5)
    slow = warp_frames(ramp, np.array([0.0, 20.0, 40.0], np.float32), np.array([0.0, 40.0, 60.0], np.float32))
    assert len(slow) == 60
    np.testing.assert_allclose(slow[20:40, 0], np.arange(20, 40) / 2 - 0.25, atol=1e-4)


def test_augmentation_is_drawn_from_its_seed_and_spares_the_answer_voice_its_shape() -> None:
    frames = torch.randn(3, 50, 80, generator=torch.Generator().manual_seed(0))
    answer = torch.tensor([True, False, False])
    one, again, other = (augment(frames, answer, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    change = one[0] - frames[0]
    assert float(change[frames[0] > 0].std()) < 0.02 < float((one[1] - frames[1]).std())


def test_edit_distance_and_greedy_path() -> None:
    assert edit_distance([1, 2, 3], [1, 3, 4]) == 2
    assert edit_distance([], [5, 6]) == 2
    logits = torch.eye(4)[[0, 2, 2, 0, 2, 3, 1]]
    assert greedy_ctc(logits, 6) == [1, 1, 2]


def test_spectral_distance_is_zero_for_the_same_wave_alone() -> None:
    wave = torch.randn(2, 8000, generator=torch.Generator().manual_seed(0)) * 0.1
    assert float(spectral_distance(wave, wave)) == 0.0
    assert float(spectral_distance(wave * 0.5, wave)) > 0.5


def test_features_hold_every_utterance_and_the_answer_voice_twice(run: CodecRun) -> None:
    by_form = {(item.utterance, item.grid) for item in run.store.items}
    assert {index for index, grid in by_form if not grid} == set(range(len(run.corpus)))
    spoken = set(run.corpus.indices("answers", "sentences", "eval_sentences"))
    assert spoken <= {index for index, grid in by_form if grid}
    assert all(item.num_frames % SMALL.frames_per_code == 0 for item in run.store.items if item.grid)


def test_an_epoch_has_every_item_once_and_is_repeatable(run: CodecRun) -> None:
    maker = run.maker(run.store.items)
    first, again = list(maker.epoch(0)), list(maker.epoch(0))
    assert sum(len(batch.phones) for batch in first) == len(run.store.items)
    assert all(torch.equal(one.inputs, two.inputs) for one, two in zip(first, again, strict=True))
    assert all(int(batch.num_frames.max()) == batch.inputs.shape[1] for batch in first)


def test_trained_codec_tokenises_and_ships(run: CodecRun, tmp_path: Path) -> None:
    before = [p.sum().item() for p in run.trainer().parameters()]
    run.train_codec()
    run.train_speaker()
    assert [p.sum().item() for p in run.trained_codec().parameters()] != before
    run.tokenize()
    store = CodeStore.load(run.folder / "tokens")
    run.export(tmp_path)
    tokenizer, decoder = NanoTokenizer.from_folder(tmp_path), NanoDecoder.from_folder(tmp_path)
    index = run.corpus.indices("questions")[0]
    heard = tokenizer.encode(Wave(run.corpus.utterance(index).samples, 16_000))
    stored = store.codes(index, 0)
    assert len(heard.ids) == len(stored)
    agreement = np.mean(np.array(stored) == heard.ids)
    assert agreement > 0.8, "half-precision weights and batch padding move few codes"
    assert len(decoder.decode(heard).samples) == len(heard.ids) * SMALL.samples_per_code


def test_interrupted_training_goes_on_from_its_checkpoint(run: CodecRun) -> None:
    run.train_codec()
    lines = (run.folder / "codec" / "log.jsonl").read_text().splitlines()
    run.train_codec()
    assert (run.folder / "codec" / "log.jsonl").read_text().splitlines() == lines


def test_codes_stand_only_where_their_index_does(run: CodecRun, tmp_path: Path) -> None:
    """A run that goes on takes codes that are there for whole."""
    (tmp_path / "index.npy").mkdir()
    maker = run.maker(run.store.items[:2])
    with pytest.raises((OSError, OutputError)):
        tokenize_corpus(maker, run.trainer().encoder, tmp_path, 0, 0)
    assert not (tmp_path / "codes.npy").exists()


def test_of_nothing_there_is_no_batch(run: CodecRun) -> None:
    """Such as of a part of the corpus that a small run has none of."""
    assert list(run.maker([]).groups([])) == []
