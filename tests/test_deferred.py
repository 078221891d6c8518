"""What transformers loads for things that a command may never do waits until they are done."""

import subprocess
import sys
import types

import pytest
import torch

from deepmlf_llm import DeepMLFConfig, DeepMLFModel, load_base_model
from deepmlf_llm import deferred as room
from deepmlf_llm.backbones.toys import toy_model, toy_tokenizer
from deepmlf_llm.deferred import Deferred, deferred

HEAVY = ["scipy.optimize", "torch._dynamo", "torch._inductor.compile_fx"]


def test_a_prediction_loads_none_of_them_and_they_are_there_when_they_are_used(tmp_path):
    toy_model("tiny-llama").save_pretrained(tmp_path / "base")
    toy_tokenizer().save_pretrained(tmp_path / "base")
    config = DeepMLFConfig(fusion_layers="last:2", modalities={"audio": {"dim": 3}})
    DeepMLFModel(load_base_model(str(tmp_path / "base")), config).save_pretrained(tmp_path / "adapter")
    told = f"""
import sys
from deepmlf_llm import SentimentPredictor
predictor = SentimentPredictor.from_pretrained("{tmp_path}/adapter")
predictor.predict(["a word"], audio=[[[1.0, 2.0, 3.0]]])
print(sorted({{*{HEAVY}}} & {{*sys.modules}}))
from transformers.loss import loss_for_object_detection as loss
print(loss.linear_sum_assignment([[1, 2], [2, 1]])[1].tolist(), "scipy.optimize" in sys.modules)
import torch
print(torch._dynamo.__name__, torch.compile(lambda x: x + 1, backend="eager")(torch.ones(1)).item())
"""
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-3:] == ["[]", "[0, 1] True", "torch._dynamo 2.0"]


def test_a_package_that_imports_from_below_a_stand_in_gets_the_real_modules():
    told = """
import sys
from deepmlf_llm.deferred import deferred
with deferred():
    from torch._dynamo.utils import is_compile_supported  # as torchvision does
    import torch._dynamo._trace_wrapped_higher_order_op as traced
    import scipy.optimize._linprog as below
import scipy.optimize, torch._dynamo.utils
print(torch._dynamo.utils.is_compile_supported is is_compile_supported, torch._dynamo.utils.__spec__.origin is not None)
print(traced.trace_wrapped.__module__, scipy.optimize._linprog is below)
print([finder for finder in sys.meta_path if type(finder).__module__.startswith("deepmlf")])
"""
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    compiler = "torch._dynamo._trace_wrapped_higher_order_op"
    assert done.stdout.splitlines() == ["True True", f"{compiler} True", "[]"]


@pytest.fixture
def module(monkeypatch):
    """A module that is there to be loaded, and has not been."""
    name = "a_module_that_costs_seconds"
    monkeypatch.setattr(room, "DEFERRED", (name,))
    real = types.ModuleType(name)
    real.Kind = type("Kind", (), {"made": staticmethod(lambda: "made")})
    real.double = lambda x: 2 * x
    return name, real, lambda: monkeypatch.setitem(sys.modules, name, real)


def test_a_name_is_its_real_self_once_it_is_used(module):
    name, real, load = module
    with deferred():
        __import__(name)
        kind, double = sys.modules[name].Kind, sys.modules[name].double
        assert isinstance(kind, Deferred)
    assert name not in sys.modules
    assert not isinstance(3, kind)
    assert not issubclass(int, kind)
    load()
    assert isinstance(real.Kind(), kind)
    assert issubclass(real.Kind, kind)
    assert not isinstance(3, kind)
    assert double(3) == 6
    assert kind.made() == "made"

    class Own(kind):
        pass

    assert Own.__mro__[1] is real.Kind
    assert (kind | None) == (None | kind)


def test_a_class_may_be_derived_from_a_name_while_names_are_deferred(monkeypatch, tmp_path):
    """As scipy 1.12 does, where scikit-learn brings it in."""
    (tmp_path / "derived_from_at_import.py").write_text("class Kind:\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(room, "DEFERRED", ("derived_from_at_import",))
    with deferred():
        from derived_from_at_import import Kind

        class Own(Kind):
            pass

    real = sys.modules["derived_from_at_import"]
    monkeypatch.delitem(sys.modules, "derived_from_at_import")
    assert Own.__mro__[1] is real.Kind


def test_what_is_loaded_already_is_left_alone(module):
    name, real, load = module
    load()
    before = vars(torch).get("_dynamo")
    with deferred():
        assert sys.modules[name] is real
    assert sys.modules[name] is real
    assert vars(torch).get("_dynamo") is before


def test_what_is_kept_from_the_compiler_is_so_once_there_is_one(monkeypatch):
    kept = []
    compiler = types.ModuleType("torch._dynamo")
    compiler.disable = lambda function, *args, **options: kept.append((args, options)) or (lambda x: -function(x))
    compiler.optimize = "loaded"
    monkeypatch.delitem(sys.modules, "torch._dynamo", raising=False)
    monkeypatch.delitem(vars(torch), "_dynamo", raising=False)
    with deferred():
        stand_in = sys.modules["torch._dynamo"]
        assert torch._dynamo is stand_in
        double = torch._dynamo.disable(lambda x: 2 * x, True, wrapping=False)
        triple = torch._dynamo.disable(recursive=False)(lambda x: 3 * x)
        assert torch._dynamo.allow_in_graph(len) is len
        assert (double(1), triple(1)) == (2, 3)
    assert "torch._dynamo" not in sys.modules
    assert (double(1), triple(1)) == (2, 3)
    monkeypatch.setitem(sys.modules, "torch._dynamo", compiler)
    assert (double(1), double(1), triple(1)) == (-2, -2, -3)
    assert kept == [((True,), {"wrapping": False}), ((), {"recursive": False})]
    monkeypatch.delitem(sys.modules, "torch._dynamo")
    with deferred():
        monkeypatch.setattr(room.importlib, "import_module", lambda name: compiler)
        assert torch._dynamo.optimize == "loaded"


def test_an_import_that_fails_leaves_nothing_behind(module):
    name, *_ = module
    with pytest.raises(ImportError), deferred():
        raise ImportError
    assert name not in sys.modules
