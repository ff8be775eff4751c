"""Wall time of a doctor run that does not observe, beyond the imports, at 100 sessions."""

from __future__ import annotations

import argparse
import sys
from statistics import median

from bench._crowd import crowd
from bench._process import PGVACANCY, Finished, interleaved, note, run
from bench._server import server
from bench._table import Table, spread, verdict

SESSIONS = 100
ROUNDS = 11
PROMISED_MS = 250.0
_LIST = (
    "import sys; from pgvacancy.cli.main import main; main(sys.argv[1:]); "
    "print('\\n' + ' '.join(m for m in sys.modules if not m.startswith('__')))"
)


def measure(options: argparse.Namespace) -> list[Table]:
    """The whole process beside processes that import what it imports, in the same rounds."""
    rounds = options.rounds or ROUNDS
    with server(SESSIONS + 10) as lab, crowd(lab.cluster.port, SESSIONS):
        asked = ["doctor", lab.cluster.dsn("monitor"), "--observe", "0", "--fail-on", "never"]
        loaded = run([sys.executable, "-c", _LIST, *asked]).stdout.splitlines()[-1].split()
        foreign = [m for m in loaded if m.split(".")[0] != "pgvacancy"]
        ours = [m for m in loaded if m.split(".")[0] == "pgvacancy"]
        note(f"doctor: {len(foreign)} modules of others, {len(ours)} of ours")
        commands = {
            "doctor": [PGVACANCY, *asked],
            "others": [sys.executable, "-c", _imports(foreign)],
            "all": [sys.executable, "-c", _imports(foreign + ours)],
            "bare": [sys.executable, "-c", "pass"],
            "named": [sys.executable, "-c", "import click, psycopg, rich.console"],
        }
        taken = interleaved(commands, rounds=rounds)
        wrong = {f"{name}: {d.status} {d.stderr[-200:]}" for name, all_ in taken.items() for d in all_ if d.status}
        if wrong:
            raise ValueError("; ".join(sorted(wrong)))
    whole, whole_cpu = _ms(taken["doctor"])
    rows: list[tuple[object, ...]] = []
    for name, what in (
        ("others", "the interpreter and the same modules of others (standard library, click, psycopg, rich)"),
        ("all", "the same and the same modules of pgvacancy"),
        ("named", "python -c 'import click, psycopg, rich.console'"),
        ("bare", "python -c pass"),
    ):
        base, base_cpu = _ms(taken[name])
        beyond = [a - b for a, b in zip(whole, base, strict=True)]
        busy = [a - b for a, b in zip(whole_cpu, base_cpu, strict=True)]
        promised: object = PROMISED_MS if name == "others" else "-"
        kept = verdict(median(beyond), PROMISED_MS) if name == "others" else "-"
        medians = (median(whole), median(base), median(beyond))
        rows.append((what, *medians, spread(beyond), min(whole) - min(base), median(busy), promised, kept))
    return [
        Table(
            title=f"Wall time of `doctor --observe 0` at {SESSIONS} sessions",
            columns=(
                "beyond", "doctor ms (median)", "that process ms (median)", "difference ms (median)", "range",
                "quickest run less quickest run, ms", "processor ms, difference (median)", "promised ms", "",
            ),
            rows=tuple(rows),
            notes=(
                f"{rounds} rounds, each command once in a round; the difference is taken within a round.",
                f"The doctor had {len(loaded)} modules loaded at its end, {len(ours)} of them pgvacancy's own.",
                "The processes beside it import exactly those, in the same order. All modules are compiled already.",
            ),
        )
    ]  # fmt: skip


def _ms(runs: list[Finished]) -> tuple[list[float], list[float]]:
    """Wall and processor times in milliseconds."""
    return [d.elapsed_s * 1000 for d in runs], [d.cpu_s * 1000 for d in runs]


def _imports(modules: list[str]) -> str:
    """A program that imports these; a few modules exist only as parts of others and cannot be named."""
    return (
        "import importlib\n"
        f"for name in {' '.join(modules)!r}.split():\n"
        "    try:\n        importlib.import_module(name)\n    except ImportError:\n        pass\n"
    )
