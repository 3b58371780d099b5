"""`zh_cer` against wenet-e2e/wenet, tools/compute-wer.py --char=1."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vita_mctp.evaluation.text_scores import TEXT_RULES, WordErrors, text_rule, wenet_characters

for package in ("whisper_normalizer", "zhconv", "zhon"):
    pytest.importorskip(package)
TOKENS = {
    "今天天气很好": "今 天 天 气 很 好",
    "今天 天气\t很好\r\n": "今 天 天 气 很 好",
    "今天，天气很好。": "今 天 天 气 很 好",
    "！？、；：「」『』《》︰": "",
    "打开wifi": "打 开 WIFI",
    "打开 Wi-Fi 开关": "打 开 WI-FI 开 关",
    "hello world": "HELLO WORLD",
    "hello, world!": "HELLO, WORLD!",
    "你好,world": "你 好 WORLD",
    "don't stop": "DON'T STOP",
    "2024年5月": "2024 年 5 月",
    "3.5%的人": "3.5% 的 人",
    "一百２３": "一 百 ２ ３",
    "Ａ股": "Ａ 股",
    "iPhone15手机": "IPHONE15 手 机",
    "<unk>你好": "你 好",
    "你<noise>好": "你 好",
    "<a><b>你": "你",
    "a<b>c你": "AC 你",
    "<unk 你": "你",
    "x<y": "X",
    "　全角　空格　": "全 角 空 格",
    "他说“好”": "他 说 “ 好 ”",
    "天…地": "天 … 地",
    "カタカナ": "カ タ カ ナ",
    "コーヒー": "コ ー ヒ ー",
    "한국어": "한 국 어",
    "臺灣漢語": "臺 灣 漢 語",
    "café": "CAF É",
    "straße": "STRA SSE",
    "，。": "",
    "": "",
    "嗯": "嗯",
}


@pytest.mark.parametrize(("text", "wanted"), TOKENS.items())
def test_characters_are_cut_as_wenet_cuts_them(text: str, wanted: str) -> None:
    assert wenet_characters(text) == wanted


@pytest.mark.parametrize(
    ("reference", "hypothesis", "wanted"),
    [
        ("今天天气很好", "今天天气很好", WordErrors(0, 0, 0, 6)),
        ("今天天气很好", "今天天很好啊", WordErrors(0, 1, 1, 6)),
        ("今天，天气很好。", "今天天气很坏", WordErrors(1, 0, 0, 6)),
        ("打开wifi", "打开WIFI", WordErrors(0, 0, 0, 3)),
        ("打开wifi", "打开外 fi", WordErrors(1, 0, 1, 3)),
        ("二零二四年", "2024年", WordErrors(1, 3, 0, 5)),
        ("漢語", "汉语", WordErrors(2, 0, 0, 2)),
        ("今天", "", WordErrors(0, 2, 0, 2)),
        ("", "今天", WordErrors(0, 0, 2, 0)),
        ("。", "", WordErrors(0, 0, 0, 0)),
    ],
)
def test_character_errors_by_hand(reference: str, hypothesis: str, wanted: WordErrors) -> None:
    assert text_rule("zh_cer").score(reference, hypothesis) == wanted


def edit_distance(a: list[str], b: list[str]) -> int:
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, start=1):
        row, above = [i], row
        for j, y in enumerate(b, start=1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (x != y)))
    return row[-1]


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(TEXT_RULES), *[st.text(alphabet="你好ab C，.'1", max_size=12)] * 2)
def test_every_rule_counts_the_fewest_edits(name: str, reference: str, hypothesis: str) -> None:
    found = text_rule(name).score(reference, hypothesis)
    words = found.reference.split()
    assert found.total == edit_distance(words, found.hypothesis.split())
    assert found.reference_words == len(words)
