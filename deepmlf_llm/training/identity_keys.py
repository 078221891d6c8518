"""Which keys tell one run from another: those that do not count, and those that came later, with what runs computed
before."""

from __future__ import annotations

from typing import Any

VOLATILE = {
    "output_dir",
    "disable_tqdm",
    "report_to",
    "run_name",
    "log_level",
    "log_level_replica",
    "log_on_each_node",
    "dataloader_num_workers",
    "dataloader_pin_memory",
    "dataloader_prefetch_factor",
    "dataloader_persistent_workers",
    "save_total_limit",
    "save_every",
    "log_to",
    "ddp_timeout",
}
"""Keys that may differ between a run and its continuation: they change nothing that is computed."""

FIRST_RUNS: dict[str, Any] = {
    "av_encoder.pool": "after",
    "av_encoder.feature_norm": "none",
    "gca_dropout": 0.0,
    "ffw_dropout": 0.0,
    "gate_init": 0.0,
    "gca_gate_init": None,
    "gate_per": "block",
    "gca_queries": "tokens",
    "head_base": "none",
    "head_reads_av": True,
    "freeze_av_encoder": False,
    "fusion_token_init": None,
    "freeze_fusion_tokens": False,
    "fusion_entry": "embedding",
    "truncate_lm": False,
    "token_topology": "pooled",
    "tokens_per_group": None,
    "mixing_head.width": 64,
    "mixing_head.num_layers": 1,
    "mixing_head.num_heads": 4,
    "mixing_head.ffw_width": 128,
    "mixing_head.dropout": 0.1,
    "readout": "heads",
    "verbalised_steps": None,
    "readout_layers": "last",
    "objective.lambda_polarity": 0.0,
    "objective.lambda_prototypes": 0.0,
    "objective.class_weights": "data",
    "objective.unimodal_labels": False,
}
"""Keys of the method that came later than the first runs -> what those computed. With that value a key is not part of
the fingerprint, so a run from before the key is known again."""

LATER_RUN_KEYS: dict[str, Any] = {
    "init_from": None,
    "av_encoder_from": None,
    "av_readout": "mean",
    "lm_init": "pretrained",
    "modality_dropout": 0.0,
    "frame_dropout": 0.0,
    "cmixup_alpha": 0.0,
    "cmixup_bandwidth": 0.5,
    "cmixup_labels": "av",
    "ema_decay": 0.0,
    "average_last": 0,
    "max_skipped_steps": 0,
}
"""The run's own keys that came later -> the value with which nothing is changed; the same holds for them."""
