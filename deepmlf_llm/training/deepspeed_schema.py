"""What a DeepSpeed configuration may hold here: every key at every depth.

DeepSpeed itself ignores keys that it does not know at the top, and meets the rest only after the base is loaded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from deepmlf_llm.config.rules import (
    Rule,
    brief,
    choice,
    flag,
    integer,
    is_integer,
    is_number,
    number,
    optional,
    problem,
    words,
)
from deepmlf_llm.errors import suggest

AUTO = "auto"
_MOST = 1 << 53


@dataclass(frozen=True)
class Refused:
    """A key that DeepSpeed knows and that has no place here, with the reason."""

    reason: str


def _or_auto(rule: Rule) -> Rule:
    return Rule(lambda value: value == AUTO or rule.good(value), f"'auto', or {rule.expected}", rule.choices)


def _whole(low: int = 0) -> Rule:
    """An integer, or a float that stands for one, such as 5e8."""
    return Rule(
        lambda value: (is_integer(value) or (is_number(value) and value == int(value))) and low <= value <= _MOST,
        f"an integer >= {low}",
    )


_FLAG, _SIZE, _COUNT, _FACTOR = flag(), _whole(), integer(1, _MOST), number(0, 1e12, above=True)
_TEXT = Rule(lambda value: isinstance(value, str), "a text")
_PRECISION = choice("fp32", "fp16", "bf16", "float32", "float16", "bfloat16")
_NOT_TRAINED_SO = Refused("this run does not train in that way; take it out")
_GONE = Refused("DeepSpeed itself has removed it; take it out")


def _each(rule: Any, names: str) -> dict[str, Any]:
    return dict.fromkeys(names.split(), rule)


_OFFLOAD = {
    "device": choice("none", "cpu", "nvme"),
    "nvme_path": optional(_TEXT),
    "buffer_count": _SIZE,
    "pin_memory": _FLAG,
}
_ZERO: dict[str, Any] = {
    "stage": choice(0, 1, 2, 3),
    **_each(
        _FLAG,
        """
        contiguous_gradients reduce_scatter use_multi_rank_bucket_allreduce allgather_partitions
        load_from_fp32_weights elastic_checkpoint ignore_unused_parameters legacy_stage1
        round_robin_gradients parameter_alignment memory_efficient_linear
        pipeline_loading_checkpoint override_module_apply log_trace_cache_warnings
        enable_sanity_checks compute_grad_norm stage3_gather_16bit_weights_on_model_save
        stage3_gather_fp16_weights_on_model_save stage3_use_all_reduce_for_fetch_params
        stage3_allgather_sequential zero_quantized_weights zero_quantized_nontrainable_weights
        zero_quantized_gradients
        """,
    ),
    "overlap_comm": optional(_FLAG),
    "reduce_bucket_size": _or_auto(_whole(1)),
    "allgather_bucket_size": _SIZE,
    "sub_group_size": _SIZE,
    "zero_hpz_partition_size": _SIZE,
    "stage3_prefetch_bucket_size": _or_auto(_SIZE),
    "stage3_param_persistence_threshold": _or_auto(_SIZE),
    "stage3_model_persistence_threshold": _SIZE,
    "stage3_max_live_parameters": _SIZE,
    "stage3_max_reuse_distance": _SIZE,
    "stage3_module_granularity_threshold": _SIZE,
    "offload_param": {**_OFFLOAD, "buffer_size": _SIZE, "max_in_cpu": _SIZE},
    "offload_optimizer": {
        **_OFFLOAD,
        "pipeline_read": _FLAG,
        "pipeline_write": _FLAG,
        "fast_init": _FLAG,
        "ratio": number(0, 1),
        "super_offload": _FLAG,
        "cpuadam_cores_perc": number(0, 1),
    },
    **dict.fromkeys(
        ("cpu_offload", "cpu_offload_param", "cpu_offload_use_pin_memory"),
        Refused("DeepSpeed calls it offload_optimizer and offload_param now"),
    ),
    **dict.fromkeys(("zenflow", "leaf_module", "save_muon_momentum_buffer_in_memory"), _NOT_TRAINED_SO),
    **dict.fromkeys(("mics_shard_size", "mics_hierarchical_params_gather", "zeropp_loco_param"), _GONE),
}
_MONITOR = {"enabled": _FLAG, "output_path": _TEXT, "job_name": _TEXT}
SCHEMA: dict[str, Any] = {
    "train_batch_size": _or_auto(_COUNT),
    "train_micro_batch_size_per_gpu": _or_auto(_COUNT),
    "gradient_accumulation_steps": _or_auto(_COUNT),
    "gradient_clipping": _or_auto(number(0, 1e12)),
    "zero_optimization": _ZERO,
    "fp16": {
        "enabled": _or_auto(_FLAG),
        "auto_cast": _or_auto(_FLAG),
        "loss_scale": _or_auto(number(0, 1e12)),
        "initial_scale_power": _or_auto(_SIZE),
        "loss_scale_window": _or_auto(_SIZE),
        "hysteresis": _or_auto(_SIZE),
        "consecutive_hysteresis": _FLAG,
        "min_loss_scale": _or_auto(_SIZE),
        "fp16_master_weights_and_grads": _FLAG,
    },
    "bf16": {
        "enabled": _or_auto(_FLAG),
        "immediate_grad_update": _FLAG,
        "check_grad_overflow": _FLAG,
        "bf16_master_weights_and_grads": _FLAG,
        "bf16_optimizer_states": _FLAG,
    },
    "torch_autocast": {
        "enabled": _FLAG,
        "dtype": choice("bfloat16", "bf16", "float16", "fp16", "float32", "fp32"),
        "lower_precision_safe_modules": words("a list of class names"),
    },
    "zero_allow_untested_optimizer": _FLAG,
    "zero_force_ds_cpu_optimizer": _FLAG,
    "communication_data_type": optional(_PRECISION),
    "prescale_gradients": _FLAG,
    "gradient_predivide_factor": _FACTOR,
    "gradient_allreduce_op": choice("mean"),
    "disable_allgather": _FLAG,
    "dump_state": _FLAG,
    "disable_python_gc": _FLAG,
    "steps_per_print": optional(_COUNT),
    "wall_clock_breakdown": _FLAG,
    "memory_breakdown": _FLAG,
    "log_level": optional(choice("debug", "info", "warning", "error", "critical")),
    "data_types": {"grad_accum_dtype": optional(_PRECISION)},
    "activation_checkpointing": {
        "partition_activations": _FLAG,
        "cpu_checkpointing": _FLAG,
        "contiguous_memory_optimization": _FLAG,
        "number_checkpoints": optional(_COUNT),
        "synchronize_checkpoint_boundary": _FLAG,
        "profile": _FLAG,
    },
    "checkpoint": {
        "tag_validation": choice("Ignore", "Warn", "Fail", "IGNORE", "WARN", "FAIL", "ignore", "warn", "fail"),
        "load_universal": _FLAG,
        "use_node_local_storage": _FLAG,
        "parallel_write": {"pipeline_stage": _FLAG},
    },
    "aio": {
        "block_size": _COUNT,
        "queue_depth": _COUNT,
        "thread_count": _COUNT,
        "intra_op_parallelism": _COUNT,
        "single_submit": _FLAG,
        "overlap_events": _FLAG,
        "use_gds": _FLAG,
    },
    "flops_profiler": {
        "enabled": _FLAG,
        "recompute_fwd_factor": number(0, 1e6),
        "profile_step": _COUNT,
        "module_depth": integer(-1, 1000),
        "top_modules": _COUNT,
        "detailed": _FLAG,
        "output_file": optional(_TEXT),
    },
    "comms_logger": {
        "enabled": _FLAG,
        "verbose": _FLAG,
        "prof_all": _FLAG,
        "debug": _FLAG,
        "prof_ops": Rule(lambda value: isinstance(value, list), "a list"),
    },
    "timers": {"throughput": {"enabled": _FLAG, "synchronized": _FLAG}},
    "tensorboard": _MONITOR,
    "csv_monitor": _MONITOR,
    "wandb": {"enabled": _FLAG, "group": optional(_TEXT), "team": optional(_TEXT), "project": _TEXT},
    **dict.fromkeys(
        ("optimizer", "scheduler"), Refused("each group of weights has its own learning rate here: remove the section")
    ),
    "dataloader_drop_last": Refused("batches come from the run's own sampler"),
    **_each(
        _NOT_TRAINED_SO,
        """
        autotuning comet compile data_efficiency expert_parallel hybrid_engine
        managed_gradient_accumulation pipeline seq_parallel_communication_data_type
        sequence_parallel_size tensor_parallel use_data_before_expert_parallelism vocabulary_size
        weight_quantization
        """,
    ),
    **_each(
        _GONE,
        """
        amp compression_training curriculum_learning eigenvalue elasticity graph_harvesting nebula
        progressive_layer_drop quantize_training sparse_attention sparse_gradients
        """,
    ),
}
"""Key -> its rule, the schema of a section, or why it is refused. After DeepSpeed 0.19."""

SINCE = {
    ("bf16", "bf16_master_weights_and_grads"): (0, 18, 3),
    ("bf16", "bf16_optimizer_states"): (0, 18, 3),
    ("disable_python_gc",): (0, 19, 8),
    ("zero_optimization", "compute_grad_norm"): (0, 19, 7),
    ("zero_optimization", "parameter_alignment"): (0, 19, 7),
    ("zero_optimization", "stage3_allgather_sequential"): (0, 18, 5),
}
"""Key -> the first DeepSpeed that knows it, of those younger than our lower bound."""


def unknown_to(config: Mapping[str, Any], version: str) -> list[str]:
    """Keys that are good, though not for the installed DeepSpeed: it would refuse them once the base is loaded.

    Args:
        config: without :func:`schema_problems`.
        version: the installed one.
    """
    installed = tuple(int(part) for part in re.findall(r"\d+", version)[:3])
    problems = []
    for path, since in SINCE.items():
        inside: Any = config
        for section in path[:-1]:
            inside = inside.get(section) or {}
        if path[-1] in inside and installed < since:
            first = ".".join(map(str, since))
            problems.append(f"{'.'.join(path)}: DeepSpeed knows it from {first} on, {version} is installed")
    return problems


def schema_problems(config: Mapping[str, Any]) -> list[str]:
    """What is wrong with the keys and values of a DeepSpeed configuration, one phrase each."""
    return list(_problems(config, SCHEMA, ""))


def without_problems(config: Mapping[str, Any]) -> dict[str, Any]:
    """What can be looked at for contradictions: keys whose values are good, of each section those inside it.

    ``zero_optimization`` is left out where its stage is not known: much depends on it.
    """
    kept: dict[str, Any] = {}
    for key, value in config.items():
        section = SCHEMA.get(key)
        if isinstance(value, dict) and isinstance(section, dict):
            kept[key] = {name: part for name, part in value.items() if not any(_problems({name: part}, section, key))}
        elif not any(_problems({key: value}, SCHEMA, "")):
            kept[key] = value
    zero = config.get("zero_optimization")
    if isinstance(zero, dict) and "stage" in zero and "stage" not in kept["zero_optimization"]:
        del kept["zero_optimization"]
    return kept


def _problems(values: Mapping[str, Any], schema: Mapping[str, Any], prefix: str) -> Iterator[str]:
    for key, value in values.items():
        path = f"{prefix}{key}"
        rule = schema.get(key)
        if rule is None:
            yield f"unknown key {brief(path)}{_nearest(str(key), schema, prefix)}"
        elif isinstance(rule, Refused):
            yield f"{path}: {rule.reason}"
        elif isinstance(rule, Rule):
            yield from problem(path, value, rule)
        elif isinstance(value, dict):
            yield from _problems(value, rule, f"{path}.")
        elif not (value is None and prefix):  # DeepSpeed takes null for a section inside another one
            yield f"{path}={brief(value)}: expected a mapping"


def _nearest(key: str, schema: Mapping[str, Any], prefix: str) -> str:
    homes = [name for name, section in {"": SCHEMA, **_sections(SCHEMA)}.items() if key in section]
    if homes:
        return f" (it belongs {f'into {homes[0]}' if homes[0] else 'at the top, outside of ' + prefix.rstrip('.')})"
    return suggest(key, schema)


def _sections(schema: Mapping[str, Any], prefix: str = "") -> dict[str, Mapping[str, Any]]:
    found: dict[str, Mapping[str, Any]] = {}
    for key, section in schema.items():
        if isinstance(section, dict):
            found[f"{prefix}{key}"] = section
            found |= _sections(section, f"{prefix}{key}.")
    return found
