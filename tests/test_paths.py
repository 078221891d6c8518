"""Mirrors ``paths.py``."""

from __future__ import annotations

from pathlib import Path

from deepmlf_llm import paths


def test_cache_lies_in_the_home_unless_the_variable_names_another(monkeypatch, tmp_path):
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.delenv("DEEPMLF_CACHE")
    assert paths.cache_dir() == tmp_path / ".cache" / "deepmlf_llm"
    monkeypatch.setenv("DEEPMLF_CACHE", str(tmp_path / "elsewhere"))
    assert paths.cache_dir() == tmp_path / "elsewhere"
    monkeypatch.setenv("DEEPMLF_CACHE", "")
    assert paths.cache_dir() == tmp_path / ".cache" / "deepmlf_llm"


def test_relative_cache_does_not_move_with_the_working_directory(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DEEPMLF_CACHE", "here")
    assert paths.cache_dir() == tmp_path.resolve() / "here"


def test_rooms_of_the_cache(isolated_cache):
    assert paths.cache_dir() == isolated_cache.resolve()
    assert {paths.downloads_dir().parent, paths.base_models_dir().parent} == {paths.cache_dir()}
    assert paths.downloads_dir() != paths.base_models_dir()


def test_messages_show_short_paths(monkeypatch, tmp_path):
    home, work = tmp_path / "home", tmp_path / "work"
    work.mkdir()
    monkeypatch.setattr(Path, "home", lambda: home)
    monkeypatch.chdir(work)
    assert paths.shown(work / "runs" / "a") == "runs/a"
    assert paths.shown(Path("runs")) == "runs"
    assert paths.shown(home / ".cache") == "~/.cache"
    assert paths.shown(tmp_path / "other") == str(tmp_path / "other")
