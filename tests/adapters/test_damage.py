"""Thousands of damaged adapters and wrong bases through the public door: each one ends in AdapterError, nothing loaded.

A seal that stands would hide what lies behind it. So most of these damages are sealed again, or have their seal taken
out, as whoever edits a file on purpose can do: then shapes and settings alone must give them away.
"""

from __future__ import annotations

import copy
import json
import math
import resource
import shutil
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from deepmlf_llm.adapters import files
from deepmlf_llm.adapters.seal import sealed
from deepmlf_llm.backbones import loading
from deepmlf_llm.config.method import DeepMLFConfig
from deepmlf_llm.errors import AdapterError
from deepmlf_llm.model.peft_model import DeepMLFModel
from tests.adapters.damage import damaged
from tests.examples import examples

IDS = torch.arange(12).reshape(2, 6) * 9 + 3
AUDIO = torch.linspace(-1, 1, 2 * 4 * 5).reshape(2, 4, 5)
STANDARDISATION = {"mean": [0.0] * 5, "std": [1.0] * 5, "clip": 10.0, "constant": []}
HUGE = [2**20, 2**31, 2**40, 2**62, 2**64, 10**30]


class Base:
    """A toy that every refusal must leave as it was."""

    def __init__(self, name="tiny-llama", **changes):
        self.lm = loading.toy_model(name, **changes)
        self.modules = list(self.lm.named_modules())
        self.parameters = [(name, p, p.requires_grad) for name, p in self.lm.named_parameters()]
        self.logits = self._logits()

    @torch.no_grad()
    def _logits(self):
        return self.lm(IDS).logits

    def assert_untouched(self):
        assert list(self.lm.named_modules()) == self.modules
        found = [(name, p, p.requires_grad) for name, p in self.lm.named_parameters()]
        assert all(a[0] == b[0] and a[1] is b[1] and a[2] == b[2] for a, b in zip(found, self.parameters, strict=True))
        assert not any(module._forward_hooks or module._forward_pre_hooks for _, module in self.modules)
        assert not hasattr(self.lm, "peft_config")
        assert torch.equal(self._logits(), self.logits)

    def refuses(self, directory):
        with pytest.raises(AdapterError) as caught:
            DeepMLFModel.from_pretrained(directory, base=self.lm)
        assert str(directory) in str(caught.value)
        self.assert_untouched()


@pytest.fixture(scope="module")
def base():
    return Base()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A sound adapter: LoRA on the LM with DoRA on top, so that every kind of tensor is there."""
    torch.manual_seed(0)
    config = DeepMLFConfig(
        fusion_layers=[1, 3], num_fusion_tokens=2, ffw_lora_r=2, gca_heads=2, gca_head_width=4, head_width=8,
        modalities={"audio": {"dim": 5, "standardisation": STANDARDISATION}, "vision": {"dim": 3}},
        av_encoder={"width": 12, "num_layers": 1, "num_heads": 2, "ffw_width": 16},
        r=2, target_modules=["q_proj", "v_proj"], use_dora=True,
    )  # fmt: skip
    directory = tmp_path_factory.mktemp("adapter") / "whole"
    DeepMLFModel(loading.toy_model("tiny-llama"), config).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def place(whole, tmp_path_factory):
    """One directory for all examples; each writes both files, or one of them, anew."""
    return shutil.copytree(whole, tmp_path_factory.mktemp("damaged") / "adapter")


def write(place, whole, weights=None, values=None, seal="again"):
    """An adapter with these tensors' bytes and settings.

    Args:
        seal: of the settings: ``"again"``: made to fit; ``"out"``: taken out; ``"old"``: left as it was. The weights'
            hash is made to fit but for ``"old"``.
    """
    values = json.loads((whole / files.CONFIG).read_text()) if values is None else copy.deepcopy(values)
    raw = (whole / files.WEIGHTS).read_bytes() if weights is None else weights
    (place / files.WEIGHTS).write_bytes(raw)
    if seal != "old":
        if weights is not None:
            values["weights_sha256"] = files.sha256(place / files.WEIGHTS)
        values.pop("settings_sha256", None)
    text = sealed(values) if seal == "again" else json.dumps(values)
    (place / files.CONFIG).write_text(text)


def test_the_whole_adapter_loads_and_is_taken_out_again(whole, place, base):
    write(place, whole)
    model = DeepMLFModel.from_pretrained(place, base=base.lm)
    assert model(IDS, audio=AUDIO).polarity.isfinite().all()
    assert model.eject() is base.lm
    base.assert_untouched()


@examples(500)
@given(data=st.data(), seal=st.sampled_from(["again", "out", "old"]))
def test_damaged_bytes_of_weights(whole, place, base, data, seal):
    whole_raw = (whole / files.WEIGHTS).read_bytes()
    head = 8 + int.from_bytes(whole_raw[:8], "little")
    # Flips of the payload make another adapter, where whoever flips seals it too.
    kind, raw = damaged(data, whole_raw, len(whole_raw) if seal == "old" else head)
    assume(raw != whole_raw)
    write(place, whole, raw, seal=seal)
    if kind == "flip" and seal != "old" and tells_the_same(place, whole):
        assume(False)
    base.refuses(place)


def tells_the_same(place, whole):
    """A flip in the header's free words ("format": "pt") changes no tensor."""
    try:
        found, expected = load_file(place / files.WEIGHTS), load_file(whole / files.WEIGHTS)
    except Exception:
        return False
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


@examples(300)
@given(data=st.data(), seal=st.sampled_from(["again", "out"]))
def test_other_tensors(whole, place, base, data, seal):
    tensors = load_file(whole / files.WEIGHTS)
    names = st.sampled_from(sorted(name for name, t in tensors.items() if t.is_floating_point()))
    name, other = data.draw(names), data.draw(names)
    kinds = ["drop", "rename", "add", "reshape", "exchange", "empty", "type", "value", "several"]
    kind = data.draw(st.sampled_from(kinds))
    tensor = tensors[name]
    if kind == "drop":
        del tensors[name]
    elif kind == "rename":
        tensors[data.draw(st.text("abc.", min_size=1, max_size=6) | st.just(name + "_") | st.just(name[5:]))] = (
            tensors.pop(name)
        )
    elif kind == "add":
        layer = data.draw(st.integers(0, 9))
        extra = st.text("abc.", min_size=1, max_size=6) | st.just(f"base_model.model.model.layers.{layer}.mlp.weight")
        tensors[data.draw(extra)] = torch.zeros(data.draw(st.integers(0, 3)))
    elif kind == "reshape":
        shapes = [s for s in (tensor[None].shape, tensor.shape[::-1], tensor.flatten().shape) if s != tensor.shape]
        tensors[name] = tensor.reshape(data.draw(st.sampled_from(shapes)))
    elif kind == "exchange":
        assume(tensor.shape != tensors[other].shape)
        tensors[name], tensors[other] = tensors[other], tensor
    elif kind == "empty":
        tensors[name] = tensor.new_zeros(0)
    elif kind == "type":
        kinds_of = [torch.int64, torch.int8, torch.bool, torch.complex64, torch.float8_e4m3fn]
        tensors[name] = tensor.to(data.draw(st.sampled_from(kinds_of)))
    elif kind == "value":
        tensor.view(-1)[data.draw(st.integers(0, tensor.numel() - 1))] = data.draw(
            st.sampled_from([math.nan, math.inf, -math.inf])
        )
    else:
        gone = data.draw(st.sets(names, min_size=1, max_size=5))
        keep = data.draw(st.booleans())
        tensors = {key: t for key, t in tensors.items() if (key in gone) == keep}
    save_file({n: t.contiguous() for n, t in tensors.items()}, place / files.WEIGHTS)
    write(place, whole, (place / files.WEIGHTS).read_bytes(), seal=seal)
    base.refuses(place)


SIZES = st.sampled_from(HUGE) | st.integers(1, 70)
NONSENSE = st.none() | st.booleans() | st.floats() | st.text(max_size=4) | st.just([]) | st.just({}) | st.just([[1]])
SHAPED: dict[str, st.SearchStrategy[Any]] = {  # settings that the tensors' names and shapes depend on
    "num_fusion_tokens": SIZES | NONSENSE,
    "fusion_layers": st.lists(SIZES, max_size=4).filter(lambda layers: sorted(layers) != [1, 3])
    | st.sampled_from(["last:1", "even:3", "from:1", f"last:{10**30}"]),
    "ffw_weights": st.just("copy") | NONSENSE,
    "ffw_lora_r": SIZES | st.just(0) | NONSENSE,
    "r": SIZES | st.just(0) | NONSENSE,
    "use_dora": st.just(False) | st.text(max_size=4),
    "target_modules": st.sampled_from(["all-linear", ".*", ["q_proj"], ["nothing"], ["mm_query"], "(", "q_proj"]),
    "exclude_modules": st.sampled_from([["q_proj"], ".*v_proj", "("]),
    "layers_to_transform": st.lists(st.integers(0, 2), max_size=2, min_size=1) | st.sampled_from([7, -1, "x"]),
    "rank_pattern": st.dictionaries(st.sampled_from(["q_proj", "v_proj"]), SIZES.filter(lambda r: r != 2), min_size=1),
    "gca_heads": SIZES | NONSENSE,
    "gca_head_width": SIZES | NONSENSE,
    "head_width": SIZES | NONSENSE,
    "head_norm": st.just("layer") | NONSENSE,
    "num_outputs": SIZES | NONSENSE,
    "av_encoder.width": SIZES | NONSENSE,
    "av_encoder.num_layers": SIZES | st.just(0) | NONSENSE,
    "av_encoder.ffw_width": SIZES | NONSENSE,
    "modalities.audio.dim": SIZES | NONSENSE,
    "modalities.vision.dim": SIZES | NONSENSE,
    "modalities": st.just({}) | st.just({"audio": {"dim": 5}}) | st.just({"a": {"dim": 5}, "vision": {"dim": 3}}),
    "modalities.audio.standardisation": st.sampled_from(
        [{}, {"mean": 0}, {"mean": [0.0] * 4, "std": [1.0] * 4}, {"mean": [0.0] * 5, "std": [0.0] * 5}, 1]
    ),
    "base_fingerprint": NONSENSE | st.dictionaries(st.text(max_size=5), st.integers(), max_size=3),
    "base_fingerprint.family": st.text(max_size=5) | st.none(),
    "base_fingerprint.width": SIZES | NONSENSE,
    "base_fingerprint.layers": SIZES | NONSENSE,
    "base_fingerprint.vocabulary": SIZES | NONSENSE,
    "base_fingerprint.shapes": st.text(max_size=16) | st.integers(),
    "base_fingerprint.version": st.integers(3, 10**30) | NONSENSE,
    "base_fingerprint.weights": st.text(max_size=16) | st.integers(),
    "base_fingerprint.digest": st.text(max_size=16) | st.integers(),
    "peft_type": st.sampled_from(["LORA", "DEEPMLX", "IA3"]) | NONSENSE,
    "schema_version": st.integers(3, 10**30) | NONSENSE,
    "weights_sha256": st.text("0123456789abcdef", min_size=64, max_size=64) | NONSENSE,
    "runtime_config": st.just({"ephemeral_gpu_offload": True}),
    "lora_alpha": st.sampled_from([10**400, -1, "2"]),
    "ffw_lora_alpha": st.sampled_from([10**400, -1, "2"]),
    "text.max_tokens": st.sampled_from([*HUGE, 0, 2.5]),
}  # fmt: skip


def changed(values, path, value):
    """``values`` with another value at ``a.b``; None where that says the same."""
    values = copy.deepcopy(values)
    *holders, key = path.split(".")
    holder = values
    for name in holders:
        holder = holder[name]
    same = holder.get(key)
    if type(same) is type(value) and same == value:
        return None
    holder[key] = value
    return values


@examples(900)
@given(data=st.data(), path=st.sampled_from(sorted(SHAPED)), seal=st.sampled_from(["again", "out", "old"]))
def test_settings_that_do_not_fit_the_tensors(whole, place, base, data, path, seal):
    values = changed(json.loads((whole / files.CONFIG).read_text()), path, data.draw(SHAPED[path]))
    assume(values is not None)
    write(place, whole, values=values, seal=seal)
    base.refuses(place)


@examples(300)
@given(data=st.data())
def test_damaged_bytes_of_settings(whole, place, base, data):
    """Flips and cuts of the file as it was sealed, but for the place where the base lies."""
    raw = bytearray((whole / files.CONFIG).read_bytes())
    if data.draw(st.booleans()):
        raw = raw[: data.draw(st.integers(0, len(raw) - 3))]
    else:
        raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    write(place, whole)
    (place / files.CONFIG).write_bytes(raw)
    assume(not says_the_same(bytes(raw), (whole / files.CONFIG).read_bytes()))
    base.refuses(place)


def says_the_same(raw, expected):
    """Whether damaged settings are still those, but for the place where the base lies, which anyone may edit."""
    try:
        found = json.loads(raw)
    except ValueError:
        return False
    if not isinstance(found, dict):
        return False
    free, expected = {"base_model_name_or_path", "base_model_relative", "revision"}, json.loads(expected)
    return found.keys() == expected.keys() and all(found[key] == expected[key] for key in expected.keys() - free)


WRONG = {
    "weights": {"seed": 1},
    "vocabulary": {"vocab_size": 321},
    "layers": {"num_hidden_layers": 3},
    "more layers": {"num_hidden_layers": 5},
    "width": {"hidden_size": 48},
    "ffw": {"seed": 2, "intermediate_size": 96},
    "heads": {"seed": 3, "num_key_value_heads": 1},
    "mistral": {"name": "tiny-mistral"},
    "gpt2": {"name": "tiny-gpt2"},
}
SHAPES_DIFFER = ("layers", "width", "ffw", "heads", "gpt2")


@pytest.fixture(scope="module")
def wrong():
    return {name: Base(**changes) for name, changes in WRONG.items()}


@examples(200)
@given(data=st.data(), seal=st.sampled_from(["again", "out"]))
def test_wrong_bases(whole, place, wrong, data, seal):
    """Refused by their fingerprint; where that is made to fit, by their shapes."""
    from deepmlf_llm.backbones import base_fingerprint

    values = json.loads((whole / files.CONFIG).read_text())
    made_to_fit = data.draw(st.booleans())
    name = data.draw(st.sampled_from(SHAPES_DIFFER if made_to_fit else sorted(WRONG)))
    if made_to_fit:
        values["base_fingerprint"] = base_fingerprint(wrong[name].lm)
    values["text"]["max_tokens"] = data.draw(st.integers(1, 60))  # which is nobody's business
    values["lora_alpha"] = data.draw(st.integers(1, 60))
    write(place, whole, values=values, seal=seal)
    wrong[name].refuses(place)


@pytest.fixture(scope="module")
def loads(tmp_path_factory):
    """Calls of ``load_base_model`` by the model: refusals come before them."""
    import deepmlf_llm.model.loading as room

    calls, load = [], room.load_base_model
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room, "load_base_model", lambda *a, **k: calls.append(a) or load(*a, **k))
        yield calls


@examples(150)
@given(data=st.data(), path=st.sampled_from([*sorted(SHAPED), *["base_model_name_or_path"] * 6]))
def test_a_base_that_is_only_named_is_not_loaded_for_a_damaged_adapter(whole, place, loads, data, path):
    names = st.sampled_from(["tiny-mistral", "tiny-gpt2", "nobody/nothing", "/nowhere", "", "tiny-llama\0", None, 3])
    value = data.draw(names if path == "base_model_name_or_path" else SHAPED[path])
    values = changed(json.loads((whole / files.CONFIG).read_text()), path, value)
    told_by_loading = ("base_fingerprint.weights", "base_fingerprint.digest")
    assume(values is not None and (path not in told_by_loading or not isinstance(value, str)))
    write(place, whole, values=values)
    with pytest.raises(AdapterError):
        DeepMLFModel.from_pretrained(place)
    assert not loads


@examples(200)
@given(data=st.data(), path=st.sampled_from(sorted(SHAPED)))
def test_another_adapter_beside_a_sound_one(whole, place, sound, data, path):
    values = changed(json.loads((whole / files.CONFIG).read_text()), path, data.draw(SHAPED[path]))
    assume(values is not None)
    write(place, whole, values=values)
    model, expected = sound
    with pytest.raises(AdapterError):
        model.load_adapter(place, "b")
    assert list(model.peft_config) == model.active_adapters == ["default"]
    with torch.no_grad():
        assert torch.equal(model(IDS, audio=AUDIO).polarity, expected)


@pytest.fixture(scope="module")
def sound(whole):
    model = DeepMLFModel.from_pretrained(whole)
    with torch.no_grad():
        return model, model(IDS, audio=AUDIO).polarity


def places(value, path=()):
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inner:
        yield (*path, key)
        yield from places(item, (*path, key))


@examples(400)
@given(data=st.data(), seal=st.sampled_from(["again", "out"]))
def test_any_other_value_anywhere_is_refused_or_makes_a_sound_model(whole, place, base, data, seal):
    values = json.loads((whole / files.CONFIG).read_text())
    *holders, key = data.draw(st.sampled_from(list(places(values))))
    holder = values
    for name in holders:
        holder = holder[name]
    if isinstance(holder, dict) and data.draw(st.booleans()):
        item = holder.pop(key)
        if data.draw(st.booleans()):
            holder[data.draw(st.text(max_size=6))] = item
    else:
        holder[key] = data.draw(NONSENSE | st.integers() | st.sampled_from(HUGE))
    write(place, whole, values=values, seal=seal)
    try:
        model = DeepMLFModel.from_pretrained(place, base=base.lm)
    except AdapterError:
        base.assert_untouched()
        return
    with torch.no_grad():
        out = model(IDS, audio=AUDIO)
    assert out.polarity.shape == (2,)
    assert model.eject() is base.lm
    base.assert_untouched()


def test_huge_sizes_cost_no_memory(whole, place, base):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for path in ("num_fusion_tokens", "ffw_lora_r", "r", "head_width", "av_encoder.ffw_width", "av_encoder.num_layers"):
        for size in HUGE:
            values = changed(json.loads((whole / files.CONFIG).read_text()), path, size)
            write(place, whole, values=values)
            base.refuses(place)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 100 * 1024, f"{grown} KiB"


@pytest.mark.parametrize("name", [files.CONFIG, files.WEIGHTS])
@pytest.mark.parametrize("kind", ["missing", "empty", "directory", "dangling"])
def test_files_that_are_none(whole, tmp_path, base, name, kind):
    place = shutil.copytree(whole, tmp_path / "adapter")
    (place / name).unlink()
    if kind == "empty":
        (place / name).touch()
    elif kind == "directory":
        (place / name).mkdir()
    elif kind == "dangling":
        (place / name).symlink_to("nowhere")
    base.refuses(place)
