"""Mirrors ``scripts/demo_clip.py`` and ``scripts/synthetic_clips.py``."""

from __future__ import annotations

import csv
import json
import subprocess
import sys

import numpy as np
import pytest

from deepmlf_llm.media.decode import audio, probe
from scripts import synthetic_clips
from scripts.synthetic_clips import choose_scenes, draw_face, find_voice, hum, write_scenes

pytest.importorskip("av", reason="needs PyAV")
pytest.importorskip("PIL", reason="needs Pillow")

SIZES = {"train": 12, "valid": 3, "test": 3}


def test_scenes_are_the_same_for_the_same_seed_and_no_sentence_comes_twice():
    scenes = choose_scenes(SIZES, 0)
    assert scenes == choose_scenes(SIZES, 0) != choose_scenes(SIZES, 1)
    assert len({scene.text for scene in scenes}) == 18
    assert all(-3 <= scene.label <= 3 for scene in scenes)
    turned = [scene for scene in scenes if scene.voice or scene.face]
    assert 4 <= len(turned) <= 14
    assert all(not (scene.voice and scene.face) for scene in turned)  # either the voice tells, or the face


def test_a_scene_is_a_film_with_sound(tmp_path):
    scenes = write_scenes(tmp_path, {"train": 1, "valid": 1, "test": 1}, 0, hum)
    rows = list(csv.DictReader((tmp_path / "label.csv").open()))
    assert [row["mode"] for row in rows] == ["train", "valid", "test"]
    assert float(rows[0]["label"]) == scenes[0].label
    path = tmp_path / "Raw" / "train" / "train_000.mp4"
    probed = probe(path)
    assert probed.audio_end == pytest.approx(probed.video_end, abs=0.2)
    assert np.abs(audio(probed)).max() > 0.05
    before = path.stat().st_mtime_ns
    write_scenes(tmp_path, {"train": 1, "valid": 1, "test": 1}, 0, hum)
    assert path.stat().st_mtime_ns == before


def test_the_mood_is_in_the_mouth_and_the_voice():
    sad, glad = (draw_face(mood, 0.0, 0, 0).astype(int) for mood in (-0.6, 0.6))
    changed = np.abs(sad - glad).sum(2) > 60
    rows = np.flatnonzero(changed.any(1))
    assert 20 < changed.sum() < 3000
    assert rows.min() > 20
    low, high = (_strongest(hum("a banana", mood, 0)) for mood in (-0.6, 0.6))
    assert high > 1.3 * low


def _strongest(samples):
    """Hz of the strongest part of the spectrum."""
    return np.abs(np.fft.rfft(samples)).argmax() / len(samples) * synthetic_clips.RATE


def test_without_espeak_there_is_a_hum(monkeypatch):
    monkeypatch.setattr(synthetic_clips.shutil, "which", lambda name: None)
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    voice, who = find_voice()
    assert voice is hum
    assert "hum" in who


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_small_demo_goes_all_the_way(repository, tmp_path, monkeypatch):
    copy = tmp_path / "runs"
    words = ["--small", "--offline"]
    code = f"import sys; sys.path.insert(0, {str(repository)!r})\nfrom pathlib import Path\n"
    code += f"from scripts.demo_clip import main\nsys.exit(main({words}, Path({str(copy)!r})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=550)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    told = json.loads((copy / "demo-clip" / "unseen.json").read_text())
    assert told["status"] == "ok"
    assert (copy / "demo-clip" / "unseen.srt").is_file()
    assert "synthetic" in done.stdout
    assert "clips that the model has not seen" in done.stdout
