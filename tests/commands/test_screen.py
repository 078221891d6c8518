"""A command beside a chatty library: what reaches the screen, what the log."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from deepmlf_llm.commands.screen import LARGEST_LOG, LOG_FILE, Log

LIBRARY = """
import logging, sys, threading, traceback, warnings

own = logging.getLogger("chatty")
own.propagate = False
own.addHandler(logging.StreamHandler(sys.stdout))

def talk():
    print("their print")
    sys.stderr.write("their write\\n")
    own.warning("their logger")
    logging.getLogger("chatty2").warning("their root logger")
    logging.warning("their basicConfig")
    warnings.warn("their warning")
    warnings.warn("their warning blames us", FutureWarning, stacklevel=2)
    print({"their_dictionary": 0.5})
    thread = threading.Thread(target=print, args=["a bare thread"])
    thread.start()
    thread.join()
    from tqdm import tqdm
    for _ in tqdm(range(3), desc="their bar"):
        pass

def fail():
    own.error("their error")
    try:
        raise ValueError("their caught error")
    except ValueError:
        traceback.print_exc()
    thread = threading.Thread(target=crash)
    thread.start()
    thread.join()

def crash():
    raise RuntimeError("their crash")
"""

COMMAND = """
import sys, warnings
import deepmlf_llm.commands.shell as shell
from deepmlf_llm.errors import DataError

def main():
    import chatty
    words = sys.argv[1:]
    print("our print")
    print("our stderr", file=sys.stderr)
    warnings.warn("our warning\\nin two lines")
    chatty.talk()
    shell.print_table("our table", [("our row", 1)], ("our column", "value"))
    if "--fail" in words:
        chatty.fail()
    if "--crash" in words:
        chatty.crash()
    if "--bad" in words:
        raise DataError("our error")
    if "--move" in words:
        from pathlib import Path
        from deepmlf_llm.commands.screen import log_beside
        log_beside(Path("run"))
        print("our print after")
        chatty.talk()

code = shell.run_recipe(main)
import chatty
print("afterwards:", file=sys.stderr)
chatty.own.warning("over")  # its handler has kept our stream
raise SystemExit(code)
"""

OURS = ("our print", "our stderr", "warning: our warning in two lines", "our table", "our row", "our column")
THEIRS = (
    "their print",
    "their write",
    "their logger",
    "their root logger",
    "their basicConfig",
    "UserWarning: their warning",
    "FutureWarning: their warning blames us",
    "their_dictionary",
    "their bar: 100%",
)


@pytest.fixture
def talk(tmp_path: Path, repository: Path):
    (tmp_path / "chatty.py").write_text(LIBRARY)
    (tmp_path / "talk.py").write_text(COMMAND)
    paths = os.pathsep.join([str(tmp_path), str(repository)])
    environment = {
        **os.environ,
        "PYTHONPATH": paths,
        "DEEPMLF_CACHE": str(tmp_path / "cache"),
        "PYTHONWARNINGS": "",
        "PYTHONUNBUFFERED": "1",
    }

    def run(*words: str, **variables: str) -> tuple[int, str]:
        command = [sys.executable, "talk.py", *words]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "timeout": 60}
        done = subprocess.run(command, cwd=tmp_path, env={**environment, **variables}, **pipes)
        return done.returncode, done.stdout

    return run


def test_ours_on_the_screen_theirs_in_the_log(talk, tmp_path):
    code, screen = talk(RANK="1")
    log = (tmp_path / "cache" / "logs" / "talk.log").read_text()
    assert code == 0
    for line in OURS:
        assert line in screen
        assert line not in log
    for line in THEIRS:
        assert line not in screen.partition("afterwards:")[0]
        assert log.count(line) == 1, line
    assert " 0%|" not in log  # of a bar that was drawn over itself, the last state
    assert "a bare thread" in screen  # nobody's: shown
    assert screen.endswith("over\n")
    heading, *lines = log.splitlines()
    assert "rank 1: talk.py" in heading
    assert all(line.startswith("[1] ") for line in lines)


def test_verbose_shows_everything(talk, tmp_path):
    _, screen = talk("--verbose")
    assert all(line in screen for line in (*THEIRS, "our print", "our warning", "our table"))
    assert not (tmp_path / "cache").exists()


def test_errors_are_shown_whoever_makes_them(talk):
    code, screen = talk("--fail")
    assert code == 0
    assert "their error" in screen
    for error in ("ValueError: their caught error", "RuntimeError: their crash"):
        assert error in screen
    assert screen.count("Traceback (most recent call last)") == 2
    assert "their print" not in screen


def test_a_crash_keeps_its_traceback_and_names_the_log(talk):
    code, screen = talk("--crash")
    assert code == 1
    assert "what other libraries said before: cache/logs/talk.log\nTraceback" in screen
    assert screen.endswith("RuntimeError: their crash\n")


def test_bad_input_is_one_line_more(talk):
    code, screen = talk("--bad")
    assert code == 2
    assert "error: our error\n" in screen
    assert "Traceback" not in screen
    assert "libraries said" not in screen


def test_a_run_has_the_log_beside_it(talk, tmp_path):
    (tmp_path / "run").mkdir()
    for _ in range(2):
        _, screen = talk("--move")
    log = (tmp_path / "run" / LOG_FILE).read_text()
    assert "our print after" in screen
    assert log.count("their print") == 4  # what was said before the directory was known, too; a second start appends
    assert log.count("== ") == 2


def test_a_log_that_cannot_be_written_stops_nothing(talk, tmp_path):
    (tmp_path / "cache").write_text("no directory")
    code, screen = talk()
    assert code == 0
    assert "their print" not in screen
    code, screen = talk("--crash")
    assert code == 1
    assert "their print" in screen.partition("Traceback")[0]  # nothing is lost


def test_a_log_does_not_grow_for_ever(tmp_path):
    path = tmp_path / "x.log"
    path.write_bytes(b"x" * (LARGEST_LOG + 1))
    log = Log(path)
    log.add("a\nb")
    log.close()
    assert path.read_text().splitlines()[1:] == ["[0] a"]
