"""Prompts and paths as people type them: text, whatever characters are in it."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

from tests.campaigns.study import NAME, Study, cell_of
from tests.campaigns.trying import Campaign, Try, posegen

PROMPTS = (
    "a man, smiling", "it's a man", 'a "quoted" man', "(best quality:1.2), man", "[a dancer]", "[a, b]x", "{a: b}", "{a man}", "a: b",
    "2024", "1e3", "nan", "true", "null", "1.5", "0x10", "???", "${seed}", "${oc.env:HOME}", "\\", "a\\, b", "a = b", "a=b,c=d", "=", ",", "'", '"', "a,", ",a",
    "#1 man", "@man", "-m", "--help", "~man", "+man", "a man\twith tabs", "a man\nin two lines", "café, naïve", "跳舞的人", "راقصة", "💃, 🕺", "a\u200dman", "e\u0301",
    "a man; a woman", "a|b", "a & b", "<lora:pose:0.8> man", "<script>", "50% off", "man:1,2", "[[man]]", "((man))", "{man|woman}", "choice(a, b)", "range(3)", "glob(*)", "interval(0,1)", "a man, a woman, (a:1.1), [b:c:0.5]", "!!python/name:os.system", "&a *a", "a man ", " a man", "  ", "a" * 2000, "a/b/c", "../x", "~/x", "man.json", "*",
)  # fmt: skip
FOLDERS = (
    "a b", "a,b", "a=b", "a'b", 'a"b', "[a]", "{a}", "(a)", "a:b", "café", "跳", "$HOME", "${seed}", "a;b", "a&b", "#a", "a#b", "~a", "a\\b", "2024", "true", "null", "1e3", "a%b", "@a", "+a", "-a", "a|b", "*", "?", "a\tb", "a\nb", "a,b=c,[d]",
)  # fmt: skip


def tries(campaign: Campaign, study: Study, dice: random.Random) -> list[Try]:
    study.finished  # noqa: B018 - before the dice
    mixed = [
        "".join(dice.choice(",=:'\"[]{}()$\\ab 1.#@!~*?&|<>;%\t") for _ in range(dice.randint(1, 12)))
        for _ in range(200)
    ]
    return [*prompts(campaign, study, [*PROMPTS, *mixed]), *folders(campaign, study)]


def pose_file(file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    joints = [number for i in range(17) for number in (20.0 + i, 10.0 + 3 * i, 2)]
    file.write_text(json.dumps([{"image_id": 1, "category_id": 1, "keypoints": joints, "score": 1.0}]))
    return file


def sampled(study: Study, place: Path, prompt: str, poses: Path, checkpoint: Path, output: Path) -> list[str]:
    more = [
        f"checkpoint={checkpoint}",
        f"poses={poses}",
        f"prompt={prompt}",
        f"paths.output={output}",
        f"paths.cache={place / 'cache'}",
    ]
    return ["sample", "adapter=controlnet", *study.world, *more]


def prompts(campaign: Campaign, study: Study, texts: list[str]) -> Iterator[Try]:
    for text in texts:

        def attack(text: str = text) -> str:
            place = study.copy(study.finished)
            words = sampled(
                study, place, text, pose_file(place / "pose.json"), cell_of(place, "controlnet"), place / "o"
            )
            ending = posegen(words, place).end()
            if fault := campaign.fault(ending):
                return fault
            if ending.code:
                way = [line for line in ending.text.splitlines() if "prompt=" in line]
                return (
                    f"refused: {ending.message}"
                    if text.strip()
                    else campaign.refused(ending, "prompt")
                    if not way
                    else ""
                )
            said = [file.read_text(encoding="utf-8").rstrip("\n") for file in (place / "o").rglob("prompts.txt")]
            return "" if said == [" ".join(text.split())] else f"another prompt: {said}"

        yield Try(f"sample prompt={text[:80]!r}", attack)


def folders(campaign: Campaign, study: Study) -> Iterator[Try]:
    for name in FOLDERS:

        def attack(name: str = name) -> str:
            place = study.copy(study.finished)
            shutil.copytree(cell_of(place, "controlnet"), place / name / "cell")
            words = sampled(
                study, place, "dancer", pose_file(place / name / "pose.json"), place / name / "cell", place / name / "o"
            )
            ending = posegen(words, place).end()
            if fault := campaign.fault(ending):
                return fault
            if ending.code:
                return f"sample refused: {ending.message}"
            if not list((place / name / "o").rglob("000000.png")):
                return f"no picture in the folder that was named: {ending.message}"
            shutil.move(place / "outputs", place / name / "outputs")
            for spot in (str(place / name / "outputs" / NAME), f"{name}/outputs/{NAME}"):
                ending = posegen(["table", spot], place).end()
                if fault := campaign.fault(ending):
                    return f"posegen table {spot}: {fault}"
                if ending.code:
                    return f"posegen table {spot} refused: {ending.message}"
            return ""

        yield Try(f"paths in the folder {name!r}", attack)
