"""DeepMLF as a PEFT method: what trains, what PEFT does with it, and a frozen LM that stays frozen."""

from __future__ import annotations

import copy
import json
import logging

import peft
import pytest
import torch
from torch.testing import assert_close

from deepmlf_llm.config.method import DeepMLFConfig
from deepmlf_llm.errors import AdapterError, ConfigError, InjectionError
from deepmlf_llm.fusion.hooks import Injection
from deepmlf_llm.model.peft_model import DeepMLFModel
from tests.families import FAMILY_NAMES, randomise, tiny_batch, tiny_config, tiny_family, tiny_model

LORA = {"r": 2, "target_modules": ["q_proj", "v_proj"]}
SMALL = {"ffw_scope": "fusion", "fusion_layers": [2]}

ENCODERS = [
    f"av_encoder.encoders.{name}.{part}"
    for name in ("audio", "vision")
    for part in (
        "projection.weight",
        *(
            f"layers.{i}.{module}.{kind}"
            for i in range(2)
            for module in ("attention_norm", "query_key_value", "output", "ffw_norm", "ffw.0", "ffw.3")
            for kind in ("weight", "bias")
        ),
    )
]
KINDS = ("weight", "bias")
HEADS = [f"heads.{name}.{kind}" for name in ("task.1", "task.2", "task.4", "fusion", "text", "av") for kind in KINDS]
COMMON = [
    "fusion_tokens.embedding.weight",
    "context_projection.weight",
    *ENCODERS,
    *HEADS,
    *(f"av_encoder.{name}.{kind}" for name in ("join", "norm") for kind in ("weight", "bias")),
]
BLOCK = ["cross_attention.mm_query.weight", "cross_attention.mm_output.weight"]
GATES = ["cross_attention.gate.alpha", "ffw_gate.alpha"]
NORMS = {
    "llama": ["attention_norm.weight", "ffw_norm.weight"],
    "gpt2": [f"{name}.{kind}" for name in ("attention_norm", "ffw_norm") for kind in ("weight", "bias")],
}
ROLES = {"llama": ("gate", "up", "down"), "gpt2": ("up", "down")}


def expected_names(family, weights="shared", gate="sigmoid"):
    if weights == "shared":
        ffw = [f"ffw.ffw_lora.{role}.{part}.weight" for role in ROLES[family] for part in ("low", "high")]
    else:
        kinds = ("weight", "bias") if family == "gpt2" else ("weight",)
        ffw = [f"ffw.own.{role}.{kind}" for role in ROLES[family] for kind in kinds]
    block = [*BLOCK, *NORMS[family], *ffw, *(GATES if gate != "none" else [])]
    names = [*COMMON, *(f"mm_blocks.{layer}.{name}" for layer in (1, 3) for name in block)]
    return {f"base_model.deepmlf.default.{name}" for name in names}


def trainable(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def step(model, optimizer, batch=None):
    loss = model(**(batch or tiny_batch())).loss
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def adamw(model, lr=1e-2):
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr)


@pytest.mark.parametrize("gate", ["sigmoid", "tanh", "none"])
@pytest.mark.parametrize("weights", ["shared", "copy"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_exactly_the_expected_parameters_are_trainable(family, weights, gate):
    model = DeepMLFModel(tiny_family(family).requires_grad_(True), tiny_config(ffw_weights=weights, gate=gate))
    assert trainable(model) == expected_names(family, weights, gate)


def test_lora_on_the_lm_adds_itself_only():
    model = DeepMLFModel(tiny_family("llama"), tiny_config(**LORA))
    lora = trainable(model) - expected_names("llama")
    assert lora == {
        f"base_model.model.model.layers.{i}.self_attn.{name}.lora_{part}.default.weight"
        for i in range(4)
        for name in ("q_proj", "v_proj")
        for part in "AB"
    }
    assert expected_names("llama") < trainable(model)


@pytest.mark.parametrize("settings", [{}, {"ffw_weights": "copy"}, SMALL, {"gate": "tanh"}, LORA, {**LORA, **SMALL}])
def test_all_of_them_learn_and_nothing_frozen_changes(settings):
    # Under L1 the gradients of two utterances, +1 and -1, may cancel exactly.
    model = DeepMLFModel(tiny_family("llama"), tiny_config(objective={"loss": "mse"}, **settings))
    frozen = {
        name: tensor.clone() for name, tensor in model.base_model.model.state_dict().items() if "lora_" not in name
    }
    learning = {name: p.clone() for name, p in model.named_parameters() if p.requires_grad}
    optimizer = adamw(model)
    model.train()
    for _ in range(3):  # LoRA's A moves once its B has; behind a shut tanh gate everything waits for the gate
        step(model, optimizer)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.count_nonzero(), name
            assert not torch.equal(parameter, learning[name]), name
        else:
            assert parameter.grad is None, name
    after = model.base_model.model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in frozen.items())


@pytest.mark.parametrize("names", [("audio",), ("audio", "heart_rate", "vision")])
def test_any_number_of_modalities_trains(names):
    dims = {"audio": {"dim": 3}, "vision": {"dim": 5}, "heart_rate": {"dim": 1}}
    model = DeepMLFModel(tiny_family("llama"), tiny_config(modalities={name: dims[name] for name in names}))
    batch = {
        key: x
        for key, x in tiny_batch().items()
        if key.split("_mask")[0] in (*names, "input_ids", "attention", "labels")
    }
    batch["attention_mask"] = tiny_batch()["attention_mask"]
    if "heart_rate" in names:
        batch |= {"heart_rate": torch.randn(3, 9, 1), "heart_rate_mask": torch.ones(3, 9).bool()}
    model.train()
    optimizer = adamw(model, 3e-3)
    losses = [step(model, optimizer, batch) for _ in range(12)]
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.parametrize("present", [(), ("audio",), ("vision",), ("audio", "vision")])
@pytest.mark.parametrize("scope", ["joint", "fusion"])
def test_every_combination_of_missing_modalities_trains(scope, present):
    model = DeepMLFModel(tiny_family("llama"), tiny_config(ffw_scope=scope))
    batch = tiny_batch()
    for name in ("audio", "vision"):
        batch[f"{name}_mask"] = torch.full_like(batch[f"{name}_mask"], name in present)
    model.train()
    optimizer = adamw(model, 3e-3)
    losses = [step(model, optimizer, batch) for _ in range(8)]
    assert losses[-1] < losses[0]
    assert all(p.isfinite().all() for p in model.parameters())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("family", FAMILY_NAMES)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_frozen_lm_never_drops_out(family, checkpointing, recwarn):
    model = tiny_model(tiny_family(family), av_encoder={"width": 12, "num_heads": 3, "dropout": 0.0}, head_norm="layer")
    if checkpointing:
        model.gradient_checkpointing_enable()
    batch = tiny_batch()
    expected = model(**batch).loss
    model.train()
    assert model.training
    assert model.base_model.active_stack.training
    assert_close(model(**batch).loss, expected, rtol=1e-5, atol=1e-6)
    assert not any(module.training for module in model.base_model.model.modules() if not list(module.children()))


@pytest.mark.parametrize("dora", [False, True])
def test_dropout_of_lora_on_the_lm_acts_in_training(dora):
    model = randomise(
        DeepMLFModel(tiny_family("llama"), tiny_config(**LORA, lora_dropout=0.5, use_dora=dora, head_norm="layer"))
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    stack = model.base_model.active_stack
    batch = tiny_batch()

    def text_polarity():
        with torch.no_grad():
            return model(**batch).text_polarity

    assert torch.equal(text_polarity(), text_polarity())
    model.train()
    stack.eval()  # leaves the LM's LoRA as the only source of chance
    assert not torch.allclose(text_polarity(), text_polarity())


def test_lora_on_the_lm_computes_the_text_with_the_rest(monkeypatch):
    import deepmlf_llm.fusion.passes as room

    def never(*args, **kwargs):
        raise AssertionError("a text that changes at every step was computed without a graph")

    monkeypatch.setattr(room, "read_text", never)
    model = tiny_model(tiny_family("llama"), **LORA)
    model(**tiny_batch()).text_polarity.sum().backward()
    with pytest.raises(AssertionError):
        tiny_model(tiny_family("llama"))(**tiny_batch())


def gradients(model, batches):
    model.zero_grad()
    sum(model(**batch).loss for batch in batches).backward()  # several passes are alive at once
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("settings", [{}, SMALL, LORA, {**LORA, **SMALL}])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_activation_checkpointing_changes_no_gradient(family, settings):
    if "r" in settings and family == "gpt2":
        settings = {**settings, "target_modules": ["c_attn"]}
    dry = {"av_encoder": {"width": 12, "num_layers": 1, "num_heads": 3, "dropout": 0.0}, "objective": {"gamma": 0.5}}
    if settings.get("ffw_scope") == "fusion" and "r" not in settings:
        dry["objective"] = {}
    model = tiny_model(tiny_family(family), **settings, **dry)
    batches = [tiny_batch(), {name: x[[2, 0, 1]] for name, x in tiny_batch(labels=torch.ones(3)).items()}]
    model.train()
    expected = gradients(model, batches)
    model.gradient_checkpointing_enable()
    model.train()
    recomputed = sum(layer.gradient_checkpointing and layer.training for layer in model.base_model.fused.decoder.layers)
    assert recomputed == 4
    found = gradients(model, batches)
    for name, gradient in expected.items():
        assert_close(found[name], gradient, rtol=1e-3, atol=1e-5, msg=name)
    # Nothing of the last pass stays behind.
    base = copy.deepcopy(tiny_family(family))
    ids = tiny_batch()["input_ids"]
    with model.disable_adapter():
        assert torch.equal(model.base_model.model(ids).logits, base(ids).logits)


def test_checkpointing_recomputes_mm_blocks_too():
    """Their activations are as large as an LM block's."""

    def kept(model):
        held = []

        def pack(tensor):
            held.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = model(**tiny_batch(padding=40)).loss
        loss.backward()
        return sum(held)

    model = tiny_model(tiny_family("llama"), **LORA).train()
    before = kept(model)
    model.gradient_checkpointing_enable()
    model.train()
    assert kept(model) < before / 2


def test_reentrant_checkpointing_is_refused():
    model = tiny_model(tiny_family("llama"))
    model.gradient_checkpointing_enable({"use_reentrant": True})
    with pytest.raises(ConfigError, match="must not be reentrant"):
        model.train()


@pytest.mark.parametrize("settings", [{}, LORA])
def test_a_deep_copy_runs_its_own_blocks(settings):
    model = tiny_model(tiny_family("llama"), **settings)
    batch = tiny_batch()
    expected = model(**batch).polarity.detach()
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in twin.base_model.active_stack.parameters():
            parameter.zero_()
        twin.base_model.model.model.norm.weight.zero_()
    assert_close(model(**batch).polarity, expected, rtol=0, atol=0)
    assert torch.equal(twin(**batch).polarity, torch.zeros(3))
    assert {id(p) for p in model.parameters()}.isdisjoint(id(p) for p in twin.parameters())
    base = twin.eject()
    assert not any(layer._forward_hooks for layer in base.model.layers)
    assert_close(model(**batch).polarity, expected, rtol=0, atol=0)


@pytest.mark.parametrize("settings", [{}, LORA])
def test_peft_round_trip(tmp_path, settings):
    batch = tiny_batch()
    base = tiny_family("llama")
    model = peft.get_peft_model(copy.deepcopy(base), tiny_config(**settings))
    assert isinstance(model, peft.PeftModelForCausalLM)
    randomise(model)
    model.train()
    step(model, adamw(model))  # moves BatchNorm's statistics, LoRA and all
    model.eval()
    model.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path)
    assert_close(again(**batch).polarity, model(**batch).polarity, rtol=0, atol=0)
    assert not trainable(again)
    resumed = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path, is_trainable=True)
    assert trainable(resumed) == trainable(model)
    assert_close(resumed.eval()(**batch).polarity, model(**batch).polarity, rtol=0, atol=0)
    import safetensors.torch

    saved = safetensors.torch.load_file(tmp_path / "adapter_model.safetensors")
    learned = {name.replace(".default", "") for name in trainable(model)}
    assert learned <= saved.keys()
    assert {name.rpartition(".")[2] for name in saved.keys() - learned} == {
        "running_mean", "running_var", "num_batches_tracked"
    }  # fmt: skip
    settings_saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert settings_saved["base_fingerprint"]["family"] == "llama"


@pytest.mark.parametrize("settings", [{}, LORA])
def test_several_adapters_live_side_by_side(tmp_path, settings):
    batch, base = tiny_batch(), tiny_family("llama")
    first, second = tiny_model(copy.deepcopy(base)), tiny_model(copy.deepcopy(base), **SMALL, **settings)
    first.save_pretrained(tmp_path / "a")
    second.save_pretrained(tmp_path / "b")
    expected = {name: m(**batch).polarity.detach() for name, m in (("default", first), ("b", second))}
    assert not torch.allclose(expected["default"], expected["b"])

    model = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "a", is_trainable=True)
    learning = trainable(model)
    model.load_adapter(tmp_path / "b", "b")
    assert trainable(model) == learning, "loading another adapter for inference freezes nothing else"
    model.eval()
    assert_close(model(**batch).polarity, expected["default"], rtol=0, atol=0)
    model.set_adapter("b")
    assert_close(model(**batch).polarity, expected["b"], rtol=0, atol=0)
    assert trainable(model)
    assert all(".b." in name for name in trainable(model))
    with pytest.raises(AdapterError, match=r"other settings than adapter 'b'.*ffw_scope='joint' \(there 'fusion'\)"):
        DeepMLFModel.load_adapter(model, tmp_path / "a", "b")
    model.load_adapter(tmp_path / "a", "c", is_trainable=True)
    assert {".b." in name or ".c." in name for name in trainable(model)} == {True}
    model.delete_adapter("default")
    assert model.active_adapters == ["b"], "deleting an inactive adapter leaves the active one"
    assert_close(model(**batch).polarity, expected["b"], rtol=0, atol=0)
    model.delete_adapter("b")
    assert model.active_adapters == ["c"]
    assert_close(model(**batch).polarity, expected["default"], rtol=0, atol=0)
    assert not any(".b." in name or ".default." in name for name in model.state_dict())
    with pytest.raises(InjectionError, match="one DeepMLF adapter can be active"):
        model.base_model.set_adapter(["c", "b"])


@pytest.mark.parametrize("settings", [{}, LORA])
def test_disabled_adapters_give_exactly_the_base(settings):
    base = tiny_family("llama")
    model = tiny_model(copy.deepcopy(base), **settings)
    batch = tiny_batch()
    fused = model(**batch).polarity
    text = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with model.disable_adapter():
        assert torch.equal(model(**text).logits, base(**text).logits)
    assert torch.equal(model(**batch).polarity, fused)
    status = model.get_model_status()
    assert (status.enabled, status.active_adapters, status.available_adapters) == (True, ["default"], ["default"])
    with pytest.raises(InjectionError, match=r"predicts polarity and writes no text.*disable_adapter"):
        model.generate(**text, max_new_tokens=2)
    with model.disable_adapter():
        written = model.generate(**text, max_new_tokens=2, do_sample=False)
    assert torch.equal(written, base.generate(**text, max_new_tokens=2, do_sample=False))


def test_a_text_cache_of_another_depth_is_never_read():
    base = tiny_family("llama")
    deep, shallow = {"fusion_layers": [2, 3]}, {"fusion_layers": [0, 3]}
    batch = tiny_batch()
    model = tiny_model(base, **deep)
    model.add_adapter("shallow", tiny_config(**shallow))
    model.add_adapter("fusion", tiny_config(**SMALL))
    expected = {}
    for name in ("default", "shallow", "fusion"):
        model.set_adapter(name)
        randomise(model)
        expected[name] = model(**batch).polarity.detach()
    for cached in expected:
        model.set_adapter(cached)
        model.enable_text_cache("memory")
        for _ in range(2):
            for name in expected:
                model.set_adapter(name)
                assert_close(model(**batch).polarity, expected[name], rtol=1e-5, atol=1e-6, msg=f"{cached}: {name}")


def test_an_adapter_of_another_base_is_refused(tmp_path):
    tiny_model(tiny_family("llama")).save_pretrained(tmp_path)
    other = tiny_family("llama", seed=5)
    with pytest.raises(InjectionError, match="belongs to another base model: weights: the adapter was trained on"):
        peft.PeftModel.from_pretrained(other, tmp_path)
    assert not any(layer._forward_hooks for layer in other.model.layers)
    with pytest.raises(InjectionError, match="family: the adapter was trained on llama, this base has mistral"):
        peft.PeftModel.from_pretrained(tiny_family("mistral"), tmp_path)


def test_one_config_serves_several_bases():
    config = tiny_config()
    first, second = (DeepMLFModel(tiny_family(name), config) for name in ("llama", "gpt2"))
    families = [model.deepmlf_config.base_fingerprint["family"] for model in (first, second)]
    assert families == ["llama", "gpt2"]
    assert config.base_fingerprint is None


def test_a_refused_second_adapter_leaves_the_first_as_it_was():
    model = tiny_model(tiny_family("llama"))
    batch = tiny_batch()
    expected, learning = model(**batch).polarity.detach(), trainable(model)
    with pytest.raises(ConfigError, match=r"\[7\] not in 0\.\.3"):
        model.add_adapter("b", tiny_config(fusion_layers=[7]))
    with pytest.raises(ConfigError, match=r"LoRA on the language model.*no_such"):
        model.add_adapter("b", tiny_config(r=2, target_modules=["no_such"]))
    assert list(model.peft_config) == ["default"]
    assert model.active_adapters == ["default"]
    assert trainable(model) == learning
    assert_close(model(**batch).polarity, expected, rtol=0, atol=0)


@pytest.mark.parametrize("settings", [{}, LORA])
def test_a_refused_second_model_on_one_base_leaves_the_first_as_it_was(settings):
    base, batch = tiny_family("llama"), tiny_batch()
    model = tiny_model(base, **settings)
    expected, learning, names = model(**batch).polarity, trainable(model), [name for name, _ in base.named_modules()]
    for _ in range(2):
        with pytest.raises(InjectionError, match="carries a PEFT adapter already"):
            peft.get_peft_model(base, tiny_config(**settings))
    assert trainable(model) == learning
    assert [name for name, _ in base.named_modules()] == names
    assert_close(model(**batch).polarity, expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["a.b", ""])
def test_an_adapters_name_is_part_of_a_key(name):
    base = tiny_family("llama")
    with pytest.raises(ConfigError, match=r"adapter_name=.*expected a name without dots"):
        DeepMLFModel(base, tiny_config(), name)
    model = DeepMLFModel(base, tiny_config())
    with pytest.raises(ConfigError, match="adapter_name="):
        model.add_adapter(name, tiny_config())
    assert list(model.peft_config) == ["default"]


def test_one_target_by_name_is_that_target():
    model = tiny_model(tiny_family("llama"), r=2, target_modules="q_proj")
    assert all(".q_proj." in name for name in trainable(model) if ".deepmlf." not in name)
    assert model.parameter_groups()["lm_lora"]


def test_a_model_whose_blocks_are_out_predicts_nothing():
    model, batch = tiny_model(tiny_family("llama")), tiny_batch()
    merged = tiny_model(tiny_family("llama"))
    merged.merge_and_unload()
    model.eject()
    for gone in (model, merged):
        with pytest.raises(InjectionError, match="ejected or merged"):
            gone(**batch)


def test_lora_targets_that_do_not_exist_leave_the_base_bare():
    base = tiny_family("llama").requires_grad_(True)
    with pytest.raises(ConfigError, match="LoRA on the language model"):
        DeepMLFModel(base, tiny_config(r=2, target_modules=["no_such"]))
    assert all(p.requires_grad for p in base.parameters())
    assert not any(module._forward_hooks for module in base.modules())
    DeepMLFModel(base, tiny_config())


def test_nothing_is_said_to_users_who_did_nothing_wrong(caplog, recwarn):
    with caplog.at_level(logging.WARNING):
        tiny_model(tiny_family("llama"))(**tiny_batch())
    assert not caplog.records
    assert not [w for w in recwarn if "deprecated" not in str(w.message)]


def test_hooks_hold_no_state():
    model = tiny_model(tiny_family("llama"))
    model(**tiny_batch()).loss.backward()
    injection = model.base_model.fused.injection
    assert isinstance(injection, Injection)
    assert set(vars(injection)) == {"decoder", "_handles"}


def test_a_foreign_config_is_refused():
    with pytest.raises(ConfigError, match="config is a LoraConfig, expected a DeepMLFConfig"):
        DeepMLFModel(tiny_family("llama"), peft.LoraConfig())
    assert issubclass(DeepMLFConfig, peft.LoraConfig)


def test_merging_in_place_is_refused_where_mm_blocks_share_what_would_change():
    batch = tiny_batch()
    model = tiny_model(tiny_family("llama"), **LORA)
    with pytest.raises(InjectionError, match=r"would change the FFW weights .* use merge_and_unload"):
        model.merge_adapter()
    model = tiny_model(tiny_family("llama"), r=2, target_modules=["up_proj"], ffw_weights="copy")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    expected = model(**batch).polarity.detach()
    model.merge_adapter()
    assert_close(model(**batch).polarity, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("settings", [{}, LORA])
def test_low_cpu_mem_usage_gives_the_same_model(tmp_path, settings):
    """PEFT would make weights on the meta device; ours are made as always."""
    batch = tiny_batch()
    model = randomise(peft.get_peft_model(tiny_family("llama"), tiny_config(**settings), low_cpu_mem_usage=True))
    assert not any(p.is_meta for p in model.parameters())
    assert trainable(model) == trainable(peft.get_peft_model(tiny_family("llama"), tiny_config(**settings)))
    model.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(tiny_family("llama"), tmp_path, low_cpu_mem_usage=True)
    assert_close(again(**batch).polarity, model(**batch).polarity, rtol=0, atol=0)
    again.load_adapter(tmp_path, "b", low_cpu_mem_usage=True)
    again.set_adapter("b")
    assert_close(again(**batch).polarity, model(**batch).polarity, rtol=0, atol=0)


@pytest.mark.parametrize("settings", [{}, LORA, {"ffw_weights": "copy"}])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_an_lm_in_float64_is_served_in_float64(tmp_path, family, settings):
    if "r" in settings and family == "gpt2":
        settings = {**settings, "target_modules": ["c_attn"]}
    batch = tiny_batch()
    model = tiny_model(tiny_family(family).double(), **settings)
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    out = model(**batch)
    out.loss.backward()
    single = tiny_model(tiny_family(family), **settings)
    single.load_state_dict(model.state_dict())
    assert_close(out.polarity.float(), single(**batch).polarity)
    model.save_pretrained(tmp_path)
    again = DeepMLFModel.from_pretrained(tmp_path, base=tiny_family(family).double())
    assert_close(again(**batch).polarity, out.polarity, rtol=0, atol=0)
    merged = again.merge_and_unload()
    assert_close(merged(**batch).polarity, out.polarity.detach(), rtol=1e-9, atol=1e-9)
