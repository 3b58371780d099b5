"""`vita-mctp convert ...`: each form prints the files or the folder written."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from vita_mctp.cli import write
from vita_mctp.cli.options import arg, command, new_app, opt

app, convert = new_app(), new_app()
app.add_typer(convert, name="convert")

Source = Annotated[Path, arg("IN", "a folder")]
Target = Annotated[Path, arg("OUT", "a new folder")]
Seed = Annotated[int, opt("N", "of what is new: rows, and the first block or the projector")]
ShardSize = Annotated[str, opt("SIZE", "of a weight file")]


@command(convert, help="give a Qwen2.5 base the audio tokens, to train speech into")
def qwen(
    source: Source,
    target: Target,
    kind: Annotated[str, opt("KIND", "glm4voice, or sensevoice_glm4voice for Plus")] = "glm4voice",
    mctp_blocks: Annotated[int, opt("K", "to append")] = 0,
    seed: Seed = 0,
    max_shard_size: ShardSize = "5GB",
) -> None:
    """A base in, stage-1 form out."""
    from vita_mctp.checkpoints.conversion import convert_qwen

    size = max_shard_size
    _show([convert_qwen(source, target, kind, num_mctp_blocks=mctp_blocks, seed=seed, max_shard_size=size)])


@command(convert, help="give a Qwen2.5 base SenseVoiceSmall's encoder, to train VITA-Audio-Plus")
def plus(
    source: Source,
    target: Target,
    sensevoice: Annotated[Path, opt("FOLDER", "the feature extractor's, with model.pt")],
    seed: Seed = 0,
    max_shard_size: ShardSize = "5GB",
) -> None:
    """A base and an encoder in, what stage 1 of Plus begins with out."""
    from vita_mctp.checkpoints.conversion import convert_plus

    _show([convert_plus(source, sensevoice, target, seed=seed, max_shard_size=max_shard_size)])


@command(convert, help="merge or split a checkpoint's weight files")
def shards(source: Source, target: Target, max_shard_size: ShardSize = "5GB") -> None:
    """A checkpoint in, the same in files of another size out."""
    from vita_mctp.checkpoints.weights import parse_size, reshard

    _show(reshard(source, target, parse_size(max_shard_size)))


@command(convert, help="write a released audio decoder (flow.pt, hift.pt) in safetensors")
def decoder(source: Source, target: Target) -> None:
    """A decoder's folder in, the same without pickles out."""
    from vita_mctp.codecs.glm4_voice.decoder import convert_decoder

    _show(convert_decoder(source, target))


@command(convert, help="prepare a recording as the voice that CosyVoice2 speaks in")
def voice(
    recording: Annotated[str, arg("RECORDING", "some seconds of one speaker, 16 kHz or more")],
    source: Annotated[Path, arg("IN", "CosyVoice2's folder, with speech_tokenizer_v2.onnx and campplus.onnx")],
    target: Annotated[Path, arg("OUT", "a new file; IN/voice.safetensors is found by itself")],
) -> None:
    """A recording and the two models that read it in, one file that speaking needs out."""
    from vita_mctp.audio.io import read_wave
    from vita_mctp.codecs.cosyvoice2.voice import OnnxModels, prepare_voice

    models = OnnxModels(source)
    prepare_voice(read_wave(recording), models).write(target)
    _show([target])


def _show(written: list[Path]) -> None:
    write("".join(f"{path}\n" for path in written))
