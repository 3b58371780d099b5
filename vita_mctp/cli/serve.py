"""`vita-mctp serve`: OpenAI's endpoints for speech, over one model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from importlib.util import find_spec
from typing import Annotated

from vita_mctp.cli import leave, write
from vita_mctp.cli.options import ModelOptions, command, new_app, opt
from vita_mctp.cli.talk import load_model
from vita_mctp.errors import ConfigError, MissingExtraError
from vita_mctp.serving import KEY_VARIABLE

app = new_app()

_NAME = "the model's name for clients (default: as --model, of a folder its last part)"
_KEYS = f"a file with an API key on each line; one key may also stand in {KEY_VARIABLE} (default: no key is asked for)"
_VOICES = (
    "recordings of voices to speak in, by the names that clients send; for a model that was trained with voice prompts"
)
_BUSY = "the next one is refused with 429"
_STUTTERS = f"that answers would have with one more (from 1 on they stutter); beyond it {_BUSY}; inf: no limit"


@dataclass(frozen=True)
class ListenOptions:
    host: Annotated[str, opt("ADDRESS", "address to listen on; 0.0.0.0 is everywhere")] = "127.0.0.1"
    port: Annotated[int, opt("N", "port to listen on; 0 is any free one", min=0, max=65535)] = 8000
    ssl_certificate: Annotated[str | None, opt("FILE", "PEM certificate, for https and wss")] = None
    ssl_key: Annotated[str | None, opt("FILE", "PEM key of the certificate")] = None
    api_keys: Annotated[str | None, opt("FILE", _KEYS)] = None
    served_name: Annotated[str | None, opt("NAME", _NAME)] = None
    voice: Annotated[list[str] | None, opt("NAME=FILE...", _VOICES)] = None


@dataclass(frozen=True)
class LimitOptions:
    """Names and defaults as `serving.options.Limits`."""

    running: Annotated[int, opt("N", "answers made at once", "--max-running", min=1)] = 16
    waiting: Annotated[int, opt("N", f"answers that may wait; {_BUSY}", "--max-waiting", min=0)] = 32
    conversations: Annotated[int, opt("N", f"Realtime conversations; {_BUSY}", "--max-conversations", min=0)] = 64
    real_time_factor: Annotated[float, opt("F", _STUTTERS, "--max-real-time-factor", min=0)] = 0.5
    seconds: Annotated[float, opt("S", "of a recording to transcribe", "--max-seconds", min=1)] = 600.0
    drain_seconds: Annotated[float, opt("S", "to finish answers in after SIGTERM", min=0)] = 30.0


@command(app)
def serve(listening: ListenOptions, limits: LimitOptions, model: ModelOptions) -> None:
    """Serves until SIGTERM, which lets answers be finished, or Ctrl-C, which gives them a second."""
    if find_spec("fastapi") is None or find_spec("uvicorn") is None or find_spec("prometheus_client") is None:
        raise MissingExtraError('the server needs FastAPI; get it with: pip install "vita-mctp[serve]"')
    from vita_mctp.serving.app import build_app
    from vita_mctp.serving.metrics import log_to_stderr
    from vita_mctp.serving.options import Limits, ServerOptions, read_keys, served_name
    from vita_mctp.serving.run import serve as run

    keys = read_keys(listening.api_keys)
    name = listening.served_name or served_name(model.model)
    chosen = Limits(**{field.name: getattr(limits, field.name) for field in fields(limits)})
    log_to_stderr()
    speech_lm = load_model(model)
    voices = {each: speech_lm.settings.read_recording(path) for each, path in _named(listening.voice or ())}
    application = build_app(speech_lm, ServerOptions(name, keys, chosen, voices))
    application.state.service.warm_up()
    run(
        application,
        listening.host,
        listening.port,
        certificate=listening.ssl_certificate,
        key=listening.ssl_key,
        started=lambda address: write(f"{name} is served at {address}/v1; Ctrl-C ends it\n"),
    )
    leave()


def _named(voices: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Names in small letters, and paths."""
    for voice in voices:
        name, _, path = voice.partition("=")
        if not (name and path):
            raise ConfigError(f"--voice {voice} came; wanted NAME=FILE")
        yield name.lower(), path
