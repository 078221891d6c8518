"""recipes/predict.py: a file through an adapter, in order, going on after a cut, bad rows in their place."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deepmlf_llm.backbones import load_base_model
from deepmlf_llm.backbones.toys import toy_model, toy_tokenizer
from deepmlf_llm.config.method import DeepMLFConfig
from deepmlf_llm.inference.predictor import SentimentPredictor
from deepmlf_llm.model.peft_model import DeepMLFModel

KEYS = {"id", "polarity", "label", "text_polarity", "av_polarity", "fusion_polarity"}


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    facts = {"mean": [1.0] * 3, "std": [2.0] * 3, "clip": 10.0, "constant": []}
    config = DeepMLFConfig(
        fusion_layers=[3],
        modalities={"audio": {"dim": 3, "standardisation": facts}, "vision": {"dim": 2, "standardisation": None}},
        text={"case": "lower"},
    )
    directory = tmp_path_factory.mktemp("trained") / "adapter"
    DeepMLFModel(load_base_model("tiny-llama"), config).eval().save_pretrained(directory)
    return directory


def utterances(count: int) -> list[dict[str, Any]]:
    random = np.random.default_rng(0)
    return [
        {
            "id": f"clip {i}",
            "text": "so it goes " * (i % 4 + 1),
            "audio": random.normal(size=(i % 5, 3)).tolist(),
            "vision": random.normal(size=(i % 3 + 1, 2)).tolist() if i % 2 else None,
        }
        for i in range(count)
    ]


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def predict(in_process: Any, adapter: Path) -> Any:
    return partial(in_process, "predict", "--adapter", adapter)


def test_predicts_a_file_in_order_as_the_predictor_does(predict: Any, adapter: Path, tmp_path: Path) -> None:
    rows = utterances(11)
    source, output = write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    assert predict("--input", source, "--output", output, "--batch_size", 3) == 0
    found = read(output)
    assert [line["id"] for line in found] == [row["id"] for row in rows]
    assert all(line.keys() == KEYS for line in found)
    expected = SentimentPredictor.from_pretrained(adapter).predict(
        [row["text"] for row in rows], audio=[row["audio"] for row in rows], vision=[row["vision"] for row in rows]
    )
    assert [line["polarity"] for line in found] == pytest.approx([p.polarity for p in expected], abs=1e-5)
    assert [line["av_polarity"] is None for line in found] == [i % 10 == 0 for i in range(11)]
    assert set(tmp_path.iterdir()) == {source, output}


def killed(predict: Any, source: Path, output: Path, *words: Any) -> None:
    """A run that is ended between its second and third batch of lines."""
    import deepmlf_llm.inference.prediction_file as room
    from deepmlf_llm.inference.output_file import PartialOutput

    chunk, write = room.CHUNK_BATCHES, PartialOutput.write

    def torn(partial: PartialOutput, lines: list[dict[str, Any]]) -> None:
        if partial.file.tell():
            partial.file.write('{"id": "cl')
            raise SystemExit(9)
        write(partial, lines)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room, "CHUNK_BATCHES", 1)
        patch.setattr(PartialOutput, "write", torn)
        assert predict("--input", source, "--output", output, "--batch_size", 4, *words) == 9
    assert chunk == room.CHUNK_BATCHES


def test_one_line_imports_no_data_sets_library_and_no_deepspeed(
    adapter: Path, repository: Path, tmp_path: Path
) -> None:
    """They would cost seconds of the first answer."""
    source, output = write(tmp_path / "in.jsonl", utterances(1)), tmp_path / "out.jsonl"
    recipe = str(repository / "recipes" / "predict.py")
    words = [recipe, "--adapter", str(adapter), "--input", str(source), "--output", str(output)]
    program = f"""
import runpy, sys
sys.argv = {words!r}
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    print("imported:", *({{"datasets", "deepspeed", "matplotlib", "pandas"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=repository, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "imported:"
    assert len(read(output)) == 1


def test_a_second_run_goes_on_where_the_first_was_cut(predict: Any, tmp_path: Path, capsys: Any) -> None:
    source = write(tmp_path / "in.jsonl", utterances(9))
    assert predict("--input", source, "--output", tmp_path / "whole.jsonl") == 0
    killed(predict, source, tmp_path / "cut.jsonl")
    assert predict("--input", source, "--output", tmp_path / "cut.jsonl") == 0
    assert "9 rows, 0 of them bad, 4 found from an earlier run" in capsys.readouterr().out
    for before, after in zip(read(tmp_path / "whole.jsonl"), read(tmp_path / "cut.jsonl"), strict=True):
        assert before["id"] == after["id"]
        assert before["polarity"] == pytest.approx(after["polarity"], abs=1e-5)
    assert {path.name for path in tmp_path.iterdir()} == {"in.jsonl", "whole.jsonl", "cut.jsonl"}


def test_lines_of_another_adapter_input_or_setting_are_not_gone_on_with(
    predict: Any, adapter: Path, tmp_path: Path, capsys: Any
) -> None:
    source, output = write(tmp_path / "in.jsonl", utterances(9)), tmp_path / "out.jsonl"
    killed(predict, source, output)
    other = tmp_path / "adapter"
    model = DeepMLFModel.from_pretrained(adapter, is_trainable=True)
    with torch.no_grad():
        model.active_stack.heads.text.bias.add_(1)
    model.save_pretrained(other)
    capsys.readouterr()
    for words, told in ((("--adapter", other), "adapter"), (("--dtype", "bfloat16"), "dtype")):
        assert predict("--input", source, "--output", output, *words) == 2
        said = capsys.readouterr().err
        assert f"holds 4 lines of another run: other {told}; delete it to start again" in said
        assert said.count("\n") == 1
    write(source, utterances(8))
    assert predict("--input", source, "--output", output) == 2
    assert "other input;" in capsys.readouterr().err


BAD = [
    ({"id": 1}, "text is NoneType"),
    ({"id": 1, "text": "x", "audio": 5}, "audio"),
    ({"id": 1, "text": "x", "audio": [[1, 2]]}, r"[1, 2], but this model was trained on [frames, 3]"),
    ({"id": 1, "text": "x", "audio": [[1, 2, 3], [1]]}, "not a table of numbers"),
    ({"id": 1, "text": "x", "audio": {"a": 1}}, "not a table of numbers"),
    ({"id": 1, "text": "x", "vision": [[1, None]]}, "NaN or infinity"),
    ({"id": 1, "text": "x", "vision": [["1", "2"]]}, "it holds text ('1')"),
    ({"id": 1, "text": "x", "acoustic": [[1, 2, 3]]}, "--rename acoustic=audio"),
    ({"id": 1, "text": "\ud800"}, "half a surrogate pair"),
    ("no json", "not JSON"),
    ("[1]", "expected an object"),
]


def test_bad_rows_are_named_and_keep_their_place(predict: Any, tmp_path: Path, capsys: Any) -> None:
    good = {"id": "\ud801", "text": "fine", "audio": [], "vision": [[float("nan"), 1]][:0]}
    source = write(tmp_path / "in.jsonl", [good, *(row for row, _ in BAD), good])
    assert predict("--input", source, "--output", tmp_path / "out.jsonl") == 3
    first, *errors, last = read(tmp_path / "out.jsonl")
    assert first.keys() == last.keys() == KEYS
    assert (first["id"], last["polarity"]) == ("\ud801", pytest.approx(first["polarity"], abs=1e-5))
    for line, (_, message) in zip(errors, BAD, strict=True):
        assert message in line["error"]
    said = capsys.readouterr().err
    assert all(f"row {number}: " in said for number in range(2, len(BAD) + 2))


def test_strict_stops_with_code_2_and_the_rows_number(predict: Any, tmp_path: Path, capsys: Any) -> None:
    source = write(tmp_path / "in.jsonl", [*utterances(2), {"id": 3}])
    assert predict("--input", source, "--output", tmp_path / "out.jsonl", "--strict") == 2
    assert "error: row 3: text is NoneType" in capsys.readouterr().err
    assert not (tmp_path / "out.jsonl").exists()


def test_parquet_and_bf16(predict: Any, tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = utterances(5)
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "in.parquet")
    write(tmp_path / "in.jsonl", rows)
    for name in ("parquet", "jsonl"):
        assert predict("--input", tmp_path / f"in.{name}", "--output", tmp_path / f"{name}.jsonl") == 0
    assert (tmp_path / "parquet.jsonl").read_text() == (tmp_path / "jsonl.jsonl").read_text()
    words = ("--input", tmp_path / "in.jsonl", "--output", tmp_path / "half.jsonl", "--dtype", "bfloat16")
    assert predict(*words) == 0
    for whole, half in zip(read(tmp_path / "jsonl.jsonl"), read(tmp_path / "half.jsonl"), strict=True):
        assert half["polarity"] == pytest.approx(whole["polarity"], abs=0.05)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.skipif(
    not (Path(sysconfig.get_paths()["include"]) / "Python.h").is_file(), reason="torch.compile needs Python's headers"
)
def test_compiled_predictions_are_the_same(in_process: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch._inductor.config as inductor
    from torch._dynamo.utils import counters
    from torch._inductor import cpu_vec_isa

    # Whether it is compiled, not how well: no vector instructions, each of which a program of its own would try out,
    # and no pool of processes.
    monkeypatch.setattr(cpu_vec_isa, "valid_vec_isa_list", list, raising=False)
    monkeypatch.setattr(inductor, "compile_threads", 1, raising=False)
    torch.manual_seed(0)
    toy_model("tiny-llama", num_hidden_layers=1).save_pretrained(tmp_path / "base")  # each layer compiles for long
    toy_tokenizer().save_pretrained(tmp_path / "base")
    config = DeepMLFConfig(fusion_layers=[0], modalities={"audio": {"dim": 3}, "vision": {"dim": 2}})
    DeepMLFModel(load_base_model(str(tmp_path / "base")), config).eval().save_pretrained(tmp_path / "adapter")
    predict = partial(in_process, "predict", "--adapter", tmp_path / "adapter")

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    source = write(tmp_path / "in.jsonl", utterances(3))  # one batch: half a minute less than two
    words = ("--input", source, "--batch_size", 3)
    assert predict(*words, "--output", tmp_path / "plain.jsonl") == 0
    torch._dynamo.reset()
    counters.clear()
    assert predict(*words, "--output", tmp_path / "compiled.jsonl", "--compile") == 0
    assert counters["inductor"], "nothing was compiled"
    for plain, compiled in zip(read(tmp_path / "plain.jsonl"), read(tmp_path / "compiled.jsonl"), strict=True):
        assert compiled["id"] == plain["id"]
        for name in ("polarity", "text_polarity", "fusion_polarity"):
            assert compiled[name] == pytest.approx(plain[name], abs=1e-5)


def test_without_a_compiler_one_line_says_so(
    predict: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    source = write(tmp_path / "in.jsonl", utterances(1))
    assert predict("--input", source, "--output", tmp_path / "out.jsonl", "--compile") == 2
    said = capsys.readouterr().err
    assert "needs a C++ compiler" in said
    assert said.count("\n") == 1
    assert list(tmp_path.iterdir()) == [source]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--input", "no.jsonl"), "--input no.jsonl: no such file"),
        (("--batch_size", "0"), "--batch_size=0"),
        (("--adapter", "nowhere"), "nowhere: expected the directory of a saved adapter"),
        (("--quantization", "nf5"), "nf4"),
        (("--bacth_size", "3"), "--batch_size"),
    ],
)
def test_bad_input_is_one_line_and_code_2(
    predict: Any, tmp_path: Path, capsys: Any, words: tuple[str, ...], message: str
) -> None:
    source = write(tmp_path / "in.jsonl", utterances(1))
    assert predict("--input", source, "--output", tmp_path / "out.jsonl", *words) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert list(tmp_path.iterdir()) == [source]
