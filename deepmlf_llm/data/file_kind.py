"""What a file is, by what it begins with, and what to do with one that is not a data set.

Names and endings say nothing: downloads that failed are web pages called ``.pkl``.
"""

from __future__ import annotations

import os
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path

from deepmlf_llm.errors import DataError
from deepmlf_llm.reading import parse_json

PICKLE, JSON_LINES, HDF5, NPZ, NPY, CSV, TEXT, UNKNOWN = "pickle", "jsonl", "hdf5", "npz", "npy", "csv", "text", "?"
_HEAD = 8192
LFS = b"version https://git-lfs.github.com/spec/"
FORMATS = "an MMSA pickle, a folder with label.csv, JSON Lines, or a folder of .csd files"
_AGAIN = "download it again, and look at the page in a browser if it comes back"
_UNPACK = "unpack it and give what is in it"
_FEATURES = "features have to be extracted from it first (with MMSA-FET, for example)"


@dataclass(frozen=True)
class FileKind:
    """What a file is.

    Attributes:
        name: for programs; one of the constants of this module, or "other".
        what: for messages: "a web page (HTML)".
        todo: what to do with it.
    """

    name: str
    what: str
    todo: str = f"expected {FORMATS}"

    def refuse(self, path: Path) -> DataError:
        """The error that says so of ``path``."""
        return DataError(f"{path}: is {self.what}; {self.todo}")


# (offset, bytes, what it is, what to do)
_SIGNATURES = [
    (0, b"\x1f\x8b", "compressed (gzip)", "unpack it with gunzip and give what is in it"),
    (0, b"BZh", "compressed (bzip2)", "unpack it with bunzip2 and give what is in it"),
    (0, b"\xfd7zXZ\x00", "compressed (xz)", "unpack it with unxz and give what is in it"),
    (0, b"\x28\xb5\x2f\xfd", "compressed (zstd)", "unpack it with unzstd and give what is in it"),
    (0, b"\x04\x22\x4d\x18", "compressed (lz4)", _UNPACK),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (0, b"Rar!", "a RAR archive", _UNPACK),
    (257, b"ustar", "a tar archive", "unpack it with tar -xf and give what is in it"),
    (0, b"PAR1", "a Parquet table", "write its rows as JSON Lines: id, text, label and one list of frames a modality"),
    (0, b"ARROW1", "an Arrow file", "write its rows as JSON Lines: id, text, label and one list of frames a modality"),
    (0, b"FEA1", "a Feather table", "write its rows as JSON Lines: id, text, label and one list of frames a modality"),
    (0, b"MATLAB", "a MATLAB file", "load it with scipy.io.loadmat and save what it holds as an MMSA pickle"),
    (0, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Office document (Excel, say)", "save the table as label.csv"),
    (0, b"SQLite format 3\x00", "an SQLite data base", f"export it; expected {FORMATS}"),
    (0, b"%PDF", "a PDF", f"expected {FORMATS}"),
    (0, b"GGUF", "a GGUF language model", "that goes to --base_model"),
    (0, b"\x7fELF", "a program", f"expected {FORMATS}"),
    (0, b"MZ", "a Windows program", f"expected {FORMATS}"),
    (0, b"\x89PNG", "a picture (PNG)", _FEATURES),
    (0, b"\xff\xd8\xff", "a picture (JPEG)", _FEATURES),
    (0, b"GIF8", "a picture (GIF)", _FEATURES),
    (4, b"ftyp", "a video (MP4)", _FEATURES),
    (0, b"\x1a\x45\xdf\xa3", "a video (Matroska or WebM)", _FEATURES),
    (8, b"AVI ", "a video (AVI)", _FEATURES),
    (8, b"WAVE", "a recording (WAV)", _FEATURES),
    (0, b"ID3", "a recording (MP3)", _FEATURES),
    (0, b"fLaC", "a recording (FLAC)", _FEATURES),
    (0, b"OggS", "a recording (Ogg)", _FEATURES),
    (0, b"\xff\xfe\x00\x00", "text in UTF-32", "save it as UTF-8"),
    (0, b"\x00\x00\xfe\xff", "text in UTF-32", "save it as UTF-8"),
    (0, b"\xff\xfe", "text in UTF-16", "save it as UTF-8"),
    (0, b"\xfe\xff", "text in UTF-16", "save it as UTF-8"),
]
_LEGACY_TORCH = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"
_OLD_PICKLE = re.compile(rb"[(})\]]|c[\w.]+\n|[SVIFLN][^\n]*\n")
"""Protocols 0 and 1, which have no mark of their own: how a dictionary, list, class or value begins."""


def file_kind(path: Path) -> FileKind:
    """What the file at ``path`` is.

    Raises:
        DataError: there is no such file, it is none, it is empty, or it cannot be read.
    """
    path = Path(path)
    if not path.exists():
        link = f", a link to {os.readlink(path)}, which is not there" if path.is_symlink() else ""
        raise DataError(f"{path}: no such file{link}")
    if not path.is_file():
        raise DataError(f"{path}: is not an ordinary file")
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 1))
            last = file.read(1)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None
    if not head:
        raise DataError(f"{path}: is empty (0 bytes): download or copy it again")
    return (
        _binary_kind(path, head, last) or _text_kind(head, last) or FileKind(UNKNOWN, "binary, of no kind known here")
    )


def _binary_kind(path: Path, head: bytes, last: bytes) -> FileKind | None:
    if head.startswith(b"\x89HDF\r\n\x1a\n") or head[512:520] == b"\x89HDF\r\n\x1a\n":
        if head.startswith(b"MATLAB"):
            return FileKind("other", "a MATLAB 7.3 file (HDF5)", "save what it holds as an MMSA pickle")
        todo = "of CMU-MultimodalSDK's .csd files give the folder that holds the labels, the words and the features"
        return FileKind(HDF5, "HDF5", todo)
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _zip_kind(path)
    if head.startswith(b"\x93NUMPY"):
        return FileKind(NPY, "one numpy array (.npy)", "give the folder with label.csv and one folder a modality")
    if head.startswith(_LEGACY_TORCH):
        return FileKind("other", "a PyTorch file of the old format", "save what it holds as an MMSA pickle of arrays")
    if head[8:10] == b'{"' and int.from_bytes(head[:8], "little") < 1 << 30:
        return FileKind("other", "safetensors", "weights or arrays without rows; expected " + FORMATS)
    for offset, mark, what, todo in _SIGNATURES:
        if head[offset : offset + len(mark)] == mark:
            return FileKind("other", what, todo)
    if head[0] == 0x80 and len(head) > 1:
        if head[1] > 5:
            return FileKind("other", f"binary, or a pickle of protocol {head[1]}, which is newer than 5")
        return FileKind(PICKLE, "a pickle")
    return None


def _zip_kind(path: Path) -> FileKind:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return FileKind("other", "a zip archive that is cut off or damaged", "download or copy it again")
    inside = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
    if names and all(name.endswith(".npy") for name in names):
        todo = "save an MMSA pickle of these, or one .npy a clip beside a label.csv"
        return FileKind(NPZ, f"a zip of numpy arrays (.npz: {inside})", todo)
    if any(name.endswith("/data.pkl") or name == "data.pkl" for name in names):
        todo = "load it with torch.load(..., weights_only=True) and save what it holds as an MMSA pickle of arrays"
        return FileKind("other", "a PyTorch file (.pt)", todo)
    if any(name.startswith(("xl/", "word/")) for name in names):
        return FileKind("other", "an Office document (Excel or Word)", "save the table as label.csv, in UTF-8")
    return FileKind("other", f"a zip archive ({inside or 'empty'})", "unpack it with unzip and give what is in it")


def _text_kind(head: bytes, last: bytes) -> FileKind | None:
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if start.startswith(LFS):
        todo = "it stands for the data: fetch them with git lfs pull"
        return FileKind("other", "a pointer of git LFS", todo)
    if re.match(rb"(<!--.*?-->\s*)?<(!doctype\s+html|html|head|body|title)\b", start, re.I | re.S):
        return FileKind("other", "a web page (HTML), a download that failed", _AGAIN)
    if start.startswith(b"<"):
        return FileKind("other", "XML or HTML", _AGAIN)
    if b"/annex/objects/" in head and len(head) < 1024:
        return FileKind("other", "a pointer of git-annex", "fetch the data with git annex get")
    if last == b"." and _OLD_PICKLE.match(head):
        return FileKind(PICKLE, "a pickle")
    try:
        text = start.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(start) - 3:  # else a character that the head cuts in two
            return _other_encoding(start, error.start)
        text = start[: error.start].decode("utf-8")
    return None if any(ord(letter) < 9 for letter in text) else _written(text, len(head) == _HEAD)


def _other_encoding(start: bytes, first: int) -> FileKind | None:
    """Text in an encoding of one byte a letter; None for what is no text."""
    plain = sum(32 <= byte < 127 or byte in b"\t\r\n" for byte in start)
    if plain < 0.7 * len(start) or any(byte < 9 for byte in start):
        return None
    what = f"text, and not in UTF-8: it holds the byte {start[first]:#04x} (Latin-1 or Windows-1252 perhaps)"
    return FileKind(TEXT, what, "save it as UTF-8")


def _written(text: str, cut: bool) -> FileKind:
    if not text:
        return FileKind("other", "blank", "download or copy it again")
    line = text.split("\n", 1)[0].strip()
    if text[0] in "{[":
        # A first line with a mistake in it is for the reader to name.
        if text[0] == "{" and (_is_json(line) or line.endswith("}") or (cut and "\n" not in text)):
            return FileKind(JSON_LINES, "JSON Lines")
        return FileKind("other", "a JSON document", "write JSON Lines: one object a line with id, text, label, ...")
    if "Quota" in text or "quota" in text or "404" in line or "Not Found" in line:
        return FileKind("other", f"text ({line[:40]!r}), a download that failed perhaps", _AGAIN)
    for mark in ",;\t":
        if line.count(mark) >= 2:
            todo = "give the folder that holds it as label.csv, beside one folder of .npy files a modality"
            return FileKind(CSV, "a table (CSV)", todo)
    return FileKind(TEXT, f"text ({line[:40]!r})")


def _is_json(line: str) -> bool:
    try:
        return isinstance(parse_json(line, nan=True), dict)
    except ValueError:
        return False
