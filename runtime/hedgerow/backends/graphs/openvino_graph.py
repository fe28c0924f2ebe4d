"""Changes to an `openvino.Model` before it is compiled, and questions about it.

State that OpenVINO keeps inside a model becomes inputs and outputs, which the node keeps for each stream. Otherwise a model
with `ReadValue` and `Assign` carries what one stream showed into the results of the next.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from hedgerow.backends.vendors import openvino_package
from hedgerow.errors import ConfigError, ModelUnreadable
from hedgerow.frame import Array

_KEEPS_ZERO: Final = frozenset(["Broadcast", "Convert", "Reshape", "Squeeze", "Tile", "Transpose", "Unsqueeze"])
"""Operators that turn zeros into zeros."""


def make_state_explicit(path: Path, model: Any) -> dict[str, str]:
    """Replace each variable of a model by an input, and by an output with its next value.

    Args:
        path: the model's file, for errors.
        model: an `openvino.Model`; changed.
    Returns: name of the input → name of the output; empty: the model keeps no state.
    Raises: ModelUnreadable: a variable does not start at zero, or not with a known shape.
    """
    ops = openvino_package().opset13
    reads: dict[str, list[Any]] = {}
    for node in model.get_ordered_ops():
        if node.get_type_name() == "ReadValue":
            reads.setdefault(node.get_variable_id(), []).append(node)
    sinks = {node.get_variable_id(): node for node in model.get_sinks() if node.get_type_name() == "Assign"}
    pairs = {}
    for variable in model.get_variables():
        name = variable.get_info().variable_id
        if name not in reads or name not in sinks:
            raise _refused(path, name, "is not both read and assigned in the model's main graph")
        for read in reads[name]:
            shape = read.output(0).partial_shape
            if shape.rank.is_dynamic or any(dim.is_dynamic for dim in list(shape)[1:]):
                raise _refused(path, name, f"has the shape {shape}, so its size at a stream's start is not known")
            if read.get_input_size() and not _is_zero(read.input_value(0)):
                raise _refused(path, name, "starts at values other than zero")
        first, sink = reads[name][0], sinks[name]
        before = ops.parameter(first.output(0).partial_shape, first.output(0).get_element_type(), name=f"state.{name}")
        before.output(0).set_names({f"state.{name}"})
        after = ops.result(sink.input_value(0), name=f"state.{name}.next")
        after.output(0).set_names({f"state.{name}.next"})
        for read in reads[name]:
            read.output(0).replace(before.output(0))
        model.remove_sink(sink)
        model.remove_variable(variable)
        model.add_parameters([before])
        model.add_results([after])
        pairs[f"state.{name}"] = f"state.{name}.next"
    if pairs:
        model.validate_nodes_and_infer_types()
    return pairs


def _is_zero(output: Any) -> bool:
    node = output.get_node()
    while node.get_type_name() in _KEEPS_ZERO:  # a chain of them may be of any length
        node = node.input_value(0).get_node()
    return node.get_type_name() == "Constant" and not np.any(node.data)


def _refused(path: Path, variable: str, why: str) -> ModelUnreadable:
    return ModelUnreadable(
        f"{path.name} keeps state between frames, which must not mix streams, but its variable {variable} {why}",
        remedy="Export the model with its state as inputs and outputs, and name them under `state:`.",
    )


def open_batch(path: Path, model: Any, axes: Mapping[str, int | None]) -> None:
    """Make the batch axis dynamic for inputs that fix it to 1. Raises: ModelUnreadable: the model cannot be reshaped."""
    shapes = {}
    for number, port in enumerate(model.inputs):
        shape, axis = port.get_partial_shape(), axes.get(name_of(port), 0)
        if axis is not None and shape.rank.is_static and axis < len(shape) and shape[axis] == 1:
            shape[axis] = -1
            shapes[number] = shape
    if shapes:
        try:
            model.reshape(shapes)
        except Exception as error:
            raise ModelUnreadable(
                f"OpenVINO cannot make the batch axis of {path.name} dynamic: {reason_of(error)}",
                remedy="Remove `open_batch`, or export the model with a dynamic batch axis.",
            ) from error


def with_rows(path: Path, model: Any, axes: Mapping[str, int | None], rows: int) -> Any:
    """Return a copy of the model for batches of exactly `rows` rows."""
    shapes = {}
    for number, port in enumerate(model.inputs):
        shape, axis = port.get_partial_shape(), axes.get(name_of(port), 0)
        if axis is not None and shape.rank.is_static and axis < len(shape) and shape[axis].is_dynamic:
            shape[axis] = rows
        if shape.is_dynamic:
            raise ConfigError(
                f"{path.name}: `static_batches` needs a model with no dynamic axis but the batch; {name_of(port)} is {shape}",
                remedy="Remove `static_batches`, or export the model with fixed sizes.",
            )
        shapes[number] = shape
    variant = model.clone()
    variant.reshape(shapes)
    return variant


def value_sized(path: Path, model: Any, batch: Mapping[str, Array], constants: Collection[str]) -> str | None:
    """Return an operator whose output's size depends on values; see `Session.value_sized`.

    With the shapes of all inputs fixed, OpenVINO computes every size that follows from them.

    Args:
        model: changed.
    """
    try:
        for port in model.inputs:
            if (name := name_of(port)) in constants:
                parameter = port.get_node()
                port.replace(openvino_package().opset13.constant(batch[name]).output(0))
                model.remove_parameter(parameter)
        model.reshape({number: batch[name_of(port)].shape for number, port in enumerate(model.inputs)})
    except Exception as error:
        shapes = ", ".join(f"{name}: {list(array.shape)}" for name, array in batch.items())
        raise ModelUnreadable(
            f"OpenVINO cannot give {path.name} inputs of the shapes {shapes}: {reason_of(error)}",
            remedy="Set `max_batch: 1`, or export the model with a dynamic batch axis.",
        ) from error
    return next((str(node.get_type_name()) for node in model.get_ordered_ops() if _is_value_sized(node)), None)


def _is_value_sized(node: Any) -> bool:
    """Return whether an operator's outputs depend on values in size, or in which part of the model computes them."""
    kind = node.get_type_name()
    branches = kind == "Loop" or (kind == "If" and _depends_on_inputs(node.input_value(0)))
    return branches or any(output.partial_shape.is_dynamic for output in node.outputs())


def _depends_on_inputs(output: Any) -> bool:
    """Return whether a value depends on values of the model's inputs, not on their shapes alone."""
    waiting, seen = [output.get_node()], set()
    while waiting:
        node = waiting.pop()
        if node.get_type_name() == "Parameter":
            return True
        if node.get_name() not in seen and node.get_type_name() != "ShapeOf":
            seen.add(node.get_name())
            waiting += [value.get_node() for value in node.input_values()]
    return False


def name_of(port: Any) -> str:
    """Return the author's name for a tensor; conversion may have added more names, or left none."""
    names: set[str] = port.get_names()
    friendly = str(port.get_node().get_friendly_name())
    own = friendly.removesuffix("/sink_port_0")
    if own in names or not names:
        return own
    return min(names)


def reason_of(error: Exception | str) -> str:
    """Return OpenVINO's message on one line, without locations in its source code."""
    lines = [line.strip() for line in str(error).splitlines()]
    useful = [line for line in lines if not line.startswith(("Exception from", "Check '", "FrontEnd API failed"))]
    return " ".join(" ".join(useful).split())[:500] or type(error).__name__
