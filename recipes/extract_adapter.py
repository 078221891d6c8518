"""Takes the adapter out of a checkpoint: `deepmlf_llm.commands.extract`; `--help` says more."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # runs from a checkout too

from deepmlf_llm.commands.environment import check_environment

check_environment()

from deepmlf_llm.commands.extract import main  # noqa: E402
from deepmlf_llm.commands.shell import run_recipe  # noqa: E402

if __name__ == "__main__":
    raise SystemExit(run_recipe(main))
