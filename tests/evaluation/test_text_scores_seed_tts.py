"""`seed_tts_en` and `seed_tts_zh` against BytedanceSpeech/seed-tts-eval, run_wer.py and average_wer.py."""

import pytest

from vita_mctp.evaluation.text_scores import WordErrors, text_rule

pytest.importorskip("zhon")
pytest.importorskip("zhconv")
Case = tuple[str, str, str, str, WordErrors]

ENGLISH: list[Case] = [  # reference, hypothesis, both as compared, edits
    ("Hello world.", "hello world", "hello world", "hello world", WordErrors(0, 0, 0, 2)),
    ("Hello, World!", "HELLO WORLD", "hello world", "hello world", WordErrors(0, 0, 0, 2)),
    ("Don't go.", "don't go", "don't go", "don't go", WordErrors(0, 0, 0, 2)),
    ("Don’t go.", "don't go", "dont go", "don't go", WordErrors(1, 0, 0, 2)),
    ("well-known", "well known", "wellknown", "well known", WordErrors(1, 0, 1, 1)),
    ("one, two", "one two three", "one two", "one two three", WordErrors(0, 0, 1, 2)),
    ("one two three", "one three", "one two three", "one three", WordErrors(0, 1, 0, 3)),
    ("twenty one", "21", "twenty one", "21", WordErrors(1, 1, 0, 2)),
    ("colour", "color", "colour", "color", WordErrors(1, 0, 0, 1)),
    ("I'm here", "I am here", "i'm here", "i am here", WordErrors(1, 0, 1, 2)),
    ("a - b", "a b", "a b", "a b", WordErrors(0, 0, 0, 2)),
    ("a  b   c", "a b c", "a b c", "a b c", WordErrors(0, 0, 0, 3)),
    (" padded ", "padded", "padded", "padded", WordErrors(0, 0, 0, 1)),
    ("$5.00", "500", "500", "500", WordErrors(0, 0, 0, 1)),
    ("[noise] yes", "yes", "noise yes", "yes", WordErrors(0, 1, 0, 2)),
    ("（full）width，marks。", "fullwidthmarks", "fullwidthmarks", "fullwidthmarks", WordErrors(0, 0, 0, 1)),
    ("“quoted”", "quoted", "quoted", "quoted", WordErrors(0, 0, 0, 1)),
    ("wait…", "wait", "wait", "wait", WordErrors(0, 0, 0, 1)),
    ("café", "cafe", "café", "cafe", WordErrors(1, 0, 0, 1)),
    ("say it", "", "say it", "", WordErrors(0, 2, 0, 2)),
    ("say it", "...", "say it", "", WordErrors(0, 2, 0, 2)),
    ("go", "no no no", "go", "no no no", WordErrors(1, 0, 2, 1)),
    ("uh yes", "yes", "uh yes", "yes", WordErrors(0, 1, 0, 2)),
    ("Mr. Smith", "mister smith", "mr smith", "mister smith", WordErrors(1, 0, 0, 2)),
    ("a/b", "ab", "ab", "ab", WordErrors(0, 0, 0, 1)),
    ("snake_case", "snakecase", "snakecase", "snakecase", WordErrors(0, 0, 0, 1)),
    ("100%", "100", "100", "100", WordErrors(0, 0, 0, 1)),
    ("é–è", "éè", "éè", "éè", WordErrors(0, 0, 0, 1)),
    ("'tis", "tis", "'tis", "tis", WordErrors(1, 0, 0, 1)),
    ("A B C D", "a x c d", "a b c d", "a x c d", WordErrors(1, 0, 0, 4)),
]
CHINESE: list[Case] = [
    ("你好，世界。", "你好世界", "你 好 世 界", "你 好 世 界", WordErrors(0, 0, 0, 4)),
    ("你好世界", "你好 世界", "你 好 世 界", "你 好 世 界", WordErrors(0, 0, 0, 4)),
    ("你好世界", "你好", "你 好 世 界", "你 好", WordErrors(0, 2, 0, 4)),
    ("你好", "你好世界", "你 好", "你 好 世 界", WordErrors(0, 0, 2, 2)),
    ("你好", "您好", "你 好", "您 好", WordErrors(1, 0, 0, 2)),
    ("汉语", "漢語", "汉 语", "汉 语", WordErrors(0, 0, 0, 2)),
    ("漢語", "汉语", "漢 語", "汉 语", WordErrors(2, 0, 0, 2)),
    ("台湾", "臺灣", "台 湾", "台 湾", WordErrors(0, 0, 0, 2)),
    ("用APP", "用app", "用 A P P", "用 a p p", WordErrors(3, 0, 0, 4)),
    ("用APP", "用APP", "用 A P P", "用 A P P", WordErrors(0, 0, 0, 4)),
    ("用 A P P", "用APP", "用 A P P", "用 A P P", WordErrors(0, 0, 0, 4)),
    ("二零二四年", "2024年", "二 零 二 四 年", "2 0 2 4 年", WordErrors(4, 0, 0, 5)),
    ("十", "10", "十", "1 0", WordErrors(1, 0, 1, 1)),
    ("《红楼梦》", "红楼梦", "红 楼 梦", "红 楼 梦", WordErrors(0, 0, 0, 3)),
    ("“好”", "好", "好", "好", WordErrors(0, 0, 0, 1)),
    ("他说：「走」！", "他说走", "他 说 走", "他 说 走", WordErrors(0, 0, 0, 3)),
    ("等等……", "等等", "等 等", "等 等", WordErrors(0, 0, 0, 2)),
    ("一——二", "一二", "一 二", "一 二", WordErrors(0, 0, 0, 2)),
    ("一－二～三", "一二三", "一 二 三", "一 二 三", WordErrors(0, 0, 0, 3)),
    ("全　角", "全角", "全 角", "全 角", WordErrors(0, 0, 0, 2)),
    ("你'好", "你好", "你 ' 好", "你 好", WordErrors(0, 1, 0, 3)),
    ("你好", "", "你 好", "", WordErrors(0, 2, 0, 2)),
    ("你好", "。", "你 好", "", WordErrors(0, 2, 0, 2)),
    ("好", "不好吗", "好", "不 好 吗", WordErrors(0, 0, 2, 1)),
    ("百分之五", "5%", "百 分 之 五", "5", WordErrors(1, 3, 0, 4)),
    ("三点五", "3.5", "三 点 五", "3 5", WordErrors(2, 1, 0, 3)),
    ("好好好", "好", "好 好 好", "好", WordErrors(0, 2, 0, 3)),
    ("吃饭了吗?", "吃饭了吗？", "吃 饭 了 吗", "吃 饭 了 吗", WordErrors(0, 0, 0, 4)),
    ("a b", "ab", "a b", "a b", WordErrors(0, 0, 0, 2)),
    ("，，，你", "你", "你", "你", WordErrors(0, 0, 0, 1)),
    ("后来", "後來", "后 来", "后 来", WordErrors(0, 0, 0, 2)),
]


@pytest.mark.parametrize(("reference", "hypothesis", "said", "heard", "wanted"), ENGLISH)
def test_english_pairs(reference: str, hypothesis: str, said: str, heard: str, wanted: WordErrors) -> None:
    pair = text_rule("seed_tts_en").score(reference, hypothesis)
    assert (pair.reference, pair.hypothesis, pair) == (said, heard, wanted)


@pytest.mark.parametrize(("reference", "hypothesis", "said", "heard", "wanted"), CHINESE)
def test_chinese_pairs(reference: str, hypothesis: str, said: str, heard: str, wanted: WordErrors) -> None:
    pair = text_rule("seed_tts_zh").score(reference, hypothesis)
    assert (pair.reference, pair.hypothesis, pair) == (said, heard, wanted)


def test_the_average_counts_each_utterance_alike_and_failures_as_wholly_wrong() -> None:
    pairs = [("一二三四五六七八九十", "一二三四五六七八九十"), ("好", "不好"), ("你好", "")]
    rule = text_rule("seed_tts_zh")
    fractions = [rule.fraction(rule.score(*pair)) for pair in pairs]
    assert fractions == [(0 / 10, 1), (1 / 1, 1), (2 / 2, 1)]
