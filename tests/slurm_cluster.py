"""A Slurm of this machine alone: two nodes, without accounting, in a folder and on ports of its own.

Debian's packages are enough (``apt-get install --no-install-recommends slurm-wlm munge``). Whoever runs the tests runs
the daemons, too; they end with the block.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")
SBIN = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthInfo=socket={folder}/munge.sock
SlurmctldPort={port}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_interval=2
SchedulerType=sched/builtin
KillWait=5
MinJobAge={memory}
{nodes}
PartitionName=main Nodes={names} Default=YES MaxTime=INFINITE OverTimeLimit=0 State=UP
"""


def missing() -> str:
    """Why no cluster can be started here; empty where one can."""
    absent = [name for name in PROGRAMS if shutil.which(name, path=SBIN) is None]
    return f"{', '.join(absent)} not installed (Debian: slurm-wlm, munge)" if absent else ""


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@dataclass
class Cluster:
    folder: Path
    nodes: tuple[str, ...]

    def __call__(self, *words: str) -> str:
        """What a command of Slurm's prints."""
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout

    def jobs(self) -> dict[str, str]:
        """Job or task of an array -> its state, of all that wait or run."""
        lines = self("squeue", "--noheader", "--array", "--format=%i %T").splitlines()
        return dict(line.split() for line in lines)

    def wait(self, ready: Callable[[], object], seconds: float = 300.0) -> None:
        """Until ``ready()`` says something."""
        deadline = time.monotonic() + seconds
        while not ready():
            assert time.monotonic() < deadline, self("scontrol", "show", "jobs")
            time.sleep(0.1)


@contextmanager
def cluster(folder: Path, nodes: tuple[str, ...] = ("node0", "node1"), memory: int = 300) -> Iterator[Cluster]:
    """Starts it; ``memory``: for how many seconds it remembers a job that has ended. Its commands find it through
    SLURM_CONF, which whoever calls this sets."""
    folder.mkdir(parents=True)
    for name in ("state", "spool"):
        (folder / name).mkdir()
    names = subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()
    facts = {"host": socket.gethostname().split(".")[0], "user": names, "folder": folder, "port": free_port()}
    each = f"NodeHostname={facts['host']} NodeAddr=127.0.0.1 CPUs=16 RealMemory=200000"
    lines = [f"NodeName={name} {each} Port={free_port()}" for name in nodes]
    text = CONF.format(**facts, nodes="\n".join(lines), names=",".join(nodes), memory=memory)
    (folder / "slurm.conf").write_text(text)
    (folder / "munge.key").write_bytes(os.urandom(1024))
    (folder / "munge.key").chmod(0o600)
    env = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf"), "PATH": SBIN}
    files = [f"--{name}={folder}/munged.{name}" for name in ("pid-file", "log-file", "seed-file")]
    munge = [f"--key-file={folder}/munge.key", f"--socket={folder}/munge.sock"]
    daemons = [["munged", "--force", *munge, *files], ["slurmctld", "-c"], *(["slurmd", "-N", node] for node in nodes)]
    try:
        for daemon in daemons:
            said = subprocess.run(daemon, env=env, capture_output=True, text=True, timeout=30, check=False)
            assert said.returncode == 0, f"{daemon}: {said.stdout}{said.stderr}"
        found = Cluster(folder, nodes)
        deadline = time.monotonic() + 30
        while True:
            said = subprocess.run(["sinfo", "-h", "-N", "-o", "%T"], env=env, capture_output=True, text=True)
            if said.stdout.split() == ["idle"] * len(nodes):
                break
            assert time.monotonic() < deadline, said.stdout + said.stderr
            time.sleep(0.2)
        yield found
    finally:
        subprocess.run(["scancel", "-f", "-s", "KILL", "--me"], env=env, capture_output=True, check=False)
        for file in sorted(folder.glob("*pid*"), reverse=True):  # slurmd, slurmctld, munged
            with contextlib.suppress(OSError, ValueError):
                end(int(file.read_text()))


def end(pid: int) -> None:
    """Ends a daemon of ours and waits for it."""
    os.kill(pid, signal.SIGTERM)
    for _ in range(100):
        os.kill(pid, 0)
        time.sleep(0.1)
    os.kill(pid, signal.SIGKILL)
