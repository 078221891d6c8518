"""Mirrors ``deepmlf_llm/planning/resident.py``: against Linux's own numbers, files, and sums by hand."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from deepmlf_llm.planning.geometries import planned_shape
from deepmlf_llm.planning.memory import Range
from deepmlf_llm.planning.resident import Host, Loading, loading_of, resident_bytes


def test_what_a_process_holds_is_counted():
    before = resident_bytes()
    held = torch.ones(1 << 24)
    after = resident_bytes()
    assert after.now - before.now == pytest.approx(held.nbytes, rel=0.1)
    assert after.peak >= after.now


def test_the_peak_remembers_what_is_gone():
    block = bytearray(resident_bytes().peak + (50 << 20))
    size = len(block)
    del block
    assert resident_bytes().peak >= size


def test_files_count_beside_a_copy_and_in_its_place_where_there_is_none():
    copied = Loading(files=100, whole=200, kept=50)
    assert copied.peak.expected == 300
    assert copied.leaves.expected - Loading(100, 200, 200).leaves.expected == pytest.approx(0.2 * 150)
    mapped = Loading(files=100, whole=100, kept=40, mapped=True)
    assert mapped.peak.expected == 100
    assert mapped.leaves.expected - Loading(100, 100, 100, mapped=True).leaves.expected == 60
    for loading in (copied, mapped, Loading(100, 200, 200, packed=True)):
        for part in (loading.peak, loading.leaves):
            assert part.low <= part.expected <= part.high


def test_the_base_s_files_say_whether_they_stay(tmp_path):
    whole, kept = planned_shape("tiny-llama"), planned_shape("tiny-llama", 1)
    save_file({"x": torch.zeros(100, dtype=torch.bfloat16)}, tmp_path / "model.safetensors")
    size = (tmp_path / "model.safetensors").stat().st_size
    elements = [sum(p.numel() for p in lm.parameters()) for lm in (whole, kept)]
    assert loading_of(whole, kept, torch.bfloat16, tmp_path) == Loading(size, *(2 * n for n in elements), mapped=True)
    assert loading_of(whole, kept, torch.float32, tmp_path) == Loading(size, *(4 * n for n in elements))
    assert loading_of(whole, kept, torch.bfloat16, tmp_path, packed=True).mapped is False
    published = loading_of(whole, kept, torch.bfloat16, None)
    assert published == Loading(2 * elements[0], 2 * elements[0], 2 * elements[1], mapped=True)
    drawn = loading_of(whole, kept, torch.bfloat16, None, drawn=True)
    assert (drawn.files, drawn.kept) == (0, 2 * elements[1])
    assert drawn.whole >= 4 * elements[0]


def test_the_most_is_that_of_loading_or_of_stepping():
    tensors = {"weights": Range.exactly(50), "step": Range(200, 200, 210), "total": Range(250, 250, 260)}

    def rows(files: int):
        return Host(imported=1000, process=1500, loading=lambda _: Loading(files, 0, 0, mapped=True)).rows(tensors, "")

    light = rows(0)
    beside = light["loading leaves"].expected
    assert light["total"].expected == pytest.approx(1500 + 250 + beside + 0.45 * 200)
    assert light["total"].low < light["total"].expected < light["total"].high
    heavy = rows(10**9)
    assert heavy["while loading"].expected == 1000 + 10**9
    assert heavy["total"].expected > heavy["while loading"].expected  # the files stay
