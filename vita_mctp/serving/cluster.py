"""The same server as a deployment on Ray Serve: `serve run vita_mctp.serving.cluster:app model=nano replicas=2`.

A replica is a process with a model and limits of its own. Ray sends each request, and each WebSocket as long as it is
open, to the less busy one of two replicas; a Realtime conversation so stays where its caches are.
"""

# No `from __future__ import annotations`: Ray reads the class in the signature of `app`.

from typing import Annotated, Any

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field

from vita_mctp.checkpoints.opening import NANO
from vita_mctp.serving.app import build_app
from vita_mctp.serving.metrics import log_to_stderr
from vita_mctp.serving.options import Limits, ServerOptions, read_keys, served_name
from vita_mctp.speech_lm import SpeechLM

_BESIDE = 8
"""Requests of a replica that are no answers: models, health, metrics."""


class ClusterOptions(BaseModel):
    """What `serve run` takes behind the name, and a config file under `args`.

    model ... attn: as for `SpeechLM.from_pretrained`; voices, api_keys: files that each node has. limits: of a replica.
    cpus, gpus: of a replica. sessions: requests with the same `x-session-id` go to the same replica, others at random;
    a chat that refers to an earlier answer by its audio id wants that.
    """

    model_config = ConfigDict(extra="forbid")

    model: str = NANO
    device: str = "auto"
    dtype: str | None = None
    quantize: str | None = None
    attn: str = "sdpa"
    served_name: str | None = None
    api_keys: str | None = None
    voices: dict[str, str] = {}
    limits: Limits = Limits()
    replicas: Annotated[int, Field(ge=1)] = 1
    cpus: Annotated[float, Field(ge=0)] = 1.0
    gpus: Annotated[float, Field(ge=0)] = 0.0
    sessions: bool = False


def app(options: ClusterOptions) -> Any:
    """The `ray.serve.Application`. What a config file sets of the deployment "SpeechServer" goes first."""
    from ray import serve

    limits = options.limits
    routing: dict[str, Any] = {}
    if options.sessions:
        from ray.serve.config import RequestRouterConfig

        hashing = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"
        routing = {"request_router_config": RequestRouterConfig(request_router_class=hashing)}

    def build() -> FastAPI:
        """In a replica."""
        return _replica(options)

    deployment = serve.deployment(
        serve.ingress(build)(),
        name="SpeechServer",
        num_replicas=options.replicas,
        ray_actor_options={"num_cpus": options.cpus, "num_gpus": options.gpus},
        max_ongoing_requests=limits.conversations + limits.running + limits.waiting + _BESIDE,
        graceful_shutdown_timeout_s=limits.drain_seconds,
        **routing,
    )
    return deployment.bind()


def _replica(options: ClusterOptions) -> FastAPI:
    """Raises as `SpeechLM.from_pretrained` and `read_keys`."""
    log_to_stderr()
    keys = read_keys(options.api_keys)
    loading = {name: getattr(options, name) for name in ("device", "dtype", "quantize", "attn")}
    speech_lm = SpeechLM.from_pretrained(options.model, **loading)
    voices = {name.lower(): speech_lm.settings.read_recording(path) for name, path in options.voices.items()}
    name = options.served_name or served_name(options.model)
    application = build_app(speech_lm, ServerOptions(name, keys, options.limits, voices))
    application.state.service.warm_up()
    return application
