"""A page of many recorded studies, from their records alone: what is comparable stands in one table, and nothing else.

Rows are comparable where the test images, the training budget, the protocol and the judge are the same by hash. A study
that is damaged, of another format or not what it says is left out, with the reason.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from posegen.errors import UserError
from posegen.io.hashes import file_hash, value_hash
from posegen.metrics.records import CSV_FILE
from posegen.report.formats import SHOWN_COSTS, TableEntry, table_csv, table_grid
from posegen.report.html import KINDS, Sheet, SheetLine, rendered, unshaded
from posegen.report.recorded.files import RECORDS, STUDY, TABLE, same_values, unpack_study
from posegen.report.rows import Row
from posegen.report.study import benchmark_plan, judged_ids
from posegen.report.table import Table, build_table, require_records
from posegen.runner.received.state_files import read_status

DIGITS = 10  # of a hash on the page
RULE = (
    "A table holds rows of the same test images, training budget (steps, batch, accumulation), protocol and judge, and "
    "no others: rows of different tables are not comparable. Backbone, sampler, seeds and learning rates are the row's "
    "own, see its configuration in study.json. A cell that several studies have counts once. Hashes show that files "
    "are what their study says, not that the study is right: that takes its command."
)


@dataclass
class Leaderboard:
    """The studies of a page, and its tables: what is the same in each -> the plan of its cells."""

    place: Path  # where the studies are unpacked, each in a folder by its name
    studies: dict[str, tuple[Path, str]] = field(default_factory=dict)  # name -> folder, how its table is reproduced
    left_out: dict[str, str] = field(default_factory=dict)  # folder -> reason
    plans: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, source: Path) -> None:
        """Takes a study in, or notes why not."""
        name = source.resolve().name
        name += f"-{len(self.studies) + 1}" if name in self.studies else ""
        target = self.place / name
        try:
            unpack_study(source, target)
            table = build_table(target)
            require_records(table)
            if not (source / TABLE).is_file():
                raise UserError(f"{source} has no {TABLE}, which its records could be compared with")
            told, cells = same_values(table_csv(table), source / TABLE), list(self._cells(target, table))
        except (ValueError, OSError) as error:
            self.left_out[str(source)] = str(error)
            return
        self.studies[name] = source, told
        for key, about, cell in cells:
            plan = self.plans.setdefault(key, {"title": about, "cells": [], "baseline": None})
            plan.setdefault("protocol", benchmark_plan(target)["protocol"])
            if all((cell["hash"], cell["records"]) != (other["hash"], other["records"]) for other in plan["cells"]):
                plan["cells"].append(cell)

    def _cells(self, target: Path, table: Table) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """(what makes it comparable as a hash, the same in words, entry of a plan) of each finished cell."""
        for cell in table.cells:
            if cell["state"] != "finished":
                continue
            status = read_status(target / cell["folder"])
            known = status.get("identity") or {}
            if missing := {"data", "budget", "protocol", "estimator", "optim"} - known.keys():
                named = ", ".join(sorted(missing))
                raise UserError(f"{cell['folder']} does not say its {named}, so nothing can be compared with it")
            trained = {
                "steps": known["budget"].get("steps"),
                **{k: known["optim"].get(k) for k in ("batch", "accumulate")},
            }
            data, ids = known["data"].get("test"), judged_ids(target / cell["folder"])
            judge = known["estimator"]
            same = [data, (known.get("content") or {}).get("test"), ids, trained, known["protocol"], judge]
            same.append(judged_ids(target / cell["folder"] / "reference"))
            name, protocol = Path(cell["folder"]).parent.name.partition(",")[0], known["protocol"]
            judge_name = next((p for p in str(judge.get("_target_")).split(".") if p[:1].isupper()), "judge")
            words = f"{name}, {len(ids)} images; {trained['steps']} steps of {trained['batch']} images; "
            words += f"{protocol.get('name')} v{protocol.get('version')}; {judge_name} {value_hash(judge, 6)}"
            about = {key: cell[key] for key in ("method", "seed")} | {"hash": status["hash"], "study": target.name}
            records = file_hash(target / cell["folder"] / CSV_FILE)
            yield value_hash(same), words, {**about, "folder": f"{target.name}/{cell['folder']}", "records": records}

    def page(self) -> str:
        """The page as html text."""
        sections: dict[str, tuple[str, Any]] = {}
        for key, plan in self.plans.items():
            name = plan["title"] if plan["title"] not in sections else f"{plan['title']} ({key[:6]})"
            sections[name] = ("results", self._section(plan))
        head = ("study", "records", "configurations", "table", "posegen", "commit")
        lines = [SheetLine(name, unshaded(map(TableEntry, self._facts(name)))) for name in self.studies]
        sections["Studies"] = ("results", {"sheet": Sheet("studies", head, [("", "", lines)], {}), "caption": RULE})
        if self.left_out:
            lines = [
                SheetLine(folder, unshaded([TableEntry(why)]), failed=True) for folder, why in self.left_out.items()
            ]
            sheet = Sheet("studies that are left out", ("folder", "reason"), [("", "", lines)], {})
            sections["Left out"] = ("results", {"sheet": sheet, "caption": "", "notes": []})
        return rendered("Leaderboard", sections)

    def _facts(self, name: str) -> list[str]:
        source, told = self.studies[name]
        cells = benchmark_plan(self.place / name)["cells"]
        status = next(filter(None, (read_status(self.place / name / cell["folder"]) for cell in cells)), {})
        version = str((status.get("versions") or {}).get("posegen", "-"))
        configurations = value_hash(sorted(cell["hash"] for cell in cells), DIGITS)
        commit = (status.get("git") or "-")[:DIGITS]
        return [file_hash(source / RECORDS, DIGITS), configurations, told.partition(";")[0], version, commit]

    def _section(self, plan: Mapping[str, Any]) -> dict[str, Any]:
        """A table of comparable rows, ranked by its preferred column of accuracy."""
        studies: dict[str, set[str]] = {}
        for cell in plan["cells"]:
            studies.setdefault(cell["method"], set()).add(cell["study"])
        cells = [
            {**c, "method": f"{c['method']} [{c['study']}]" if len(studies[c["method"]]) > 1 else c["method"]}
            for c in plan["cells"]
        ]
        table = build_table(self.place, plan={**plan, "cells": cells})
        head, *grid = table_grid(table, {"trained": SHOWN_COSTS["trained"]})
        grouped = any(entry.text == "group" for entry in head)
        places = ranked_places(table)
        found: list[tuple[float, str, SheetLine]] = []
        for row, (name, *entries) in zip(table.rows, grid, strict=True):
            of_row = [cell for cell in table.cells if cell["row"] == row["method"]]
            group = [entries.pop(0)] if grouped else []
            known = read_status(self.place / of_row[0]["folder"])["identity"]
            backbone = str((known.get("backbone") or {}).get("id") or "-")
            seeds = ", ".join(str(cell["seed"]) for cell in of_row)
            hashes = value_hash(sorted(cell["hash"] for cell in of_row), DIGITS) if of_row[1:] else of_row[0]["hash"]
            facts = [places.get(row["method"], ""), of_row[0]["study"], backbone, seeds]
            kind = "" if row["ranked"] else "bound"
            line = SheetLine(
                name.text, [*unshaded([*map(TableEntry, facts), *group, *entries, TableEntry(hashes)])], kind
            )
            found.append((row[table.accuracy], kind, line))
        found.sort(key=lambda each: -each[0] if not math.isnan(each[0]) else math.inf)
        bodies = [(kind, KINDS[kind], [line for _, k, line in found if k == kind]) for kind in ("", "bound")]
        names = ["method", "rank", "study", "backbone", "seeds", *(entry.text for entry in head[1:]), "configuration"]
        better: dict[str, str | None] = {"rank": "lower", **{str(c): c.better for c in table.headline}}
        sheet = Sheet(plan["title"], names, [body for body in bodies if body[2]], better)
        return {"sheet": sheet, "caption": table.caption, "notes": table.notes}


def ranked_places(table: Table) -> dict[str, str]:
    """Method -> its place by the preferred column of accuracy, 1 for the best; equal values share a place."""
    ranked: list[Row] = [row for row in table.rows if row["ranked"] and not math.isnan(row[table.accuracy])]
    sign = -1 if table.accuracy.better == "lower" else 1
    values = {row["method"]: sign * row[table.accuracy] for row in ranked}
    return {name: str(1 + sum(other > value for other in values.values())) for name, value in values.items()}


def study_folders(folders: Sequence[str]) -> list[Path]:
    """The recorded studies in the named folders, each of which is one or holds some; a folder with none counts, so that
    it is named among those that are left out."""
    found: dict[Path, None] = {}
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise UserError(f"{folder} is no folder; name recorded studies, or a folder of them (posegen record)")
        inside = sorted(file.parent for name in (STUDY, RECORDS) for file in folder.rglob(name))
        found |= dict.fromkeys(inside or [folder])
    return list(found)
