"""Mirrors ``deepmlf_llm/study/summary_page.py``."""

from __future__ import annotations

import math
import re

import pytest

from deepmlf_llm.commands import study as command
from deepmlf_llm.errors import ConfigError
from deepmlf_llm.statistics.seeds import Interval, t_interval
from deepmlf_llm.study.blocks import to_markdown
from deepmlf_llm.study.configurations import gather, varied
from deepmlf_llm.study.directory import StudyDirectory
from deepmlf_llm.study.plots import Plot
from deepmlf_llm.study.results import read_all
from deepmlf_llm.study.statistics import effects, seeds_to_tell
from deepmlf_llm.study.summary_page import _figures, summary_blocks


def test_the_page_has_its_five_parts_and_two_figures(reported_study):
    page = (reported_study / "summary.html").read_text()
    assert re.findall("<h2>(.*?)</h2>", page) == ["Question", "Answer", "Cost", "What cannot be told"]
    assert page.count("<img ") == 2
    assert "LM layers (6, 12, 30), MM Blocks (2, 6), fusion tokens (4, 8)" in page
    assert "23 cells, " in page
    assert "1 cell failed" in page
    words = len(re.sub(r"<[^>]+>|base64,[^\"]+", " ", page.split("</style>")[1]).split())
    assert words < 350  # a minute


def test_answers_are_the_rows_that_exclude_zero_and_all_others_cannot_be_told(reported_study):
    directory = StudyDirectory(reported_study)
    records = read_all(directory, directory.planned())
    found = gather(records)
    rows = effects(found, varied(found), "mae")
    text = to_markdown(summary_blocks(directory.read(), records))
    answer, untold = text.split("## Answer")[1].split("## Cost")[0], text.split("## What cannot be told")[1]
    for effect in rows:
        line = f"{effect.before} to {effect.after} | {effect.change.mean:+.3f}"
        assert (line in answer) == effect.change.excludes_zero
        assert (line in untold) != effect.change.excludes_zero
    chosen = min(found, key=lambda c: math.fsum(c.by_seed("mae", "validation").values()) / len(c.records))
    assert f"its test mae: {t_interval(list(chosen.by_seed('mae').values())).text()}" in answer


def test_baselines_count_in_no_cost(finished_study, make_fitted):
    directory = StudyDirectory(finished_study(layers=(6, 12), blocks=(2,), tokens=(4,), failed=0))
    records = read_all(directory, directory.planned())
    study = directory.read()
    cost = to_markdown(summary_blocks(study, records)).split("## Cost")[1].split("##")[0]
    more = to_markdown(summary_blocks(study, [*records, make_fitted(records[0])])).split("## Cost")[1].split("##")[0]
    assert more.replace(", beside 1 cell that fits a baseline and is not counted here", "") == cost
    assert "cut" not in more
    assert "1,102,304 trained parameters" in more


def test_a_study_over_several_lms_shows_their_size(found):
    configurations = found(layers=(6, 12), failed=0)
    for c in configurations:
        c.values["base"] = f"lm-{c.values['layers']}"
    rows = effects(configurations, varied(configurations), "mae")
    plots = [Plot(f"mae-{name}", "", "", b"") for name in ("blocks", "num_fusion_tokens", "flops", "lm_parameters")]
    assert [plot.name for plot in _figures(plots, rows, "mae")] == ["mae-lm_parameters", "mae-flops"]
    rows = [effect for effect in rows if effect.axis != "base"]
    assert "mae-lm_parameters" not in [plot.name for plot in _figures(plots, rows, "mae")]


def test_a_study_without_a_finished_cell_says_so(finished_study):
    directory = StudyDirectory(finished_study(layers=(6,), blocks=(2,), tokens=(4,), seeds=(1, 2), failed=2))
    text = to_markdown(summary_blocks(directory.read(), read_all(directory, directory.planned())))
    assert "None of 2 cells has finished" in text


def test_seeds_that_would_tell_a_change():
    """By hand, with deviation 1: (2.776 + .941) / sqrt 5 = 1.66 for 5 seeds, (2.571 + .920) / sqrt 6 = 1.43 for 6."""
    spread = t_interval([-1.0, 0.0, 1.0])
    assert [seeds_to_tell(spread, size) for size in (1.67, 1.65, 1.43, 1.42)] == [5, 6, 6, 7]
    assert seeds_to_tell(spread, 0.001) is None
    assert seeds_to_tell(spread) is None  # no change at all
    assert seeds_to_tell(Interval(0.3, None, 1)) is None


def test_the_report_command_writes_them_again(finished_study, capsys):
    path = finished_study(layers=(6,), blocks=(2,), tokens=(4,), seeds=(1, 2), failed=0)
    assert command.main(["report", str(path)]) == 0
    names = [place.rpartition("/")[2] for place in capsys.readouterr().out.split("report: ")[1].strip().split(", ")]
    assert names == ["report.md", "report.html", "report.tex", "summary.html"]
    assert all((path / name).stat().st_size > 100 for name in names)


@pytest.mark.parametrize("words", [["report"], ["report", "--grid", "x"]])
def test_the_report_command_needs_a_folder(words):
    with pytest.raises(ConfigError, match="give --output DIR"):
        command.main(words)
