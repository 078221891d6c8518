"""What a CPU computes natively, by what it says of itself."""

from __future__ import annotations

import pytest

from deepmlf_llm.backbones.cpu import computes_bfloat16, has_bfloat16


@pytest.mark.parametrize(
    ("cpuinfo", "expected"),
    [
        ("processor : 0\nflags : fpu avx2 avx512f avx512_bf16\n", True),
        ("flags\t\t: fpu amx_bf16 amx_tile\n", True),
        ("flags : fpu avx2 avx512f avx512_vnni\n", False),
        ("model name : bf16\nflags : fpu avx2\n", False),
        ("Features : fp asimd bf16 i8mm\n", True),
        ("", False),
    ],
)
def test_flags_tell(cpuinfo, expected):
    assert has_bfloat16(cpuinfo) is expected


def test_of_this_machine_it_says_something():
    assert computes_bfloat16() in (True, False)
