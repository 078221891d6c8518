"""What every recipe shares: one line on bad input, unknown keys with the nearest match, tables."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from deepmlf_llm.commands.screen import VERBOSE, VERBOSE_HELP, quiet_screen
from deepmlf_llm.errors import DeepMLFError, suggest
from deepmlf_llm.write_errors import NEVER_OURS, error_number, explain

BAD_INPUT = 2
LONGEST_LINE = 4000
INTERRUPTED = 130


def run_recipe(main: Callable[[], int | None]) -> int:
    """Runs a recipe's ``main`` and returns the exit code: ``raise SystemExit(run_recipe(main))``.

    A :class:`DeepMLFError` becomes one line on stderr and code 2, and so does a full or failing disk, a missing
    permission or a name too long, wherever it comes up; any other exception is a defect and keeps its traceback. Other
    libraries' lines go to a log, see :mod:`deepmlf_llm.commands.screen`.
    """
    code = BAD_INPUT
    with quiet_screen(Path(sys.argv[0]).stem, verbose=VERBOSE in sys.argv[1:]):
        try:
            return main() or 0
        except DeepMLFError as error:
            message, code = str(error), error.exit_code
        except Exception as error:
            if error_number(error) not in NEVER_OURS:
                raise
            message = str(explain(error, Path(str(getattr(error, "filename", None) or ".")), done="used"))
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return INTERRUPTED
    print(f"error: {one_line(message)}", file=sys.stderr)
    return code


def program(command: str) -> str:
    """What ``--help`` calls a command: the recipe that was started, or ``deepmlf COMMAND``."""
    started = Path(sys.argv[0])
    return started.name if started.suffix == ".py" and started.stem != "__main__" else f"deepmlf {command}"


def one_line(message: str) -> str:
    """A message as a terminal may show it: one line, without control sequences that a file brought in, not endless."""
    line = "".join(sign if sign.isprintable() else "\ufffd" for sign in " ".join(message.split()))
    return line if len(line) <= LONGEST_LINE else f"{line[:LONGEST_LINE]} ... ({len(line)} characters)"


class RecipeParser(argparse.ArgumentParser):
    """An argument parser that shows defaults, abbreviates nothing, and reports errors as one line with code 2."""

    def __init__(self, **settings: Any) -> None:
        settings.setdefault("formatter_class", argparse.ArgumentDefaultsHelpFormatter)
        super().__init__(**{"allow_abbrev": False, **settings})
        self.add_argument(VERBOSE, action="store_true", help=VERBOSE_HELP)

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """Parses; unknown options are looked for first, so that a misspelt one is not reported as a missing one."""
        args = sys.argv[1:] if args is None else list(args)
        for token in args:
            if token == "--":
                break
            name = token.partition("=")[0]
            if name.startswith("--") and name not in self._option_string_actions:
                self.error(f"unknown option {name}{suggest(name, self._option_string_actions)}; --help lists them")
        return super().parse_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_INPUT, f"error: {message}\n")


def one_of(*names: str) -> Callable[[str], str]:
    """An argparse ``type`` for a choice whose error names the nearest match."""

    def choice(text: str) -> str:
        if text not in names:
            raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(names)}{suggest(text, names)}")
        return text

    return choice


def key_value(text: str) -> tuple[str, str]:
    """An argparse ``type`` for ``name=value``."""
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise argparse.ArgumentTypeError(f"{text!r}: expected name=value")
    return name, value


def count(text: str) -> int:
    """An argparse ``type`` for a number of things, 1 at least."""
    if not (text.isascii() and text.isdigit() and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number, 1 at least")
    return int(text)


def device(text: str) -> str:
    """An argparse ``type`` for ``cpu`` or ``cuda``, which must be there."""
    if one_of("cpu", "cuda")(text) == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise argparse.ArgumentTypeError("'cuda': PyTorch sees no GPU here")
    return text


def add_rename(parser: RecipeParser, text: str) -> None:
    """The option ``--rename KEY=NAME ...``; ``text`` is its help."""
    parser.add_argument("--rename", type=key_value, nargs="+", default=[], metavar="KEY=NAME", help=text)


def print_table(title: str, rows: Sequence[Sequence[Any]], columns: Sequence[str] = ()) -> None:
    """Prints a table on stdout."""
    from rich.console import Console
    from rich.table import Table

    cells = [[str(cell) for cell in row] for row in rows]
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, show_header=bool(columns))
    for index in range(max(map(len, [columns, *cells]))):
        table.add_column(columns[index] if index < len(columns) else "", overflow="fold")
    for line in cells:
        table.add_row(*[cell.replace("[", "\\[") for cell in line])
    Console(soft_wrap=not sys.stdout.isatty()).print(table)


def print_metrics(title: str, splits: Mapping[str, Mapping[str, float | None]], what: str = "split") -> None:
    """Prints a row of metrics for each split (or ``what`` they are of); what is undefined says so. An empty title takes
    no line."""
    names = list(dict.fromkeys(name for metrics in splits.values() for name in metrics))
    lines = [[what, *names]]
    lines += [[split, *(_shown(metrics.get(name)) for name in names)] for split, metrics in splits.items()]
    print_columns(title, lines)


def print_columns(title: str, rows: Sequence[Sequence[Any]]) -> None:
    """Prints rows in plain columns that are never folded."""
    lines = [[one_line(str(cell)) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    if title:
        print(title)
    for line in lines:
        print(" ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _shown(value: Any) -> str:
    if isinstance(value, int):
        return str(value)
    return "undefined" if value is None or value != value else f"{value:.4f}"
