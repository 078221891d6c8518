"""docs/support.md says what is so."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent.parent


@pytest.mark.timeout(400)
def test_the_support_page_is_what_the_models_show():
    script = REPOSITORY / "scripts" / "support_table.py"
    done = subprocess.run([sys.executable, str(script), "--check"], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
