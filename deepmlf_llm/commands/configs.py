"""Lists the settings that travel with the package, or copies one out to be changed.

  deepmlf configs                              # YAML of runs and studies, ZeRO files of DeepSpeed
  deepmlf configs mosi_smollm2                 # prints it
  deepmlf configs zero2 --copy my_zero2.json   # copies it

``--config``, ``--grid`` and ``--ds`` take these names as well as paths.
"""

from __future__ import annotations

from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path

from deepmlf_llm import shipped
from deepmlf_llm.commands.shell import RecipeParser, program
from deepmlf_llm.errors import ConfigError, suggest
from deepmlf_llm.files import write_aside


def build_parser() -> RecipeParser:
    parser = RecipeParser(prog=program("configs"), description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", help="of a shipped file (default: list them)")
    parser.add_argument("--copy", type=Path, metavar="FILE", help="copy it to this file; must not exist yet")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    options = build_parser().parse_args(argv)
    known = {name: path for kind in (shipped.CONFIGS, shipped.DEEPSPEED) for name, path in shipped.names(kind).items()}
    if options.name is None:
        if options.copy is not None:
            raise ConfigError("--copy needs the name of a shipped file")
        width = max(map(len, known)) + 2
        for name, path in known.items():
            print(f"{name:{width}}{_first_words(path)}")
        return
    name = shipped.FORMER_NAMES.get(options.name, options.name)
    if name not in known:
        near = suggest(name, known)
        raise ConfigError(f"{name!r}: no shipped file{near}; `deepmlf configs` lists them")
    text = known[name].read_text(encoding="utf-8")
    if options.copy is None:
        print(text, end="")
    elif options.copy.exists():
        raise ConfigError(f"--copy {options.copy}: exists; move it away or name another file")
    else:
        write_aside(options.copy, text)
        print(f"copied {name}: {options.copy}")


_OFFLOADS = {"offload": " with offload to the CPU", "nvme": " with offload to an NVMe disk"}


def _first_words(path: Path) -> str:
    """The comment that a YAML file begins with, in one line; a ZeRO file's stage."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        stage, _, offload = path.stem.removeprefix("zero").partition("_")
        return f"DeepSpeed, ZeRO-{stage}" + _OFFLOADS.get(offload, "")
    comment = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        comment.append(line.lstrip("# "))
    sentence = " ".join(comment).split(". ")[0].split(": ")[0]
    return sentence if len(sentence) <= 90 else sentence[:87].rsplit(" ", 1)[0] + " ..."
