"""Natural voices: who asks what, and how espeak-ng's phonemes become Kokoro's."""

from pathlib import Path

import numpy as np
import pytest

from vita_mctp.errors import MissingExtraError
from vita_mctp.nano import kokoro
from vita_mctp.nano.domain import build_domain
from vita_mctp.nano.voices import NATURAL_BABBLE, NATURAL_PART, Voice, natural_plan, speak


def test_phonemes_are_those_that_kokoro_knows() -> None:
    assert kokoro.phonemes("how many legs has a chicken", british=False) == "hˌW mˈɛni lˈɛɡz həz ə ʧˈɪkɪn?"
    assert kokoro.phonemes("count from four to nine", british=True) == "kˈWnt fɹɒm fˈɔː tə nˈIn."
    for british in (False, True):
        written = "".join(kokoro.phonemes(qa.question, british) for qa in build_domain().questions)
        assert not set(written) - kokoro.SYMBOLS.keys()


def test_training_asks_trained_questions_in_trained_voices() -> None:
    items = natural_plan(300, seed=0)[NATURAL_PART]
    assert items[:100] == natural_plan(100, seed=0)[NATURAL_PART], "a larger corpus begins as a smaller one"
    assert {name for item in items for name in item.voice.base.split("+")} == set(kokoro.TRAINED)
    assert {item.text for item in items} <= {qa.question for qa in build_domain().train}
    babble = natural_plan(2, seed=0, babble=30)[NATURAL_BABBLE]
    assert sum(" plus " in item.text or " minus " in item.text for item in babble) >= 10, "bare sums"
    assert {word for item in babble for word in item.text.split()} <= set(build_domain().vocabulary)
    assert not {item.text for item in babble} & {qa.question for qa in build_domain().held_out}
    assert {name for item in babble for name in item.voice.base.split("+")} <= set(kokoro.TRAINED)
    assert not {*kokoro.TRAINED, *kokoro.FOREIGN} & {*kokoro.UNSEEN, "af_sky", "am_adam", "bf_lily", "bm_lewis"}


def test_words_said_one_by_one_are_sums_series_and_no_order_by_every_voice() -> None:
    items = natural_plan(1, seed=0, babble=1, spliced=3_700)[NATURAL_BABBLE][1:]
    assert {name for item in items for name in item.voice.base.split("+")} == {*kokoro.TRAINED, *kokoro.FOREIGN}
    assert len({item.voice for item in items[:100]}) == 1, "a voice says a word once for all that it is in"
    words = [item.text.split() for item in items]
    assert 900 < sum(len(text) == 3 and text[1] in ("plus", "minus") for text in words) < 1_600
    assert {word for text in words for word in text} == set(build_domain().vocabulary)


def test_what_is_missing_or_another_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kokoro._styles.cache_clear()
    monkeypatch.setenv("KOKORO_JS", str(tmp_path / "styles.tgz"))
    with pytest.raises(MissingExtraError, match="npm pack kokoro-js"):
        kokoro.speak_kokoro("hello", "af_heart")
    (tmp_path / "styles.tgz").write_bytes(b"other")
    with pytest.raises(MissingExtraError, match="SHA-256"):
        kokoro.speak_kokoro("hello", "af_heart")


@pytest.mark.skipif(not kokoro.is_installed(), reason="Kokoro's packages are not here")
def test_a_voice_repeats_itself_and_two_differ() -> None:
    one, again, other = (kokoro.speak_kokoro("hello", voice) for voice in ("af_heart", "af_heart", "af_heart+am_puck"))
    np.testing.assert_array_equal(one, again)
    assert len(one) != len(other) or not np.array_equal(one, other)
    assert 0.3 < len(one) / 16_000 < 3


@pytest.mark.skipif(not kokoro.is_installed(), reason="Kokoro's packages are not here")
def test_a_sum_is_said_word_by_word() -> None:
    voice = Voice("kokoro_words", "af_heart")
    total, alone, sentence = (
        speak(text, by)
        for text, by in (("one plus one", voice), ("one", voice), ("one plus one", Voice("kokoro", "af_heart")))
    )
    np.testing.assert_array_equal(
        total.samples[:8_000], alone.samples[:8_000], "0.3 s of silence, then the word as it is alone"
    )
    assert len(total.samples) > 2 * (len(alone.samples) - 2 * 4_800)
    assert [phone.name for phone in total.phones] == [phone.name for phone in sentence.phones]
