"""Adapter files: exact round trip; whatever is damaged ends in one error type, and nothing is loaded."""

from __future__ import annotations

import copy
import json
import shutil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from deepmlf_llm.adapters import files
from deepmlf_llm.adapters.compatibility import adapter_tensors
from deepmlf_llm.backbones import load_base_model
from deepmlf_llm.config.method import DeepMLFConfig
from deepmlf_llm.errors import AdapterError
from deepmlf_llm.model.peft_model import DeepMLFModel
from tests.adapters.damage import damaged
from tests.examples import examples

IDS = torch.arange(12).reshape(2, 6) * 9 + 3
AUDIO = torch.linspace(-1, 1, 2 * 4 * 5).reshape(2, 4, 5)


def make_model(name="tiny-llama", **changes):
    torch.manual_seed(0)
    config = DeepMLFConfig(fusion_layers=[1, 3], modalities={"audio": {"dim": 5}}, **changes)
    model = DeepMLFModel(load_base_model(name), config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.02 * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture(scope="module")
def model():
    """Small, because thousands of damaged copies of its file are read below."""
    av_encoder = {"width": 12, "num_layers": 1, "num_heads": 2, "ffw_width": 16}
    return make_model(num_fusion_tokens=2, ffw_lora_r=2, gca_head_width=4, head_width=8, av_encoder=av_encoder)


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    directory = tmp_path_factory.mktemp("adapter") / "whole"
    model.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def expected(model):
    return adapter_tensors(model, "default")


@pytest.fixture(scope="module")
def sealed(saved):
    return files.read_config(saved)


@pytest.fixture
def duplicate(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "adapter")


def polarity(model):
    with torch.no_grad():
        return model(IDS, audio=AUDIO).polarity


@pytest.mark.parametrize("changes", [{}, {"r": 4}, {"ffw_weights": "copy"}, {"gate": "none", "ffw_scope": "fusion"}])
def test_round_trip_is_exact(changes, tmp_path):
    model = make_model(**changes)
    model.save_pretrained(tmp_path / "adapter")
    loaded = DeepMLFModel.from_pretrained(tmp_path / "adapter")
    assert torch.equal(polarity(loaded), polarity(model))
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())
    again = DeepMLFModel.from_pretrained(tmp_path / "adapter", is_trainable=True)
    assert {n for n, p in again.named_parameters() if p.requires_grad} == {
        n for n, p in model.named_parameters() if p.requires_grad
    }


def test_the_file_holds_what_was_trained_and_little_else(model, saved):
    trained = {n: p for group in model.parameter_groups().values() for n, p in group}
    tensors = load_file(saved / files.WEIGHTS)
    buffers = {name for name in tensors if "running_" in name or name.endswith("num_batches_tracked")}
    assert len(tensors) - len(buffers) == len(trained)
    payload = sum(t.numel() * t.element_size() for t in tensors.values())
    assert payload <= 1.02 * sum(4 * p.numel() for p in trained.values())
    assert {path.name for path in saved.iterdir()} == {files.CARD, files.WEIGHTS, files.CONFIG}


def test_the_config_says_what_it_belongs_to(saved):
    values = json.loads((saved / files.CONFIG).read_text())
    assert values["schema_version"] == 2
    assert values["base_model_name_or_path"] == "tiny-llama"
    assert {"family", "width", "layers", "vocabulary", "weights", "sketch"} < values["base_fingerprint"].keys()
    assert "torch" in values["package_versions"]
    assert values["modalities"]["audio"]["dim"] == 5


@pytest.mark.parametrize(
    ("base", "named"),
    [("tiny-mistral", "family"), ("tiny-gpt2", "family"), ("cut", "layers"), ("other weights", "weights")],
)
def test_a_wrong_base_is_refused_by_name_and_left_as_it_was(saved, base, named):
    lm = load_base_model(
        "tiny-llama" if " " in base or base == "cut" else base, num_layers=3 if base == "cut" else None
    )
    if base == "other weights":
        lm.get_input_embeddings().weight.data.mul_(1.5)
    keys = list(lm.state_dict())
    with pytest.raises(AdapterError, match=f"another base model; .*{named}"):
        DeepMLFModel.from_pretrained(saved, base=lm)
    assert list(lm.state_dict()) == keys
    assert not any(module._forward_hooks for module in lm.modules())


def rewritten(directory, change):
    """The adapter with other tensors, its hash made to fit again: only names and shapes can give it away."""
    tensors = load_file(directory / files.WEIGHTS)
    change(tensors)
    save_file(tensors, directory / files.WEIGHTS)
    files.seal(directory, {}, directory)


def swap(tensors):
    a, b = "base_model.deepmlf.heads.text.weight", "base_model.deepmlf.heads.av.weight"
    tensors[a], tensors[b] = tensors[b].clone(), tensors[a].clone()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("base_model.deepmlf.heads.text.bias"), "missing .*heads.text.bias"),
        (lambda t: t.update(stranger=torch.zeros(2)), "unknown stranger"),
        (swap, "misshapen .*heads"),
        (lambda t: t.clear(), "missing"),
        (lambda t: t["base_model.deepmlf.heads.text.bias"].fill_(torch.nan), "not finite"),
    ],
)  # fmt: skip
def test_tensors_that_do_not_fit_are_named(duplicate, change, message):
    rewritten(duplicate, change)
    lm = load_base_model("tiny-llama")
    with pytest.raises(AdapterError, match=message):
        DeepMLFModel.from_pretrained(duplicate, base=lm)
    assert not any(module._forward_hooks for module in lm.modules())


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """One directory for all examples of a sweep: making thousands takes longer than checking them."""
    return tmp_path_factory.mktemp("damaged")


@examples(1500)
@given(data=st.data())
def test_damaged_weights_always_end_in_the_documented_error(saved, sealed, place, data):
    whole = (saved / files.WEIGHTS).read_bytes()
    _, raw = damaged(data, whole, len(whole))
    if raw == whole:
        return
    (place / files.WEIGHTS).write_bytes(raw)
    with pytest.raises(AdapterError):
        files.read_weights(place, sealed)
    # Even where the hash is made to fit, only a whole, finite file is read; the rest is check_tensors' business.
    unsealed = copy.copy(sealed)
    unsealed.weights_sha256 = None
    try:
        tensors = files.read_weights(place, unsealed)
    except AdapterError:
        return
    assert all(t.isfinite().all() for t in tensors.values() if t.is_floating_point())


@examples(400)
@given(data=st.data())
def test_whole_files_with_other_tensors_always_end_in_the_documented_error(expected, sealed, saved, place, data):
    tensors = load_file(saved / files.WEIGHTS)
    names = st.sampled_from(sorted(name for name, t in tensors.items() if t.is_floating_point()))
    name, other = data.draw(names), data.draw(names)
    kind = data.draw(st.sampled_from(["drop", "rename", "add", "reshape", "exchange", "empty", "integers", "value"]))
    tensor = tensors[name]
    if kind == "drop":
        del tensors[name]
    elif kind == "rename":
        tensors[data.draw(st.text("abc.", min_size=1, max_size=6))] = tensors.pop(name)
    elif kind == "add":
        tensors[data.draw(st.text("abc.", min_size=1, max_size=6))] = torch.zeros(data.draw(st.integers(0, 3)))
    elif kind == "reshape":
        shapes = [s for s in (tensor[None].shape, tensor.shape[::-1], tensor.flatten().shape) if s != tensor.shape]
        tensors[name] = tensor.reshape(data.draw(st.sampled_from(shapes)))
    elif kind == "exchange" and tensor.shape != tensors[other].shape:
        tensors[name], tensors[other] = tensors[other], tensor
    elif kind == "empty":
        tensors[name] = tensor.new_zeros(0)
    elif kind == "integers":
        tensors[name] = tensor.long()
    else:
        place_of = data.draw(st.integers(0, tensor.numel() - 1))
        tensor.view(-1)[place_of] = data.draw(st.sampled_from([torch.nan, torch.inf, -torch.inf]))
    save_file({n: t.contiguous() for n, t in tensors.items()}, place / files.WEIGHTS)
    config = copy.copy(sealed)
    config.weights_sha256 = files.sha256(place / files.WEIGHTS)  # made to fit
    with pytest.raises(AdapterError):
        files.check_tensors(files.read_weights(place, config), expected, place)


@examples(200)
@given(
    field=st.sampled_from(["family", "width", "layers", "vocabulary", "shapes", "weights"]),
    value=st.integers(1, 2**31) | st.text(max_size=16),
)
def test_any_other_base_is_refused_by_name(model, sealed, saved, field, value):
    config = copy.copy(sealed)
    if config.base_fingerprint[field] == value:
        return
    config.base_fingerprint = config.base_fingerprint | {field: value}
    with pytest.raises(AdapterError, match=f"another base model; {field}"):
        files.check_base(config, model.get_base_model(), saved)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(allow_nan=True) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@examples(800)
@given(data=st.data())
def test_damaged_configs_end_in_the_documented_error_or_are_sound(saved, place, data):
    content = (saved / files.CONFIG).read_bytes()
    values = json.loads(content)
    kind = data.draw(st.sampled_from(["bytes", "value", "key", "truncate"]))
    if kind == "truncate":
        content = content[: data.draw(st.integers(0, len(content) - 3))]
    elif kind == "bytes":
        at = data.draw(st.integers(0, len(content) - 1))
        content = content[:at] + data.draw(st.binary(min_size=1, max_size=4)) + content[at + 1 :]
    else:
        key = data.draw(st.sampled_from(sorted(values)) if kind == "value" else st.text(min_size=1, max_size=12))
        values[key] = data.draw(JSON_VALUES)
        content = json.dumps(values).encode()
    (place / files.CONFIG).write_bytes(content)
    try:
        config = files.read_config(place)
    except AdapterError:
        return
    assert isinstance(config, DeepMLFConfig)  # changed, but sound: a description, say


def test_a_failed_save_leaves_the_old_adapter(model, duplicate, monkeypatch):
    before = {path.name: path.read_bytes() for path in duplicate.iterdir()}
    monkeypatch.setattr(files, "check_tensors", lambda *a: (_ for _ in ()).throw(AdapterError("empty")))
    with pytest.raises(AdapterError, match="empty"):
        model.save_pretrained(duplicate)
    assert {path.name: path.read_bytes() for path in duplicate.iterdir()} == before
    assert [path.name for path in duplicate.parent.iterdir()] == ["adapter"]


def test_several_adapters_on_one_base_are_switched(model, saved, tmp_path):
    other = make_model(num_fusion_tokens=3)
    expected = polarity(model), polarity(other)
    other.save_pretrained(tmp_path / "other")
    both = DeepMLFModel.from_pretrained(saved)
    both.load_adapter(tmp_path / "other", "other")
    both.set_adapter("other")
    assert torch.equal(polarity(both), expected[1])
    both.save_pretrained(tmp_path / "again")
    assert torch.equal(polarity(DeepMLFModel.from_pretrained(tmp_path / "again")), expected[1])
    both.set_adapter("default")
    assert torch.equal(polarity(both), expected[0])


@pytest.mark.parametrize("name", ["missing", "empty"])
def test_what_is_no_adapter_is_refused(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(AdapterError, match="expected the directory of a saved adapter"):
        DeepMLFModel.from_pretrained(tmp_path / name)


@pytest.mark.timeout(30)
def test_a_header_of_many_empty_tensors_is_refused_before_they_are_made(tmp_path):
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    header = json.dumps({f"a{i}": entry for i in range(100_000)}).encode()
    (tmp_path / files.WEIGHTS).write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(AdapterError, match="some 100001 tensors; an adapter has at most 20000"):
        files.read_weights(tmp_path, DeepMLFConfig(modalities={"audio": {"dim": 5}}))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 200_000, "nested too deep"),
        ('{"peft_type": "DEEPMLF", "peft_type": "DEEPMLF"}', "the key 'peft_type' stands there twice"),
        ("{" + ", ".join(f'"k{i}": 1' for i in range(6000)) + "}", "6000 keys"),
        (" " * (files.CONFIG_LIMIT + 1), "settings have at most"),
    ],
)
def test_settings_that_only_an_attack_needs_are_refused(tmp_path, text, message):
    (tmp_path / files.CONFIG).write_text(text)
    with pytest.raises(AdapterError, match=message):
        files.read_config(tmp_path)
