"""What a run makes of transformers' ``TrainingArguments``: its own defaults, help texts, what is not a setting here."""

from __future__ import annotations

from typing import Any

TRAINER_DEFAULTS: dict[str, Any] = {
    "num_train_epochs": 20,
    "learning_rate": 5e-4,
    "weight_decay": 1e-2,
    "adam_beta2": 0.95,
    "lr_scheduler_type": "cosine",
    "gradient_accumulation_steps": 1,
    "max_grad_norm": 1.0,
    "per_device_eval_batch_size": 64,
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "save_total_limit": 2,
    "logging_steps": 10,
    "metric_for_best_model": "mae",
    "seed": 42,
}
"""What a run sets in TrainingArguments unless told otherwise."""

TRAINER_HELP = {
    "num_train_epochs": "epochs, at most (early stopping may end earlier)",
    "max_steps": "optimizer steps; overrides num_train_epochs when positive",
    "learning_rate": "of fusion tokens, MM Blocks and heads",
    "weight_decay": "of matrices and fusion tokens; norms, biases and gates have none",
    "lr_scheduler_type": "shape of the learning rate over time",
    "warmup_steps": "steps of linear warm-up; overrides warmup_epochs",
    "gradient_accumulation_steps": "batches a step and process",
    "per_device_train_batch_size": "utterances a batch and process; default: from batch_size",
    "per_device_eval_batch_size": "utterances a batch and process in evaluation",
    "max_grad_norm": "largest norm of the gradient; 0 = not clipped",
    "eval_strategy": "when to evaluate on the validation split: epoch or steps",
    "eval_steps": "steps between evaluations, with eval_strategy=steps",
    "save_strategy": "when to write a checkpoint: epoch, steps or no (the best one is always written)",
    "save_steps": "steps between checkpoints, with save_strategy=steps",
    "save_total_limit": "checkpoints kept beside the best one",
    "logging_steps": "steps between lines of metrics.jsonl",
    "metric_for_best_model": "validation metric that selects the adapter; default of classes: f1_weighted",
    "seed": "seed of initialisation, order and dropout",
    "bf16": "compute in bf16 under autocast; default: on CUDA where the GPU can",
    "gradient_checkpointing": "recompute the LM's activations in the backward pass: less memory, more time",
    "report_to": "reporting integrations; default: tensorboard where installed",
}
"""Of the keys that ``--help`` shows first, in its order."""

OWNED_BY_THE_RUN = {
    "accelerator_config": "batches come from the run's own sampler",
    "auto_find_batch_size": "batch sizes are settings here",
    "average_tokens_across_devices": "always so here",
    "batch_eval_metrics": "metrics are of whole splits",
    "dataloader_drop_last": "nothing is dropped",
    "do_eval": "use eval_strategy",
    "do_predict": "the test split is read once, at the end",
    "do_train": "use `deepmlf evaluate` to evaluate only",
    "eval_do_concat_batches": "metrics are of whole splits",
    "fp16": "use bf16",
    "fp16_full_eval": "evaluation computes as training does",
    "bf16_full_eval": "evaluation computes as training does",
    "fsdp": "weights that must be split are split by DeepSpeed here: --ds zero3",
    "fsdp_config": "weights that must be split are split by DeepSpeed here: --ds zero3",
    "group_by_length": "see the run's own key",
    "ignore_data_skip": "a resumed run goes on exactly",
    "include_for_metrics": "only predictions are kept",
    "label_names": "set by the recipe",
    "label_smoothing_factor": "polarity is regressed",
    "length_column_name": "use group_by_length",
    "load_best_model_at_end": "always so here",
    "local_rank": "set by the launcher",
    "logging_nan_inf_filter": "a loss that is not finite ends the run",
    "parallelism_config": "not supported",
    "prediction_loss_only": "metrics need predictions",
    "push_to_hub": "push the finished adapter yourself",
    "remove_unused_columns": "set by the recipe",
    "restore_callback_states_from_checkpoint": "callbacks here hold no state",
    "resume_from_checkpoint": "the same command again resumes",
    "save_only_model": "checkpoints must be able to resume",
    "train_sampling_strategy": "use group_by_length",
    "use_cache": "set by the model",
    "use_liger_kernel": "the frozen LM stays as it is",
}
"""What is not a key of a run -> who decides it instead."""
