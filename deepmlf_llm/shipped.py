"""Settings that travel with the package: YAML for runs and studies, JSON for DeepSpeed; found by path or by bare name.

In a checkout they lie in ``recipes/configs`` and ``ds_configs``, in an installed package beside its modules.
"""

from __future__ import annotations

from pathlib import Path

from deepmlf_llm.errors import suggest

CONFIGS, DEEPSPEED = "configs", "ds_configs"
_PACKAGE = Path(__file__).resolve().parent
_IN_CHECKOUT = {CONFIGS: "recipes/configs", DEEPSPEED: "ds_configs"}
_ENDINGS = {CONFIGS: ".yaml", DEEPSPEED: ".json"}
FORMER_NAMES = {"mosei_gpt2": "paper/mosei_gpt2_base", "sims": "paper/sims_gpt2_chinese"}
"""Names that shipped files had before, and still answer to."""


def folder(kind: str) -> Path:
    """The directory of the shipped files of one kind (:data:`CONFIGS` or :data:`DEEPSPEED`)."""
    installed = _PACKAGE / "shipped_files" / kind
    return installed if installed.is_dir() else _PACKAGE.parent / _IN_CHECKOUT[kind]


def names(kind: str) -> dict[str, Path]:
    """Bare name -> file: ``mosi_smollm2``, ``scale/default``, ``zero2``."""
    root = folder(kind)
    found = sorted(root.rglob(f"*{_ENDINGS[kind]}"), key=lambda path: (len(path.relative_to(root).parts), path))
    return {path.relative_to(root).with_suffix("").as_posix(): path for path in found}


def locate(kind: str, given: str | Path) -> Path:
    """The file that ``given`` means: a file that is there, or a shipped one by its name or its path in the repository.

    What is neither comes back as it is, so that whoever opens it says that it is not there.
    """
    path = Path(given)
    if path.is_file():
        return path
    name = path.as_posix().removesuffix(_ENDINGS[kind]).removeprefix(_IN_CHECKOUT[kind] + "/")
    return names(kind).get(FORMER_NAMES.get(name, name), path)


def hint(kind: str, given: str | Path) -> str:
    """For a message: the shipped name nearest to one that was not found, and all of them."""
    known = names(kind)
    return f"{suggest(Path(given).stem, known)}; shipped: {', '.join(known)}"
