"""Mirrors ``deepmlf_llm/statistics/comparing.py``, ``comparison_report.py`` and ``commands/compare.py``."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from deepmlf_llm.commands import compare as command
from deepmlf_llm.errors import ConfigError, DataError
from deepmlf_llm.statistics.comparing import Entry, compare, holm, open_entry
from deepmlf_llm.statistics.comparison_report import to_markdown
from deepmlf_llm.statistics.predictions import write_predictions


def entry(name, *runs):
    return Entry(name, [f"seed-{i}" for i in range(len(runs))], runs)


def test_a_better_run_is_shown_and_an_equal_one_is_not(made):
    found = compare([entry("a", made(1, 1.0)), entry("b", made(2, 0.3)), entry("c", made(3, 1.0))], resamples=2000)
    assert found.comparisons == len(found.differences) == 2 * 9
    by_name = {(d.other, d.metric): d for d in found.differences}
    assert by_name["b", "mae"].reading == "better"
    assert by_name["b", "corr"].reading == "better"
    assert by_name["c", "mae"].reading == "no difference is shown"
    swapped = compare([entry("b", made(2, 0.3)), entry("a", made(1, 1.0))], resamples=2000)
    assert swapped.differences[0].reading == "worse"
    assert swapped.differences[0].difference == pytest.approx(-by_name["b", "mae"].difference)
    assert swapped.differences[0].interval == pytest.approx([-x for x in by_name["b", "mae"].interval[::-1]], abs=0.03)


def test_the_interval_of_a_difference_is_that_of_paired_utterances(made):
    a, b = made(1, 1.0), made(2, 0.9)
    found = compare([entry("a", a), entry("b", b)], resamples=20_000).differences[0]
    changes = np.abs(b.head() - b.labels) - np.abs(a.head() - a.labels)
    theirs = stats.bootstrap(
        (changes,), np.mean, n_resamples=20_000, method="percentile", random_state=np.random.default_rng(1)
    )
    assert found.difference == pytest.approx(changes.mean(), abs=1e-6)
    assert found.interval == pytest.approx(theirs.confidence_interval, abs=5e-3)


def test_several_seeds_have_mean_deviation_best_and_worst(made):
    runs = [made(seed, 0.5 + 0.2 * seed) for seed in range(3)]
    maes = [np.abs(run.head() - run.labels).mean() for run in runs]
    row, text = compare([entry("a", *runs)], resamples=200).rows
    mae = row.metrics["mae"]
    assert (mae.mean, mae.deviation) == pytest.approx((np.mean(maes), np.std(maes, ddof=1)), abs=1e-6)
    assert (mae.best, mae.worst) == pytest.approx((min(maes), max(maes)), abs=1e-6)
    assert row.metrics["corr"].best > row.metrics["corr"].worst
    assert (row.head, text.head, text.runs) == ("polarity", "text_polarity", 3)
    assert text.metrics["mae"].mean > 1


def test_seeds_are_paired_only_where_they_are_the_same(made):
    a, b = entry("a", made(1), made(2)), entry("b", made(3), made(4))
    assert compare([a, b], resamples=100).differences[0].seeds_paired
    assert not compare([a, replace(b, seeds=["seed-0", "seed-7"])], resamples=100).differences[0].seeds_paired
    assert not compare([a, entry("c", made(5))], resamples=100).differences[0].seeds_paired


def test_utterances_in_another_order_are_the_same_ones(made):
    a, b = made(1), made(2)
    order = np.random.default_rng(0).permutation(len(b.ids))
    heads = {name: values[order] for name, values in b.heads.items()}
    mixed = replace(b, ids=[b.ids[i] for i in order], labels=b.labels[order], heads=heads)
    straight = compare([entry("a", a), entry("b", b)], resamples=100)
    assert compare([entry("a", a), entry("b", mixed)], resamples=100).differences == straight.differences


def test_other_utterances_labels_and_rules_are_refused_by_name(made):
    a, b = made(1), made(2)
    labels = b.labels.copy()
    labels[5] += 1
    ids = [*b.ids[:-1], "clip x"]
    entries = [
        entry("a", a),
        entry("b", replace(b, ids=ids)),
        entry("c", b, replace(b, labels=labels)),
        entry("d", replace(b, dataset="mosei")),
    ]
    with pytest.raises(DataError) as caught:
        compare(entries)
    for words in (
        "cannot be compared with a: b: other utterances (1 missing: 'clip 79'; 1 more: 'clip x')",
        f"c (seed-1): 1 other labels (that of 'clip 5' is {labels[5]}, not {b.labels[5]})",
        "d: labels of 'mosei', not of 'mosi'",
    ):
        assert words in str(caught.value)


def test_each_metric_may_be_adjusted_by_itself(made):
    entries = [entry(name, made(seed, 0.5 + 0.1 * seed)) for seed, name in enumerate("abc")]
    together, apart = (compare(entries, resamples=300, by_metric=by_metric) for by_metric in (False, True))
    assert [d.p for d in apart.differences] == [d.p for d in together.differences]
    for metric in {d.metric for d in apart.differences}:
        mine = [d for d in apart.differences if d.metric == metric]
        assert [d.p_adjusted for d in mine] == holm([d.p for d in mine])
    assert [d.p_adjusted for d in together.differences] == holm([d.p for d in together.differences])


def test_holm_is_the_published_procedure():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])  # as R's p.adjust says
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_an_argument_is_a_run_seeds_a_file_or_several(made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for place in ("run", "many/seed-2", "many/seed-10", "cut/seed-0"):
        (tmp_path / place).mkdir(parents=True)
        write_predictions(tmp_path / place / "predictions.parquet", [made(1, split="valid"), made(2)])
    write_predictions(tmp_path / "one.parquet", [made(3, split="valid")])
    assert open_entry("run").seeds == ["run"]
    assert open_entry("many").seeds == ["seed-2", "seed-10"]
    assert open_entry("run,one.parquet", "valid").seeds == ["run", "one"]
    assert open_entry("one.parquet").runs[0].split == "valid"
    (tmp_path / "cut" / "seed-1").mkdir()
    (tmp_path / "empty").mkdir()
    for name, words in (("cut", "in seed-1"), ("empty", "neither predictions.parquet nor seed-"), ("gone", "no such")):
        with pytest.raises(DataError, match=words):
            open_entry(name)


def test_the_command_prints_and_writes(made, tmp_path, capsys):
    files = [str(tmp_path / f"{name}.parquet") for name in "ab"]
    for seed, file in enumerate(files):
        write_predictions(tmp_path / file, [made(seed)])
    output = tmp_path / "found.json"
    words = [*files, "--resamples", "300", "--output", str(output)]
    command.main(words)
    printed = capsys.readouterr().out
    assert "9 comparisons" in printed
    assert "300 resamples are too few" in printed
    assert "no difference is shown" in printed
    found = json.loads(output.read_text())
    assert (found["comparisons"], found["adjustment"], len(found["differences"])) == (9, "Holm", 9)
    assert found["bootstrap"]["resamples"] == 300
    page = (tmp_path / "found.md").read_text()
    assert page.count("| mae |") == 2
    assert "text alone" in page
    for bad, message in (
        (words, "found.json exists"),
        ([*files, "--resamples", "3"], "--resamples=3"),
        ([*files, "--seed", "-1"], "--seed=-1"),
    ):
        with pytest.raises(ConfigError, match=message):
            command.main(bad)
    command.main([*files, "--resamples", "100", "--head", "text_polarity"])
    with pytest.raises(DataError, match="no head 'smell'"):
        command.main([*files, "--head", "smell"])


def test_names_are_no_markup(made):
    page = to_markdown(compare([entry("a|b", made(1)), entry("*c*", made(2))], resamples=100))
    assert "| `a\\|b` |" in page
    assert "| `*c*` |" in page
