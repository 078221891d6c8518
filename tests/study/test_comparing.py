"""Mirrors ``deepmlf_llm/study/comparing.py`` and ``comparison_page.py``."""

from __future__ import annotations

import json
import math
import shutil
from statistics import fmean, stdev, variance

import pytest

from deepmlf_llm.commands import study as command
from deepmlf_llm.errors import ConfigError, DataError, RunError
from deepmlf_llm.study.comparing import compare_studies, welch
from deepmlf_llm.study.comparison_page import rows, to_page

T_2 = 4.302653  # 97.5 % of Student's t with two degrees of freedom


def changed(path, change):
    """Every cell of a study, as ``change(record)`` leaves it."""
    for place in path.glob("cells/*/cell.json"):
        record = json.loads(place.read_text())
        change(record)
        place.write_text(json.dumps(record))
    return path


@pytest.fixture
def pair(finished_study):
    """Two studies of 2 x 2 configurations and three seeds; in the second, all are worse by .1 and a bit of the seed."""

    def worse(record):
        record["metrics"]["test"]["mae"] += 0.1 + 0.01 * record["run_info"]["seed"]

    sizes = {"layers": (6, 12), "blocks": (2, 6), "tokens": (4,), "seeds": (1, 2, 3), "failed": 0}
    return finished_study("first", **sizes), changed(finished_study("second", **sizes), worse)


def test_changes_are_paired_by_seed(pair):
    found = compare_studies(*pair)
    assert found.differs == []
    assert found.only == (0, 0)
    assert [(m.values["layers"], m.values["blocks"]) for m in found.matches] == [(6, 2), (6, 6), (12, 2), (12, 6)]
    for match in [*found.matches]:
        assert match.paired
        assert match.change.mean == pytest.approx(0.12)  # seeds 1, 2, 3
        assert match.change.half == pytest.approx(T_2 * 0.01 / math.sqrt(3), rel=1e-5)
    assert found.overall.mean == pytest.approx(0.12)
    columns, lines = rows(found)
    assert [line[-1] for line in lines] == ["worse"] * 5
    assert lines[0][0] == "6 LM layers · 2 MM Blocks"
    assert columns[2:4] == ["test mae, first", "test mae, second"]


def with_more(path, width=None):
    """The same with two LMs for two depths, each with a question and a rank of its own, and a baseline of each.

    ``width`` is that of GCA, which else is each one's own too.
    """
    study = json.loads((path / "study.json").read_text())

    def question(base):
        return {"text.template": f"A long question to the {base} one: " * 9}

    def of_two_models(run):
        base = {6: "small", 12: "larger"}[run["values"]["layers"]]
        own = {**question(base), "lora_r": len(base), "gca_head_width": width or len(base)}
        run["settings"] |= {**own, "base_model": base, "head_dropout": 0.2, "modalities": ["none"]}
        run["values"] |= {"base": base, "lora_r": "own", "modalities": ["none"]}

    changed(path, lambda record: of_two_models(record["run_info"]))
    for planned in study["cells"]:
        of_two_models(planned)
    record = json.loads(next(path.glob("cells/*/cell.json")).read_text())
    for base, layers in (("small", 6), ("larger", 12)):
        name = f"{base}-ridge"
        cell = {"values": {"base": base, "layers": layers, "baseline": "ridge"}, "seed": 1, "fingerprint": name}
        cell["settings"] = {"base_model": base, "baseline": "ridge", **question(base)}
        folder = path / "cells" / name
        folder.mkdir()
        run = {**record["run_info"], **cell}
        (folder / "cell.json").write_text(json.dumps({**record, "cell": name, "run_info": run}))
        study["cells"].append({**study["cells"][0], **cell, "name": name})
    (path / "study.json").write_text(json.dumps(study))
    return path


def test_baselines_are_matched_among_themselves_and_count_in_no_mean(pair):
    found = compare_studies(*map(with_more, pair))
    assert found.differs == []
    assert [match.baseline for match in found.matches] == [False] * 4 + [True] * 2
    assert (found.overall.n, found.overall.mean) == (3, pytest.approx(0.12))
    _, lines = rows(found)
    assert [line[0] for line in lines] == [
        "small · 2 MM Blocks",
        "small · 6 MM Blocks",
        "larger · 2 MM Blocks",
        "larger · 6 MM Blocks",
        "small · ridge baseline",
        "larger · ridge baseline",
        "all but the baselines",
    ]


def test_what_comes_with_a_base_model_is_named_and_left_out_of_the_match(pair):
    found = compare_studies(with_more(pair[0]), with_more(pair[1], width=9))
    assert found.differs == [("gca_head_width", "small: 5; larger: 6", "9")]
    assert len(found.matches) == 6


def test_a_baseline_and_the_method_share_no_cell(pair, tmp_path):
    whole = with_more(pair[0])
    alone = tmp_path / "alone"
    shutil.copytree(whole, alone)
    study = json.loads((alone / "study.json").read_text())
    study["cells"] = [cell for cell in study["cells"] if "baseline" in cell["values"]]
    (alone / "study.json").write_text(json.dumps(study))
    found = compare_studies(whole, alone)
    assert (len(found.matches), found.overall, found.only) == (2, None, (12, 0))
    with pytest.raises(DataError, match="one has only baselines, the other has none"):
        compare_studies(pair[1], alone)


def test_one_configuration_is_singular(finished_study):
    sizes = {"layers": (6,), "blocks": (2,), "tokens": (4,), "failed": 0}
    found = compare_studies(finished_study("one", **sizes), finished_study("two", **sizes))
    assert " 1 configuration is in both." in to_page(found)


def test_the_same_study_shows_nothing(pair):
    found = compare_studies(pair[0], pair[0])
    assert all(match.change.mean == match.change.half == 0 for match in found.matches)
    assert {line[-1] for line in rows(found)[1]} == {"no difference is shown"}


def test_settings_that_differ_are_named_and_left_out_of_the_match(pair):
    def longer(record):
        record["run_info"]["settings"] |= {"max_steps": 80, "num_fusion_tokens": 12}
        record["run_info"]["values"]["num_fusion_tokens"] = 12
        record["run_info"]["code"] = "4567"

    found = compare_studies(pair[0], changed(pair[1], longer))
    assert sorted(found.differs) == [
        ("code version", "0123", "4567"),
        ("max_steps", "-1", "80"),  # the first study leaves it out: the default of the recipe
        ("num_fusion_tokens", "4", "12"),
    ]
    assert len(found.matches) == 4
    assert "| max\\_steps | -1 | 80 |" in to_page(found)


def test_cells_of_one_study_alone_are_counted(finished_study, pair):
    wider = finished_study("wider", layers=(12, 30), blocks=(2, 6), tokens=(4,), seeds=(1, 2), failed=0)
    found = compare_studies(pair[0], wider)
    assert found.only == (6, 4)
    assert [(m.values["layers"], sorted(m.first)) for m in found.matches] == [(12, [1, 2])] * 2


def test_other_seeds_are_compared_without_pairs(finished_study):
    sizes = {"layers": (6,), "blocks": (2, 6), "tokens": (4,), "failed": 0}
    found = compare_studies(finished_study("a", seeds=(1, 2), **sizes), finished_study("b", seeds=(3, 4, 5), **sizes))
    for match in found.matches:
        assert not match.paired
        assert match.change.mean == pytest.approx(fmean(match.second.values()) - fmean(match.first.values()))
    assert all("not paired" in line[1] for line in rows(found)[1][:-1])


def test_welch_is_students_interval_where_spreads_and_counts_are_equal():
    """There its degrees of freedom are 2 (n - 1), and the variances add: a formula by hand."""
    one, two = [1.0, 2.0, 3.0], [2.0, 3.0, 4.5 - 0.5]
    interval = welch(one, two)
    assert interval.mean == pytest.approx(1.0)
    assert interval.half == pytest.approx(2.776445 * math.sqrt((variance(one) + variance(two)) / 3), rel=1e-5)
    assert stdev(one) == stdev(two)
    assert welch([1.0], two).half is None


def test_studies_that_share_no_cell_are_refused(finished_study, pair):
    other = finished_study("other", layers=(24, 30), blocks=(2, 6), tokens=(4,), failed=0)
    with pytest.raises(DataError, match=r"share no cell: LM layers: 12, 6 against 24, 30"):
        compare_studies(pair[0], other)


def test_other_data_nothing_finished_and_no_study_are_refused(finished_study, pair, tmp_path):
    def other_data(record):
        record["meta_info"]["data"]["splits"] = {"test": {"rows": 3, "sha256": "ab"}}

    with pytest.raises(DataError, match="were measured on different data"):
        compare_studies(pair[0], changed(pair[1], other_data))
    failed = finished_study("failed", layers=(6,), blocks=(2,), tokens=(4,), seeds=(1,), failed=1)
    with pytest.raises(DataError, match="no cell of the study has finished"):
        compare_studies(pair[0], failed)
    with pytest.raises(RunError, match="no study there"):
        compare_studies(pair[0], tmp_path / "none")
    with pytest.raises(ConfigError, match="--metric maee: expected one of mae"):
        compare_studies(*pair, metric="maee")


def test_the_command(pair, tmp_path, capsys):
    output = tmp_path / "comparison.json"
    assert command.main(["compare", *map(str, pair), "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    assert "4 configurations are in both" in printed
    assert "+0.120 ± 0.025" in printed
    stored = json.loads(output.read_text())
    assert stored["overall"]["mean"] == pytest.approx(0.12)
    assert output.with_suffix(".md").read_text().startswith("# Two studies\n")
    with pytest.raises(ConfigError, match=r"comparison\.json exists"):
        command.main(["compare", *map(str, pair), "--output", str(output)])
