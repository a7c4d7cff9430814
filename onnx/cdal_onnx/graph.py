"""A small ONNX graph builder: what the networks are written over.

`Graph` speaks the networks' words (conv, linear, normalise, FIR) and decides how each is spelt in ONNX.
Two dialects share every definition: `InferenceGraph` folds what does not depend on the input and uses
operators that the CPU, CUDA and TensorRT providers all run; `TrainingGraph` uses only operators that the
runtime's gradient builder can differentiate and keeps parameters in their published names and shapes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from . import fused, gradients
from .errors import Refused

OPSET = 17
IR_VERSION = 8


@dataclass(frozen=True)
class Map:
    """A feature map in the graph: name of its tensor [N, channels, size, size]."""

    name: str
    channels: int
    size: int


class Graph:
    """Nodes and initializers of one graph, over the weights of `state` (published keys)."""

    def __init__(self, state: dict[str, np.ndarray],
                 initial: Callable[[str, tuple[int, ...]], np.ndarray] | None = None):
        """`initial` gives a first value for keys that `state` lacks; without it they are refused."""
        self.state = state
        self.initial = initial
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self.used: set[str] = set()

    # -- plumbing ---------------------------------------------------------------------------------

    def op(self, kind: str, *inputs: str, outputs: int = 1, **attributes):
        """Adds a node; returns the name of its output, or a list where there are several."""
        index = len(self.nodes)
        names = [f"{kind}_{index}" if k == 0 else f"{kind}_{index}_{k}" for k in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, name=f"{kind}_{index}", **attributes))
        return names[0] if outputs == 1 else names

    def constant(self, value: np.ndarray, name: str | None = None) -> str:
        """An initializer; equal anonymous constants are stored once."""
        value = np.ascontiguousarray(value)
        if name is None:
            digest = hashlib.sha256(value.tobytes()).hexdigest()[:16]
            name = f"c_{value.dtype}_{'x'.join(map(str, value.shape))}_{digest}"
        if name not in self.initializers:
            self.initializers[name] = numpy_helper.from_array(value, name)
        return name

    def ints(self, *values: int) -> str:
        return self.constant(np.asarray(values, np.int64), "i_" + "_".join(str(v).replace("-", "m") for v in values))

    def floats(self, *values: float) -> str:
        return self.constant(np.asarray(values, np.float32), "f_" + "_".join(repr(float(np.float32(v))) for v in values))

    def weight(self, key: str, *shape: int) -> np.ndarray:
        """The value of a published key, checked against the shape that the parameters ask for."""
        if key not in self.state and self.initial:
            self.state[key] = self.initial(key, shape)
        value = self.state.get(key)
        if value is None:
            raise Refused(f"the checkpoint has no tensor {key!r}; the parameters ask for it with shape {list(shape)}")
        if value.shape != shape:
            raise Refused(f"checkpoint tensor {key!r} has shape {list(value.shape)}; "
                          f"the parameters ask for {list(shape)}")
        self.used.add(key)
        return np.asarray(value, np.float32)

    def parameter(self, key: str, *shape: int) -> str:
        """The published tensor as an initializer of its own name."""
        return self.constant(self.weight(key, *shape), key)

    def add_input(self, name: str, kind: int, shape: list) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def add_output(self, tensor: str, name: str, kind: int, shape: list) -> None:
        self.nodes.append(helper.make_node("Identity", [tensor], [name], name=f"output_{name}"))
        self.outputs.append(helper.make_tensor_value_info(name, kind, shape))

    def model(self, name: str) -> onnx.ModelProto:
        graph = helper.make_graph(self.nodes, name, self.inputs, self.outputs, list(self.initializers.values()))
        functions = self.functions()
        domains = [("", OPSET)] + [(fused.DOMAIN, fused.VERSION)] * bool(functions)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid(*domain) for domain in domains],
                                  functions=functions, producer_name="cdal_onnx", ir_version=IR_VERSION)
        onnx.checker.check_model(model)
        return model

    def functions(self) -> list[onnx.FunctionProto]:
        """Definitions of the operators that are not ONNX's own."""
        return []

    def refuse_unused(self, what: str) -> None:
        """A tensor that no layer reads means that the parameters describe another network."""
        unused = sorted(set(self.state) - self.used)
        if unused:
            raise Refused(f"{what}: {len(unused)} tensors of the checkpoint belong to no layer of the described "
                          f"network, first {unused[0]!r}; are these the checkpoint's own parameters?")

    # -- words shared by both dialects -----------------------------------------------------------

    def add(self, a: Map, b: Map) -> Map:
        return Map(self.op("Add", a.name, b.name), a.channels, a.size)

    def mean(self, a: Map, b: Map) -> Map:
        """(a + b)/√2: the rescaled sum of every residual connection."""
        total = self.op("Add", a.name, b.name)
        return Map(self.op("Mul", total, self.floats(np.sqrt(0.5))), a.channels, a.size)

    def concat(self, a: Map, b: Map) -> Map:
        return Map(self.op("Concat", a.name, b.name, axis=1), a.channels + b.channels, a.size)

    def silu_vector(self, x: str) -> str:
        return self.op("Mul", x, self.op("Sigmoid", x))

    def silu(self, x: Map) -> Map:
        return Map(self.silu_vector(x.name), x.channels, x.size)

    def leaky(self, x: Map) -> Map:
        return Map(self.leaky_vector(x.name), x.channels, x.size)

    def conv(self, x: Map, key: str, channels: int, kernel: int = 3, stride: int = 1, padding: int | None = None,
             bias: bool = True) -> Map:
        """Convolution with the published `{key}.weight` [out, in, k, k] and `{key}.bias`."""
        padding = kernel // 2 if padding is None else padding
        weights = [self.parameter(f"{key}.weight", channels, x.channels, kernel, kernel)]
        if bias:
            weights.append(self.parameter(f"{key}.bias", channels))
        y = self.op("Conv", x.name, *weights, kernel_shape=[kernel, kernel], strides=[stride, stride],
                    pads=[padding] * 4)
        return Map(y, channels, (x.size + 2 * padding - kernel) // stride + 1)

    def linear(self, x: str, key: str, n_in: int, n_out: int) -> str:
        """x [N, in] to [N, out] with the published `{key}.weight` [out, in]."""
        weight = self.parameter(f"{key}.weight", n_out, n_in)
        return self.op("Gemm", x, weight, self.parameter(f"{key}.bias", n_out), transB=1)

    def per_channel(self, x: str) -> str:
        """[N, C] → [N, C, 1, 1]."""
        return self.op("Unsqueeze", x, self.ints(2, 3))

    def affine_norm(self, x: Map, key: str, groups: int, epsilon: float, silu: bool = False) -> Map:
        """GroupNorm with the published per-channel `{key}.weight`, `{key}.bias`, then SiLU if asked."""
        shape = self.ints(1, x.channels)
        scale = self.op("Reshape", self.parameter(f"{key}.weight", x.channels), shape)
        shift = self.op("Reshape", self.parameter(f"{key}.bias", x.channels), shape)
        return self.group_norm(x, groups, epsilon, scale, shift, silu=silu)

    def group_norm(self, x: Map, groups: int, epsilon: float, scale: str, shift: str, offset: str | None = None,
                   silu: bool = False) -> Map:
        """GroupNorm of x + offset, times `scale` plus `shift`, then SiLU if asked; all three are [1 or N, C]."""
        if offset is not None:
            x = Map(self.op("Add", x.name, self.per_channel(offset)), x.channels, x.size)
        y = self.normalise(x, groups, epsilon)
        y = self.op("Add", self.op("Mul", y.name, self.per_channel(scale)), self.per_channel(shift))
        return Map(self.silu_vector(y) if silu else y, x.channels, x.size)

    def upsampled_skip(self, x: Map, key: str, channels: int, kernel: np.ndarray) -> Map:
        """FIR up, then a 1x1 convolution, at a quarter of the pixels: the two commute, but for the bias."""
        y = self.fir_up(self.conv(x, key, channels, kernel=1, bias=False), kernel)
        bias = self.op("Reshape", self.parameter(f"{key}.bias", channels), self.ints(1, channels, 1, 1))
        return Map(self.op("Add", y.name, bias), channels, y.size)

    # -- words that a dialect spells ---------------------------------------------------------------

    def normalise(self, x: Map, groups: int, epsilon: float) -> Map:
        """GroupNorm without affine part: zero mean, unit (biased) variance over each group."""
        raise NotImplementedError

    def pointwise(self, x: Map, key: str, channels: int) -> Map:
        """NIN: per-pixel linear map with the published `{key}.W` [in, out], `{key}.b`."""
        raise NotImplementedError

    def fir_down(self, x: Map, kernel: np.ndarray) -> Map:
        """FIR blur and decimation by 2; `kernel` [K], sum 1, for each axis."""
        raise NotImplementedError

    def fir_up(self, x: Map, kernel: np.ndarray) -> Map:
        """Zero insertion by 2 and FIR blur with gain 4."""
        raise NotImplementedError

    def fir_blur(self, x: Map, kernel: np.ndarray) -> Map:
        """FIR blur with padding K/2 and no stride: the size grows by one."""
        raise NotImplementedError

    def leaky_vector(self, x: str) -> str:
        """LeakyReLU with slope 0.2."""
        raise NotImplementedError


class InferenceGraph(Graph):
    """Folded and provider-neutral.

    With `half_weights` the parameters are stored as float16 and widened when a session is made: the file is half
    as large, the arithmetic stays float32.
    """

    def __init__(self, *arguments, half_weights: bool = False):
        super().__init__(*arguments)
        self.half_weights = half_weights
        self.widened: dict[str, str] = {}

    def constant(self, value: np.ndarray, name: str | None = None) -> str:
        is_parameter = name is not None and value.dtype == np.float32 and value.size >= 64
        if not (self.half_weights and is_parameter):
            return super().constant(value, name)
        if name not in self.widened:
            if abs(value).max() > np.finfo(np.float16).max:
                raise Refused(f"checkpoint tensor {name!r} does not fit float16; export it with float32 weights")
            stored = super().constant(value.astype(np.float16), name)
            self.widened[name] = self.op("Cast", stored, to=TensorProto.FLOAT)
        return self.widened[name]

    def normalise(self, x: Map, groups: int, epsilon: float) -> Map:
        flat = self.op("Reshape", x.name, self.ints(0, groups, -1))
        ones, zeros = np.ones(groups, np.float32), np.zeros(groups, np.float32)
        y = self.op("InstanceNormalization", flat, self.constant(ones), self.constant(zeros), epsilon=epsilon)
        return Map(self.op("Reshape", y, self.ints(0, x.channels, x.size, x.size)), x.channels, x.size)

    def pointwise(self, x: Map, key: str, channels: int) -> Map:
        kernel = self.weight(f"{key}.W", x.channels, channels).T[:, :, None, None]
        bias = self.parameter(f"{key}.b", channels)
        return Map(self.op("Conv", x.name, self.constant(kernel, f"{key}.W"), bias, kernel_shape=[1, 1]),
                   channels, x.size)

    def _depthwise(self, x: Map, kernel: np.ndarray, gain: float) -> str:
        taps = (np.outer(kernel, kernel) * gain).astype(np.float32)
        return self.constant(np.repeat(taps[None, None], x.channels, 0))

    def fir_down(self, x: Map, kernel: np.ndarray) -> Map:
        before, after = fir_padding(kernel)
        y = self.op("Conv", x.name, self._depthwise(x, kernel, 1.0), group=x.channels,
                    kernel_shape=[len(kernel)] * 2, strides=[2, 2], pads=[before, before, after, after])
        return Map(y, x.channels, x.size // 2)

    def fir_up(self, x: Map, kernel: np.ndarray) -> Map:
        after, before = fir_padding(kernel)
        y = self.op("ConvTranspose", x.name, self._depthwise(x, kernel, 4.0), group=x.channels,
                    kernel_shape=[len(kernel)] * 2, strides=[2, 2], pads=[before, before, after, after])
        return Map(y, x.channels, x.size * 2)

    def fir_blur(self, x: Map, kernel: np.ndarray) -> Map:
        before, after = fir_padding(kernel)
        pads = [before + 1, before + 1, after + 1, after + 1]
        y = self.op("Conv", x.name, self._depthwise(x, kernel, 1.0), group=x.channels,
                    kernel_shape=[len(kernel)] * 2, pads=pads)
        return Map(y, x.channels, x.size + 1)

    def leaky_vector(self, x: str) -> str:
        return self.op("LeakyRelu", x, alpha=0.2)


# Least size of a map whose 3x3 convolutions are `Conv3x3`. At 8 x 8 that gains in batches; below, no gain was seen.
CONV3X3_FROM = 8


class Fused:
    """What a dialect spells by operators of the domain `cdal`: the memory-bound chains between convolutions.

    Their definition is a function of standard operators that the model carries along: a provider without a kernel for
    them runs that. `cdal` brings kernels for the CPU, which do in one or two passes over memory what takes the functions
    up to five operators.
    """

    def group_norm(self, x: Map, groups: int, epsilon: float, scale: str, shift: str, offset: str | None = None,
                   silu: bool = False) -> Map:
        if offset is not None and not silu:
            raise ValueError("an offset is only added where SiLU follows")
        kind = f"{'Offset' if offset else ''}GroupNorm{'SiLU' if silu else ''}"
        inputs = [x.name, scale, shift] + ([offset] if offset else [])
        y = self.op(kind, *inputs, domain=fused.DOMAIN, groups=groups, epsilon=epsilon)
        return Map(y, x.channels, x.size)

    def fir_down(self, x: Map, kernel: np.ndarray) -> Map:
        if len(kernel) != 4:
            return super().fir_down(x, kernel)
        y = self.op("FirDown", x.name, domain=fused.DOMAIN, taps=[float(tap) for tap in kernel], channels=x.channels)
        return Map(y, x.channels, x.size // 2)

    def fir_up(self, x: Map, kernel: np.ndarray) -> Map:
        if len(kernel) != 4:
            return super().fir_up(x, kernel)
        y = self.op("FirUp", x.name, domain=fused.DOMAIN, taps=[float(2 * tap) for tap in kernel],
                    channels=x.channels)
        return Map(y, x.channels, x.size * 2)

    def mean(self, a: Map, b: Map) -> Map:
        """What one of them convolves is added to the other where it is written, if nobody else reads it."""
        for other, convolved in ((a, b), (b, a)):
            index = next((index for index, node in enumerate(self.nodes) if convolved.name in node.output), None)
            is_read = any(convolved.name in node.input for node in self.nodes)
            if index is not None and f"{self.nodes[index].op_type}Mean" in fused.CONVOLUTIONS and not is_read:
                convolution = self.nodes.pop(index)  # which may stand before the other
                y = self.op(f"{convolution.op_type}Mean", *convolution.input, other.name, domain=fused.DOMAIN)
                return Map(y, a.channels, a.size)
        return self.unfused_mean(a, b)

    def unfused_mean(self, a: Map, b: Map) -> Map:
        return super().mean(a, b)

    def operators(self) -> set[str]:
        return {node.op_type for node in self.nodes if node.domain == fused.DOMAIN}


class FusedGraph(Fused, InferenceGraph):
    """The inference dialect with operators of the domain `cdal`: the convolutions as well, and residual sums where they are
    written."""

    def conv(self, x: Map, key: str, channels: int, kernel: int = 3, stride: int = 1, padding: int | None = None,
             bias: bool = True) -> Map:
        y = super().conv(x, key, channels, kernel, stride, padding, bias)
        keeps_size = stride == 1 and padding in (None, kernel // 2)
        if keeps_size and (kernel == 1 or kernel == 3 and x.size >= CONV3X3_FROM):
            self._own_convolution(kernel, channels)
        return y

    def pointwise(self, x: Map, key: str, channels: int) -> Map:
        y = super().pointwise(x, key, channels)
        self._own_convolution(1, channels)
        return y

    def _own_convolution(self, side: int, channels: int) -> None:
        """The last node, which is a convolution, becomes one of the domain `cdal`, which always has a bias."""
        node = self.nodes[-1]
        node.op_type, node.domain = f"Conv{side}x{side}", fused.DOMAIN
        if len(node.input) == 2:
            node.input.append(self.constant(np.zeros(channels, np.float32)))
        del node.attribute[:]

    def unfused_mean(self, a: Map, b: Map) -> Map:
        return Map(self.op("ResidualMean", a.name, b.name, domain=fused.DOMAIN), a.channels, a.size)

    def functions(self) -> list[onnx.FunctionProto]:
        used = self.operators()
        return [function for function in fused.functions(OPSET) if function.name in used]


class TrainingGraph(Graph):
    """Only operators that ONNX Runtime's gradient builder differentiates.

    GroupNorm is a LayerNormalization over the flattened group (all three outputs named, or the builder
    refuses), FIR a pair of products with constant matrices, NIN a 1x1 convolution of the transposed weight.
    """

    # Where the weights are not this graph's own: what stands before their names.
    prefix = ""

    def frozen(self, prefix: str) -> TrainingGraph:
        """To add a network to this graph whose weights are inputs `prefix.key`: gradients pass through it, none is its own."""
        other = type(self)({})
        other.nodes, other.initializers, other.inputs = self.nodes, self.initializers, self.inputs
        other.prefix = f"{prefix}."
        return other

    def parameter(self, key: str, *shape: int) -> str:
        if not self.prefix:
            return super().parameter(key, *shape)
        name = self.prefix + key
        if all(known.name != name for known in self.inputs):
            self.add_input(name, FLOAT, list(shape))
        return name

    def normalise(self, x: Map, groups: int, epsilon: float) -> Map:
        length = x.channels // groups * x.size**2
        flat = self.op("Reshape", x.name, self.ints(0, groups, -1))
        # One pair a node: the builder names a scale's gradient after it, and two nodes would clash.
        ones = self.constant(np.ones(length, np.float32), f"ones_{len(self.nodes)}")
        zeros = self.constant(np.zeros(length, np.float32), f"zeros_{len(self.nodes)}")
        y, *_ = self.op("LayerNormalization", flat, ones, zeros, outputs=3, axis=-1, epsilon=epsilon)
        return Map(self.op("Reshape", y, self.ints(0, x.channels, x.size, x.size)), x.channels, x.size)

    def pointwise(self, x: Map, key: str, channels: int) -> Map:
        weight = self.op("Transpose", self.parameter(f"{key}.W", x.channels, channels), perm=[1, 0])
        kernel = self.op("Unsqueeze", weight, self.ints(2, 3))
        bias = self.parameter(f"{key}.b", channels)
        return Map(self.op("Conv", x.name, kernel, bias, kernel_shape=[1, 1]), channels, x.size)

    def separable(self, x: Map, matrix: np.ndarray) -> Map:
        """matrix [out, in] applied to the rows and to the columns."""
        matrix = matrix.astype(np.float32)
        y = self.op("MatMul", x.name, self.constant(np.ascontiguousarray(matrix.T)))
        return Map(self.op("MatMul", self.constant(matrix), y), x.channels, matrix.shape[0])

    def fir_down(self, x: Map, kernel: np.ndarray) -> Map:
        return self.separable(x, correlation_matrix(x.size, kernel, fir_padding(kernel), 2))

    def fir_up(self, x: Map, kernel: np.ndarray) -> Map:
        # Zero insertion keeps every second column of the correlation over the doubled grid.
        before, after = fir_padding(kernel)
        return self.separable(x, 2.0 * correlation_matrix(2 * x.size, kernel, (before + 1, after), 1)[:, ::2])

    def fir_blur(self, x: Map, kernel: np.ndarray) -> Map:
        before, after = fir_padding(kernel)
        return self.separable(x, correlation_matrix(x.size, kernel, (before + 1, after + 1), 1))

    def leaky_vector(self, x: str) -> str:
        # max(x, 0.2 x); written with Relu because LeakyRelu has no gradient here.
        return self.op("Add", self.op("Mul", x, self.floats(0.2)), self.op("Mul", self.op("Relu", x), self.floats(0.8)))

    def first(self, x: Map, count: str) -> Map:
        """The first `count` [1] samples."""
        return Map(self.op("Slice", x.name, self.ints(0), count, self.ints(0)), x.channels, x.size)

    # -- words of a backward pass that is to be differentiated itself ------------------------------

    def leaky_back(self, gradient: Map, x: Map, count: str) -> Map:
        """Back through LeakyReLU(0.2) at the first `count` samples of x, which are all that `gradient` has."""
        x = self.first(x, count)
        weaker = self.op("Mul", gradient.name, self.floats(0.2))
        y = self.op("Where", self.op("Greater", x.name, self.floats(0.0)), gradient.name, weaker)
        return Map(y, gradient.channels, gradient.size)

    def conv_back(self, gradient: Map, key: str, channels: int, kernel: int = 3) -> Map:
        """Back through `key`, a convolution [out, in = channels, k, k] of stride 1 that keeps the size."""
        taps = kernel**2
        weight = self.op("Transpose", self.parameter(f"{key}.weight", gradient.channels, channels, kernel, kernel),
                         perm=[1, 0, 2, 3])
        if kernel > 1:
            flat = self.op("Reshape", weight, self.ints(channels, gradient.channels, taps))
            flipped = self.op("Gather", flat, self.ints(*reversed(range(taps))), axis=2)
            weight = self.op("Reshape", flipped, self.ints(channels, gradient.channels, kernel, kernel))
        y = self.op("Conv", gradient.name, weight, kernel_shape=[kernel, kernel], pads=[kernel // 2] * 4)
        return Map(y, channels, gradient.size)

    def fir_down_back(self, gradient: Map, size: int, kernel: np.ndarray) -> Map:
        """Back through `fir_down` of a map of this size."""
        return self.separable(gradient, correlation_matrix(size, kernel, fir_padding(kernel), 2).T)


class FusedTrainingGraph(Fused, TrainingGraph):
    """The training dialect with operators of the domain `cdal`, whose gradients `gradients` defines."""

    def conv(self, x: Map, key: str, channels: int, kernel: int = 3, stride: int = 1, padding: int | None = None,
             bias: bool = True) -> Map:
        y = super().conv(x, key, channels, kernel, stride, padding, bias)
        if stride == 1 and kernel in (1, 3) and padding in (None, kernel // 2):
            self._own_convolution(kernel)
        return y

    def pointwise(self, x: Map, key: str, channels: int) -> Map:
        y = super().pointwise(x, key, channels)
        self._own_convolution(1)
        return y

    def _own_convolution(self, side: int) -> None:
        """The last node, which is a convolution, becomes one of the domain `cdal`."""
        node = self.nodes[-1]
        node.op_type = f"Conv{side}x{side}{'Linear' if len(node.input) == 2 else ''}"
        node.domain = fused.DOMAIN
        del node.attribute[:]

    def leaky_vector(self, x: str) -> str:
        return self.op("LeakyReLU", x, domain=fused.DOMAIN, alpha=0.2)

    def leaky_back(self, gradient: Map, x: Map, count: str) -> Map:
        y = self.op("LeakyReLUGrad", gradient.name, x.name, domain=fused.DOMAIN, alpha=0.2)
        return Map(y, gradient.channels, gradient.size)

    def conv_back(self, gradient: Map, key: str, channels: int, kernel: int = 3) -> Map:
        weight = self.parameter(f"{key}.weight", gradient.channels, channels, kernel, kernel)
        y = self.op(f"Conv{kernel}x{kernel}InputGrad", gradient.name, weight, domain=fused.DOMAIN)
        return Map(y, channels, gradient.size)

    def fir_down_back(self, gradient: Map, size: int, kernel: np.ndarray) -> Map:
        if len(kernel) != 4 or size % 2:
            return super().fir_down_back(gradient, size, kernel)
        y = self.op("FirUp", gradient.name, domain=fused.DOMAIN, taps=[float(tap) for tap in kernel],
                    channels=gradient.channels)
        return Map(y, gradient.channels, size)

    def functions(self) -> list[onnx.FunctionProto]:
        used = gradients.differentiable(self.operators())
        return [function for function in gradients.all_functions(OPSET) if function.name in used]


def fir_padding(kernel: np.ndarray) -> tuple[int, int]:
    """Zeros before and after an axis that the kernel decimates by 2; (1, 1) for four taps."""
    taps = len(kernel) - 2
    return (taps + 1) // 2, taps // 2


def correlation_matrix(size: int, kernel: np.ndarray, padding: tuple[int, int], stride: int) -> np.ndarray:
    """Matrix [out, size] of a correlation with `kernel` after zero padding before and after."""
    out = (size + sum(padding) - len(kernel)) // stride + 1
    matrix = np.zeros((out, size))
    for row in range(out):
        for tap, value in enumerate(kernel):
            column = row * stride + tap - padding[0]
            if 0 <= column < size:
                matrix[row, column] += value
    return matrix


FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
