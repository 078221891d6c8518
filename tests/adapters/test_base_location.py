"""A base in a directory is found where it was, or where it is from the adapter; else every place is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from deepmlf_llm.adapters import hub
from deepmlf_llm.adapters.base_location import find_base, hub_id, location_of, shown_name, without_paths
from deepmlf_llm.adapters.files import read_config
from deepmlf_llm.backbones import load_base_model
from deepmlf_llm.backbones.toys import toy_model, toy_tokenizer
from deepmlf_llm.config.method import DeepMLFConfig
from deepmlf_llm.errors import AdapterError
from deepmlf_llm.inference.predictor import SentimentPredictor
from deepmlf_llm.model.merging import merge_adapter
from deepmlf_llm.model.peft_model import DeepMLFModel
from deepmlf_llm.training.evaluation import evaluate_adapter


def save_base(place: Path, seed: int = 0) -> Path:
    toy_model("tiny-llama", seed).save_pretrained(place)
    toy_tokenizer().save_pretrained(place)
    return place


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A directory with ``bases/llama`` and ``run/adapter``, which was trained on it by a relative path."""
    monkeypatch.chdir(tmp_path)
    save_base(Path("bases/llama"))
    torch.manual_seed(0)
    config = DeepMLFConfig(fusion_layers=[3], modalities={"audio": {"dim": 3}})
    DeepMLFModel(load_base_model("bases/llama"), config).eval().save_pretrained("run/adapter")
    return tmp_path


def polarity(adapter, **options):
    return SentimentPredictor.from_pretrained(adapter, **options).predict(["not bad"])[0].polarity


def test_a_path_is_kept_absolute_and_relative(home):
    config = read_config("run/adapter")
    assert config.base_model_name_or_path == str(home / "bases" / "llama")
    assert config.base_model_relative == "../../bases/llama"


def test_the_base_is_found_from_anywhere_and_after_all_was_moved(home, tmp_path, monkeypatch):
    expected = polarity("run/adapter")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert polarity(home / "run" / "adapter") == expected
    for name in ("bases", "run"):
        shutil.move(home / name, elsewhere / name)
    monkeypatch.chdir("/")
    assert polarity(elsewhere / "run" / "adapter") == expected
    assert polarity(elsewhere / "run") == expected  # a run stands for its adapter


def test_a_base_that_is_gone_is_looked_for_in_both_places_and_may_be_named(home, tmp_path):
    expected = polarity("run/adapter")
    Path("bases").rename("new_place")
    with pytest.raises(AdapterError) as caught:
        SentimentPredictor.from_pretrained("run/adapter")
    assert f"not at {home}/bases/llama; give the base model's place" in str(caught.value)
    shutil.copytree("run/adapter", "far/other/adapter")
    with pytest.raises(
        AdapterError, match=rf"not at {home}/bases/llama nor at .*bases/llama; give .* with --base_model"
    ):
        polarity("far/other/adapter")
    assert polarity("far/other/adapter", base="new_place/llama") == expected
    assert polarity("far/other/adapter", base=Path("new_place/llama")) == expected
    report = merge_adapter("far/other/adapter", "merged", base_model="new_place/llama")
    assert max(entry["largest"] for entry in report.values()) < 1e-4
    shutil.rmtree("new_place")
    assert polarity("merged") == pytest.approx(expected, abs=1e-4)


def test_another_base_under_that_option_is_refused(home):
    save_base(Path("other"), seed=1)
    with pytest.raises(AdapterError, match="another base model"):
        polarity("run/adapter", base="other")
    with pytest.raises(AdapterError, match="nowhere"):
        polarity("run/adapter", base="nowhere")


def test_the_tokenizer_is_that_of_the_base_that_is_used_or_the_one_beside(home, tmp_path):
    shutil.move("bases/llama", "moved")
    assert len(SentimentPredictor.from_pretrained("run/adapter", base="moved").tokenizer) == len(toy_tokenizer())
    tokenizer = toy_tokenizer()
    tokenizer.add_tokens(["beside"])
    tokenizer.save_pretrained("run/adapter")
    assert len(SentimentPredictor.from_pretrained("run/adapter", base="moved").tokenizer) == len(tokenizer)


def test_what_is_saved_after_loading_on_another_place_names_that_place(home):
    shutil.move("bases/llama", "moved")
    DeepMLFModel.from_pretrained("run/adapter", base="moved").save_pretrained("again")
    assert read_config("again").base_model_name_or_path == str(home / "moved")
    assert polarity("again") == polarity("run/adapter", base="moved")


def test_evaluation_takes_the_named_base_too(home):
    shutil.move("bases/llama", "moved")
    rows = [{"id": i, "text": "so it was", "label": i - 1.0, "audio": [[0.1, 0.2, float(i)]]} for i in range(3)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = evaluate_adapter("run", "rows.jsonl", base="moved")
    assert (found["split"], found["utterances"], found["data"]["name"]) == ("test", 3, "rows.jsonl")


def test_an_older_adapter_with_a_relative_path_alone(home):
    path = Path("run/adapter/adapter_config.json")
    values = json.loads(path.read_text()) | {"base_model_name_or_path": "bases/llama", "base_model_relative": None}
    path.write_text(json.dumps(values))
    polarity("run/adapter")
    shutil.move("bases", "run/adapter/bases")  # below the adapter is the other place
    polarity("run/adapter")
    shutil.rmtree("run/adapter/bases")
    with pytest.raises(AdapterError, match="--base_model"):
        polarity("run/adapter")


def test_names_that_are_no_paths_stay_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("tiny-llama").mkdir()
    for name in ("tiny-llama", "smollm2-135m", "owner/model", None):
        assert location_of(name, tmp_path / "adapter") == {"base_model_name_or_path": name, "base_model_relative": None}
    for name in ("tiny-llama", "owner/model"):
        config = DeepMLFConfig(modalities={"audio": {"dim": 3}}, base_model_name_or_path=name)
        assert find_base(config, tmp_path) == name
    with pytest.raises(AdapterError, match="names no base model"):
        find_base(DeepMLFConfig(modalities={"audio": {"dim": 3}}), tmp_path)


def test_hub_ids_and_names_for_people(tmp_path):
    cached = tmp_path / "models--owner--model" / "snapshots" / "abc"
    saved = tmp_path / "saved"
    for place, name in ((cached, None), (saved, "owner/other")):
        place.mkdir(parents=True)
        (place / "config.json").write_text(json.dumps({"_name_or_path": name}))
    assert hub_id(str(cached)) == "owner/model"
    assert hub_id(str(saved)) == "owner/other"
    assert hub_id("owner/model") == "owner/model"
    assert hub_id("smollm2-135m") == "HuggingFaceTB/SmolLM2-135M-Instruct"
    for none in ("tiny-llama", str(tmp_path), "/no/such/place", None, "", "a\0b"):
        assert hub_id(none) in (None, "a\0b")
    assert (shown_name(str(tmp_path)), shown_name("tiny-llama"), shown_name(None)) == (
        tmp_path.name,
        "tiny-llama",
        "unknown",
    )
    told = without_paths({"base_model_name_or_path": str(saved), "base_model_relative": "../saved", "r": 0})
    assert told == {"base_model_name_or_path": "owner/other", "base_model_relative": None, "r": 0}


def test_what_goes_to_the_hub_names_no_path(home, monkeypatch):
    from types import SimpleNamespace

    import huggingface_hub

    seen = {}

    class Api:
        def create_repo(self, name, **_):
            return SimpleNamespace(repo_id=name)

        def upload_folder(self, folder_path, **_):
            seen.update({path.name: path.read_text() for path in Path(folder_path).glob("*.[jm]*")})
            assert read_config(folder_path).base_model_name_or_path == "llama"
            return SimpleNamespace(commit_url="")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    DeepMLFModel.from_pretrained("run/adapter").push_to_hub("me/mine")
    assert set(seen) == {"README.md", "adapter_config.json"}
    assert not any(str(home) in text for text in seen.values())


def test_a_run_without_an_adapter_says_so(tmp_path):
    (tmp_path / "checkpoint-12").mkdir()
    (tmp_path / "run.json").touch()
    with pytest.raises(AdapterError, match=r"has no adapter yet; .* its last checkpoint is checkpoint-12"):
        hub.local_directory(tmp_path)
