"""Mirrors ``__init__.py``: the front door is cheap to open and leads to every room that it names."""

from __future__ import annotations

import subprocess
import sys
import tomllib

import pytest

import deepmlf_llm

# What a program pays before it has asked for anything.
IMPORT_SECONDS = 0.25


def test_import_is_cheap_and_loads_no_library():
    code = (
        "import sys, time; before = set(sys.modules); start = time.perf_counter(); import deepmlf_llm; "
        "print(time.perf_counter() - start); print(*sorted(set(sys.modules) - before))"
    )
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(3)]
    seconds, modules = zip(*(run.stdout.splitlines() for run in runs), strict=True)
    assert min(map(float, seconds)) < IMPORT_SECONDS
    heavy = {"numpy", "scipy", "sklearn", "torch", "transformers", "peft", "datasets", "deepspeed", "matplotlib"}
    assert not heavy & set(modules[0].split())


@pytest.mark.parametrize("name", deepmlf_llm.__all__)
def test_every_public_name_resolves(name):
    value = getattr(deepmlf_llm, name)
    assert value is getattr(deepmlf_llm, name)
    assert name in dir(deepmlf_llm)


def test_rooms_and_public_names_agree():
    assert set(deepmlf_llm.__all__) == {*deepmlf_llm._ROOMS, "__version__"}


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'deepmlf_llm' has no attribute 'DeepMLF'"):
        deepmlf_llm.DeepMLF  # noqa: B018


def test_project_metadata_says_where_things_are(repository):
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    assert project["license"] == "Apache-2.0"
    for name in (project["readme"], *project["license-files"], "deepmlf_llm/py.typed"):
        assert (repository / name).is_file()
