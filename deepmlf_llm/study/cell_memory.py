"""What each cell of a plan takes of a GPU, by the planner's dry step: without a GPU, without weights."""

from __future__ import annotations

from deepmlf_llm.planning.advice import Choice
from deepmlf_llm.planning.memory import Layout
from deepmlf_llm.study.cells import PlannedCell
from deepmlf_llm.study.grid import BASELINE
from deepmlf_llm.training.data import TrainingData, load_data
from deepmlf_llm.training.planned import method_and_lengths, run_planner
from deepmlf_llm.training.settings import RunSettings


def memory_needs(cells: list[PlannedCell]) -> dict[str, int]:
    """Cell -> bytes of a GPU at most: the planner's high estimate, and a text cache that lies there whole.

    Args:
        cells: planned. Baselines and those of several processes, or under an engine, are left out: they share their
            GPUs with none.
    """
    found: dict[str, int] = {}
    known: dict[str, int] = {}
    data: dict[str, TrainingData] = {}
    for cell in cells:
        if BASELINE in cell.settings:
            continue
        settings = RunSettings.from_dict(cell.settings, "settings")
        if cell.processes > 1 or settings.deepspeed:
            continue
        same = {n: v for n, v in settings.to_dict().items() if n not in ("seed", "data_seed", "data_fraction")}
        key = repr(sorted(same.items(), key=lambda item: item[0]))
        if key not in known:
            if settings.data not in data:
                data[settings.data] = load_data(settings)
            known[key] = _needed(settings, data[settings.data])
        found[cell.name] = known[key]
    return found


def _needed(settings: RunSettings, data: TrainingData) -> int:
    planner = run_planner(settings, *method_and_lengths(settings, data), processes=1, memory=float("inf"))
    choice = Choice(Layout(1), settings.quantization, bool(settings.trainer.get("gradient_checkpointing", False)))
    utterances = planner.step.utterances
    total = planner.checked(choice, utterances)["total"].high
    splits = (data.train, data.valid, data.test)
    cached = planner.step_bytes(choice, utterances).text / utterances * sum(map(len, splits))  # type: ignore[arg-type]
    return int(total + cached)
