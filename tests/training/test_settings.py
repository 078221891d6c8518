from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from deepmlf_llm.errors import ConfigError
from deepmlf_llm.training.identity_keys import FIRST_RUNS, LATER_RUN_KEYS, VOLATILE
from deepmlf_llm.training.keys import RENAMED, all_keys
from deepmlf_llm.training.settings import RunSettings


def test_round_trip_through_yaml() -> None:
    given_values = {
        "seed": 3,
        "objective": {"gamma": 1.0},
        "fusion_layers": [2, 5],
        "lora_r": 4,
        "modalities": ["audio"],
    }
    settings = RunSettings.from_dict(given_values)
    again = RunSettings.from_dict(yaml.safe_load(yaml.safe_dump(settings.to_dict())))
    assert again.to_dict() == settings.to_dict()
    assert settings.to_dict()["objective"] == {
        **{"lambda_fusion": 0.4, "lambda_av": 0.8, "lambda_text": 0.8, "loss": "l1"},
        **{"class_weights": "data", "unimodal_labels": False},
        **{"lambda_polarity": 0.0, "lambda_prototypes": 0.0},
        "gamma": 1.0,
    }
    assert settings.method_values()["r"] == 4


def test_fingerprint_ignores_what_changes_nothing(tmp_path: Path) -> None:
    def fingerprint(processes: int = 1, data: str = "d", **values: object) -> str:
        return RunSettings.from_dict(values).fingerprint(processes, "lm", data)

    same = fingerprint(seed=1)
    assert fingerprint(seed=1, output_dir="elsewhere", disable_tqdm=True, save_total_limit=5) == same
    different = [
        fingerprint(seed=2),
        fingerprint(2, seed=1),
        fingerprint(data="e", seed=1),
        fingerprint(seed=1, gate="tanh"),
    ]
    assert len({same, *different}) == 5

    file = tmp_path / "ds.json"
    file.write_text(json.dumps({"zero_optimization": {"stage": 2}}))
    two = fingerprint(deepspeed=str(file))
    file.write_text(json.dumps({"zero_optimization": {"stage": 3}}))
    assert fingerprint(deepspeed=str(file)) != two


@pytest.mark.parametrize(
    ("processes", "accumulated", "expected"), [(1, 1, (32, 1)), (2, 1, (16, 1)), (2, 8, (2, 8)), (3, 1, (11, 1))]
)
def test_batch_numbers_are_filled_from_the_launch(processes: int, accumulated: int, expected: tuple[int, int]) -> None:
    settings = RunSettings.from_dict({"batch_size": 32, "gradient_accumulation_steps": accumulated})
    assert settings.resolve_batch(processes) == expected


def test_batch_numbers_that_disagree_are_refused() -> None:
    settings = RunSettings.from_dict({"batch_size": 32, "per_device_train_batch_size": 4})
    with pytest.raises(
        ConfigError, match=r"batch_size=32, but per_device_train_batch_size=4 x .* = 8; give one of them"
    ):
        settings.resolve_batch(2)
    assert RunSettings.from_dict({"per_device_train_batch_size": 4}).resolve_batch(2) == (4, 1)
    assert settings.resolve_batch(8) == (4, 1)


@given(st.integers(1, 300), st.integers(1, 9), st.integers(1, 9))
def test_a_step_is_never_smaller_than_asked_and_little_larger(batch: int, processes: int, accumulated: int) -> None:
    settings = RunSettings.from_dict({"batch_size": batch, "gradient_accumulation_steps": accumulated})
    per_device, _ = settings.resolve_batch(processes)
    assert batch <= per_device * processes * accumulated < batch + processes * accumulated


def test_out_of_range_values_are_named_together() -> None:
    with pytest.raises(ConfigError) as caught:
        RunSettings.from_dict({"data_fraction": 0, "batch_size": 0, "warmup_epochs": -1, "modalities": ["a", "a"]})
    assert all(word in str(caught.value) for word in ("data_fraction=0", "batch_size=0", "warmup_epochs=-1", "twice"))


def test_a_run_from_before_a_key_is_known_again() -> None:
    """What such a run computed is not part of the fingerprint; a key that is given means what it says."""
    given_values = {"seed": 1, "av_encoder": {"num_layers": 1}}
    settings = RunSettings.from_dict(given_values)
    old = settings.of_first_runs()
    assert old.to_dict()["av_encoder"]["pool"] == "after"
    assert settings.to_dict()["av_encoder"]["pool"] == "before"
    assert settings.fingerprint(1, "lm", "d") != old.fingerprint(1, "lm", "d")
    stored = old.to_dict()
    for name in ("missing", "mask_seed", *LATER_RUN_KEYS):
        del stored[name]
    for path in FIRST_RUNS:
        section, _, name = path.rpartition(".")
        del (stored[section] if section else stored)[name]
    del stored["mixing_head"]  # a section that is younger as a whole
    digest = hashlib.sha256(
        json.dumps(
            {name: value for name, value in stored.items() if name not in VOLATILE}
            | {"base_model": "lm", "data": "d", "processes": 1, "settings_sha256": None},
            sort_keys=True,
        ).encode()
    ).hexdigest()
    assert old.fingerprint(1, "lm", "d") == digest
    later = {"init_from": "a", "modality_dropout": 0.1, "frame_dropout": 0.1, "cmixup_alpha": 1.0}
    later |= {"av_encoder_from": "a", "lm_init": "random", "av_readout": "last", "freeze_av_encoder": True}
    for name, changed in later.items():
        assert (
            RunSettings.from_dict({**given_values, name: changed}).of_first_runs().fingerprint(1, "lm", "d") != digest
        )
    said = RunSettings.from_dict({**given_values, "av_encoder.pool": "before", "gca_dropout": 0.1})
    assert said.of_first_runs().to_dict() == said.to_dict()
    asked = RunSettings.from_dict({**given_values, "batch_size": 8, "per_device_train_batch_size": 3})
    with pytest.raises(ConfigError, match="give one of them only"):
        asked.of_first_runs().resolve_batch(1)


GOOD_ANYWAY = {
    "base_model": ("nonsense: [",), "data": ("nonsense: [",), "target_modules": ("nonsense: [",),
    **dict.fromkeys(("revision", "output_dir", "init_from", "av_encoder_from"), ("nonsense: [",)),
    **dict.fromkeys(("deepspeed", "optim_args"), ("nonsense: [",)),
    **dict.fromkeys(("run_name", "project"), ("nonsense: [",)),
    **dict.fromkeys(("metric_for_best_model", "torch_compile_backend", "torch_compile_mode"), ("nonsense: [",)),
    "optim_target_modules": ("nonsense: [", ["a"], []), "report_to": ([], ""), "debug": ([], ""),
    "missing": ([], ""), "modalities": (["a"], "nonsense: ["), "max_steps": (-1,),
    "gate_init": (-1,), "gca_gate_init": (-1,),
    **dict.fromkeys(("lr_scheduler_kwargs", "gradient_checkpointing_kwargs", "activation_checkpointing_kwargs",
                     "liger_kernel_config"), ({}, {"a": 1})),
    "include_num_input_tokens_seen": (True,),
}  # fmt: skip
"""Values that are odd, and what the key means."""
WORDS_TOO = {key.name for key in all_keys().values() if "str" in str(key.hint)}
WRONG = [
    None,
    [],
    ["a"],
    {},
    {"a": 1},
    "nonsense: [",
    "",
    math.nan,
    math.inf,
    -math.inf,
    10**30,
    10**5000,
    True,
    -1,
    0.5,
]


@pytest.mark.parametrize("name", list(all_keys()))
def test_every_key_takes_what_it_means_and_names_itself_where_it_does_not(name: str) -> None:
    key = all_keys()[name]
    for wrong in WRONG:
        try:
            RunSettings.from_dict({name: wrong})
        except ConfigError as error:
            message = str(error)
            assert name in message or RENAMED.get(name, name) in message
            assert "\n" not in message
            assert len(message) < 500
            continue
        number = isinstance(wrong, (int, float)) and not isinstance(wrong, bool)
        if wrong is None:
            assert "None" in str(key.hint) or key.hint is Any, (name, wrong)
        elif isinstance(wrong, bool):
            assert "bool" in str(key.hint) or any(wrong is good for good in GOOD_ANYWAY.get(name, ())), (name, wrong)
        elif number:
            assert wrong != 10**5000
            assert math.isfinite(wrong), (name, wrong)
            assert wrong != -1 or -1 in GOOD_ANYWAY.get(name, ()) or name in WORDS_TOO, (name, wrong)
            assert wrong != 10**30 or name in WORDS_TOO, (name, wrong)
            assert wrong != 0.5 or "float" in str(key.hint) or name in WORDS_TOO, (name, wrong)
        else:
            assert any(type(wrong) is type(good) and wrong == good for good in GOOD_ANYWAY.get(name, ())), (name, wrong)


@pytest.mark.parametrize("name", ["text", "objective", "seqaug", "av_encoder"])
@pytest.mark.parametrize("wrong", [None, [], "words", 3, True])
def test_a_section_is_a_mapping(name: str, wrong: object) -> None:
    with pytest.raises(ConfigError, match=f"{name}=.*expected a mapping"):
        RunSettings.from_dict({name: wrong})


@pytest.mark.parametrize(
    "values",
    [
        {"learning_rate": -1e-3}, {"weight_decay": -0.1}, {"adam_beta1": 1.0}, {"adam_epsilon": -1e-8}, {"seed": -1},
        {"num_train_epochs": 0}, {"num_train_epochs": -3}, {"max_steps": -7}, {"warmup_steps": -5},
        {"warmup_epochs": -1},
        {"gradient_accumulation_steps": 0}, {"per_device_train_batch_size": -2}, {"per_device_eval_batch_size": 0},
        {"max_grad_norm": -1}, {"eval_steps": 0}, {"save_steps": -1}, {"logging_steps": 0}, {"save_total_limit": -1},
        {"av_learning_rate": -1}, {"lora_learning_rate": -1}, {"av_weight_decay": -1}, {"lora_r": -1},
        {"lora_dropout": -0.1}, {"dataloader_num_workers": -1}, {"lr_scheduler_type": "cosin"}, {"optim": "adam"},
        {"eval_strategy": "sometimes"}, {"report_to": "nowhere"}, {"log_level": "loud"}, {"neftune_noise_alpha": 5.0},
        {"gate": ["sigmoid"]}, {"head_dropout": -0.1}, {"seqaug": {"p_apply": -0.5}}, {"ffw_lora_alpha": -1},
        {"quantization": ["nf4"]}, {"dtype": "fp32"}, {"attn_implementation": "flash"}, {"text_cache": {"a": 1}},
        {"early_stopping_patience": -1}, {"data_fraction": -0.5}, {"num_layers": 0}, {"av_encoder": {"dropout": -0.1}},
    ],
    ids=str,
)  # fmt: skip
def test_negative_rates_and_words_that_mean_nothing_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(values)).replace("lora_r", "(lora_)?r")):
        RunSettings.from_dict(values)


def test_settings_that_contradict_each_other_are_refused_at_once() -> None:
    with pytest.raises(ConfigError, match=r"settings: objective.gamma > 0 trains nothing"):
        RunSettings.from_dict({"objective": {"gamma": 1.0}, "ffw_scope": "fusion"})
    with pytest.raises(ConfigError, match=r"gradient_acc.*; .*learning_rate=-1.*; unknown key 'gat'"):
        RunSettings.from_dict({"gradient_accumulation_steps": "x", "learning_rate": -1, "gat": 3})
