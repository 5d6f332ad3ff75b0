"""Every file that a study leaves, damaged in every way; then the verbs that read it, and the way out that they name."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.campaigns.study import NAME, Study, remove, table_of
from tests.campaigns.trying import Campaign, Try, posegen

Damage = Callable[[bytes, random.Random], bytes]
#: How an unfinished study was stopped: when this file appeared.
MOMENTS = {
    "training": "outputs/*/last.ckpt",
    "sampling": "outputs/*/controlnet/*/samples/000001.png",
    "judging": "outputs/*/controlnet/*/batches/000002/records.csv",
}
FILE_DAMAGES: dict[str, Damage] = {
    "is empty": lambda content, dice: b"",
    "is cut": lambda content, dice: content[: dice.randrange(len(content))],
    "is zeros": lambda content, dice: bytes(len(content)),
    "is garbage": lambda content, dice: dice.randbytes(200),
    "has more": lambda content, dice: content + dice.randbytes(50),
    "has another bit": lambda content, dice: flipped(content, dice),
}
TEXTS = (
    "null",
    "[]",
    "{}",
    '"text"',
    "5",
    "true",
    "NaN",
    '{"state": ' + "9" * 5000 + "}",
    "[" * 100_000,
    '{"a":' * 100_000,
)
TEXT_DAMAGES: dict[str, Damage] = {
    **{f"is {text[:20]}": lambda content, dice, text=text: text.encode() for text in TEXTS},  # type: ignore[misc]
    "is in UTF-16": lambda content, dice: content.decode().encode("utf-16"),
    "has a byte order mark": lambda content, dice: b"\xef\xbb\xbf" + content,
}
YAML_DAMAGES: dict[str, Damage] = {
    "has a tab": lambda content, dice: b"a:\n\t- b\n" + content,
    "has a tag": lambda content, dice: b"a: !!python/object/apply:os.system [true]\n" + content,
    "has a cycle": lambda content, dice: b"a: &a [*a]\n" + content,
    "has aliases": lambda content, dice: aliases(12) + content,
}
JSON_DAMAGES: dict[str, Damage] = {
    "has a key twice": lambda content, dice: content.rstrip()[:-1] + b', "state": 5, "state": []}',
    **{f"has another entry ({i})": lambda content, dice: another_entry(content, dice) for i in range(12)},
}  # fmt: skip
DAMAGES = {"": FILE_DAMAGES, ".json": TEXT_DAMAGES | JSON_DAMAGES, ".yaml": TEXT_DAMAGES | YAML_DAMAGES}
WRONG = (None, True, -1, 10**400, float("nan"), "text", "", [], {}, [1], {"a": 1}, [[]], "../../../escape")
WARNED = re.compile(
    r"warn|damaged|cannot be read|missing|not a readable|other settings|interrupted|failed|gone|again", re.I
)


def flipped(content: bytes, dice: random.Random) -> bytes:
    changed = bytearray(content)
    changed[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
    return bytes(changed)


def aliases(levels: int) -> bytes:
    """A yaml text that is nine times as large with every level."""
    lines = (f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, levels))
    return ("a0: &a0 [x]\n" + "".join(lines)).encode()


def another_entry(content: bytes, dice: random.Random) -> bytes:
    """A json object with something else in the place of one value, at any depth."""
    value = json.loads(content)

    def places(node: Any) -> Iterator[tuple[Any, Any]]:
        for key, each in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
            yield node, key
            yield from places(each)

    holder, key = dice.choice(list(places(value)))
    holder[key] = dice.choice(WRONG)
    return json.dumps(value).encode()


def tries(campaign: Campaign, study: Study, dice: random.Random) -> list[Try]:
    """Each damage of each file of a finished study, and of studies that were stopped."""
    runs = {"finished": study.finished, **{name: study.interrupted(name, pattern) for name, pattern in MOMENTS.items()}}
    found, start = [], dice.random()
    for run, source in runs.items():
        for path in sorted(path for path in source.rglob("*") if path.is_file() and is_kept(path)):
            name, content = path.relative_to(source), path.read_bytes()
            for key, damage in {**FILE_DAMAGES, **DAMAGES.get(path.suffix, {})}.items():
                inner = random.Random(f"{start} {run} {name} {key}")  # the same whatever other files are there
                found.append(attack(campaign, study, run, name, key, damage(content, inner), inner.random() < 0.2))
            found.append(attack(campaign, study, run, name, "is a folder", None, False))
            found.append(attack(campaign, study, run, name, "is another file of its kind", other_file(path), False))
    return found


def is_kept(path: Path) -> bool:
    """Whether a file of a study is read again."""
    written = path.name.startswith((".", "table", "multirun", "report", "pictures")) or "figures" in path.parts
    return not written and path.stat().st_size > 0


def other_file(path: Path) -> bytes:
    """Another file of the folder, of the same kind."""
    others = path.parent.glob(f"*{path.suffix}")
    return next((other.read_bytes() for other in others if other != path and other.is_file()), b"{}")


def attack(campaign: Campaign, study: Study, run: str, name: Path, key: str, damage: bytes | None, report: bool) -> Try:
    def attack() -> str:
        place = study.copy(study.root / run)
        file = place / name
        file.unlink()
        if damage is None:
            file.mkdir()
        else:
            file.write_bytes(damage)
        for verb in ("table", "report") if report else ("table",):
            ending = posegen([verb, str(place / "outputs" / NAME)], place).end()
            if reason := campaign.refused(ending, str(place)) if ending.code else campaign.fault(ending):
                return f"posegen {verb}: {reason}"
            if (
                not ending.code
                and run == "finished"
                and table_of(place) != study.table
                and not WARNED.search(ending.text)
            ):
                return f"posegen {verb}: silently another table"
        return healed(campaign, study, place)

    return Try(f"{run}: {name} {key}", attack)


def healed(campaign: Campaign, study: Study, place: Path) -> str:
    """Takes the same command, and the ways out that it names, until the table is that of an undisturbed run."""
    taken: list[str] = []
    for _ in range(6):
        ending = study.run(place)
        steps = f" (after: {', '.join(taken)})" if taken else ""
        if fault := campaign.refused(ending, str(place)) if ending.code else campaign.fault(ending):
            return f"the same command{steps}: {fault}"
        if not ending.code:
            return "" if table_of(place) == study.table else f"another table{steps}: {ending.message}"
        ways = ways_out(ending.text, place)
        if not ways and (taken[-1:] == ["again"] or "again" not in ending.text):
            return f"no way out{steps}: {ending.message}"
        taken += [f"deleted {way.relative_to(place)}" for way in ways] or ["again"]
        for way in ways:
            remove(way)
    return f"no way out works{steps}: {ending.message}"


def ways_out(text: str, place: Path) -> list[Path]:
    """What the last message says to delete: paths, names of files "there", "it" or "that folder"."""
    advice = list(re.finditer(r"[Dd]elete (.+?)(?= and (?:run|train|convert|call)| to |[;:]|\n|$)", text))
    if not advice:
        return []
    paths = re.compile(re.escape(str(place)) + r"/[^\s;:()'\"]+")
    named = [match.rstrip(".,") for match in paths.findall(text[: advice[-1].start()])]
    about = Path(named[-1]) if named else place
    found = []
    for words in advice[-1][1].split(" and "):
        if path := paths.search(words):
            found.append(Path(path[0].rstrip(".,")))
        elif re.search(r"\bfolder$", words):
            found.append(about if about.is_dir() else about.parent)
        elif name := re.fullmatch(r"([\w.]+\.\w+)(?: there)?", words):
            found.append((about if about.is_dir() else about.parent) / name[1])
        else:
            found.append(about)
    return [path for path in found if path.is_relative_to(place) and path != place and path.exists()]
