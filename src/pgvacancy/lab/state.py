"""The lab that outlives a command: where it is, what runs in it, and how to leave nothing behind."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from pgvacancy.lab.binaries import lab_root
from pgvacancy.lab.cluster import Cluster
from pgvacancy.lab.scenario import Scenario
from pgvacancy.model.errors import LabError

STOP_DEADLINE_S = 15.0
FAULT_DEADLINE_S = 90.0


@dataclass
class Identity:
    """A process, told apart from a later one with the same pid."""

    pid: int
    started_at: float

    @classmethod
    def of(cls, pid: int) -> Identity:
        """The process that has this pid now."""
        return cls(pid, psutil.Process(pid).create_time())

    def process(self) -> psutil.Process | None:
        """The process, when it still runs."""
        try:
            found = psutil.Process(self.pid)
            alive = abs(found.create_time() - self.started_at) < 1 and found.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return None
        return found if alive else None

    def stop(self, how: int) -> None:
        """Signal it and wait until it has gone; kill it when it does not go."""
        found = self.process()
        if found is None:
            return
        with contextlib.suppress(psutil.Error):
            found.send_signal(how)
            try:
                found.wait(STOP_DEADLINE_S)
            except psutil.TimeoutExpired:
                found.kill()
                found.wait(STOP_DEADLINE_S)


@dataclass
class LabState:
    """What the state file holds."""

    directory: str
    pg_bin: str
    port: int
    settings: dict[str, str]
    hba: list[str]
    fault: Identity | None = None
    cause: str = ""
    doctor: list[str] = field(default_factory=list)
    """Arguments with which the doctor sees the fault."""

    @property
    def url(self) -> str:
        """The server's DSN, as a superuser."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    def server(self) -> psutil.Process | None:
        """The postmaster of the lab's data directory, which a fault may have restarted; None when none runs."""
        return _postmaster(Path(self.directory))

    @property
    def running(self) -> bool:
        """Whether the server still runs."""
        return self.server() is not None

    def cluster(self) -> Cluster:
        """The running server."""
        process = self.server()
        if process is None:
            raise LabError("the lab's server does not run any more", next="pgvacancy lab down && pgvacancy lab up")
        return Cluster.attach(
            Path(self.directory), Path(self.pg_bin), self.port, self.settings, tuple(self.hba), process.pid
        )

    def save(self) -> None:
        """Write the state file, whole or not at all."""
        path = state_file()
        partial = path.with_suffix(".new")
        partial.write_text(json.dumps(asdict(self)))
        partial.replace(path)


def state_file() -> Path:
    """Where the state is kept."""
    return lab_root() / "lab.json"


def read_state() -> LabState | None:
    """The lab that is up, or was before a crash; None when there is none."""
    try:
        raw: dict[str, Any] = json.loads(state_file().read_text())
        raw["fault"] = Identity(**raw["fault"]) if raw["fault"] else None
        return LabState(**raw)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError):
        return None


def _postmaster(directory: Path) -> psutil.Process | None:
    """The server that runs in a private directory; None when there is none."""
    try:
        pid = int((directory / "data" / "postmaster.pid").read_text().splitlines()[0])
        found = psutil.Process(pid)
        # The pid may belong to somebody else since a crash: a server of ours names its directory.
        ours = str(directory) in " ".join(found.cmdline()) and found.status() != psutil.STATUS_ZOMBIE
    except (OSError, ValueError, IndexError, psutil.Error):
        return None
    return found if ours else None


def up(cluster: Cluster) -> LabState:
    """Start a server that outlives this command."""
    cluster.create()
    try:
        cluster.start()
        state = LabState(
            directory=str(cluster.directory),
            pg_bin=str(cluster.bin),
            port=cluster.port,
            settings=dict(cluster.settings),
            hba=list(cluster.hba),
        )
        state.save()
    except BaseException:
        cluster.destroy()
        raise
    return state


def run(state: LabState, scenario: Scenario, *, look_alike: bool = False) -> LabState:
    """Make a fault happen, by a process that keeps its clients until the lab goes down. Ends the fault before."""
    stop_fault(state)
    log = Path(state.directory) / "fault.log"
    arguments = [sys.executable, "-m", "pgvacancy.lab.supervisor", scenario.slug]
    with log.open("wb") as errors:
        process = subprocess.Popen(
            [*arguments, *(["--look-alike"] if look_alike else [])],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,
        )
    state.fault, state.cause = Identity.of(process.pid), scenario.slug
    state.save()
    try:
        line = process.stdout.readline().decode() if process.stdout is not None else ""
    except KeyboardInterrupt:
        stop_fault(state)
        raise
    answer = json.loads(line) if line else None
    if not isinstance(answer, list):
        stop_fault(state)
        seen = log.read_text(errors="replace").strip().splitlines()
        what = answer or {"seen": " | ".join(seen[-3:]), "next": "pgvacancy lab down"}
        raise LabError(f"the fault {scenario.slug} could not be made", **what)
    state.doctor = answer
    state.save()
    return state


def stop_fault(state: LabState) -> None:
    """End the clients of the fault that is on."""
    if state.fault is not None:
        state.fault.stop(signal.SIGTERM)
        state.fault, state.cause, state.doctor = None, "", []
        state.save()


def down() -> list[str]:
    """End everything and remove everything, also what a crash left; what was done, in lines."""
    done: list[str] = []
    state = read_state()
    if state is not None:
        if state.fault is not None and state.fault.process() is not None:
            state.fault.stop(signal.SIGTERM)
            done.append(f"ended the clients of {state.cause}")
        server = state.server()
        if server is not None:
            Identity.of(server.pid).stop(signal.SIGINT)
            done.append("stopped the server")
        shutil.rmtree(state.directory, ignore_errors=True)
    state_file().unlink(missing_ok=True)
    for directory in lab_root().glob("c-*"):
        if _abandoned(directory):
            shutil.rmtree(directory, ignore_errors=True)
            done.append(f"removed {directory.name}, left by a run that crashed")
    forget_templates()
    return done


def forget_templates() -> None:
    """Remove the templates too when nobody uses this laboratory now; they are made anew in a second."""
    if read_state() is None and not any(lab_root().glob("c-*")):
        shutil.rmtree(lab_root(), ignore_errors=True)


def _abandoned(directory: Path) -> bool:
    """Whether no server runs in a private directory and none is being made there."""
    if _postmaster(directory) is not None:
        return False
    made = (directory / "data" / "postmaster.pid").exists()
    return made or time.time() - directory.stat().st_mtime > START_GRACE_S


START_GRACE_S = 60.0
"""A directory without a server may belong to one that is just being made."""
