"""Mirrors ``deepmlf_llm/study/report.py``, ``report_tables.py``, ``blocks.py`` and ``html.py``."""

from __future__ import annotations

import hashlib
import html.parser
import json
import re
import shutil
import threading

import pytest

from deepmlf_llm.study import report
from deepmlf_llm.study.blocks import Code, Paragraph, Table, to_markdown
from deepmlf_llm.study.directory import STUDY, StudyDirectory
from deepmlf_llm.study.html import to_html
from deepmlf_llm.study.plots import Plot
from deepmlf_llm.study.report import report_blocks, write_report
from deepmlf_llm.study.report_tables import cell_table
from deepmlf_llm.study.results import read_all


def hashes(path) -> dict[str, str]:
    files = [p for p in path.rglob("*") if p.is_file() and "cells" not in p.parts]
    return {p.relative_to(path).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture
def written(reported_study):
    return reported_study


def test_the_same_results_give_the_same_bytes(written, tmp_path):
    before = hashes(written)
    assert {"report.md", "report.html", "results.parquet", "plots/mae-layers.svg", "plots/gates.svg"} <= set(before)
    shutil.copytree(written, tmp_path / "copy")
    write_report(StudyDirectory(tmp_path / "copy"))
    assert hashes(tmp_path / "copy") == before


def test_says_what_happened(written):
    text = (written / "report.md").read_text()
    for part in (
        "23 of 24 cells finished, 1 failed.",
        "the embedded set (real sentences, synthetic audio and vision), 1200 training utterances",
        "A note.",
        "## What changed, all else equal",
        "| LM layers | 6 to 12 | 3 | 2 | ",
        "| LM layers | 12 to 30 | 4 | 2 | ",
        "![Plot of test mae against LM layers](plots/mae-layers.svg)",
        "No curve is fitted",
        "| smollm2-135m-6l-even-2-n4-s2 | ",
        "## Failed cells",
        "| smollm2-135m-6l-even-2-n4-s1 | loss is nan \\| \\<b> |",
        "Left out: 3 cells, too deep.",
        "| packages torch | 2 |",
    ):
        assert part in text, part
    for target in re.findall(r"\]\(([^)]+)\)", text):
        assert (written / target).is_file(), target


def test_every_cell_is_in_a_table_without_times(finished_study):
    """So that a study that was interrupted ends with the same table."""

    def table(path) -> str:
        directory = StudyDirectory(path)
        return to_markdown(cell_table(read_all(directory, directory.planned()), ["layers"]))

    first, second = finished_study("first"), finished_study("second")
    for record_path in second.glob("cells/*/cell.json"):
        record = json.loads(record_path.read_text())
        record["train_info"]["seconds"], record["run_info"]["attempts"] = None, 3
        record_path.write_text(json.dumps(record))
    assert table(first) == table(second)
    assert table(first).count("\n| ") == 25  # the rule under the header, and 24 cells


class Page(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.links: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag, attributes) -> None:
        given = dict(attributes)
        self.tags.append(tag)
        self.sources += [given["src"]] if "src" in given else []
        self.links += [given["href"]] if "href" in given else []
        if tag == "img":
            assert given["alt"]
        if tag not in ("img", "meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag


def test_the_page_needs_nothing_else(written):
    text = (written / "report.html").read_text()
    page = Page()
    page.feed(text)
    assert page.open == []
    assert page.tags.count("img") == 8
    assert all(source.startswith("data:image/svg+xml;base64,") for source in page.sources)
    assert "script" not in page.tags
    assert "link" not in page.tags
    assert all((written / link).is_file() for link in page.links)
    assert "http" not in re.sub(r'base64,[^"]+', "", text)
    assert "A study &lt;of&gt; nothing | at *all*" in text


def test_seconds_of_two_kinds_of_machine_are_not_compared(finished_study):
    directory = StudyDirectory(finished_study())
    study, records = directory.read(), read_all(directory, directory.planned())

    def report() -> tuple[str, set[str]]:
        blocks = report_blocks(study, records)
        return to_markdown(blocks), {block.name for block in blocks if isinstance(block, Plot)}

    def runs_on(record, **machine) -> None:
        record["meta_info"]["environment"]["machine"] = {"cpus": 2, "memory_gb": 25, **machine}

    done = [record for record in records if record["status"] == "finished"]
    for record in done:
        runs_on(record, memory_gb=25 + (record is done[0]))
    text, plots = report()
    assert "mae-seconds" in plots
    assert "kinds of machine" not in text
    runs_on(done[0], cpu_flags=["avx2"])
    text, plots = report()
    assert "mae-seconds" not in plots
    assert "mae-flops" in plots
    assert text.lower().count("the cells ran on 2 kinds of machine") == 2
    fronts = text.partition("Pareto fronts, by means over seeds:")[2].partition("##")[0]
    assert "FLOPs of a training step" in fronts
    assert "seconds" not in fronts


def test_baselines_train_no_steps(finished_study, make_fitted):
    directory = StudyDirectory(finished_study(layers=(6,), blocks=(2,), tokens=(4,), failed=0))
    study, records = directory.read(), read_all(directory, directory.planned())
    text = to_markdown(report_blocks(study, [*records, make_fitted(records[0])])[:2])
    assert "1 of the cells fit a baseline; each other one trains 40 steps with one of 2 seeds (1, 2)" in text
    text = to_markdown(report_blocks(study, [make_fitted(records[0])])[:2])
    assert text.strip().endswith("All of them fit a baseline.")


def test_modalities_are_words_in_the_table_of_cells(finished_study):
    directory = StudyDirectory(finished_study(layers=(6,), blocks=(2,), tokens=(4,), failed=0))
    records = read_all(directory, directory.planned())
    for record, heard in zip(records, (["none"], ["audio", "vision"]), strict=True):
        record["run_info"]["values"]["modalities"] = heard
    (table,) = cell_table(records, ["modalities"])
    assert [row[1] for row in table.rows] == ["none", "audio + vision"]


def test_the_text_alone_has_its_row(reported_study):
    page = (reported_study / "report.md").read_text()
    assert page.count("The text alone: ") == 1
    table = page.split("The text alone: ")[1].split("\n\n")[1].splitlines()
    assert table[0].startswith("| base model | LM layers | test mae |")
    assert all("undefined" not in line.split("|")[3] for line in table[2:])


def test_an_unfinished_study_has_a_report_too(finished_study):
    path = finished_study(layers=(6,), blocks=(2,), tokens=(4,), failed=2)
    write_report(StudyDirectory(path))
    assert "0 of 2 cells finished, 2 failed." in (path / "report.md").read_text()
    study = json.loads((path / STUDY).read_text())
    assert len(report_blocks(study, [])) > 2


def test_one_seed_has_no_interval(finished_study):
    path = finished_study(layers=(6,), blocks=(2,), seeds=(1,), failed=0)
    write_report(StudyDirectory(path))
    text = (path / "report.md").read_text()
    assert "one seed: nothing can be said" in text
    assert "±" not in text.partition("## Results")[2].partition("## Every cell")[0]


def test_markdown_and_html_escape_what_is_not_theirs():
    blocks = [
        Paragraph("a *b* <i>c</i>"),
        Table(("a|b",), [["x\ny | z"], ["k_1"]]),
        Code("log", ["```", "<b>"]),
    ]
    text = to_markdown(blocks)
    assert "a \\*b\\* \\<i>c\\</i>" in text
    assert "| a\\|b |" in text
    assert "| x y \\| z |" in text
    assert "| k\\_1 |" in text
    assert "````text\n```\n<b>\n````" in text
    page = to_html(blocks, "<t>")
    assert "<title>&lt;t&gt;</title>" in page
    assert "<pre>```\n&lt;b&gt;</pre>" in page


def test_reports_written_at_once_do_not_disturb_each_other(finished_study, monkeypatch):
    """Nor does one that has another plot: what it no longer has is gone."""
    directory = StudyDirectory(finished_study(layers=(6,), tokens=(4,)))
    drawn = [Plot(name, "alt", "caption", name.encode()) for name in ("a", "b")]
    monkeypatch.setattr(report, "report_blocks", lambda *_: drawn)
    monkeypatch.setattr(report, "summary_blocks", lambda *_: [])
    wrong: list[BaseException] = []
    together = threading.Barrier(3)

    def write() -> None:
        together.wait()
        try:
            for _ in range(15):
                write_report(directory)
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=write) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert not [path for path in directory.path.rglob(".*") if path.is_file() or path.is_dir()]
    assert sorted(path.name for path in (directory.path / "plots").iterdir()) == ["a.svg", "b.svg"]
    del drawn[0]
    write_report(directory)
    assert [path.read_bytes() for path in (directory.path / "plots").iterdir()] == [b"b"]
