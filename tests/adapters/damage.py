"""What can happen to the bytes of a safetensors file."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st


def damaged(data: Any, whole: bytes, flippable: int) -> tuple[str, bytes]:
    """Kind of damage and what it leaves of ``whole``, drawn by hypothesis; it may have left everything as it was.

    Args:
        data: ``st.data()``.
        whole: the file.
        flippable: bits flip in its first so many bytes.
    """
    raw = bytearray(whole)
    kind = data.draw(st.sampled_from(["truncate", "flip", "extend", "length", "replace"]))
    if kind == "truncate":
        raw = raw[: data.draw(st.integers(0, len(raw) - 1))]
    elif kind == "flip":
        raw[data.draw(st.integers(0, flippable - 1))] ^= data.draw(st.integers(1, 255))
    elif kind == "extend":
        raw += data.draw(st.binary(min_size=1, max_size=64))
    elif kind == "length":
        raw[:8] = data.draw(st.integers(0, 2**64 - 1)).to_bytes(8, "little")
    else:
        raw = bytearray(data.draw(st.binary(max_size=256)))
    return kind, bytes(raw)
