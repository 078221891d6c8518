"""Two processes (gloo) that train together under each stage of ``ds_configs/``: bytes of tensors of one of them.

Each is a whole ``deepmlf train``. From the first tensor on, PyTorch's allocator is watched event by event; what counts
is the most that was alive in a step, the first left out, optimizer and collectives included (ZeRO-3 takes every other
step another way). Tensors that are there as the second step begins and that no event told of (weights that are mapped
from their file, or were made by a thread of transformers' loader) are found by Python's collector, and count as well.
"""

from __future__ import annotations

import gc
import json
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

ENGINES = ("ddp", "zero1", "zero1_offload", "zero2", "zero2_offload", "zero3", "zero3_offload")
BASES = {"toy": ("tiny-llama", 4), "smollm2": ("smollm2-135m", 3)}
SCOPES = ("joint", "fusion")
STEPS = 4
STEP = "a measured step"
PAUSE = 0.002  # seconds: a thread of gloo takes microseconds to end
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
    """Trains here, and returns the most bytes alive in a step but the first, and the shapes of that step's batch."""
    from torch.profiler import ProfilerActivity, profile, record_function
    from transformers import TrainerCallback
    from transformers.trainer import DEFAULT_CALLBACKS

    from deepmlf_llm.commands import train

    _outlast_collectives()
    shapes: list[dict[str, list[int]]] = []  # of each step
    visible: dict[int, int] = {}

    class Watch(TrainerCallback):
        def on_train_begin(self, *_: Any, model: Any, **__: Any) -> None:
            model.register_forward_pre_hook(self.saw, with_kwargs=True)

        def saw(self, model: Any, _: Any, given: dict[str, Any]) -> None:
            if model.training:
                shapes.append({name: list(t.shape) for name, t in given.items() if hasattr(t, "shape")})

        def on_step_begin(self, _: Any, state: Any, *__: Any, **___: Any) -> None:
            if state.global_step == 1:
                visible.update(visible_storages())
            self.step = record_function(STEP)
            self.step.__enter__()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.step.__exit__(None, None, None)

    DEFAULT_CALLBACKS.append(Watch)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        train.main(words)
    events, spans = _events(profiled.profiler.kineto_results.experimental_event_tree())
    steps = [alive_within(events, *span) for span in sorted(spans)]
    unseen = covered((address, size) for address, size in visible.items() if address not in steps[1][0])
    largest = max(range(1, len(steps)), key=lambda step: steps[step][1])
    held, peak = steps[largest]
    sizes = {"held": sum(held.values()) + unseen, "unseen": unseen, "measured": peak + unseen}
    return {**sizes, "step": largest + 1, "shapes": shapes[largest]}


def _outlast_collectives() -> None:
    """After each collective this thread waits until gloo's has let go of the memory: nobody watches that one, and what
    it were the last to give back would count for ever."""
    from torch.distributed import Work

    wait = Work.wait

    def patient(work: Any, *words: Any) -> Any:
        done = wait(work, *words)
        time.sleep(PAUSE)
        return done

    Work.wait = patient  # type: ignore[method-assign]


@dataclass(frozen=True, order=True)
class Event:
    """The allocator handed out memory (size above 0) or took it back: nanoseconds, address, bytes."""

    at: int
    address: int
    size: int


def alive_within(events: Iterable[Event], begun: int, ended: int) -> tuple[dict[int, int], int]:
    """What is alive as a span begins, address -> bytes, and the most bytes that are alive at once within it.

    An address that is handed out again had been given back, by a thread that nobody watched.
    """
    now: dict[int, int] = {}
    held: dict[int, int] | None = None
    total = peak = 0
    for event in sorted(events):
        if event.at > ended:
            break
        if event.at >= begun and held is None:
            held, peak = dict(now), total
        total -= now.pop(event.address, 0)
        if event.size > 0:
            now[event.address] = event.size
            total += event.size
        if held is not None:
            peak = max(peak, total)
    return (dict(now), total) if held is None else (held, peak)


def covered(spans: Iterable[tuple[int, int]]) -> int:
    """Bytes of memory, each once: storages of parts of a mapped file may overlap.

    Args:
        spans: address and bytes of each.
    """
    total = end = 0
    for address, size in sorted(spans):
        total += max(0, address + size - max(address, end))
        end = max(end, address + size)
    return total


def visible_storages() -> dict[int, int]:
    """Address -> bytes of the memory of every tensor that Python's collector knows."""
    import torch

    found: dict[int, int] = {}
    for thing in gc.get_objects():
        if issubclass(type(thing), torch.Tensor) and thing.device.type == "cpu":
            storage = thing.untyped_storage()
            found[storage.data_ptr()] = max(storage.nbytes(), found.get(storage.data_ptr(), 0))
    found.pop(0, None)
    return found


def _events(roots: Iterable[Any]) -> tuple[list[Event], list[tuple[int, int]]]:
    """From the profiler's tree: the allocator's events, and when each step began and ended."""
    events, spans, waiting = [], [], list(roots)
    while waiting:
        node = waiting.pop()
        waiting.extend(node.children)
        if node.name == STEP:
            spans.append((node.start_time_ns, node.end_time_ns))
        elif node.name == "[memory]":
            events.append(Event(node.start_time_ns, node.extra_fields.ptr, node.extra_fields.alloc_size))
    return events, spans
