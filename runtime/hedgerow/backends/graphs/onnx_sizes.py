"""Finds an operator of an ONNX graph whose output's size depends on values of the model's inputs, not on shapes alone.

Such a model gives, for example, a row for each object that it finds: nothing but the author's word tells which frame of a
batch a row is of, and for some batches there happen to be as many rows as frames.

The search follows values through the graph. Shapes are no values: a size computed from `Shape` is the same for any frames.
Where the graph does not tell (loops, compiled parts), the answer is the operator.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Final

from hedgerow.backends.graphs.onnx_file import OnnxFile, OnnxGraph, OnnxNode

_BY_VALUE: Final = frozenset(
    [
        *("Compress", "ConcatFromSequence", "ImageDecoder", "NonMaxSuppression", "NonZero", "StringSplit", "Unique"),
        # ONNX Runtime's own
        *("ATen", "BeamSearch", "DynamicTimeWarping", "EPContext", "GreedySearch", "PythonOp", "RemovePadding"),
        *("Sampling", "Tokenizer", "WhisperBeamSearch"),
    ]
)
"""Operators whose output's size depends on their inputs' values."""

_BY_OPERAND: Final[dict[str, tuple[int, ...]]] = {
    "AffineGrid": (1,),
    "BlackmanWindow": (0,),
    "CenterCropPad": (1,),
    "Col2Im": (1, 2),
    "ConstantOfShape": (0,),
    "ConvTransposeWithDynamicPads": (2,),
    "CropAndResize": (3,),
    "DFT": (1, 2),
    "Expand": (1,),
    "ExpandDims": (1,),
    "HammingWindow": (0,),
    "HannWindow": (0,),
    "MaxUnpool": (2,),
    "MelWeightMatrix": (0, 1, 2, 3, 4),
    "OneHot": (1,),
    "Pad": (1, 3),
    "Range": (0, 1, 2),
    "Reshape": (1,),
    "Resize": (1, 2, 3),
    "STFT": (1, 3),
    "SequenceAt": (1,),
    "SequenceErase": (1,),
    "SequenceInsert": (2,),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "SplitToSequence": (1,),
    "Squeeze": (1,),
    "Tile": (1, 2),
    "TopK": (1,),
    "Unsqueeze": (1,),
    "Upsample": (1,),
    **dict.fromkeys(("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2"), (1,)),
    **dict.fromkeys(("ReduceLogSum", "ReduceLogSumExp", "ReduceSumSquare"), (1,)),
}
"""Operators whose output's size depends on the values of some inputs: their positions."""

_STANDARD: Final = frozenset(["", "ai.onnx"])
_KNOWN: Final = _STANDARD | {"ai.onnx.ml", "com.microsoft"}
"""Domains whose operators are listed above; those of others may do anything."""

_OF_SHAPE: Final = frozenset(["Shape", "Size"])
_RANDOM: Final = frozenset(["RandomNormal", "RandomUniform"])

_MOST_STEPS: Final = 500_000
"""Most nodes and inputs of nodes looked at: functions that call functions may stand for any number of them."""
_DEEPEST: Final = 80
"""Most graphs within graphs and functions that call one another."""


def value_sized(file: OnnxFile, constants: Collection[str] = ()) -> str | None:
    """Return the first operator whose output's size depends on the values of the model's inputs; None: there is none.

    Args:
        constants: inputs of the model whose values never change.
    """
    functions = {(function.domain, function.name): function for function in file.functions}
    search = _Search(functions)
    known = {*constants, *file.graph.initializers}
    search.graph(file.graph, {name for name in file.graph.inputs if name not in known})
    return search.found


class _Search:
    """A search through one model, which ends with the first operator found."""

    def __init__(self, functions: dict[tuple[str, str], OnnxGraph]) -> None:
        self.found: str | None = None
        self._functions = functions
        self._calls: list[tuple[str, str]] = []
        self._results: dict[tuple[tuple[str, str], tuple[bool, ...]], list[bool]] = {}
        self._left = _MOST_STEPS
        self._depth = 0

    def graph(self, graph: OnnxGraph, outer: Iterable[str]) -> list[bool]:
        """Search a graph.

        Args:
            outer: names of values outside, and of its inputs, that depend on the frames.
        Returns: for each of its outputs, whether its value depends on the frames.
        """
        varying = set(outer)
        self._depth += 1
        for node in graph.nodes:
            self._left -= 1 + len(node.inputs)
            if self._left < 0 or self._depth > _DEEPEST:  # it would take for ever
                self.found = self.found or node.op
            if self.found is None:
                varying.update(name for name in self._varying_outputs(node, varying) if name)
        self._depth -= 1
        return [name in varying for name in graph.outputs]

    def _varying_outputs(self, node: OnnxNode, varying: set[str]) -> Iterable[str]:
        flags = [name in varying for name in node.inputs]
        if node.op in _OF_SHAPE and node.domain in _STANDARD:
            return ()
        if (function := self._functions.get((node.domain, node.op))) is not None:
            return self._call(function, node, flags)
        if node.graphs:
            return self._bodies(node, flags, varying)
        if not any(flags):
            return node.outputs if node.op in _RANDOM else ()
        sizing = _BY_OPERAND.get(node.op, ())
        if (
            node.op in _BY_VALUE
            or node.domain not in _KNOWN
            or any(flags[position] for position in sizing if position < len(flags))
        ):
            self.found = node.op
        return node.outputs

    def _call(self, function: OnnxGraph, node: OnnxNode, flags: list[bool]) -> Iterable[str]:
        key = function.domain, function.name
        if key in self._calls:  # ONNX allows no recursion
            self.found = node.op
            return ()
        results = self._results.get((key, tuple(flags)))
        if results is None:
            self._calls.append(key)
            inputs = {name for name, flag in zip(function.inputs, flags, strict=False) if flag}
            results = self._results[key, tuple(flags)] = self.graph(function, inputs)
            self._calls.pop()
        return [name for name, flag in zip(node.outputs, results, strict=False) if flag]

    def _bodies(self, node: OnnxNode, flags: list[bool], varying: set[str]) -> Iterable[str]:
        if node.op == "If":
            if any(flags):  # its branches may give other sizes
                self.found = "If"
            branches = [self.graph(body, varying) for body in node.graphs]
            results = map(any, zip(*branches, strict=False))
            return [name for name, flag in zip(node.outputs, results, strict=False) if flag]
        # Values that a loop carries round are taken to vary from the first round, as some do from the second.
        inside = [self.graph(body, varying.union(body.inputs[2 if node.op == "Loop" else 0 :])) for body in node.graphs]
        if node.op == "Loop" and (any(flags[:2]) or any(results[0] for results in inside if results)):
            self.found = "Loop"  # its number of rounds varies
        return node.outputs
