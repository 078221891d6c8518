"""JSON and YAML as this package reads them: strict, at a cost that the length of the file bounds.

A key that stands twice is refused instead of being overwritten in silence. So are files past a size, values that are no
JSON (``NaN``), nesting that only an attack needs, and YAML aliases that unfold into far more than what was written.
Everything that is wrong with a text is a ``ValueError``, whichever library found it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn

import yaml

JSON_LIMIT = 64 << 20  # bytes of one JSON file; the largest of ours lists the cells of a study
YAML_LIMIT = 512 << 10  # bytes of one YAML file: PyYAML takes some ten seconds for that
UNFOLDED_LIMIT = 100_000  # values of a YAML file once its aliases are put in
NUMBER_LIMIT = 1_000  # characters of a number
KEYS_LIMIT = 5_000  # of one mapping of settings: each unknown one is compared with all known ones


def parse_json(text: str | bytes, nan: bool = False, settings: bool = False) -> Any:
    """What a JSON text says.

    Args:
        text: of one value.
        nan: read ``NaN`` and ``Infinity``, which JSON does not have and Python's writer makes.
        settings: refuse an object of more keys than settings have.

    Raises:
        ValueError: no JSON, a key that stands twice, ``NaN`` or ``Infinity``, nested too deep, no UTF-8.
    """
    try:
        hook = _settings if settings else _each_key_once
        return json.loads(text, object_pairs_hook=hook, parse_constant=None if nan else _no_constant)
    except RecursionError:
        raise ValueError("nested too deep") from None
    except ValueError as error:
        if "integer string conversion" in str(error):  # Python's own sentence gives advice on Python
            raise ValueError("an integer of more than 4300 digits") from None
        raise


def read_json(path: str | Path, limit: int = JSON_LIMIT, settings: bool = False) -> Any:
    """What a JSON file says.

    Args:
        path: of the file.
        limit: bytes; a larger file is not read.
        settings: as for :func:`parse_json`.

    Raises:
        OSError: it cannot be read.
        ValueError: too large, or as for :func:`parse_json`.
    """
    return parse_json(_content(Path(path), limit), settings=settings)


def parse_yaml(text: str | bytes) -> Any:
    """What a YAML text says: plain values only, nothing is constructed.

    Raises:
        ValueError: no YAML, a key that stands twice, too large or nested too deep, with aliases or without.
    """
    if len(text) > YAML_LIMIT:
        raise ValueError(f"{len(text)} bytes; settings have at most {YAML_LIMIT}")
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _check_unfolded(node)
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except RecursionError:
        raise ValueError("nested too deep") from None
    except AttributeError:  # what PyYAML makes of it
        raise ValueError("a !!timestamp that is none") from None
    except (yaml.YAMLError, ArithmeticError, LookupError, TypeError) as error:
        raise ValueError(" ".join(str(error).split())) from None


def read_yaml(path: str | Path) -> Any:
    """What a YAML file says.

    Raises:
        OSError: it cannot be read.
        ValueError: as for :func:`parse_yaml`.
    """
    return parse_yaml(_content(Path(path), YAML_LIMIT))


def _content(path: Path, limit: int) -> bytes:
    with path.open("rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"larger than the {limit} bytes that such a file may have")
    return content


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {_short(twice)} stands there twice")
    return values


def _settings(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(pairs) > KEYS_LIMIT:
        raise ValueError(f"{len(pairs)} keys; settings have at most {KEYS_LIMIT}")
    return _each_key_once(pairs)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, strict about keys and about the length of numbers."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        if len(node.value) > KEYS_LIMIT:
            raise ValueError(f"line {node.start_mark.line + 1}: {len(node.value)} keys; at most {KEYS_LIMIT}")
        seen = set()
        for key_node, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, (str, int, float, bool, type(None))):
                raise ValueError(f"line {key_node.start_mark.line + 1}: a key that is not a word")
            if key in seen:
                raise ValueError(f"line {key_node.start_mark.line + 1}: the key {_short(key)} stands there twice")
            seen.add(key)
        return super().construct_mapping(node, deep)

    def construct_number(self, node: Any) -> Any:
        if len(node.value) > NUMBER_LIMIT:
            raise ValueError(f"line {node.start_mark.line + 1}: a number of {len(node.value)} characters")
        kind = node.tag.rpartition(":")[2]
        return self.construct_yaml_int(node) if kind == "int" else self.construct_yaml_float(node)


for _kind in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _Loader.construct_number)


def _check_unfolded(root: Any) -> None:
    """Counts the values below ``root`` as if every alias were written out; a node that holds itself is refused."""
    sizes: dict[int, int | None] = {}  # None: begun, and not counted yet
    pending = [(root, False)]
    while pending:
        node, counted = pending.pop()
        parts = _parts(node)
        if counted:
            total = 1 + sum(sizes[id(part)] or 0 for part in parts)
            if total > UNFOLDED_LIMIT:
                raise ValueError(f"its aliases unfold into more than {UNFOLDED_LIMIT} values")
            sizes[id(node)] = total
        elif id(node) not in sizes:
            sizes[id(node)] = None
            pending.append((node, True))
            pending += [(part, False) for part in parts]
        elif sizes[id(node)] is None:
            raise ValueError(f"line {node.start_mark.line + 1}: a value that holds itself")


def _parts(node: Any) -> list[Any]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
