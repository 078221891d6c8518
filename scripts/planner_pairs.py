"""Two processes (gloo) that train together under each stage of ``ds_configs/``: bytes of tensors of one of them.

Each is a whole ``deepmlf train``. From the first tensor on, PyTorch's allocator is watched event by event; what counts
is the most that was alive during its last step, optimizer and collectives included.
"""

from __future__ import annotations

import json
import os
from multiprocessing import get_context
from pathlib import Path
from typing import Any

ENGINES = ("ddp", "zero1", "zero1_offload", "zero2", "zero2_offload", "zero3", "zero3_offload")
BASES = {"toy": ("tiny-llama", 4), "smollm2": ("smollm2-135m", 3)}
SCOPES = ("joint", "fusion")
STEPS = 3
STEP = "the measured step"
SETTINGS = {
    **{"batch_size": 16, "max_steps": STEPS, "fusion_layers": "even:2", "dtype": "float32", "bf16": "false"},
    **{"save_strategy": "no", "eval_strategy": "no", "logging_steps": 1, "report_to": "none", "warmup_steps": 0},
}


def pair_cases() -> dict[str, dict[str, Any]]:
    """Name -> settings of a run."""
    return {
        f"{word}-{scope}-{engine}": {
            **SETTINGS,
            **{"base_model": base, "num_layers": layers, "ffw_scope": scope},
            **({} if engine == "ddp" else {"ds": engine}),
        }
        for word, (base, layers) in BASES.items()
        for scope in SCOPES
        for engine in ENGINES
    }


def words_of(settings: dict[str, Any]) -> list[str]:
    return [word for name, value in settings.items() for word in (f"--{name}", str(value))]


def prepared(folder: Path) -> Path:
    """A small embedded set, made in a process of its own, so that no thread is left in this one."""
    process = get_context("fork").Process(target=_prepare, args=(folder,))
    process.start()
    process.join()
    return next(folder.rglob("manifest.json")).parent


def _prepare(folder: Path) -> None:
    from deepmlf_llm.data.demo import embedded_dataset

    embedded_dataset(folder, sizes=(64, 8, 8))


def measured_pair(settings: dict[str, Any], data: Path, folder: Path) -> list[dict[str, Any]]:
    """What each of two processes found; they are forked from this one, which has imported what takes long.

    Raises:
        RuntimeError: one failed; what it said last.
    """
    import deepspeed  # noqa: F401 - before the fork, once

    import deepmlf_llm.training.run  # noqa: F401
    from deepmlf_llm.training.launch import free_port

    port = free_port()
    words = words_of({**settings, "data": data, "output_dir": folder / "run"})
    running = [get_context("fork").Process(target=_one, args=(rank, port, words, folder)) for rank in range(2)]
    for process in running:
        process.start()
    for process in running:
        process.join(300)
        process.kill()
    results = [folder / f"{rank}.json" for rank in range(2)]
    if not all(result.is_file() for result in results):
        raise RuntimeError(f"{folder.name}: {(folder / '0.log').read_text()[-2000:]}")
    return [json.loads(result.read_text()) for result in results]


def _one(rank: int, port: int, words: list[str], folder: Path) -> None:
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
    os.environ.update({**{k: str(v) for k, v in place.items()}, "MASTER_ADDR": "127.0.0.1"})
    os.environ["TORCHELASTIC_RUN_ID"] = "pair"
    log = os.open(folder / f"{rank}.log", os.O_WRONLY | os.O_CREAT)
    for descriptor in (1, 2):
        os.dup2(log, descriptor)
    found = watched_run(words)
    (folder / f"{rank}.json").write_text(json.dumps(found))
    os._exit(0)  # without the end of a launcher's group


def predicted_pair(settings: dict[str, Any], shapes: dict[str, list[int]]) -> dict[str, dict[str, float]]:
    """What the planner says of one of two processes with a batch of these shapes, by what takes it."""
    from dataclasses import asdict

    from deepmlf_llm.commands.plan import asked_layout
    from deepmlf_llm.config.method import DeepMLFConfig
    from deepmlf_llm.planning.advice import Choice
    from deepmlf_llm.planning.memory import Layout
    from deepmlf_llm.training.command_line import parse_settings
    from deepmlf_llm.training.planned import Lengths, run_planner

    run = parse_settings(words_of(settings))
    frames = {name: (shape[1], shape[2]) for name, shape in shapes.items() if len(shape) == 3}
    modalities = {name: {"dim": width} for name, (_, width) in frames.items()}
    config = DeepMLFConfig.from_dict({**run.method_values(), "modalities": modalities})
    planner = run_planner(run, config, Lengths(shapes["input_ids"][1], frames), 2, 1e12, on_gpu=False)
    choice = Choice(asked_layout(run, 2) or Layout(2), "none", False)
    rows = planner.checked(choice, shapes["input_ids"][0])
    return {name: asdict(part) for name, part in rows.items()}


def watched_run(words: list[str]) -> dict[str, Any]:
    """Trains here, and returns the most bytes alive in the last step, and the shapes of its batch."""
    from torch.profiler import ProfilerActivity, profile, record_function
    from transformers import TrainerCallback
    from transformers.trainer import DEFAULT_CALLBACKS

    from deepmlf_llm.commands import train

    shapes: dict[str, list[int]] = {}

    class Watch(TrainerCallback):
        def on_train_begin(self, *_: Any, model: Any, **__: Any) -> None:
            model.register_forward_pre_hook(self.saw, with_kwargs=True)

        def saw(self, model: Any, _: Any, given: dict[str, Any]) -> None:
            if model.training:
                shapes.update({name: list(t.shape) for name, t in given.items() if hasattr(t, "shape")})

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.step = record_function(STEP)
            self.step.__enter__()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.step.__exit__(None, None, None)

    DEFAULT_CALLBACKS.append(Watch)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        train.main(words)
    events = profiled.profiler.kineto_results.events()
    last = [e for e in events if e.name() == STEP][-1]
    now = peak = held = 0
    for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        now += event.nbytes()
        if event.start_ns() < last.start_ns():
            held = now
        elif event.start_ns() <= last.start_ns() + last.duration_ns():
            peak = max(peak, now)
    return {"held": held, "measured": peak, "shapes": shapes}
