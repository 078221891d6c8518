"""What a run will take before it starts: parameters, memory of each GPU, time, the largest batch, and what to choose.

  deepmlf plan --base_model llama-8b --gpus 8 --gpu_memory 80
  deepmlf plan --base_model llama-70b --gpus 8 --nodes 2 --ffw_scope fusion --batch_size 64
  deepmlf plan --base_model smollm2-135m --gpu cpu   # here, without a GPU: this machine's CPU is measured first
  deepmlf train --plan --gpus 4 [options of the run]   # lengths and features of its data

--base_model is a hub id, directory, GGUF file or toy, or a built-in geometry: {geometries}.
All other options are those of `deepmlf train`. Nothing is loaded, nothing is computed: a step of the model's own code
runs on tensors without memory, and what it would allocate is counted. docs/planner.md says how good that is.
"""

from __future__ import annotations

import copy
import json
import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from typing import Any

from deepmlf_llm.config.method import DeepMLFConfig
from deepmlf_llm.config.readout import scale_steps
from deepmlf_llm.errors import ConfigError, suggest
from deepmlf_llm.planning.advice import Choice, Planner, choices, recommend
from deepmlf_llm.planning.cpu_rates import CpuRates, step_seconds_on_cpu
from deepmlf_llm.planning.flops import StepGeometry, step_flops
from deepmlf_llm.planning.geometries import GEOMETRIES
from deepmlf_llm.planning.memory import GIB, Layout
from deepmlf_llm.planning.packed import packed_linears
from deepmlf_llm.planning.parameters import parameters_by_part
from deepmlf_llm.planning.rates import PEAK_TFLOPS, step_seconds
from deepmlf_llm.planning.summary import shown
from deepmlf_llm.training.planned import Lengths, method_and_lengths, run_host, run_planner

OPTIONS = {
    "--gpus": "1",
    "--nodes": "1",
    "--gpu_memory": "",
    "--gpu": "h100",
    "--peak_tflops": "",
    "--text_tokens": "64",
    "--frames": "audio=300x74,vision=300x35",
}
HELP = {
    "--gpus": "GPUs of each machine; with --gpu cpu, processes of this one",
    "--nodes": "machines",
    "--gpu_memory": "GiB of one GPU: 80, or with --gpu cpu a process's share of this machine",
    "--gpu": f"whose peak rate to take: {', '.join(PEAK_TFLOPS)}; cpu: this machine's CPU, which is measured",
    "--peak_tflops": "a measured rate of bf16 matrix products in its place",
    "--text_tokens": "length that texts of a batch are padded to",
    "--frames": "modality=FRAMESxWIDTH, .. as a batch has them; none: text alone",
}


@dataclass(frozen=True)
class Machines:
    """What there is.

    Args:
        processes: GPUs in all.
        memory: of one, bytes.
        tflops: peak of one.
        on_cpu: they are processes on this machine's CPU.
    """

    processes: int
    memory: float
    tflops: float
    on_cpu: bool = False


def main(argv: Sequence[str] | None = None) -> None:
    from deepmlf_llm.training.command_line import parse_settings

    argv = sys.argv[1:] if argv is None else list(argv)
    if {"-h", "--help"} & set(argv):
        print((__doc__ or "").format(geometries=", ".join(GEOMETRIES)))
        print("\n".join(f"  {name:15}{text} (default: {OPTIONS[name] or 'none'})" for name, text in HELP.items()))
        print("  --json         print one JSON object")
        return
    argv, given = take_options(argv)
    as_json = "--json" in argv
    settings = parse_settings([word for word in argv if word != "--json"])
    found = plan(settings, read_machines(given), read_lengths(given))
    print(json.dumps(found, indent=2) if as_json else shown(found))


def plan_of_run(argv: list[str], default_config: str) -> str:
    """What ``deepmlf train`` would take with these words, for people; lengths are the longest of its training split.

    Raises:
        DeepMLFError: as the run would be refused, or an option of the planner is off.
    """
    from deepmlf_llm.training.command_line import parse_settings
    from deepmlf_llm.training.data import load_data

    argv, given = take_options(argv)
    for name in ("--text_tokens", "--frames"):
        if given[name] != OPTIONS[name]:
            raise ConfigError(f"{name} {given[name]}: a run has the lengths of its data; leave it out")
    settings = parse_settings(argv, default_config=default_config)
    config, lengths = method_and_lengths(settings, load_data(settings))
    return shown(plan(settings, read_machines(given), lengths, config))


def take_options(argv: list[str]) -> tuple[list[str], dict[str, str]]:
    """The command line without the planner's own options, and those with their defaults.

    Raises:
        ConfigError: one without a value.
    """
    from deepmlf_llm.commands.train import take_option

    given = dict(OPTIONS)
    for name in OPTIONS:
        argv, value = take_option(argv, name, HELP[name])
        given[name] = given[name] if value is None else value
    return argv, given


def read_machines(given: dict[str, str]) -> Machines:
    """Raises ConfigError: numbers that are none, or a GPU that is not known."""
    gpu = given["--gpu"].lower()
    processes = _whole("--gpus", given["--gpus"]) * _whole("--nodes", given["--nodes"])
    memory = _number("--gpu_memory", given["--gpu_memory"]) * GIB if given["--gpu_memory"] else None
    if gpu == "cpu":
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / processes
        return Machines(processes, memory or there, 0.0, on_cpu=True)
    if gpu not in PEAK_TFLOPS and not given["--peak_tflops"]:
        raise ConfigError(
            f"--gpu {gpu}{suggest(gpu, PEAK_TFLOPS)}: known are {', '.join(PEAK_TFLOPS)}, cpu; or --peak_tflops"
        )
    tflops = _number("--peak_tflops", given["--peak_tflops"]) if given["--peak_tflops"] else PEAK_TFLOPS[gpu]
    return Machines(processes, memory or 80 * GIB, tflops)


def read_lengths(given: dict[str, str]) -> Lengths:
    """Raises ConfigError: no such form."""
    frames: dict[str, tuple[int, int]] = {}
    words = [] if given["--frames"] == "none" else given["--frames"].split(",")
    for word in words:
        name, _, sizes = word.partition("=")
        count, _, width = sizes.partition("x")
        if not name or not count.isdecimal() or not width.isdecimal() or not int(count) or not int(width):
            raise ConfigError(f"--frames {given['--frames']}: expected modality=FRAMESxWIDTH, as {OPTIONS['--frames']}")
        frames[name] = int(count), int(width)
    return Lengths(_whole("--text_tokens", given["--text_tokens"]), frames)


def _whole(name: str, text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 1 << 20:
        raise ConfigError(f"{name} {text}: expected a whole number from 1 on")
    return int(text)


def _number(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e7:
        raise ConfigError(f"{name} {text}: expected a number above 0")
    return value


def plan(settings: Any, machines: Machines, lengths: Lengths, config: DeepMLFConfig | None = None) -> dict[str, Any]:
    """Everything that is said of a run, in numbers.

    Args:
        settings: :class:`~deepmlf_llm.training.settings.RunSettings`.
        machines: what there is.
        lengths: of a batch.
        config: of the method, completed by the data; default: by ``lengths``.

    Raises:
        DeepMLFError: a base model or a setting that cannot be.
    """
    from deepmlf_llm.training.assemble import resolve_base_model

    config = _completed(config or _config(settings, lengths))
    rates, host = run_host(settings) if machines.on_cpu else (None, None)
    planner = run_planner(
        settings, config, lengths, machines.processes, machines.memory, on_gpu=rates is None, host=host
    )
    per_device, accumulated = settings.resolve_batch(machines.processes)
    choice, fits, why = recommend(planner, _among(settings, machines.processes), per_device)
    model = planner.make()
    kind = settings.quantization if choice is None else choice.quantization
    name = None if choice is None else choice.name.replace("GPU", "process" if machines.on_cpu else "GPU")
    found: dict[str, Any] = {
        "base_model": resolve_base_model(settings.base_model),
        "gpus": machines.processes,
        "device": "GPU" if rates is None else "process on this CPU",
        "batch": {"a_gpu": per_device, "accumulated": accumulated},
        "parameters": [asdict(part) for part in parameters_by_part(model, planner.dtype, kind)],
        "recommendation": {"choice": name, "utterances": fits, "why": why},
    }
    if choice is not None:
        found |= _of_choice(planner, choice, fits, model, machines, per_device * accumulated, rates)
    return found


def _of_choice(
    planner: Planner,
    choice: Choice,
    fits: int,
    model: Any,
    machines: Machines,
    wanted: int,
    rates: CpuRates | None,
) -> dict[str, Any]:
    rows = planner.checked(choice, fits)
    step = planner.step_bytes(choice, fits)
    geometry = StepGeometry(fits, planner.step.text_tokens, planner.step.frames)
    flops = step_flops(model, geometry, planner.step.text_cached)
    batches = -(-wanted // fits)
    lm = model.fused_decoder.decoder.lm
    packed = 0 if choice.quantization == "none" else len(packed_linears(lm, lm.get_output_embeddings()))
    if rates is None:
        seconds = step_seconds(flops, step.operators, machines.tflops, batches, choice.checkpointing, packed)
    else:
        seconds = step_seconds_on_cpu(step.work, step.trained, rates, batches)
    return {
        "memory": {name: asdict(part) for name, part in rows.items()},
        "largest_batch": planner.largest_batch(choice),
        "step": {
            "batches": batches,
            "flops_a_gpu": flops * batches,
            "seconds": asdict(seconds),
            "text_stream_bytes": step.text,
        },
    }


def _among(settings: Any, processes: int) -> list[Choice]:
    from deepmlf_llm.training.trainer_arguments import needs_whole_model

    recomputes = bool(settings.trainer.get("gradient_checkpointing", False))
    whole, packs = bool(needs_whole_model(settings)), settings.lm_init == "pretrained"
    asked = asked_layout(settings, processes)
    return list(choices(processes, settings.quantization, recomputes, whole, asked, packs=packs))


def asked_layout(settings: Any, processes: int) -> Layout | None:
    """The layout that ``--ds`` names, as the run itself would read it."""
    from deepmlf_llm.training.trainer_arguments import read_deepspeed

    with redirect_stdout(sys.stderr):  # where DeepSpeed greets as it is imported; --json is for programs
        config = read_deepspeed(settings)
    if config is None:
        return None
    section = config["zero_optimization"]

    def away(part: str) -> bool:
        return (section.get(part) or {}).get("device", "none") != "none"

    return Layout(processes, section.get("stage", 0), away("offload_optimizer"), away("offload_param"))


def _config(settings: Any, lengths: Lengths) -> DeepMLFConfig:
    modalities = {name: {"dim": width} for name, (_, width) in lengths.frames.items()}
    return DeepMLFConfig.from_dict({**settings.method_values(), "modalities": modalities})


def _completed(config: DeepMLFConfig) -> DeepMLFConfig:
    """Which tokens say the steps changes no size: without a tokenizer any will do."""
    if config.readout == "heads" or config.verbalised_ids is not None:
        return config
    config = copy.deepcopy(config)
    config.verbalised_ids = {label: index for index, label in enumerate(scale_steps(config))}
    return config
