"""The hub: offline it says what to do; nothing that could be unpickled is asked for."""

from __future__ import annotations

from types import SimpleNamespace

import huggingface_hub
import pytest
import torch

from deepmlf_llm.adapters import hub
from deepmlf_llm.backbones import load_base_model
from deepmlf_llm.config.method import DeepMLFConfig
from deepmlf_llm.errors import AdapterError
from deepmlf_llm.model.peft_model import DeepMLFModel


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return DeepMLFModel(
        load_base_model("tiny-llama"), DeepMLFConfig(fusion_layers=[3], modalities={"audio": {"dim": 5}})
    ).eval()


def test_a_directory_is_itself(tmp_path):
    assert hub.local_directory(tmp_path) == tmp_path


@pytest.mark.parametrize("name", ["nowhere", "./nowhere", "a/b/c", "/no/such", "~/x", ""])
def test_what_is_neither_here_nor_a_hub_id_is_refused(name):
    with pytest.raises(AdapterError, match="expected the directory of a saved adapter"):
        hub.local_directory(name)


def test_an_adapter_that_cannot_be_fetched_is_refused_by_name():
    with pytest.raises(AdapterError, match=r"some-one/some-adapter: expected .* the hub gives none"):
        DeepMLFModel.from_pretrained("some-one/some-adapter")


def test_only_safetensors_and_text_are_fetched(monkeypatch, model, tmp_path):
    model.save_pretrained(tmp_path / "copy")
    asked = {}

    def snapshot(name, **options):
        asked.update(name=name, **options)
        return str(tmp_path / "copy")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    loaded = DeepMLFModel.from_pretrained("some-one/some-adapter", revision="v2")
    assert isinstance(loaded, DeepMLFModel)
    assert (asked["name"], asked["revision"]) == ("some-one/some-adapter", "v2")
    assert not any(pattern.endswith((".bin", ".pt", ".pkl", "*")) for pattern in asked["allow_patterns"])


@pytest.mark.parametrize("what", ["adapter", "merged"])
def test_pushing_offline_says_what_to_do_instead(model, what, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    import copy

    pushed = model if what == "adapter" else copy.deepcopy(model).merge_and_unload()
    with pytest.raises(AdapterError, match=r"offline mode is on .* save_pretrained"):
        pushed.push_to_hub("some-one/some-adapter")


def test_pushing_uploads_what_saving_writes_in_one_commit(model, monkeypatch):
    uploaded = []

    class Api:
        def create_repo(self, name, private, exist_ok):
            assert private
            return SimpleNamespace(repo_id=name)

        def upload_folder(self, repo_id, folder_path, commit_message):
            from pathlib import Path

            uploaded.append(sorted(path.name for path in Path(folder_path).iterdir()))
            return SimpleNamespace(commit_url=f"https://hub/{repo_id}")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    assert model.push_to_hub("me/mine", private=True) == "https://hub/me/mine"
    assert uploaded == [["README.md", "adapter_config.json", "adapter_model.safetensors"]]


def test_a_hub_that_refuses_ends_in_the_documented_error(model, monkeypatch):
    class Api:
        def create_repo(self, *words, **options):
            raise PermissionError("403 Forbidden")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    with pytest.raises(AdapterError, match=r"did not take it \(PermissionError: 403"):
        model.push_to_hub("me/mine")
