from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from deepmlf_llm.errors import ConfigError, MissingPackageError
from deepmlf_llm.extras import installed
from deepmlf_llm.training.launch import check_launcher
from deepmlf_llm.training.settings import RunSettings
from deepmlf_llm.training.trainer_arguments import make_arguments, read_deepspeed, report_to, uses_bf16, zero_stage

NAMES = ("zero1", "zero1_offload", "zero2", "zero2_offload", "zero3", "zero3_offload")


def settings(**values: Any) -> RunSettings:
    return RunSettings.from_dict({"report_to": "none", **values})


@pytest.mark.parametrize("name", NAMES)
def test_shipped_configurations(repository: Path, name: str) -> None:
    path = repository / "ds_configs" / f"{name}.json"
    config = read_deepspeed(settings(deepspeed=str(path)))
    assert config is not None
    assert zero_stage(config) == int(name[4])
    assert ("offload_optimizer" in config["zero_optimization"]) == name.endswith("offload")
    for key in (
        "train_micro_batch_size_per_gpu",
        "gradient_accumulation_steps",
        "train_batch_size",
        "gradient_clipping",
    ):
        assert config[key] == "auto"
    assert config["bf16"] == config["fp16"] == {"enabled": "auto"}
    if name.endswith("offload"):
        assert config["zero_force_ds_cpu_optimizer"] is False  # else it compiles its own Adam


def test_no_others_are_shipped(repository: Path) -> None:
    assert {p.stem for p in (repository / "ds_configs").iterdir()} == {*NAMES, "zero3_nvme"}


def test_nvme_is_refused_before_anything_loads(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For its directory, its stage, and for what DeepSpeed would have to build."""
    with pytest.raises(ConfigError, match=r"nvme_path=/local_nvme: no directory that can be written to"):
        read_deepspeed(settings(deepspeed="zero3_nvme"))
    config = json.loads((repository / "ds_configs" / "zero3_nvme.json").read_text())
    for name in ("offload_param", "offload_optimizer"):
        config["zero_optimization"][name]["nvme_path"] = str(tmp_path)
    path = tmp_path / "nvme.json"
    path.write_text(json.dumps(config))
    from deepspeed.accelerator import get_accelerator

    for builds, words in ((False, r"needs DeepSpeed's async_io, .*libaio-dev"), (True, None)):
        builder = SimpleNamespace(is_compatible=lambda verbose, builds=builds: builds)
        monkeypatch.setattr(type(get_accelerator()), "create_op_builder", lambda self, name, made=builder: made)
        if words is None:
            assert read_deepspeed(settings(deepspeed=str(path))) is not None
        else:
            with pytest.raises(ConfigError, match=words):
                read_deepspeed(settings(deepspeed=str(path)))
    del config["zero_optimization"]["offload_param"]
    config["zero_optimization"]["stage"] = 2
    path.write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="device 'nvme' needs stage 3, not 2"):
        read_deepspeed(settings(deepspeed=str(path)))


@pytest.mark.parametrize("engine", ["FSDP", "DEEPSPEED"])
def test_an_engine_of_accelerates_choice_is_refused(monkeypatch: pytest.MonkeyPatch, engine: str) -> None:
    check_launcher()
    monkeypatch.setenv(f"ACCELERATE_USE_{engine}", "true")
    with pytest.raises(ConfigError, match=r"started by accelerate with .*torchrun, deepspeed"):
        check_launcher()


def test_where_the_log_goes(tmp_path: Path) -> None:
    assert report_to(RunSettings.from_dict({"log_to": "jsonl"})) == "none"
    assert report_to(RunSettings.from_dict({"log_to": "jsonl,tensorboard"})) == ["tensorboard"]
    if not installed("wandb"):
        with pytest.raises(MissingPackageError, match="pip install wandb"):
            report_to(RunSettings.from_dict({"log_to": "wandb"}))
    with pytest.raises(ConfigError, match="log_to and report_to say the same"):
        settings(log_to="jsonl")
    with pytest.raises(ConfigError, match="a list of jsonl, tensorboard, wandb"):
        RunSettings.from_dict({"log_to": "paper"})


@pytest.mark.parametrize(
    ("content", "changes", "message"),
    [
        (None, {}, "cannot be read"),
        ("{", {}, "is not JSON"),
        ("{}", {}, "no section zero_optimization"),
        ({"optimizer": {}}, {}, "optimizer: .*remove the section"),
        ({"scheduler": {}}, {}, "scheduler: .*remove the section"),
        ({"zero_optimization": {"stage": 3}}, {"text_cache": "memory"}, "ZeRO-3 splits it"),
        ({"zero_optimization": {"stage": 3}}, {"quantization": "int8"}, "use nf4"),
    ],
)
def test_refusals(tmp_path: Path, content: Any, changes: dict[str, Any], message: str) -> None:
    path = tmp_path / "ds.json"
    if content is not None:
        whole = content if isinstance(content, str) else json.dumps({"zero_optimization": {"stage": 2}, **content})
        path.write_text(whole)
    with pytest.raises(ConfigError, match=message):
        read_deepspeed(settings(deepspeed=str(path), **changes))


def test_warm_up_is_counted_in_epochs(tmp_path: Path) -> None:
    def warm_up(**values: Any) -> float:
        return make_arguments(
            settings(batch_size=10, **values), tmp_path, 1, 95, None
        ).warmup_steps  # 10 steps an epoch

    assert warm_up(num_train_epochs=20, warmup_epochs=1.5) == 15
    assert warm_up(num_train_epochs=2, warmup_epochs=5) == 10  # half of the run, at most
    assert warm_up(max_steps=8) == 4
    assert warm_up(warmup_steps=3) == 3


def test_arguments_say_what_the_recipe_needs(tmp_path: Path) -> None:
    args = make_arguments(settings(metric_for_best_model="corr"), tmp_path / "run", 1, 100, None)
    assert args.label_names == ["labels"]
    assert args.remove_unused_columns is False
    assert args.save_total_limit is None
    assert args.greater_is_better is True
    assert args.use_cpu is not torch.cuda.is_available()
    assert make_arguments(settings(), tmp_path, 1, 100, None).greater_is_better is False
    assert not (tmp_path / "run").exists()


def test_values_that_transformers_refuses_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"TrainingArguments: .*(delimiter|property|double quotes)") as caught:
        make_arguments(settings(gradient_checkpointing_kwargs="{no json"), tmp_path, 1, 100, None)
    assert "\n" not in str(caught.value)


def test_fp32_on_cpu_unless_told() -> None:
    assert uses_bf16(settings(bf16=True))
    assert not uses_bf16(settings(bf16=False))
    assert uses_bf16(settings()) == (torch.cuda.is_available() and torch.cuda.is_bf16_supported())
