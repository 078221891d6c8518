"""Mirrors ``scripts/lowest_env.py``; what it installs is tried by `make test-lowest`."""

from __future__ import annotations

import tomllib

from scripts.lowest_env import TEST_TOOLS, requirements


def test_every_extra_is_asked_for_by_name(repository):
    project = (repository / "pyproject.toml").read_text()
    itself, tools = requirements(project)
    extras = tomllib.loads(project)["project"]["optional-dependencies"]
    named = set(itself.strip("[]").split(","))
    assert named == extras.keys() - {"all", "dev", "docs", "flash-attn"}
    assert [tool.partition(">")[0] for tool in tools] == list(TEST_TOOLS)


def test_every_bound_is_a_lowest_version(repository):
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *(
            r
            for name in ("data", "quant", "study", "tensorboard", "train")
            for r in project["optional-dependencies"][name]
        ),
    ]
    assert all(">=" in requirement for requirement in wanted)
    (torch,) = (requirement for requirement in wanted if requirement.startswith("torch>="))
    assert f"LOWEST_TORCH ?= {torch.removeprefix('torch>=')}" in (repository / "Makefile").read_text()
