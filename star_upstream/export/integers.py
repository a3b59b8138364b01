"""Nodes of an ONNX graph in 8 bits: products whose weights are 8-bit integers, one scale an output channel.

Three kinds, by what their activations are like:

- linear maps: one range for the whole input, its own (dynamic) or that of calibration audio (static)
- convolutions over time: one range for each output frame. A quiet frame is as important as a loud one, since a norm
  over the channels follows; with one range for all, it would be a few steps, or none
- the grouped positional convolution, several frames an output row: as a product of matrices it is 27 channels wide
  otherwise, too few for any kernel

onnxruntime has kernels for such products (``MatMulIntegerToFloat``, of its own domain), and none that is fast for a
convolution over time in float or in 8 bits: hence products of matrices, in B x T x C.

Shapes: B utterances, T frames, C channels, G groups, J frames of an output row, K kernel.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

DOMAIN = "com.microsoft"
TOGETHER = 4
"""Output frames of one row of a grouped convolution: so many times the weights, and so many times fewer rows to
gather."""
TINY = 1e-20
"""Least range: zeros stay zeros."""

Range = tuple[float, float]


def rewrite(model: Any, names: Sequence[str], ranges: Mapping[str, Range] | None) -> Any:
    """A copy of ``model`` with the nodes ``names`` in 8 bits. ``ranges``: least and largest value, with 0 between, of
    what linear maps and grouped convolutions read, by tensor; None takes those of each call."""
    import onnx

    writer, chosen = _Writer(model.graph, ranges), set(names)
    for node in model.graph.node:
        if node.name not in chosen:
            if node.output[0] not in writer.gone:
                writer.nodes.append(node)
        elif node.op_type == "MatMul":
            writer.linear(node)
        elif _attribute(node, "group", 1) > 1:
            writer.grouped(node)
        else:
            writer.convolution(node)
    used = {name for node in writer.nodes for name in node.input}
    tensors = [tensor for tensor in (*model.graph.initializer, *writer.constants) if tensor.name in used]
    graph = onnx.helper.make_graph(writer.nodes, model.graph.name, model.graph.input, model.graph.output, tensors)
    # the optimiser names domains that are not used, some of them too new for an older onnxruntime
    domains = {node.domain for node in writer.nodes} - {DOMAIN}
    imports = [each for each in model.opset_import if each.domain in domains]
    imports.append(onnx.helper.make_opsetid(DOMAIN, 1))
    return onnx.helper.make_model(graph, opset_imports=imports, ir_version=model.ir_version)


def possible(model: Any) -> dict[str, str]:
    """Nodes that can be in 8 bits, by name, with the input that they read."""
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    found = {}
    for node in model.graph.node:
        if node.op_type not in ("MatMul", "Conv") or node.input[1] not in weights:
            continue
        dims = weights[node.input[1]].dims
        if node.op_type == "MatMul" and len(dims) == 2:
            found[node.name] = node.input[0]
        elif node.op_type == "Conv" and len(dims) == 3 and dims[1] > 1 and _attribute(node, "dilations", [1]) == [1]:
            group, stride = _attribute(node, "group", 1), _attribute(node, "strides", [1])
            if group == 1 or stride == [1]:
                found[node.name] = node.input[0]
    return found


def _attribute(node: Any, name: str, default: Any) -> Any:
    import onnx

    return next((onnx.helper.get_attribute_value(each) for each in node.attribute if each.name == name), default)


def _quantised(weight: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """The weight in 8 bits, and one scale for each place but those along ``axis``, which is kept at size 1."""
    scale = np.maximum(np.abs(weight).max(axis, keepdims=True), TINY) / 127
    return np.round(weight / scale).astype(np.int8), scale.astype(np.float32)


class _Writer:
    """Nodes and tensors that take the place of others."""

    def __init__(self, graph: Any, ranges: Mapping[str, Range] | None):
        import onnx

        self.helper, self.graph, self.ranges = onnx.helper, graph, ranges
        self.array = onnx.numpy_helper.to_array
        self.tensors = {tensor.name: tensor for tensor in graph.initializer}
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.gone = set[str]()
        self.readers: dict[str, list[Any]] = {}
        for node in graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        self.integers: dict[str, tuple[str, str, str]] = {}
        self.count = 0

    def constant(self, value: np.ndarray | np.generic) -> str:
        import onnx

        self.count += 1
        name = f"int8_constant_{self.count}"
        self.constants.append(onnx.numpy_helper.from_array(np.asarray(value), name))
        return name

    def numbers(self, *values: int) -> str:
        return self.constant(np.array(values, dtype=np.int64))

    def add(
        self, kind: str, inputs: Sequence[str], output: str | None = None, count: int = 1, **attributes: Any
    ) -> Any:
        """A node; returns its output, or its outputs where there are more."""
        self.count += 1
        outputs = [output] if output else [f"int8_{self.count}_{i}" for i in range(count)]
        domain = DOMAIN if kind == "MatMulIntegerToFloat" else ""
        name = f"int8_{kind}_{self.count}"
        self.nodes.append(self.helper.make_node(kind, inputs, outputs, name, domain=domain, **attributes))
        return outputs[0] if count == 1 else outputs

    def linear(self, node: Any) -> None:
        """x W, and the bias that is added to it."""
        weight = self.array(self.tensors[node.input[1]])
        integers, scale = _quantised(weight, 0)
        x, step, zero = self._integers(node.input[0])
        output, bias = node.output[0], ""
        readers = [] if output in {each.name for each in self.graph.output} else self.readers.get(output, [])
        if len(readers) == 1 and readers[0].op_type == "Add":
            other = [name for name in readers[0].input if name != output]
            if len(other) == 1 and other[0] in self.tensors and list(self.tensors[other[0]].dims) == [weight.shape[1]]:
                bias, output = other[0], readers[0].output[0]
                self.gone.add(output)
        inputs = [x, self.constant(integers), step, self.constant(scale[0]), zero, "", bias]
        self.add("MatMulIntegerToFloat", inputs, output)

    def _integers(self, x: str, of: str | None = None) -> tuple[str, str, str]:
        """x in 8 bits, its step and its zero, for all that read it. ``of``: a tensor with the same values."""
        if x not in self.integers:
            if self.ranges is None:
                self.integers[x] = tuple(self.add("DynamicQuantizeLinear", [x], count=3))
            else:
                low, high = self.ranges[of or x]
                step = max(high - low, TINY) / 255
                scale, zero = self.constant(np.float32(step)), self.constant(np.uint8(round(-low / step)))
                self.integers[x] = self.add("QuantizeLinear", [x, scale, zero]), scale, zero
        return self.integers[x]

    def convolution(self, node: Any) -> None:
        """A convolution over time: the frames that each output frame sees, side by side, times the kernel."""
        kernel_OCK = self.array(self.tensors[node.input[1]])
        out, channels, size = kernel_OCK.shape
        (stride,), pads = _attribute(node, "strides", [1]), _attribute(node, "pads", [0, 0])
        integers, scale = _quantised(kernel_OCK.transpose(2, 1, 0).reshape(size * channels, out), 0)
        x_BTC = self.add("Transpose", [node.input[0]], perm=[0, 2, 1])
        if any(pads):
            x_BTC = self.add("Pad", [x_BTC, self.numbers(0, pads[0], 0, 0, pads[1], 0)])
        largest_BT1 = self.add("ReduceMax", [self.add("Abs", [x_BTC])], axes=[2])
        size_BT1 = self.add("Max", [largest_BT1, self.constant(np.float32(TINY))])
        if size > 1 or stride > 1:
            size_B1T = self.add("Transpose", [size_BT1], perm=[0, 2, 1])
            pooled = self.add("MaxPool", [size_B1T], kernel_shape=[size], strides=[stride])
            size_BT1 = self.add("Transpose", [pooled], perm=[0, 2, 1])
        step_R = self.add(
            "Mul", [self.add("Reshape", [size_BT1, self.numbers(-1)]), self.constant(np.float32(1 / 127))]
        )
        zero, parts = self.constant(np.uint8(128)), []
        zeros = self.add("Expand", [zero, self.add("Shape", [step_R])])
        count = self.add("Slice", [self.add("Shape", [size_BT1]), self.numbers(1), self.numbers(2)])
        samples = self.add("Mul", [count, self.numbers(stride)])
        start = 0
        while start < size:  # ``stride`` frames at once where they are whole rows, or one
            each = stride if start + stride <= size else 1
            part_BTC = x_BTC
            if size > 1 or stride > 1:
                end = self.add("Add", [samples, self.numbers(start)])
                cut = [self.numbers(start), end, self.numbers(1), self.numbers(stride // each)]
                part_BTC = self.add("Slice", [x_BTC, *cut])
            part_RC = self.add("Reshape", [part_BTC, self.numbers(-1, each * channels)])
            parts.append(self.add("QuantizeLinear", [part_RC, step_R, zeros], axis=0))
            start += each
        x_RC = self.add("Concat", parts, axis=1) if len(parts) > 1 else parts[0]
        one = self.constant(np.float32(1.0))
        inputs = [x_RC, self.constant(integers), one, self.constant(scale[0]), zero]
        y_RO = self.add("MatMulIntegerToFloat", inputs)
        y_RO = self.add("Mul", [y_RO, self.add("Reshape", [step_R, self.numbers(-1, 1)])])
        if len(node.input) > 2 and node.input[2]:
            y_RO = self.add("Add", [y_RO, node.input[2]])
        batch = self.add("Slice", [self.add("Shape", [x_BTC]), self.numbers(0), self.numbers(1)])
        shape = self.add("Concat", [batch, self.numbers(-1, out)], axis=0)
        self.add("Transpose", [self.add("Reshape", [y_RO, shape])], node.output[0], perm=[0, 2, 1])

    def grouped(self, node: Any) -> None:
        """A grouped convolution over time of stride 1, :data:`TOGETHER` frames an output row."""
        kernel = self.array(self.tensors[node.input[1]])
        groups = _attribute(node, "group", 1)
        out, channels, size = kernel.shape
        each, pads = out // groups, _attribute(node, "pads", [0, 0])
        frames = TOGETHER + size - 1
        rows = math.ceil(frames / TOGETHER)
        # weight[g, frame, c, j, o]: what output frame j of a row makes of a frame that the row sees
        weight = np.zeros((groups, rows * TOGETHER, channels, TOGETHER, each), dtype=np.float32)
        for j in range(TOGETHER):
            weight[:, j : j + size, :, j] = kernel.reshape(groups, each, channels, size).transpose(0, 3, 2, 1)
        integers, scale = _quantised(weight.reshape(groups, -1, TOGETHER * each), 1)
        x_BTC, step, zero = self._integers(self.add("Transpose", [node.input[0]], perm=[0, 2, 1]), node.input[0])
        shape = self.add("Shape", [x_BTC])
        batch = self.add("Slice", [shape, self.numbers(0), self.numbers(1)])
        count = self.add("Slice", [shape, self.numbers(1), self.numbers(2)])
        count = self.add("Add", [count, self.numbers(sum(pads) - size + 1)])  # output frames
        full = self.add("Div", [self.add("Add", [count, self.numbers(TOGETHER - 1)]), self.numbers(TOGETHER)])
        # rows x TOGETHER frames are read in all, and 0 where there is no frame
        read = self.add("Mul", [self.add("Add", [full, self.numbers(rows - 1)]), self.numbers(TOGETHER)])
        have = self.add("Slice", [shape, self.numbers(1), self.numbers(2)])
        after = self.add("Sub", [self.add("Sub", [read, have]), self.numbers(pads[0])])
        pad = self.add("Concat", [self.numbers(0, pads[0], 0, 0), after, self.numbers(0)], axis=0)
        x_BTC = self.add("Pad", [x_BTC, pad, zero])
        split = self.add("Concat", [batch, self.numbers(-1, TOGETHER, groups, channels)], axis=0)
        x_GBRJC = self.add("Transpose", [self.add("Reshape", [x_BTC, split])], perm=[3, 0, 1, 2, 4])
        x_GBRE = self.add("Reshape", [x_GBRJC, self.numbers(0, 0, 0, TOGETHER * channels)])
        ends = [self.add("Add", [full, self.numbers(i)]) for i in range(rows)]
        seen = [self.add("Slice", [x_GBRE, self.numbers(i), ends[i], self.numbers(2)]) for i in range(rows)]
        x_GBRE = self.add("Concat", seen, axis=3)
        x_GRE = self.add("Reshape", [x_GBRE, self.numbers(0, -1, rows * TOGETHER * channels)])
        y_GRO = self.add("Cast", [self.add("MatMulInteger", [x_GRE, self.constant(integers), zero])], to=1)
        y_GRO = self.add("Mul", [y_GRO, self.add("Mul", [step, self.constant(scale)])])
        split = self.add("Concat", [self.numbers(groups), batch, self.numbers(-1, TOGETHER, each)], axis=0)
        y_BRJGO = self.add("Transpose", [self.add("Reshape", [y_GRO, split])], perm=[1, 2, 3, 0, 4])
        y_BTC = self.add("Reshape", [y_BRJGO, self.add("Concat", [batch, self.numbers(-1, out)], axis=0)])
        y_BTC = self.add("Slice", [y_BTC, self.numbers(0), count, self.numbers(1)])
        if len(node.input) > 2 and node.input[2]:
            y_BTC = self.add("Add", [y_BTC, node.input[2]])
        self.add("Transpose", [y_BTC], node.output[0], perm=[0, 2, 1])
