"""Runs what an ablation still lacks, one variant after another; each ends in the store before the next begins."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deepmlf_llm.ablation.plan import AblationPlan, Variant
from deepmlf_llm.ablation.store import SPLITS, Store
from deepmlf_llm.baselines.run import run_baseline
from deepmlf_llm.data.demo import embedded_dataset
from deepmlf_llm.data.store import open_store
from deepmlf_llm.errors import DataError, RunError
from deepmlf_llm.files import make_directory, write_aside
from deepmlf_llm.paths import shown
from deepmlf_llm.tasks.metrics import regression_of
from deepmlf_llm.training.checkpoints import drop_checkpoints
from deepmlf_llm.training.run_directory import RESULT
from deepmlf_llm.training.run_keys import EMBEDDED
from deepmlf_llm.training.seeds import run_seeds

RUNS = "runs"


def run_ablation(
    plan: AblationPlan, directory: Path, only: Sequence[str] = (), say: Callable[[str], Any] = print
) -> Store:
    """Runs every variant with every seed on every data directory, less what is stored already.

    A run that was cut goes on; one that is finished is taken in. Checkpoints of finished runs are deleted, their
    adapters stay under ``runs/``.

    Args:
        plan: what to run.
        directory: gets the store, and ``runs/VARIANT/PART/seed-N``.
        only: names of variants or groups; empty: all.
        say: gets a line as each variant begins.

    Raises:
        ConfigError: ``only`` names what is not there, or the labels are classes.
        DataError: a data directory is missing or damaged, is not the one that stored results were made from, or a
            variant's own has other utterances.
        RunError: a run's folder holds a run of other settings.
        DeepMLFError, RunStopped: as for one run; what has ended by then is stored.
    """
    chosen = plan.named(only)
    _check_data(plan, chosen)
    store = Store(directory)
    splits = {data: _splits_of(data) for data in dict.fromkeys(data for variant in chosen for data in variant.data)}
    for variant in chosen:
        for part, data in enumerate(variant.data):
            store.check_data(variant, part, splits[data])
    for number, variant in enumerate(chosen, 1):
        for part, data in enumerate(variant.data):
            missing = store.missing(variant, part)
            if not missing:
                continue
            where = "" if len(plan.data) == 1 else f", data {part + 1} of {len(plan.data)}"
            say(f"variant {number} of {len(chosen)}: {variant.name} ({len(missing)} runs{where})")
            place = directory / RUNS / variant.slug / f"part-{part}"
            _fresh(place, variant)
            run = _fit if variant.baseline else _train
            store.add(variant, part, run(variant, data, place, missing), splits[data])
            store.write()
    return store


def _splits_of(data: str) -> Mapping[str, Any]:
    return open_store(embedded_dataset() if data == EMBEDDED else data).manifest.splits


def _check_data(plan: AblationPlan, chosen: Sequence[Variant]) -> None:
    """Raises ConfigError or DataError unless the labels are a polarity, which the table measures, and data of a
    variant's own hold the utterances that the others are evaluated on."""
    for part, data in enumerate(plan.data):
        if data != EMBEDDED:
            regression_of(open_store(data).task)
        for own in dict.fromkeys(variant.data[part] for variant in chosen):
            if own != data and _evaluated(own) != _evaluated(data):
                raise DataError(
                    f"{shown(Path(own))}: expected the validation and test utterances of {shown(Path(data))} with "
                    "their labels: a difference between variants is one over the same utterances"
                )


def _evaluated(data: str) -> dict[str, list[tuple[str, float]]]:
    """Ids and labels of what variants are evaluated on."""
    store = open_store(data)
    found = {}
    for name in SPLITS:
        split = store.split(name)
        found[name] = sorted(zip(split.ids, np.asarray(split.labels).tolist(), strict=True))
    return found


def _fresh(place: Path, variant: Variant) -> None:
    """Makes the place of a variant, or checks that it is of these settings."""
    mark = place / "fingerprint"
    if mark.is_file() and mark.read_text(encoding="utf-8").strip() != variant.fingerprint:
        raise RunError(f"{shown(place)}: holds runs of other settings of {variant.name!r}; move it away")
    make_directory(place)
    write_aside(mark, f"{variant.fingerprint}\n")


def _train(variant: Variant, data: str, place: Path, seeds: Sequence[int]) -> dict[int, Path]:
    run_seeds(variant.run_settings(data, place), seeds)
    runs = {seed: place / f"seed-{seed}" for seed in seeds}
    for run in runs.values():
        drop_checkpoints(run)
    return runs


def _fit(variant: Variant, data: str, place: Path, seeds: Sequence[int]) -> dict[int, Path]:
    runs = {seed: place / f"seed-{seed}" for seed in seeds}
    for seed, run in runs.items():
        if not (run / RESULT).is_file():
            run_baseline(variant.baseline_settings(data, run, seed))
    return runs
