"""Repositories by hub id: what a newcomer meets, against huggingface_hub's own code and a hub on this machine."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants

from vita_mctp.checkpoints.hub import (
    AUDIO_DECODER,
    AUDIO_TOKENIZER,
    FRONT_END,
    RELEASED,
    fetch,
    repository,
)
from vita_mctp.checkpoints.opening import find_model, open_model
from vita_mctp.checkpoints.speech import SpeechSettings
from vita_mctp.errors import CheckpointError, ConfigError, VitaError
from vita_mctp.types import Task

BOOST, PLUS_BOOST = (repository(f"VITA-MLLM/VITA-Audio-{name}") for name in ("Boost", "Plus-Boost"))
COMMIT = "0" * 39 + "1"
CONTENTS = {
    AUDIO_TOKENIZER: ("config.json", "preprocessor_config.json", "model.safetensors"),
    AUDIO_DECODER: ("config.yaml", "flow.pt", "hift.pt"),
    FRONT_END: ("am.mvn",),
}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hugging Face cache; no network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for name in ("VITA_MCTP_AUDIO_TOKENIZER", "VITA_MCTP_AUDIO_DECODER"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "hub"


@pytest.fixture
def hub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int, dict[str, str]], None]]:
    """A hub on this machine that answers every request as it is told: `hub(status, headers)`."""
    answer: list[tuple[int, dict[str, str]]] = [(500, {})]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, headers = answer[-1]
            self.send_response(status)
            for name, value in {"Content-Length": "0", **headers}.items():
                self.send_header(name, value)
            self.end_headers()

        do_HEAD = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield lambda status, headers: answer.append((status, headers))
    server.shutdown()
    server.server_close()


def write(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_text("{}")
    return folder


def cached(cache: Path, hub_id: str, *names: str) -> Path:
    """What huggingface_hub leaves after a download of these files."""
    store = cache / f"models--{hub_id.replace('/', '--')}"
    (store / "refs").mkdir(parents=True)
    (store / "refs" / "main").write_text(COMMIT)
    return write(store / "snapshots" / COMMIT, *names)


def model(folder: Path, model_type: str) -> Path:
    write(folder, "tokenizer.json", "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    return folder


def resolve_settings(folder: Path, **named: str | None) -> SpeechSettings:
    return open_model(folder, **named).speech


def complaint(call: Callable[[], object], kind: type[VitaError] = CheckpointError) -> str:
    with pytest.raises(kind) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_what_is_known_of_each_repository_is_in_its_one_clause() -> None:
    assert len(RELEASED) == 12 and all(key == entry.id for key, entry in RELEASED.items())
    assert BOOST.how_to_get.startswith("hf download VITA-MLLM/VITA-Audio-Boost (") and "academic" in BOOST.how_to_get
    assert "1.46 GB" in AUDIO_TOKENIZER.how_to_get and "GLM-4 model licence" in AUDIO_TOKENIZER.how_to_get
    assert AUDIO_DECODER.how_to_get.startswith("hf download THUDM/glm-4-voice-decoder config.yaml flow.pt hift.pt (")
    assert not any(pattern.endswith((".bin", ".pt", ".pth")) for pattern in BOOST.patterns)


def test_a_model_in_the_cache_is_taken_without_a_network(cache: Path) -> None:
    folder = cached(cache, BOOST.id, "config.json", "tokenizer.json", "model.safetensors")
    assert find_model(BOOST.id) == folder


def test_no_network_and_offline_name_size_terms_and_command(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = complaint(lambda: find_model(BOOST.id))
    assert "HF_HUB_OFFLINE is set" in line and BOOST.how_to_get in line
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    line = complaint(lambda: find_model(BOOST.id))
    assert "the hub cannot be reached" in line and BOOST.how_to_get in line


@pytest.mark.parametrize(
    ("status", "headers", "match"),
    [
        (401, {"X-Error-Code": "GatedRepo"}, "is gated: accept its terms at https://huggingface.co/VITA-MLLM/"),
        (403, {"X-Error-Code": "GatedRepo"}, "hf auth login"),
        (401, {}, "nor a public repository"),
        (404, {"X-Error-Code": "RepoNotFound"}, "nor a public repository of the hub; check the name"),
    ],
)
def test_what_a_hub_refuses(
    hub: Callable[[int, dict[str, str]], None], status: int, headers: dict[str, str], match: str
) -> None:
    hub(status, headers)
    line = complaint(lambda: find_model(BOOST.id))
    assert match in line and BOOST.how_to_get in line


def test_a_hub_in_trouble_is_not_the_users_fault(hub: Callable[[int, dict[str, str]], None]) -> None:
    hub(500, {})
    assert "cannot be reached" in complaint(lambda: fetch(AUDIO_DECODER))


def test_half_a_download_says_what_is_missing_and_how_to_go_on(cache: Path) -> None:
    folder = cached(cache, BOOST.id, "config.json", "tokenizer.json", "model-00001-of-00002.safetensors")
    shards = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    places = {"a": shards[0], "b": shards[1]}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    line = complaint(lambda: find_model(BOOST.id))
    assert shards[1] in line or "nor whole" in line
    assert BOOST.how_to_get in line
    line = complaint(lambda: find_model(folder))
    assert f"lacks {shards[1]}" in line
    write(folder, shards[1])
    assert find_model(BOOST.id) == folder


def test_a_download_that_is_cut_off_says_how_it_goes_on(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def cut(repo_id: str, *, local_files_only: bool = False, **_: object) -> str:
        if local_files_only:
            raise huggingface_hub.errors.LocalEntryNotFoundError("nothing there")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", cut)
    line = complaint(lambda: fetch(AUDIO_TOKENIZER))
    assert "stopped ([Errno 28] No space left on device)" in line and AUDIO_TOKENIZER.how_to_get in line


def test_what_cannot_be_a_hub_id(cache: Path) -> None:
    assert "unknown model 'giant'" in complaint(lambda: find_model("giant"), ConfigError)
    assert "is no hub id" in complaint(lambda: fetch(repository("a--b/c..d")), ConfigError)


@pytest.mark.parametrize(
    ("names", "match"),
    [
        ((), "is empty"),
        (("config.yaml", "flow.pt", "hift.pt"), "codes to speech"),
        (("config.json", "preprocessor_config.json", "model.safetensors"), "speech to codes"),
        (("config.json", "tokenizer.json", "pytorch_model.bin"), "pytorch_model.bin is pickled"),
        (("config.json", "model.safetensors"), "lacks tokenizer.json"),
    ],
)
def test_wrong_folders(tmp_path: Path, names: tuple[str, ...], match: str) -> None:
    folder = write(tmp_path / "folder", *names)
    line = complaint(lambda: find_model(folder))
    assert match in line and str(folder) in line


@pytest.mark.parametrize("place", ["models/VITA/glm", "models/{name}", "{id}", "models/VITA/{name}"])
def test_codec_folders_are_found_inside_and_beside_the_model(cache: Path, tmp_path: Path, place: str) -> None:
    folder = model(tmp_path / "models" / "VITA", "qwen2_mtp")
    for wanted in (AUDIO_TOKENIZER, AUDIO_DECODER):
        write(tmp_path / place.format(name=wanted.name, id=wanted.id), *CONTENTS[wanted])
    if place.endswith("glm"):
        line = complaint(lambda: resolve_settings(folder))
        assert AUDIO_TOKENIZER.how_to_get in line and "--audio-tokenizer" in line
        return
    settings = resolve_settings(folder)
    for ref, wanted in ((settings.audio_tokenizer, AUDIO_TOKENIZER), (settings.audio_decoder, AUDIO_DECODER)):
        assert Path(ref.folder) == (tmp_path / place.format(name=wanted.name, id=wanted.id)).resolve()
    assert settings.audio_tokenizer.name == "glm4_voice" and settings.tokenizer_kind == "glm4voice"
    assert settings.channel == 0 and settings.voice_prompts and settings.max_history_turns > 0


def test_options_come_before_variables_and_these_before_the_models_own(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = model(tmp_path / "model", "qwen2_mtp")
    for wanted in (AUDIO_TOKENIZER, AUDIO_DECODER):
        for place in ("option", "variable"):
            write(tmp_path / place / wanted.name, *CONTENTS[wanted])
        write(tmp_path / wanted.name, *CONTENTS[wanted])
    monkeypatch.setenv("VITA_MCTP_AUDIO_TOKENIZER", str(tmp_path / "variable" / AUDIO_TOKENIZER.name))
    option = str(tmp_path / "option" / AUDIO_TOKENIZER.name)
    decoder = tmp_path / AUDIO_DECODER.name
    for named, place in ((option, "option"), (None, "variable")):
        settings = resolve_settings(folder, audio_tokenizer=named)
        assert Path(settings.audio_tokenizer.folder) == (tmp_path / place / AUDIO_TOKENIZER.name).resolve()
        assert Path(settings.audio_decoder.folder) == decoder.resolve()


def test_plus_hears_by_features_and_needs_their_statistics(cache: Path, tmp_path: Path) -> None:
    folder = model(tmp_path / "plus", "qwen2_mtp_sensevoice")
    write(tmp_path / AUDIO_DECODER.name, *CONTENTS[AUDIO_DECODER])
    assert FRONT_END.how_to_get in complaint(lambda: resolve_settings(folder))
    write(folder, "am.mvn")
    settings = resolve_settings(folder)
    assert (settings.tokenizer_kind, settings.audio_tokenizer.name) == ("sensevoice_glm4voice", "sensevoice")
    assert settings.channel is None
    assert Path(settings.audio_tokenizer.folder) == folder.resolve() and PLUS_BOOST.terms in PLUS_BOOST.how_to_get


def test_named_folders_that_are_wrong(cache: Path, tmp_path: Path) -> None:
    folder = model(tmp_path / "model", "qwen2_mtp")
    tokenizer = write(tmp_path / AUDIO_TOKENIZER.name, *CONTENTS[AUDIO_TOKENIZER])
    line = complaint(lambda: resolve_settings(folder, audio_decoder=str(tokenizer)))
    assert "--audio-decoder" in line and "lacks" in line and AUDIO_DECODER.how_to_get in line
    line = complaint(lambda: resolve_settings(folder, audio_decoder="nowhere"), ConfigError)
    assert "is no folder" in line and AUDIO_DECODER.how_to_get in line
    line = complaint(lambda: resolve_settings(model(tmp_path / "llama", "llama")), ConfigError)
    assert "holds a llama model" in line


def test_speech_json_goes_first_and_gets_absolute_folders(tiny_speech_folder: Path, tmp_path: Path) -> None:
    settings = resolve_settings(tiny_speech_folder)
    assert settings.audio_tokenizer.name == "ramp"
    assert Path(settings.audio_decoder.folder) == (tiny_speech_folder / "codec").resolve()
    assert settings.sampling[Task.TTS]
    other = shutil.copytree(tiny_speech_folder / "codec", tmp_path / "other")
    assert resolve_settings(tiny_speech_folder, audio_decoder=str(other)).audio_decoder.folder == str(other)
