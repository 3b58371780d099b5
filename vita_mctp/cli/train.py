"""`vita-mctp train`, and `vita-mctp convert ...` for what training begins with and what it leaves."""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path
from typing import Annotated, Literal

from vita_mctp.cli import write
from vita_mctp.cli.options import HIGHEST_SEED, arg, command, flag, new_app, opt
from vita_mctp.errors import ConfigError

app, convert = new_app(), new_app()
app.add_typer(convert, name="convert")

_RECIPE = (
    "a stage's YAML file; nano, nano-vocalnet, nano-vocalnet-m2: from nothing, speech is made with flite and espeak-ng"
)
_NANO = ("nano", "nano-vocalnet", "nano-vocalnet-m2")
_MANIFEST = "train on this one, heard by the codec of the model that the recipe starts from"
_SET = "change a key of the recipe, such as data.row_length=4096; may be repeated"


@command(app)
def train(
    recipe: Annotated[str, arg("RECIPE|nano|nano-vocalnet|...", _RECIPE)],
    settings: Annotated[list[str] | None, opt("KEY=VALUE", _SET, "--set")] = None,
    plan: Annotated[bool, flag("--plan", "say what it would train and take; train nothing")] = False,
    out: Annotated[Path | None, opt("FOLDER", "for checkpoints (default: runs; for nano runs/nano, ...)")] = None,
    recipes: Annotated[Path | None, opt("FOLDER", "of nano (default: stages/nano, stages/nano_vocalnet, ...)")] = None,
    processes: Annotated[int, opt("N", "for making nano's speech")] = 1,
    manifest: Annotated[Path | None, opt("FILE", _MANIFEST)] = None,
) -> None:
    """Runs or resumes a stage, or every part of a nano model's making; prints the finished folder."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    changes, is_nano = settings or [], recipe in _NANO
    if is_nano and (plan or changes or manifest):
        raise ConfigError(
            f"{recipe} has several parts; --plan, --set, --manifest want one, as stages/nano/stage4_sft.yaml"
        )
    folder: Path | None
    given, target = recipes or Path("stages") / recipe.replace("-", "_"), out or Path("runs") / recipe
    if recipe == "nano":
        from vita_mctp.nano.run import make_nano

        folder = make_nano(given, target, processes)
    elif is_nano:
        from vita_mctp.nano.talker_training import make_nano_vocalnet

        folder = make_nano_vocalnet(given / "talker.yaml", target, processes)
    elif plan:
        from vita_mctp.training.plan import plan as describe

        write(describe(Path(recipe), out or Path("runs"), changes))
        return
    else:
        from vita_mctp.training.stage import files_of, train_stage

        file, runs = Path(recipe), out or Path("runs")
        if manifest is not None:
            changes = [*changes, f"data.root={_tokenized(manifest, file, runs, changes).absolute()}"]
        folder = train_stage(file, files_of(file.parent), out=runs, settings=changes)
    if folder is None:
        raise KeyboardInterrupt
    if os.environ.get("RANK", "0") == "0":  # of several processes the first
        write(f"{folder}\n")


def _tokenized(manifest: Path, recipe: Path, out: Path, settings: list[str]) -> Path:
    """The folder of the token store `own`, made of the manifest for this run of the recipe."""
    from vita_mctp.checkpoints.opening import open_model
    from vita_mctp.data.tokenize import CodecSource, tokenize_manifest
    from vita_mctp.training.recipe import load_recipe
    from vita_mctp.training.start import find_parent

    read = load_recipe(recipe, settings)
    parent = find_parent(read, recipe.parent, out)
    if parent is None:
        raise ConfigError(
            f"{recipe} starts from no model, which --manifest is heard by; tokenise it, and --set data.root"
        )
    codec = open_model(parent).speech.audio_tokenizer
    root = out / "tokens" / hashlib.sha256(manifest.read_bytes()).hexdigest()[:12]  # another manifest is another run
    tokenize_manifest(manifest, root / "own", CodecSource(codec.name, Path(codec.folder)))
    return root


Source = Annotated[Path, arg("IN", "a folder")]
Target = Annotated[Path, arg("OUT", "a new folder")]
_NEW = "of what is new: rows, and the first block or the projector"
Seed = Annotated[int, opt("N", _NEW, min=0, max=HIGHEST_SEED)]


@command(convert, help="give a Qwen2.5 base the audio tokens, to train speech into")
def qwen(
    source: Source,
    target: Target,
    kind: Annotated[str, opt("KIND", "glm4voice, or sensevoice_glm4voice for Plus")] = "glm4voice",
    mctp_blocks: Annotated[int, opt("K", "to append", min=0, max=1000)] = 0,
    seed: Seed = 0,
) -> None:
    """A base in, stage-1 form out."""
    from vita_mctp.checkpoints.conversion import convert_qwen

    _show([convert_qwen(source, target, kind, num_mctp_blocks=mctp_blocks, seed=seed)])


@command(convert, help="give a Qwen2.5 base SenseVoiceSmall's encoder, to train VITA-Audio-Plus")
def plus(
    source: Source,
    target: Target,
    sensevoice: Annotated[Path, opt("FOLDER", "the feature extractor's, with model.pt")],
    seed: Seed = 0,
) -> None:
    """A base and an encoder in, what stage 1 of Plus begins with out."""
    from vita_mctp.checkpoints.conversion import convert_plus

    _show([convert_plus(source, sensevoice, target, seed=seed)])


@command(convert, help="give a Llama, Qwen2.5 or Qwen3 Whisper's encoder and a talker, to train VocalNet")
def thinker(
    source: Source,
    target: Target,
    whisper: Annotated[Path, opt("FOLDER", "of Whisper large-v3, in transformers' layout")],
    talker: Annotated[Literal["vocalnet", "vocalnet-m2"], opt("KIND", "of the talker")] = "vocalnet",
    sizes: Annotated[Path | None, opt("FILE", "YAML of config keys that differ from the released proportions")] = None,
    seed: Seed = 0,
) -> None:
    """A language model in, what stage 1 of VocalNet or VocalNet-M2 begins with out."""
    from vita_mctp.checkpoints.conversion import convert_thinker

    _show([convert_thinker(source, whisper, target, talker, sizes=sizes, seed=seed)])


@command(convert, help="merge LoRA adapters into their base, as VocalNet's stage 1 is")
def lora(
    source: Source, adapters: Annotated[Path, arg("ADAPTERS", "the folder trained on IN")], target: Target
) -> None:
    """A base and what was trained beside it in, one model out."""
    from vita_mctp.checkpoints.conversion import convert_lora

    _show([convert_lora(source, adapters, target)])


@command(convert, help="prepare a recording as the voice that CosyVoice2 speaks in")
def voice(
    recording: Annotated[str, arg("RECORDING", "some seconds of one speaker, 30 at most, 16 kHz or more")],
    source: Annotated[Path, arg("IN", "CosyVoice2's folder, with speech_tokenizer_v2.onnx and campplus.onnx")],
    target: Annotated[Path, arg("OUT", "a new file; IN/voice.safetensors is found by itself")],
) -> None:
    """A recording and the two models that read it in, one file that speaking needs out."""
    from vita_mctp.audio.io import read_wave
    from vita_mctp.codecs.cosyvoice2.voice import OnnxModels, prepare_voice
    from vita_mctp.files import check_output

    check_output(target)
    models = OnnxModels(source)
    prepare_voice(read_wave(recording, limit_seconds=30.0), models).write(target)
    _show([target])


def _show(written: list[Path]) -> None:
    write("".join(f"{path}\n" for path in written))
