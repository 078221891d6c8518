"""A run's command line: ``--key value``, ``--section.key value``, over ``--config FILE.yaml``, over defaults."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deepmlf_llm import shipped
from deepmlf_llm.errors import ConfigError, Problems
from deepmlf_llm.reading import parse_yaml, read_yaml
from deepmlf_llm.training.keys import Key, all_keys, describe, refuse
from deepmlf_llm.training.settings import RunSettings, flatten

_ALIASES = {"ds": "deepspeed", "deepspeed_config": "deepspeed"}
_LAUNCHERS_OWN = ("local_rank", "local-rank")


@dataclass
class CommandLine:
    """What was typed: values by key (as text), and the options that are not settings."""

    values: dict[str, str | None] = field(default_factory=dict)
    config: str | None = None
    help: bool = False


def parse_settings(argv: Sequence[str], default_config: str | Path | None = None) -> RunSettings:
    """Settings of a run from its command line.

    Args:
        argv: without the program's name.
        default_config: read where neither ``--config`` nor ``--data`` is given.

    Raises:
        ConfigError: anything unknown, mistyped or out of range; one message names everything.
    """
    line = split_command_line(argv)
    config = line.config
    if config is None and "data" not in line.values and default_config is not None:
        config = str(default_config)
    problems = Problems(ConfigError, "settings")
    values = read_layers(config) if config else {}
    for name in values:
        problems.check(name in all_keys(), f"{config}: {refuse(name)}")
    for name, text in line.values.items():
        key = all_keys().get(name)
        if key is None:
            problems.check(False, _refuse_option(name))
            continue
        try:
            values[name] = read_value(key, text)
        except ConfigError as error:
            problems.check(False, f"--{error}")
    known = {name: value for name, value in values.items() if name in all_keys()}
    try:
        settings = RunSettings.from_dict(known)
    except ConfigError as error:
        problems.check(False, str(error).removeprefix("settings: "))
    problems.raise_if_any()
    return settings


def _refuse_option(name: str) -> str:
    reason = refuse(name)
    return f"--{reason}" if reason.startswith(name) else reason.replace(f"key {name!r}", f"option --{name}")


def split_command_line(argv: Sequence[str]) -> CommandLine:
    """Options and their values. ``--key=value`` and ``--key value`` are the same; a bare ``--key`` means true.

    Raises:
        ConfigError: a word that belongs to no option.
    """
    line = CommandLine()
    problems = Problems(ConfigError, "command line")
    words = list(argv)
    while words:
        word = words.pop(0)
        if word in ("-h", "--help"):
            line.help = True
            continue
        if not word.startswith("--") or len(word) == 2:
            problems.check(False, f"{word!r} belongs to no option: expected --key value")
            continue
        name, equals, text = word[2:].partition("=")
        value: str | None = text if equals else None
        if not equals and words and not words[0].startswith("--"):
            value = words.pop(0)
        name = _ALIASES.get(name, name)
        if name in _LAUNCHERS_OWN:
            continue
        if name == "config":
            problems.check(value is not None, "--config: expected a file")
            line.config = value
            continue
        line.values[name] = value  # given twice, the last one counts: scripts append what they change
    problems.raise_if_any()
    return line


def read_value(key: Key, text: str | None) -> Any:
    """The value of an option: YAML where its type is not plain text.

    Raises:
        ConfigError: not of the key's type.
    """
    if text is None:
        text = "true"
    if text == "null":
        return key.coerce(None)
    structured = key.hint is Any or (key.takes_yaml and text.startswith(("{", "[")))
    if not structured:
        try:
            return key.coerce(text)  # text, numbers, comma-separated lists
        except ConfigError as error:
            refusal = error
    else:
        expected = key.rule.expected if key.rule else describe(key.hint)
        refusal = ConfigError(f"{key.name}={text!r}: expected {expected}")
    try:
        return key.coerce(parse_yaml(text))
    except ValueError:
        raise refusal from None


def read_layers(config: str) -> dict[str, Any]:
    """Settings of one YAML file, or of several with commas between them: what a later one says counts. Dotted names.

    Raises:
        ConfigError: as :func:`read_config`.
    """
    given = [config] if Path(config).is_file() else [part.strip() for part in config.split(",")]
    values: dict[str, Any] = {}
    for path in given:
        values |= flatten(read_config(path))
    return values


def read_config(path: str | Path) -> dict[str, Any]:
    """A YAML file of settings, by its path or by the name of a shipped one.

    Raises:
        ConfigError: not there, not YAML, or not a mapping.
    """
    content = read_shipped(path, f"--config {path}")
    if content is None:
        return {}
    if not isinstance(content, Mapping) or not all(isinstance(name, str) for name in content):
        raise ConfigError(f"--config {path}: expected a mapping of settings")
    return dict(content)


def read_shipped(path: str | Path, source: str) -> Any:
    """What a YAML file holds, by its path or by the name of a shipped one.

    Raises:
        ConfigError: not there, or not YAML; the message begins with ``source``.
    """
    try:
        return read_yaml(shipped.locate(shipped.CONFIGS, path))
    except OSError as error:
        known = shipped.hint(shipped.CONFIGS, path) if isinstance(error, FileNotFoundError) else ""
        raise ConfigError(f"{source}: cannot be read ({error.strerror}){known}") from None
    except ValueError as error:
        raise ConfigError(f"{source}: is not YAML ({' '.join(str(error).split())})") from None


def help_text(usage: str, shown: Callable[[str], bool] = lambda name: True, several_seeds: bool = True) -> str:
    """``--help``: every key that is ``shown``, by owner, with type, default and meaning; ``--seeds`` of a command that
    has it."""
    titles = {
        "run": "The run",
        "method": "The method (fields of DeepMLFConfig; in YAML nested, here dotted)",
        "trainer": "transformers.TrainingArguments",
    }
    lines = [usage, ""]
    lines += ["  --config FILE  YAML of the keys below, or FILE,FILE (the later one counts); options override it"]
    if several_seeds:
        lines += ["  --world N      with --dry-run: plan for N processes, though this is one"]
        lines += ["  --seeds LIST   0-4 or 0,1,2: a run with each of these seeds, in output_dir/seed-N, and a summary"]
    lines += ["  --dry-run      check everything and say what would be trained, write nothing"]
    lines += ["  --resume FROM  auto (default): the newest whole checkpoint of output_dir; never; or .../checkpoint-N"]
    if several_seeds:
        lines += [
            "  --simulate_fault F  kill:rank1:step12, hang:.., nan:.., full_disk:..: to try a cluster (docs/runs.md)"
        ]
    lines += ["  --trust_run    go on from checkpoints that other users could have written (files that run code never)"]
    lines += ["  --verbose      show what other libraries say as well; otherwise it goes to libraries.log of the run"]
    for owner, title in titles.items():
        lines += ["", f"{title}:"]
        keys = [key for key in all_keys().values() if key.owner == owner and shown(key.name)]
        lines += [line for key in keys if key.help for line in _entry(key)]
        silent = [key.name for key in keys if not key.help]
        if silent:
            text = "and, by their own names: " + ", ".join(silent)
            lines += textwrap.wrap(text, 116, initial_indent="  ", subsequent_indent="  ")
    return "\n".join(lines)


def _entry(key: Key) -> list[str]:
    default = "none" if key.default is None else key.default
    text = f"{key.help} [{describe(key.hint)}; default: {default}]"
    return textwrap.wrap(text, 116, initial_indent=f"  --{key.name}  ".ljust(32), subsequent_indent=" " * 32)
