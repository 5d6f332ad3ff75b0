"""Files that may come from someone else run nothing, whatever they name, and every damage to one is one message."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from omegaconf import OmegaConf

from posegen.adapters.base import Adapter
from posegen.backbones.base import Backbone
from posegen.cli import main
from posegen.demo.loaded_methods import label_of
from posegen.errors import UserError
from posegen.io.atomic import write_json
from posegen.metrics.base import Judged, Poses
from posegen.metrics.pose import PoseMetric
from posegen.metrics.protocol import Protocol
from posegen.report.formats import table_markdown
from posegen.report.table import build_table
from posegen.report.wandb import place_of
from posegen.runner.backbone_lookup import backbone_of
from posegen.runner.method_folder import adapter_class, read_about
from posegen.runner.received import state_files
from posegen.runner.received.classes import built, named_class
from posegen.verbs.power import power_text

POWER: Any = {"images": [9], "seeds": [1], "difference": [], "power": 0.8, "alpha": 0.05, "column": "AP"}
METRIC = {"_target_": "posegen.metrics.pose.PoseMetric"}
RECORDED = {"_target_": "posegen.metrics.protocol.Protocol", "resamples": 10, "metrics": [METRIC]}
SOURCE = Path(__file__).parents[2] / "src" / "posegen"


def study(folder: Path, protocol: Any = RECORDED, **status: Any) -> Path:
    """A benchmark of one finished cell with the small files that a cell has."""
    cell, metric = folder / "near/world/seed0", Protocol([PoseMetric()], resamples=10)
    target = np.concatenate([np.full((1, 17, 2), 20.0), np.full((1, 17, 1), 2.0)], -1).astype(np.float32)
    poses = Poses(target, np.ones(1))
    metric.write(cell, metric.records([Judged(f"x/{i}", target, np.array([900.0]), poses) for i in range(3)]))
    metric.write(cell / "reference", metric.read(cell))
    write_json(cell / "status.json", {"state": "finished", "hash": "near", "wall_s": 1.0, "identity": {}, **status})
    write_json(cell / "costs.json", {"peak_memory_mb": 2048})
    write_json(cell / "row.json", {"remark": "", "faithful": None})
    record(folder, protocol)
    return cell


def record(folder: Path, protocol: Any) -> None:
    """Writes what says how the cell was judged."""
    config = {"method": "near", "seed": 0, "study": "world", "protocol": protocol}
    (folder / "near/world/seed0/config.yaml").write_text(yaml.safe_dump(config))
    entry = {"folder": "near/world/seed0", "method": "near", "seed": 0, "hash": "near"}
    (folder / "cells.json").write_text(json.dumps({"protocol": protocol, "cells": [entry]}))


# Code.


def hostile(trace: str) -> dict[str, dict[str, Any]]:
    """Name -> a node that would leave the file ``trace``, read a file, or start something."""
    code, shell = f"open({trace!r}, 'w')", f"touch {trace}"
    calls: dict[str, list[Any]] = {
        "sympy.sympify": [f"__import__('os').system('{shell}')"],
        "sympy.parsing.sympy_parser.parse_expr": [code],
        "builtins.eval": [code],
        "builtins.exec": [code],
        "builtins.open": [trace, "w"],
        "builtins.__import__": ["evil_received"],
        "os.system": [shell],
        "os.popen": [shell],
        "os.makedirs": [trace],
        "os.mkdir": [trace],
        "posix.system": [shell],
        "pty.spawn": [["touch", trace]],
        "subprocess.Popen": [["touch", trace]],
        "subprocess.run": [["touch", trace]],
        "subprocess.check_output": [["touch", trace]],
        "shutil.copyfile": [__file__, trace],
        "shutil.move": [f"{trace}.victim", trace],
        "shutil.rmtree": [f"{trace}.victim"],
        "os.remove": [f"{trace}.victim"],
        "pathlib.Path.touch": [{"_target_": "pathlib.Path", "_args_": [trace]}],
        "pathlib.Path.write_text": [{"_target_": "pathlib.Path", "_args_": [trace]}, "x"],
        "pathlib.Path.unlink": [{"_target_": "pathlib.Path", "_args_": [f"{trace}.victim"]}],
        "tempfile.mkdtemp": ["", "", trace],
        "pandas.read_pickle": [f"{trace}.pickle"],
        "joblib.load": [f"{trace}.pickle"],
        "pickle.loads": [f"cos\nsystem\n(S'{shell}'\ntR."],
        "torch.load": [f"{trace}.pickle"],
        "torch.jit.load": [f"{trace}.pickle"],
        "torch.hub.load": [str(Path(trace).parent), "anything"],
        "numpy.load": [f"{trace}.pickle", None, True],
        "yaml.unsafe_load": [f"!!python/object/apply:os.system ['{shell}']"],
        "runpy.run_path": [f"{trace}.py"],
        "runpy.run_module": ["evil_received"],
        "importlib.import_module": ["evil_received"],
        "evil_received.Metric": [],
        "hydra.utils.instantiate": [{"_target_": "os.system", "_args_": [shell]}],
        "hydra.utils.call": [{"_target_": "os.system", "_args_": [shell]}],
        "hydra.utils.get_class": ["evil_received.Metric"],
        "hydra.utils.get_object": ["evil_received.Metric"],
        "omegaconf.OmegaConf.save": [{}, trace],
        "logging.FileHandler": [trace],
        "functools.partial": [{"_target_": "hydra.utils.get_method", "path": "os.system"}, shell],
        "multiprocessing.Process": [],
        "ctypes.CDLL": [trace],
        "socket.create_connection": [["127.0.0.1", 9]],
        "urllib.request.urlretrieve": [f"file://{__file__}", trace],
        "zipfile.ZipFile": [trace, "w"],
        "sqlite3.connect": [trace],
        "posegen.io.atomic.write_text": [{"_target_": "pathlib.Path", "_args_": [trace]}, "x"],
        "posegen.io.atomic.write_json": [trace, {}],
        "posegen.io.locks.locked": [trace],
        "posegen.io.weights.read_tensors": [f"{trace}.pickle"],
        "posegen.runner.images.write_png": [trace, []],
        "posegen.runner.method_folder.save_method": [trace],
        "posegen.metrics.records.write_records": [trace],
        "posegen.metrics.estimators.mannequin.MannequinJudge.from_pretrained": [trace],
        "posegen.metrics.feature_networks.TorchScriptInception": [f"{trace}.pickle"],
        "posegen.metrics.pose.np.load": [f"{trace}.pickle"],
        "posegen.data.mannequin.dataset.MannequinData": ["train", 1000],
        "posegen.adapters.none.NoAdapter": [],
        "posegen.backbones.stable_diffusion.StableDiffusion": [trace],
    }
    return {name: {"_target_": name, "_args_": args} for name, args in calls.items()}


NAMES = list(hostile("trace"))
PLACES: dict[str, Callable[[Any], Any]] = {
    "the protocol": lambda node: node,
    "without _args_": lambda node: {"_target_": node["_target_"]},
    "a metric": lambda node: {**RECORDED, "metrics": [METRIC, node]},
    "an argument of a metric": lambda node: {**RECORDED, "metrics": [{**METRIC, "similarities": node}]},
    "a list in an argument": lambda node: {**RECORDED, "hidden": [node]},
    "an argument that no class has": lambda node: {**RECORDED, "more": {"deep": [node]}},
}


@pytest.fixture
def trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file that must not appear, with bait beside it; nothing may change in its folder."""
    folder = tmp_path / "bait"
    folder.mkdir()
    place = folder / "trace"
    evil = f"open({str(place)!r}, 'w')\nfrom posegen.metrics.pose import PoseMetric as Metric\n"
    for file in (folder / "evil_received.py", folder / "trace.py", folder / "hubconf.py"):
        file.write_text(evil)
    (folder / "trace.pickle").write_bytes(f"cos\nsystem\n(S'touch {place}'\ntR.".encode())
    (folder / "trace.victim").write_text("stays")
    monkeypatch.syspath_prepend(folder)
    before = sorted(folder.iterdir())
    yield place
    assert sorted(file for file in folder.iterdir() if file.name != "__pycache__") == before
    assert "evil_received" not in sys.modules


@pytest.mark.parametrize("name", NAMES)
def test_a_protocol_of_a_received_folder_runs_nothing(trace: Path, tmp_path: Path, name: str) -> None:
    cell = study(tmp_path)
    for where, place in PLACES.items():
        record(tmp_path, place(hostile(str(trace))[name]))
        for use in (lambda: build_table(tmp_path), lambda: power_text(POWER, [cell], [cell])):
            with pytest.raises(UserError) as told:
                use()
            assert not trace.exists(), where
            assert re.search(r"(cells\.json|config\.yaml)", str(told.value)), (where, told.value)


@pytest.mark.parametrize("name", NAMES)
def test_a_name_in_any_other_file_runs_nothing(trace: Path, tmp_path: Path, name: str) -> None:
    node = hostile(str(trace))[name]
    method = tmp_path / "cell" / "method"
    about = {"format": 1, "class": name, "kwargs": {"_args_": node["_args_"]}, "backbone": {"id": "x", "sha256": "0"}}
    write_json(method / "posegen.json", about)
    if "adapters" not in name:
        with pytest.raises(UserError, match="is no adapter; nothing was run"):
            adapter_class(read_about(method)["class"], method)
    for pipeline in ({"class": name, "kwargs": {}}, None):
        write_json(method / "posegen.json", {**about, "pipeline": pipeline})
        config = {"method": "x", "seed": 0, "study": "x", "backbone": {**node, "path": str(tmp_path)}}
        (method.parent / "config.yaml").write_text(yaml.safe_dump(config))
        with pytest.raises(UserError):
            backbone_of(method, read_about(method))
    cell = study(tmp_path, {**RECORDED, "observers": [node]}, identity={"adapter": node, "backbone": node})
    write_json(cell / "row.json", {"remark": "", "_target_": name, "class": name, "hidden": node})
    table = build_table(tmp_path)
    config = {"method": "near", "seed": 0, "study": "world", "logger": node}
    (cell / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(UserError, match="no cell of .* was logged to W&B"):
        place_of(table, True)


@pytest.mark.parametrize("verb", ["table", "report", "power"])
def test_the_command_line_runs_nothing_either(
    trace: Path, tmp_path: Path, verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    cell = study(tmp_path)
    record(tmp_path, hostile(str(trace))["sympy.sympify"])
    words = {"power": [str(cell), str(cell), "column=AP"]}.get(verb, [str(tmp_path)])
    assert main([verb, *words]) == 1
    error = capsys.readouterr().err
    assert "names the class sympy.sympify, which is no protocol; nothing was run" in error and "Traceback" not in error


def test_the_targets_of_hydra_mean_nothing(tmp_path: Path) -> None:
    for order in ({"_partial_": True}, {"_args_": []}, {"_recursive_": False}, {"_convert_": "all"}):
        study(tmp_path, {**RECORDED, "metrics": [{**METRIC, **order}]})
        with pytest.raises(UserError, match="which no recorded object needs; nothing was run"):
            build_table(tmp_path)


@pytest.mark.parametrize("name", [None, 5, [], {}, "", ".", "..", "os.", ".os", "posegen", "a" * 10_000, "os\0.system"])
def test_a_name_that_is_none_is_one_message(tmp_path: Path, name: Any) -> None:
    with pytest.raises(UserError, match="which is no metric; nothing was run") as told:
        named_class(name, PoseMetric, "metric", tmp_path / "cells.json")
    assert len(str(told.value)) < 1000


def test_nothing_in_a_received_file_is_resolved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSEGEN_SECRET", "hunter2")
    secret = "${oc.env:POSEGEN_SECRET}"
    cell = study(tmp_path, {**RECORDED, "name": secret}, reason=secret)
    write_json(cell / "row.json", {"remark": secret})
    assert "hunter2" not in table_markdown(build_table(tmp_path))
    (cell / "config.yaml").write_text(
        yaml.safe_dump({"method": secret, "seed": 0, "study": secret, "logger": {"_target_": "x", "entity": secret}})
    )
    assert "hunter2" not in label_of(cell) and secret in label_of(cell)
    write_json(cell / "method" / "posegen.json", {})
    config = {"method": "x", "seed": 0, "study": "x", "backbone": {"_target_": "x", "path": secret}}
    (cell / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(UserError) as told:
        backbone_of(cell / "method", {"backbone": {"id": "x", "sha256": "0"}})
    assert "hunter2" not in str(told.value)


# What is trusted.


def test_a_package_on_the_search_path_is_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "theirs_received"
    (package / "conf" / "protocol").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "metric.py").write_text(
        "from __future__ import annotations\n"
        "from posegen.metrics.pose import PoseMetric\n"
        "class Network:\n    def __init__(self, side: int = 1): self.side = side\n"
        "class Theirs(PoseMetric):\n    def __init__(self, network: Network): super().__init__(); self.network = network\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    name = "theirs_received.metric.Theirs"
    node = {"_target_": name, "network": {"_target_": "theirs_received.metric.Network", "side": 3}}
    study(tmp_path, {**RECORDED, "metrics": [node]})
    with pytest.raises(UserError, match=rf"names the class {name}, which is no Metric; .*POSEGEN_SEARCHPATH"):
        build_table(tmp_path)
    assert "theirs_received" not in sys.modules
    monkeypatch.setenv("POSEGEN_SEARCHPATH", "pkg://theirs_received.conf")
    assert build_table(tmp_path).columns
    found: Any = built(node, PoseMetric, "metric", tmp_path)
    assert found.network.side == 3
    with pytest.raises(UserError, match=r"network.side is 'wide'; expected an integer"):
        built({**node, "network": {**node["network"], "side": "wide"}}, PoseMetric, "metric", tmp_path)  # type: ignore[dict-item]
    for module in [name for name in sys.modules if name.startswith("theirs_received")]:
        del sys.modules[module]
    monkeypatch.setenv("POSEGEN_SEARCHPATH", str(package / "conf"))
    with pytest.raises(UserError, match="which is no metric"):
        named_class(name, PoseMetric, "metric", tmp_path)
    (package / "conf" / "protocol" / "theirs.yaml").write_text(f"metrics:\n  - {{_target_: {name}}}\n")
    assert named_class(name, PoseMetric, "metric", tmp_path).__name__ == "Theirs"


#: Files that may turn a name into an object, and where the name comes from.
ALLOWED = {
    "__init__.py": "posegen's only lazy import",
    "config/app.py": "the verb's module",
    "config/checking/arguments.py": "the checked configuration",
    "config/checking/check.py": "the user's configuration, and classes of posegen whose constructors load nothing",
    "demo/loaded_methods.py": "posegen's yaml and the checked configuration",
    "parity/compare.py": "a module of posegen.parity",
    "runner/components.py": "the checked configuration",
    "runner/experiment.py": "the checked configuration",
    "runner/user_requests/conversion.py": "the checked configuration",
    "runner/received/classes.py": "the place for names in files",
    "runner/user_requests/annotation.py": "the checked configuration",
    "train/live.py": "the checked configuration",
    "train/logger_runs.py": "the checked configuration",
    "train/loop.py": "the checked configuration",
    "verbs/judge.py": "the checked configuration",
    "verbs/profile.py": "the checked configuration",
}


def test_names_become_objects_in_few_places() -> None:
    turning = r"\b(get_class|instantiate|import_module|get_object|get_method|_locate|__import__|exec|eval)\("
    unsafe = r"\b(pickle\.loads?|unsafe_load|full_load|FullLoader|UnsafeLoader)\b|allow_pickle=True"
    found = {file.relative_to(SOURCE).as_posix(): file.read_text() for file in SOURCE.rglob("*.py")}
    using = {name for name, text in found.items() if re.search(rf"(?<!\.)(?<!def ){turning}", text)}
    assert using == ALLOWED.keys()
    assert not [name for name, text in found.items() if re.search(unsafe, text)]


# Damage.

DAMAGES: dict[str, bytes] = {
    "empty": b"",
    "binary": b"\x89PNG\r\n\x1a\n\0\0\xff",
    "truncated": b'{"state": "fini',
    "a list": b"[1, 2]",
    "a string": b'"finished"',
    "null": b"null",
    "a number": b"3",
    "no entries": b"{}",
    "deep": b'{"state": ' + b"[" * 5000 + b"]" * 5000 + b"}",
    "twice": b'{"state": "finished", "state": "running"}',
    "digits": b'{"state": ' + b"9" * 5000 + b"}",
}
WRONG = {
    "status.json": [{"state": 3}, {"state": "finished", "wall_s": "x"}, {"state": "finished", "identity": [1]}],
    "costs.json": [{"peak_memory_mb": "much"}, {"wall_s": [1]}, {"trained_parameters": None}],
    "row.json": [{"remark": 5}, {"faithful": "yes"}, {"remark": None}],
    "config.yaml": [{"method": 1}, {"method": "a", "seed": "b", "study": "c"}, {"protocol": []}],
    "cells.json": [
        {"cells": []},
        {"protocol": RECORDED, "cells": {}},
        {"protocol": RECORDED, "cells": [3]},
        {"protocol": RECORDED, "cells": [{"folder": "a"}]},
        {"protocol": RECORDED, "cells": [{"folder": 1, "method": "a", "seed": 0, "hash": "b"}]},
        {"protocol": RECORDED, "cells": [{"folder": "../x", "method": "a", "seed": 0, "hash": "b"}]},
        {"protocol": RECORDED, "cells": [{"folder": "/etc", "method": "a", "seed": 0, "hash": "b"}]},
        {"protocol": RECORDED, "cells": [], "headline": "AP"},
        {"protocol": RECORDED, "cells": [], "reproduction": {"tolerance": {"AP": "x"}}},
        {"protocol": {**RECORDED, "resamples": "many"}, "cells": []},
        {"protocol": {**RECORDED, "resamples": 10**12}, "cells": []},
        {"protocol": {**RECORDED, "metrics": "all"}, "cells": []},
        {"protocol": {**RECORDED, "metrics": [3]}, "cells": []},
        {"protocol": {**RECORDED, "metrics": None}, "cells": []},
    ],
    "posegen.json": [
        {"format": 2, "class": "a", "kwargs": {}, "backbone": {"id": "", "sha256": ""}},
        {"format": 1, "class": 3, "kwargs": {}, "backbone": {"id": "", "sha256": ""}},
        {"format": 1, "class": "a", "kwargs": [], "backbone": {"id": "", "sha256": ""}},
        {"format": 1, "class": "a", "kwargs": {}, "backbone": {"id": ""}},
        {"format": 1, "class": "a", "kwargs": {}, "backbone": {"id": "", "sha256": ""}, "pipeline": {"kwargs": {}}},
        {"format": "1", "class": "a", "kwargs": {}, "backbone": {"id": "", "sha256": ""}},
        {"format": True, "class": "a", "kwargs": {}, "backbone": {"id": "", "sha256": ""}},
    ],
}
INTERNALS = re.compile(r"pydantic|Traceback|Error\b|NoneType|'\w+' object|codec|recursion|argument after|__", re.I)
CONTENTS = [
    pytest.param(file, content, id=f"{file}, {kind}")
    for file, wrong in WRONG.items()
    for kind, content in [*DAMAGES.items(), *((json.dumps(value)[:60], json.dumps(value).encode()) for value in wrong)]
    if (file, kind)
    not in {("costs.json", "no entries"), ("row.json", "no entries")}  # nothing is known, and all is well
]


@pytest.mark.parametrize(("file", "content"), CONTENTS)
def test_every_damage_is_one_message(tmp_path: Path, file: str, content: bytes) -> None:
    cell = study(tmp_path)
    place = {"cells.json": tmp_path, "posegen.json": cell / "method"}.get(file, cell) / file
    place.parent.mkdir(exist_ok=True)
    place.write_bytes(content)
    uses: dict[str, Callable[[], Any]] = {
        "config.yaml": lambda: power_text(POWER, [cell], [cell]),
        "posegen.json": lambda: read_about(place.parent),
    }
    with pytest.raises(UserError) as told:
        uses.get(file, lambda: build_table(tmp_path))()
    message = str(told.value)
    assert message.startswith(str(place)) and not INTERNALS.search(message.replace(str(place), "")), message
    assert re.search(r"; .*(delete|run|name|expected|write)", message) or "expected" in message, message
    assert "format 1, this version reads format 1" not in message and len(message) < 1200


@pytest.mark.parametrize("content", DAMAGES.values(), ids=DAMAGES)
def test_progress_that_is_damaged_is_passed_over(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "progress.json").write_bytes(content)
    assert state_files.read_progress(tmp_path) == {}


@pytest.mark.parametrize(
    "text",
    [
        *("a: &a [*a]", "a: &x {b: 1}\nc: *x", "a: 1\na: 2", "a: !!python/object/apply:os.getcwd []", "a: ["),
        *("\ta: 1", "[" * 5000 + "]" * 5000, "? [a]\n: b", "a: 2020-99-99", "<<: 5"),
    ],
)
def test_a_yaml_file_that_asks_for_more_than_values(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=r"config\.yaml is not a readable yaml file \(.*; delete it and .*status\.json"):
        state_files.read_cell_config(tmp_path)


def test_what_posegen_writes_is_read_alike(tmp_path: Path) -> None:
    config = {"method": "a", "seed": 0, "study": "yes", "budget": {"steps": 4, "lr": 1e-05, "at": "1e-3", "n": "null"}}
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(config)))
    assert state_files.read_cell_config(tmp_path) == config


def test_bases_are_what_files_may_name(tmp_path: Path) -> None:
    for kind in (Adapter, Backbone):
        with pytest.raises(UserError):
            named_class("posegen.metrics.pose.PoseMetric", kind, "x", tmp_path)
