"""An adapter's settings: whatever is changed in the file is found, but for the place where the base lies."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import PeftModel

from deepmlf_llm.adapters import files
from deepmlf_llm.backbones import load_base_model
from deepmlf_llm.config.method import DeepMLFConfig
from deepmlf_llm.errors import AdapterError
from deepmlf_llm.model.peft_model import DeepMLFModel
from tests.examples import examples

LOCATION = {"base_model_name_or_path", "base_model_relative", "revision"}
VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | st.just([]) | st.just({})


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    torch.manual_seed(0)
    config = DeepMLFConfig(
        fusion_layers=[1, 3],
        r=2,
        modalities={"audio": {"dim": 5, "features": {"kind": "covarep"}}, "vision": {"dim": 3}},
    )
    directory = tmp_path_factory.mktemp("adapter") / "whole"
    DeepMLFModel(load_base_model("tiny-llama"), config).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("damaged")


def places(value, path=()):
    """Paths of everything in a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inner:
        yield (*path, key)
        yield from places(item, (*path, key))


@examples(600)
@given(data=st.data())
def test_any_change_of_the_settings_is_found(saved, place, data):
    values = json.loads((saved / files.CONFIG).read_text())
    found = [path for path in places(values) if path[0] not in LOCATION]
    path = data.draw(st.sampled_from(found))
    changed = copy.deepcopy(values)
    holder = changed
    for key in path[:-1]:
        holder = holder[key]
    kind = data.draw(st.sampled_from(["set", "delete", "rename"]))
    if kind == "set":
        holder[path[-1]] = data.draw(VALUES)
    else:
        value = holder.pop(path[-1])
        if kind == "rename" and isinstance(holder, dict):
            holder[data.draw(st.text(max_size=6))] = value
    taken_out = "settings_sha256" not in changed or changed["settings_sha256"] is None
    if json.dumps(changed, sort_keys=True) == json.dumps(values, sort_keys=True) or (taken_out and kind != "rename"):
        return
    (place / files.CONFIG).write_text(json.dumps(changed))
    with pytest.raises(AdapterError):
        files.read_config(place)


@examples(600)
@given(data=st.data())
def test_a_flipped_byte_changes_no_setting_unseen(saved, place, data):
    raw = bytearray((saved / files.CONFIG).read_bytes())
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    (place / files.CONFIG).write_bytes(raw)
    try:
        found = files.read_config(place).to_dict()
    except AdapterError:
        return
    expected = files.read_config(saved).to_dict()  # white space, or where the base lies
    assert {k: v for k, v in found.items() if k not in LOCATION} == {
        k: v for k, v in expected.items() if k not in LOCATION
    }


def test_where_the_base_lies_may_be_edited(saved, place):
    values = json.loads((saved / files.CONFIG).read_text()) | {"base_model_name_or_path": "/models/mine"}
    (place / files.CONFIG).write_text(json.dumps(values))
    assert files.read_config(place).base_model_name_or_path == "/models/mine"


def test_settings_may_be_edited_on_purpose_and_the_error_says_how(saved, place):
    values = json.loads((saved / files.CONFIG).read_text())
    values["text"]["max_tokens"] = 40
    (place / files.CONFIG).write_text(json.dumps(values))
    with pytest.raises(AdapterError, match=r"damaged or edited: .* take that key out"):
        files.read_config(place)
    del values["settings_sha256"]
    (place / files.CONFIG).write_text(json.dumps(values))
    assert files.read_config(place).text.max_tokens == 40


def test_what_plain_peft_writes_is_sealed_too(saved, tmp_path):
    plain = PeftModel.from_pretrained(load_base_model("tiny-llama"), saved)
    plain.peft_config["default"].text.max_tokens = 40
    plain.save_pretrained(tmp_path)
    config = files.read_config(tmp_path)
    assert (config.text.max_tokens, len(config.settings_sha256)) == (40, 64)
    path = tmp_path / files.CONFIG
    path.write_text(path.read_text().replace('"max_tokens": 40', '"max_tokens": 41'))
    with pytest.raises(AdapterError, match="damaged or edited"):
        files.read_config(tmp_path)
