"""A file that is not a data set is named for what it is, whatever it is called."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import pickle
import tarfile
import zipfile

import numpy as np
import pytest

from deepmlf_llm.data.file_kind import file_kind
from deepmlf_llm.data.sources import open_source
from deepmlf_llm.errors import DataError

LINE = {"id": "a", "text": "b", "label": 1.0, "audio": [[1.0]]}


def saved(save, *args, **kwargs):
    buffer = io.BytesIO()
    save(buffer, *args, **kwargs)
    return buffer.getvalue()


def archive(*names):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name in names:
            file.writestr(name, "x")
    return buffer.getvalue()


def tarred():
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        file.addfile(tarfile.TarInfo("mosi.pkl"))
    return buffer.getvalue()


OTHERS = {
    "nothing": (b"", r"is empty \(0 bytes\): download"),
    "white space": (b" \n\n", "is blank"),
    "a page": (b"<!DOCTYPE html><html><title>Quota exceeded</title>", r"a web page \(HTML\), .*download it again"),
    "a page behind white space": (b"\xef\xbb\xbf\n <HTML>", "a web page"),
    "a page behind a comment": (b"<!-- x --><html>", "a web page"),
    "XML": (b"<?xml version='1.0'?><Error>AccessDenied</Error>", "XML or HTML"),
    "a quota": (b"Quota exceeded, try later", "a download that failed perhaps"),
    "an LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "git lfs pull"),
    "an annex pointer": (b"/annex/objects/SHA256E-s1--00.pkl\n", "git annex get"),
    "gzip": (gzip.compress(b"x"), r"compressed \(gzip\); unpack it with gunzip"),
    "xz": (lzma.compress(b"x"), r"compressed \(xz\)"),
    "tar": (tarred(), "a tar archive"),
    "npz": (saved(np.savez, x=1), r"a zip of numpy arrays \(.npz: x.npy\)"),
    "npy": (saved(np.save, np.ones(2)), r"one numpy array \(.npy\)"),
    "a PyTorch file": (
        archive("archive/data.pkl", "archive/version"),
        r"a PyTorch file \(.pt\); load it with torch.load",
    ),
    "an old PyTorch file": (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "PyTorch file of the old format"),
    "Excel": (archive("[Content_Types].xml", "xl/workbook.xml"), "an Office document"),
    "zip": (archive("mosi.pkl", "README"), r"a zip archive \(mosi.pkl, README\)"),
    "an empty zip": (archive(), r"a zip archive \(empty\)"),
    "half a zip": (archive("mosi.pkl")[:20], "a zip archive that is cut off"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(500), "is HDF5; of CMU-MultimodalSDK's .csd files give the folder"),
    "MATLAB": (b"MATLAB 5.0 MAT-file", "a MATLAB file"),
    "Parquet": (b"PAR1....PAR1", "a Parquet table; write its rows as JSON Lines"),
    "Arrow": (b"ARROW1..", "an Arrow file"),
    "safetensors": ((10).to_bytes(8, "little") + b'{"a":{}}  ', "safetensors"),
    "SQLite": (b"SQLite format 3\x00", "an SQLite data base"),
    "a picture": (b"\x89PNG\r\n\x1a\n", r"a picture \(PNG\); features have to be extracted"),
    "a video": (b"\0\0\0\x20ftypisom", r"a video \(MP4\)"),
    "a recording": (b"RIFF\0\0\0\0WAVEfmt ", r"a recording \(WAV\)"),
    "PDF": (b"%PDF-1.7", "a PDF"),
    "a table": (b"video_id,clip_id,text\na,b,c\n", r"a table \(CSV\); give the folder that holds it as label.csv"),
    "JSON": (json.dumps([LINE]).encode(), "a JSON document; write JSON Lines"),
    "JSON of several lines": (json.dumps(LINE, indent=1).encode(), "a JSON document"),
    "text": (b"to be read before use", r"text \('to be read before use'\)"),
    "UTF-32": ("hello".encode("utf-32"), "text in UTF-32"),
    "Latin-1": (json.dumps(LINE).encode() + b'\n{"text": "caf\xe9 au lait"}', "not in UTF-8: it holds the byte 0xe9"),
    "UTF-16": ("hello".encode("utf-16"), "text in UTF-16"),
    "noise": (b"\x01\x02\xff\xfe\x00\x99", "binary, of no kind known here"),
    "a later pickle": (b"\x80\x09K\x01.", "a pickle of protocol 9"),
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("suffix", [".pkl", ""])
def test_it_is_named_with_what_to_do(tmp_path, name, suffix):
    content, message = OTHERS[name]
    path = tmp_path / f"mosi{suffix}"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        open_source(path, "mosi")
    assert str(caught.value).startswith(f"{path}: is ")


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("content", [{"train": 1}, [1], [], {}, (1, 2), np.ones(2), [{"a": 1}]])
def test_pickles_are_pickles(tmp_path, protocol, content):
    path = tmp_path / "a.bin"
    path.write_bytes(pickle.dumps(content, protocol))
    assert file_kind(path).name == "pickle"


def test_lines_are_lines(tmp_path):
    for content in (
        json.dumps(LINE),
        json.dumps(LINE) + "\n" + json.dumps(LINE),
        json.dumps(LINE | {"text": "x" * 20_000}),
        '{"id": 1, "id": 2,}\n' + json.dumps(LINE),
    ):
        (tmp_path / "a").write_text("\ufeff" + content, encoding="utf-8")
        assert file_kind(tmp_path / "a").name == "jsonl"


def test_a_pickle_that_is_cut_off_says_so(write_pickle, tree):
    path = write_pickle(tree)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(DataError, match=r"ends too early.*bytes and does not end as a pickle does: download or copy"):
        open_source(path, "mosi")


def test_what_is_no_file(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        open_source(tmp_path / "x.pkl", "mosi")
    (tmp_path / "link.pkl").symlink_to("/nowhere/mosi.pkl")
    with pytest.raises(DataError, match=r"a link to /nowhere/mosi\.pkl, which is not there"):
        open_source(tmp_path / "link.pkl", "mosi")
    with pytest.raises(DataError, match="is not an ordinary file"):
        open_source("/dev/zero", "mosi")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "no label.csv in this folder, and no file a split; it has nothing; expected an MMSA pickle"),
        (["manifest.json"], "is a data directory, prepared already"),
        (["adapter_config.json", "README.md"], "holds a model or a run, no data"),
        (["Labels.CSV"], "is Labels.CSV meant as label.csv"),
        ([f"{number}.wav" for number in range(9)], "it has 0.wav, .* and 3 more"),
    ],
)
def test_folders_of_something_else(tmp_path, files, message):
    for name in files:
        (tmp_path / name).write_text("{}")
    with pytest.raises(DataError, match=message):
        open_source(tmp_path, "mosi")
