"""``deepmlf``: one program for all commands; each of them is a module of this room."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from deepmlf_llm.commands.shell import BAD_INPUT, run_recipe
from deepmlf_llm.errors import suggest

COMMANDS = {
    "train": "train an adapter, or go on with a run that was cut",
    "plan": "memory, time and the largest batch of a run, before it starts",
    "summarise": "mean, deviation, best and worst of several runs",
    "pretrain-av": "train the AV encoder alone, for `train --av_encoder_from`",
    "extract-features": "from clips (sound, video) to features, by a recipe that the model carries",
    "prepare": "read a data set once, check it, write it as Arrow with a manifest",
    "evaluate": "metrics of an adapter on labelled data",
    "baseline": "what a model has to beat: constant, ridge, lora_text, bam",
    "ablate": "variants of one recipe, and what each change does",
    "compare": "runs against each other, with intervals and p-values",
    "predict": "polarity for a file of utterances, or of a clip over time",
    "demo": "a page on this machine: a clip in, its polarity over time out",
    "extract": "the adapter of a checkpoint, without its run",
    "merge": "an adapter and its base model in one directory",
    "study": "a grid of runs and its report",
    "configs": "list the shipped settings, or copy one out",
}

_USAGE = "usage: deepmlf COMMAND [options]\n\n{commands}\n\ndeepmlf COMMAND --help says more."


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    words = sys.argv[1:] if argv is None else list(argv)
    name = words[0] if words else "--help"
    if name in ("-h", "--help"):
        print(_USAGE.format(commands="\n".join(f"  {name:17}{text}" for name, text in COMMANDS.items())))
        return 0
    if name == "--version":
        import deepmlf_llm

        print(f"deepmlf_llm {deepmlf_llm.__version__}")
        return 0
    if name not in COMMANDS:
        print(f"error: unknown command {name!r}{suggest(name, COMMANDS)}; deepmlf --help lists them", file=sys.stderr)
        return BAD_INPUT
    command = importlib.import_module(f"deepmlf_llm.commands.{name.replace('-', '_')}")
    return run_recipe(lambda: command.main(words[1:]))


if __name__ == "__main__":
    raise SystemExit(main())
