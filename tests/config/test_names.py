"""Names of modalities: what would break a call, a module or a tensor's name is refused with the reason."""

from __future__ import annotations

import inspect
import keyword

import peft
import pytest
import torch
import transformers

from deepmlf_llm.config.method import DeepMLFConfig
from deepmlf_llm.config.names import RESERVED, name_problem
from deepmlf_llm.errors import ConfigError
from deepmlf_llm.model import DeepMLFModel


@pytest.mark.parametrize(
    "name", ["audio", "vision", "heart_rate", "géste", "lora", "defaults", "list", "print", "match"]
)
def test_ordinary_names_are_good(name):
    assert name_problem(name) == ""


@pytest.mark.parametrize(
    "name",
    [*keyword.kwlist, "self", "cls", "labels", "input_ids", "text", "id", "audio_mask", "type", "keys", "train", "_x",
     "forward", "__class__", "default", "lora_audio", "heart rate", "2d", "", "a.b", "a-b", "1"],
)  # fmt: skip
def test_names_that_would_break_something_are_refused(name):
    with pytest.raises(ConfigError, match="cannot name a modality"):
        DeepMLFConfig(modalities={name: {"dim": 3}})


def test_every_keyword_of_a_forward_is_reserved():
    forwards = [
        DeepMLFModel.forward, peft.PeftModel.forward, peft.PeftModelForCausalLM.forward, *(
            getattr(transformers, f"{family}ForCausalLM").forward for family in ("Llama", "Mistral", "Qwen2", "Gemma2")
        ), transformers.GPT2LMHeadModel.forward,
    ]  # fmt: skip
    for forward in forwards:
        names = set(inspect.signature(forward).parameters) - {"features", "encoder_hidden_states"}
        assert {name for name in names if not name_problem(name)} <= {"encoder_attention_mask"}, forward
    assert "training" not in RESERVED
    assert name_problem("training"), "of nn.Module"
    assert isinstance(torch.nn.ModuleDict(), torch.nn.Module)
