"""An adapter's life: trained by transformers' own Trainer, on 4 bits, saved, resumed, switched; plain PEFT."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import Trainer, TrainingArguments

from deepmlf_llm.adapters import files
from deepmlf_llm.backbones import load_base_model, quantization_of
from deepmlf_llm.config.method import DeepMLFConfig
from deepmlf_llm.errors import AdapterError
from deepmlf_llm.model.merging import merge_adapter
from deepmlf_llm.model.peft_model import DeepMLFModel
from tests import devices

ROWS = [
    {
        "input_ids": torch.arange(6) * 7 + 3 + i,
        "attention_mask": torch.ones(6, dtype=torch.long),
        "audio": torch.sin(torch.arange(20.0) * (i + 1)).reshape(4, 5),
        "labels": torch.tensor(float(i % 5 - 2)),
    }
    for i in range(16)
]


def collate(rows):
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def fresh(quantization="none", seed=0, num_layers=None, **changes):
    torch.manual_seed(seed)
    base = load_base_model("tiny-llama", quantization=quantization, num_layers=num_layers)
    config = {"fusion_layers": [1, 2], "num_fusion_tokens": 2, "head_norm": "layer", **changes}
    return DeepMLFModel(base, DeepMLFConfig(modalities={"audio": {"dim": 5}}, **config))


def trainer(model, directory, steps=4):
    return Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(directory),
            max_steps=steps,
            per_device_train_batch_size=8,
            save_steps=2,
            eval_steps=2,
            eval_strategy="steps",
            load_best_model_at_end=True,
            learning_rate=1e-2,
            use_cpu=devices.chosen() == "cpu",
            remove_unused_columns=False,
            label_names=["labels"],
            report_to="none",
            disable_tqdm=True,
            logging_steps=1,
        ),
        train_dataset=ROWS,
        eval_dataset=ROWS[:4],
        data_collator=collate,
    )


def polarity(model):
    with torch.no_grad():
        return model.eval()(**collate(ROWS[:4])).polarity


def trained_bytes(model):
    return sum(4 * p.numel() for group in model.parameter_groups().values() for _, p in group)


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_transformers_own_trainer_saves_resumes_and_loads_the_best(quantization, tmp_path):
    settings = {"quantization": quantization, "r": 2}
    model = fresh(**settings)
    whole = trainer(model, tmp_path / "run")
    whole.train()
    checkpoint = tmp_path / "run" / "checkpoint-2"
    assert files.WEIGHTS in {path.name for path in checkpoint.iterdir()}
    weights = (checkpoint / files.WEIGHTS).read_bytes()
    header = 8 + int.from_bytes(weights[:8], "little")
    assert trained_bytes(model) <= len(weights) - header <= 1.02 * trained_bytes(model)
    assert header < 200 * len(load_file(checkpoint / files.WEIGHTS))

    again = fresh(seed=1, **settings)
    resumed = trainer(again, tmp_path / "run")
    resumed.train(resume_from_checkpoint=str(checkpoint))
    losses = [[line["loss"] for line in t.state.log_history if "loss" in line] for t in (whole, resumed)]
    assert losses[0] == losses[1]
    assert torch.equal(polarity(again), polarity(model))  # both hold the best weights now


def test_an_adapter_on_4_bits_with_lora_trains_saves_and_merges(tmp_path):
    model = fresh(quantization="nf4", r=2)
    trainer(model, tmp_path / "run").train()
    model.save_pretrained(tmp_path / "adapter")
    loaded = DeepMLFModel.from_pretrained(tmp_path / "adapter")
    assert quantization_of(loaded.get_base_model()) == "nf4"  # as trained, unasked
    assert torch.equal(polarity(loaded), polarity(model))
    report = merge_adapter(tmp_path / "adapter", tmp_path / "merged")
    assert max(d["largest"] for d in report.values()) < 1e-4


def test_plain_peft_saves_and_loads_it_too(tmp_path):
    torch.manual_seed(0)
    config = DeepMLFConfig(fusion_layers=[1], modalities={"audio": {"dim": 5}})
    plain = get_peft_model(load_base_model("tiny-llama"), config).eval()
    assert not isinstance(plain, DeepMLFModel)
    plain.save_pretrained(tmp_path / "adapter")
    assert json.loads((tmp_path / "adapter" / files.CONFIG).read_text())["weights_sha256"]
    loaded = DeepMLFModel.from_pretrained(tmp_path / "adapter")
    assert torch.equal(polarity(loaded), polarity(plain))
    loaded.save_pretrained(tmp_path / "again")
    back = PeftModel.from_pretrained(load_base_model("tiny-llama"), str(tmp_path / "again"))
    assert torch.equal(polarity(back), polarity(plain))


def test_plain_peft_seals_what_it_trained_further(tmp_path):
    fresh().save_pretrained(tmp_path / "adapter")
    plain = PeftModel.from_pretrained(load_base_model("tiny-llama"), str(tmp_path / "adapter"), is_trainable=True)
    with torch.no_grad():
        next(p for p in plain.parameters() if p.requires_grad).add_(1.0)
    plain.save_pretrained(tmp_path / "further")
    assert torch.equal(polarity(DeepMLFModel.from_pretrained(tmp_path / "further")), polarity(plain))


def test_an_adapter_of_a_cut_base_finds_it_and_cuts_it(tmp_path):
    model = fresh(num_layers=3)
    model.save_pretrained(tmp_path / "adapter")
    loaded = DeepMLFModel.from_pretrained(tmp_path / "adapter")
    assert loaded.get_base_model().config.num_hidden_layers == 3
    assert torch.equal(polarity(loaded), polarity(model))


@pytest.fixture
def two(tmp_path):
    """A model with one adapter, and another adapter's directory."""
    fresh(seed=2, num_fusion_tokens=3).save_pretrained(tmp_path / "other")
    return fresh(), tmp_path / "other"


def altered(directory, change):
    tensors = load_file(directory / files.WEIGHTS)
    change(tensors)
    save_file(tensors, directory / files.WEIGHTS)
    files.seal(directory, {}, directory)


@pytest.mark.parametrize("name", ["beside", "default"])
@pytest.mark.parametrize("damage", ["missing key", "misshapen", "truncated", "wrong base", "other kind"])
def test_a_second_adapter_that_does_not_fit_leaves_the_model_as_it_was(two, name, damage):
    model, other = two
    if damage == "missing key":
        altered(other, lambda t: t.pop("base_model.deepmlf.heads.av.bias"))
    elif damage == "misshapen":
        altered(other, lambda t: t.update({"base_model.deepmlf.heads.av.bias": torch.zeros(3)}))
    elif damage == "truncated":
        (other / files.WEIGHTS).write_bytes((other / files.WEIGHTS).read_bytes()[:-5])
    else:
        values = json.loads((other / files.CONFIG).read_text())
        values |= {"peft_type": "LORA"} if damage == "other kind" else {}
        values["base_fingerprint"]["vocabulary"] += damage == "wrong base"
        (other / files.CONFIG).write_text(json.dumps(values))
    before, keys = polarity(model), list(model.state_dict())
    trainable = {n for n, p in model.named_parameters() if p.requires_grad}
    with pytest.raises(AdapterError):
        model.load_adapter(other, name)
    assert list(model.peft_config) == ["default"]
    assert list(model.state_dict()) == keys
    assert {n for n, p in model.named_parameters() if p.requires_grad} == trainable
    assert torch.equal(polarity(model), before)


def test_a_second_adapter_is_loaded_but_not_made_active(two):
    model, other = two
    expected = polarity(DeepMLFModel.from_pretrained(other))
    before = polarity(model)
    model.load_adapter(other, "beside")
    assert torch.equal(polarity(model), before)
    model.set_adapter("beside")
    assert torch.equal(polarity(model), expected)
    model.delete_adapter("beside")
    assert torch.equal(polarity(model), before)


def test_a_pickle_beside_or_instead_of_the_weights_is_never_read(two):
    model, other = two
    shutil.move(other / files.WEIGHTS, other / "adapter_model.bin")
    with pytest.raises(AdapterError, match=r"no adapter_model\.safetensors"):
        model.load_adapter(other, "beside")
    with pytest.raises(AdapterError, match=r"no adapter_model\.safetensors"):
        DeepMLFModel.from_pretrained(other)


def test_a_base_of_another_kind_is_refused(two):
    _, other = two
    with pytest.raises(AdapterError, match="not a causal language model"):
        DeepMLFModel.from_pretrained(other, base=torch.nn.Linear(2, 2))
    with pytest.raises(AdapterError, match="carries a PEFT adapter already"):
        DeepMLFModel.from_pretrained(other, base=fresh())
