"""Mirrors ``deepmlf_llm/study/results.py``."""

from __future__ import annotations

import json
import random
import shutil
from contextlib import suppress

import pyarrow.parquet
import pytest

from deepmlf_llm.errors import RunError
from deepmlf_llm.study.directory import PARQUET, STUDY, StudyDirectory
from deepmlf_llm.study.report import write_report
from deepmlf_llm.study.results import (
    failed_record,
    failure_reason,
    log_tail,
    read_all,
    read_record,
    write_parquet,
    write_record,
)


def test_failed_record_says_why(tmp_path, make_cell):
    lines = [f"step {i}" for i in range(30)] + ["error: data=x: not there"]
    (tmp_path / "log.txt").write_text("\n".join(lines) + "\n")
    record = failed_record(make_cell(4, 1), tmp_path, "abc", 2, 2)
    assert record["status"] == "failed"
    assert record["run_info"]["reason"] == "data=x: not there"
    assert record["run_info"]["log_tail"] == lines[-15:]
    assert record["run_info"]["attempts"] == 2
    assert record["metrics"] is None


@pytest.mark.parametrize(
    ("exit_code", "tail", "reason"),
    [
        (2, ["error: first", "error: second"], "second"),
        (
            1,
            ["Traceback (most recent call last):", "  File", "torch.OutOfMemoryError: CUDA out of memory"],
            "torch.Out",
        ),
        (137, [], "ended by signal 9 (SIGKILL; often the system's answer to too little memory)"),
        (-9, ["step 3"], "ended by signal 9"),
        (143, [], "ended by signal 15 (SIGTERM)"),
        (3, ["bye"], "ended with code 3"),
        (0, [], "ended with code 0"),
    ],
)
def test_reasons(exit_code, tail, reason):
    assert failure_reason(exit_code, tail).startswith(reason)


def test_log_tail_reads_progress_bars_and_broken_bytes(tmp_path):
    path = tmp_path / "log"
    path.write_bytes(b"start\n 10%\r 50%\r100%\n\n\xff\xfe end\n")
    assert log_tail(path) == ["start", "100%", "\ufffd\ufffd end"]
    assert log_tail(tmp_path / "none") == []


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"schema": 2, "run_info": {"fingerprint": "f"}}'])
def test_what_cannot_be_read_has_not_ended(tmp_path, content):
    (tmp_path / "cell.json").write_text(content)
    assert read_record(tmp_path, "f") is None


def test_a_record_of_another_fingerprint_is_not_taken(tmp_path, make_cell):
    cell = make_cell(4, 1)
    write_record(tmp_path, failed_record(cell, tmp_path, "abc", 1, 1))
    assert read_record(tmp_path, cell.fingerprint)["cell"] == cell.name
    assert read_record(tmp_path, "another") is None


def test_undefined_values_become_null(tmp_path, make_cell):
    record = failed_record(make_cell(4, 1), tmp_path, "abc", 1, 1)
    record["metrics"] = {"test": {"corr": float("nan")}}
    write_record(tmp_path, record)
    assert json.loads((tmp_path / "cell.json").read_text())["metrics"] == {"test": {"corr": None}}


def test_parquet_has_one_row_a_cell(finished_study):
    directory = StudyDirectory(finished_study(failed=2))
    records = read_all(directory, directory.planned())
    assert write_parquet(directory, records)
    table = pyarrow.parquet.read_table(directory.path / PARQUET).to_pylist()
    assert [row["cell"] for row in table] == [record["cell"] for record in records]
    assert [row["status"] for row in table] == ["failed"] * 2 + ["finished"] * 22
    for row, record in zip(table, records, strict=True):
        assert row["values.layers"] == record["run_info"]["values"]["layers"]
        assert json.loads(row["settings"]) == record["run_info"]["settings"]
        if record["status"] == "finished":
            assert row["test.mae"] == record["metrics"]["test"]["mae"]
            assert row["test.text.mae"] == record["metrics"]["heads"]["test"]["text"]["mae"]
        else:
            assert row["test.mae"] is None
            assert row["reason"] == "loss is nan | <b>"
        assert json.loads(row["record"]) == record
    assert not list(directory.path.glob(".*.partial"))


def test_a_study_whose_cells_are_put_away_is_reported_from_its_parquet(finished_study):
    directory = StudyDirectory(finished_study(failed=2))
    pages = {path.name: path.read_bytes() for path in write_report(directory)}
    kept = (directory.path / PARQUET).read_bytes()
    records = read_all(directory, directory.planned())
    shutil.rmtree(directory.path / "cells")
    assert read_all(directory, directory.planned()) == records
    assert {path.name: path.read_bytes() for path in write_report(directory)} == pages
    assert (directory.path / PARQUET).read_bytes() == kept


def test_cells_that_are_there_go_before_the_parquet(finished_study):
    directory = StudyDirectory(finished_study())
    write_parquet(directory, read_all(directory, directory.planned()))
    gone = directory.planned()[3]
    shutil.rmtree(directory.cell(gone.name))
    assert gone.name not in [record["cell"] for record in read_all(directory, directory.planned())]


@pytest.mark.parametrize("content", [b"", b"PAR1 not a table", b"{}"])
def test_a_damaged_parquet_is_named(finished_study, content):
    directory = StudyDirectory(finished_study())
    shutil.rmtree(directory.path / "cells")
    assert read_all(directory, directory.planned()) == []
    (directory.path / PARQUET).write_bytes(content)
    with pytest.raises(RunError, match=r"results\.parquet: cannot be read as the cells of a study"):
        read_all(directory, directory.planned())


def test_a_parquet_without_records_is_named(finished_study):
    directory = StudyDirectory(finished_study())
    shutil.rmtree(directory.path / "cells")
    pyarrow.parquet.write_table(pyarrow.table({"cell": ["a"]}), directory.path / PARQUET)
    with pytest.raises(RunError, match=r"results\.parquet: .* without the column record; put cells/ back"):
        read_all(directory, directory.planned())


def test_a_parquet_of_a_newer_layout_is_named(finished_study):
    directory = StudyDirectory(finished_study())
    write_parquet(directory, [{**r, "schema": 9} for r in read_all(directory, directory.planned())])
    shutil.rmtree(directory.path / "cells")
    with pytest.raises(RunError, match=r"results\.parquet: .*layout version 9, this package reads 1"):
        read_all(directory, directory.planned())


def test_a_study_that_was_put_away_is_never_written_over(finished_study):
    directory = StudyDirectory(finished_study())
    write_report(directory)
    kept, study = (directory.path / PARQUET).read_bytes(), directory.read()
    directory.check(study["name"])
    shutil.rmtree(directory.path / "cells")
    with pytest.raises(RunError, match=r"put away, its cells are in results\.parquet alone"):
        directory.check(study["name"])
    for cell in study["cells"]:
        cell["fingerprint"] = "0" * 64  # as another version's plan would have it
    (directory.path / STUDY).write_text(json.dumps(study))
    write_report(directory)
    assert (directory.path / PARQUET).read_bytes() == kept


def test_a_flipped_bit_of_a_parquet_is_no_result(finished_study):
    directory = StudyDirectory(finished_study())
    write_parquet(directory, read_all(directory, directory.planned()))
    shutil.rmtree(directory.path / "cells")
    path, chance = directory.path / PARQUET, random.Random(0)
    whole, records = path.read_bytes(), read_all(directory, directory.planned())
    facts = pyarrow.parquet.read_metadata(path).row_group(0)
    columns = [facts.column(number) for number in range(facts.num_columns)]
    column = next(column for column in columns if column.path_in_schema == "record")
    for _ in range(20):
        damaged = bytearray(whole)
        damaged[column.data_page_offset + chance.randrange(column.total_compressed_size)] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged)
        with suppress(RunError):  # or the bit says nothing: of a statistic, of a version
            assert read_all(directory, directory.planned()) == records


def test_what_a_report_sorts_by_is_what_the_grid_names_now(finished_study):
    directory = StudyDirectory(finished_study())
    cells = directory.planned()
    del cells[5].values["num_fusion_tokens"]  # a grid whose rows say nothing of it
    ended = {record["cell"]: record for record in read_all(directory, cells)}
    assert "num_fusion_tokens" not in ended[cells[5].name]["run_info"]["values"]
    write_report(directory)
    shutil.rmtree(directory.path / "cells")
    assert {record["cell"]: record for record in read_all(directory, cells)} == ended


def test_a_study_kept_without_its_results_is_not_reported_over(finished_study):
    """Its report may be all that is left of it. One whose cells have not ended has their folders, and gets its own."""
    directory = StudyDirectory(finished_study())
    shutil.rmtree(directory.path / "cells")
    (directory.path / PARQUET).unlink(missing_ok=True)
    (directory.path / "report.md").write_text("24 of 24 cells finished")
    with pytest.raises(RunError, match=r"neither cells/ nor results\.parquet is there: no cell has begun, or"):
        write_report(directory)
    assert (directory.path / "report.md").read_text() == "24 of 24 cells finished"
    assert sorted(path.name for path in directory.path.iterdir()) == ["report.md", STUDY]
    (directory.path / "cells").mkdir()
    write_report(directory)
    assert "0 of 24 cells finished" in (directory.path / "report.md").read_text()
    assert not directory.put_away
