"""Text from elsewhere in a Markdown page: it says what it says, and is no markup, no link and no picture.

Names of base models, data sets, settings and transcripts come from files of strangers, and cards and reports are shown
by sites that make pages of them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from urllib.parse import quote

_MARKUP = re.compile(r"[\\`*_\[\]<|&~$!]")
_LINK = re.compile(r"(?=://)|(?<=www)(?=\.)|(?=@)", re.IGNORECASE)
_BLOCK = re.compile(r"^(?:(>|=|#(?=#*(?:\s|$))|[+-](?=[\s=-]|$))|(\d+)([.)])(?=\s|$))")
_YAML_WORD = re.compile(r"[A-Za-z][\w./-]*")
_NOT_WORDS = {"true", "false", "yes", "no", "on", "off", "y", "n", "null"}


def plain(text: str) -> str:
    """One line of prose that shows ``text`` letter by letter."""
    line = _MARKUP.sub(r"\\\g<0>", one_line(text))
    line = _LINK.sub(lambda _: "\\", line)  # what looks like an address would become a link by itself
    return _BLOCK.sub(lambda m: f"\\{m[1]}" if m[1] else f"{m[2]}\\{m[3]}", line)


def code(text: str, in_table: bool = False) -> str:
    """``text`` as code within a line.

    Args:
        text: anything; line breaks become spaces.
        in_table: in a cell, where a bar ends it even inside code.
    """
    line = one_line(text)
    fence = "`" * (max((len(run) for run in re.findall("`+", line)), default=0) + 1)
    space = " " if line.startswith("`") or line.endswith("`") or not line.strip() else ""
    line = line.replace("|", "\\|") if in_table else line
    return f"{fence}{space}{line}{space}{fence}"


def table(columns: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """A table; its cells are Markdown already."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(map(str, cells))} |" for cells in lines)


def fenced(lines: Iterable[str], language: str = "text") -> str:
    """Lines as they came, as a block of code that none of them can end."""
    kept = [part for line in lines for part in line.splitlines() or [""]]
    longest = max((len(run) for line in kept for run in re.findall("`+", line)), default=0)
    fence = "`" * max(3, longest + 1)
    return "\n".join([f"{fence}{language}", *kept, fence])


def link(text: str, target: str) -> str:
    """A link to a file beside the page; an address of another kind cannot be told from a file's name, and is one."""
    return f"[{plain(text)}]({relative(target)})"


def relative(target: str) -> str:
    """A path below the page as an address: no scheme, no host, no sign that markup would take for its own."""
    return quote(one_line(target), safe="/._-").lstrip("/")


def yaml_word(text: str) -> str:
    """``text`` as a value in the YAML at the head of a card."""
    if _YAML_WORD.fullmatch(text) and text.lower() not in _NOT_WORDS:
        return text
    return json.dumps(text)


def one_line(text: str) -> str:
    """Without line breaks and control characters."""
    return "".join(sign if sign.isprintable() else "\ufffd" for sign in " ".join(str(text).split()))
