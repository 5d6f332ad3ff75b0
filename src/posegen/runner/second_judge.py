"""Judging the pictures that lie in finished cells by another judge: nothing is sampled, no backbone is loaded.

A cell keeps the records of its own judge where they are, and those of every further one in ``judges/NAME``, a folder
with the state, identity and files of a cell of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from omegaconf import DictConfig, OmegaConf

from posegen.config.typed_text import as_literal
from posegen.data.base import PoseData
from posegen.errors import UserError
from posegen.io.atomic import set_aside
from posegen.io.hashes import file_hash
from posegen.metrics.base import Estimator
from posegen.metrics.protocol import Protocol
from posegen.metrics.records import CSV_FILE, from_csv, has_records, read_records
from posegen.runner.cell import Cell, identity
from posegen.runner.components import Components
from posegen.runner.images import HASHES, changed_samples, note_hashes
from posegen.runner.judge import RECORD_FILES, Judging
from posegen.runner.outputs import KINDS, Kind
from posegen.runner.received.classes import built
from posegen.runner.received.state_files import read_cell_config, read_status

JUDGES = "judges"  # the folder of a cell with its further judges


class KeptPictures(Components):
    """What judging needs of a finished cell, by its ``config.yaml``, which may come from someone else."""

    def __init__(self, cell: Path, cfg: DictConfig, estimator: Callable[[], Estimator], protocol: Protocol) -> None:
        """``cfg``: of the verb, with the node of the estimator, and that of the protocol."""
        self.cell, self._estimator, self._protocol = cell, estimator, protocol
        self.recorded = read_cell_config(cell)
        facts = {key: self.recorded[key] for key in ("method", "seed", "study")}
        threads = self.recorded.get("budget", {}).get("threads", 1)
        about: Any = OmegaConf.to_container(cfg, resolve=True)
        facts |= {key: about[key] for key in ("estimator", "protocol", "progress")}
        facts |= {"trainer": {"accelerator": cfg.accelerator}, "budget": {"threads": int(threads)}}
        facts |= {"data": {"reference": self.recorded["data"].get("reference", "validation")}}
        super().__init__(OmegaConf.create(as_literal({**facts, "paths": {"cache": cfg.cache}})))

    def data(self, split: str) -> PoseData:
        if split not in self._data:
            file, places = self.cell / "config.yaml", self.recorded["paths"]
            node = elsewhere(self.recorded["data"].get(split), places.get("cache"), self.cfg.paths.cache)
            self._data[split] = built(node, PoseData, "data set", file, f"data.{split}")  # type: ignore[type-abstract]
        return self._data[split]

    @cached_property
    def kind(self) -> Kind:
        return KINDS[self.protocol.sample]

    @cached_property
    def sampler(self) -> Any:
        return SimpleNamespace(batch=int(self.recorded["sampler"]["batch"]))

    @cached_property
    def estimator(self) -> Estimator:
        return self._estimator()

    @cached_property
    def protocol(self) -> Protocol:
        return self._protocol


class SecondJudging(Judging):
    """Writes the records of a finished cell's pictures to ``judges/NAME``; see `Judging`."""

    components: KeptPictures

    def __init__(self, components: KeptPictures, name: str) -> None:
        super().__init__(components, components.cell / JUDGES / name, components.cell / "samples")

    @cached_property
    def known(self) -> dict[str, Any]:
        """The identity of the judge: estimator and protocol, with files by their content."""
        found = identity(self.components.cfg)
        return {key: found[key] for key in ("estimator", "protocol")}

    def of_cell(self) -> bool:
        """Whether this is the judge that the cell was judged by first."""
        first = read_status(self.components.cell).get("identity") or {}
        return all(first.get(key) == value for key, value in self.known.items())

    def place(self) -> Cell:
        """The folder with its identity: the cell, its pictures and the judge. A UserError says why the pictures of the
        cell cannot be judged."""
        self.require_pictures()
        cell = read_status(self.components.cell)["hash"]
        about = {"cell": cell, "pictures": file_hash(self.samples / HASHES, 16), **self.known}
        config: Any = OmegaConf.to_container(self.components.cfg, resolve=True)
        return Cell(self.folder, about, as_literal(config), named_by="name")

    def require_pictures(self) -> None:
        """Raises a UserError where pictures are gone or changed, or the data has become another; notes the hashes of
        pictures of older cells, which have none."""
        cell, data = self.components.cell, self.components.data("test")
        again = "run the command of this cell again, which samples"
        if not self.samples.is_dir():
            gone = f"{self.samples} is gone, so that nothing is left to judge"
            raise UserError(f"{gone}; delete {cell / 'status.json'} and {again} its pictures")
        content = (read_status(cell).get("identity") or {}).get("content") or {}
        ids = [data.seen(i, image=False).id for i in range(len(data))]
        if from_csv(cell / CSV_FILE)["id"] != ids or content.get("test") != data.identity.get("content"):
            found = f"the data set of {cell} holds other images than those that it was sampled for"
            raise UserError(f"{found}; put the files back that its config.yaml names")
        if absent := [i for i in range(len(data)) if not self.components.kind.kept(self.samples, i)]:
            some = f"{len(absent)} of {len(data)} pictures in {self.samples} are gone (the first is {absent[0]:06d})"
            raise UserError(f"{some}; {again} them")
        if changed := changed_samples(self.samples):
            more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
            raise UserError(f"{changed[0]}{more} changed after it was sampled; delete it and {again} it")
        note_hashes(self.samples)

    def mend(self) -> None:
        """Sets damaged records aside, so that they are made again."""
        for folder, owner in ((self.folder, read_status(self.folder)["hash"]), (self.folder / "reference", None)):
            if has_records(folder):
                try:
                    read_records(folder, *([owner] if owner else []))
                except (ValueError, OSError) as error:
                    set_aside(folder, RECORD_FILES, error, "they are made again")

    def lost(self) -> list[Path]:
        self.mend()
        return super().lost()


def elsewhere(node: Any, there: Any, here: str) -> Any:
    """A recorded node with this machine's cache in the place of that of another."""
    if isinstance(node, Mapping):
        return {key: elsewhere(each, there, here) for key, each in node.items()}
    return here if isinstance(node, str) and node == there else node
