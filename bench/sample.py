"""What one sample costs the server, and what a whole run costs in memory, as the number of sessions grows."""

from __future__ import annotations

import argparse
import re
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from bench._crowd import KEEP_FREE_BYTES, crowd, free_memory_bytes
from bench._process import PGVACANCY, note, peak_memory
from bench._server import server
from bench._table import Table, middle, spread, verdict
from pgvacancy.lab.lab import Lab
from pgvacancy.observe.postgres.doors import enter
from pgvacancy.observe.postgres.session import ServerSession

READINGS = 21
WARM_UP = 3
PROMISED_MS = {100: 3.0, 1000: 10.0, 5000: 50.0}
PROMISED_BYTES = 150 * 1000 * 1000
BACKEND_BYTES = 3 * 1024**2
WAITERS = (50, 300)
OBSERVE_S = 3
_DURATION = re.compile(r"\[(\d+)\] .*duration: ([\d.]+) ms")


@dataclass(slots=True)
class Readings:
    """Milliseconds of each sample: by the server's own clock, by ours, and processor time of our backend."""

    server_ms: list[float] = field(default_factory=list)
    elapsed_ms: list[float] = field(default_factory=list)
    processor_ms: list[float] = field(default_factory=list)
    sessions: int = 0


def measure(options: argparse.Namespace) -> list[Table]:
    """Grow a crowd in steps; at each step take samples, then run the doctor for its memory."""
    rounds = options.rounds or READINGS
    sizes: list[int] = sorted(options.sizes)
    room = free_memory_bytes() - KEEP_FREE_BYTES
    kept = [s for s in sizes if s * BACKEND_BYTES < room]
    for size in set(sizes) - set(kept):
        note(f"sample: {size} sessions need about {size * BACKEND_BYTES / 1e9:.0f} GB, too much here: left out")
    rest: list[tuple[object, ...]] = []
    queue: list[tuple[object, ...]] = []
    memory: list[tuple[object, ...]] = []
    with server(max(kept) + max(WAITERS) + 60) as lab, ExitStack() as crowds:
        lab.cluster.sql("ALTER ROLE monitor SET log_duration = on")
        held = 0
        for size in kept:
            begun = time.monotonic()
            opened = crowds.enter_context(crowd(lab.cluster.port, size - held))
            held += opened["open"]
            note(f"sample: {held} sessions held after {time.monotonic() - begun:.0f} s")
            rest.append(_row(size, read(lab, rounds), PROMISED_MS.get(size)))
            memory.append((held, *_memory(lab)))
            for waiters in WAITERS if size == max(kept) else WAITERS[:1]:
                with crowd(lab.cluster.port, 0, waiters=waiters, user="web", name="checkout") as waiting:
                    queue.append((size, waiting["waiting"], *_row(size, read(lab, rounds), None)[2:-3]))
                _gone(lab, held)
    return [_at_rest(rest, rounds), _queueing(queue), _peaks(memory)]


def _gone(lab: Lab, held: int) -> None:
    lab.wait("the queue to be gone", lambda: lab.used_slots <= held)


def read(lab: Lab, rounds: int) -> Readings:
    """Take samples through the ordinary door and put three clocks beside each other."""
    taken = Readings()
    entry = enter(lab.cluster.dsn("monitor"))
    session = ServerSession(entry)
    try:
        session.prepare()
        for _ in range(WARM_UP):
            session.sample()
        pid = session.backend_pid
        for _ in range(rounds):
            offset = lab.cluster.log.stat().st_size
            before, begun = _processor_ms(pid), time.perf_counter()
            sample = session.sample()
            taken.elapsed_ms.append((time.perf_counter() - begun) * 1000)
            taken.processor_ms.append(_processor_ms(pid) - before)
            taken.server_ms.append(_logged_ms(lab.cluster.log, offset, pid))
            taken.sessions = len(sample.sessions)
    finally:
        session.close()
    return taken


def _processor_ms(pid: int) -> float:
    """Processor time of a process so far, from its scheduler's statistics: finer than the ticks of /proc/PID/stat."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e6


def _logged_ms(log: Path, offset: int, pid: int) -> float:
    """What the server says that the statements of a backend took, written to its log since ``offset``."""
    with log.open("rb") as f:
        f.seek(offset)
        text = f.read().decode("utf-8", "replace")
    return sum(float(ms) for found, ms in _DURATION.findall(text) if int(found) == pid)


def _row(size: int, taken: Readings, promised: float | None) -> tuple[object, ...]:
    median_ms = middle(taken.server_ms)
    return (
        size,
        taken.sessions,
        median_ms,
        spread(taken.server_ms),
        middle(taken.processor_ms),
        middle(taken.elapsed_ms),
        round(middle(taken.processor_ms) / size * 1000, 1),
        promised if promised is not None else "-",
        verdict(median_ms, promised) if promised is not None else "-",
        verdict(middle(taken.processor_ms), promised) if promised is not None else "-",
    )


def _memory(lab: Lab) -> tuple[object, ...]:
    begun = time.perf_counter()
    dsn = lab.cluster.dsn("monitor")
    status, peak, stderr = peak_memory([PGVACANCY, "doctor", dsn, "--observe", str(OBSERVE_S), "--fail-on", "never"])
    if status not in {0, 1}:
        raise ValueError(f"the doctor ended with {status}: {stderr[-300:]}")
    return round(peak / 1e6, 1), round(time.perf_counter() - begun, 1)


def _at_rest(rows: list[tuple[object, ...]], rounds: int) -> Table:
    return Table(
        title="Server time of one sample, idle sessions",
        columns=(
            "sessions", "rows read", "server ms (median)", "server ms, range", "backend processor ms (median)",
            "elapsed at us, ms (median)", "processor µs for each session", "promised ms", "by the server's clock",
            "by processor time",
        ),
        rows=tuple(rows),
        notes=(
            (
                f"{rounds} samples each after {WARM_UP} thrown away; every session ran one statement of 300"
                " characters and"
                " rests."
            ),
            (
                "server ms: the durations the server logs for the statements of the sample (log_duration), summed;"
                " sending the rows included."
            ),
            (
                "backend processor ms: run time of our backend from /proc/PID/schedstat. Elapsed at us: also the"
                " making of"
                " objects in Python."
            ),
        ),
    )  # fmt: skip


def _queueing(rows: list[tuple[object, ...]]) -> Table:
    return Table(
        title="Server time of one sample with sessions that wait for a lock besides",
        columns=(
            "idle sessions", "waiting", "server ms (median)", "server ms, range", "backend processor ms (median)",
            "elapsed at us, ms (median)", "processor µs for each idle session",
        ),
        rows=tuple(rows),
        notes=("pg_blocking_pids is asked for at most 200 waiting sessions in a sample.",),
    )  # fmt: skip


def _peaks(rows: list[tuple[object, ...]]) -> Table:
    last = rows[-1]
    return Table(
        title="Memory of a whole doctor run",
        columns=("sessions", "peak resident MB", "wall time s"),
        rows=tuple(rows),
        notes=(
            (
                f"`pgvacancy doctor --observe {OBSERVE_S}`, host evidence included; the peak the kernel tells of the"
                " ended process (ru_maxrss)."
            ),
            (
                f"promised at 5,000 sessions: {PROMISED_BYTES / 1e6:.0f} MB; at {last[0]:,} measured {last[1]} MB:"
                f" {verdict(float(str(last[1])) * 1e6, PROMISED_BYTES)}."
            ),
        ),
    )
