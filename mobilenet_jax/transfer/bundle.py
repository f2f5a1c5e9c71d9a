"""Read the tensors of a TensorFlow checkpoint, `PREFIX.index` and `PREFIX.data-*`, without TensorFlow.

The index is a table of LevelDB: blocks of keys with shared prefixes, and a footer that says where the block of blocks
is. Its values are messages of protocol buffers. Sources: LevelDB, `doc/table_format.md`; TensorFlow,
`core/util/tensor_bundle/tensor_bundle.h` and `core/protobuf/tensor_bundle.proto`.
"""

import pathlib
import re
from collections.abc import Iterator

import numpy as np

from mobilenet_jax.errors import InputError

_MAGIC = bytes.fromhex("57fb808b247547db")  # ends the index
_FOOTER = 48  # bytes
_TYPES = {
    1: "<f4",
    2: "<f8",
    3: "<i4",
    9: "<i8",
    19: "<f2",
}  # TensorFlow's numbers of types
_Fields = dict[int, list[int | bytes]]  # of a message: number -> values


def read(prefix: pathlib.Path) -> dict[str, np.ndarray]:
    """Return the tensors of a checkpoint by name; raises InputError if one does not lie in its files."""
    index = pathlib.Path(f"{prefix}.index").read_bytes()
    if len(index) < _FOOTER or index[-8:] != _MAGIC:
        raise InputError(f"{prefix.name}.index is cut off, or is no index of a checkpoint")
    entries = dict(_entries(index))
    header = _message(entries.pop(b"", b""))
    shards, endianness = _number(header, 1), _number(header, 2)
    if not 1 <= shards <= 1000 or endianness != 0:
        raise InputError(f"{prefix.name}.index says {shards} files of data: allowed are 1 to 1000, little-endian")
    names = [f"{prefix}.data-{i:05d}-of-{shards:05d}" for i in range(shards)]
    data = [pathlib.Path(name).read_bytes() for name in names]
    return {key.decode(): _tensor(key.decode(), _message(entry), data) for key, entry in entries.items()}


def _entries(index: bytes) -> Iterator[tuple[bytes, bytes]]:
    _, _, at = _handle(index, len(index) - _FOOTER)  # of the block about the others, which is empty
    offset, size, _ = _handle(index, at)
    for _, value in _block(index, offset, size):
        offset, size, _ = _handle(value, 0)
        yield from _block(index, offset, size)


def _handle(content: bytes, at: int) -> tuple[int, int, int]:
    """Return the place and the size of a block, and where the text after them starts."""
    place, at = _varint(content, at)
    size, at = _varint(content, at)
    return place, size, at


def _block(index: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """Yield the keys and values of a block. Each key repeats the start of the one before it."""
    if offset + size + 5 > len(index):
        raise InputError("the index points outside itself")
    if index[offset + size] != 0:
        raise InputError("the index is compressed: TensorFlow writes it uncompressed")
    block = index[offset : offset + size]
    restarts = int.from_bytes(block[-4:], "little")
    end, at, key = len(block) - 4 * (restarts + 1), 0, b""
    if end < 0:
        raise InputError("a block of the index is damaged")
    while at < end:
        shared, at = _varint(block, at)
        rest, at = _varint(block, at)
        length, at = _varint(block, at)
        if shared > len(key) or at + rest + length > end:
            raise InputError("a block of the index is damaged")
        key = key[:shared] + block[at : at + rest]
        yield key, block[at + rest : at + rest + length]
        at += rest + length


def _tensor(name: str, entry: _Fields, data: list[bytes]) -> np.ndarray:
    """Return the tensor of an entry, whose fields are dtype 1, shape 2, shard 3, offset 4, size 5, slices 7."""
    kind, shard, offset, size = (_number(entry, i) for i in (1, 3, 4, 5))
    if kind not in _TYPES:
        return np.zeros(0, np.bool_)  # of text or another type: only tensors that are used are checked
    if 7 in entry:
        raise InputError(f"tensor {name!r} is stored in slices: save a checkpoint without partitions")
    shape = [_number(_message(dim), 1) for dims in entry.get(2, []) for dim in _message(dims).get(2, [])]
    dtype = np.dtype(_TYPES[kind])
    count = 1
    for side in shape:  # whole numbers of Python do not overflow
        count *= side
    if shard >= len(data) or offset + size > len(data[shard]) or count * dtype.itemsize != size:
        raise InputError(f"tensor {name!r} does not lie in the files of the checkpoint: they are cut off, or damaged")
    return np.frombuffer(data[shard], dtype, count, offset).reshape(shape)


def _message(content: int | bytes) -> _Fields:
    """Return the fields of a message of protocol buffers."""
    if isinstance(content, int):
        raise InputError("an entry of the index is damaged")
    fields, at = _Fields(), 0
    while at < len(content):
        tag, at = _varint(content, at)
        if tag & 7 == 0:
            value, at = _varint(content, at)
        else:
            size, at = {1: (8, at), 5: (4, at)}[tag & 7] if tag & 7 in (1, 5) else _varint(content, at)
            if tag & 7 not in (1, 2, 5) or at + size > len(content):
                raise InputError("an entry of the index is damaged")
            value, at = content[at : at + size], at + size
        fields.setdefault(tag >> 3, []).append(value)
    return fields


def _number(fields: _Fields, field: int) -> int:
    """Return the last value of a field, 0 if it is left out."""
    value = fields.get(field, [0])[-1]
    if not isinstance(value, int):
        raise InputError("an entry of the index is damaged")
    return value


def _varint(content: bytes, at: int) -> tuple[int, int]:
    """Return the whole number at a place, seven bits a byte from the lowest, and the place after it."""
    value = shift = 0
    while True:
        if at >= len(content) or shift > 63:
            raise InputError("the index is damaged: a number does not end")
        byte = content[at]
        value, at, shift = value | (byte & 127) << shift, at + 1, shift + 7
        if byte < 128:
            return value, at


def prefix(path: pathlib.Path) -> pathlib.Path | None:
    """Return the prefix of the checkpoint that a path means, None if it means none."""
    name = re.sub(r"\.(index|data-\d{5}-of-\d{5}|meta)$", "", path.name)
    found = path.with_name(name)
    return found if pathlib.Path(f"{found}.index").is_file() else None
