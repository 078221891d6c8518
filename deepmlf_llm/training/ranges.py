"""What the settings of transformers' ``TrainingArguments`` may be: it takes most values, and some fail much later."""

from __future__ import annotations

from functools import cache

from deepmlf_llm.config.rules import Rule, choice, integer, mapping, number, optional, share, word, words

_MOST = 1 << 31
_SEED = integer(0, 2**32 - 1)
_RATE = number(0, 1e3)
_EVERY = number(0, _MOST, above=True)


@cache
def trainer_rules() -> dict[str, Rule]:
    """Key -> its rule; a key that is not here is checked by its type alone."""
    return {**_of_training(), **_of_intervals(), **_of_the_process()}


def _of_training() -> dict[str, Rule]:
    """How long and with what is trained."""
    from transformers.trainer_utils import SchedulerType

    return {
        "num_train_epochs": number(0, 1e6, above=True),
        "max_steps": integer(-1, _MOST),
        "learning_rate": _RATE,
        "weight_decay": _RATE,
        "lr_scheduler_type": choice(*(member.value for member in SchedulerType)),
        "lr_scheduler_kwargs": optional(_mapping_or_json()),
        "warmup_steps": number(0, _MOST),
        "gradient_accumulation_steps": integer(1, 1 << 20),
        "per_device_train_batch_size": integer(1, 1 << 20),
        "per_device_eval_batch_size": integer(1, 1 << 20),
        "max_grad_norm": number(0, 1e9),
        "seed": _SEED,
        "data_seed": optional(_SEED),
        "adam_beta1": share(),
        "adam_beta2": share(),
        "adam_epsilon": number(0, 1),
        "optim": _optimizer(),
        "optim_args": optional(word("a text")),
        "optim_target_modules": optional(_word_or_words()),
        "neftune_noise_alpha": Rule(
            lambda value: value is None,
            "none, for the frozen LM's embeddings get no noise of Trainer's; seqaug.embedding_noise gives them some",
        ),
    }


def _of_intervals() -> dict[str, Rule]:
    """What is evaluated, saved and reported, how often, and by which metric."""
    from transformers.trainer_utils import IntervalStrategy, SaveStrategy

    every_when = choice(*(member.value for member in IntervalStrategy))
    levels = choice("passive", "debug", "info", "warning", "error", "critical", "detail")
    return {
        "eval_strategy": every_when,
        "logging_strategy": every_when,
        "save_strategy": choice(*(member.value for member in SaveStrategy)),
        "eval_steps": optional(_EVERY),
        "save_steps": _EVERY,
        "logging_steps": _EVERY,
        "eval_delay": number(0, _MOST),
        "eval_accumulation_steps": optional(integer(1, _MOST)),
        "save_total_limit": optional(integer(0, _MOST)),
        "metric_for_best_model": optional(word("the name of a metric")),
        "report_to": optional(_reporters()),
        "run_name": optional(word()),
        "project": word(),
        "include_num_input_tokens_seen": choice("all", "non_padding", "no", True, False),
        "log_level": levels,
        "log_level_replica": levels,
    }


def _of_the_process() -> dict[str, Rule]:
    """Data loaders, processes, compilation, memory."""
    return {
        "dataloader_num_workers": integer(0, 1024),
        "dataloader_prefetch_factor": optional(integer(1, 1 << 16)),
        "dataloader_multiprocessing_context": optional(choice("fork", "spawn", "forkserver")),
        "ddp_backend": optional(choice("nccl", "gloo", "mpi")),
        "ddp_bucket_cap_mb": optional(integer(1, 1 << 20)),
        "ddp_timeout": integer(1, _MOST),
        "debug": Rule(lambda value: set(_listed(value)) <= {"underflow_overflow"}, "'underflow_overflow', or nothing"),
        "gradient_checkpointing_kwargs": optional(_mapping_or_json()),
        "activation_checkpointing_kwargs": optional(_mapping_or_json()),
        "liger_kernel_config": optional(mapping()),
        "torch_compile_backend": optional(word()),
        "torch_compile_mode": optional(word()),
        "torch_empty_cache_steps": optional(integer(1, _MOST)),
    }


def _optimizer() -> Rule:
    from transformers.training_args import OptimizerNames

    names = {member.value for member in OptimizerNames}
    expected = f"one of transformers' {len(names)} optimizers, such as 'adamw_torch', 'adamw_bnb_8bit' or 'adafactor'"
    return Rule(lambda value: isinstance(value, str) and value in names, expected)


def _listed(value: object) -> list[object]:
    return list(value) if isinstance(value, (list, tuple)) else [value] if value else []


def _mapping_or_json() -> Rule:
    """transformers reads a mapping from a text, too."""
    found = mapping()
    return Rule(lambda value: found.good(value) or (isinstance(value, str) and value.startswith("{")), found.expected)


def _word_or_words() -> Rule:
    one, many = word(), words("")
    return Rule(lambda value: one.good(value) or many.good(value), "a word or a list of words")


def _reporters() -> Rule:
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    known = ("none", "all", *INTEGRATION_TO_CALLBACK)
    return Rule(
        lambda value: all(isinstance(part, str) and part in known for part in _listed(value)),
        f"some of {', '.join(map(repr, known))}",
        ("none",),
    )
