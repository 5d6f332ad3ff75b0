"""Repositories of the Hugging Face Hub: the files that are needed, in one format, at one commit, and whole."""

from __future__ import annotations

import glob
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, get_cached_repo_tree, snapshot_download, try_to_load_from_cache
from huggingface_hub import errors as hub_errors
from huggingface_hub.hf_api import RepoFile

from posegen.errors import UserError
from posegen.io.atomic import explained, read_json, write_json
from posegen.io.hashes import file_hashes
from posegen.io.locks import locked

HUB = "hub:"
HUB_PLACE = re.compile(r"(hub:)?(?P<repo>[\w.-]+/[\w.-]+)(?P<inside>(/[^@]+)?)(@(?P<revision>.+))?")
COMMIT, SHA256 = re.compile(r"[0-9a-f]{40}"), re.compile(r"[0-9a-f]{64}")
READ = (".json", ".txt")  # configurations and vocabularies
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
ABSENT = (hub_errors.RevisionResolutionError, hub_errors.LocalEntryNotFoundError, hub_errors.OfflineModeIsEnabled)
HALF_PRECISION = re.compile(r"\.(fp16|bf16)\b")


@dataclass(frozen=True)
class HubPlace:
    """``hub:owner/name``, or a folder or file in it, at a revision: a branch, a tag or a commit; None is ``main``."""

    repo: str
    inside: str = ""
    revision: str | None = None

    @classmethod
    def of(cls, text: str) -> HubPlace:
        """What ``hub:owner/name[/folder or file][@revision]`` means; a UserError where it is of another form."""
        if not (found := HUB_PLACE.fullmatch(text)):
            expected = "hub:OWNER/NAME, hub:OWNER/NAME@REVISION or hub:OWNER/NAME/FILE@REVISION"
            raise UserError(f"{text!r} names nothing on the Hub; expected {expected}, with a name like owner/my-model")
        return cls(found["repo"], found["inside"].strip("/"), found["revision"])

    def __str__(self) -> str:
        inside = f"/{self.inside}" if self.inside else ""
        return f"{HUB}{self.repo}{inside}{f'@{self.revision}' if self.revision else ''}"

    @property
    def pinned(self) -> bool:
        return self.revision is not None and COMMIT.fullmatch(self.revision) is not None

    @property
    def name(self) -> str:
        """A name for tables."""
        return self.repo.partition("/")[2]


def on_hub(path: Any) -> bool:
    return str(path).startswith(HUB)


def hub_places(value: Any) -> list[str]:
    """The texts among plain values that name something on the Hub."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [text for each in value for text in hub_places(each)]
    return [value] if isinstance(value, str) and on_hub(value) else []


def local_place(path: str | Path, **wanted: Any) -> Path:
    """What a path means on this disk; of ``hub:owner/name/file`` the file that was fetched, see `fetched`."""
    return fetched(HubPlace.of(str(path)), **wanted)[0] if on_hub(path) else Path(path).expanduser()


def fetched(
    place: HubPlace,
    wanted: Sequence[str] = ("",),
    *,
    expected: str = "a model in diffusers' layout",
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> tuple[Path, HubPlace]:
    """Fetches what is not in the Hub's cache yet; returns the local folder or file, and the place with its commit.

    A file that ``place`` names is fetched as it is, of a folder what `one_format` takes. Without a connection the cache
    serves. What was fetched has the SHA-256 that the Hub states, or it is removed.

    Args:
        wanted: beginnings of the names of the files that are needed, below the folder of ``place``.
        expected: what has such files, for the message where there are none.
        token, cache_dir, local_files_only: as huggingface_hub has them.

    Raises:
        UserError: the place does not exist, is closed, holds something else or cannot be reached; says what to do.
    """
    api = HfApi(token=token, library_name="posegen")
    cache = Path(cache_dir or constants.HF_HUB_CACHE).expanduser()
    with explained(cache / place.repo), explained_hub(place, cache):
        revision = api.resolve_revision(
            place.repo, revision=place.revision, cache_dir=cache_dir, local_files_only=local_files_only
        )
        place = replace(place, revision=revision.resolved)
        files = listing(api, place, cache_dir, local_files_only)
        local: dict[str, Any] = {"cache_dir": cache_dir, "token": token, "revision": revision}
        if files is None:  # an older program filled the cache, or somebody else's
            folder = Path(snapshot_download(place.repo, allow_patterns=[], **local | {"local_files_only": True}))
            names: Collection[str] = [file.relative_to(folder).as_posix() for file in folder.rglob("*")]
        else:
            names = files
        chosen = chosen_files(place, names, wanted, expected if files else "a connection, to fetch them")
        here = (try_to_load_from_cache(place.repo, name, cache_dir, place.revision) for name in chosen)
        local["local_files_only"] = local_files_only or all(isinstance(path, str) for path in here)  # no progress bars
        folder = Path(snapshot_download(place.repo, allow_patterns=[glob.escape(name) for name in chosen], **local))
    require_hashes(place, {folder / name: (files or {}).get(name) for name in chosen})
    return folder / place.inside, place


def listing(api: HfApi, place: HubPlace, cache_dir: str | Path | None, local: bool) -> dict[str, str | None] | None:
    """Name -> SHA-256, where the Hub tells it, of the files of a commit; None where they cannot be known."""
    with suppress(hub_errors.CachedRepoTreeNotFoundError):  # a commit never changes: nobody need be asked
        found = get_cached_repo_tree(place.repo, revision=place.revision, cache_dir=cache_dir)
        return dict.fromkeys(entry.path for entry in found)
    try:
        listed = [] if local else list(api.list_repo_tree(place.repo, recursive=True, revision=place.revision))
    except Exception as error:
        if not unreachable(error):
            raise
        listed = []
    files = [entry for entry in listed if isinstance(entry, RepoFile)]
    return {entry.path: entry.lfs.sha256 if entry.lfs else None for entry in files} or None


def chosen_files(place: HubPlace, names: Collection[str], wanted: Sequence[str], expected: str) -> list[str]:
    """The names of the files to fetch; a UserError where a repository has none of them."""
    if place.inside and place.inside in names:
        return [place.inside]
    starts = [f"{place.inside}/{start}".lstrip("/") for start in wanted]
    inside = [name for name in names if name.startswith(tuple(starts))]
    if not inside:
        raise UserError(f"{place} has none of {', '.join(starts)}; nothing was fetched. Expected {expected}")
    return one_format(inside, place)


def one_format(names: Collection[str], place: HubPlace) -> list[str]:
    """Of the files of models those that are read: configurations, vocabularies, and the weights of each model once, as
    safetensors and in full precision where there is a choice; a UserError where a model comes in pickles alone."""
    kept = [name for name in names if name.endswith(READ) and ".bin." not in name]
    folders: dict[str, list[str]] = {}
    for name in names:
        folders.setdefault(name.rpartition("/")[0], []).append(name)
    for folder, inside in folders.items():
        weights = [name for name in inside if name.endswith(".safetensors") and "non_ema" not in name]
        full = [name for name in weights if not HALF_PRECISION.search(name)]
        half = [name for name in weights if ".fp16" in name]
        if not weights and (pickles := sorted(name for name in inside if name.endswith(PICKLES))):
            fetch = f"fetch it with: hf download {place.repo} --local-dir FOLDER, and name that folder"
            raise UserError(
                f"{place.repo} has the weights of {folder or 'its model'} as pickles alone ({pickles[0]}); posegen "
                f"fetches safetensors. To read the pickles, of which posegen runs nothing, {fetch}"
            )
        kept += full or half or weights
    return kept


def require_hashes(place: HubPlace, stated: Mapping[Path, str | None]) -> None:
    """Removes files that have another SHA-256 than the Hub states, and refuses them."""
    blobs = {file: sha256 or file.resolve().name for file, sha256 in stated.items()}  # the cache names them after it
    expected = {file: sha256 for file, sha256 in blobs.items() if SHA256.fullmatch(sha256)}
    found = dict(zip(expected, file_hashes(expected), strict=True))
    wrong = [file for file, sha256 in expected.items() if found[file] != sha256]
    for file in wrong:
        file.resolve().unlink()
        file.unlink(missing_ok=True)
    if wrong:
        hashes = f"{found[wrong[0]][:16]}..., the Hub states {expected[wrong[0]][:16]}..."
        raise UserError(
            f"{place.repo}: {wrong[0].name} has SHA-256 {hashes}; it was damaged on the way or on this disk and is "
            "removed. The same again fetches it again"
        )


def pinned(text: str, record: Path, before: Mapping[str, str] | None = None) -> str:
    """``hub:owner/name`` with a commit: the one that the json file ``record`` has for it, else that of ``before``, else
    the one that the Hub has now; it is recorded."""
    if (place := HubPlace.of(text)).pinned:
        return text
    with locked(record.with_name(f".{record.name}.lock")):
        known = read_json(record) if record.is_file() else {}
        if text not in known:
            known[text] = (before or {}).get(text) or commit_of(place)
            write_json(record, known)
            print(f"{text} is read at commit {known[text]}, as {record} keeps", flush=True)
    return str(replace(place, revision=known[text]))


def commit_of(place: HubPlace) -> str:
    """The commit that a place means now, or meant when the Hub was last reached."""
    with explained_hub(place, Path(constants.HF_HUB_CACHE)):
        return HfApi(library_name="posegen").resolve_revision(place.repo, revision=place.revision).resolved


def unreachable(error: BaseException) -> bool:
    """Whether no answer of the Hub came, or one that says that it is out of order."""
    if isinstance(error, hub_errors.HfHubHTTPError):
        return error.response.status_code >= 500
    known = isinstance(error, hub_errors.OfflineModeIsEnabled | ConnectionError | TimeoutError)
    return known or type(error).__module__.partition(".")[0] in ("httpx", "httpx2")


@contextmanager
def explained_hub(place: HubPlace, cache: Path | str = "") -> Iterator[None]:
    """Turns what huggingface_hub raises about a place into a `UserError` of one sentence with the way out."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if (reason := reason_of(error, place, str(cache))) is None:
            raise
        raise UserError(reason) from error


def reason_of(error: Exception, place: HubPlace, cache: str) -> str | None:
    """What an error of huggingface_hub means for the user; None where it is of another kind."""
    repo, page = place.repo, f"{constants.ENDPOINT}/{place.repo}"
    login = "log in with hf auth login, or set HF_TOKEN or token="
    if isinstance(error, hub_errors.HFValidationError):
        return f"{repo!r} is no name of a repository ({first_sentence(error)}); expected owner/name"
    if isinstance(error, hub_errors.GatedRepoError):
        return f"{repo} is gated: accept its terms on {page}, {login}, and run the same again"
    if isinstance(error, hub_errors.RevisionNotFoundError):
        return f"{repo} has no revision {place.revision}; {page}/commits/main lists them"
    if isinstance(error, hub_errors.RepositoryNotFoundError):
        return f"there is no repository {repo} at {constants.ENDPOINT}, or it is private: check the name, or {login}"
    if isinstance(error, hub_errors.HfHubHTTPError) and (code := error.response.status_code) < 500:
        said = error.server_message or first_sentence(error)
        return f"{repo}: the Hub refuses this ({code}: {said}); where a right is missing, {login}"
    if isinstance(error, hub_errors.LocalTokenNotFoundError):
        return f"{repo}: no token is stored on this machine; {login}"
    if isinstance(error, ABSENT):
        where = f"{place} is not in {cache}, and " if cache else f"{repo}: "
        if constants.is_offline_mode():
            fix = "unset it, or fetch the repository with a connection, or name a local folder"
            return f"{where}HF_HUB_OFFLINE=1 forbids to reach the Hub; {fix}"
        if error.__cause__ is None:
            return f"{where}local_files_only=True forbids to fetch it; leave that out, or name a local folder"
        error = error.__cause__  # type: ignore[assignment]
    if unreachable(error) or "Consistency check failed" in str(error):
        fix = "check the connection and HF_ENDPOINT; the same again continues, files that arrived whole are kept"
        return f"{place}: the transfer with {constants.ENDPOINT} failed ({first_sentence(error)}); {fix}"
    return None


def first_sentence(error: BaseException) -> str:
    lines = (line.strip() for line in str(error).splitlines())
    return next((line.rstrip(".") for line in lines if line), type(error).__name__)
