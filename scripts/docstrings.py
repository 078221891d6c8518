"""How docstrings become pages of `make docs`: a griffe extension, named in mkdocs.yml.

Docstrings are written for people who read the code: roles such as ``:class:`~deepmlf_llm.model.DeepMLFModel``` and
shapes such as ``[b, t] [n]``. Here roles become links where their target has a page, and shapes are kept from being
taken for Markdown's reference links. A setting's help text becomes the docstring of its field. What a room's
``__init__`` offers from its files is shown with its file, not twice.
"""

from __future__ import annotations

import ast
import re
from typing import Any

import griffe

_CODE = re.compile(r"(```.*?```|``.*?``|`[^`]*`)", re.DOTALL)
_ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):`(~?)([\w.]+)`")
_SHAPES = re.compile(r"\](\s*)\[")


class Docstrings(griffe.Extension):
    """Rewrites each docstring once it has been read."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            module = obj.path if obj.is_module else obj.module.path
            obj.docstring.value = as_markdown(obj.docstring.value, module)

    def on_attribute(self, *, attr: griffe.Attribute, **kwargs: Any) -> None:
        found = help_and_default(str(attr.value)) if attr.docstring is None else None
        if found is not None:
            help_text, default = found
            attr.docstring = griffe.Docstring(f"{help_text}.", parent=attr)
            attr.value = default

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        for room in pkg.modules.values():
            if room.is_init_module:
                room.exports = None


def as_markdown(docstring: str, module: str) -> str:
    """The docstring of something in ``module``, as Markdown."""

    def link(role: re.Match[str]) -> str:
        short, name = role.groups()
        path = name if name.startswith("deepmlf_llm.") else f"{module}.{name}"
        text = name.rpartition(".")[2] if short else name
        return f'<autoref optional identifier="{path}"><code>{text}</code></autoref>'

    parts = _CODE.split(_ROLE.sub(link, docstring))
    parts[::2] = [_SHAPES.sub(r"]\1\\[", text) for text in parts[::2]]
    return "".join(parts)


def help_and_default(value: str) -> tuple[str, str | None] | None:
    """Of a field's source, ``setting(help, rule, default)``: its help text, and the source of
    its default where that is a value; None for any other field."""
    try:
        call = ast.parse(value, mode="eval").body
    except SyntaxError:
        return None
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.func.id != "setting":
        return None
    first, *others = call.args
    if not isinstance(first, ast.Constant) or not isinstance(first.value, str):
        return None
    default = others[-1] if others and not any(keyword.arg == "factory" for keyword in call.keywords) else None
    return first.value, None if default is None else ast.unparse(default)
