"""Check and index the data on your disk, and encode it once."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from omegaconf import DictConfig

from posegen.backbones.text import cut_note
from posegen.config import nodes
from posegen.data.on_disk.preparation_report import SplitReport, contact_sheet, defect_table, report_page
from posegen.errors import UserError
from posegen.io.atomic import write_text
from posegen.io.weights import WeightsError
from posegen.runner.components import Components
from posegen.runner.images import write_png
from posegen.train.loop import encodings, set_threads


def main(cfg: DictConfig) -> None:
    """Prepares the configured splits, prints a summary and writes a report; skips what is prepared and unchanged."""
    components = Components(cfg)
    splits = list(cfg.splits or (name for name, node in nodes.children(cfg.data) if nodes.has_target(node)))
    reports = [with_cut_prompts(SplitReport.of(split, components.data(split)), components) for split in splits]
    report = _write_report(components, reports)
    for each in reports:
        print(f"{each.split}: {each.summary}", *each.warnings, sep="\n  ")
    print(report)
    usable = {each.split for each in reports if each.usable}
    if not usable:
        raise UserError(f"nothing of data={cfg.dataset} can be used; {report} says why")
    fields = [name for name in ("latents", "text") if cfg[name]]
    if fields and "train" not in usable:
        text = f"{fields[0]}=true encodes the split train, which is not there"
        raise UserError(f"{text}; leave it out, or add train to splits")
    if fields:
        if "latents" in fields and components.data("train").varies:
            print("no latents: the training images look different on every visit, see data.transform")
        set_threads(cfg)
        encodings(components, fields)
    if cfg.joint_vectors is not None:
        export = getattr(components.data("train"), "export", None)  # in the layout of GUNet's authors
        if export is None:
            text = f"joint_vectors={cfg.joint_vectors}: data={cfg.dataset} has no single people to write"
            raise UserError(f"{text}; choose data=coco_single")
        print(f"{Path(cfg.joint_vectors)}: {export(Path(cfg.joint_vectors)):,} people")


def with_cut_prompts(report: SplitReport, components: Components) -> SplitReport:
    """The report with a line on the prompts that are longer than the backbone's text tower reads."""
    if not report.usable:
        return report
    with suppress(WeightsError):  # no backbone of text, or a damaged one, which is not asked for here
        reader = components.text_reader
        if reader and (note := cut_note(*reader, components.data(report.split).prompts)):
            return replace(report, warnings=[*report.warnings, f"prompts: {note}"])
    return report


def _write_report(components: Components, reports: list[SplitReport]) -> Path:
    """Writes ``report.md``, ``report.csv`` and contact sheets to ``cfg.out``, unless the report is the same."""
    out = Path(components.cfg.out)
    report, text = out / "report.md", report_page(str(components.cfg.dataset), reports)
    if not report.is_file() or report.read_text(encoding="utf-8") != text:
        for each in reports:
            if each.usable:
                write_png(out / f"contact_{each.split}.png", contact_sheet(components.data(each.split)))
        write_text(out / "report.csv", defect_table(reports))
        write_text(report, text)  # last: it shows that the others are there
    return report
