"""A method folder as a repository of the Hub: which files are fetched, and what is uploaded."""

from __future__ import annotations

import warnings
from contextlib import suppress
from pathlib import Path
from shutil import rmtree
from typing import Any

from huggingface_hub import CommitInfo, HfApi
from huggingface_hub.errors import EntryNotFoundError

from posegen.errors import UserError
from posegen.io.atomic import read_json, write_json, write_text
from posegen.io.hub import HUB_PLACE, PICKLES, HubPlace, explained_hub, fetched, on_hub
from posegen.runner.backbone_lookup import BASE
from posegen.runner.method_folder import ADAPTER, PLAIN, adapter_class, method_folder, read_about
from posegen.runner.sharing.card import MARK

ABOUT = "posegen.json"
#: Beginnings of the names of what `posegen.runner.method_folder` and `PoseGuidedPipeline.save_pretrained` write.
PIPELINE_FILES = (ABOUT, ADAPTER, *PLAIN.values(), "backbone/", "scheduler/")


def local_folder(
    name: str | Path, whole: bool = True, revision: str | None = None, subfolder: str = "", **access: Any
) -> tuple[Path, HubPlace | None]:
    """The method folder at a path, or else in the repository of this name; and the place of that, with its commit.

    A repository is asked for ``posegen.json`` first, so that nothing large is fetched of one that is none of posegen's.

    Args:
        whole: fetch the backbone, too, where it is in the repository.
        access: ``token``, ``cache_dir`` and ``local_files_only`` of `posegen.io.hub.fetched`.
    """
    folder = Path(name).expanduser()
    if folder.exists() or not (on_hub(name) or HUB_PLACE.fullmatch(str(name))):
        return method_folder(folder / subfolder), None
    place = HubPlace.of(str(name))
    inside = "/".join(part for part in (place.inside, subfolder) if part)
    place = HubPlace(place.repo, inside, revision or place.revision)
    try:
        folder, place = fetched(place, (ABOUT,), expected="what posegen publish uploads", **access)
        adapter_class(read_about(folder)["class"], folder)
        return fetched(place, (*PIPELINE_FILES, *([f"{BASE}/"] if whole else [])), **access)
    except UserError as error:
        if on_hub(name):
            raise
        raise UserError(f"{name} is no folder here, and as a repository: {error}") from error


def without_pickles(folder: Path) -> None:
    """Leaves a backbone of pickles, which nobody should publish, out of a saved pipeline; who loads it is asked for the
    backbone by its id and hash."""
    about = read_json(folder / ABOUT)
    if pickles := [file.name for file in (folder / BASE).rglob("*") if file.suffix in PICKLES]:
        rmtree(folder / BASE)
        write_json(folder / ABOUT, {key: value for key, value in about.items() if key != "pipeline"})
        text = f"the backbone {about['backbone']['id']} is not uploaded: its weights are pickles ({pickles[0]})"
        warnings.warn(f"{text}; who loads the pipeline names it with backbone=", stacklevel=3)


def upload(
    folder: Path,
    repo_id: str,
    card: str,
    *,
    commit_message: str,
    private: bool | None = None,
    token: str | bool | None = None,
    create_pr: bool = False,
    revision: str | None = None,
    subfolder: str | None = None,
) -> CommitInfo:
    """Uploads a method folder with its card, in place of an earlier one; arguments as huggingface_hub has them.

    A README.md that somebody else wrote stays. Raises a UserError where the Hub refuses, or cannot be reached."""
    place = HubPlace(repo_id, revision=revision)
    api = HfApi(token=token, library_name="posegen")
    with explained_hub(place):
        repo = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None and not revision.startswith("refs/"):
            api.create_branch(repo, branch=revision, exist_ok=True)
        written = ""
        with suppress(EntryNotFoundError):
            written = Path(api.hf_hub_download(repo, "README.md", revision=revision)).read_text(encoding="utf-8")
        if written and MARK not in written:
            print(f"README.md of {repo} was not written by posegen; it stays", flush=True)
        elif not subfolder:
            write_text(folder / "README.md", card)
        old = [f"{start}*" if start.endswith("/") else start for start in PIPELINE_FILES if start != ABOUT]
        return api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            path_in_repo=subfolder,
            commit_message=commit_message,
            create_pr=create_pr,
            revision=revision,
            delete_patterns=[*old, f"{BASE}/*", *(f"{name}*/*" for name in PLAIN.values())],
        )
