"""What a server counts, for Prometheus, and what it writes down of each request: never a word or a sample of it."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from vita_mctp.types import Done

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2.5, 5, 10, 30)

logger = logging.getLogger("vita_mctp.serving")


class Metrics:
    """Of one server. endpoint: a route as it is written, never a path that somebody sent."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter("vita_requests", "Answered", ["endpoint", "status"], registry=registry)
        self.refused = Counter("vita_refused", "Turned away", ["reason"], registry=registry)
        self.running = Gauge("vita_answers_running", "Answers being made", registry=registry)
        self.waiting = Gauge("vita_answers_waiting", "Answers that wait", registry=registry)
        self.conversations = Gauge("vita_conversations", "Realtime conversations open", registry=registry)
        self.real_time_factor = Gauge(
            "vita_real_time_factor", "Seconds that a second of sound takes to make", registry=registry
        )
        self.tokens = Counter("vita_tokens", "Tokens generated", registry=registry)
        self.audio = Counter("vita_audio_seconds", "Seconds of sound made", registry=registry)
        self.first_sound = Histogram(
            "vita_first_sound_seconds", "From a question's end to its first sound", ["endpoint"], buckets=_SECONDS,
            registry=registry,
        )  # fmt: skip
        self.duration = Histogram(
            "vita_answer_seconds", "Whole answers", ["endpoint"], buckets=_SECONDS, registry=registry
        )

    def answered(self, endpoint: str, done: Done, first_sound: float | None = None) -> None:
        """first_sound: seconds, where it was measured from another moment than the model's own."""
        times = done.timings
        self.tokens.inc(times.tokens)
        self.audio.inc(times.audio_seconds)
        self.duration.labels(endpoint).observe(times.total)
        if (first := times.first_sound if first_sound is None else first_sound) is not None:
            self.first_sound.labels(endpoint).observe(first)
        log(
            "answer",
            endpoint=endpoint,
            reason=done.reason.value,
            mode=done.mode,
            tokens=times.tokens,
            heard_s=times.heard,
            first_token_s=times.first_token,
            first_sound_s=first,
            total_s=times.total,
            audio_s=times.audio_seconds,
        )

    def text(self) -> bytes:
        return generate_latest(self._registry)


def log(event: str, **values: Any) -> None:
    """One line of JSON."""
    rounded = {name: round(value, 4) if isinstance(value, float) else value for name, value in values.items()}
    logger.info(json.dumps({"time": round(time.time(), 3), "event": event, **rounded}))


def log_to_stderr() -> None:
    """Shows what `log` writes, and no warning of ours: some quote what a client sent."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logging.getLogger("vita_mctp").setLevel(logging.ERROR)
