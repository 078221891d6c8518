"""Mirrors ``media/folder.py``, ``media/listing.py`` and ``data/clip_folder.py``: a folder of clips becomes data."""

from __future__ import annotations

import json
import shutil

import pytest

from deepmlf_llm.data.columns import Columns
from deepmlf_llm.data.inputs import open_input
from deepmlf_llm.data.prepare import prepare
from deepmlf_llm.data.sources import open_source
from deepmlf_llm.errors import ConfigError, DataError
from deepmlf_llm.media import folder as room
from deepmlf_llm.media.extract import Extractor
from deepmlf_llm.media.folder import extract_folder
from deepmlf_llm.media.listing import list_clips
from deepmlf_llm.media.recipe import AudioSettings, RecipeSettings, VisionSettings
from deepmlf_llm.media.status import ClipError
from tests.media.clips import Hears, grey, tone, write_clip

pytest.importorskip("av", reason="needs PyAV")
pytest.importorskip("PIL", reason="needs Pillow")

TABLE = """video_id,clip_id,text,label,mode,annotation
v1,0001,good,1.0,train,Positive
v1,2,,-1.0,train,Negative
v2,1,so so,0.0,valid,Neutral
v2,2,bad,-2.0,test,Negative
"""
BOTH = RecipeSettings(AudioSettings("prosody", 10.0), VisionSettings("outline", 2.0))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    root = tmp_path_factory.mktemp("source")
    for video, clip, ending in (("v1", "0001", "mp4"), ("v1", "2", "mkv"), ("v2", "1", "wav")):
        (root / "Raw" / video).mkdir(parents=True, exist_ok=True)
        path = root / "Raw" / video / f"{clip}.{ending}"
        write_clip(path, 1.0, tone(1.0), None if ending == "wav" else grey(), audio=_codec(ending))
    shutil.copy(root / "Raw/v1/0001.mp4", root / "Raw" / "v2" / "2.MOV")
    (root / "label.csv").write_text(TABLE)
    return root


def _codec(ending):
    return "pcm_s16le" if ending == "wav" else "aac"


@pytest.fixture
def extractor():
    return Extractor(BOTH, Hears("not good"))


@pytest.fixture(scope="module")
def features(source, tmp_path_factory):
    out = tmp_path_factory.mktemp("made") / "features"
    report = extract_folder(Extractor(BOTH, Hears("not good")), source, out)
    assert report.exit_code == 0
    return out


def test_a_folder_becomes_a_corpus_with_its_recipe(features):
    corpus = open_source(features, "mosi")
    assert {split: rows.ids for split, rows in corpus.splits.items()} == {
        "train": ["v1$_$0001", "v1$_$2"],
        "valid": ["v2$_$1"],
        "test": ["v2$_$2"],
    }
    assert corpus.splits["train"].texts == ["good", "not good"]  # the second one was heard
    assert corpus.splits["train"].labels.tolist() == [1.0, -1.0]
    assert corpus.splits["train"].features["audio"][0].shape == (10, 9)
    assert corpus.splits["valid"].features["vision"][0].shape == (0, 512)  # a wav has no pictures
    assert corpus.modalities["vision"]["features"]["encoder"] == "outline"
    report = json.loads((features / "extract_report.json").read_text())
    assert report["counts"] == {"ok": 3, "ok_no_video": 1}
    assert report["clips"]["v2$_$1"]["status"] == "ok_no_video"
    assert report["times_real_time"]["all"] > 0
    assert report["cpu_seconds"] > 0
    assert "Positive" in (features / "label.csv").read_text()


def test_the_recipe_goes_into_the_manifest(features, tmp_path):
    manifest = prepare(features, "mosi", tmp_path / "data", storage="numpy")
    audio = manifest.modalities["audio"]
    assert (audio["frame_rate"], audio["features"]["encoder"]) == (10.0, "prosody")
    assert audio["provenance"]["source"] == "features"


def test_a_second_call_makes_nothing_and_a_changed_file_is_made_again(source, features, extractor, tmp_path):
    changed = tmp_path / "source"
    shutil.copytree(source, changed)
    out = shutil.copytree(features, tmp_path / "features")
    report = extract_folder(extractor, changed, out)
    assert (report.found, extractor.transcriber.calls) == (4, 0)
    before = (out / "label.csv").read_bytes()
    write_clip(changed / "Raw/v1/2.mkv", 0.5, tone(0.5, 150), grey(), audio="aac")
    report = extract_folder(extractor, changed, out)
    assert (report.found, extractor.transcriber.calls) == (3, 1)
    assert (out / "label.csv").read_bytes() == before


def test_a_kill_costs_one_clip(source, extractor, tmp_path, monkeypatch):
    out = tmp_path / "features"
    real, calls = Extractor.extract, []

    def dies(self, path, *rest, **named):
        calls.append(path)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(self, path, *rest, **named)

    monkeypatch.setattr(Extractor, "extract", dies)
    with pytest.raises(KeyboardInterrupt):
        extract_folder(extractor, source, out)
    with pytest.raises(DataError, match="did not end"):
        open_source(out, "mosi")
    report = extract_folder(extractor, source, out)
    assert (report.found, len(calls)) == (2, 5)
    assert len(open_source(out, "mosi").splits["train"]) == 2


def test_another_recipe_is_refused_by_its_field(source, features, tmp_path):
    out = shutil.copytree(features, tmp_path / "features")
    slower = RecipeSettings(BOTH.audio, VisionSettings("outline", 1.0))
    with pytest.raises(DataError, match=r"another recipe: 'vision' has 1 frames a second, expected 2"):
        extract_folder(Extractor(slower), source, out)
    with pytest.raises(DataError, match=r"another recipe: no 'vision'"):
        extract_folder(Extractor(RecipeSettings(BOTH.audio)), source, out)
    margin = RecipeSettings(BOTH.audio, VisionSettings("outline", 2.0, margin=2.0))
    with pytest.raises(DataError, match="it differs in margin"):
        extract_folder(Extractor(margin), source, out)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("mine")
    with pytest.raises(DataError, match="something else already"):
        extract_folder(Extractor(BOTH), source, tmp_path / "full")


def test_bad_clips_are_named_and_the_rest_goes_on(source, extractor, tmp_path):
    bad = shutil.copytree(source, tmp_path / "source")
    (bad / "Raw/v1/0001.mp4").write_bytes(b"")
    (bad / "Raw/v1/2.mkv").unlink()
    report = extract_folder(extractor, bad, tmp_path / "features")
    assert report.counts() == {"unreadable": 1, "missing": 1, "ok_no_video": 1, "ok": 1}
    assert report.failed == ["v1$_$0001", "v1$_$2"]
    assert report.exit_code == 3
    told = json.loads((tmp_path / "features/extract_report.json").read_text())["clips"]["v1$_$0001"]
    assert "0 bytes" in told["message"]
    assert "v1" not in (tmp_path / "features/label.csv").read_text()
    with pytest.raises(ClipError, match="0 bytes"):
        extract_folder(extractor, bad, tmp_path / "other", stop_at_failure=True)


def test_transcribe_says_who_is_listened_to(source, tmp_path):
    for policy, calls, texts in (
        ("never", 0, ["good", ""]),
        ("missing", 1, ["good", "heard"]),
        ("always", 4, ["good", "heard"]),
    ):
        hears = Hears("heard")
        extract_folder(Extractor(BOTH, hears), source, tmp_path / policy, transcribe=policy)
        assert hears.calls == calls
        assert open_source(tmp_path / policy, "mosi").splits["train"].texts == texts


def test_files_without_a_table_are_clips_for_predictions(source, tmp_path):
    plain = tmp_path / "plain"
    plain.mkdir()
    shutil.copy(source / "Raw/v1/0001.mp4", plain / "holiday.mp4")
    listing = list_clips(plain)
    assert [clip.name for clip in listing.clips] == ["clips$_$holiday"]
    out = tmp_path / "features"
    extract_folder(Extractor(BOTH, Hears("sun")), plain, out)
    trained = _Trained(Extractor(BOTH).facts())
    (row,) = open_input(out, Columns(["audio", "vision"]), trained).rows()
    assert (row.values["text"], row.values["audio"].shape) == ("sun", (10, 9))
    other = {"audio": {**trained.modalities["audio"], "frame_rate": 5.0}}
    with pytest.raises(DataError, match="do not fit the model: 'audio' has 10 frames a second, expected 5"):
        open_input(out, Columns(["audio"]), _Trained(other))


class _Trained:
    dataset, task = "mosi", None

    def __init__(self, modalities):
        self.modalities = modalities


def test_two_files_for_one_row_and_no_clips_are_refused(source, tmp_path):
    twice = shutil.copytree(source, tmp_path / "twice")
    shutil.copy(twice / "Raw/v1/2.mkv", twice / "Raw/v1/2.mp4")
    with pytest.raises(DataError, match="several files"):
        list_clips(twice)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"neither label\.csv nor files"):
        list_clips(tmp_path / "empty")


def test_a_clip_that_fails_in_a_way_of_its_own_is_skipped(source, extractor, tmp_path, monkeypatch):
    one = extractor.extract

    def extract(path, text, listen=False):
        if path.stem == "2":
            raise PermissionError(13, "Permission denied")
        return one(path, text, listen=listen)

    monkeypatch.setattr(extractor, "extract", extract)
    report = extract_folder(extractor, source, tmp_path / "out")
    assert report.counts()["unreadable"] == 2
    assert len(report.failed) == 2
    assert "Permission denied" in report.clips["v1$_$2"]["message"]


def test_a_long_name_in_another_script_is_a_clip_too(source, tmp_path):
    names = ["имя " * 20 + end for end in ("а", "б")]
    (tmp_path / "in").mkdir()
    for name in names:
        shutil.copy(source / "Raw/v2/1.wav", tmp_path / "in" / f"{name}.wav")
    report = extract_folder(Extractor(RecipeSettings(AudioSettings("prosody"))), tmp_path / "in", tmp_path / "out")
    assert report.exit_code == 0
    files = list((tmp_path / "out" / "clips").iterdir())
    assert len(files) == 2
    assert max(len(path.name.encode()) for path in files) < 255


def test_ids_are_as_a_table_is_read_and_hidden_folders_are_no_clips(source, tmp_path):
    (tmp_path / ".trash").mkdir()
    shutil.copy(source / "Raw/v2/1.wav", tmp_path / "one .wav")
    shutil.copy(source / "Raw/v2/1.wav", tmp_path / ".trash" / "gone.wav")
    assert [clip.name for clip in list_clips(tmp_path).clips] == ["clips$_$one"]


def test_a_file_of_two_rows_is_refused(source, tmp_path):
    shutil.copy(source / "Raw/v2/1.wav", tmp_path / "v_1_2.wav")
    (tmp_path / "label.csv").write_text("video_id,clip_id,text,label,mode\nv_1,2,a,1,train\nv,1_2,b,-1,test\n")
    with pytest.raises(DataError, match=r"v_1_2.wav would be clip '2' of video 'v_1' and clip '1_2' of video 'v'"):
        list_clips(tmp_path)


def test_a_recipe_that_made_nothing_gives_way(source, tmp_path):
    other = RecipeSettings(AudioSettings("prosody", 20.0))
    wrong = Extractor(RecipeSettings(AudioSettings("prosody", 10.0)))
    wrong.extract = lambda *_, **__: (_ for _ in ()).throw(ZeroDivisionError)
    with pytest.raises(ZeroDivisionError):
        extract_folder(wrong, source, tmp_path / "out")
    assert extract_folder(Extractor(other), source, tmp_path / "out").exit_code == 0


def test_a_limit_is_said_and_is_one_at_least(source, extractor, tmp_path):
    report = extract_folder(extractor, source, tmp_path / "out", limit=1)
    assert any("label.csv has the first 1 of 4 clips and no others" in note for note in report.notes)
    with pytest.raises(ConfigError, match="limit=0: expected a number of clips"):
        extract_folder(extractor, source, tmp_path / "out", limit=0)


def test_damaged_features_are_told(features, tmp_path):
    out = shutil.copytree(features, tmp_path / "features")
    (file,) = out.glob("clips/v2*2.npz")
    whole = file.read_bytes()
    file.write_bytes(whole[:300])
    with pytest.raises(DataError, match="damaged"):
        open_source(out, "mosi")
    assert room._kept(file, {}) is None
    file.write_bytes(whole)
    (out / "features.json").write_text('{"kind": "deepmlf_clip_features", "schema": 1, "modalities": {"audio": {}}}')
    with pytest.raises(DataError, match="damaged"):
        open_source(out, "mosi")
