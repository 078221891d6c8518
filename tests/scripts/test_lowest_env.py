"""Mirrors ``scripts/lowest_env.py``; what it installs is tried by `make test-lowest`."""

from __future__ import annotations

import tomllib

import pytest

from scripts.lowest_env import TEST_TOOLS, bounds_of, lowest, lowest_tools


@pytest.fixture(scope="module")
def project(repository):
    return tomllib.loads((repository / "pyproject.toml").read_text())["project"]


def test_everything_that_all_brings_has_a_lowest_version(project):
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"]]
    for name in extras.keys() - {"all", "dev", "docs", "flash-attn", "asr", "faces", "lbp", "demo"}:
        wanted += extras[name]
    assert lowest(project).keys() == {requirement.partition(">=")[0] for requirement in wanted}


def test_a_bound_is_the_version_after_it_without_what_follows():
    assert bounds_of(["a>=1.2,<6", "b>=0.8", "c", "d-e>=6.0.1"]) == {"a": "1.2", "b": "0.8", "d-e": "6.0.1"}


def test_a_library_has_one_bound_whichever_extras_ask_for_it(project):
    asked = [*project["dependencies"], *(r for extra in project["optional-dependencies"].values() for r in extra)]
    bounds = [bounds_of([requirement]) for requirement in asked]
    for library in {name for bound in bounds for name in bound}:
        assert len({bound[library] for bound in bounds if library in bound}) == 1, library


def test_the_tests_run_with_the_lowest_tools(project):
    assert list(lowest_tools(project)) == list(TEST_TOOLS)


def test_make_takes_the_lowest_torch(project, repository):
    assert f"LOWEST_TORCH ?= {lowest(project)['torch']}" in (repository / "Makefile").read_text()
