"""Every file that a study leaves, damaged in every way; then the verbs that read it, and the way out that they name."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.campaigns.study import NAME, Study, remove, table_of
from tests.campaigns.trying import Campaign, Ending, Try, posegen

DEEP = b"[" * 100_000
#: What stands in the place of a file's content; gets the content and the dice.
DAMAGES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "empty": lambda content, dice: b"",
    "cut": lambda content, dice: content[: dice.randrange(max(1, len(content)))],
    "zeros": lambda content, dice: bytes(len(content)),
    "garbage": lambda content, dice: dice.randbytes(200),
    "longer": lambda content, dice: content + dice.randbytes(50),
    "flipped": lambda content, dice: flipped(content, dice),
}
TEXT_DAMAGES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    **{
        f"is {text.decode()}": (lambda content, dice, text=text: text)
        for text in (b"null", b"[]", b"{}", b'"text"', b"5", b"true", b"NaN")
    },
    "deep": lambda content, dice: DEEP,
    "deep object": lambda content, dice: b'{"a":' * 100_000,
    "utf-16": lambda content, dice: content.decode().encode("utf-16"),
    "byte order mark": lambda content, dice: b"\xef\xbb\xbf" + content,
    "a huge number": lambda content, dice: b'{"state": ' + b"9" * 5000 + b"}",
}
WRONG = (None, True, -1, 10**400, float("nan"), "text", "", [], {}, [1], {"a": 1}, [[]], "../../../escape")
YAML_DAMAGES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "a tab": lambda content, dice: b"a:\n\t- b\n",
    "a tag": lambda content, dice: b"a: !!python/object/apply:os.system [true]\n",
    "a cycle": lambda content, dice: b"a: &a [*a]\n" + content,
    "aliases": lambda content, dice: (
        b"\n".join(
            [b"a0: &a0 [x]", *(b"a%d: &a%d [%s]" % (i, i, b", ".join([b"*a%d" % (i - 1)] * 9)) for i in range(1, 12))]
        )
        + b"\n"
        + content
    ),
}


def flipped(content: bytes, dice: random.Random) -> bytes:
    """One bit is another."""
    if not content:
        return b"\1"
    changed = bytearray(content)
    changed[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
    return bytes(changed)


def leaves(value: object, path: tuple = ()) -> Iterator[tuple]:
    """The places of a json value, inner ones as well."""
    for key, each in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield (*path, key)
        yield from leaves(each, (*path, key))


def replaced(content: bytes, place: tuple, new: object) -> bytes:
    value = json.loads(content)
    node = value
    for key in place[:-1]:
        node = node[key]
    node[place[-1]] = new
    return json.dumps(value).encode()


def tries(campaign: Campaign, study: Study, dice: random.Random) -> list[Try]:
    """Damages of finished and interrupted runs."""
    runs = {
        "finished": study.finished,
        "training": study.interrupted("training", "outputs/*/last.ckpt", "callbacks.checkpoint.every=1"),
        "sampling": study.interrupted("sampling", "outputs/*/controlnet/*/samples/000001.png"),
        "judging": study.interrupted("judging", "outputs/*/controlnet/*/batches/000002/records.csv"),
    }
    found: list[Try] = []
    for run, source in runs.items():
        for path in sorted(p for p in source.rglob("*") if p.is_file() and p.stat().st_size and keep(p)):
            name, content = path.relative_to(source), path.read_bytes()
            damages = {key: damage(content, dice) for key, damage in DAMAGES.items()}
            if path.suffix in (".json", ".yaml"):
                damages |= {key: damage(content, dice) for key, damage in TEXT_DAMAGES.items()}
            if path.suffix == ".yaml":
                damages |= {key: damage(content, dice) for key, damage in YAML_DAMAGES.items()}
            if path.suffix == ".json":
                places = list(leaves(json.loads(content)))
                for place in dice.sample(places, min(12, len(places))):
                    wrong = dice.choice(WRONG)
                    damages[f"{place} is {str(wrong)[:20]!r}"] = replaced(content, place, wrong)
                damages["a key twice"] = content.rstrip()[:-1] + b', "state": 5, "state": []}'
            found += [attack(campaign, study, run, source, name, key, damage, dice) for key, damage in damages.items()]
            found.append(attack(campaign, study, run, source, name, "a folder", None, dice))
    return found


def keep(path: Path) -> bool:
    return (
        not path.name.startswith((".lock", "table", "multirun", "report", "pictures")) and "figures" not in path.parts
    )


def attack(
    campaign: Campaign,
    study: Study,
    run: str,
    source: Path,
    name: Path,
    key: str,
    damage: bytes | None,
    dice: random.Random,
) -> Try:
    reported = dice.random() < 0.2

    def attack() -> str:
        place = study.copy(source)
        file = place / name
        file.unlink()
        if damage is None:
            file.mkdir()
            (file / "inner").write_text("x")
        else:
            file.write_bytes(damage)
        folder = place / "outputs" / NAME
        for verb in ("table", "report") if reported else ("table",):
            ending = posegen([verb, str(folder)], place).end()
            if reason := campaign.fault(ending) or reading(campaign, study, place, ending, run):
                return f"posegen {verb}: {reason}"
        return healing(campaign, study, place)

    return Try(f"{run}: {name} {key}", attack)


def reading(campaign: Campaign, study: Study, place: Path, ending: Ending, run: str) -> str:
    """A verb that only reads has the right table, says what is wrong with a file, or says what is unfinished."""
    if ending.code:
        return campaign.refused(ending, str(place))
    table = table_of(place)
    return "" if run != "finished" or table == study.table or said(ending) else "silently another table"


def said(ending: Ending) -> bool:
    return bool(
        re.search(
            r"warn|damaged|cannot be read|missing|not a readable|other settings|interrupted|failed", ending.text, re.I
        )
    )


def healing(campaign: Campaign, study: Study, place: Path) -> str:
    """The same command, and the ways out that it names, until it is finished with the table of an undisturbed run."""
    taken: list[str] = []
    for _ in range(6):
        ending = study.run(place)
        if fault := campaign.fault(ending):
            return f"the same command: {fault}{after(taken)}"
        if ending.code == 0:
            if table_of(place) == study.table:
                return ""
            return "" if said(ending) and not taken else f"finished with another table{after(taken)}: {ending.message}"
        if refusal := campaign.refused(ending, str(place)):
            return f"the same command: {refusal}{after(taken)}"
        way = way_out(ending.text, place)
        if way is None:
            if "again" in ending.text and not taken[-1:] == ["again"]:
                taken.append("again")
                continue
            return f"no way out in the message{after(taken)}: {ending.message}"
        taken.append(f"deleted {way.relative_to(place)}")
        remove(way)
    return f"no way out works{after(taken)}: {ending.message}"


def after(taken: list[str]) -> str:
    return f" (after: {', '.join(taken)})" if taken else ""


def way_out(text: str, place: Path) -> Path | None:
    """What the message says to delete: a path, or ``it`` or ``that folder``, which is the first path it names."""
    lines = [line for line in text.splitlines() if "delete" in line.lower() or str(place) in line]
    text = "\n".join(lines)
    named = re.search(
        r"[Dd]elete (?:the (?:folder|file) )?(" + re.escape(str(place)) + r"[^\s;:()']*(?:,[^\s;:()']+)*)", text
    )
    if named:
        return Path(named[1].rstrip(".,;"))
    if not re.search(r"[Dd]elete|[Rr]emove", text):
        return None
    paths = [Path(found.rstrip(".,;:'")) for found in re.findall(re.escape(str(place)) + r"[^\s;:()'\"]*", text)]
    paths = [path for path in paths if path.exists() and path != place]
    if not paths:
        return None
    path = paths[-1] if len(paths) == 1 else max(paths, key=lambda p: len(p.parts))
    return path if not re.search(r"[Dd]elete (?:that|this|the) folder", text) or path.is_dir() else path.parent
