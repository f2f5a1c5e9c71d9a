"""Read a network from a TensorFlow Lite file, float or quantised. Quantised weights become real numbers again.

The converter has folded batch norm into the kernels. Operations are taken in the order of their execution. Source: the
schema of TensorFlow Lite, `schema.fbs`. A quantised value q stands for `(q - zero_point) * scale`.
"""

import dataclasses
import pathlib
from typing import Any

import numpy as np

from mobilenet_jax.errors import InputError
from mobilenet_jax.transfer.source import CROPPED, CROPPED_NOTE, Part, Source, floats, padding

_FUSED = {0: None, 1: "relu", 3: "relu6"}  # ActivationFunctionType
_PADDINGS = {0: "same", 1: "valid"}
_SIX = 6.03  # the upper end of a range of ReLU6, with the width of one step of quantisation


class _File:
    """The one graph of a file."""

    def __init__(self, content: bytes):
        import tflite  # late: an optional dependency

        self.library = tflite
        self.model: Any = tflite.Model.GetRootAs(content, 0)
        if self.model.SubgraphsLength() != 1:
            raise InputError(f"has {self.model.SubgraphsLength()} graphs: must have one")
        self.graph: Any = self.model.Subgraphs(0)
        self.codes = {code: name for name, code in vars(tflite.BuiltinOperator).items() if isinstance(code, int)}
        self.types = {code: name for name, code in vars(tflite.TensorType).items() if isinstance(code, int)}
        self.sources = dict[int, int]()  # tensor -> the constant that DEQUANTIZE makes it of

    def operations(self) -> list[tuple[str, Any]]:
        found = []
        for i in range(self.graph.OperatorsLength()):
            operation = self.graph.Operators(i)
            code = self.model.OperatorCodes(operation.OpcodeIndex())
            found.append((self.codes[max(code.BuiltinCode(), code.DeprecatedBuiltinCode())], operation))
        return found

    def options(self, operation: Any, name: str) -> Any:
        options = getattr(self.library, name)()
        table = operation.BuiltinOptions()
        options.Init(table.Bytes, table.Pos)
        return options

    def name(self, index: int) -> str:
        return (self.graph.Tensors(index).Name() or b"").decode(errors="replace")

    def type(self, index: int) -> str:
        return self.types[self.graph.Tensors(index).Type()]

    def constant(self, index: int) -> np.ndarray | None:
        """Return the stored values of a tensor as they are, None if it is computed."""
        index = self.sources.get(index, index)
        tensor = self.graph.Tensors(index)
        buffer = self.model.Buffers(tensor.Buffer())
        if not buffer.DataLength():
            return None
        kind = {"FLOAT32": "<f4", "FLOAT16": "<f2", "INT8": "i1", "UINT8": "u1", "INT32": "<i4"}
        if (name := self.type(index)) not in kind:
            raise InputError(f"tensor {self.name(index)!r} is of {name}: allowed are {', '.join(kind)}")
        shape = tensor.ShapeAsNumpy() if tensor.ShapeLength() else ()
        return np.frombuffer(buffer.DataAsNumpy().tobytes(), kind[name]).reshape(shape)

    def real(self, index: int) -> np.ndarray:
        """Return the real numbers of a constant tensor, float32."""
        stored, name = self.constant(index), self.name(index)
        if stored is None:
            raise InputError(f"tensor {name!r} is no constant")
        if stored.dtype.kind == "f":
            return floats(name, stored)
        scale, zero, axis = self.quantisation(self.sources.get(index, index))
        if not len(scale) or len(zero) not in (1, len(scale)):
            raise InputError(f"tensor {name!r} is of {stored.dtype} and has no scale")
        shape = [1] * stored.ndim
        if len(scale) > 1:
            if axis >= stored.ndim or stored.shape[axis] != len(scale):
                raise InputError(f"tensor {name!r} has {len(scale)} scales, along axis {axis} of {list(stored.shape)}")
            shape[axis] = len(scale)
        points = zero.astype(np.float64).reshape(shape if len(zero) > 1 else [1] * stored.ndim)
        return floats(name, (stored - points) * scale.reshape(shape))

    def quantisation(self, index: int) -> tuple[np.ndarray, np.ndarray, int]:
        """Return the scales, the zero points and the axis that has them, or empty arrays."""
        q = self.graph.Tensors(index).Quantization()
        if q is None or not q.ScaleLength():
            return np.zeros(0), np.zeros(0), 0
        zero = q.ZeroPointAsNumpy() if q.ZeroPointLength() else np.zeros(1)
        return q.ScaleAsNumpy().astype(np.float64), zero, q.QuantizedDimension()

    def range(self, index: int) -> tuple[float, float] | None:
        """Return the real numbers of the least and the greatest value that a quantised tensor can hold."""
        scale, zero, _ = self.quantisation(index)
        limits = {"UINT8": (0, 255), "INT8": (-128, 127)}.get(self.type(index))
        if not len(scale) or limits is None:
            return None
        return float((limits[0] - zero[0]) * scale[0]), float((limits[1] - zero[0]) * scale[0])


def read(path: pathlib.Path) -> Source:
    """Return the network in the file; raises InputError over anything else."""
    file = _File(path.read_bytes())
    image = file.graph.Inputs(0)
    shape, limits = file.graph.Tensors(image).ShapeAsNumpy().tolist(), file.range(image)
    resolution = size = shape[1] if len(shape) == 4 and shape[1] == shape[2] else 0
    parts, paddings, additions, zeros = list[Part](), set[str](), 0, None
    for name, operation in file.operations():
        inputs = operation.InputsAsNumpy().tolist()
        if name in ("CONV_2D", "DEPTHWISE_CONV_2D"):
            part, found = _convolution(file, name, operation, inputs, zeros, size)
            parts.append(part)
            paddings |= found
            zeros, size = None, -(-size // part.stride)
        elif name == "FULLY_CONNECTED":
            fused = file.options(operation, "FullyConnectedOptions").FusedActivationFunction()
            kernel = file.real(inputs[1])
            if kernel.ndim != 2:
                raise InputError(f"tensor {file.name(inputs[1])!r} has {kernel.ndim} axes: must have 2")
            kernel = kernel.T[None, None]
            parts.append(_part(file, "pointwise", kernel, operation, inputs, fused, stride=1))
        elif name == "ADD":
            additions += 1
            if fused := file.options(operation, "AddOptions").FusedActivationFunction():
                raise InputError(f"has an addition with activation {fused}: a MobileNet has none")
        elif name == "DEQUANTIZE":
            file.sources[operation.Outputs(0)] = inputs[0]
        elif name == "PAD":
            outer, *zeros, inner = np.asarray(file.constant(inputs[1])).tolist()
            if outer != [0, 0] or inner != [0, 0]:
                raise InputError("has zeros between images or channels: a MobileNet has none")
        elif name in ("SHAPE", "STRIDED_SLICE", "PACK") and file.type(operation.Outputs(0)) == "INT32":
            pass  # the shape of a reshaped map
        elif name not in ("AVERAGE_POOL_2D", "MEAN", "RESHAPE", "SOFTMAX", "QUANTIZE", "SQUEEZE"):
            raise InputError(f"has the operation {name}: a MobileNet has none")
    if not parts or len(paddings - {CROPPED}) > 1:
        raise InputError("has no convolutions, or more than one kind of padding")
    last = parts[-1]
    if last.kind == "pointwise":
        parts[-1] = dataclasses.replace(last, kind="dense", kernel=last.kernel[0, 0], stride=0)
    notes = ["batch norm is folded into the kernels: the network is for inference, not for further training"]
    if limits is None:
        notes.append("pixels are scaled to [-1, 1], as by TF-slim: the file does not say")
    if CROPPED in paddings:
        notes.append(CROPPED_NOTE)
    return Source(
        format="TensorFlow Lite",
        parts=tuple(parts),
        padding="symmetric" if "symmetric" in paddings else "same",
        input_range=limits or (-1.0, 1.0),
        resolution=resolution,
        additions=additions,
        notes=tuple(notes),
    )


def _convolution(
    file: _File, name: str, operation: Any, inputs: list[int], zeros: list[list[int]] | None, size: int
) -> tuple[Part, set[str]]:
    """Return the part, and the names of its padding (`source.padding`)."""
    depthwise = name == "DEPTHWISE_CONV_2D"
    options = file.options(operation, "DepthwiseConv2DOptions" if depthwise else "Conv2DOptions")
    kernel, where = file.real(inputs[1]), file.name(inputs[1])
    stride = options.StrideH()
    dilated = (options.DilationHFactor(), options.DilationWFactor()) != (1, 1)
    if kernel.ndim != 4 or stride != options.StrideW() or dilated:
        raise InputError(f"tensor {where!r} belongs to a convolution that a MobileNet does not have")
    side, own = kernel.shape[1], _PADDINGS[options.Padding()]
    kernel = kernel.transpose(1, 2, 0, 3) if depthwise else kernel.transpose(1, 2, 3, 0)
    kind = "depthwise" if depthwise else "conv" if side > 1 else "pointwise"
    part = _part(file, kind, kernel, operation, inputs, options.FusedActivationFunction(), stride)
    return part, padding(f"the convolution of tensor {where!r}", side, stride, own, zeros, size)


def _part(
    file: _File, kind: str, kernel: np.ndarray, operation: Any, inputs: list[int], fused: int, stride: int
) -> Part:
    name = file.name(inputs[1])
    bias = file.real(inputs[2]) if len(inputs) > 2 and inputs[2] >= 0 else np.zeros(kernel.shape[-1], np.float32)
    if fused not in _FUSED:
        raise InputError(f"tensor {name!r} belongs to a layer with activation {fused}: allowed are ReLU and ReLU6")
    activation, limits = _FUSED[fused], file.range(operation.Outputs(0))
    # The first quantised files have no fused activation: the range of the output is what clips.
    if activation is None and limits and limits[0] == 0 and 0 < limits[1] <= _SIX:
        activation = "relu6"
    return Part(name, kind, kernel, bias, None, activation, stride)
