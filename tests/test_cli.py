"""The command line: verbs, Hydra's flags, errors as one message, listing and completion, all without torch."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from posegen import cli
from posegen.config import groups as listing
from posegen.config.app import Command, run_verb
from posegen.config.verb_files import VERB_FOLDER, Verb, verbs
from posegen.errors import UserError
from posegen.verbs.completion import Line, completions
from tests.tiny import require_right_names

HEAVY = {"torch", "lightning", "diffusers", "transformers", "pandas", "wandb"}


def posegen(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs the command line in a process of its own, which fails if it imports anything heavy."""
    code = f"""
import sys
from posegen.cli import main
try:
    code = main(sys.argv[1:])
except SystemExit as end:
    code = end.code
heavy = {HEAVY!r} & set(sys.modules)
sys.exit(f"imported {{heavy}}" if heavy else code)"""
    return subprocess.run(
        [sys.executable, "-c", code, *words],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
    )


def run_world(*words: str) -> int:
    """``posegen train`` in the small world."""
    return run_verb(Verb("train"), words, import_module("world").run)


# Help.


def test_help_opens_with_examples_and_names_every_verb_and_group() -> None:
    result = posegen("--help")
    assert result.returncode == 0, result.stderr
    assert result.stdout.split("\n\n")[1] == cli.EXAMPLES
    for name in (*verbs(), "adapter", "backbone", "hydra/launcher"):
        assert f"\n  {name} " in result.stdout


@pytest.mark.parametrize(
    "words",
    [
        ("list",),
        ("list", "adapters"),
        ("train", "--help"),
        ("benchmark", "--help"),
        ("train", "--cfg", "job"),
        ("train", "--info", "defaults"),
        ("check", "--help"),
    ],
    ids=" ".join,
)
def test_questions_are_answered_without_importing_anything_heavy(words: tuple[str, ...]) -> None:
    result = posegen(*words)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()


def test_help_of_a_verb_opens_with_its_examples() -> None:
    result = posegen("train", "--help")
    assert result.stdout.split("\n\n")[1].lstrip().startswith("posegen train"), result.stderr
    assert "controlnet" in result.stdout.partition("Groups (")[2]


def examples() -> list[str]:
    texts = [
        cli.EXAMPLES,
        *(file.read_text() for file in sorted(listing.conf_dir().glob("*.yaml"))),
    ]
    lines = [
        line.strip()
        for text in texts
        for line in text.splitlines()
        if line.strip().startswith("posegen ") and "--help" not in line
    ]
    return [line.split("  ")[0] for line in lines]


@pytest.mark.parametrize("line", examples())
def test_examples_in_the_help_are_right(line: str) -> None:
    _, verb, *words = shlex.split(line)
    assert verb in verbs()
    if verb == "check":
        verb, *words = words or ["train"]
    if verb in listing.primaries():
        require_right_names(verb, words)


def test_without_words_the_help_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    assert "Verbs" in capsys.readouterr().out


# Verbs.


def test_unknown_verb_gets_the_nearest_and_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["trian"]) == 2
    message = capsys.readouterr().err
    assert "did you mean train?" in message
    assert all(verb in message for verb in verbs())


def test_lightnings_other_processes_name_the_verb_as_hydra_does(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--config-name", "trian", "seed=1"]) == 2
    assert "trian: no such verb; did you mean train?" in capsys.readouterr().err
    seen: list[list[str]] = []
    before = list(sys.argv)
    assert run_verb(Verb("train"), ["out=x", "seed=3"], lambda cfg: seen.append(sys.argv[1:])) == 0
    assert seen == [["--config-name", "train", "out=x", "seed=3"]]
    assert sys.argv == before


def test_overrides_may_stand_on_both_sides_of_flags() -> None:
    command = Command.read("train", ["a=1", "-m", "b=2", "--cfg", "job", "c=3"])
    assert (command.flags, command.keys) == ({"--multirun": None, "--cfg": "job"}, ("a=1", "b=2", "c=3"))
    command = Command.read("train", ["--info", "a=1"])
    assert (command.flags, command.keys) == ({"--info": None}, ("a=1",))


def test_sweep_goes_on_after_a_failed_cell(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_world("out=out", "seed=1,2", "fail=user,null", "-m") == 1
    assert {file.name for file in (tree / "out").iterdir()} == {"1.txt", "2.txt"}
    assert "posegen train: failed in cell 1" in capsys.readouterr().err


def test_resolvers_work_in_worker_processes_and_each_worker_sees_its_gpu(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    monkeypatch.setenv("PYTHONPATH", str(tree))
    launcher = Path(__file__).parents[1] / "conf" / "hydra" / "launcher"
    (tree / "conf" / "hydra").mkdir()
    (tree / "conf" / "hydra" / "launcher").symlink_to(launcher)
    assert run_world("out=out", "seed=1,2,3,4", "-m", "hydra/launcher=local") == 0
    words = [file.read_text().split() for file in sorted((tree / "out").iterdir())]
    assert len(words) == 4
    assert all(asset.endswith("posegen/assets/thing") and gpu in ("3", "5") for asset, gpu in words)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3,5"


DEADLY = """
import os, signal

def run(cfg):
    if cfg.seed == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    if cfg.seed == 3:
        raise SystemExit(0)
    return __import__("world").run(cfg)
"""


def test_a_killed_worker_fails_its_cell_alone_and_leaves_its_gpu_to_the_next(
    tree: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")
    monkeypatch.setenv("PYTHONPATH", str(tree))
    (tree / "deadly.py").write_text(DEADLY)
    (tree / "conf" / "hydra").mkdir()
    (tree / "conf" / "hydra" / "launcher").symlink_to(Path(__file__).parents[1] / "conf" / "hydra" / "launcher")
    words = ["out=out", "seed=1,2,3,4", "-m", "hydra/launcher=local"]
    assert run_verb(Verb("train"), words, import_module("deadly").run) == 1
    said = capsys.readouterr()
    assert "posegen train: the process of this cell was killed by SIGKILL (9), perhaps because" in said.err
    assert "seed=2: the process of this cell was killed" in " ".join(said.out.split())
    assert {file.name: file.read_text().split()[1] for file in (tree / "out").iterdir()} == {"1.txt": "5", "4.txt": "5"}


def test_cells_are_planned_as_hydra_runs_them(tree: Path) -> None:
    words = ["adapter=reference/real,method", "+adapter.layers=1,2", "hydra/launcher=basic"]
    ran: list[tuple[float, int, int]] = []
    facts = lambda cfg: (cfg.adapter.strength, cfg.adapter.layers, cfg.seed)  # noqa: E731
    assert run_verb(Verb("benchmark"), words, lambda cfg: ran.append(facts(cfg))) == 0
    assert [facts(cfg) for cfg, _ in Command.read("benchmark", words).cells()] == ran
    assert len(ran) == 8 and ran[:3] == [(0, 1, 0), (0, 2, 0), (0, 1, 1)]
    with pytest.raises(UserError, match="PosePrior generates poses"):
        list(Command.read("benchmark", []).cells())


# Errors.


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            ["adapter=methd"],
            "adapter=methd: no such option; did you mean method? available: method, prior, reference/real",
        ),
        (["adapter=real"], "did you mean reference/real?"),
        (["adaptr=method"], "adaptr=method: no such group or key; did you mean adapter?"),
        (
            ["adapter.strenght=2"],
            "adapter.strenght=2: Method takes no such argument; did you mean strength? available: channels, drawing, ",
        ),
        (["optm.decay=2"], "optm: no such group or key; did you mean optim?"),
        (["method"], "method: expected group=option or key=value; did you mean adapter=method?"),
        (["seed=0,1"], "add --multirun"),
        (["--multirn"], "--multirn: no such flag; did you mean --multirun?"),
        (["hydra/launcher=bsic"], "hydra/launcher=bsic: no such option"),
        (["hydra/launcher=submitit_pbs"], "pip install 'posegen[sweep]'"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_misspelt_words_get_one_message(
    tree: Path, capsys: pytest.CaptureFixture[str], words: list[str], expected: str
) -> None:
    assert run_world("out=out", *words) == 1
    message = capsys.readouterr().err
    assert expected in message
    assert "Traceback" not in message
    assert message.startswith("posegen train: ")


def test_all_misspelt_words_are_told_at_once(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_world("out=out", "adapter=methd", "optim.bach=3", "sed=1") == 1
    message = capsys.readouterr().err
    assert "3 problems:" in message
    assert all(f"did you mean {right}?" in message for right in ("method", "batch", "seed"))


def test_error_of_a_job_is_one_message(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_world("out=out", "fail=user") == 1
    assert capsys.readouterr().err == "posegen train: failed in cell 0\nPOSEGEN_TRACEBACK=1 shows where it happened.\n"


def test_traceback_on_demand_and_for_bugs(
    tree: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_world("out=out", "fail=bug") == 1
    assert "Traceback" in capsys.readouterr().err
    monkeypatch.setenv("POSEGEN_TRACEBACK", "1")
    assert run_world("out=out", "fail=user") == 1
    assert "Traceback" in capsys.readouterr().err


def test_missing_value_is_named(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_world() == 1
    assert "out" in capsys.readouterr().err


# Listing.


def test_list_tells_what_options_are(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list", "adapters"]) == 0
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.strip().splitlines()]
    assert lines[0] == ["adapter"]
    assert dict(lines[1:]) == {"method": "Draws the pose", "prior": "Makes poses", "reference/real": "Real images"}


def test_list_names_the_nearest_group(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list", "adaptors"]) == 1
    assert "did you mean adapter?" in capsys.readouterr().err


def test_other_packages_are_listed_by_their_source_alone(
    tree: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = "A method of another package  [Their paper, arXiv:8765.4321]"
    assert cli.main(["list", "adapters", "--config-dir", "their/conf"]) == 0
    assert expected in capsys.readouterr().out
    assert cli.main(["list", "adapters", "hydra.searchpath=[pkg://their.conf]"]) == 0
    assert expected in capsys.readouterr().out
    monkeypatch.setenv("POSEGEN_SEARCHPATH", "pkg://their.conf")
    assert cli.main(["list", "adapters"]) == 0
    assert expected in capsys.readouterr().out
    assert "their.method" not in sys.modules


@pytest.mark.parametrize("words", [["--config-dir", "their/conf"], ["hydra.searchpath=[pkg://their.conf]"], []])
def test_other_packages_options_can_be_chosen(tree: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
    if not words:
        monkeypatch.setenv("POSEGEN_SEARCHPATH", "pkg://their.conf")
    chosen: list[str] = []
    assert (
        run_verb(Verb("train"), ["out=out", "adapter=theirs", *words], lambda cfg: chosen.append(cfg.adapter._target_))
        == 0
    )
    assert chosen == ["their.method.Theirs"]


# Completion.


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("posegen trai", ["train "]),
        ("posegen train adap", ["adapter.", "adapter="]),
        ("posegen train adapter=", ["adapter=method", "adapter=prior", "adapter=reference/real"]),
        ("posegen train -m adapter=method,p", ["adapter=method,prior"]),
        ("posegen train adapter.", ["adapter.recipes.", "adapter.strength="]),
        ("posegen train adapter=prior adapter.", []),
        ("posegen train adapter=nonsense optim.b", ["optim.batch="]),
        ("posegen train backbone=small optim.batch=", ["optim.batch=32"]),
        ("posegen train +exp", ["+experiment="]),
        ("posegen train --mul", ["--multirun"]),
        ("posegen train --config-dir their/conf adapter=th", ["adapter=theirs"]),
        ("posegen check be", ["benchmark "]),
        ("posegen check train see", ["seed="]),
        ("posegen list ad", ["adapter "]),
        ("posegen completion b", ["bash "]),
        ("posegen completion f", ["fish "]),
        ("posegen train trainer.precision=b", ["trainer.precision=bf16-mixed"]),
        ("posegen train -m progress=bar,", ["progress=bar,bar", "progress=bar,file", "progress=bar,none"]),
        ("posegen train compute.channels_last=", ["compute.channels_last=false", "compute.channels_last=true"]),
        ("posegen train --config-dir the", ["their/"]),
        ("posegen nonsense a", []),
    ],
)
def test_completion(tree: Path, line: str, expected: list[str]) -> None:
    assert completions(line) == expected


@pytest.mark.parametrize(
    ("line", "expected", "cut"),
    [
        ("posegen sample poses=", ["poses=it's/", "poses=my folder/", "poses=pose.json "], 6),
        ("posegen sample poses=my\\ fo", ["poses=my folder/"], 6),
        ('posegen sample prompts="my folder/', ["prompts=my folder/pose (1).json "], 8),
        ("posegen sample source='my f", ["source=my folder/"], 7),
        ("posegen sample 'poses=it", ["poses=it's/"], 0),
        ("posegen train backbone.path=pose", ["backbone.path=pose.json "], 14),
        ("posegen report ", ["it's/", "my folder/", "pose.json "], 0),
        ("posegen report pos", ["pose.json ", "poses="], 0),
        ("posegen report poses=", ["poses=32"], 6),
        ("posegen sample checkpoint=.hi", ["checkpoint=.hidden/"], 11),
        ("posegen sample checkpoint=nowhere/", [], 11),
    ],
)
def test_files_complete_where_a_key_takes_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, expected: list[str], cut: int
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("my folder/pose (1).json", "pose.json", "it's/a.png", ".hidden/b"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).touch()
    assert completions(line) == expected
    assert Line.read(line).cut == cut


def test_the_choices_of_a_class_complete_without_importing_it() -> None:
    assert completions("posegen train sampler.long_prompts=") == [
        "sampler.long_prompts=cut",
        "sampler.long_prompts=chunk",
    ]
    lines = completions("posegen train backbone=sd15 backbone.initialise=")
    assert lines == ["backbone.initialise=pretrained", "backbone.initialise=random"]


def test_the_module_is_the_command() -> None:
    words = [sys.executable, "-m", "posegen", "--help"]
    result = subprocess.run(words, capture_output=True, text=True, env=dict(os.environ), check=False)
    assert (result.returncode, result.stdout.rstrip()) == (0, posegen("--help").stdout.rstrip())


def test_completion_answers_without_importing_anything_heavy() -> None:
    result = posegen("-sc", "query", COMP_LINE="posegen train optim.ba")
    assert (result.returncode, result.stdout) == (0, "optim.batch=\n"), result.stderr


def test_bash_completes_behind_the_equals_sign(tmp_path: Path) -> None:
    (tmp_path / "posegen").write_text(f'#!/bin/sh\nexec {sys.executable} -m posegen "$@"\n')
    (tmp_path / "posegen").chmod(0o755)
    script = """
eval "$(posegen completion bash)"
COMP_LINE="posegen train trainer=sm"; COMP_POINT=${#COMP_LINE}; _posegen
printf '%s\\n' "${COMPREPLY[@]}"
"""
    environment = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    result = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=environment, check=False)
    assert result.stdout == "smoke\n", result.stderr


def test_completion_of_another_shell_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["completion", "tcsh"]) == 1
    assert "tcsh: expected one of bash, zsh, fish" in capsys.readouterr().err


def test_positional_words_become_the_list_that_the_yaml_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a,b=1").mkdir()
    words = ["a,b=1", "it's", "column=AP", "seeds=1,3", "-x"]
    command = Command.read("power", words[:-1])
    cfg = command.base()
    assert (cfg.cells, cfg.seeds, cfg.column) == (["a,b=1", "it's"], [1, 3], "AP")
    with pytest.raises(UserError, match="-x: no such flag"):
        Command.read("power", words)


def test_a_verb_is_a_file_and_its_yaml() -> None:
    for verb in verbs().values():
        assert verb.summary and (listing.conf_dir() / f"{verb.name}.yaml").is_file(), verb.name
        text = (VERB_FOLDER / f"{verb.name}.py").read_text()
        assert ("\ndef main(cfg: DictConfig)" in text) or verb.starts, verb.name


def test_broken_yaml_is_named_with_its_line(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tree / "conf" / "adapter" / "broken.yaml").write_text("_target_: world.Method\nstyle: [a\nsize: 3\n")
    for words in (["train", "out=out", "adapter=broken"], ["check", "train", "out=out", "adapter=broken"]):
        assert cli.main(words) == 1
        message = capsys.readouterr().err
        assert "adapter/broken.yaml, line 3" in message and "Traceback" not in message


def test_closed_pipe_is_no_error() -> None:
    result = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {sys.executable} -m posegen train --help | head -1"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")
