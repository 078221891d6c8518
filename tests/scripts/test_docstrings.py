"""Mirrors ``scripts/docstrings.py``, and the pages that `make docs` makes a site of."""

from __future__ import annotations

import re

import pytest

import deepmlf_llm

pytest.importorskip("griffe", reason="needs the tools of the documentation")
from scripts.docstrings import as_markdown, help_and_default


def test_roles_become_links_where_their_target_has_a_page():
    found = as_markdown("Raises :class:`DataError`; see :func:`~deepmlf_llm.files.hash_file`.", "deepmlf_llm.errors")
    assert '<autoref optional identifier="deepmlf_llm.errors.DataError"><code>DataError</code></autoref>' in found
    assert '<autoref optional identifier="deepmlf_llm.files.hash_file"><code>hash_file</code></autoref>' in found


def test_shapes_are_no_reference_links():
    assert as_markdown("x [b, t] [n], `y[0][1]`, ``z[2][3]``", "m") == "x [b, t] \\[n], `y[0][1]`, ``z[2][3]``"


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ("setting('n, tokens', integer(1, 2), 8)", ("n, tokens", "8")),
        ("setting('the losses', None, factory=Objective)", ("the losses", None)),
        ("field(default=1)", None),
        ("3", None),
        ("None", None),
    ],
)
def test_the_help_of_a_setting_is_its_docstring(field, expected):
    assert help_and_default(field) == expected


@pytest.fixture
def api(repository):
    return repository / "docs" / "api"


def test_every_room_has_a_page(api, repository):
    rooms = {path.parent.name for path in (repository / "deepmlf_llm").glob("*/__init__.py")}
    assert {path.stem for path in api.glob("*.md")} == rooms | {"index", "ground"}
    for room in rooms:
        assert f"::: deepmlf_llm.{room}\n" in (api / f"{room}.md").read_text()


def test_the_ground_floor_is_shown(api, repository):
    shown = re.findall(r"^::: deepmlf_llm\.(\w+)$", (api / "ground.md").read_text(), re.MULTILINE)
    assert {"__init__", *shown} == {path.stem for path in (repository / "deepmlf_llm").glob("*.py")}


def test_every_public_name_is_shown(api):
    shown = re.findall(r"^::: deepmlf_llm\.\w+\.(\w+)$", (api / "index.md").read_text(), re.MULTILINE)
    assert sorted([*shown, "__version__"]) == sorted(deepmlf_llm.__all__)


def test_nothing_comes_from_a_network(repository):
    settings = (repository / "mkdocs.yml").read_text()
    assert "font: false" in settings
    assert "://" not in settings
