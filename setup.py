"""Puts the shipped settings into the wheel: recipes/configs and ds_configs stay at the top of the repository.

All else stands in pyproject.toml; setuptools takes package data from inside a package only.
"""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

SHIPPED = {"configs": ("recipes/configs", "*.yaml"), "ds_configs": ("ds_configs", "*.json")}


class BuildWithSettings(build_py):
    """Copies them to ``deepmlf_llm/shipped_files/``, where ``deepmlf_llm.shipped`` looks first."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return  # the checkout itself is read
        for name, (folder, pattern) in SHIPPED.items():
            for path in sorted(Path(folder).rglob(pattern)):
                target = Path(self.build_lib, "deepmlf_llm", "shipped_files", name, path.relative_to(folder))
                self.mkpath(str(target.parent))
                self.copy_file(str(path), str(target))


setup(cmdclass={"build_py": BuildWithSettings})
