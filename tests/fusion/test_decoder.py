"""Mirrors ``deepmlf_llm/fusion/decoder.py``; what its passes compute is in test_passes.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tests.families import losses_and_gradients, tiny_batch, tiny_family, tiny_model


class Watched(dict[str, Any]):
    """A module's parameters; notes which are read by name while the module does not run: ZeRO-3 would gather these."""

    def __init__(self, parameters: dict[str, Any], name: str, running: list[str], found: list[str]) -> None:
        super().__init__(parameters)
        self.name, self.running, self.found = name, running, found

    def __getitem__(self, key: str) -> Any:
        if self.name not in self.running:
            self.found.append(f"{self.name}.{key}")
        return super().__getitem__(key)


def watch(model: nn.Module) -> list[str]:
    """Names of parameters, as they are read outside the forward pass of their modules."""
    running: list[str] = []
    found: list[str] = []

    def ended(*_: Any) -> None:
        running.pop()

    for name, module in model.named_modules():
        module.register_forward_pre_hook(lambda *_, name=name: running.append(name))
        module.register_forward_hook(ended)
        module._parameters = Watched(module._parameters, name, running, found)
    return found


@pytest.mark.parametrize(
    "settings",
    [{"ffw_scope": "joint", "objective": {"gamma": 0.5}}, {"ffw_scope": "fusion"}, {"fusion_entry": "first_block"}],
    ids=str,
)
def test_no_weight_of_the_lm_is_read_but_by_its_own_module(settings: dict[str, Any]) -> None:
    model = tiny_model(tiny_family("llama"), **settings).train()
    found = watch(model.get_base_model())
    losses_and_gradients(model, **tiny_batch())
    assert found == []
    table = model.fused_decoder.decoder.embeddings.weight
    assert found == ["model.embed_tokens.weight"]
    assert model.fused_decoder.decoder.dtype == table.dtype == torch.float32
