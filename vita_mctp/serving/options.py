"""How a server is set up, and which names of models and voices it takes for its own."""

from __future__ import annotations

import hmac
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from urllib.parse import urlsplit

from vita_mctp.errors import ConfigError
from vita_mctp.serving import KEY_VARIABLE
from vita_mctp.serving.errors import ApiError
from vita_mctp.types import Wave

VOICES = (
    "default", "alloy", "ash", "ballad", "cedar", "coral", "echo", "fable", "marin", "nova", "onyx", "sage", "shimmer",
    "verse",
)  # fmt: skip
"""Names that clients send: each is the model's own voice."""

_FOREIGN_MODELS = re.compile(r"(gpt|whisper|tts)-[\w.-]{1,60}")
"""Names of OpenAI's speech models, which stock clients send unless told otherwise: each is the model served."""


@dataclass(frozen=True)
class Limits:
    """What one server takes on. running: answers made at once; waiting: those that wait for them, the next is refused.

    body_bytes: of a request or a message; seconds: of an uploaded recording. idle_seconds: after which a silent
    Realtime connection is closed. real_time_factor: of answers being made; who would push them
    beyond it is refused: from 1 on they are played faster than they are made. drain_seconds: to finish answers in
    when the server is to end.
    """

    running: int = 16
    waiting: int = 32
    conversations: int = 64
    body_bytes: int = 25 << 20
    seconds: float = 600.0
    text_characters: int = 4096
    idle_seconds: float = 900.0
    real_time_factor: float = 0.5
    drain_seconds: float = 30.0


@dataclass(frozen=True)
class ServerOptions:
    """model: the name that the model is served by. api_keys: none lets everybody in.

    voices: recordings of voices to speak in, by names in small letters, for a model that was trained with such prompts.
    """

    model: str = "nano"
    api_keys: tuple[str, ...] = ()
    limits: Limits = Limits()
    voices: Mapping[str, Wave] = field(default_factory=dict)

    def voice(self, given: str | dict[str, str] | None, param: str = "voice") -> Wave | None:
        """What to speak in; None is the model's own voice. Raises ApiError for a name that is not known."""
        name = given.get("id") if isinstance(given, dict) else given
        if name is None or name.lower() in self.voices:
            return self.voices.get((name or "").lower())
        if name.lower() not in VOICES:
            ours = "".join(f"{each}, " for each in self.voices)
            message = f"the voice {name[:60]!r} came; wanted one of {ours}{', '.join(VOICES)}"
            raise ApiError(400, message, param=param, code="invalid_voice")
        return None

    def check_model(self, name: str | None) -> str:
        """The name of the model that a client asks for. Raises ApiError for one that is not here."""
        if name is None or name == self.model or _FOREIGN_MODELS.fullmatch(name):
            return self.model
        message = f"the model {name[:60]!r} was asked for; here is {self.model}: see /v1/models"
        raise ApiError(404, message, param="model", code="model_not_found")

    def admit(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Raises ApiError for a request without one of our keys; where none is wanted, for one from a foreign web page.

        A browser lets any page open a WebSocket to any server, this machine's own included, and names it in Origin.
        """
        found = dict(headers)
        if not self.api_keys:
            origin = found.get(b"origin", b"").decode("latin-1")
            if origin and urlsplit(origin).netloc != found.get(b"host", b"").decode("latin-1"):
                message = f"a page of {origin[:60]} asked; pages of other origins want a server with API keys"
                raise ApiError(403, message, code="foreign_origin")
        elif not self._knows(_bearer(found)):
            raise ApiError(401, "no valid API key came; send it as Authorization: Bearer KEY", code="invalid_api_key")

    def _knows(self, key: str | None) -> bool:
        """In a time that says nothing of how far a key is right."""
        given = sha256((key or "").encode()).digest()
        matches = [hmac.compare_digest(given, sha256(known.encode()).digest()) for known in self.api_keys]
        return any(matches)


def read_keys(path: str | None) -> tuple[str, ...]:
    """Raises ConfigError for a file that cannot be read or has no key."""
    given = os.environ.get(KEY_VARIABLE, "").strip()
    keys = (given,) if given else ()
    if path is None:
        return keys
    try:
        lines = Path(path).read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the API keys in {path}: {error}; wanted a text file, a key a line") from None
    if not lines:
        raise ConfigError(f"{path} holds no API key; put one on each line, or leave --api-keys out")
    return (*keys, *lines)


def served_name(model: str) -> str:
    """What clients call a model that is loaded by this name or from this folder."""
    return Path(model).resolve().name if Path(model).is_dir() else model


def _bearer(headers: dict[bytes, bytes]) -> str | None:
    """The key in a request's headers; of a browser's WebSocket, which cannot set them, the one in its subprotocols."""
    given = headers.get(b"authorization", b"").decode("latin-1")
    if given[:7].lower() == "bearer ":
        return given[7:].strip()
    for protocol in headers.get(b"sec-websocket-protocol", b"").decode("latin-1").split(","):
        if protocol.strip().startswith("openai-insecure-api-key."):
            return protocol.strip().partition(".")[2]
    return None
