"""The files around the code say what is so: citation, changelog, hooks, workflow."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import deepmlf_llm

REPOSITORY = Path(__file__).resolve().parent.parent
MAKEFILE = (REPOSITORY / "Makefile").read_text()
TARGETS = set(re.findall(r"^([a-z][a-z-]*):", MAKEFILE, re.MULTILINE))


def read(name: str) -> Any:
    return yaml.safe_load((REPOSITORY / name).read_text())


def test_the_citation_is_of_this_version_and_of_the_paper():
    citation = read("CITATION.cff")
    assert citation["version"] == deepmlf_llm.__version__
    assert citation["license"] == "Apache-2.0"
    (paper,) = citation["references"]
    assert [author["family-names"] for author in paper["authors"]] == [
        "Georgiou",
        "Katsouros",
        "Avrithis",
        "Potamianos",
    ]
    assert paper["identifiers"][0]["value"] == "arXiv:2504.11082"


def test_the_changelog_has_the_form_that_it_names():
    lines = (REPOSITORY / "CHANGELOG.md").read_text().splitlines()
    versions = [line for line in lines if line.startswith("## ")]
    assert versions[0] == "## [Unreleased]"
    assert any(line.startswith(f"## [{deepmlf_llm.__version__}]") for line in versions)
    kinds = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    unreleased = lines[lines.index(versions[0]) : lines.index(versions[1])]
    headings = [line.removeprefix("### ") for line in unreleased if line.startswith("### ")]
    assert set(headings) <= kinds


def test_hooks_run_what_lint_runs_and_fetch_nothing():
    (local,) = read(".pre-commit-config.yaml")["repos"]
    assert local["repo"] == "local"
    checks = re.search(r"^CHECKS := (.*)$", MAKEFILE, re.MULTILINE)
    assert checks is not None
    assert [hook["entry"].split()[-1] for hook in local["hooks"]] == checks[1].split()
    assert set(checks[1].split()) <= TARGETS
    assert {hook["language"] for hook in local["hooks"]} == {"system"}


@pytest.mark.parametrize("job", ["lint", "tests", "wheel"])
def test_the_workflow_runs_targets_that_are_there(job):
    steps = read(".github/workflows/ci.yml")["jobs"][job]
    targets = {entry["target"] for entry in steps.get("strategy", {}).get("matrix", {}).get("include", [])}
    for step in steps["steps"]:
        targets |= set(re.findall(r"\bmake ([a-z-]+)", step.get("run", "")))
    assert targets <= TARGETS
    assert targets or job == "wheel"


def test_help_lists_every_target_for_people():
    listed = set(re.findall(r"^([a-z-]+):.*## ", MAKEFILE, re.MULTILINE))
    assert TARGETS - listed == {target for target in TARGETS if target.startswith("check-")}
