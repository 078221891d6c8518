"""bitsandbytes without PyTorch's compiler, and compiled all the same when it is called."""

import subprocess
import sys

import pytest
import torch

from deepmlf_llm.quick_imports import compiled_when_called


def test_settings_are_read_without_the_compiler():
    """Of all that is imported before a command begins, nothing loads it."""
    told = (
        "import sys, deepmlf_llm.config; print(sorted({'bitsandbytes', 'torch._inductor.compile_fx'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True)
    assert done.stdout == "['bitsandbytes']\n"
    assert done.stderr == ""


def test_a_function_is_compiled_at_its_first_call_and_once(monkeypatch):
    compiled = []

    def compile_now(function, **options):
        compiled.append((function.__name__, options))
        return lambda *args, **kwargs: ("compiled", function(*args, **kwargs))

    monkeypatch.setattr(torch, "compile", compile_now)
    with compiled_when_called():

        @torch.compile(dynamic=False)
        def double(x):
            return 2 * x

        @torch.compile
        def half(x, by=2):
            return x / by

    assert torch.compile is compile_now
    assert compiled == []
    assert [double(1), double(2), half(3, by=3)] == [("compiled", 2), ("compiled", 4), ("compiled", 1)]
    assert compiled == [("double", {"dynamic": False}), ("half", {})]
    assert double.__name__ == "double"


def test_an_import_that_fails_leaves_compile_as_it_was():
    before = torch.compile
    with pytest.raises(ImportError), compiled_when_called():
        raise ImportError
    assert torch.compile is before
