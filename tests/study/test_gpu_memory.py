"""Mirrors ``deepmlf_llm/study/gpu_memory.py`` and ``cell_memory.py``."""

from __future__ import annotations

import pytest

from deepmlf_llm.data.demo import embedded_dataset
from deepmlf_llm.study.cell_memory import memory_needs
from deepmlf_llm.study.cell_process import Slot, default_slots, environment
from deepmlf_llm.study.gpu_memory import GpuMemory, free_memory

GIB = 2**30
SLOTS = [Slot(0, (0,)), Slot(1, (1,)), Slot(2, (0,)), Slot(3, (1,))]


@pytest.fixture
def small(make_cell):
    return make_cell(4, 1)


@pytest.fixture
def large(make_cell):
    return make_cell(8, 1)


def test_cells_share_a_gpu_as_long_as_they_fit(small, large):
    memory = GpuMemory({0: 10 * GIB, 1: 10 * GIB}, {small.name: 4 * GIB, large.name: 7 * GIB})
    assert memory.slot_for(small, SLOTS, []).number == 0
    assert memory.slot_for(small, SLOTS[1:], [(small, SLOTS[0])]).number == 1
    assert memory.slot_for(small, SLOTS[2:], [(small, SLOTS[0]), (large, SLOTS[1])]).number == 2
    assert memory.slot_for(large, SLOTS[2:], [(small, SLOTS[0]), (small, SLOTS[1])]) is None
    assert memory.most(1, 2) == 4


def test_what_fits_nowhere_or_is_not_known_has_a_gpu_for_itself(small, large):
    memory = GpuMemory({0: 10 * GIB}, {large.name: 90 * GIB})
    (one, another) = Slot(0, (0,)), Slot(1, (0,))
    for cell in (small, large):
        assert memory.slot_for(cell, [one], []) is one
        assert memory.slot_for(cell, [another], [(small, one)]) is None
        assert memory.slot_for(cell, [another], [(large, one)]) is None
    assert GpuMemory().most(1, 2) is GpuMemory({0: 1}, {}).most(1, 1) is memory.most(2, 1) is None


def test_without_gpus_any_slot_will_do(small):
    slots = [Slot(0), Slot(1)]
    assert GpuMemory().slot_for(small, slots[1:], [(small, slots[0])]) is slots[1]
    assert GpuMemory().slot_for(small, [], []) is None


def test_free_memory_is_what_nvidia_smi_says_of_the_gpus_that_are_seen(tmp_path, monkeypatch):
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\nprintf '0, GPU-aa, 1000\\n1, GPU-bb, 2000\\n2, GPU-cc, 3000\\n'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    mib = 2**20
    assert free_memory(2) == {0: 1000 * mib, 1: 2000 * mib}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,GPU-aa")
    assert free_memory(2) == {0: 3000 * mib, 1: 1000 * mib}
    assert environment(Slot(0, (1,)))["CUDA_VISIBLE_DEVICES"] == "GPU-aa"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-1")
    assert free_memory(1) == {}
    program.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed'\nexit 9\n")
    assert free_memory(2) == {}
    monkeypatch.setenv("PATH", str(tmp_path / "none"))
    assert free_memory(2) == {}


def test_slots_are_as_many_as_the_gpus_hold(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("deepmlf_llm.study.cell_process.usable_cores", lambda: 16)
    assert default_slots(1) == 2
    assert default_slots(1, most=5) == 5
    assert default_slots(1, most=50) == 16


def test_needs_come_from_the_planner_and_grow_with_the_batch(make_cell, isolated_cache):
    data = str(embedded_dataset(sizes=(48, 16, 16)))
    given = {"data": data, "fusion_layers": "even:1", "ffw_scope": "fusion"}
    cells = [
        make_cell(4, 1, batch_size=8, **given),
        make_cell(8, 1, batch_size=32, text_cache="memory", **given),
        make_cell(8, 2, batch_size=32, text_cache="memory", **given),
        make_cell(16, 1, batch_size=8, **given),
    ]
    cells[3].processes = 2
    needs = memory_needs(cells)
    assert list(needs) == [cell.name for cell in cells[:3]]
    assert needs["toy-n8-s1"] == needs["toy-n8-s2"]
    assert 0.9 * GIB <= needs["toy-n4-s1"] < needs["toy-n8-s1"] < 3 * GIB  # CUDA itself is .9 GiB of it at most
