"""The nano codec's networks as ONNX graphs, in float32 on the CPU. Their slow twins, for training, are in `networks`.

B streams, T steps, N codes, F log-mel frames, M mels, C channels, D dimensions of the quantiser, Q frequency bins. A
causal stack takes the last inputs of each of its convolutions, (B, kernel_size - 1, C), and gives those that the next
call takes.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnxruntime
from onnx import TensorProto

from vita_mctp.arrays import Shapes
from vita_mctp.codecs.nano.config import NanoCodecConfig
from vita_mctp.onnx_graph import MICROSOFT, OnnxGraph
from vita_mctp.types import FloatArray

_NORM_EPS = 1e-5  # of torch's LayerNorm
_MEL, _VOCODER = "mel_decoder.", "vocoder."


def encoder_shapes(config: NanoCodecConfig) -> Shapes:
    """Of the encoder's tensors."""
    fine, coarse = config.fine_width, config.coarse_width
    return {
        **_linear("embed", config.num_mels * config.patch_frames, fine),
        **_stack("fine", config.encoder_fine_layers, fine, config),
        **_linear("merge", fine * config.stride, coarse),
        **_stack("coarse", config.encoder_coarse_layers, coarse, config),
        **_norm("norm", coarse),
        **_linear("project", coarse, len(config.levels)),
    }


def decoder_shapes(config: NanoCodecConfig) -> Shapes:
    """Of the tensors of mel decoder and vocoder, which share a file."""
    fine, coarse, width, mel, sound = config.fine_width, config.coarse_width, config.vocoder_width, _MEL, _VOCODER
    return {
        **_linear(f"{mel}embed", (config.decoder_lookahead + 1) * len(config.levels), coarse),
        **_stack(f"{mel}coarse", config.decoder_coarse_layers, coarse, config),
        **_linear(f"{mel}split", coarse, fine * config.stride),
        **_stack(f"{mel}fine", config.decoder_fine_layers, fine, config),
        **_norm(f"{mel}norm", fine),
        **_linear(f"{mel}project", fine, config.num_mels * config.patch_frames),
        **_linear(f"{sound}embed", config.num_mels * (config.vocoder_lookahead + 1), width),
        **_stack(f"{sound}stack", config.vocoder_layers, width, config),
        **_norm(f"{sound}norm", width),
        **_linear(f"{sound}project", width, 3 * (config.vocoder_fft // 2 + 1)),
    }


def _linear(name: str, inputs: int, outputs: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _norm(name: str, channels: int) -> Shapes:
    return {f"{name}.weight": (channels,), f"{name}.bias": (channels,)}


def _stack(name: str, layers: int, channels: int, config: NanoCodecConfig) -> Shapes:
    inner, shapes = channels * config.expansion, dict[str, tuple[int, ...]]()
    for block in (f"{name}.{i}" for i in range(layers)):
        conv = f"{block}.depthwise.conv"
        shapes |= {f"{conv}.weight": (channels, 1, config.kernel_size), f"{conv}.bias": (channels,)}
        shapes |= _norm(f"{block}.norm", channels)
        shapes |= {**_linear(f"{block}.expand", channels, inner), **_linear(f"{block}.reduce", inner, channels)}
    return shapes


class _Codec(OnnxGraph):
    """The layers of `networks`, by the names of their weights."""

    def layer(self, x: str, name: str) -> str:
        return self.linear(x, name, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def norm(self, x: str, name: str) -> str:
        weights = [self.weight(f"{name}.{part}") for part in ("weight", "bias")]
        y: str = self.node("LayerNormalization", [x, *weights], axis=-1, epsilon=_NORM_EPS)
        return y

    def steps(self, x: str, channels: int) -> str:
        """(B, T, C) -> (B, T C / channels, channels): neighbouring steps side by side, or apart again."""
        y: str = self.node("Reshape", [x, self.constant(f"steps_of_{channels}", np.array([0, -1, channels]))])
        return y

    def stack(self, x: str, name: str, layers: int, causal: bool) -> str:
        """ConvNeXt blocks. What causal ones remember are inputs and outputs of the graph, in their order."""
        for i in range(layers):
            x = self.node("Add", [x, self._block(x, f"{name}.{i}", causal)])
        return x

    def _block(self, x: str, name: str, causal: bool) -> str:
        conv = f"{name}.depthwise.conv"
        channels, _, size = self.weights[f"{conv}.weight"].shape
        left = size - 1 if causal else (size - 1) // 2
        if causal:
            dims: list[int | str] = ["B", left, channels]
            x = self.node("Concat", [self.input(f"{name}.past", TensorProto.FLOAT, dims), x], axis=1)
            bounds = [self.constant(f"from_{-left}", np.array([-left])), self.constant("end", np.array([1 << 40]))]
            self.node("Slice", [x, *bounds, self.constant("time", np.array([1]))], [f"{name}.next"])
            self.output(f"{name}.next", TensorProto.FLOAT, dims)
        y = self.node(
            "Conv",
            [self.node("Transpose", [x], perm=[0, 2, 1]), self.weight(f"{conv}.weight"), self.weight(f"{conv}.bias")],
            group=channels,
            kernel_shape=[size],
            pads=[0, 0] if causal else [left, size - 1 - left],
        )
        y = self.norm(self.node("Transpose", [y], perm=[0, 2, 1]), f"{name}.norm")
        y = self.node("Gelu", [self.layer(y, f"{name}.expand")], domain=MICROSOFT)
        return self.layer(y, f"{name}.reduce")


def compile_encoder(config: NanoCodecConfig, weights: Mapping[str, FloatArray]) -> onnxruntime.InferenceSession:
    """frames (1, F, M), F a multiple of frames_per_code -> (1, N, D) before the quantiser."""
    graph = _Codec(weights)
    x = graph.input("frames", TensorProto.FLOAT, [1, "F", config.num_mels])
    x = graph.layer(graph.steps(x, config.num_mels * config.patch_frames), "embed")
    x = graph.stack(x, "fine", config.encoder_fine_layers, causal=False)
    x = graph.layer(graph.steps(x, config.fine_width * config.stride), "merge")
    x = graph.stack(x, "coarse", config.encoder_coarse_layers, causal=False)
    graph.give("reals", graph.layer(graph.norm(x, "norm"), "project"), [1, "N", len(config.levels)])
    return graph.compile()


def compile_mel_decoder(config: NanoCodecConfig, weights: Mapping[str, FloatArray]) -> onnxruntime.InferenceSession:
    """windows (B, N, (lookahead + 1) D) of grid points, states -> states, log-mel frames (B, F, M)."""
    graph = _Codec(weights)
    width = (config.decoder_lookahead + 1) * len(config.levels)
    x = graph.layer(graph.input("windows", TensorProto.FLOAT, ["B", "N", width]), f"{_MEL}embed")
    x = graph.stack(x, f"{_MEL}coarse", config.decoder_coarse_layers, causal=True)
    x = graph.steps(graph.layer(x, f"{_MEL}split"), config.fine_width)
    x = graph.stack(x, f"{_MEL}fine", config.decoder_fine_layers, causal=True)
    x = graph.steps(graph.layer(graph.norm(x, f"{_MEL}norm"), f"{_MEL}project"), config.num_mels)
    graph.give("frames", x, ["B", "F", config.num_mels])
    return graph.compile()


def compile_vocoder(config: NanoCodecConfig, weights: Mapping[str, FloatArray]) -> onnxruntime.InferenceSession:
    """windows (B, F, (lookahead + 1) M) of log-mel frames, states -> states, gain, real, imaginary (B, F, 3 Q)."""
    graph = _Codec(weights)
    windows = graph.input("windows", TensorProto.FLOAT, ["B", "F", (config.vocoder_lookahead + 1) * config.num_mels])
    x = graph.layer(windows, f"{_VOCODER}embed")
    x = graph.stack(x, f"{_VOCODER}stack", config.vocoder_layers, causal=True)
    x = graph.layer(graph.norm(x, f"{_VOCODER}norm"), f"{_VOCODER}project")
    graph.give("projected", x, ["B", "F", 3 * (config.vocoder_fft // 2 + 1)])
    return graph.compile()
