"""``deepmlf extract-features`` and ``deepmlf predict --video``: the same clip by three ways, and what is refused."""

from __future__ import annotations

import json
import sys
from types import ModuleType

import pytest
import torch

from deepmlf_llm.backbones import load_base_model
from deepmlf_llm.commands import cli
from deepmlf_llm.config.method import DeepMLFConfig
from deepmlf_llm.data.prepare import prepare
from deepmlf_llm.data.store import open_store
from deepmlf_llm.inference.predictor import SentimentPredictor
from deepmlf_llm.model.peft_model import DeepMLFModel
from tests.media.clips import grey, tone, write_clip

pytest.importorskip("av", reason="needs PyAV")
pytest.importorskip("PIL", reason="needs Pillow")

TABLE = """video_id,clip_id,text,label,mode
v,a,well then,1.0,train
v,b,not so,-1.0,valid
v,c,and so on,2.0,test
"""
RECIPE = ["--audio_encoder", "prosody", "--vision_encoder", "outline", "--fps", "5"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Clips, their features by the command, and an adapter whose standardisation comes from them."""
    root = tmp_path_factory.mktemp("world")
    raw = root / "source" / "Raw" / "v"
    raw.mkdir(parents=True)
    for k, name in enumerate("abc"):
        write_clip(raw / f"{name}.mp4", 1.3, tone(1.3, 150 + 60 * k), grey(0.3 + 0.2 * k))
    (root / "source" / "label.csv").write_text(TABLE)
    assert cli.main(["extract-features", "--data", f"{root}/source", "--out", f"{root}/features", *RECIPE]) == 0
    prepare(root / "features", "mosi", root / "data", storage="numpy")
    store = open_store(root / "data")
    torch.manual_seed(0)
    config = DeepMLFConfig(fusion_layers=[3], modalities=store.modalities, text={"case": "lower"})
    DeepMLFModel(load_base_model("tiny-llama"), config).eval().save_pretrained(root / "adapter")
    return root


def test_a_clip_has_one_polarity_whichever_way_it_comes(world, tmp_path, capsys):
    clip = world / "source" / "Raw" / "v" / "c.mp4"
    out = [f"--{kind}" for kind in ("json", "csv", "srt")]
    files = [word for name in out for word in (name, f"{tmp_path}/c.{name[2:]}")]
    given = ["predict", "--adapter", f"{world}/adapter", "--video", str(clip), "--text", "and so on"]
    assert cli.main([*given, *files]) == 0
    assert "ok, 1." in capsys.readouterr().out
    by_command = json.loads((tmp_path / "c.json").read_text())["whole"]
    by_features = predictions(world, world / "features", tmp_path / "features.jsonl")
    by_data = predictions(world, world / "data", tmp_path / "data.jsonl")
    by_python = SentimentPredictor.from_pretrained(world / "adapter").predict_clip(clip, "and so on").whole.prediction
    for head in ("polarity", "text_polarity", "av_polarity", "fusion_polarity"):
        expected = pytest.approx(by_command[head], abs=1e-5)
        assert by_features["v$_$c"][head] == expected
        assert by_data["v$_$c"][head] == expected
        assert getattr(by_python, head) == expected
    assert by_features["v$_$a"]["polarity"] != pytest.approx(by_command["polarity"], abs=1e-5)


def predictions(world, source, output):
    assert cli.main(["predict", "--adapter", f"{world}/adapter", "--input", str(source), "--output", str(output)]) == 0
    return {line["id"]: line for line in map(json.loads, output.read_text().splitlines())}


def test_merged_models_carry_the_recipe_too(world, tmp_path):
    model = DeepMLFModel.from_pretrained(world / "adapter")
    model.merge_and_unload().save_pretrained(tmp_path / "merged")
    clip = world / "source" / "Raw" / "v" / "a.mp4"
    said = [
        SentimentPredictor.from_pretrained(place).predict_clip(clip, "well then").whole.prediction.polarity
        for place in (world / "adapter", tmp_path / "merged")
    ]
    assert said[0] == pytest.approx(said[1], abs=1e-4)


def test_one_text_needs_no_clip(world, capsys):
    assert cli.main(["predict", "--adapter", f"{world}/adapter", "--text", "so it goes"]) == 0
    assert "polarity" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--video", "none.mp4"], "no such file"),
        (["--video", "CLIP", "--input", "x.jsonl"], "stand alone"),
        (["--text", "x", "--csv", "x.csv"], "there is no --video"),
        (["--text", "x", "--window", "2"], "--window: is for a clip, and there is no --video"),
        (
            ["--input", "x.jsonl", "--output", "y.jsonl", "--csv", "x.csv"],
            "--csv: is for a clip, and there is no --video",
        ),
        (["--input", "x.jsonl", "--output", "y.jsonl", "--encoder", "vision=x"], "--encoder: is for a clip"),
        (["--input", "x.jsonl", "--output", "y.jsonl", "--device", "cud"], "'cud' is none of cpu, cuda"),
        (["--video", "CLIP", "--window", "words"], "expected speech, or seconds"),
        (["--video", "CLIP", "--plot", "x.pdf"], "ends with .svg or .png"),
        (["--video", "CLIP", "--json", "nowhere/x.json"], "its directory is not there"),
        (["--video", "CLIP", "--encoder", "visoin=x"], "did you mean 'vision'"),
        (["--video", "ZERO", "--text", "x"], "0 bytes"),
        ([], "expected --input and --output, or --video, or --text"),
    ],
)
def test_what_cannot_be_is_one_line(world, words, told, capsys, tmp_path):
    (tmp_path / "zero.mp4").write_bytes(b"")
    places = {"CLIP": str(world / "source/Raw/v/a.mp4"), "ZERO": str(tmp_path / "zero.mp4")}
    try:
        code = cli.main(["predict", "--adapter", f"{world}/adapter", *(places.get(word, word) for word in words)])
    except SystemExit as ended:
        code = ended.code
    assert code == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--encoder", "visoin=x"], "did you mean 'vision'"),
        (["--encoder", "vision"], "expected name=value"),
        (["--encoder", "vision=outlin"], "did you mean 'outline'"),
        (["--transcribe", "nevr"], "did you mean 'never'"),
        (["--exampel", "x.mp4"], "unknown option --exampel (did you mean '--example'?)"),
    ],
)
def test_the_page_refuses_the_same_before_it_is_built(world, words, told, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", ModuleType("gradio"))
    monkeypatch.setattr("deepmlf_llm.commands.demo_page.build_page", lambda *_: pytest.fail("a page was built"))
    try:
        code = cli.main(["demo", "--adapter", f"{world}/adapter", "--transcribe", "never", *words])
    except SystemExit as ended:
        code = ended.code
    assert code == 2
    assert told in capsys.readouterr().err


def test_a_model_of_covarep_columns_says_why_it_takes_no_clips(tmp_path, world, capsys):
    made = {"audio": {"dim": 74, "features": {"kind": "precomputed"}, "provenance": {"source": "mosi.pkl"}}}
    config = DeepMLFConfig(fusion_layers=[3], modalities=made)
    DeepMLFModel(load_base_model("tiny-llama"), config).eval().save_pretrained(tmp_path / "adapter")
    clip = str(world / "source/Raw/v/a.mp4")
    assert cli.main(["predict", "--adapter", f"{tmp_path}/adapter", "--video", clip, "--text", "x"]) == 2
    told = capsys.readouterr().err
    assert "cannot take clips: its audio features (74 columns) come as numbers from mosi.pkl" in told
    assert "COVAREP" in told


def test_extraction_says_how_fast_it_was_and_which_clips_failed(world, tmp_path, capsys):
    source = tmp_path / "source"
    source.mkdir()
    (source / "zero.mp4").write_bytes(b"")
    words = ["extract-features", "--data", str(source), "--out", f"{tmp_path}/out", *RECIPE, "--transcribe", "never"]
    assert cli.main(words) == 2
    assert "none of its clips gave features" in capsys.readouterr().err
    write_clip(source / "good.wav", 1.0, tone(1.0), audio="pcm_s16le")
    assert cli.main(words) == 3
    done = capsys.readouterr()
    assert "times as fast as the clips last" in done.out
    assert "zero: unreadable" in done.err
    assert cli.main(["extract-features", "--data", str(source), "--out", f"{tmp_path}/x"]) == 2
    assert "nothing to extract" in capsys.readouterr().err
