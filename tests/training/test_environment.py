from __future__ import annotations

import json
import os
import re
import socket
from pathlib import Path

from deepmlf_llm.backbones import load_base_model
from deepmlf_llm.config.method import DeepMLFConfig
from deepmlf_llm.model.peft_model import DeepMLFModel
from deepmlf_llm.training.environment import environment, git_state, parameter_counts, parameter_table, peak_memory_mb


def test_environment_names_versions_and_no_place() -> None:
    text = json.dumps(environment())
    facts = json.loads(text)
    assert {"torch", "transformers", "peft"} <= set(facts["packages"])
    assert facts["machine"]["cpus"] >= 1
    assert not re.search(r'"/|\\\\', text)
    assert str(Path.home()) not in text or Path.home() == Path("/")
    assert f'"{socket.gethostname()}"' not in text
    assert f'"{os.environ.get("USER", "nobody-at-all")}"' not in text


def test_git_state_is_that_of_the_checkout(repository: Path) -> None:
    state = git_state()
    if (repository / ".git").exists():
        assert state is not None
        assert re.fullmatch(r"[0-9a-f]{40,64}", state["commit"])
    else:
        assert state is None


def test_parameters_are_counted_by_part_and_dtype() -> None:
    lm = load_base_model("tiny-llama", dtype="bfloat16")
    frozen = sum(p.numel() for p in lm.parameters())
    model = DeepMLFModel(lm, DeepMLFConfig(fusion_layers=[1], r=2, modalities={"audio": {"dim": 3}}))
    rows = {row["part"]: row for row in parameter_table(model)}
    assert set(rows) == {"frozen", "av_encoder", "fusion", "lm_lora"}
    assert rows["frozen"] == {
        **{"part": "frozen", "parameters": frozen, "trainable": False, "dtype": "bfloat16"},
        "mb": round(2 * frozen / 2**20, 2),
    }
    assert {row["dtype"] for row in rows.values() if row["trainable"]} == {"float32"}
    assert parameter_counts(model)["trainable"] == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_four_bit_weights_count_as_what_they_stand_for() -> None:
    plain = sum(p.numel() for p in load_base_model("tiny-llama").parameters())
    model = DeepMLFModel(
        load_base_model("tiny-llama", quantization="nf4"),
        DeepMLFConfig(fusion_layers=[1], modalities={"audio": {"dim": 3}}),
    )
    rows = [row for row in parameter_table(model) if not row["trainable"]]
    assert sum(row["parameters"] for row in rows) == plain
    assert "4-bit" in {row["dtype"] for row in rows}


def test_peak_memory_is_of_this_process() -> None:
    assert peak_memory_mb()["resident"] > 50
