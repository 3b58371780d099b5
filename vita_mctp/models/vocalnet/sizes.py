"""What shapes a talker: its widths, its ids, its chunks, and which predictor makes several tokens a step."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from vita_mctp.schema import Depth, Schema, Width

Predictor = Literal["ntp", "group_linear", "group_transformer", "parallel_linear", "deepseek", "vocalnet", "mctp"]
_SPECIAL_IDS = 4


class TalkerSizes(Schema):
    """Of one talker. Ids: `num_units` codes, then BOS, SOS, EOS, PAD.

    mtp_levels: predictors behind the main head (K); 0 for "ntp" and the group predictors.
    group_size: tokens that one row stands for (g); 1 for all but the group predictors.
    text_chunk, speech_chunk: C_t and C_s of the streaming mask; C_s counts rows, so groups of g tokens.
    loss_decay: lambda; level k's loss counts lambda^k.
    text_size: of the thinker's rows, from which a linear layer leads to `hidden_size`; None: they are as wide as the
    talker, as in all released models, and there is no such layer.
    """

    hidden_size: Width
    ffn_size: Width
    num_heads: Depth
    projector_layers: Depth = 2
    backbone_layers: Depth = 4
    predictor: Predictor = "vocalnet"
    mtp_levels: Annotated[int, Field(ge=0, le=1000)] = 5
    group_size: Annotated[int, Field(ge=1, le=1000)] = 1
    num_units: Annotated[int, Field(ge=1, le=1 << 24)] = 6561
    dropout: Annotated[float, Field(ge=0, le=1)] = 0.0
    text_chunk: Width = 5
    speech_chunk: Width = 15
    loss_decay: Annotated[float, Field(ge=0, le=10)] = 0.8
    text_size: Width | None = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.hidden_size % self.num_heads or (self.hidden_size // self.num_heads) % 2:
            raise ValueError(f"width {self.hidden_size} over {self.num_heads} heads; wanted heads of one even size")
        groups = self.predictor in ("group_linear", "group_transformer")
        if self.mtp_levels and (groups or self.predictor == "ntp"):
            raise ValueError(f"{self.mtp_levels} mtp_levels with {self.predictor}, which has none; wanted 0")
        if self.group_size > 1 and not groups:
            raise ValueError(f"group_size {self.group_size} with {self.predictor}; wanted 1")
        return self

    @property
    def bos(self) -> int:
        return self.num_units

    @property
    def sos(self) -> int:
        return self.num_units + 1

    @property
    def eos(self) -> int:
        return self.num_units + 2

    @property
    def pad(self) -> int:
        return self.num_units + 3

    @property
    def vocab_size(self) -> int:
        return self.num_units + _SPECIAL_IDS
