"""Creates the package of a new plugin from the templates beside this module."""

from __future__ import annotations

import keyword
import re
from importlib import resources
from pathlib import Path
from string import Template
from typing import Final

import hedgerow
from hedgerow import plugins
from hedgerow.errors import ConfigError

_NAME: Final = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_RESERVED: Final = frozenset({"Drop", "Field", "Frame", "FrameError", "Stage", "StageConfig"})
_FILES: Final = {
    "pyproject.toml": "pyproject.toml.txt",
    "README.md": "README.md.txt",
    "pipeline.yaml": "pipeline.yaml.txt",
    "src/{module}/stage.py": "stage.py.txt",
    "tests/test_stage.py": "test_stage.py.txt",
}


def create(stage: str, folder: Path) -> Path:
    """Write a package with one stage.

    Args:
        stage: the stage's name, in lower case with hyphens; the package is called `hedgerow-NAME`.
        folder: parent of the package's folder.
    Returns: the package's folder.
    Raises: ConfigError: the name cannot be used, or the package's folder exists or cannot be written.
    """
    if not _NAME.fullmatch(stage) or len(stage) > 40:
        suggestion = re.sub(r"[^a-z0-9]+", "-", stage.lower()).strip("-0123456789")[:40] or "my-stage"
        raise ConfigError(
            f"{stage!r} is not a stage name: use lower-case letters, digits and hyphens, starting with a letter",
            remedy=f"Try `hedgerow plugin new {suggestion}`.",
        )
    class_ = "".join(part.capitalize() for part in stage.split("-"))
    if class_ in _RESERVED or keyword.iskeyword(class_):
        raise ConfigError(
            f"A class named {class_} would shadow a name that stages need",
            remedy=f"Try `hedgerow plugin new my-{stage}`.",
        )
    for other in plugins.installed().get(stage, []):
        raise ConfigError(
            f"{other.package} {other.version} already offers a stage {stage!r}",
            remedy=f"Choose another name. `hedgerow plugin show {stage}` describes that stage.",
        )
    package = f"hedgerow-{stage}"
    target = folder / package
    if target.exists():
        raise ConfigError(f"{target} exists already", remedy="Choose another name, or another folder with --dir.")
    module = package.replace("-", "_")
    names = {
        "stage": stage,
        "package": package,
        "module": module,
        "class_": class_,
        "hedgerow": hedgerow.__version__,
    }
    templates = resources.files("hedgerow.cli.node") / "templates" / "plugin"
    try:
        for path, template in _FILES.items():
            file = target / path.format(module=module)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(Template((templates / template).read_text("utf-8")).substitute(names), "utf-8")
        (target / "src" / module / "__init__.py").write_text(f'"""A Hedgerow stage: {stage}."""\n', "utf-8")
        (target / "src" / module / "py.typed").touch()
    except OSError as error:
        raise ConfigError(
            f"{target} cannot be written: {error.strerror}", remedy="Choose a folder that you may write to, with --dir."
        ) from error
    return target
