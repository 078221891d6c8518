"""Text-only ridge regression on the frozen LM's states: the baseline beside every trained figure.

Features of an utterance: the state of its last text token, or the mean over its tokens, after a layer of the LM. Layer,
pooling and penalty are chosen on the validation split; the test split is looked at once, with the choice.

    python benchmarks/ridge_baseline.py --data data/mosi --template '{text}' --output ridge.json
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from deepmlf_llm.backbones import Decoder, load_base_model, load_tokenizer, run_layers
from deepmlf_llm.backbones.interface import layer_output
from deepmlf_llm.commands.shell import RecipeParser, run_recipe
from deepmlf_llm.data.collate import Collator, tokenise
from deepmlf_llm.data.store import open_store
from deepmlf_llm.tasks.metrics import polarity_metrics

PENALTIES = np.logspace(1, 5, 9)
POOLINGS = ("last", "mean")


@torch.no_grad()
def states(decoder: Decoder, split: Any, collator: Collator) -> np.ndarray:
    """States of a split's texts: [poolings x layers x utterances x d]."""
    order = np.argsort(split.lengths)
    result: np.ndarray | None = None
    for rows in np.array_split(order, max(1, len(order) // 32)):
        batch = collator([split[int(i)] for i in rows])
        layers = torch.stack(
            list(_layers(decoder, batch["input_ids"], batch["attention_mask"]))
        )  # [layers x b x l x d]
        mask = batch["attention_mask"][None, :, :, None]
        pooled = torch.stack([layers[:, :, -1], (layers * mask).sum(dim=2) / mask.sum(dim=2)]).float().numpy()
        if result is None:
            result = np.empty((*pooled.shape[:2], len(split), pooled.shape[-1]), dtype=np.float32)
        result[:, :, rows] = pooled
    assert result is not None
    return result


def _layers(decoder: Decoder, input_ids: torch.Tensor, mask: torch.Tensor) -> Iterator[torch.Tensor]:
    kept: list[torch.Tensor] = []
    hooks = [layer.register_forward_hook(lambda m, a, out: kept.append(layer_output(out))) for layer in decoder.layers]
    try:
        run_layers(decoder, decoder.embeddings(input_ids), mask)
    finally:
        for hook in hooks:
            hook.remove()
    yield from kept


def fit(features: dict[str, np.ndarray], labels: dict[str, np.ndarray], dataset: str) -> dict[str, Any]:
    """The best ridge on validation MAE, and its metrics on validation and test."""
    best: dict[str, Any] = {}
    for pooling, name in enumerate(POOLINGS):
        for layer in range(features["train"].shape[1]):
            ridge = make_pipeline(StandardScaler(), RidgeCV(PENALTIES))
            ridge.fit(features["train"][pooling, layer], labels["train"])
            predicted = {s: ridge.predict(features[s][pooling, layer]) for s in ("valid", "test")}
            mae = float(np.abs(predicted["valid"] - labels["valid"]).mean())
            if not best or mae < best["mae"]:
                best = {"mae": mae, "pooling": name, "layer": layer, "predicted": predicted}
    metrics = {
        shown: polarity_metrics(best["predicted"][split], labels[split], dataset)
        for split, shown in (("valid", "validation"), ("test", "test"))
    }
    return {"pooling": best["pooling"], "layer": best["layer"], "metrics": metrics}


def main(argv: list[str] | None = None) -> None:
    parser = RecipeParser(description=__doc__, prog="ridge_baseline.py")
    parser.add_argument("--data", required=True, help="data directory made by recipes/prepare_data.py")
    parser.add_argument("--base_model", default="smollm2-135m", help="as in train_llama.py")
    parser.add_argument("--template", default="{text}", help="what the LM reads around the transcript")
    parser.add_argument("--max_tokens", type=int, default=50, help="longer transcripts are cut")
    parser.add_argument("--dtype", default="auto", help="of the LM: auto, float32 or bfloat16")
    parser.add_argument("--output", help="JSON file to write")
    options = parser.parse_args(argv)
    template = options.template.replace("\\n", "\n")
    decoder = Decoder(load_base_model(options.base_model, dtype=options.dtype))
    tokenizer, store = load_tokenizer(options.base_model), open_store(options.data)
    collator = Collator(tokenizer, {}, options.max_tokens, template)
    features, labels = {}, {}
    for name in ("train", "valid", "test"):
        split = tokenise(store.split(name), tokenizer, options.max_tokens, template)
        features[name], labels[name] = states(decoder, split, collator), np.asarray(store.split(name).labels)
    result = {"template": template, **fit(features, labels, store.manifest.dataset)}
    print(json.dumps(result, indent=2))
    if options.output:
        Path(options.output).write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    raise SystemExit(run_recipe(main))
