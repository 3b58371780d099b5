"""Training recipes: what one may say, and how one is read: YAML, perhaps built on another recipe, perhaps changed.

Unknown, missing and contradictory keys, wrong types and sizes out of bounds are one ConfigError with file and key.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Annotated, Any, Literal, Self, cast

from pydantic import AfterValidator, Field, model_validator

from vita_mctp.errors import ConfigError
from vita_mctp.models.registry import TRAINED, is_known
from vita_mctp.schema import Depth, Schema, Width
from vita_mctp.text.interleave import Ratio
from vita_mctp.yaml_file import parse_yaml, read_yaml

BASE = "base"

Rate = Annotated[float, Field(gt=0, le=10)]
Tokens = Annotated[int, Field(ge=1, le=1 << 32)]
Steps = Annotated[int, Field(ge=1, le=10**9)]
Interval = Annotated[int, Field(ge=0, le=10**9)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
"""Of a running mean in one step."""
Scale = Annotated[float, Field(ge=0, le=1e6)]


def _folder_name(name: str) -> str:
    if "\0" in name or Path(name).name != name or name in (".", "..") or len(name.encode()) > 200:
        raise ValueError(f"got {name[:60]!r}; wanted the name of one folder, without / or .. : rename it")
    return name


def _interleaves(counts: tuple[int, ...]) -> tuple[int, ...]:
    try:
        return Ratio(counts).counts
    except ConfigError as error:
        raise ValueError(str(error)) from None


def _known_encoder(name: str) -> str:
    if name not in TRAINED:
        raise ValueError(f"got {name[:60]!r}; wanted one of {', '.join(filter(None, TRAINED))}")
    return name


class ModelShape(Schema):
    """The backbone that stage 1 builds; later stages take it from their parent."""

    hidden_size: Width
    num_layers: Depth
    num_heads: Depth
    intermediate_size: Width
    num_audio_codes: Width
    num_key_value_heads: Depth | None = None
    """None: as many as `num_heads`."""
    tie_word_embeddings: bool = True
    max_positions: Tokens = 2048
    audio_code_levels: tuple[Annotated[Width, Field(ge=2)], ...] | None = None
    """Start the audio embeddings as sums over the levels of a finite scalar quantiser; None: plain normal."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        keys = self.num_key_value_heads or self.num_heads
        if self.hidden_size % self.num_heads or self.num_heads % keys:
            raise ValueError(f"hidden_size {self.hidden_size} must be a multiple of num_heads, and that one of {keys}")
        if self.audio_code_levels is not None and prod(self.audio_code_levels) != self.num_audio_codes:
            raise ValueError("num_audio_codes must be the product of audio_code_levels")
        return self

    def config_values(self) -> dict[str, Any]:
        """All but its depth, in the terms of config.json."""
        return {
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_key_value_heads or self.num_heads,
            "max_position_embeddings": self.max_positions,
            "tie_word_embeddings": self.tie_word_embeddings,
        }


def _known_family(name: str) -> str:
    if not is_known(name):
        raise ValueError(f"got {name[:60]!r}; wanted a model_type, such as omni_speech2s_llama")
    return name


@dataclass(frozen=True)
class Backbone:
    """A released language model that stage 1 starts from. vocabulary: rows of its embeddings."""

    hub_id: str
    shape: ModelShape
    vocabulary: int


def _backbone(
    hub_id: str, hidden: int, layers: int, heads: int, keys: int, inner: int, vocabulary: int, *, tied: bool = False
) -> Backbone:
    shape = ModelShape(
        hidden_size=hidden,
        num_layers=layers,
        num_heads=heads,
        num_key_value_heads=keys,
        intermediate_size=inner,
        num_audio_codes=1 << 14,
        tie_word_embeddings=tied,
    )
    return Backbone(hub_id, shape, vocabulary)


BACKBONES = {
    "qwen2.5-7b": _backbone("Qwen/Qwen2.5-7B-Instruct", 3584, 28, 28, 4, 18944, 152064),
    "qwen2.5-0.5b": _backbone("Qwen/Qwen2.5-0.5B-Instruct", 896, 24, 14, 2, 4864, 151936, tied=True),
    "qwen3-8b": _backbone("Qwen/Qwen3-8B", 4096, 36, 32, 8, 12288, 151936),
    "llama3.2-1b": _backbone("meta-llama/Llama-3.2-1B-Instruct", 2048, 16, 32, 8, 8192, 128256, tied=True),
    "llama3.1-8b": _backbone("meta-llama/Llama-3.1-8B-Instruct", 4096, 32, 32, 8, 14336, 128256),
}
"""Sizes as in the config.json of each."""


class LoraRecipe(Schema):
    """Low-rank adapters (arXiv 2106.09685) on every linear layer of backbone and blocks; all else is frozen."""

    rank: Width
    alpha: Width
    dropout: Decay = 0.0


class OptimizerRecipe(Schema):
    """AdamW everywhere, or Muon on the hidden matrices and AdamW on embeddings, head, norms and biases."""

    lr: Rate
    """Backbone, AdamW parameters."""
    name: Literal["adamw", "muon"] = "adamw"
    mctp_lr_multiplier: Scale = 1.0
    """Every rate of the MCTP blocks is this times the backbone's."""
    muon_lr: Rate | None = None
    muon_momentum: Decay = 0.95
    betas: tuple[Decay, Decay] = (0.9, 0.95)
    eps: Fraction = 1e-8
    weight_decay: Scale = 0.0
    decay_norms: bool = True
    """Decay RMSNorm weights too, as the released scripts do; biases never are."""
    grad_clip: Scale = 1.0

    @model_validator(mode="after")
    def _rate_of_muon(self) -> Self:
        if self.name == "muon" and self.muon_lr is None:
            raise ValueError("name muon needs muon_lr")
        if self.name == "adamw" and self.muon_lr is not None:
            raise ValueError("muon_lr contradicts name adamw")
        return self


class ScheduleRecipe(Schema):
    """Linear warm-up, then a cosine, or a plateau with a linear decay at the end (WSD)."""

    kind: Literal["cosine", "wsd"] = "cosine"
    warmup_ratio: Fraction = 0.03
    decay_fraction: Fraction | None = None
    """Fraction of all steps that `wsd` spends decaying."""
    final_lr_fraction: Fraction = 0.0

    @model_validator(mode="after")
    def _fits_the_run(self) -> Self:
        if (self.kind == "wsd") != (self.decay_fraction is not None):
            raise ValueError(f"kind {self.kind} {'needs' if self.kind == 'wsd' else 'has no'} decay_fraction")
        if self.warmup_ratio + (self.decay_fraction or 0) > 1:
            raise ValueError("warmup_ratio and decay_fraction exceed the whole run")
        return self


class DataRecipe(Schema):
    """What is trained on, and in what pieces."""

    mixture: str
    """Mixture file, relative to the recipe."""
    row_length: Annotated[int, Field(ge=1, le=1 << 24)]
    """Tokens of one packed row; attention costs grow with it."""
    tokens_per_step: Tokens
    rows_per_forward: Width
    """Rows computed at once by one process; gradients accumulate until `tokens_per_step`."""
    interleave_ratio: Annotated[tuple[Width, ...], AfterValidator(_interleaves)] = (1, 10, 4, 10)
    """Text tokens, audio tokens with two markers, ... of an answer; also the mode that decoding takes by default."""
    further_ratios: tuple[Annotated[tuple[Width, ...], AfterValidator(_interleaves)], ...] = ()
    """Each conversation with a system text is interleaved by one of these or by `interleave_ratio`, and says which."""
    root: str | None = None
    """Folder of the mixture's sets, relative to the recipe; None: they are handed over by the caller."""

    @property
    def ratios(self) -> tuple[Ratio, ...]:
        """The default's first."""
        return tuple(map(Ratio, (self.interleave_ratio, *self.further_ratios)))

    @model_validator(mode="after")
    def _steps_are_whole(self) -> Self:
        if self.tokens_per_step % (self.row_length * self.rows_per_forward):
            raise ValueError("tokens_per_step must be a multiple of row_length * rows_per_forward")
        return self


class Recipe(Schema):
    """One stage of training. `name` is also the checkpoint's name, which the next stage gives as its `parent`."""

    name: Annotated[str, Field(min_length=1), AfterValidator(_folder_name)]
    stage: Literal[1, 2, 3, 4]
    family: Annotated[str, AfterValidator(_known_family)] | None = None
    """The `model_type` of a kind with parts of its own; None: VITA-Audio, or -Plus with `audio_encoder`."""
    trains: tuple[str, ...] = ()
    """Of the family's parts, such as adaptor and talker, those that learn."""
    num_mctp_blocks: Annotated[int, Field(ge=0, le=1000)] = 0
    freeze_backbone: bool = True
    """Else it is trained whole, or with `lora` through adapters."""
    optimizer: OptimizerRecipe
    data: DataRecipe
    max_tokens: Annotated[int, Field(ge=1, le=10**15)] | None = None
    max_steps: Steps | None = None
    """Optimizer steps; either this or `max_tokens`."""
    parent: str | None = None
    model: ModelShape | None = None
    backbone: Literal["qwen2.5-7b", "qwen2.5-0.5b", "qwen3-8b", "llama3.2-1b", "llama3.1-8b"] | None = None
    """The released model behind it all; None: one of another size."""
    start: str | None = None
    """Stage 1: folder of the weights to begin with, relative to the recipe; None: fetched by the backbone's name."""
    tokenizer: str | None = None
    """With `model`: folder of the tokenizer, relative to the recipe; None: the caller makes one."""
    schedule: ScheduleRecipe = ScheduleRecipe()
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: products in bfloat16, weights in float32 (with `deepspeed`: bfloat16 beside a float32 copy)."""
    attention: Literal["eager", "sdpa", "flex", "flash"] = "sdpa"
    deepspeed: str | None = None
    """DeepSpeed's JSON file, relative to the recipe."""
    gradient_checkpointing: bool = False
    """Keep each layer's input alone and compute the rest again: a third more work, a fraction of the memory."""
    audio_encoder: Annotated[str, AfterValidator(_known_encoder)] | None = None
    """Of VITA-Audio-Plus; no stage trains it. None: the model hears codes."""
    detach: Literal["when_frozen", "always"] = "when_frozen"
    """When the blocks' gradients stop before the backbone; `always` as in VITA-Audio-Plus."""
    label_shift: Literal["per_sample", "reference_row"] = "per_sample"
    lora: LoraRecipe | None = None
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] = 42
    log_interval: Interval = 20
    """Steps."""
    checkpoint_interval: Interval = 500
    eval_interval: Interval = 0
    """Steps between calls of the evaluation callback; 0: only at the end."""
    report_to: tuple[Literal["wandb", "mlflow", "comet_ml", "trackio", "swanlab"], ...] = ()
    """Trackers of transformers' Trainer, where their packages are installed; tensorboard's files are written anyway."""

    @property
    def model_type(self) -> str:
        """Of the family that is trained."""
        return self.family or TRAINED[self.audio_encoder]

    @property
    def num_steps(self) -> int:
        if self.max_tokens is None:
            return self.max_steps or 0
        return max(1, self.max_tokens // self.data.tokens_per_step)

    @model_validator(mode="after")
    def _does_not_contradict_itself(self) -> Self:
        own = self._stage_1_problems if self.stage == 1 else self._later_problems
        problems = (own if self.family is None else self._family_problems)()
        if problem := next((text for wrong, text in (*problems, *self._other_problems()) if wrong), None):
            raise ValueError(problem)
        return self

    def _family_problems(self) -> list[tuple[bool, str]]:
        """Of a family whose stages its recipes alone tell apart."""
        begins, idle = (self.start is not None, self.parent is not None), self.freeze_backbone and not self.trains
        return [
            (sum(begins) != 1, "give either `start`, a folder of vita-mctp convert thinker, or the `parent`"),
            (self.model is not None or self.audio_encoder is not None, f"{self.family} begins with a whole model"),
            (self.num_mctp_blocks > 0, f"{self.family} has no MCTP blocks"),
            (idle, "nothing is trained: name parts in `trains`, or freeze_backbone: false"),
            (self.freeze_backbone and self.lora is not None, "lora trains the backbone: freeze_backbone: false"),
        ]

    def _stage_1_problems(self) -> list[tuple[bool, str]]:
        begins = self.backbone is not None or self.start is not None
        return [
            ((self.model is not None) == begins, "stage 1 begins with either `model`, or `backbone` or `start`"),
            (self.parent is not None, "stage 1 is the first, so `parent` contradicts it"),
            (self.num_mctp_blocks > 0, "stage 1 has no MCTP block: num_mctp_blocks must be 0"),
            (self.freeze_backbone, "stage 1 trains the backbone: freeze_backbone must be false"),
            (
                self.audio_encoder is not None and self.start is None,
                "audio_encoder comes with the weights of `start`: vita-mctp convert plus makes them",
            ),
        ]

    def _later_problems(self) -> list[tuple[bool, str]]:
        stage, frozen = self.stage, self.stage != 4
        return [
            (self.model is not None, f"stage {stage} has its parent's backbone, so `model` contradicts it"),
            (self.start is not None, f"stage {stage} begins with its `parent`, so `start` contradicts it"),
            (self.parent is None, f"stage {stage} begins with stage {stage - 1}, so `parent` is needed"),
            (self.num_mctp_blocks < 1, f"stage {stage} needs num_mctp_blocks of at least 1"),
            (stage == 2 and self.num_mctp_blocks != 1, "stage 2 trains one MCTP block: num_mctp_blocks must be 1"),
            (self.freeze_backbone != frozen, f"stage {stage} needs freeze_backbone: {str(frozen).lower()}"),
        ]

    def _other_problems(self) -> list[tuple[bool, str]]:
        sharded, muon = self.deepspeed is not None, self.optimizer.name == "muon"
        return [
            ((self.max_steps is None) == (self.max_tokens is None), "give either max_steps or max_tokens"),
            (self.tokenizer is not None and self.model is None, "tokenizer goes with `model` alone"),
            (self.lora is not None and self.stage != 4 and self.family is None, "lora is for stage 4"),
            (bool(self.trains) and self.family is None, "trains goes with `family`"),
            (self.lora is not None and sharded, "lora is for one process without deepspeed"),
            (muon and sharded, "optimizer.name muon needs whole matrices, deepspeed cuts them"),
        ]


def load_recipe(path: Path, settings: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe; a recipe with `base: FILE` says only what differs from that file.

    Args:
        settings: changes such as "data.row_length=4096"; values are YAML, keys are nested by dots.

    Raises:
        ConfigError: names the file and the key.
    """
    values = _with_base(path, ())
    for setting in settings:
        values = _merge(values, _parse_setting(setting))
    return Recipe.parse(values, " ".join([str(path), *settings]))


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`below` with what `above` says; sections merge key by key, a null takes a key away."""
    merged = dict(below)
    for key, value in above.items():
        if isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
            merged[key] = _merge(merged[key], value)
        elif value is None:
            merged.pop(key, None)
        else:
            merged[key] = value
    return merged


def _with_base(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    values = read_yaml(path)
    if not isinstance(values, Mapping):
        raise ConfigError(f"{path}: wanted a mapping of keys to values, got {type(values).__name__}")
    own = {key: value for key, value in values.items() if key != BASE}
    if BASE not in values:
        return own
    name = values[BASE]
    if not isinstance(name, str) or Path(name).name != name:
        raise ConfigError(f"{path}: base: got {name!r}, wanted the name of a recipe in the same folder")
    base = path.with_name(name)
    if base in (path, *above):
        raise ConfigError(f"{path}: base: {name} is built on this recipe itself; remove one of the two")
    return _merge(_with_base(base, (path, *above)), own)


def _parse_setting(setting: str) -> dict[str, Any]:
    """ "a.b=1" -> {"a": {"b": 1}}."""
    name, equals, text = setting.partition("=")
    if not equals or not all(name.split(".")):
        raise ConfigError(f"--set {setting}: wanted KEY=VALUE with a key such as seed or data.row_length")
    value = parse_yaml(text, f"--set {setting}")
    for part in reversed(name.split(".")):
        value = {part: value}
    return cast(dict[str, Any], value)
