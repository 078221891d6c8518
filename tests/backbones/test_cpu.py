"""What a CPU computes natively, by what it says of itself; which dtype and how many threads follow."""

from __future__ import annotations

import os

import pytest
import torch

from deepmlf_llm.backbones import cpu, cpu_or_cuda_dtype
from deepmlf_llm.errors import BaseModelError


@pytest.mark.parametrize(
    ("cpuinfo", "expected"),
    [
        ("processor : 0\nflags : fpu avx2 avx512f avx512_bf16\n", "AVX512-BF16"),
        ("flags\t\t: fpu avx512_bf16 amx_bf16 amx_tile\n", "AMX"),
        ("flags : fpu avx2 avx512f avx512_vnni\n", None),
        ("model name : bf16\nflags : fpu avx2\n", None),
        ("Features : fp asimd bf16 i8mm\n", "bf16 instructions"),
        ("", None),
    ],
)
def test_flags_tell(cpuinfo, expected):
    assert cpu.bfloat16_by(cpuinfo) == expected


def test_of_this_machine_it_says_something():
    assert cpu.computes_bfloat16() in (True, False)


@pytest.mark.parametrize("native", ["no", "CPU", "CUDA"])
@pytest.mark.parametrize("said", [None, "", "float32", "bfloat16"])
def test_the_automatic_dtype_goes_by_the_machine_unless_it_is_said(monkeypatch, native, said):
    monkeypatch.setattr(cpu, "computes_bfloat16", lambda: native == "CPU")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: native == "CUDA")
    monkeypatch.delenv(cpu.DTYPE_VARIABLE)
    if said is not None:
        monkeypatch.setenv(cpu.DTYPE_VARIABLE, said)
    expected = said or ("float32" if native == "no" else "bfloat16")
    assert cpu_or_cuda_dtype("auto") == getattr(torch, expected)
    assert cpu_or_cuda_dtype("float32") == torch.float32


def test_another_word_for_it_is_refused(monkeypatch):
    monkeypatch.setenv(cpu.DTYPE_VARIABLE, "bf16")
    with pytest.raises(BaseModelError, match=r"\$DEEPMLF_DTYPE='bf16': expected 'float32' or 'bfloat16'"):
        cpu.automatic_dtype()


def test_the_suite_says_its_dtype():
    """What tests compare exactly is fp32, whatever the CPU."""
    assert os.environ[cpu.DTYPE_VARIABLE] == "float32"


@pytest.mark.parametrize(("said", "expected"), [(None, 1), ("3", 2)])
def test_no_more_threads_than_cores_unless_it_is_said(monkeypatch, said, expected):
    threads = []
    monkeypatch.setattr(cpu, "usable_cores", lambda: 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads[-1] if threads else 2)
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    monkeypatch.delenv("OMP_NUM_THREADS")
    if said:
        monkeypatch.setenv("OMP_NUM_THREADS", said)
    assert cpu.use_cores() == expected


def test_it_is_said_in_one_line(monkeypatch):
    monkeypatch.setattr(cpu, "_cpuinfo", lambda: "flags : amx_bf16\n")
    assert cpu.described("bfloat16", 2) == (
        "CPU: 2 threads, base model in bfloat16, which this CPU computes natively (AMX)"
    )
    assert "1 thread, base model in float32 (this CPU computes bfloat16 natively, AMX: faster)" in cpu.described(
        "float32", 1
    )
    monkeypatch.setattr(cpu, "_cpuinfo", lambda: "flags : avx2\n")
    assert cpu.described("float32", 2) == "CPU: 2 threads, base model in float32"
    assert cpu.described(None, 2) == "CPU: 2 threads"
