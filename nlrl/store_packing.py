"""How texts, token ids and numbers lie in a record: small, and exactly as they were.

A text is much like the last one of its kind: the same prompt with another position, the same sentence with another
number. So the first of each kind is stored plainly, as the base of those that follow, and these as what DEFLATE
(RFC 1951) makes of them with the base as its preset dictionary: a quarter of what each takes when it is compressed by
itself. One step is enough to read any of them; there are no chains.
"""

from __future__ import annotations

import sys
import zlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

SHORTEST = 24
"""Bytes from which on packing is worth a try."""
LONGEST_BASE = 1 << 14
"""Bytes of the longest text that others are packed against: each packing reads its base."""
MOST_TEXT = 1 << 28
"""Longest text that is unpacked; a few bytes from a stranger can stand for gigabytes."""
ALONE = 0
"""The base of what was packed without any."""


@dataclass(slots=True)
class Bases:
    """The base of each kind of content, within one table of a record."""

    _of_kind: dict[str, tuple[int, bytes]] = field(default_factory=dict)

    def suits(self, content: bytes, kind: str) -> bool:
        """Whether this is to be stored plainly, as the base of its kind: there is none yet."""
        return kind not in self._of_kind and SHORTEST <= len(content) <= LONGEST_BASE

    def add(self, content: bytes, kind: str, number: int) -> None:
        """It is in row `number` of the table, plainly."""
        self._of_kind[kind] = number, content

    def packed(self, content: bytes, kind: str) -> tuple[int, bytes]:
        """(id of the base, content packed against it)."""
        number, base = self._of_kind.get(kind, (ALONE, b""))
        return number, deflate(content, base)

    def clear(self) -> None:
        """Forget all of them: their rows may have been taken back."""
        self._of_kind.clear()


def deflate(content: bytes, base: bytes = b"") -> bytes:
    """`content` against `base`; the window is only as large as both, for setting up a large one takes longest."""
    size = len(content) + len(base)
    window, memory = min(15, max(9, size.bit_length())), 5 if size < 8192 else 8
    packer = zlib.compressobj(6, zlib.DEFLATED, -window, memory, zlib.Z_DEFAULT_STRATEGY, base)
    return packer.compress(content) + packer.flush()


def inflate(packed: bytes, base: bytes = b"") -> bytes:
    """What `deflate` packed; raises `ValueError` when it is nothing of the kind, or longer than `MOST_TEXT`."""
    unpacker = zlib.decompressobj(-15, base)
    try:
        content = unpacker.decompress(packed, MOST_TEXT)
    except zlib.error as error:
        raise ValueError(f"a packed text is damaged: {error}") from None
    if unpacker.unconsumed_tail or not unpacker.eof:
        raise ValueError("a packed text is too long or cut off")
    return content


def plain_text(packed: bytes, base: str | bytes | None) -> str | bytes:
    """A packed text as SQLite has plain ones, by the plain text of its base."""
    return from_bytes(inflate(packed, b"" if base is None else as_bytes(base)))


def plain_blob(packed: bytes, base: bytes | None) -> bytes:
    """A packed blob, by its base, which is plain."""
    return inflate(packed, b"" if base is None else base)


def to_column(text: str) -> str | bytes:
    """A text as SQLite takes it: TEXT, or bytes when it holds a lone surrogate, which UTF-8 cannot say."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")
    return text


def from_column(value: str | bytes) -> str:
    """The text that `to_column` stored."""
    return value if isinstance(value, str) else value.decode("utf-8", "surrogatepass")


def as_bytes(value: str | bytes) -> bytes:
    """The bytes of a text that `to_column` stored."""
    return value.encode("utf-8") if isinstance(value, str) else value


def from_bytes(content: bytes) -> str | bytes:
    """A text's bytes as `to_column` gives it."""
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return content


def pack_ids(ids: Sequence[int]) -> bytes:
    """Token ids as little-endian unsigned integers behind one byte that states their width, 2 or 4."""
    return _packed_array("H" if max(ids) < 1 << 16 else "I", ids) if ids else b""


def unpack_ids(blob: bytes) -> tuple[int, ...]:
    """The token ids that `pack_ids` packed."""
    return _unpacked_array(blob, {2: "H", 4: "I"})


def pack_floats(values: Sequence[float]) -> bytes:
    """Numbers, likewise, of 4 bytes where those say them exactly, as they do of what an engine computes in float32,
    else of 8: an answer read back is the very answer that was given.
    """
    if not values:
        return b""
    exact = array("d", array("f", values)) == array("d", values)
    return _packed_array("f" if exact else "d", values)


def unpack_floats(blob: bytes) -> tuple[float, ...]:
    """The numbers that `pack_floats` packed."""
    return _unpacked_array(blob, {4: "f", 8: "d"})


def _packed_array(code: str, values: Sequence[float]) -> bytes:
    packed = array(code, values)
    return bytes((packed.itemsize,)) + _little_endian(packed).tobytes()


def _unpacked_array(blob: bytes, codes: dict[int, str]) -> tuple:
    if not blob:
        return ()
    if blob[0] not in codes:
        raise ValueError(f"Numbers of {blob[0]} bytes each were never written here.")
    values = array(codes[blob[0]])
    values.frombytes(blob[1:])
    return tuple(_little_endian(values))


def _little_endian(values: array) -> array:
    if sys.byteorder == "big":
        values.byteswap()
    return values
