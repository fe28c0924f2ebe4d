"""Reads the structure of an ONNX file, without the package `onnx`, which a gateway does not have.

Weights are skipped, so a file of a gigabyte takes milliseconds. Field numbers are those of onnx.proto.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

_DEEPEST: Final = 64
"""Most levels of graphs within graphs; a file with more is damaged or malicious."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types of Protocol Buffers
_EXTERNAL: Final = 1  # TensorProto.data_location


@dataclass(slots=True)
class OnnxNode:
    """A node of a graph; an optional input or output that is absent has an empty name."""

    op: str = ""
    domain: str = ""
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    graphs: list[OnnxGraph] = field(default_factory=list)
    """Its bodies: the branches of If, the body of Loop or Scan."""


@dataclass(slots=True)
class OnnxGraph:
    """A graph or function: names of its inputs and outputs, and its nodes, each after those that it depends on."""

    name: str = ""
    domain: str = ""
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    initializers: list[str] = field(default_factory=list)
    nodes: list[OnnxNode] = field(default_factory=list)


@dataclass(slots=True)
class OnnxFile:
    """What an ONNX file contains, apart from its weights.

    Attributes:
        graph: the model's graph.
        functions: its local functions.
        external: locations of files with further weights, as in the file; unchecked.
    """

    graph: OnnxGraph = field(default_factory=OnnxGraph)
    functions: list[OnnxGraph] = field(default_factory=list)
    external: set[str] = field(default_factory=set)


def read_onnx(path: Path) -> OnnxFile:
    """Read an ONNX file.

    Raises:
        ValueError: it is damaged, or not an ONNX file.
        OSError: it cannot be read.
    """
    with path.open("rb") as stream:
        if not stream.seek(0, 2):
            raise ValueError("the file is empty")
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            reader = _Reader(content)
            reader.model(0, len(content))
            return reader.file


def is_whole(path: Path) -> bool:
    """Return whether a file has the structure of an ONNX model, from its first byte to its last."""
    try:
        return bool(read_onnx(path).graph.outputs)
    except (OSError, ValueError):
        return False


class _Reader:
    """Reads messages of one file."""

    def __init__(self, content: mmap.mmap) -> None:
        self.file = OnnxFile()
        self._content = content
        self._depth = 0

    def model(self, start: int, end: int) -> None:
        for number, low, high in self._fields(start, end):
            if number == 7:
                self._graph(low, high, self.file.graph)
            elif number == 25:
                function = OnnxGraph()
                self._function(low, high, function)
                self.file.functions.append(function)

    def _graph(self, start: int, end: int, graph: OnnxGraph) -> None:
        self._depth += 1
        if self._depth > _DEEPEST:
            raise ValueError("graphs are nested too deeply")
        for number, low, high in self._fields(start, end):
            if number == 1:
                graph.nodes.append(self._node(low, high))
            elif number == 5:
                graph.initializers.append(self._tensor(low, high))
            elif number == 11:
                graph.inputs.append(self._name(low, high, 1))
            elif number == 12:
                graph.outputs.append(self._name(low, high, 1))
            elif number == 15:
                graph.initializers.append(self._sparse_tensor(low, high))
        self._depth -= 1

    def _function(self, start: int, end: int, function: OnnxGraph) -> None:
        for number, low, high in self._fields(start, end):
            if number == 1:
                function.name = self._text(low, high)
            elif number == 4:
                function.inputs.append(self._text(low, high))
            elif number == 5:
                function.outputs.append(self._text(low, high))
            elif number == 7:
                function.nodes.append(self._node(low, high))
            elif number == 10:
                function.domain = self._text(low, high)

    def _node(self, start: int, end: int) -> OnnxNode:
        node = OnnxNode()
        for number, low, high in self._fields(start, end):
            if number == 1:
                node.inputs.append(self._text(low, high))
            elif number == 2:
                node.outputs.append(self._text(low, high))
            elif number == 4:
                node.op = self._text(low, high)
            elif number == 5:
                self._attribute(low, high, node)
            elif number == 7:
                node.domain = self._text(low, high)
        return node

    def _attribute(self, start: int, end: int, node: OnnxNode) -> None:
        for number, low, high in self._fields(start, end):
            if number in (5, 10):
                self._tensor(low, high)
            elif number in (6, 11):
                graph = OnnxGraph()
                self._graph(low, high, graph)
                node.graphs.append(graph)
            elif number in (22, 23):
                self._sparse_tensor(low, high)

    def _tensor(self, start: int, end: int) -> str:
        """Record where a tensor's data is, if outside. Returns: its name."""
        name, location, external = "", None, False
        for number, low, high in self._fields(start, end):
            if number == 8:
                name = self._text(low, high)
            elif number == 13 and self._name(low, high, 1) == "location":
                location = self._name(low, high, 2)
            elif number == 14:
                external = low == _EXTERNAL
        if external and location is not None:
            self.file.external.add(location)
        return name

    def _sparse_tensor(self, start: int, end: int) -> str:
        name = ""
        for number, low, high in self._fields(start, end):
            if number in (1, 2):
                name = self._tensor(low, high) or name
        return name

    def _name(self, start: int, end: int, wanted: int) -> str:
        return next((self._text(low, high) for number, low, high in self._fields(start, end) if number == wanted), "")

    def _text(self, start: int, end: int) -> str:
        return self._content[start:end].decode("utf-8", "surrogateescape")

    def _fields(self, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        """Yield the number of each field of a message with the bounds of its bytes, or with its value if it has none."""
        while start < end:
            key, start = self._varint(start, end)
            number, kind = key >> 3, key & 7
            if kind == _VARINT:
                value, start = self._varint(start, end)
                yield number, value, value
                continue
            if kind == _BYTES:
                size, start = self._varint(start, end)
            elif kind in (_FIXED32, _FIXED64):
                size = 4 if kind == _FIXED32 else 8
            else:
                raise ValueError(f"unknown wire type {kind}")
            if start + size > end:
                raise ValueError("a field is longer than what contains it")
            yield number, start, start + size
            start += size

    def _varint(self, start: int, end: int) -> tuple[int, int]:
        value = shift = 0
        while start < end and shift < 70:
            byte = self._content[start]
            start += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, start
            shift += 7
        raise ValueError("a number is cut off")
