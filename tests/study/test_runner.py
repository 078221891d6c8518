"""Mirrors ``deepmlf_llm/study/runner.py`` and ``cell_process.py``, with a recipe that trains nothing."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import threading
import time
import warnings
from pathlib import Path

import pyarrow.parquet
import pytest

from deepmlf_llm.errors import RunError
from deepmlf_llm.study.cell_process import Slot, command, environment, make_slots, settings_yaml
from deepmlf_llm.study.code_version import code_version
from deepmlf_llm.study.directory import PARQUET, StudyDirectory
from deepmlf_llm.study.live import PlainView
from deepmlf_llm.study.results import read_all, read_record
from deepmlf_llm.study.runner import Runner, Stopped
from deepmlf_llm.training.settings import RunSettings
from tests.processes import at_work


@pytest.fixture
def study(tmp_path, fake_recipe, make_plan):
    """Runs cells in a folder, in this process; returns the records and the lines shown."""

    def run(cells, folder="study", slots=2, watched=False):
        lines: list[str] = []
        directory = StudyDirectory(tmp_path / folder)
        plan = make_plan(cells, code=code_version(fake_recipe) if watched else "0123")
        with directory.claimed():
            directory.write(plan)
            view = PlainView("mae", write=lines.append)
            code = None if watched else lambda: plan.code
            records = Runner(plan, directory, [Slot(i) for i in range(slots)], fake_recipe, view, code).run()
        return records, lines

    return run


def attempts(folder: Path) -> dict[str, int]:
    return {path.parent.name: int(path.read_text()) for path in folder.glob("cells/*/attempts.txt")}


def test_every_cell_runs_once_and_no_more(tmp_path, study, make_cell):
    cells = [make_cell(tokens, seed) for tokens in (4, 8) for seed in (1, 2)]
    records, lines = study(cells)
    assert [record["cell"] for record in records] == [cell.name for cell in cells]
    assert all(record["status"] == "finished" for record in records)
    assert sum(line.startswith("finished") for line in lines) == 4
    again, lines = study(cells)
    assert again == records
    assert lines == []
    assert set(attempts(tmp_path / "study").values()) == {1}


def test_a_new_row_runs_that_row_only(tmp_path, study, make_cell):
    cells = [make_cell(4, 1), make_cell(8, 1)]
    study(cells)
    records, _ = study([make_cell(12, 1), *cells])
    assert [record["cell"] for record in records] == ["toy-n12-s1", "toy-n4-s1", "toy-n8-s1"]
    assert attempts(tmp_path / "study") == {"toy-n12-s1": 1, "toy-n4-s1": 1, "toy-n8-s1": 1}


def test_a_part_of_the_cells_leaves_the_others_in_the_parquet(tmp_path, make_plan, make_cell, fake_recipe):
    plan, directory = make_plan([make_cell(n, 1) for n in (4, 8)]), StudyDirectory(tmp_path)
    directory.write(plan)
    for pattern, kept in (("*n4*", ["toy-n4-s1"]), ("*n8*", ["toy-n4-s1", "toy-n8-s1"])):
        view = PlainView("mae", write=lambda text: None)
        Runner(plan.only([pattern]), directory, [Slot(0)], fake_recipe, view, lambda: plan.code).run()
        assert pyarrow.parquet.read_table(tmp_path / PARQUET)["cell"].to_pylist() == kept


def test_a_failed_cell_is_recorded_stops_nothing_and_is_tried_again(tmp_path, study, make_cell):
    cells = [make_cell(4, 1, learning_rate=9.0), make_cell(8, 1)]
    records, lines = study(cells)
    failed, finished = records
    assert (failed["status"], finished["status"]) == ("failed", "finished")
    assert failed["run_info"]["reason"] == "learning_rate=9.0: the run diverged"
    assert failed["run_info"]["log_tail"][-2:] == ["loading", "error: learning_rate=9.0: the run diverged"]
    assert any("1 failed" in line for line in lines)
    study(cells)
    assert attempts(tmp_path / "study") == {"toy-n4-s1": 2, "toy-n8-s1": 1}


def test_a_run_that_was_cut_before_it_had_a_name_starts_anew(tmp_path, study, make_cell):
    cell = make_cell(4, 1)
    run = tmp_path / "study" / "cells" / cell.name / "run"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text("half")
    (tmp_path / "study" / "study.json").write_text('{"schema": 1, "name": "toy"}')
    records, _ = study([cell])
    assert records[0]["status"] == "finished"
    assert not (run / "config.yaml").exists()


def test_checkpoints_of_a_finished_cell_go(tmp_path, study, make_cell):
    cell = make_cell(4, 1)
    run = tmp_path / "study" / "cells" / cell.name / "run"
    (run / "checkpoint-2").mkdir(parents=True)
    (run / "run.json").write_text("{}")
    study([cell])
    assert not (run / "checkpoint-2").exists()
    assert (run / "result.json").exists()


def test_cells_that_read_the_same_texts_let_the_first_one_read(tmp_path, study, make_cell):
    """Only then do the others start, together."""
    cells = [make_cell(n, 1, text_cache="disk", weight_decay=0.5, max_steps=2) for n in (4, 8, 12)]
    _, lines = study(cells, slots=3)
    kinds = [line.split()[0] for line in lines]
    assert kinds == ["start", "start", "start", "finished", "finished", "finished"]
    logs = [(tmp_path / "study" / "cells" / cell.name / "log.txt").stat() for cell in cells]
    first = tmp_path / "study" / "cells" / "toy-n12-s1"  # the longest
    assert (first / "attempts.txt").stat().st_mtime < min(
        (tmp_path / "study" / "cells" / f"toy-n{n}-s1" / "attempts.txt").stat().st_mtime for n in (4, 8)
    )
    assert len(logs) == 3


def test_the_study_stops_when_the_training_code_changes(tmp_path, study, make_cell, fake_recipe):
    cells = [make_cell(4, 1), make_cell(8, 1, weight_decay=0.3)]  # the second one is longer, and starts first
    log = tmp_path / "study" / "cells" / cells[1].name / "log.txt"

    def edit_while_it_runs() -> None:
        while not (log.is_file() and "pid" in log.read_text()):
            time.sleep(0.02)
        fake_recipe.write_text(fake_recipe.read_text() + "\nprint('edited')\n")

    threading.Thread(target=edit_while_it_runs).start()
    with pytest.raises(RunError, match="the training code changed while the study ran"):
        study(cells, slots=1, watched=True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_end_the_study_and_all_its_processes(tmp_path, study, make_cell, number):
    cells = [make_cell(4, 1, weight_decay=30.0), make_cell(8, 1, weight_decay=30.0)]
    logs = [tmp_path / "study" / "cells" / cell.name / "log.txt" for cell in cells]
    handlers = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)]

    def send_when_both_run() -> None:
        while not all(log.is_file() and "pid" in log.read_text() for log in logs):
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    threading.Thread(target=send_when_both_run).start()
    with pytest.raises(Stopped) as stopped:
        study(cells)
    assert stopped.value.number == number
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)] == handlers
    for log in logs:
        assert not Path("/proc", log.read_text().split("pid ")[1].split()[0]).exists()
    assert not list((tmp_path / "study").glob("cells/*/cell.json"))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("whole_group", "most"),
    [
        pytest.param(True, 8, id="whole group", marks=pytest.mark.slow),
        pytest.param(False, 4, id="study alone", marks=pytest.mark.slow),
    ],
)
def test_killed_at_random_instants_it_ends_as_if_nothing_had_happened(tmp_path, study, make_cell, whole_group, most):
    cells = [make_cell(n, seed, max_steps=6, weight_decay=0.05) for n in (4, 8) for seed in (1, 2)]
    started = time.monotonic()
    expected, _ = study(cells, "uninterrupted")
    longest = 0.3 * (time.monotonic() - started)  # of a life: too short to finish in three
    folder = tmp_path / "killed"
    chance, deaths = random.Random(int(whole_group)), 0
    for _ in range(40):
        pid = _start(lambda: study(cells, "killed"))
        if deaths == most:
            assert _exit_code(pid, 120) == 0
            break
        # Counted from where the study claims its folder.
        code = None
        while code is None and not _claimed(folder, pid):
            code = _exit_code(pid, 0.01)
        code = _exit_code(pid, chance.uniform(0, longest)) if code is None else code
        if code is None:
            (os.killpg if whole_group else os.kill)(pid, signal.SIGKILL)
            assert _exit_code(pid, 60) == -signal.SIGKILL
            deaths += 1
        deadline = time.monotonic() + 10
        while (left := at_work(folder)) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not left
        if code == 0:
            break
    found = read_all(StudyDirectory(folder), cells)
    assert [_timeless(record) for record in found] == [_timeless(record) for record in expected]
    assert deaths >= 3


def _start(run) -> int:
    """A process of its own, in a session of its own, forked: all is loaded."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        os.setsid()
        run()
        code = 0
    finally:
        os._exit(code)


def _exit_code(pid: int, seconds: float) -> int | None:
    """None if it goes on for longer than that."""
    deadline = time.monotonic() + seconds
    while (found := os.waitpid(pid, os.WNOHANG))[0] == 0:
        if time.monotonic() >= deadline:
            return None
        time.sleep(0.005)
    return os.waitstatus_to_exitcode(found[1])


def _claimed(folder: Path, pid: int) -> bool:
    try:
        return any(str(folder) in os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return False


def _timeless(record: dict) -> dict:
    record = json.loads(json.dumps(record))
    del record["run_info"]["attempts"], record["train_info"]["seconds"]
    return record


def test_nothing_is_taken_from_another_code_version(tmp_path, study, make_cell):
    cell = make_cell(4, 1)
    study([cell])
    assert read_record(tmp_path / "study" / "cells" / cell.name, "another fingerprint") is None


def test_commands(tmp_path, make_cell):
    cell = make_cell(4, 1)
    line = command(cell, tmp_path, Slot(0), Path("train.py"))
    assert line[:2] == [sys.executable, "train.py"]
    assert line[-2:] == ["--report_to", "none"]
    cell.processes = 2
    line = command(cell, tmp_path, Slot(0), Path("train.py"))
    assert line[0].endswith("deepspeed")
    assert line[1] == "--master_port"
    assert line[3:6] == ["--num_accelerators", "2", "train.py"]
    line = command(cell, tmp_path, Slot(1, gpus=(2, 3)), Path("train.py"))
    assert line[3:6] == ["--include", "localhost:2,3", "train.py"]


def test_environment_of_a_slot(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert environment(Slot(0, threads=3))["OMP_NUM_THREADS"] == "3"
    assert environment(Slot(0, gpus=(5,)))["CUDA_VISIBLE_DEVICES"] == "5"
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert environment(Slot(0, threads=3))["OMP_NUM_THREADS"] == "1"


def test_slots_share_the_machine(monkeypatch):
    monkeypatch.setattr("deepmlf_llm.study.cell_process.usable_cores", lambda: 8)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert [slot.threads for slot in make_slots(2, 2)] == [2, 2]
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    assert [list(slot.gpus) for slot in make_slots(2, 2)] == [[0, 1], [2, 3]]


def test_settings_file_is_what_the_recipe_reads():
    import yaml

    given = {"base_model": "tiny-llama", "objective.gamma": 0.5, "objective.lambda_av": 0.1, "fusion_layers": [1, 2]}
    again = RunSettings.from_dict(yaml.safe_load(settings_yaml(given)))
    assert again.to_dict() == RunSettings.from_dict(given).to_dict()
