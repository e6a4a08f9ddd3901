"""The classes that a model in the ONNX format can give, read from its file.

ONNX Runtime tells the outputs' types, but not the graph behind them. The file is a message of
Protocol Buffers, of which a few fields are needed; their numbers are those of ``onnx.proto``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

Label = int | str
_Field = int | memoryview

_GRAPH = 7  # of ModelProto
_NODE, _INITIALIZER = 1, 5  # of GraphProto
_NODE_INPUT, _NODE_OUTPUT, _NODE_OP, _NODE_ATTRIBUTE = 1, 2, 4, 5  # of NodeProto
_ATTRIBUTE_NAME, _ATTRIBUTE_INTS, _ATTRIBUTE_STRINGS = 1, 8, 9  # of AttributeProto
_TENSOR_TYPE, _TENSOR_INT32S, _TENSOR_STRINGS = 2, 5, 6  # of TensorProto
_TENSOR_INT64S, _TENSOR_NAME, _TENSOR_RAW = 7, 8, 9
_RAW = {6: "<i4", 7: "<i8"}
"""Types of tensors of whole numbers -> how NumPy calls their bytes in the file."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types
_LABELS = {"classlabels_int64s", "classlabels_ints", "classlabels_strings"}
_SAME_VALUES = {"Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"}
_CHOOSES = {"ArrayFeatureExtractor", "Gather"}


@dataclass(frozen=True, slots=True)
class _Node:
    op: str
    inputs: list[str]
    attributes: list[memoryview]


def classes_of(data: bytes, label: str, chances: str, *, texts: bool) -> list[Label] | None:
    """Every class that a model can give, in its order.

    Args:
        data: the file, which ONNX Runtime has loaded.
        label: the output that is the class.
        chances: the output of probabilities; "" if there is none.
        texts: whether classes are texts; otherwise they are whole numbers.

    Returns:
        None if the file does not tell them, or not in a way that is known here.
    """
    try:
        found = _found(data, label, chances)
    except ValueError:
        return None
    kind = str if texts else int
    # Where classes are converted on their way out, they are not those that were found.
    return found if found and all(isinstance(one, kind) for one in found) else None


def _found(data: bytes, label: str, chances: str) -> list[Label]:
    """The classes as the graph has them; none if it does not tell them.

    Raises:
        ValueError: it is no graph.
    """
    producers: dict[str, _Node] = {}
    constants: dict[str, memoryview] = {}
    for part in _parts(data, _GRAPH):
        for number, value in _fields(part):
            if not isinstance(value, memoryview):
                continue
            if number == _NODE:
                node = _node(value)
                producers |= dict.fromkeys(_texts(value, _NODE_OUTPUT), node)
            elif number == _INITIALIZER:
                constants |= dict.fromkeys(_texts(value, _TENSOR_NAME), value)
    found = _traced(label, producers, constants)
    if not found and chances in producers:
        found = _told(producers[chances])
    return found


def _traced(
    name: str, producers: dict[str, _Node], constants: dict[str, memoryview]
) -> list[Label]:
    """The classes of which a value is one, found on the way back to where it is chosen."""
    while name in producers:
        node = producers[name]
        if found := _told(node):
            return found
        if not node.inputs:
            break
        name = node.inputs[0]
        if node.op in _CHOOSES and name in constants:
            return _values(constants[name])
        if node.op not in _SAME_VALUES:
            break
    return []


def _told(node: _Node) -> list[Label]:
    """The classes that a node names in its attributes."""
    for attribute in node.attributes:
        # Its name stands first; behind it there may be a forest, number by number.
        if next(_texts(attribute, _ATTRIBUTE_NAME), "") in _LABELS:
            found: list[Label] = [*_ints(attribute, _ATTRIBUTE_INTS)]
            found += _texts(attribute, _ATTRIBUTE_STRINGS)
            if found:
                return found
    return []


def _values(tensor: memoryview) -> list[Label]:
    """The values of a constant; none if they are neither whole numbers nor texts."""
    kind = next((value for number, value in _fields(tensor) if number == _TENSOR_TYPE), 0)
    found: list[Label] = [*_texts(tensor, _TENSOR_STRINGS)]
    if isinstance(kind, int) and kind in _RAW:
        for raw in _parts(tensor, _TENSOR_RAW):
            found += np.frombuffer(raw, _RAW[kind]).tolist()
        for field in (_TENSOR_INT32S, _TENSOR_INT64S):
            found += _ints(tensor, field)
    return found


def _node(message: memoryview) -> _Node:
    return _Node(
        "".join(_texts(message, _NODE_OP)),
        list(_texts(message, _NODE_INPUT)),
        list(_parts(message, _NODE_ATTRIBUTE)),
    )


def _parts(message: bytes | memoryview, wanted: int) -> Iterator[memoryview]:
    """All fields of one number that are messages, texts or bytes."""
    for number, value in _fields(message):
        if number == wanted and isinstance(value, memoryview):
            yield value


def _texts(message: memoryview, wanted: int) -> Iterator[str]:
    return (bytes(value).decode("utf-8", "replace") for value in _parts(message, wanted))


def _ints(message: memoryview, wanted: int) -> Sequence[int]:
    """All int64 of one field, whether they are packed or stand one by one."""
    found = []
    for number, value in _fields(message):
        if number != wanted:
            continue
        if isinstance(value, int):
            found.append(value)
            continue
        at = 0
        while at < len(value):
            one, at = _varint(value, at)
            found.append(one)
    return [one - (1 << 64) if one >> 63 else one for one in found]


def _fields(message: bytes | memoryview) -> Iterator[tuple[int, _Field]]:
    """Number and value of each field; numbers without sign, anything longer as its bytes.

    Raises:
        ValueError: it is no such message.
    """
    view = memoryview(message)
    at = 0
    while at < len(view):
        key, at = _varint(view, at)
        wire = key & 7
        if wire == _VARINT:
            value: _Field
            value, at = _varint(view, at)
        else:
            size = {_FIXED64: 8, _FIXED32: 4}.get(wire)
            if wire == _BYTES:
                size, at = _varint(view, at)
            if size is None or at + size > len(view):
                msg = f"a field of wire type {wire} does not fit its message"
                raise ValueError(msg)
            value = view[at : at + size]
            at += size
        yield key >> 3, value


def _varint(view: memoryview, at: int) -> tuple[int, int]:
    """A number of seven bits in each byte, the lowest first, and where it ends.

    The last byte lacks the highest bit.
    """
    found = shift = 0
    while at < len(view):
        byte = view[at]
        found |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return found & 0xFFFF_FFFF_FFFF_FFFF, at
    msg = "a number is cut off"
    raise ValueError(msg)
