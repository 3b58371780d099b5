"""The nano edition of VocalNet and of VocalNet-M2: a thinker that hears codes, with a talker of either kind.

The thinker is VITA-Audio's backbone without blocks, asked for text alone; its audio ids are for what it hears, so it
never writes one. The talker's codes are the same codec's: one id each for VocalNet, the levels of its quantiser as
parallel codebooks for M2.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vita_mctp.errors import CheckpointError, ConfigError
from vita_mctp.models.registry import FrameSpeaking, ModelFamily, Shapes, Speaking
from vita_mctp.models.strict import make_known
from vita_mctp.models.vita.configuration import VitaMctpConfig
from vita_mctp.models.vita.modeling import VitaMctpForCausalLM
from vita_mctp.models.vocalnet.sizes import TalkerSizes
from vita_mctp.models.vocalnet.talkers import make_talker
from vita_mctp.models.vocalnet_m2 import fused_row
from vita_mctp.models.vocalnet_m2.talker import M2Sizes, M2Talker
from vita_mctp.schema import Schema
from vita_mctp.text.chat import ChatFormat, PromptStyle
from vita_mctp.text.tokenizer import TextTokenizer
from vita_mctp.text.vocabulary import VocabularyKind
from vita_mctp.types import AudioFeatures, Task, Turn

_KINDS: dict[str, tuple[type[Schema], Callable[[Any], nn.Module]]] = {
    "vocalnet": (TalkerSizes, make_talker),
    "m2": (M2Sizes, M2Talker),
}
ALONE = PromptStyle(system=None)
"""A spoken question that is answered in writing, as nano was trained."""


class NanoVocalNetConfig(VitaMctpConfig):
    """talker: values of its sizes; talker_kind: whose it is, "vocalnet" or "m2"."""

    model_type = "nano_vocalnet"
    num_nextn_predict_layers: int = 0
    talker: dict[str, Any] | None = None
    talker_kind: str = "vocalnet"


class NanoVocalNet(VitaMctpForCausalLM):
    """Keeps no state but its weights."""

    config: NanoVocalNetConfig
    config_class = NanoVocalNetConfig

    def __init__(self, config: NanoVocalNetConfig) -> None:
        super().__init__(config)
        self.speech_generator = _KINDS[config.talker_kind][1](_sizes(config))

    @property
    def talker(self) -> Any:
        return self.speech_generator

    def logits(self, hidden: Tensor) -> Tensor:
        scores = super().logits(hidden)
        scores[..., self.config.speech_token_offset :] = -torch.inf
        return scores


make_known(NanoVocalNet)


def _sizes(config: NanoVocalNetConfig) -> Any:
    if config.talker_kind not in _KINDS:
        raise CheckpointError(
            f"talker_kind {config.talker_kind!r}; wanted {' or '.join(_KINDS)}: get config.json again"
        )
    return _KINDS[config.talker_kind][0].parse(config.talker, "talker", CheckpointError)


class NanoVocalNetChat(ChatFormat):
    """Questions whose answers are text; what is spoken is the talker's affair."""

    def turn(self, task: Task, question: str | Any | AudioFeatures) -> Turn:
        """Raises ConfigError for a text to speak: the thinker was never asked to repeat one in writing."""
        if task is Task.TTS:
            raise ConfigError(f"the task {task.value} is not one of VocalNet's; wanted a question to answer")
        return super().turn(task, question)


@dataclass(frozen=True)
class NanoVocalNetFamily(ModelFamily):
    def read_config(self, folder: Path, values: Mapping[str, Any], shapes: Callable[[], Shapes]) -> Any:
        config = self.config_class.from_dict(dict(values))
        sizes = _sizes(config)
        if sizes.text_size != config.hidden_size:
            raise CheckpointError(
                f"the talker reads rows of {sizes.text_size} and the thinker is {config.hidden_size} wide; wanted one "
                "width: they are not of one model"
            )
        return config

    def chat(self, tokenizer: TextTokenizer, style: PromptStyle) -> NanoVocalNetChat:
        return NanoVocalNetChat(tokenizer, ALONE)

    def speaking(self, model: NanoVocalNet, tokenizer: TextTokenizer) -> Speaking | FrameSpeaking:
        talker, vocabulary = model.talker, tokenizer.vocabulary
        if model.config.talker_kind == "m2":
            return FrameSpeaking(talker, lambda id, state: fused_row(model, id, state))
        with torch.inference_mode():
            row = model.embed(torch.tensor([[vocabulary.endoftext]], device=model.device))[0, 0]
        return Speaking(talker, vocabulary.im_end, row, tokenizer.decode, end_row=True)

    def resize_vocabulary(self, model: Any, size: int, seed: int) -> None:
        raise ConfigError("a nano VocalNet keeps its thinker's vocabulary")

    def flops_per_token(self, config: Any, *, backbone_trains: bool, context: int) -> float:
        raise ConfigError("its thinker is frozen: train nano-vocalnet trains the talker alone")

    def activation_bytes(self, config: Any, positions: int) -> int:
        raise ConfigError("its thinker is frozen: train nano-vocalnet trains the talker alone")


NANO_VOCALNET = NanoVocalNetFamily(lambda: NanoVocalNet, VocabularyKind.DISCRETE)


def new_talker(kind: str, values: Mapping[str, Any], seed: int) -> Any:
    """An untrained talker of `values` as config.json has them. Raises ConfigError for sizes that contradict."""
    sizes_class, make = _KINDS[kind]
    sizes = sizes_class.parse(dict(values), "the talker")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make(sizes)
