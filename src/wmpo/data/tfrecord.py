"""TFRecord files of ``tf.train.Example`` without TensorFlow: framing with its checksums, and a protobuf reader.

A file is a row of records: length (8 bytes), checksum of the length, content, checksum of the content. An Example maps
names to lists of bytes, float32 or int64. What is not understood raises ValueError; the caller names the file.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt32

Values = list[bytes] | np.ndarray
"""Bytes, or float32 [n] or int64 [n]."""

_POLYNOMIAL = 0x82F63B78  # Castagnoli's, bit-reversed
_BLOCK = 256  # bytes that each lane of the vectorised checksum goes through, a power of two


def read_records(path: Path) -> Iterator[bytes]:
    """Contents of the records, each checked. Raises ValueError where one is cut off or damaged."""
    with open(path, "rb") as file:
        size = path.stat().st_size
        while head := file.read(12):
            if len(head) < 12 or _masked(head[:8]) != struct.unpack("<I", head[8:])[0]:
                raise ValueError(f"the record at byte {file.tell() - len(head)} has a damaged head")
            (length,) = struct.unpack("<Q", head[:8])
            if file.tell() + length + 4 > size:
                raise ValueError(f"the record at byte {file.tell() - 12} is cut off")
            content, check = file.read(length), file.read(4)
            if _masked(content) != struct.unpack("<I", check)[0]:
                raise ValueError(f"the record at byte {file.tell() - length - 16} has a wrong checksum")
            yield content


def _masked(content: bytes) -> int:
    """TFRecord turns and shifts checksums, so that a checksum of checksums keeps its strength."""
    crc = crc32c(content)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def _table() -> UInt32[np.ndarray, "256"]:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ np.uint32(_POLYNOMIAL), table >> 1)
    return table.astype(np.uint32)


_TABLE = _table()


def crc32c(content: bytes) -> int:
    """CRC-32C. Blocks of the content run through the table side by side, then are joined two by two: in Python one byte
    after the other would take a second for each four megabytes."""
    if len(content) < _BLOCK:
        state = 0xFFFFFFFF
        for byte in content:
            state = int(_TABLE[(state ^ byte) & 255]) ^ (state >> 8)
        return state ^ 0xFFFFFFFF
    # A checksum that begins with ones is one that begins with zeros over content whose first 4 bytes are inverted; and
    # then zeros in front of the content change nothing, so it can be filled up to a power of two of blocks.
    lanes = 1 << (-(-len(content) // _BLOCK) - 1).bit_length()
    filled = np.zeros(lanes * _BLOCK, dtype=np.uint8)
    filled[-len(content) :] = np.frombuffer(content, dtype=np.uint8)
    filled[len(filled) - len(content) :][:4] ^= 255
    state_of = np.zeros(lanes, dtype=np.uint32)
    for column in np.ascontiguousarray(filled.reshape(lanes, _BLOCK).T):
        state_of = _TABLE[(state_of ^ column) & 255] ^ (state_of >> np.uint32(8))
    skip = _skip_block()
    while len(state_of) > 1:
        state_of = _apply(skip, state_of[0::2]) ^ state_of[1::2]
        skip = _apply(skip, skip)
    return int(state_of[0]) ^ 0xFFFFFFFF


def _skip_block() -> UInt32[np.ndarray, "32"]:
    """What a block of zeros does to each bit of the state: it is linear, so 32 columns say it all."""
    bits = np.uint32(1) << np.arange(32, dtype=np.uint32)
    skip = _TABLE[bits & 255] ^ (bits >> np.uint32(8))
    for _ in range(_BLOCK.bit_length() - 1):
        skip = _apply(skip, skip)
    return skip


def _apply(columns: UInt32[np.ndarray, "32"], states: UInt32[np.ndarray, " n"]) -> UInt32[np.ndarray, " n"]:
    found = np.zeros_like(states)
    for bit in range(32):
        found ^= np.where((states >> np.uint32(bit)) & 1, columns[bit], np.uint32(0))
    return found


def parse_example(content: bytes) -> dict[str, Values]:
    """The features of a serialised ``tf.train.Example``. Raises ValueError when it is none."""
    features: dict[str, Values] = {}
    for wrapped in _messages(content, 1):
        for entry in _messages(wrapped, 1):
            key = b"".join(_messages(entry, 1)[-1:]).decode()
            features[key] = _values(b"".join(_messages(entry, 2)[-1:]))
    return features


def _values(feature: bytes) -> Values:
    for number, body in _fields(feature):
        if number == 1 and isinstance(body, bytes):
            return _messages(body, 1)
        if number == 2 and isinstance(body, bytes):  # packed or one by one, both are 4 bytes a number
            return np.frombuffer(b"".join(_messages(body, 1)), dtype="<f4").astype(np.float32)
        if number == 3 and isinstance(body, bytes):
            parts = [_varints(v) if isinstance(v, bytes) else _signed([v]) for n, v in _fields(body) if n == 1]
            return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)
    return []


def _messages(content: bytes, number: int) -> list[bytes]:
    return [body for found, body in _fields(content) if found == number and isinstance(body, bytes)]


def _fields(content: bytes) -> Iterator[tuple[int, bytes | int]]:
    """Numbers and bodies of a message's fields: bytes, or an integer for a varint."""
    place = 0
    while place < len(content):
        tag, place = _varint(content, place)
        number, kind = tag >> 3, tag & 7
        if kind == 0:
            value, place = _varint(content, place)
            yield number, value
            continue
        length = {1: 8, 5: 4}.get(kind, -1)
        if kind == 2:
            length, place = _varint(content, place)
        if length < 0 or place + length > len(content):
            raise ValueError(f"no protobuf message: field {number} of kind {kind} at byte {place}")
        yield number, content[place : place + length]
        place += length


def _varint(content: bytes, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if place >= len(content):
            break
        byte, place = content[place], place + 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, place
    raise ValueError(f"no protobuf message: a number does not end before byte {place}")


def _varints(packed: bytes) -> Int64[np.ndarray, " n"]:
    """Numbers of 7 bits a byte, the lowest first; all at once, as pictures may be stored so."""
    raw = np.frombuffer(packed, dtype=np.uint8)
    ends = np.flatnonzero(raw < 128)
    if len(raw) and (not len(ends) or ends[-1] != len(raw) - 1):
        raise ValueError("no protobuf message: the last number does not end")
    begins = np.concatenate([[0], ends[:-1] + 1]).astype(np.int64)[: len(ends)]
    lengths = ends - begins + 1
    if len(lengths) and lengths.max() > 10:
        raise ValueError("no protobuf message: a number has more than 64 bits")
    values = np.zeros(len(ends), dtype=np.uint64)
    for k in range(int(lengths.max()) if len(lengths) else 0):
        byte = raw[np.minimum(begins + k, ends)].astype(np.uint64) & np.uint64(127)
        values |= np.where(k < lengths, byte << np.uint64(7 * k), np.uint64(0))
    return values.view(np.int64)


def _signed(values: list[int]) -> Int64[np.ndarray, " n"]:
    return np.array([value & (2**64 - 1) for value in values], dtype=np.uint64).view(np.int64)
