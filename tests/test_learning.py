"""The whole of it learns: fusion tokens get from audio and vision what the text does not say."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deepmlf_llm.backbones import load_base_model, load_tokenizer
from deepmlf_llm.config.method import DeepMLFConfig
from deepmlf_llm.data.collate import Collator, tokenise
from deepmlf_llm.data.demo import embedded_dataset
from deepmlf_llm.data.store import open_store
from deepmlf_llm.model.peft_model import DeepMLFModel
from deepmlf_llm.tasks.metrics import polarity_metrics

STEPS, BATCH = 150, 32
MARGIN = {"corr": 0.25, "mae": 0.10}  # tri-modal over text-only, on the test split of the embedded set


@pytest.fixture(scope="module")
def embedded(tmp_path_factory):
    return open_store(embedded_dataset(tmp_path_factory.mktemp("embedded"), sizes=(600, 50, 200)))


def trained_metrics(store, present: bool) -> dict[str, float]:
    """Test metrics of a tiny LLaMA trained with audio and vision, or with both absent from every row."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    tokenizer = load_tokenizer("tiny-llama")
    modalities = {name: {"dim": facts["dim"]} for name, facts in store.modalities.items()}
    config = DeepMLFConfig(
        num_fusion_tokens=4,
        fusion_layers="last:2",
        ffw_scope="fusion",
        modalities=modalities,
        av_encoder={"num_layers": 1},
    )
    model = DeepMLFModel(load_base_model("tiny-llama"), config)
    model.enable_text_cache("memory")
    train, test = (tokenise(store.split(name), tokenizer) for name in ("train", "test"))
    collate = Collator(tokenizer, modalities)

    def batch(split, rows):
        made = {k: v.to(model.device) for k, v in collate([split[int(i)] for i in rows]).items()}
        return made if present else {k: torch.zeros_like(v) if k in masks else v for k, v in made.items()}

    masks = {f"{name}_mask" for name in modalities}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=STEPS)
    model.train()
    for _ in range(STEPS):
        loss = model(**batch(train, rng.choice(len(train), BATCH, replace=False))).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.eval()
    with torch.no_grad():
        predicted = [model(**batch(test, rows)).polarity.cpu() for rows in np.array_split(np.arange(len(test)), 4)]
    return polarity_metrics(torch.cat(predicted).numpy(), np.asarray(store.split("test").labels), "mosi")


def test_three_modalities_beat_text_alone_on_the_embedded_set(embedded):
    tri_modal, text_only = trained_metrics(embedded, True), trained_metrics(embedded, False)
    assert tri_modal["corr"] > text_only["corr"] + MARGIN["corr"]
    assert tri_modal["mae"] < text_only["mae"] - MARGIN["mae"]
