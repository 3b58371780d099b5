"""What the demo's pages say of themselves and of the model."""

from __future__ import annotations

INTRODUCTION = """[Conversation](../)
# Ask by a recording, hear the answer
Record a question or upload one (wav, flac, ogg, mp3; m4a, webm and more where ffmpeg is installed), press **Ask**, and
hear the answer while it is being made.
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
    "nano is a model of a few megabytes that knows these kinds of question and nothing else: to any other it says "
    "something wrong. It learned from synthetic voices and some natural ones: a voice that it never heard or a noisy "
    "room is at times misheard, and it then answers something wrong without noticing. Each question is answered by "
    "itself, without those before it. Verified and Vanilla answer rightly most often, Turbo least."
)

MODE_HINT = (
    "Vanilla: the backbone makes every token. Turbo: after each of its tokens the MCTP blocks make ten more. "
    "Balance and Boost lie between. Verified: the blocks draft, the backbone checks, the answer is Vanilla's."
)

SPEED_HINT = "1x: the talker makes one token, or frame, a step. Beyond: its MTP layers make the others."

LATE_SOUND = "*ffmpeg is not installed here, so the sound comes whole, at the end of the answer.*"


def conversation_hint(questions: int) -> str:
    """Says how much of a conversation the model is given."""
    earlier = "the last question and its answer" if questions == 1 else f"the last {questions} questions and answers"
    return f"*With each question the model is given {earlier} of this visit, until **New conversation**.*"
