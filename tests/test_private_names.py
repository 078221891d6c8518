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
LISTED = {name.name for name in PRIVATE_NAMES}


def test_each_is_used_where_the_list_says(repository):
    for name in PRIVATE_NAMES:
        assert name.name in (repository / "deepmlf_llm" / name.used_in).read_text(encoding="utf-8"), name


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


@pytest.fixture(scope="module")
def sources(repository):
    """Module -> its syntax tree."""
    paths = (repository / "deepmlf_llm").rglob("*.py")
    return {
        ".".join(path.relative_to(repository).with_suffix("").parts): ast.parse(path.read_text(encoding="utf-8"))
        for path in paths
    }


def test_every_private_name_of_others_is_listed(sources):
    """Read from the sources: attributes with a leading underscore that nothing here defines."""
    used, ours = set(), set()
    for tree in sources.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and is_private(node.attr):
                used.add(node.attr)
                if isinstance(node.ctx, ast.Store) and isinstance(node.value, ast.Name) and node.value.id == "self":
                    ours.add(node.attr)
            elif isinstance(node, ast.FunctionDef | ast.ClassDef):
                ours.add(node.name)
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                ours.add(node.target.id)
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id.endswith("attr"):
                used |= {
                    word.value for word in node.args if isinstance(word, ast.Constant) and is_private(str(word.value))
                }
    assert used - ours - OF_PYTHON <= LISTED


def test_every_private_method_that_is_overridden_is_listed(sources):
    """A method of ours that takes the place of another library's goes unused where that one has a new name."""
    overridden = set()
    for module, tree in sources.items():
        for node in tree.body:
            if not isinstance(node, ast.ClassDef) or not node.bases:
                continue
            own = {part.name for part in node.body if isinstance(part, ast.FunctionDef) and is_private(part.name)}
            bases = getattr(importlib.import_module(module), node.name).__mro__[1:] if own else ()
            foreign = [base for base in bases if not base.__module__.startswith("deepmlf_llm")]
            overridden |= {name for name in own if any(name in vars(base) for base in foreign)}
    assert "_save_checkpoint" in overridden
    assert overridden - OF_PYTHON <= LISTED


def test_every_private_module_that_is_imported_from_is_listed(sources):
    found = {
        (node.module, alias.name)
        for tree in sources.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module and any(map(is_private, node.module.split(".")))
        for alias in node.names
    }
    assert found <= {(name.holder, name.name) for name in PRIVATE_NAMES}
