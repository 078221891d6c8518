"""Mirrors ``deepmlf_llm/study/elsewhere.py``."""

from __future__ import annotations

import json
import shutil

import pytest

from deepmlf_llm.errors import ConfigError, RunError
from deepmlf_llm.study.claims import take
from deepmlf_llm.study.directory import PARQUET, StudyDirectory
from deepmlf_llm.study.elsewhere import Elsewhere
from deepmlf_llm.study.node import Node
from deepmlf_llm.study.perplexity import FILE
from deepmlf_llm.study.results import RUN, read_all, write_parquet, write_record


@pytest.fixture
def source(finished_study):
    return StudyDirectory(finished_study(failed=2))


@pytest.fixture
def plan(source, make_plan):
    return make_plan(source.planned())


@pytest.fixture
def directory(tmp_path):
    return StudyDirectory(tmp_path / "more")


@pytest.mark.parametrize("put_away", [False, True])
def test_finished_cells_count_and_failed_ones_are_run_again(source, plan, directory, put_away):
    records = read_all(source, plan.cells)
    done = [record for record in records if record["status"] == "finished"]
    assert len(done) == len(records) - 2
    if put_away:
        write_parquet(source, records)
        shutil.rmtree(source.path / "cells")
    before = {path: path.read_bytes() for path in source.path.rglob("*") if path.is_file()}
    found = Elsewhere.of(source, plan)
    assert found.records == {record["run_info"]["fingerprint"]: record for record in done}
    with Node(directory.path) as node:
        found.take_in(node, directory, plan)
        assert read_all(directory, plan.cells) == done
        found.take_in(node, directory, plan)
    assert read_all(directory, plan.cells) == done
    assert {path: path.read_bytes() for path in source.path.rglob("*") if path.is_file()} == before


def test_cells_of_an_earlier_start_count_too(source, plan, make_plan):
    """The source's own plan may have moved on to other seeds since."""
    study = json.loads((source.path / "study.json").read_text())
    (source.path / "study.json").write_text(json.dumps({**study, "cells": study["cells"][:1]}))
    assert len(Elsewhere.of(source, make_plan(plan.cells[3:5])).records) == 2


def test_what_ended_here_and_what_another_node_works_on_stay(source, plan, directory):
    found = Elsewhere.of(source, plan)
    mine, others, cut, *_ = [cell for cell in plan.cells if cell.fingerprint in found.records]
    own = {**found.records[mine.fingerprint], "train_info": {"seconds": 1.0}}
    directory.cell(mine.name).mkdir(parents=True)
    write_record(directory.cell(mine.name), own)
    checkpoint = directory.cell(cut.name) / RUN / "checkpoint-3"
    checkpoint.mkdir(parents=True)
    with Node(directory.path) as other, Node(directory.path) as node:
        claim = take(other, directory.cell(others.name))
        found.take_in(node, directory, plan)
        assert claim.is_held()
        there = {record["cell"]: record for record in read_all(directory, plan.cells)}
        assert there[mine.name] == own
        assert others.name not in there
        assert there[cut.name] == found.records[cut.fingerprint]
        assert not checkpoint.exists()
        claim.release()
        found.take_in(node, directory, plan)
        assert take(other, directory.cell(cut.name)) is not None  # no claim is left behind
    assert len(read_all(directory, plan.cells)) == len(found.records)


def test_how_lms_read_is_not_measured_again(source, plan, directory):
    def entry(base: str, nats: float) -> dict[str, object]:
        sizes = dict.fromkeys(("parameters", "layer_parameters", "tokens", "words", "bytes", "utterances"), 5)
        return {"base": base, "layers": 6, "data": "sha", "nats": nats, **sizes}

    (source.path / FILE).write_text(json.dumps([entry("a", 1.0), entry("b", 2.0)]))
    directory.path.mkdir()
    (directory.path / FILE).write_text(json.dumps([entry("b", 3.0)]))
    with Node(directory.path) as node:
        Elsewhere.of(source, plan).take_in(node, directory, plan)
    assert json.loads((directory.path / FILE).read_text()) == [entry("b", 3.0), entry("a", 1.0)]


def test_a_folder_that_has_none_of_the_plan_is_refused(source, make_cell, make_plan, tmp_path):
    plan = make_plan([make_cell(4, 1)], code="beef")
    with pytest.raises(ConfigError, match=r"22 cells are finished there, and none .* code version 0123, this is beef"):
        Elsewhere.of(source, plan)
    (source.path / PARQUET).unlink(missing_ok=True)
    shutil.rmtree(source.path / "cells")
    with pytest.raises(ConfigError, match=r"0 cells are finished there"):
        Elsewhere.of(source, plan)
    (tmp_path / "file").touch()
    for place in (tmp_path / "nothing", tmp_path / "file"):
        with pytest.raises(RunError, match=rf"^{place}: no study there"):
            Elsewhere.of(StudyDirectory(place), plan)
