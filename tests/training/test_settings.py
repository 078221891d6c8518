from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from deepmlf_llm.errors import ConfigError
from deepmlf_llm.training.settings import VOLATILE, RunSettings


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
    """What such a run computed is no part of the fingerprint; a key that is given means what it says."""
    given_values = {"seed": 1, "av_encoder": {"num_layers": 1}}
    settings = RunSettings.from_dict(given_values)
    old = settings.of_first_runs()
    assert old.to_dict()["av_encoder"]["pool"] == "after"
    assert settings.to_dict()["av_encoder"]["pool"] == "before"
    assert settings.fingerprint(1, "lm", "d") != old.fingerprint(1, "lm", "d")
    stored = old.to_dict()
    for name in ("pool", "feature_norm"):
        del stored["av_encoder"][name]
    for name in ("gca_dropout", "ffw_dropout"):
        del stored[name]
    digest = hashlib.sha256(
        json.dumps(
            {name: value for name, value in stored.items() if name not in VOLATILE}
            | {"base_model": "lm", "data": "d", "processes": 1, "settings_sha256": None},
            sort_keys=True,
        ).encode()
    ).hexdigest()
    assert old.fingerprint(1, "lm", "d") == digest
    said = RunSettings.from_dict({**given_values, "av_encoder.pool": "before", "gca_dropout": 0.1})
    assert said.of_first_runs().to_dict() == said.to_dict()
    asked = RunSettings.from_dict({**given_values, "batch_size": 8, "per_device_train_batch_size": 3})
    with pytest.raises(ConfigError, match="give one of them only"):
        asked.of_first_runs().resolve_batch(1)
