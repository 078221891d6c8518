"""What `make demo` does after setting up: train on the embedded set, evaluate, predict, show what came out.

Every command is printed before it runs, as one would type it. Further options go to the training recipe:
``make demo ARGS="--num_train_epochs 3 --base_model tiny-llama"``; ``--verbose`` goes to all, and shows what other
libraries say.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

if TYPE_CHECKING:
    from deepmlf_llm.data.dataset import PolarityDataset

CPU_PROCESSES = 2
SHOWN_EXAMPLES = 4
LONGEST_TEXT = 34  # characters: a row on one line of a terminal
VERBOSE = "--verbose"
HEADS = {
    "polarity": "all three (the prediction)",
    "text_polarity": "its text head alone",
    "av_polarity": "its audiovisual head alone",
}


def main(extra: list[str], runs: Path = Path("runs")) -> int:
    if {"-h", "--help"} & {*extra}:
        print(__doc__)
        return 0
    from deepmlf_llm.data.demo import embedded_dataset
    from deepmlf_llm.data.store import open_store
    from deepmlf_llm.paths import shown

    start = time.monotonic()
    os.chdir(REPOSITORY)
    data = embedded_dataset()
    store = open_store(data)
    for note in store.manifest.notes:
        print(f"Data, {note}")
    run = free_directory(runs, "demo")
    files = {name: run / name for name in ("evaluation.json", "utterances.jsonl", "predictions.jsonl")}
    adapter = str(run / "adapter")

    verbose = [VERBOSE] * (VERBOSE in extra)
    train = ["recipes/train_llama.py", "--ds", "ds_configs/zero2.json", "--output_dir", str(run), *extra]
    step(["deepspeed", *([] if verbose else ["--quiet"]), *processes(), *train])
    on_data = ["--adapter", adapter, "--data", str(data), "--split", "test", "--output", str(files["evaluation.json"])]
    step(["python", "recipes/evaluate.py", *on_data, *verbose])
    test = store.split("test")
    write_utterances(files["utterances.jsonl"], test, store.modalities)
    on_file = ["--input", str(files["utterances.jsonl"]), "--output", str(files["predictions.jsonl"])]
    step(["python", "recipes/predict.py", "--adapter", adapter, *on_file, *verbose])

    report(test, store.manifest.dataset, read_lines(files["predictions.jsonl"]))
    took, after = f"{time.monotonic() - start:.0f} s", next_step(Path(sys.executable).parent)
    print(f"{took}. {shown(run)} holds adapter, metrics, predictions. {after}")
    return 0


def next_step(scripts: Path) -> str:
    """How to go on in the environment that this program runs in."""
    from deepmlf_llm.commands.environment import entered, entry

    enter = "" if entered(scripts.parent) or not (scripts / "activate").is_file() else f"{entry(scripts.parent)}, then "
    return f"To train on your data: {enter}the commands of README.md."


def step(command: list[str]) -> None:
    """Runs a command of this environment from the root of the checkout; ends the demo where it fails."""
    print(f"\n$ {shlex.join(command)}", flush=True)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    # Named by path: a `python` found first on the PATH may be another one.
    program = sys.executable if command[0] == "python" else shutil.which(command[0], path=path) or command[0]
    environment = {"HF_HUB_OFFLINE": "1", **os.environ, "PATH": path}  # nothing here needs a hub
    if processes():
        environment.setdefault("DS_ACCELERATOR", "cpu")  # else the launcher warns that it found nothing better
    code = subprocess.run([program, *command[1:]], env=environment).returncode
    if code:
        sys.exit(f"make demo: error: {command[0]} {command[1]} ended with code {code}; see above")


def processes() -> list[str]:
    """Launcher options: every GPU where there are some, else two CPU processes."""
    import torch

    return [] if torch.cuda.is_available() else ["--num_accelerators", str(CPU_PROCESSES)]


def free_directory(parent: Path, name: str) -> Path:
    """``parent/name``, or the first ``parent/name-2``, ``-3``, ... that does not exist: earlier runs stay."""
    number = 1
    while (candidate := parent / (name if number == 1 else f"{name}-{number}")).exists():
        number += 1
    return candidate


def write_utterances(path: Path, split: PolarityDataset, modalities: dict[str, dict[str, Any]]) -> None:
    """The utterances as predictions read them: raw features, so the standardisation of the data is taken back."""
    with path.open("w", encoding="utf-8") as file:
        for item in split:
            line: dict[str, Any] = {"id": item["id"], "text": item["text"]}
            for name, facts in modalities.items():
                rule = facts["standardisation"]
                raw = item[name] * rule["std"] + rule["mean"]
                line[name] = raw.round(5).tolist() or None
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def read_lines(path: Path) -> dict[str, dict[str, Any]]:
    """The rows of a JSON Lines file by their id."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {row["id"]: row for row in rows}


def report(split: PolarityDataset, dataset: str, predictions: dict[str, dict[str, Any]]) -> None:
    """Two tables: how well each head does on the test split, and what it says of utterances whose words mislead."""
    import numpy as np

    from deepmlf_llm.commands.shell import print_table
    from deepmlf_llm.tasks.metrics import polarity_metrics

    says = {head: np.array([predictions[name][head] for name in split.ids], np.float32) for head in HEADS}
    shown_metrics = ("mae", "corr", "acc7", "acc2_non0", "f1_non0")
    rows = []
    for head, name in HEADS.items():
        metrics = polarity_metrics(says[head], split.labels, dataset)
        rows.append([name, *(f"{metrics[key]:.3f}" for key in shown_metrics)])
    print_table(f"The trained model on {len(split)} test utterances", rows, ["what it goes by", *shown_metrics])

    misleading = np.argsort(-np.abs(split.unimodal["T"] - split.labels))[: SHOWN_EXAMPLES // 2]
    honest = np.flatnonzero(split.unimodal["T"] == split.labels)[: SHOWN_EXAMPLES - len(misleading)]
    rows = []
    for index in (*misleading, *honest):
        predicted = predictions[split.ids[index]]
        text = split.texts[index]
        text = text if len(text) <= LONGEST_TEXT else text[: LONGEST_TEXT - 1] + "…"
        numbers = (split.labels[index], predicted["text_polarity"], predicted["polarity"])
        rows.append([*(f"{number:+.1f}" for number in numbers), predicted["label"], text])
    columns = ["true", "text head", "prediction", "label", "utterance"]
    print_table("Words that mislead, then words that do not (polarity from -3 to 3)", rows, columns)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
