"""No file of a base model runs anything, whatever it says; and nobody is asked."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import sys

import pytest
import torch

from deepmlf_llm.backbones import load_base_model, load_tokenizer
from deepmlf_llm.backbones.shape import base_model_shape
from deepmlf_llm.backbones.toys import toy_model, toy_tokenizer
from deepmlf_llm.errors import BaseModelError

CODE = "from pathlib import Path\nPath({marker!r}).touch()\nclass X: pass\n"
WAYS = {"model": load_base_model, "shape": base_model_shape, "tokenizer": load_tokenizer}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    directory = tmp_path_factory.mktemp("bases") / "whole"
    toy_model("tiny-llama").save_pretrained(directory)
    toy_tokenizer().save_pretrained(directory)
    return directory


@pytest.fixture
def base(whole, tmp_path, monkeypatch):
    """A copy to spoil, with code in it that leaves a mark where it runs; standard input says yes to all."""
    directory = tmp_path / "base"
    shutil.copytree(whole, directory)
    for name in ("evil.py", "configuration_evil.py", "modeling_evil.py", "tokenization_evil.py"):
        (directory / name).write_text(CODE.format(marker=str(tmp_path / "ran")))
    (directory / "custom_generate").mkdir()
    (directory / "custom_generate" / "generate.py").write_text(CODE.format(marker=str(tmp_path / "ran")))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("transformers asked whether to run code"))
    monkeypatch.syspath_prepend(str(directory))
    return directory


def change(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def nothing_ran(base):
    return not (base.parent / "ran").exists() and "evil" not in sys.modules


CONFIG = {
    "AutoConfig": "configuration_evil.X",
    "AutoModelForCausalLM": "modeling_evil.X",
    "AutoTokenizer": ["tokenization_evil.X", None],
}


@pytest.mark.parametrize("way", ["model", "shape"])
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "evil", "auto_map": CONFIG}, r"Python code .*runs no code that comes with a model"),
        ({"model_type": "evil", "auto_map": {"AutoConfig": "far/away--configuration_evil.X"}}, "runs no code"),
        ({"model_type": "clip_text_model", "auto_map": {"AutoModelForCausalLM": "modeling_evil.X"}}, "runs no code"),
        ({"attn_implementation": "owner/kernel"}, r"names the attention kernel 'owner/kernel' of a hub"),
        ({"_attn_implementation": "owner/kernel@main:run"}, r"names the attention kernel"),
    ],
)
def test_a_config_that_needs_code_is_refused_with_a_sentence(base, way, values, message):
    change(base / "config.json", **values)
    with pytest.raises(BaseModelError, match=message) as raised:
        WAYS[way](str(base))
    assert "trust_remote_code=True" not in str(raised.value)
    assert nothing_ran(base)


@pytest.mark.parametrize("way", WAYS)
def test_code_that_is_not_needed_is_never_looked_at(base, way):
    change(base / "config.json", auto_map=CONFIG)
    change(base / "tokenizer_config.json", auto_map=CONFIG)
    change(base / "generation_config.json", custom_generate="custom_generate", trust_remote_code=True)
    WAYS[way](str(base))
    assert nothing_ran(base)


def test_a_tokenizer_that_needs_code_is_refused_with_a_sentence(base):
    (base / "tokenizer.json").unlink()
    change(base / "tokenizer_config.json", tokenizer_class="EvilTokenizer", auto_map=CONFIG)
    change(base / "config.json", model_type="evil")
    with pytest.raises(BaseModelError, match="runs no code that comes with a model") as raised:
        load_tokenizer(str(base))
    assert "trust_remote_code=True" not in str(raised.value)
    assert nothing_ran(base)


@pytest.mark.parametrize("way", ["model", "shape"])
def test_an_adapter_in_the_place_of_a_base_imports_nothing(base, way):
    settings = {"peft_type": "LORA", "base_model_name_or_path": str(base), "r": 2, "target_modules": ["q_proj"]}
    settings |= {"megatron_core": "evil", "megatron_config": {"tensor_model_parallel_size": 1}}
    (base / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(BaseModelError, match="holds an adapter"):
        WAYS[way](str(base))
    assert nothing_ran(base)


class Runs:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def spoil_zip(base):
    torch.save({"weight": torch.zeros(1), "evil": Runs(base.parent / "ran")}, base / "pytorch_model.bin")


def spoil_old(base):
    weights = {"evil": Runs(base.parent / "ran")}
    torch.save(weights, base / "pytorch_model.bin", _use_new_zipfile_serialization=False)


def spoil_plain(base):
    (base / "pytorch_model.bin").write_bytes(pickle.dumps(Runs(base.parent / "ran")))


def spoil_shard(base):
    spoil_zip(base)
    (base / "pytorch_model.bin").rename(base / "part.bin")
    index = {"metadata": {"total_size": 4}, "weight_map": {"model.norm.weight": "part.bin"}}
    (base / "pytorch_model.bin.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("spoil", [spoil_zip, spoil_old, spoil_plain, spoil_shard])
def test_weights_in_a_pickle_run_nothing(base, spoil):
    (base / "model.safetensors").unlink()
    spoil(base)
    with pytest.raises(BaseModelError) as raised:
        load_base_model(str(base))
    assert nothing_ran(base)
    assert "will likely succeed" not in str(raised.value)


def test_honest_weights_in_a_pickle_are_read(base, whole):
    from safetensors.torch import load_file

    torch.save(load_file(base / "model.safetensors"), base / "pytorch_model.bin")
    (base / "model.safetensors").unlink()
    one, other = load_base_model(str(base)), load_base_model(str(whole))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_a_chat_template_runs_nothing(base):
    template = "{{ ''.__class__.__mro__[1].__subclasses__() }}{% for x in range(10**12) %}{% endfor %}"
    change(base / "tokenizer_config.json", chat_template=template)
    (base / "chat_template.jinja").write_text(template)
    assert load_tokenizer(str(base))("hello")["input_ids"]


def test_every_call_of_transformers_says_that_nothing_may_run(repository):
    """A new call without the flag would ask in the terminal."""
    calls = []
    for path in sorted((repository / "deepmlf_llm").rglob("*.py")):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if any(f"{name}.from_" in line for name in ("AutoConfig", "AutoTokenizer", "AutoModelForCausalLM")):
                flags = ("NO_CODE", "**origin", "trust_remote_code=False")
                calls.append((path.name, number, any(f in line for f in flags) or line.strip()[-1] == "("))
    assert len(calls) >= 5
    assert all(flagged for _, _, flagged in calls), calls
