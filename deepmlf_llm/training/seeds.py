"""One recipe with several seeds: runs that follow one another in this process, and a summary of them.

Each is a run like any other, in a directory of its own, and ends with the very files that it would have made alone. The
base model is loaded once and reads each text once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from deepmlf_llm.errors import ConfigError, RunError
from deepmlf_llm.paths import shown
from deepmlf_llm.training.assemble import resolve_base_model
from deepmlf_llm.training.data import TrainingData, load_data
from deepmlf_llm.training.launch import detect, say
from deepmlf_llm.training.place import RUNS, default_name
from deepmlf_llm.training.run import run_training
from deepmlf_llm.training.run_directory import FACTS
from deepmlf_llm.training.settings import RunSettings
from deepmlf_llm.training.shared_base import SharedBase
from deepmlf_llm.training.summary import summarise, write_summary

MOST = 1000  # seeds; more are a typing error
LARGEST = 2**32 - 1  # that numpy takes
_PART = re.compile(r"(\d{1,10})(?:-(\d{1,10}))?")


def parse_seeds(text: str) -> list[int]:
    """Seeds from ``"0-4"``, ``"0,1,2"`` or ``"0-2,7"``, in the order given.

    Raises:
        ConfigError: no such list, a seed twice, or too many.
    """
    seeds: list[int] = []
    for part in text.split(","):
        match = _PART.fullmatch(part.strip())
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, -1)
        if not first <= last <= LARGEST or last - first >= MOST:
            raise ConfigError(
                f"--seeds {text}: expected seeds such as 0-4, 0,1,2 or 0-2,7: at most {MOST}, from 0 to {LARGEST}"
            )
        seeds += range(first, last + 1)
        if len(seeds) > MOST:
            raise ConfigError(f"--seeds {text[:40]}: more than {MOST} seeds")
    if len(set(seeds)) < len(seeds):
        raise ConfigError(f"--seeds {text}: a seed stands there twice")
    return seeds


def run_seeds(
    settings: RunSettings,
    seeds: Sequence[int],
    data: TrainingData | None = None,
    dry_run: bool = False,
    opened: Callable[[Path], None] | None = None,
    trust_run: bool = False,
) -> dict[str, Any]:
    """Trains with each seed, or goes on where that was cut; finished ones are not run again.

    Args:
        settings: of the runs; ``seed`` counts for nothing, and ``output_dir`` is the directory of them all: that of a
            seed is ``seed-N`` in it.
        seeds: at least one.
        others: as for :func:`~deepmlf_llm.training.run.run_training`. ``dry_run`` plans the first.

    Returns:
        What ``summary.json`` holds, see :func:`~deepmlf_llm.training.summary.summarise`; of a dry run the plan.

    Raises:
        ConfigError: under DeepSpeed or with several processes.
        RunError: the directory is that of one run.
        DeepMLFError, RunStopped: as for one run; what has finished until then stays finished.
    """
    _check_launch(settings)
    data = load_data(settings) if data is None else data
    directory = _directory(settings, data)
    shared, results = SharedBase(), {}
    for number, seed in enumerate(seeds, 1):
        say(f"seed {seed} ({number} of {len(seeds)})")
        place = directory / f"seed-{seed}"
        own = settings.changed(trainer={**settings.trainer, "seed": seed}, output_dir=str(place))
        result = run_training(own, data, dry_run, opened, trust_run, shared)
        if dry_run:
            return result
        results[place.name] = result
    summary = summarise(results)
    write_summary(directory, summary)
    say(f"{len(seeds)} seeds: {shown(directory)}")
    return summary


def _check_launch(settings: RunSettings) -> None:
    """One process without an engine: an engine splits the base, and a process group is not made twice."""
    if settings.lm_init == "random":
        raise ConfigError(
            "--seeds with lm_init='random': each seed draws a base of its own; start each by its own command, with "
            "--seed N --output_dir DIR/seed-N, and put them together with `deepmlf summarise`"
        )
    processes = detect().processes
    if settings.deepspeed is not None or processes > 1:
        given = f"--ds {settings.deepspeed}" if settings.deepspeed is not None else f"{processes} processes"
        raise ConfigError(
            f"--seeds with {given}: several seeds share one base model in one process without DeepSpeed; start each by "
            "its own command, with --seed N --output_dir DIR/seed-N, and put them together with `deepmlf summarise`"
        )


def _directory(settings: RunSettings, data: TrainingData) -> Path:
    """The directory of all the runs.

    Raises:
        RunError: it is one run's.
    """
    if settings.output_dir is not None:
        directory = Path(settings.output_dir)
    else:
        base_name = resolve_base_model(settings.base_model)
        any_seed = settings.changed(trainer={k: v for k, v in settings.trainer.items() if k != "seed"})
        fingerprint = any_seed.fingerprint(1, base_name, data.fingerprint)
        directory = RUNS / f"{default_name(settings, base_name, data, fingerprint)}-seeds"
    if (directory / FACTS).exists():
        raise RunError(f"output_dir={shown(directory)}: holds one run; --seeds needs a directory of its own")
    return directory
