from __future__ import annotations

import argparse
import errno
import sys

import pytest

from deepmlf_llm.commands.shell import RecipeParser, device, key_value, one_of, print_metrics, print_table, run_recipe
from deepmlf_llm.errors import DataError


def raising(error):
    def main():
        raise error

    return main


def test_bad_input_is_one_line_and_code_2(capsys):
    assert run_recipe(raising(DataError("x.pkl: damaged\n  (twice)"))) == 2
    assert capsys.readouterr() == ("", "error: x.pkl: damaged (twice)\n")


def test_other_ends():
    assert run_recipe(lambda: None) == 0
    assert run_recipe(lambda: 3) == 3
    assert run_recipe(raising(KeyboardInterrupt())) == 130
    with pytest.raises(ZeroDivisionError):  # a defect keeps its traceback
        run_recipe(lambda: 1 // 0)


@pytest.fixture
def parser() -> RecipeParser:
    parser = RecipeParser(prog="recipe.py")
    parser.add_argument("--source", required=True)
    parser.add_argument("--dataset", type=one_of("mosi", "sims"), default="mosi", help="whose rules")
    parser.add_argument("--rate", type=key_value, nargs="*", default=[])
    return parser


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sorce", "x"], "unknown option --sorce (did you mean '--source'?); --help lists them"),
        (["--source=x", "--datasets=mosi"], "unknown option --datasets (did you mean '--dataset'?); --help lists them"),
        (["--sour", "x"], "unknown option --sour (did you mean '--source'?); --help lists them"),
        (["--source", "x", "y"], "unrecognized arguments: y"),
        ([], "the following arguments are required: --source"),
        (
            ["--source", "x", "--dataset", "mosy"],
            "argument --dataset: 'mosy' is none of mosi, sims (did you mean 'mosi'?)",
        ),
        (["--source", "x", "--rate", "5"], "argument --rate: '5': expected name=value"),
    ],
)
def test_bad_arguments_are_one_line_and_code_2(parser, capsys, arguments, message):
    with pytest.raises(SystemExit) as caught:
        parser.parse_args(arguments)
    assert caught.value.code == 2
    assert capsys.readouterr() == ("", f"error: {message}\n")


def test_good_arguments(parser, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["recipe.py", "--source=--x", "--rate", "audio=5", "a=b=c"])
    args = parser.parse_args()
    assert args.source == "--x"
    assert args.rate == [("audio", "5"), ("a", "b=c")]
    assert parser.parse_args(["--source", "-1"]).source == "-1"


def test_help_shows_defaults(parser, capsys):
    with pytest.raises(SystemExit) as caught:
        parser.parse_args(["--help"])
    assert caught.value.code == 0
    assert "whose rules (default: mosi)" in capsys.readouterr().out


def test_a_device_is_there_or_refused(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert device("cpu") == "cpu"
    with pytest.raises(argparse.ArgumentTypeError, match="sees no GPU here"):
        device("cuda")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert device("cuda") == "cuda"


def test_table(capsys):
    print_table("Result", [("mae", 0.75), ("x [in file]", "a longer cell")], ["metric", "value"])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["Result"]
    for words in (["metric", "value"], ["mae", "0.75"], ["x", "[in", "file]", "a", "longer", "cell"]):
        assert words in lines
    print_table("Empty", [])


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "runs/x"), "runs/x: cannot be used: the disk is full"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "n" * 300), "nnn: cannot be used: its name is too long"),
        (PermissionError(errno.EACCES, "Permission denied", "a/b"), "a/b: cannot be used: no permission"),
        (RuntimeError("PytorchStreamWriter failed writing file"), "cannot be used: the disk took only a part of it"),
    ],
)
def test_what_the_machine_refuses_is_one_line_wherever_it_comes_up(capsys, error, said):
    def main() -> None:
        raise error

    assert run_recipe(main) == 2
    printed = capsys.readouterr().err
    assert said in printed
    assert printed.count("\n") == 1


def test_a_defect_of_ours_keeps_its_traceback():
    def main() -> None:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", "x")

    with pytest.raises(FileNotFoundError):
        run_recipe(main)


def test_what_a_file_brings_in_cannot_steer_the_terminal(capsys):
    def main() -> None:
        raise DataError("row \x1b[31m1\x07\n\u202e: " + "x" * 100_000)

    assert run_recipe(main) == 2
    printed = capsys.readouterr().err
    assert len(printed) < 5000
    assert printed.startswith("error: row \ufffd[31m1\ufffd \ufffd: xxx")
    assert printed.endswith("characters)\n")


def test_metrics_are_a_row_a_split_and_never_folded(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    print_metrics("Best", {"valid": {"mae": 0.5, "acc2_non0": 0.25}, "test": {"mae": 1.0, "corr": float("nan")}})
    title, header, *rows = capsys.readouterr().out.splitlines()
    assert title == "Best"
    assert header.split() == ["split", "mae", "acc2_non0", "corr"]
    assert [row.split() for row in rows] == [
        ["valid", "0.5000", "0.2500", "undefined"],
        ["test", "1.0000", "undefined", "undefined"],
    ]


def test_every_parser_takes_verbose(parser):
    assert parser.parse_args(["--source", "x", "--verbose"]).verbose
    assert not parser.parse_args(["--source", "x"]).verbose
