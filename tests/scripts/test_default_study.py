"""Mirrors ``scripts/default_study.py``."""

from __future__ import annotations

import pytest

from deepmlf_llm.errors import RunError
from deepmlf_llm.statistics.seeds import t_interval
from scripts import default_study
from tests.study.conftest import write_finished

SIZES = {"layers": (6, 30), "blocks": (1, 6), "tokens": (4,)}


def test_a_row_is_shown_where_every_run_excludes_zero(tmp_path):
    folders = [write_finished(tmp_path / str(seed), **SIZES, seeds=range(seed, seed + 3), failed=0) for seed in (1, 4)]
    default_study.main([*map(str, folders), "--page", str(tmp_path / "page.md")])
    page = (tmp_path / "page.md").read_text()
    rows = {
        line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]]
        for line in page.splitlines()
        if line.startswith("|")
    }
    *changes, verdict = rows["LM layers: 6 to 30"]  # made up: .1 better, seeds spread by .02
    assert len(changes) == 2
    assert all(-0.15 < float(change.split()[0]) < -0.05 for change in changes)
    assert verdict == "shown by every run"
    assert "Seeds 1, 2, 3: 12 cells" in page
    assert "Seeds 4, 5, 6: 12 cells" in page
    shown = sum(cells[-1] == verdict for cells in rows.values())
    assert f"{shown} of 2 rows exclude zero in every run." in page


def test_a_run_that_is_not_whole_is_refused(tmp_path):
    folder = write_finished(tmp_path / "study", **SIZES, failed=1)
    with pytest.raises(RunError, match=r"7 of 8 cells have finished; give a whole run"):
        default_study.read_run(folder)


def test_a_reading_says_where_runs_do_not_agree():
    shown, not_shown = (t_interval([value, value + 0.01, value + 0.02]) for value in (-0.5, -0.01))
    assert default_study._verdict([shown, shown]) == "shown by every run"
    assert default_study._verdict([not_shown, not_shown]) == "no difference is shown"
    assert default_study._verdict([shown, not_shown]).endswith("(not by every run)")
    assert default_study._verdict([shown, None]) == "not in every run"
