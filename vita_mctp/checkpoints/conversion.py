"""A Qwen2.5 base in stage-1 form: tokenizer additions, rows for them, the released layout of the config; and LoRA.

Adapters are merged as VocalNet's authors merge those of stage 1: in float16, adaptor included. A LoRA folder holds
adapter_config.json, adapter_model.safetensors, and the weights trained beside the adapters, which the authors pickle;
they are read as tensors alone.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import ConfigDict, Field
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from vita_mctp.checkpoints.loading import load_model
from vita_mctp.checkpoints.opening import model_type_of
from vita_mctp.checkpoints.speech import copy_speech
from vita_mctp.checkpoints.weights import SINGLE_FILE, copy_others, new_folder, safetensors_files, verify_folder
from vita_mctp.codecs.released import load_tensors
from vita_mctp.errors import CheckpointError, ConfigError
from vita_mctp.models.registry import SPOKEN, TRAINED, family_of
from vita_mctp.models.strict import quiet_transformers, refuse_incomplete
from vita_mctp.schema import Schema, read_json
from vita_mctp.text.tokenizer import CONFIG_FILE, TOKENIZER_FILE, TextTokenizer
from vita_mctp.text.vocabulary import PADDING_MULTIPLE, VocabularyKind, released_additions
from vita_mctp.yaml_file import read_yaml

_COPIED = ("generation_config.json", "LICENSE", "vocab.json", "merges.txt")

ENCODER_FILE = "model.pt"

_ENCODER_SIZES = (
    "d_model",
    "encoder_layers",
    "encoder_attention_heads",
    "encoder_ffn_dim",
    "num_mel_bins",
    "max_source_positions",
)
_SHARD_SIZE = "5GB"
_OF_WEIGHTS = ("adapter_", "model.")
"""How names of files begin that are of no use beside merged weights."""
_OURS = ("num_nextn_predict_layers", "mtp_loss_weight", "speech_token_offset")


def convert_qwen(
    base: Path,
    target: Path,
    kind: VocabularyKind | str = VocabularyKind.DISCRETE,
    *,
    num_mctp_blocks: int = 0,
    seed: int = 0,
) -> Path:
    """Writes a plain Qwen2 or Qwen2.5 as a model to train speech into; weights keep their stored type.

    Without blocks the result is a plain Qwen2 to every reader, as the released stage 1 is. Rows that the base holds
    beyond its tokenizer's ids stay and serve the first additions. New rows of embeddings and head are drawn from a
    normal distribution with the mean and covariance of the old rows (transformers' mean resizing, Hewitt 2021), as the
    released stage 1 does; the table is padded to a multiple of 8.

    Args:
        base: a folder with config.json, tokenizer.json and safetensors.
        kind: which special tokens are added: of VITA-Audio, or of VITA-Audio-Plus.
        num_mctp_blocks: blocks to append; block 0 copies the last layer, the others copy block 0.
        seed: of new rows and of block 0's projection.

    Raises:
        CheckpointError: `base` is not whole, or its embeddings have fewer rows than its tokenizer has ids.
        ConfigError: an unknown `kind`, or fewer than no blocks.
        OutputError: `target` is there already or cannot be written.
    """
    with new_folder(target) as unfinished:
        model, tokenizer = _extended(base, kind, num_mctp_blocks, seed)
        _write(model, tokenizer, base, unfinished, plain=num_mctp_blocks == 0)
    return target


def convert_plus(base: Path, sensevoice: Path, target: Path, *, seed: int = 0) -> Path:
    """Writes what VITA-Audio-Plus begins stage 1 with: a Qwen2.5 base, SenseVoiceSmall's encoder, a new projector.

    sensevoice: the folder of FunAudioLLM/SenseVoiceSmall with model.pt, which is read as tensors alone and stored in
    the base's type. Otherwise as `convert_qwen`.
    """
    file = sensevoice / ENCODER_FILE
    with new_folder(target) as unfinished:
        encoder = load_tensors(file, "download model.pt of FunAudioLLM/SenseVoiceSmall")
        plain, tokenizer = _extended(base, VocabularyKind.CONTINUOUS, 0, seed)
        model = family_of(TRAINED["sensevoice"]).with_encoder(plain, encoder, file, seed, {})
        _write(model, tokenizer, base, unfinished, plain=False)
    return target


def convert_thinker(
    base: Path, whisper: Path, target: Path, talker: str = "vocalnet", *, sizes: Path | None = None, seed: int = 0
) -> Path:
    """Writes what VocalNet or VocalNet-M2 begins stage 1 with: a language model, Whisper's encoder, and new parts.

    Args:
        base: a Llama, Qwen2.5 or Qwen3 with config.json, tokenizer.json and safetensors; its tokenizer is kept.
        whisper: a folder in transformers' layout, of which the encoder alone is taken.
        talker: a key of `SPOKEN`.
        sizes: YAML with config keys, such as mtp_num, that differ from the released models' proportions.

    Raises:
        CheckpointError: `base` or `whisper` is not whole.
        ConfigError: a base of another kind, unknown sizes, or such as contradict each other.
        OutputError: as `convert_qwen`.
    """
    kind, known = model_type_of(base), SPOKEN[talker]
    if kind not in known:
        raise ConfigError(f"{base} holds a {kind} model; wanted one of {', '.join(known)}")
    changes = {} if sizes is None else read_yaml(sizes)
    if not isinstance(changes, dict):
        raise ConfigError(f"{sizes} holds {type(changes).__name__}; wanted a mapping of sizes")
    family = family_of(known[kind])
    values = {
        "encoder_sizes": {name: read_json(whisper / "config.json").get(name) for name in _ENCODER_SIZES},
        **changes,
    }
    tensors: dict[str, Tensor] = {}
    for folder in (base, whisper):
        verify_folder(folder)
    for file in safetensors_files(whisper):
        found = load_tensors(file, "download the Whisper model again")
        tensors |= {name.partition("encoder.")[2]: each for name, each in found.items() if "decoder." not in name}
    with new_folder(target) as unfinished:
        options = {"use_safetensors": True, "ignore_mismatched_sizes": True, "output_loading_info": True}
        with quiet_transformers():
            thinker, info = AutoModelForCausalLM.from_pretrained(base, dtype="auto", local_files_only=True, **options)
        refuse_incomplete(base, info)
        model = family.with_encoder(thinker, tensors, whisper, seed, values)
        model.save_pretrained(unfinished, max_shard_size=_SHARD_SIZE)
        copy_others(base, unfinished, lambda path: path.name in (*_COPIED, TOKENIZER_FILE, CONFIG_FILE))
        family.load_tokenizer(unfinished)  # refuses one that lacks the markers of its chats
    return target


def convert_lora(base: Path, adapter: Path, target: Path) -> Path:
    """Writes a model with the adapters that were trained on it merged in, by VocalNet's rule, in float16.

    Configuration and tokenizer are the adapters' own where their folder has them. Raises as `merge_lora`, and
    OutputError as `convert_qwen`.
    """
    with new_folder(target) as unfinished:
        tensors = {name: tensor.contiguous() for name, tensor in merge_lora(base, adapter).items()}
        save_file(tensors, unfinished / SINGLE_FILE, metadata={"format": "pt"})
        copy_speech(base, unfinished)
        for source in (adapter, base):
            copy_others(source, unfinished, _is_text)
        file = unfinished / "config.json"
        values = {name: value for name, value in read_json(file).items() if name != "dtype"}
        values["torch_dtype"] = "float16"
        file.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    return target


def _is_text(path: Path) -> bool:
    return path.suffix in (".json", ".txt") and not path.name.startswith(_OF_WEIGHTS)


def _write(model: Any, tokenizer: TextTokenizer, base: Path, folder: Path, *, plain: bool) -> None:
    model.save_pretrained(folder, max_shard_size=_SHARD_SIZE)
    if plain:
        _name_plain(folder / "config.json")
    tokenizer.save(folder)
    copy_others(base, folder, lambda path: path.name in _COPIED)


def _extended(base: Path, kind: VocabularyKind | str, num_mctp_blocks: int, seed: int) -> tuple[Any, TextTokenizer]:
    """The base with rows for the tokenizer's additions."""
    tokenizer = TextTokenizer.from_folder(base, kind)
    vocabulary = tokenizer.vocabulary
    model = load_model(base, dtype=None, num_mctp_blocks=num_mctp_blocks, seed=seed)
    own = vocabulary.audio_0 - len(released_additions(vocabulary.input_kind))
    if not own <= model.config.vocab_size <= vocabulary.padded_size:
        raise CheckpointError(
            f"{base} embeds {model.config.vocab_size} ids, its tokenizer has {own}, and {vocabulary.size} with the "
            "additions; give a base with its own tokenizer"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model.resize_token_embeddings(vocabulary.size, pad_to_multiple_of=PADDING_MULTIPLE)
    model.config.speech_token_offset = vocabulary.audio_0
    return model, tokenizer


def _name_plain(file: Path) -> None:
    values = json.loads(file.read_bytes())
    kept = {name: value for name, value in values.items() if name not in _OURS}
    kept |= {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}
    file.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")


_OTHERS = ("non_lora_trainables.safetensors", "non_lora_trainables.bin")
_REMEDY = "get it again"
_A, _B = ".lora_A.weight", ".lora_B.weight"


class LoraValues(Schema):
    """Of adapter_config.json what decides the sum; peft's other keys pass."""

    model_config = ConfigDict(extra="ignore")

    r: Annotated[int, Field(ge=1, le=1 << 16)]
    lora_alpha: Annotated[float, Field(gt=0, le=1e6)]
    use_dora: Annotated[bool, Field()] = False
    use_rslora: Annotated[bool, Field()] = False
    rank_pattern: dict[str, Any] = Field(default_factory=dict)
    alpha_pattern: dict[str, Any] = Field(default_factory=dict)


def merge_lora(base: Path, adapter: Path) -> dict[str, Tensor]:
    """W + alpha / r * B A for every adapted weight, and all others, by name, float16.

    Raises CheckpointError for a file that is missing or cut short, and for adapters of another kind, without their
    counterpart, or of a weight that `base` lacks.
    """
    values = LoraValues.read_json(adapter / "adapter_config.json")
    if values.use_dora or values.use_rslora or values.rank_pattern or values.alpha_pattern:
        raise CheckpointError(f"{adapter} holds adapters of one's own ranks or scales; wanted plain LoRA of one rank")
    verify_folder(base)
    stored = [load_tensors(file, _REMEDY) for file in safetensors_files(base)]
    merged = {name: tensor.half() for tensors in stored for name, tensor in tensors.items()}
    found = load_tensors(adapter / "adapter_model.safetensors", _REMEDY)
    adapters = {_plain(name): tensor for name, tensor in found.items()}
    for name in sorted(adapters):
        if name.endswith(_B) and name.removesuffix(_B) + _A in adapters:
            continue
        weight = name.removesuffix(_A) + ".weight"
        if not name.endswith(_A) or name.removesuffix(_A) + _B not in adapters or weight not in merged:
            raise CheckpointError(f"{adapter} has {name}, which fits no weight of {base}; they are not of one model")
        down, up = adapters[name].half(), adapters[name.removesuffix(_A) + _B].half()
        if (up.shape[0], down.shape[1]) != tuple(merged[weight].shape) or up.shape[1] != down.shape[0]:
            raise CheckpointError(f"{adapter}: {name} has shape {tuple(down.shape)}, which does not fit {weight}")
        merged[weight] = merged[weight] + (up @ down) * (values.lora_alpha / values.r)
    return merged | {_plain(name): tensor.half() for name, tensor in _others(adapter).items()}


def _plain(name: str) -> str:
    """Without the prefixes of peft and of the class around."""
    name = name.removeprefix("base_model.")
    return name.removeprefix("model.") if name.startswith("model.model.") else name


def _others(adapter: Path) -> dict[str, Tensor]:
    found = next((adapter / name for name in _OTHERS if (adapter / name).is_file()), None)
    if found is None:
        raise CheckpointError(f"{adapter} lacks {_OTHERS[1]}, the adaptor's weights; get the whole folder")
    return load_tensors(found, _REMEDY)
