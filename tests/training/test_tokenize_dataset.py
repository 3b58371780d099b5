"""From manifests to packed rows: what is trained on is what the manifest says, in the codec's codes."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import pytest

from vita_mctp.data.mixture import Mixture
from vita_mctp.data.row_stream import RowStream, open_pools
from vita_mctp.data.tokenize import CodecSource, tokenize_manifest
from vita_mctp.errors import ConfigError, DataError
from vita_mctp.text.chat import ChatFormat, Clip, Message
from vita_mctp.text.interleave import Ratio
from vita_mctp.text.tokenizer import train_tokenizer

CODES = 50
RATIO = Ratio((1, 5, 2, 5))


def mixture(*sets: str) -> Mixture:
    """Of stores below sets/, and one that no sample is drawn from."""
    values = [{"name": name, "path": f"sets/{name}"} for name in sets]
    return Mixture.parse({"sets": [*values, {"name": "off", "ratio": 0}], "seed": 1}, "")


MIXTURE = mixture("asr", "text")


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> ChatFormat:
    words = "user assistant system convert the speech to text number one two three\n"
    return ChatFormat(train_tokenizer([words], 400, tmp_path_factory.mktemp("tokenizer"), CODES))


def store(root: Path, name: str, samples: list[tuple[str, str, list[int]]], codebook: int = CODES) -> None:
    """One tokenised set: (question, answer, the codes of the one `<|audio|>` among them, if any)."""
    codec, manifest = root / f"codec{codebook}", root / f"{name}.jsonl"
    codec.mkdir(exist_ok=True)
    (codec / "ramp.json").write_text(json.dumps({"codebook_size": codebook}))
    lines = []
    for question, answer, codes in samples:
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        lines.append({"messages": messages, "audios": [{"codes": codes, "codec": "ramp"}] if codes else []})
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    tokenize_manifest(manifest, root / "sets" / name, CodecSource("ramp", codec))


SPOKEN = [("Convert the speech to text.\n<|audio|>", f"number {n}", [n, 7, n + 1]) for n in range(12)]
ANSWERED = [("one two", "three number<|audio|>", list(range(n, n + 9))) for n in range(8)]
WRITTEN: list[tuple[str, str, list[int]]] = [("one", f"two {n}", []) for n in range(9)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    store(tmp_path, "asr", SPOKEN + ANSWERED)
    store(tmp_path, "text", WRITTEN)
    return tmp_path


def test_samples_are_those_of_the_chat_format(root: Path, chat: ChatFormat) -> None:
    pools = open_pools(MIXTURE, root, chat, RATIO)
    assert {name: pool.size for name, pool in pools.items()} == {"asr": 20, "text": 9}
    for name, samples in (("asr", SPOKEN + ANSWERED), ("text", WRITTEN)):
        for item, (question, answer, codes) in enumerate(samples):
            messages = [Message("user", question), Message("assistant", answer)]
            assert pools[name].make(item, 0) == chat.sample(messages, [Clip(tuple(codes))] if codes else [], RATIO)


def test_rows_hold_every_sample_and_go_on_from_a_state(root: Path, chat: ChatFormat) -> None:
    pools = open_pools(MIXTURE, root, chat, RATIO)

    def rows(**options: object) -> list[list[int]]:
        stream = RowStream(MIXTURE, pools, row_length=100, **options)  # type: ignore[arg-type]
        return [row.input_ids.tolist() for row in islice(stream, 10)]

    whole = rows()
    assert rows(rank=1, world_size=2)[:5] == whole[1::2]
    stream = RowStream(MIXTURE, pools, row_length=100)
    list(islice(stream, 4))
    assert rows(state=json.loads(json.dumps(stream.state())))[:6] == whole[4:]


def test_sets_that_do_not_fit_together_are_refused(root: Path, chat: ChatFormat) -> None:
    with pytest.raises(DataError, match="holds no finished token store"):
        open_pools(mixture("missing"), root, chat, RATIO)
    store(root, "text", [("one", "two<|audio|>", [1])], codebook=40)
    with pytest.raises(ConfigError, match=r"want one codec, got asr by ramp \w{8}, text by ramp \w{8}"):
        open_pools(MIXTURE, root, chat, RATIO)
    store(root, "wide", [("one", "two<|audio|>", [1])], codebook=60)
    with pytest.raises(ConfigError, match=r"wide holds codes of ramp in \[0, 60\), the tokenizer has 50 audio tokens"):
        open_pools(mixture("wide"), root, chat, RATIO)
