"""Mirrors ``shipped.py``: settings found by path, by path in the repository, or by bare name."""

from __future__ import annotations

from pathlib import Path

import pytest

from deepmlf_llm import shipped
from deepmlf_llm.shipped import CONFIGS, DEEPSPEED, locate


def test_a_checkout_ships_what_lies_at_its_top(repository):
    assert set(shipped.names(DEEPSPEED)) == {path.stem for path in (repository / "ds_configs").glob("*.json")}
    assert shipped.names(CONFIGS)["scale/default"] == repository / "recipes" / "configs" / "scale" / "default.yaml"
    assert shipped.names(CONFIGS)["demo"] == repository / "recipes" / "configs" / "demo.yaml"


@pytest.mark.parametrize("given", ["zero2", "zero2.json", "ds_configs/zero2.json"])
def test_a_shipped_file_has_three_names(given, repository, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert locate(DEEPSPEED, given) == repository / "ds_configs" / "zero2.json"


def test_a_file_that_is_there_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("zero2").write_text("{}")
    assert locate(DEEPSPEED, "zero2") == Path("zero2")


def test_an_unknown_name_comes_back_and_is_hinted_at():
    assert locate(CONFIGS, "mosi_smol") == Path("mosi_smol")
    assert "did you mean 'mosi_smollm2'" in shipped.hint(CONFIGS, "mosi_smol")
    assert "scale/default" in shipped.hint(CONFIGS, "x")


def test_an_installed_package_reads_its_own_copy(tmp_path, monkeypatch):
    (tmp_path / "shipped_files" / DEEPSPEED).mkdir(parents=True)
    (tmp_path / "shipped_files" / DEEPSPEED / "zero9.json").write_text("{}")
    monkeypatch.setattr(shipped, "_PACKAGE", tmp_path)
    assert list(shipped.names(DEEPSPEED)) == ["zero9"]
