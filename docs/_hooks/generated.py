"""What mkdocs calls: it adds the generated pages and puts them into the navigation."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

sys.path.insert(0, str(Path(__file__).parent))  # mkdocs loads a hook alone
import api
import notebook
import reference

made: dict[str, str | bytes] = {}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Writes the pages, in memory, and fills the sections that the navigation leaves open."""
    made.clear()
    made.update(reference.pages())
    made.update(api.pages())
    for file in sorted(Path(config.docs_dir).glob("*.ipynb")):
        made.update(notebook.pages(file))
    for section in config.nav or []:
        for title, entries in section.items() if isinstance(section, dict) else ():
            if title == "Methods":
                entries[:] = names("methods/")
            elif title == "Options":
                entries[:] = names("options/")
    return config


def names(folder: str) -> list[Any]:
    """The generated pages of a folder: the index first, methods by their names."""
    found = [path for path in made if path.startswith(folder)]
    return [path if path.endswith("index.md") or folder == "options/" else {Path(path).stem: path} for path in found]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for path, content in made.items():
        files.append(File.generated(config, path, content=content))
    return files
