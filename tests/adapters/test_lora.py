"""LoRA on the LM, alone: plain PEFT loads it, and it is where Trainer does not trip over it."""

from __future__ import annotations

import json

import pytest
import torch
from peft import PeftModel

from deepmlf_llm.adapters import lora
from deepmlf_llm.backbones import load_base_model
from deepmlf_llm.config.method import DeepMLFConfig
from deepmlf_llm.model.peft_model import DeepMLFModel

IDS = torch.arange(12).reshape(2, 6) * 9 + 3


def trained(name="tiny-llama", **changes):
    torch.manual_seed(0)
    model = DeepMLFModel(
        load_base_model(name), DeepMLFConfig(fusion_layers=[1, 3], modalities={"audio": {"dim": 5}}, **changes)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


@torch.no_grad()
def states(lm):
    return lm(IDS, output_hidden_states=True).hidden_states[-1]


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("tiny-llama", {"r": 4}),
        ("tiny-llama", {"r": 2, "lora_alpha": 32, "use_rslora": True, "target_modules": "all-linear"}),
        ("tiny-llama", {"r": 2, "use_dora": True, "target_modules": ["q_proj", "down_proj"]}),
        ("tiny-gpt2", {"r": 2, "fan_in_fan_out": True}),
    ],
)
def test_plain_peft_loads_it_on_a_plain_base(name, changes, tmp_path):
    model = trained(name, **changes)
    model.save_pretrained(tmp_path / "adapter")
    base = load_base_model(name)
    bare = states(base)
    plain = PeftModel.from_pretrained(base, tmp_path / "adapter" / "lora")
    assert not isinstance(plain, DeepMLFModel)
    assert torch.equal(states(plain), states(model.get_base_model()))  # the LM with its LoRA, nothing fused
    assert not torch.allclose(states(plain), bare, atol=1e-3)


def test_exactly_the_adapted_modules_are_written_down(tmp_path):
    model = trained(r=2, target_modules=["q_proj", "up_proj"])
    expected = sorted(f"model.layers.{i}.{name}" for i in range(4) for name in ("self_attn.q_proj", "mlp.up_proj"))
    model.save_pretrained(tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "lora" / "adapter_config.json").read_text())
    assert (config["peft_type"], config["target_modules"]) == ("LORA", expected)
    assert config["base_model_name_or_path"] == "tiny-llama"
    card = (tmp_path / "adapter" / "README.md").read_text()
    assert f"LoRA of rank 2 on {len(expected)} modules" in card
    assert all(f"`{name}`" in card for name in expected)


def test_lora_on_the_lm_never_touches_our_projections():
    names = [name for name, _ in trained(r=2, target_modules="all-linear").named_parameters() if "lora_" in name]
    in_lm = [name for name in names if name.startswith("base_model.model.")]
    ours = [name for name in names if name not in in_lm]
    assert len(lora.adapted_modules(in_lm)) == 4 * 7
    assert all(".ffw.ffw_lora." in name for name in ours)


def test_none_is_written_without_lora_on_the_lm_and_an_old_one_goes(tmp_path):
    trained(r=2).save_pretrained(tmp_path / "adapter")
    assert (tmp_path / "adapter" / "lora").is_dir()
    trained().save_pretrained(tmp_path / "adapter")
    assert sorted(path.name for path in (tmp_path / "adapter").iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


def test_a_folder_of_that_name_that_is_not_ours_stays(tmp_path):
    own = tmp_path / "lora" / "adapter_model.safetensors"
    own.parent.mkdir()
    own.write_text("of another project")
    trained().save_pretrained(tmp_path)
    trained().save_pretrained(tmp_path)
    assert own.read_text() == "of another project"


def test_what_a_user_put_beside_the_copy_stays(tmp_path):
    trained(r=2).save_pretrained(tmp_path)
    (tmp_path / "lora" / "notes.txt").write_text("mine")
    trained().save_pretrained(tmp_path)
    assert [path.name for path in (tmp_path / "lora").iterdir()] == ["notes.txt"]


def test_trainers_checkpoints_hold_one_adapter_only(tmp_path):
    trained(r=2).save_pretrained(tmp_path / "checkpoint-12")
    assert not (tmp_path / "checkpoint-12" / "lora").exists()
    assert DeepMLFModel.from_pretrained(tmp_path / "checkpoint-12").deepmlf_config.r == 2
