"""One process at a time, and a lock that goes with its process."""

from __future__ import annotations

import subprocess
import sys

import pytest

from deepmlf_llm.errors import FileError
from deepmlf_llm.file_locks import held

HOLD = """
import sys, time
from pathlib import Path
from deepmlf_llm.file_locks import held
with held(Path(sys.argv[1]), "writes it"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("kind", ["file to be", "directory"])
def test_one_process_at_a_time_and_a_kill_frees(tmp_path, kind):
    place = tmp_path if kind == "directory" else tmp_path / "out.jsonl"
    with subprocess.Popen([sys.executable, "-c", HOLD, place], stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout is not None
            assert other.stdout.readline() == "held\n"
            with pytest.raises(FileError, match="another process writes it; wait for it"):
                with held(place, "writes it"):
                    pass
        finally:
            other.kill()
            other.wait()
        with held(place, "writes it"):
            pass
    assert list(tmp_path.iterdir()) == []
