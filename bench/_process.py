"""Running a command to its end: wall time, processor time, peak memory, what it printed."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pgvacancy.lab.cluster import die_with_parent

DEADLINE_S = 60.0
PGVACANCY = str(Path(sys.executable).parent / "pgvacancy")

# The peak that wait4() tells of a child counts the memory of the process it was forked from, so a small one forks.
_STARTER = """
import json, os, resource, subprocess, sys
done = subprocess.run(sys.argv[2:], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
json.dump([done.returncode, peak, done.stderr.decode("utf-8", "replace")], open(sys.argv[1], "w"))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """A process that has ended. ``elapsed_s`` is wall time, ``cpu_s`` user and system time together."""

    status: int
    elapsed_s: float
    cpu_s: float
    stdout: str
    stderr: str


def environment(more: Mapping[str, str]) -> dict[str, str]:
    """What a user's shell would give: installed programs find their modules compiled, and print no colours here."""
    kept = {k: v for k, v in os.environ.items() if k not in {"PYTHONDONTWRITEBYTECODE", "PYTHONPROFILEIMPORTTIME"}}
    return {**kept, "NO_COLOR": "1", **more}


def run(command: Sequence[str], *, env: Mapping[str, str] | None = None, deadline_s: float = DEADLINE_S) -> Finished:
    """Run a command; it is killed when ``deadline_s`` have passed."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        begun = time.perf_counter()
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            env=environment(env or {}),
            preexec_fn=die_with_parent,  # noqa: PLW1509 - prctl() only, which is safe between fork and exec
        )
        try:
            status = process.wait(deadline_s)
        except subprocess.TimeoutExpired:
            process.kill()
            status = process.wait()
        elapsed = time.perf_counter() - begun
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        out.seek(0)
        err.seek(0)
        return Finished(
            status=status,
            elapsed_s=elapsed,
            cpu_s=after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
            stdout=out.read().decode("utf-8", "replace"),
            stderr=err.read().decode("utf-8", "replace"),
        )


def peak_memory(command: Sequence[str], *, deadline_s: float = DEADLINE_S) -> tuple[int, int, str]:
    """Exit status, peak resident memory in bytes and standard error of a command."""
    with tempfile.NamedTemporaryFile("r", suffix=".json") as answer:
        starter = run([sys.executable, "-I", "-S", "-c", _STARTER, answer.name, *command], deadline_s=deadline_s)
        text = answer.read()
        if not text:
            return starter.status, 0, starter.stderr
        status, peak, stderr = json.loads(text)
        return int(status), int(peak), str(stderr)


def interleaved(
    commands: Mapping[str, Sequence[str]], *, rounds: int, env: Mapping[str, str] | None = None
) -> dict[str, list[Finished]]:
    """Run every command once in each round, so that what disturbs the machine disturbs all of them alike.

    One round before the first is thrown away: it fills the caches.
    """
    taken: dict[str, list[Finished]] = {name: [] for name in commands}
    for number in range(rounds + 1):
        for name, command in commands.items():
            done = run(command, env=env)
            if number:
                taken[name].append(done)
    return taken


def yardstick_ms() -> float:
    """Processor time of always the same sum, the median of five: how quick this machine is just now."""
    taken = []
    for _ in range(5):
        begun = time.process_time()
        sum(range(2_000_000))
        taken.append((time.process_time() - begun) * 1000)
    return sorted(taken)[2]


def note(text: str) -> None:
    """Progress, to standard error."""
    print(f"bench: {text}", file=sys.stderr, flush=True)
