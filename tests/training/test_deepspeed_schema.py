"""DeepSpeed configurations: every key and value is looked at before anything loads, all that is wrong named at once."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from deepmlf_llm.errors import ConfigError
from deepmlf_llm.training import trainer_arguments
from deepmlf_llm.training.deepspeed_schema import SCHEMA, SINCE, Refused, schema_problems, unknown_to, without_problems
from deepmlf_llm.training.run import run_training
from deepmlf_llm.training.settings import RunSettings
from deepmlf_llm.training.trainer_arguments import make_arguments, read_deepspeed

STAGE_2 = {"zero_optimization": {"stage": 2}}


def read(tmp_path: Path, config: Any, **settings: Any) -> dict[str, Any] | None:
    path = tmp_path / "ds.json"
    path.write_text(json.dumps(config))
    return read_deepspeed(RunSettings.from_dict({"report_to": "none", "deepspeed": str(path), **settings}))


@pytest.mark.parametrize(
    ("config", "settings", "messages"),
    [
        ({"train_batch_size": 64}, {}, ["train_batch_size=64, but 32 utterances x 1 batches x 1 processes makes 32"]),
        ({"train_micro_batch_size_per_gpu": 4}, {}, ["train_micro_batch_size_per_gpu=4, but a step of 32 utterances"]),
        ({"gradient_accumulation_steps": 4}, {}, ["but gradient_accumulation_steps=1 makes 1: say 'auto'"]),
        ({"gradient_clipping": 0.5}, {}, ["gradient_clipping=0.5, but max_grad_norm=1.0: say 'auto'"]),
        ({"fp16": {"enabled": True}}, {}, ["fp16.enabled: fp16 is not trained in here"]),
        ({"bf16": {"enabled": True}}, {}, ["bf16.enabled: DeepSpeed's own bf16 would round the trained weights"]),
        ({"bf16": {"enabled": True}}, {"bf16": True}, ["bf16.enabled: DeepSpeed's own bf16 would round"]),
        ({"torch_autocast": {"enabled": True, "dtype": "float16"}}, {"bf16": True}, ["torch_autocast: take it out"]),
        ({"zero_optimization": {"stage": "auto"}}, {}, ["zero_optimization.stage='auto': expected one of 0, 1, 2, 3"]),
        ({"zero_optimization": {"stage": 9}}, {}, ["zero_optimization.stage=9: expected one of 0, 1, 2, 3"]),
        ({"zero_optimization": {"stage": True}}, {}, ["zero_optimization.stage=True: expected one of"]),
        ({"zero_optimization": {"stage": "2"}}, {}, ["zero_optimization.stage='2': expected one of"]),
        ({"zero_optimization": []}, {}, ["zero_optimization=[]: expected a mapping"]),
        ({"zero_optimization": [], "gradient_clipping": "auto"}, {}, ["zero_optimization=[]: expected a mapping"]),
        ({"zero_optimization": {"stage": 9}, "fp16": {}, "foo": 1}, {}, ["stage=9: expected one of", "'foo'"]),
        ({"zero_optimization": None}, {}, ["zero_optimization=None: expected a mapping"]),
        ({"fp16": True}, {}, ["fp16=True: expected a mapping"]),
        (
            {"fp16": {"enabled": True}, "gradient_clipping": 3, "bf16": 1, "foo": 2, "train_batch_size": 7},
            {},
            ["unknown key 'foo'", "fp16 is not", "gradient_clipping=3, but", "bf16=1: expected", "train_batch_size=7"],
        ),
        (
            {"zero_optimization": {"stage": 2, "ofload_optimizer": {"device": "cpu"}}},
            {},
            ["unknown key 'zero_optimization.ofload_optimizer' (did you mean 'offload_optimizer'?)"],
        ),
        (
            {"zero_optimization": {"stage": 3, "offload_param": {"devise": "cpu", "pin_memory": "yes"}}},
            {},
            [
                "unknown key 'zero_optimization.offload_param.devise' (did you mean 'device'?)",
                "zero_optimization.offload_param.pin_memory='yes': expected true or false",
            ],
        ),
        (
            {"gradient_cliping": 0.001, "gradient_acumulation_steps": 4, "fp61": {"enabled": True}},
            {},
            ["mean 'gradient_clipping'?)", "mean 'gradient_accumulation_steps'?)", "(did you mean 'fp16'?)"],
        ),
        (
            {
                "fp16": {"enabled": True, "loss_scal": 0},
                "zero_optimization": {"stage": 2, "overlap_com": True, "offload_param": {"device": "cpu"}},
            },
            {},
            ["'loss_scale'?)", "'overlap_comm'?)", "fp16.enabled: fp16 is not", "offload_param needs stage 3, not 2"],
        ),
        ({"FP16": {"enabled": True}}, {}, ["unknown key 'FP16' (did you mean 'fp16'?)"]),
        ({"stage": 3}, {}, ["unknown key 'stage' (it belongs into zero_optimization)"]),
        ({"zero_optimization": {"stage": 1, "bf16": {}}}, {}, ["belongs at the top, outside of zero_optimization)"]),
        ({"zero_optimization": {"stage": 2, "offload_param": {"device": "cpu"}}}, {}, ["offload_param needs stage 3"]),
        ({"zero_optimization": {"stage": 0, "offload_optimizer": {"device": "cpu"}}}, {}, ["needs stage 1, 2 or 3"]),
        ({"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}}}, {}, ["'nvme' needs nvme_path"]),
        ({"zero_optimization": {"stage": 2, "cpu_offload": True}}, {}, ["calls it offload_optimizer and"]),
        ({"zero_optimization": {"stage": 2, "reduce_bucket_size": -1}}, {}, ["reduce_bucket_size=-1: expected 'auto'"]),
        ({"zero_optimization": {"stage": 2, "allgather_bucket_size": "auto"}}, {}, ["bucket_size='auto': expected"]),
        ({"optimizer": {"type": "AdamW"}, "scheduler": {}}, {}, ["optimizer: each group", "scheduler: each group"]),
        ({"amp": {"enabled": True}, "sparse_attention": {}}, {}, ["amp: DeepSpeed itself has removed it"]),
        ({"pipeline": {}, "autotuning": {}}, {}, ["pipeline: this run does not train in that way", "autotuning: "]),
        ({"train_batch_size": 0, "gradient_clipping": -1}, {}, ["train_batch_size=0: ", "gradient_clipping=-1: "]),
        ({"train_batch_size": "many", "steps_per_print": 0.5}, {}, ["train_batch_size='many': ", "print=0.5"]),
        ({"bf16": {"enabled": "yes"}}, {}, ["bf16.enabled='yes': expected 'auto', or true or false"]),
    ],
)  # fmt: skip
def test_what_cannot_work_is_named(tmp_path, config, settings, messages):
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, {**STAGE_2, **config}, **settings)
    text = str(caught.value)
    assert text.startswith(f"--ds {tmp_path / 'ds.json'}: ")
    assert "\n" not in text
    assert not [message for message in messages if message not in text], text


def test_a_file_without_its_section_says_what_else_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "ds.json"
    path.write_text(json.dumps({"Zero_Optimization": {"stage": 2}, "fp16": {"enabled": True}}))
    with pytest.raises(ConfigError) as caught:
        read_deepspeed(RunSettings.from_dict({"report_to": "none", "deepspeed": str(path)}))
    for words in ("has no section zero_optimization", "(did you mean 'zero_optimization'?)", "fp16.enabled: fp16 is"):
        assert words in str(caught.value)


def test_a_mistake_in_an_offloaded_section_is_not_told_as_another_one() -> None:
    offload = {"device": "nvme", "nvme_path": 5}
    kept = without_problems({"zero_optimization": {"stage": 3, "offload_param": offload}, "bf16": 1})
    assert kept == {"zero_optimization": {"stage": 3}}
    assert without_problems({"zero_optimization": {"stage": 9, "overlap_comm": True}}) == {}


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"train_batch_size": 32, "train_micro_batch_size_per_gpu": 32, "gradient_accumulation_steps": 1},
        {"gradient_clipping": 1},
        {"fp16": {"enabled": False}, "bf16": {"enabled": False}},
        {"zero_optimization": {"stage": 2, "reduce_bucket_size": 5e8, "overlap_comm": None}},
        {"zero_optimization": {"stage": 3, "offload_param": {"device": "none"}, "offload_optimizer": None}},
        {"flops_profiler": {"enabled": False, "module_depth": -1}, "comms_logger": {"enabled": False}},
    ],
)
def test_what_can_work_is_taken_and_completed(tmp_path, config):
    made = read(tmp_path, {**STAGE_2, **config})
    assert made is not None
    assert {**made, **config} == made
    keys = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
    assert all(made[key] == config.get(key, "auto") for key in keys), "else DeepSpeed's own defaults would hold"


def test_a_refused_file_claims_nothing_and_a_corrected_one_is_taken(tmp_path, toy_data, toy_settings, monkeypatch):
    file = tmp_path / "ds.json"
    file.write_text(json.dumps({**STAGE_2, "gradient_cliping": 1}))
    monkeypatch.setattr("deepmlf_llm.training.assemble.load_model", lambda *a: pytest.fail("loaded"))
    settings = toy_settings(deepspeed=str(file))
    with pytest.raises(ConfigError, match="gradient_cliping"):
        run_training(settings, toy_data)
    assert not Path(settings.output_dir).exists()
    file.write_text(json.dumps({**STAGE_2, "gradient_clipping": "auto"}))
    assert read_deepspeed(settings)


def _leaves(schema: dict[str, Any], prefix: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, rule in schema.items():
        if isinstance(rule, dict):
            yield from _leaves(rule, (*prefix, key))
        yield (*prefix, key), rule


WRONG = [[1], {"a": 1}, "nonsense", float("nan"), float("inf"), 10**400, -1, object()]


@pytest.mark.parametrize(
    ("path", "rule"), list(_leaves(SCHEMA)), ids=lambda part: ".".join(part) if isinstance(part, tuple) else ""
)
def test_every_key_refuses_values_of_another_kind(path, rule):
    free = {"group", "team", "project", "output_path", "job_name", "nvme_path", "output_file"}
    for wrong in WRONG:
        values: Any = wrong
        for key in reversed(path):
            values = {key: values}
        if isinstance(wrong, str) and path[-1] in free:
            continue
        if (wrong == -1 and path[-1] == "module_depth") or (wrong == [1] and path[-1] == "prof_ops"):
            continue
        problems = schema_problems(copy.copy(values))
        assert len(problems) == 1
        assert ".".join(path) in problems[0]
        assert len(problems[0]) < 400
        if isinstance(rule, Refused):
            assert rule.reason in problems[0]


def test_deepspeed_knows_every_key_of_its_sections():
    """What the schema takes is what the installed DeepSpeed takes: its sections refuse unknown keys themselves."""
    from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    def known(section: Any) -> set[str]:
        return {name for n, field in section.model_fields.items() for name in (n, field.alias) if name}

    for name, section in (
        ("zero_optimization", DeepSpeedZeroConfig),
        ("fp16", DeepSpeedFP16Config),
        ("bf16", DeepSpeedBF16Config),
    ):
        taken = {key for key, rule in SCHEMA[name].items() if not isinstance(rule, Refused)}
        young = {key for key in taken if unknown_to({name: {key: True}}, version("deepspeed"))}
        assert taken - young <= known(section), name
        assert not young & known(section), f"{name}: SINCE has a version that is too high"


@pytest.mark.parametrize("path", SINCE, ids=".".join)
def test_a_key_younger_than_the_installed_deepspeed_is_named(tmp_path, monkeypatch, path):
    values: Any = True
    for key in reversed(path):
        values = {key: values}
    config = {**values, "zero_optimization": {"stage": 2, **values.get("zero_optimization", {})}}
    monkeypatch.setattr(trainer_arguments, "version", lambda name: "0.18.0+cpu")
    first = ".".join(map(str, SINCE[path]))
    with pytest.raises(ConfigError, match=rf"{path[-1]}: DeepSpeed knows it from {first} on, 0\.18\.0\+cpu is inst"):
        read(tmp_path, config)
    monkeypatch.setattr(trainer_arguments, "version", lambda name: first)
    assert read(tmp_path, config)
    assert path[-1] in (SCHEMA if len(path) == 1 else SCHEMA[path[0]])


def test_shipped_files_are_good_in_bf16_too(repository, tmp_path):
    for path in sorted((repository / "ds_configs").iterdir()):
        if path.stem == "zero3_nvme":  # names a disk that is not here: test_trainer_arguments
            continue
        for bf16 in (True, False):
            settings = RunSettings.from_dict({"deepspeed": str(path), "bf16": bf16, "report_to": "none"})
            assert read_deepspeed(settings)
    assert make_arguments(settings, tmp_path, 1, 10, None).max_grad_norm == 1.0
