"""What we lean on inside other libraries is still there, and takes what we give it."""

from __future__ import annotations

import ast
import importlib
import inspect

import pytest
import torch

from deepmlf_llm.private_names import PRIVATE_NAMES


@pytest.mark.parametrize("name", PRIVATE_NAMES, ids=lambda name: f"{name.holder}.{name.name}")
def test_the_name_is_there_with_its_parameters(name):
    module, _, path = name.holder.partition(":")
    holder = importlib.import_module(module)
    for step in filter(None, path.split(".")):
        holder = getattr(holder, step)
    missing = f"{name.holder} has no {name.name!r} any more. We lean on it: {name.reason} ({name.used_in})"
    if name.on_instances:
        assert name.name in inspect.getsource(holder), missing
        return
    assert hasattr(holder, name.name), missing
    if name.parameters:
        found = list(inspect.signature(getattr(holder, name.name)).parameters)
        assert found[: len(name.parameters)] == list(name.parameters), f"{missing}: it takes {found} now"


def test_a_compiled_module_keeps_how_it_was_compiled():
    from torch._dynamo.eval_frame import OptimizeContext

    module = torch.nn.Identity()
    module.compile(backend="eager")
    cells = [cell.cell_contents for cell in module._compiled_call_impl.__closure__]
    assert any(isinstance(content, OptimizeContext) for content in cells), "segments would run without torch.compile"


OF_PYTHON = {"_exit", "_getframe", "_option_string_actions", "_Unpickler"}


def test_every_private_name_of_others_is_listed(repository):
    """Read from the sources: attributes with a leading underscore that nothing here defines."""
    used, ours = set(), set()
    for path in (repository / "deepmlf_llm").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
                used.add(node.attr)
                if isinstance(node.ctx, ast.Store) and isinstance(node.value, ast.Name) and node.value.id == "self":
                    ours.add(node.attr)
            elif isinstance(node, ast.FunctionDef | ast.ClassDef):
                ours.add(node.name)
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                ours.add(node.target.id)
    assert used - ours - OF_PYTHON <= {name.name for name in PRIVATE_NAMES}
