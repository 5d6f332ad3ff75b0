"""Prompts and paths as people type them: text, whatever characters are in it."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

from tests.campaigns.study import NAME, Study, cell_of
from tests.campaigns.trying import Campaign, Ending, Try, posegen

PROMPTS = (
    "a man, smiling", "it's a man", 'a "quoted" man', "(best quality:1.2), man", "[a dancer]", "[a, b]x", "{a: b}", "{a man}", "a: b",
    "2024", "1e3", "nan", "true", "null", "1.5", "0x10", "???", "${seed}", "${oc.env:HOME}", "\\", "a\\, b", "a = b", "a=b,c=d", "=", ",", "'", '"', "a,", ",a",
    "#1 man", "@man", "-m", "--help", "~man", "+man", "a man\twith tabs", "a man\nin two lines", "café, naïve", "跳舞的人", "راقصة", "💃, 🕺", "a\u200dman", "e\u0301",
    "a man; a woman", "a|b", "a & b", "<lora:pose:0.8> man", "<script>", "50% off", "man:1,2", "[[man]]", "((man))", "{man|woman}", "choice(a, b)", "range(3)", "glob(*)", "interval(0,1)", "a man, a woman, (a:1.1), [b:c:0.5]", "!!python/name:os.system", "&a *a", "a man ", " a man", "  ", "a" * 2000, "a/b/c", "../x", "~/x", "man.json", "*",
)  # fmt: skip
FOLDERS = (
    "a b", "a,b", "a=b", "a'b", 'a"b', "[a]", "{a}", "(a)", "a:b", "café", "跳", "$HOME", "${seed}", "a;b", "a&b", "#a", "a#b", "~a", "a\\b", "2024", "true", "null", "1e3", "a%b", "@a", "+a", "-a", "a|b", "*", "?", "a\tb", "a\nb", "a,b=c,[d]",
)  # fmt: skip
CHARACTERS = ",=:'\"[]{}()$\\ab 1.#@!~*?&|<>;%\t"


def tries(campaign: Campaign, study: Study, dice: random.Random) -> list[Try]:
    study.finished  # noqa: B018 - before the dice
    mixed = ["".join(dice.choices(CHARACTERS, k=dice.randint(1, 12))) for _ in range(200)]
    return [typed(campaign, study, text) for text in (*PROMPTS, *mixed)] + [placed(campaign, study, n) for n in FOLDERS]


def sampled(study: Study, place: Path, prompt: str, poses: Path, checkpoint: Path, output: Path) -> Ending:
    """Runs ``posegen sample`` with a pose that is written to the file ``poses``."""
    poses.parent.mkdir(parents=True, exist_ok=True)
    joints = [number for i in range(17) for number in (20.0 + i, 10.0 + 3 * i, 2)]
    poses.write_text(json.dumps([{"image_id": 1, "category_id": 1, "keypoints": joints, "score": 1.0}]))
    more = [f"checkpoint={checkpoint}", f"poses={poses}", f"prompt={prompt}", f"paths.cache={place / 'cache'}"]
    return posegen(["sample", "adapter=controlnet", *study.world, *more, f"paths.output={output}"], place).end()


def typed(campaign: Campaign, study: Study, text: str) -> Try:
    def attack() -> str:
        place = study.copy(study.finished)
        checkpoint, output = cell_of(place, "controlnet"), place / "o"
        ending = sampled(study, place, text, place / "pose.json", checkpoint, output)
        if ending.code:  # only what says nothing may be refused
            return campaign.fault(ending) or (f"refused: {ending.message}" if text.strip() else "")
        said = [file.read_text(encoding="utf-8").rstrip("\n") for file in output.rglob("prompts.txt")]
        return campaign.fault(ending) or ("" if said == [" ".join(text.split())] else f"another prompt: {said}")

    return Try(f"sample prompt={text[:80]!r}", attack)


def placed(campaign: Campaign, study: Study, name: str) -> Try:
    def attack() -> str:
        place = study.copy(study.finished)
        folder = place / name
        shutil.copytree(cell_of(place, "controlnet"), folder / "cell")
        ending = sampled(study, place, "dancer", folder / "pose.json", folder / "cell", folder / "o")
        if ending.code or not list((folder / "o").rglob("000000.png")):
            return campaign.fault(ending) or f"no picture: {ending.message}"
        shutil.move(place / "outputs", folder / "outputs")
        for spot in (f"{folder}/outputs/{NAME}", f"{name}/outputs/{NAME}"):
            if (ending := posegen(["table", spot], place).end()).code:
                return f"posegen table {spot}: {campaign.fault(ending) or ending.message}"
        return ""

    return Try(f"paths in the folder {name!r}", attack)
