"""A refused write is one sentence, in whatever language the library that wrote is written."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from deepmlf_llm import write_errors
from deepmlf_llm.write_errors import error_number, explain, megabytes


class SafetensorError(Exception):
    """As safetensors names it."""


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), errno.ENOSPC),
        (OSError("4096 requested and 1024 written"), errno.ENOSPC),  # numpy
        (SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"), errno.ENOSPC),
        (SafetensorError("I/O error: File too large (os error 27)"), errno.EFBIG),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0"), errno.ENOSPC),  # torch
        (RuntimeError("PytorchStreamWriter failed writing file data/1: file write failed"), errno.ENOSPC),
        (OSError("[Errno 30] Error writing bytes to file. Detail: [errno 30] Read-only file system"), errno.EROFS),
        (RuntimeError("shapes do not match"), None),
        (ValueError("No space left on device"), None),
        (SafetensorError("HeaderTooLarge"), None),
    ],
)
def test_the_number_is_found_wherever_it_is_told(error, number):
    assert error_number(error) == number


def test_a_full_disk_is_told_with_what_is_there_and_what_is_needed(tmp_path, monkeypatch):
    monkeypatch.setattr(write_errors, "free_bytes", lambda path: 12_300_000)
    said = explain(OSError(errno.ENOSPC, "x"), tmp_path / "a" / "b", needed=340_000_000)
    assert said == (
        f"{tmp_path}/a/b: cannot be written: the disk is full (340 MB needed, 12 MB free); make room there, or name "
        "another place"
    )


@pytest.mark.parametrize("number", sorted(write_errors._REASONS))
def test_every_reason_says_what_to_do(number):
    said = explain(OSError(number, os.strerror(number)), Path("runs/x"))
    assert said is not None
    assert said.startswith("runs/x: cannot be written: ")
    assert "; " in said


def test_what_says_nothing_of_files_is_not_explained(tmp_path):
    assert explain(KeyError("x"), tmp_path) is None
    assert explain(FileNotFoundError(errno.ENOENT, "no", "/somewhere/else"), tmp_path / "x") is None


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 kB"), (1, "1 kB"), (3_400_000, "3.4 MB"), (56_000_000, "56 MB"), (1_200_000_000, "1.2 GB")],
)
def test_sizes_are_short(size, text):
    assert megabytes(size) == text


def test_room_is_that_of_the_nearest_parent(tmp_path):
    assert write_errors.free_bytes(tmp_path / "a" / "b" / "c") == pytest.approx(
        write_errors.free_bytes(tmp_path), rel=0.1
    )
