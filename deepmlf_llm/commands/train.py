"""Trains a DeepMLF adapter on a LLaMA-class decoder (any supported family), or goes on with the run that was cut.

    deepmlf train [--config FILE] [--key value ...]
    torchrun --nproc_per_node 2 --module deepmlf_llm.commands.train [...]
    deepspeed --module deepmlf_llm.commands.train --ds zero2 [...]

With no options: the embedded data set with the shipped settings `demo`. The same command again goes on with a run
that was cut, or says that it is finished. With --seeds 0-4 it trains with each of these seeds, one after another, and
prints what they come to. With --plan nothing is trained: it says what memory and time the run will take, as
`deepmlf plan` does, with the lengths of its data.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from deepmlf_llm.commands.screen import VERBOSE, log_beside
from deepmlf_llm.commands.shell import print_metrics, run_recipe
from deepmlf_llm.errors import ConfigError
from deepmlf_llm.training.launch import detect, errors_reported_once

if TYPE_CHECKING:
    from deepmlf_llm.training.settings import RunSettings

DEMO = "demo"
DRY_RUN, TRUST_RUN = {"--dry-run", "--dry_run"}, {"--trust-run", "--trust_run"}
SEEDS, RESUME, PLAN = "--seeds", "--resume", "--plan"
FAULT, WORLD = "--simulate_fault", "--world"
LARGEST_WORLD = 4096


def main(argv: Sequence[str] | None = None) -> None:
    from deepmlf_llm.training.command_line import help_text, parse_settings

    argv = sys.argv[1:] if argv is None else list(argv)
    if {"-h", "--help"} & set(argv):
        print(help_text(__doc__ or ""))
        return
    if PLAN in argv:
        from deepmlf_llm.commands.plan import plan_of_run

        print(plan_of_run([word for word in argv if word != PLAN], DEMO))
        return
    dry_run, trust_run = bool(DRY_RUN & set(argv)), bool(TRUST_RUN & set(argv))
    argv = [word for word in argv if word not in {*DRY_RUN, *TRUST_RUN, VERBOSE}]
    with errors_reported_once():
        argv, seeds = take_seeds(argv)
        argv, resume = take_option(argv, RESUME, "auto, never or a checkpoint's directory")
        argv, faults = take_option(argv, FAULT, "faults such as kill:rank1:step12")
        argv, world = take_option(argv, WORLD, "a number of processes")
        settings = parse_settings(argv, default_config=DEMO)
        if seeds is not None:
            given = {RESUME: None if resume == "auto" else resume, FAULT: faults, WORLD: world}
            if refused := [f"{name} {value}" for name, value in given.items() if value is not None]:
                raise ConfigError(f"{SEEDS} with {', '.join(refused)}: of one run alone; leave it out")
            train_seeds(settings, seeds, dry_run, trust_run)
            return
        from deepmlf_llm.training.run import run_training

        result = run_training(
            settings,
            dry_run=dry_run,
            opened=log_beside,
            trust_run=trust_run,
            resume=resume or "auto",
            faults=faults,
            world=parse_world(world),
        )
    if detect().is_main and not dry_run:
        metrics = result["metrics"]
        print_metrics("", {"valid": metrics["validation"], "test": metrics["test"]}, "best by validation")


def parse_world(text: str | None) -> int | None:
    """Of ``--world N``.

    Raises:
        ConfigError: no such number.
    """
    if text is None:
        return None
    if not text.isdecimal() or not 1 <= int(text) <= LARGEST_WORLD:
        raise ConfigError(f"{WORLD} {text}: expected a number of processes, 1 to {LARGEST_WORLD}")
    return int(text)


def take_option(argv: list[str], name: str, expected: str) -> tuple[list[str], str | None]:
    """The command line without ``NAME VALUE`` or ``NAME=VALUE``, and the value; None without it. The last one counts.

    Raises:
        ConfigError: no value.
    """
    rest, value, words = [], None, list(argv)
    while words:
        word = words.pop(0)
        given, equals, text = word.partition("=")
        if given != name:
            rest.append(word)
            continue
        if not equals:
            text = words.pop(0) if words and not words[0].startswith("--") else ""
        if not text:
            raise ConfigError(f"{name}: expected {expected}")
        value = text
    return rest, value


def take_seeds(argv: list[str]) -> tuple[list[str], list[int] | None]:
    """The command line without ``--seeds LIST``, and those seeds; None without it.

    Raises:
        ConfigError: no list of seeds, or ``--seed`` beside it.
    """
    given = [word.partition("=")[0] for word in argv]
    if SEEDS not in given:
        return argv, None
    from deepmlf_llm.training.seeds import parse_seeds

    if "--seed" in given or given.count(SEEDS) > 1:
        raise ConfigError(f"{SEEDS}: give the seeds once, and no --seed beside them")
    at = given.index(SEEDS)
    _, equals, text = argv[at].partition("=")
    end = at + 1 if equals else at + 2
    if not equals:
        text = "" if end > len(argv) or argv[at + 1].startswith("--") else argv[at + 1]
    return [*argv[:at], *argv[end:]], parse_seeds(text)


def train_seeds(settings: RunSettings, seeds: list[int], dry_run: bool, trust_run: bool) -> None:
    """Several seeds, and their table."""
    from deepmlf_llm.training.seeds import run_seeds
    from deepmlf_llm.training.summary import table

    summary = run_seeds(settings, seeds, dry_run=dry_run, opened=log_beside, trust_run=trust_run)
    if not dry_run:
        print(table(summary), end="")


if __name__ == "__main__":
    raise SystemExit(run_recipe(main))
