"""What is shipped: the wheel holds configurations, assets and the command; the continuous integration does what the
README says."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from posegen.config import groups as listing
from posegen.config.verb_files import verbs

ROOT = Path(__file__).parents[1]
CONF = sorted(file.relative_to(ROOT / "conf") for file in (ROOT / "conf").rglob("*.yaml"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built wheel; hatchling itself is called, which needs no network."""
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    return next(folder.glob("*.whl"))


def test_wheel_holds_configurations_and_assets(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"posegen/conf/{file.as_posix()}" for file in CONF} <= names
    assets = [
        file
        for file in (ROOT / "src" / "posegen" / "assets").rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    ]
    assert {file.relative_to(ROOT / "src").as_posix() for file in assets} <= names
    assert "posegen/py.typed" in names
    assert {f"posegen/demo/{name}" for name in ("editor.html", "editor.js", "fragments.html.j2", "page.css")} <= names
    assert not [name for name in names if name.startswith(("tests", "experiments")) or "__pycache__" in name]
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_wheel_answers_without_the_checkout(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    for words in (["list", "adapters"], ["train", "--cfg", "job", "--package", "optim"]):
        result = subprocess.run(
            [sys.executable, "-m", "posegen.cli", *words],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        assert result.stdout.strip()


def test_command_is_installed_by_its_name() -> None:
    assert PROJECT["name"] == "posegen"
    assert PROJECT["scripts"] == {"posegen": "posegen.cli:main"}


def test_extras_that_messages_name_exist() -> None:
    from posegen.config.overrides import EXTRAS

    assert set(EXTRAS.values()) <= set(PROJECT["optional-dependencies"])


@pytest.mark.parametrize("file", CONF, ids=str)
def test_every_option_says_what_it_is(file: Path) -> None:
    parts = file.with_suffix("").parts
    option = listing.Option(parts[0], "/".join(parts[1:]), ROOT / "conf" / file)
    assert option.summary, f"conf/{file} needs a leading comment"


def test_every_verb_that_composes_has_its_help() -> None:
    for verb in verbs():
        assert "\n  help:\n    header: |\n" in (ROOT / "conf" / f"{verb}.yaml").read_text()


def test_continuous_integration_runs_the_readmes_test_command() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", str(script)], check=True)
    commands = script.read_text().splitlines()
    assert "pytest" in commands
    assert "pip install --quiet --disable-pip-version-check -e '.[test]'" in commands
