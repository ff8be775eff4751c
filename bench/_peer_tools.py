"""Other command-line tools that look at sessions: how to get them, and how their users call them."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench._process import PGVACANCY, environment, note, run
from bench._table import ROOT
from pgvacancy.lab.cluster import Cluster

PEERS = ROOT / ".cache" / "peers"
PG_ACTIVITY = ("pg_activity==3.6.2", "psycopg[binary]==3.3.9")
PACKAGES = {
    "check_postgres": ("check-postgres", ("/usr/bin/check_postgres",)),
    "check_pgactivity": ("check-pgactivity", ("/usr/lib/nagios/plugins/check_pgactivity", "/usr/bin/check_pgactivity")),
}
SCREEN_DEADLINE_S = 8.0
_ESCAPE = re.compile(r"\x1b(?:\[[0-9;?]*[ -/]*[@-~]|[()][A-Z0-9]|[=>78]|\][^\x07]*\x07)")
"""Control sequences of a terminal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a tool said, and how long its user waited for it."""

    text: str
    elapsed_s: float
    status: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A tool: ``ask(cluster, role)`` calls it as its users do."""

    name: str
    version: str
    called: str
    ask: Callable[[Cluster, str], Answer]


def tools() -> tuple[list[Tool], list[str]]:
    """Those that are here or can be had, and a line on each that is not."""
    found: list[Tool] = []
    missing: list[str] = []
    activity = _pg_activity()
    if activity is None:
        missing.append("pg_activity: could not be installed into an environment of its own")
    else:
        found.append(activity)
    for name, (package, places) in PACKAGES.items():
        program = _packaged(package, places)
        if program is None:
            missing.append(f"{name}: not installed; as root it is taken from the distribution's package {package}")
        else:
            found.append(_monitoring_plugin(name, program))
    missing += [f"{name}: {why}" for name, why in _ELSEWHERE.items() if shutil.which(name) is None]
    return found, missing


_ELSEWHERE = {
    "pgmetrics": "not on the PATH, and the distribution (Debian 12) has no package of it",
    "pgcenter": "not on the PATH, and the distribution (Debian 12) has no package of it",
}


def _pg_activity() -> Tool | None:
    program = PEERS / "pg_activity" / "bin" / "pg_activity"
    if not program.exists():
        note(f"peers: installing {', '.join(PG_ACTIVITY)}")
        home = program.parents[1]
        made = run([sys.executable, "-m", "venv", str(home)], deadline_s=120)
        pip = [str(home / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        if made.status or run([*pip, *PG_ACTIVITY], deadline_s=300).status:
            shutil.rmtree(home, ignore_errors=True)
            return None

    def ask(cluster: Cluster, role: str) -> Answer:
        where = ["-h", "127.0.0.1", "-p", str(cluster.port), "-U", role, "-d", "postgres"]
        return _on_a_terminal([str(program), *where], until=re.compile(r"PostgreSQL \d+.*Waiting|FATAL:", re.DOTALL))

    version = run([str(program), "--version"]).stdout.split()
    return Tool(name="pg_activity", version=version[-1], called="pg_activity -h … -U ROLE (in a terminal)", ask=ask)


def _packaged(package: str, places: tuple[str, ...]) -> Path | None:
    here = [Path(p) for p in places if Path(p).exists()]
    if not here and os.geteuid() == 0 and shutil.which("apt-get"):
        note(f"peers: installing {package} from the distribution")
        install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", package]
        run(install, env={"DEBIAN_FRONTEND": "noninteractive"}, deadline_s=300)
        here = [Path(p) for p in places if Path(p).exists()]
    return here[0] if here else None


def _monitoring_plugin(name: str, program: Path) -> Tool:
    def ask(cluster: Cluster, role: str) -> Answer:
        if name == "check_postgres":
            arguments = ["--action=backends", "-H", "127.0.0.1", "-p", str(cluster.port), "-u", role, "-db", "postgres"]
        else:
            arguments = ["-s", "backends", "-h", "127.0.0.1", "-p", str(cluster.port), "-U", role]
            arguments += ["-w", "80%", "-c", "90%"]
        done = run([str(program), *arguments], deadline_s=30)
        return Answer(text=f"{done.stdout}\n{done.stderr}".strip(), elapsed_s=done.elapsed_s, status=str(done.status))

    version = re.search(r"\d+(\.\d+)+", run([str(program), "--version"]).stdout)
    called = "check_postgres --action=backends" if name == "check_postgres" else "check_pgactivity -s backends"
    return Tool(name=name, version=version.group() if version else "?", called=called, ask=ask)


def pgvacancy(observe_s: int, *more: str) -> Tool:
    """Ourselves, called in the same way."""

    def ask(cluster: Cluster, role: str) -> Answer:
        arguments = ["doctor", cluster.dsn(role), "--observe", str(observe_s), *more]
        done = run([PGVACANCY, *arguments], deadline_s=30)
        return Answer(text=f"{done.stdout}\n{done.stderr}".strip(), elapsed_s=done.elapsed_s, status=str(done.status))

    version = run([PGVACANCY, "--version"]).stdout.split()[-1]
    return Tool(name="pgvacancy", version=version, called=f"pgvacancy doctor --observe {observe_s}", ask=ask)


def _on_a_terminal(command: list[str], *, until: re.Pattern[str]) -> Answer:
    """Run a full-screen program on a terminal of 50 lines until its first screen stands, then leave with ``q``."""
    leader, follower = pty.openpty()
    begun = time.perf_counter()
    process = subprocess.Popen(
        ["/bin/sh", "-c", 'stty rows 50 cols 180; exec "$@"', "sh", *command],
        stdin=follower,
        stdout=follower,
        stderr=follower,
        start_new_session=True,
        env=environment({"TERM": "xterm"}),
    )
    os.close(follower)
    raw = b""
    text = ""
    answered_s = 0.0
    try:
        while time.perf_counter() - begun < SCREEN_DEADLINE_S:
            ready, _, _ = select.select([leader], [], [], 0.1)
            if ready:
                try:
                    raw += os.read(leader, 65536)
                except OSError:  # the program has ended
                    break
                text = _ESCAPE.sub("", raw.decode("utf-8", "replace"))
                if not answered_s and until.search(text):
                    answered_s = time.perf_counter() - begun
            # A second screen tells whether it can refresh; what is looked at is everything shown until then.
            if answered_s and time.perf_counter() - begun > answered_s + 2.5:
                os.write(leader, b"q")
                break
            if process.poll() is not None and not ready:
                break
        elapsed = time.perf_counter() - begun
        try:
            status = str(process.wait(2))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)
            status = f"ended by us, {process.wait(5)}"
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        os.close(leader)
    return Answer(text=text, elapsed_s=answered_s or elapsed, status=status)
