"""Mirrors ``commands/cli.py`` and ``commands/configs.py``: one program for all commands."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from deepmlf_llm.commands import cli, configs
from deepmlf_llm.errors import ConfigError


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_is_a_module_with_a_main_of_argv(name):
    assert importlib.import_module(f"deepmlf_llm.commands.{name.replace('-', '_')}").main.__annotations__["argv"]


def test_help_names_every_command(capsys):
    assert cli.main(["--help"]) == cli.main([]) == 0
    assert all(f"  {name} " in capsys.readouterr().out for name in list(cli.COMMANDS)[:1])
    assert cli.main(["--version"]) == 0
    assert "deepmlf_llm 0." in capsys.readouterr().out


def test_a_misspelt_command_and_bad_input_are_one_line_and_code_2(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["trian"]) == 2
    assert (
        capsys.readouterr().err == "error: unknown command 'trian' (did you mean 'train'?); deepmlf --help lists them\n"
    )
    assert cli.main(["train", "--config", "mosi_smol"]) == 2
    assert "did you mean 'mosi_smollm2'" in capsys.readouterr().err


def test_configs_lists_prints_and_copies(capsys, tmp_path, repository, monkeypatch):
    monkeypatch.chdir(tmp_path)
    configs.main([])
    listed = capsys.readouterr().out
    assert [line.split()[0] for line in listed.splitlines()][-1] == "zero3_offload"
    assert "ZeRO-2 with offload to the CPU" in listed
    configs.main(["mosi"])
    assert capsys.readouterr().out == (repository / "recipes" / "configs" / "mosi.yaml").read_text()
    configs.main(["zero2", "--copy", "mine.json"])
    assert Path("mine.json").read_text() == (repository / "ds_configs" / "zero2.json").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["zero9"], "did you mean"),
        (["zero2", "--copy", "here.json"], "exists"),
        (["--copy", "x"], "needs the name"),
    ],
)
def test_configs_refuses(words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("here.json").write_text("mine")
    with pytest.raises(ConfigError, match=message):
        configs.main(words)
    assert Path("here.json").read_text() == "mine"
