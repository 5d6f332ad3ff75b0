"""The documentation: every method and option has its place on it, made from its own file, and the site loads nothing
from elsewhere."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from posegen.config import groups as listing
from posegen.config.verb_files import verbs

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def hook(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / "_hooks" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    return hook("reference").pages()


def test_every_group_has_a_page_with_all_of_its_options(pages: dict[str, str]) -> None:
    reference = hook("reference")
    groups = listing.groups()
    hydras_own = {"hydra/help", "hydra/hydra_logging", "hydra/job_logging"}
    shown = reference.shown_groups(groups)
    assert {*shown, "adapter"} == set(groups) - hydras_own
    for group in shown:
        text = pages[reference.page_of(group)]
        for option in groups[group].values():
            assert option.file.read_text().strip() in text, f"{option.file} is not on the page of {group}"


def test_every_option_of_adapter_is_on_a_page(pages: dict[str, str]) -> None:
    text = "".join(page for path, page in pages.items() if path.startswith("methods/"))
    for option in listing.groups()["adapter"].values():
        assert option.file.read_text().strip() in text, option.name


def test_options_have_a_table_of_what_the_check_expects(pages: dict[str, str]) -> None:
    rows = {
        "options/optim.md": "| `optim.optimizer` | one of adamw, muon, adamw8bit | `adamw` |",
        "options/budget.md": "| `budget.steps` | an integer from 1 to 10000000 | `1000` |",
        "options/sampler.md": "| `sampler.guidance` | a number of at least 0 | `2.0` |",
        "options/data.md": "| `data.train.keypoint_noise` | a number of at least 0 | `0.0` |",
        "options/commands.md": "| `least_score` | a number from 0 to 1 | `0.1` |",
        "methods/t2i_adapter.md": "| `adapter.tau` | a number from 0 to 1 | `1.0` |",
    }
    assert [page for page, row in rows.items() if row not in pages[page]] == []


def test_a_methods_page_tells_what_its_class_and_file_tell(pages: dict[str, str]) -> None:
    page = pages["methods/stable_pose.md"]
    facts = (
        "arXiv:2406.02485",
        "ai-med/StablePose@",
        "| Human-Art | AP | 48.88 |",
        "pose-masked self-attention (PMSA)",
        "# latent cells per side of a token",
    )
    assert [text for text in facts if text not in page] == []
    assert "ablation/stable_pose_unmasked" in page
    assert re.search(r"`adapter\.pose_encoder` \| 67,872 ", page), "counted on the shipped backbone"


def test_methods_link_their_official_programs_and_papers(pages: dict[str, str]) -> None:
    index = pages["methods/index.md"]
    for text in (pages["methods/stable_pose.md"], index):
        assert "[ai-med/StablePose@9d746ed45cfa](https://github.com/ai-med/StablePose/tree/9d746ed45cfa)" in text
    assert "(https://github.com/WillowKaze/DNAF/tree/5f8f487) (README and figures, no program)" in index
    assert "[openreview](https://openreview.net/forum?id=VARhPBRZ58)" in index
    assert "#weights-of-methods" in pages["methods/stable_pose.md"] and "#weights-of" not in pages["methods/none.md"]


def test_data_sets_show_their_layouts_as_code(pages: dict[str, str]) -> None:
    page = pages["options/data.md"]
    for line in ("<root>/JPEGImages/480p/<sequence>/00000.jpg", "<root>/.../market-pairs-{train,test}.csv"):
        assert f"\n    {line}" in page
    assert not [line for line in page.splitlines() if line.startswith("<")], "a browser takes it for a tag"


def test_what_trains_is_counted(pages: dict[str, str]) -> None:
    assert "## What trains\n\nNothing." in pages["methods/none.md"]
    assert re.search(r"\| `backbone\.unet` \| 4,1\d\d,\d\d\d \|", pages["methods/humansd.md"]), (
        "HumanSD trains the U-Net"
    )


def test_a_new_yaml_gets_its_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "theirs.yaml").write_text(
        "# Text alone, by another name.\n_target_: posegen.adapters.none.NoAdapter\n"
    )
    monkeypatch.setenv("POSEGEN_SEARCHPATH", str(tmp_path))
    reference = hook("reference")
    options = listing.groups()["adapter"]
    assert "[`theirs`](theirs.md) | Text alone, by another name" in reference.method_index(options)
    assert "# Text alone, by another name.\n" in reference.method_page(options["theirs"], [])


def test_every_verb_is_on_the_page_of_commands(pages: dict[str, str]) -> None:
    for verb in verbs():
        assert f"\n## {verb}\n" in pages["options/commands.md"]


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="mkdocs is not installed: pip install -e '.[docs]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(tmp_path / "site")]
    result = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    for page in (tmp_path / "site").rglob("*.html"):
        assert not elsewhere(page.read_text()), page


def elsewhere(html: str) -> list[str]:
    """Scripts, styles, pictures and fonts that a page would load from another host; links that a reader follows are
    none."""
    tags = re.findall(r"<(?:script|link|img|iframe|source)\b[^>]*>", html)
    loading = [tag for tag in tags if "rel=canonical" not in tag and 'rel="canonical"' not in tag]
    return [tag for tag in loading if re.search(r"""(?:src|href)=["']?(?:https?:)?//""", tag)]


def test_what_a_page_loads_from_elsewhere_is_seen() -> None:
    assert elsewhere('<script src="https://cdn.example/x.js"></script>')
    assert elsewhere("<link rel=stylesheet href=//fonts.example/css>")
    assert not elsewhere('<a href="https://arxiv.org/abs/1"></a><script src="assets/x.js"></script>')
