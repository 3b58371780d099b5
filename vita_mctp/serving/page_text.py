"""What the page says: what it is, what nano can be asked, and the metrics of an answer."""

from __future__ import annotations

from vita_mctp.types import Done

INTRODUCTION = """# Ask aloud, hear the answer
Record a question or upload one (wav, flac, ogg or mp3), press **Ask**, and hear the answer while it is being made.
"""

EXAMPLES = {
    "addition": "how much is seven plus six",
    "subtraction": "please take three from nine",
    "weekdays": "what day comes after monday",
    "months": "which month comes before march",
    "seasons": "what season is july in",
    "opposites": "what is the opposite of hot",
    "colors": "what color is the sky",
    "capitals": "what is the capital of france",
    "animals": "how many legs has a spider",
    "counting": "count from three to eight",
    "talk": "what is your name",
}
"""One question of each kind that the nano model knows."""

ABOUT_NANO = (
    """
This is **nano**, a model of a few megabytes that knows one small world and nothing else. It learned from synthetic
voices alone: a real voice, a noisy room or a question of another kind will often be misheard, and it then answers
something wrong without noticing. It was trained on single questions: each is answered by itself, without those before
it. It can be asked:

"""
    + "\n".join(f"- {kind}: *{question}*" for kind, question in EXAMPLES.items())
    + "\n"
)

MODE_HINT = (
    "Vanilla: the backbone makes every token. Turbo: after each of its tokens the MCTP blocks make ten more. "
    "Balance and Boost lie between. Verified: the blocks draft, the backbone checks, the answer is Vanilla's."
)

LATE_SOUND = "*ffmpeg is not installed here, so the sound comes whole, at the end of the answer.*"


def conversation_hint(questions: int) -> str:
    """Says how much of a conversation the model is given."""
    earlier = "the last question and its answer" if questions == 1 else f"the last {questions} questions and answers"
    return f"*With each question the model is given {earlier} of this visit, until **New conversation**.*"


def metrics_table(done: Done) -> str:
    """The metrics of an answer as a Markdown table, one in a row."""
    times = done.timings
    metrics = {
        "mode": done.mode,
        "tokens": str(times.tokens),
        "tokens/s": f"{times.tokens_per_second:.1f}",
        "first audio tokens": _number(times.first_audio_tokens, 3, " s"),
        "first sound": _number(times.first_sound, 3, " s"),
        "sound": _number(times.audio_seconds, 2, " s"),
        "real-time factor": _number(times.real_time_factor, 2),
    }
    return "\n".join(["| metric | value |", "|---|---|", *(f"| {name} | {value} |" for name, value in metrics.items())])


def _number(value: float | None, digits: int, unit: str = "") -> str:
    return "none" if value is None else f"{value:.{digits}f}{unit}"
