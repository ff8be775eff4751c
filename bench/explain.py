"""The commands that need no server: how long they take beside importing click, and what they import."""

from __future__ import annotations

import argparse
import sys
from statistics import median

from bench._process import PGVACANCY, interleaved, run
from bench._table import Table, spread, verdict

ROUNDS = 15
PROMISED = 3.0
ASKED = (["--help"], ["explain", "53300"], ["explain", "idle-sessions"])
DRIVERS = ("psycopg", "psycopg2", "asyncpg", "sqlalchemy")
HEAVY = (*DRIVERS, "pydantic", "rich", "asyncio")
_LIST = (
    "import sys; from pgvacancy.cli.main import main; main(sys.argv[1:]); "
    "print('\\n' + ' '.join(sorted({m.split('.')[0] for m in sys.modules})))"
)


def measure(options: argparse.Namespace) -> list[Table]:
    """Each command and ``python -c 'import click'`` in the same rounds."""
    rounds = options.rounds or ROUNDS
    commands = {" ".join(a): [PGVACANCY, *a] for a in ASKED}
    commands["click"] = [sys.executable, "-c", "import click"]
    taken = interleaved(commands, rounds=rounds)
    click_ms = [d.elapsed_s * 1000 for d in taken["click"]]
    rows: list[tuple[object, ...]] = []
    for arguments in ASKED:
        name = " ".join(arguments)
        elapsed = [d.elapsed_s * 1000 for d in taken[name]]
        ratios = [a / b for a, b in zip(elapsed, click_ms, strict=True)]
        loaded = set(run([sys.executable, "-c", _LIST, *arguments]).stdout.splitlines()[-1].split())
        if "click" not in loaded:
            raise ValueError(f"pgvacancy {name} did not tell its modules")
        drivers = [d for d in DRIVERS if d in loaded]
        others = [h for h in HEAVY if h in loaded and h not in drivers]
        rows.append(
            (
                f"`pgvacancy {name}`", median(elapsed), median(click_ms), median(ratios), spread(ratios),
                min(elapsed) / min(click_ms), PROMISED,
                verdict(median(ratios), PROMISED), ", ".join(drivers) or "none", ", ".join(others) or "none",
                {d.status for d in taken[name]} == {0},
            )
        )  # fmt: skip
    return [
        Table(
            title="Commands that need no server, beside `python -c 'import click'`",
            columns=(
                "command", "ms (median)", "import click ms (median)", "ratio (median)", "range", "quickest by quickest",
                "promised", "", "drivers imported", "other heavy modules imported", "status 0",
            ),
            rows=tuple(rows),
            notes=(f"{rounds} rounds, each command once in a round; the ratio is taken within a round.",),
        )
    ]  # fmt: skip
