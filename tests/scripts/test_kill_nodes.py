"""Mirrors ``scripts/kill_nodes.py``: real nodes and cells, killed once; its comparison, on made-up records."""

from __future__ import annotations

import json
import sys

import pytest

from deepmlf_llm.errors import RunError
from scripts import kill_nodes
from tests.study.conftest import write_finished


def with_adapters(folder):
    """A made-up study, each cell with an adapter's file."""
    study = write_finished(folder, layers=(6,), blocks=(2,), tokens=(4,), seeds=(1, 2), failed=0)
    for path in study.glob("cells/*"):
        (path / "run" / "adapter").mkdir(parents=True)
        (path / "run" / "adapter" / "adapter_model.safetensors").write_bytes(b"weights")
    return study


def change(study, edit):
    path = min(study.glob("cells/*/cell.json"))
    record = json.loads(path.read_text())
    edit(record)
    path.write_text(json.dumps(record))


def test_times_are_not_compared_and_everything_else_is(tmp_path):
    study = with_adapters(tmp_path / "a")
    table = kill_nodes.study_table(study)
    assert len(table) == 2
    change(study, lambda record: record["train_info"].update(total_seconds=1e6, peak_memory_mb=1))
    assert kill_nodes.study_table(study) == table
    min(study.glob("cells/*/run/adapter/*")).write_bytes(b"other weights")
    assert kill_nodes.study_table(study) != table

    study = with_adapters(tmp_path / "b")
    change(study, lambda record: record["metrics"]["test"].update(mae=0.0))
    assert kill_nodes.study_table(study) != table


def test_a_node_that_fails_is_told_with_what_it_printed(tmp_path):
    with pytest.raises(RunError, match=r"code 2:\n(.|\n)*nowhere\.yaml"):
        kill_nodes.finish(kill_nodes.start("--grid", tmp_path / "nowhere.yaml", cache=tmp_path))


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
def test_one_of_two_nodes_is_killed_and_the_table_is_the_untouched_ones(tmp_path, monkeypatch, isolated_cache):
    monkeypatch.setitem(kill_nodes.GRID["fixed"], "max_steps", 4)
    monkeypatch.setitem(kill_nodes.GRID["grid"][0], "num_fusion_tokens", [2])
    assert len(kill_nodes.kill_nodes(tmp_path, kills=1, seed=0, seeds=1, longest=3.0)) == 1
