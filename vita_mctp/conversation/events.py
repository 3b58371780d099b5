"""What happens in a conversation, as those who carry it to somebody are told."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from vita_mctp.cancel import Cancel
from vita_mctp.conversation.items import Item, new_id
from vita_mctp.conversation.reply import ReplyOptions
from vita_mctp.errors import VitaError
from vita_mctp.types import Done, TokenEvent, WaveChunk

Status = Literal["completed", "incomplete", "cancelled", "failed"]
CancelReason = Literal["turn_detected", "client_cancelled"]


@dataclass(eq=False)
class Reply:
    """An answer on its way, with the item that it becomes.

    kept: whether that item is part of the conversation. asked_at: when it was called for; first_sound: seconds from
    then to the first chunk. cancelled: by whom.
    """

    item: Item
    options: ReplyOptions
    kept: bool
    asked_at: float
    id: str = field(default_factory=lambda: new_id("resp"))
    cancel: Cancel = field(default_factory=Cancel)
    cancelled: CancelReason | None = None
    first_sound: float | None = None


@dataclass(frozen=True)
class UserStarted:
    """The user speaks: a player is to be emptied if `interrupts`. start: in samples of the input."""

    item_id: str
    start: int
    interrupts: bool


@dataclass(frozen=True)
class UserStopped:
    item_id: str
    stop: int


@dataclass(frozen=True)
class Committed:
    """What the user said is an item now, behind the item `before`."""

    item: Item
    before: str | None


@dataclass(frozen=True)
class Transcribed:
    """A piece of a user's transcript, or the end of it, or why there is none."""

    item: Item
    delta: str = ""
    done: Done | None = None
    error: VitaError | None = None


@dataclass(frozen=True)
class ReplyStarted:
    reply: Reply
    before: str | None


@dataclass(frozen=True)
class ReplyToken:
    reply: Reply
    token: TokenEvent


@dataclass(frozen=True)
class ReplyText:
    reply: Reply
    text: str


@dataclass(frozen=True, eq=False)
class ReplySound:
    reply: Reply
    chunk: WaveChunk


@dataclass(frozen=True)
class ReplyEnded:
    """done: None where nothing was made. error: why it failed."""

    reply: Reply
    status: Status
    done: Done | None = None
    error: VitaError | None = None


UserEvent = UserStarted | UserStopped | Committed | Transcribed
ReplyEvent = ReplyStarted | ReplyToken | ReplyText | ReplySound | ReplyEnded
ConversationEvent = UserEvent | ReplyEvent
