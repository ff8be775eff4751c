"""How long a complete diagnosis takes when every slot is taken, the superuser's reserve included."""

from __future__ import annotations

import argparse
import json
from statistics import median

from bench._crowd import crowd
from bench._process import PGVACANCY, note, run
from bench._server import server
from bench._table import Table, spread, verdict

MAX_CONNECTIONS = (20, 100)
WINDOWS_S = (0, 1, 3)
ROUNDS = 5


def measure(options: argparse.Namespace) -> list[Table]:
    """With the superuser's DSN, as a process."""
    rounds = options.rounds or ROUNDS
    rows: list[tuple[object, ...]] = []
    for limit in MAX_CONNECTIONS:
        with server(limit) as lab, crowd(lab.cluster.port, limit, user="postgres") as held:
            for window_s in WINDOWS_S:
                note(f"full: {held['open']} of {limit} slots taken, --observe {window_s}")
                asked = [PGVACANCY, "doctor", lab.cluster.dsn(), "--observe", str(window_s), "--format", "json"]
                done = [run(asked) for _ in range(rounds)]
                answers = [json.loads(d.stdout) for d in done]
                elapsed = [d.elapsed_s for d in done]
                promised = window_s + 1.0
                rows.append(
                    (
                        limit, ", ".join(sorted({a["access"]["door"] for a in answers})),
                        min(a["ledger"]["used"] for a in answers), window_s, median(elapsed), spread(elapsed),
                        promised, verdict(median(elapsed), promised),
                        ", ".join(sorted({a["findings"][0]["cause"] if a["findings"] else "none" for a in answers})),
                    )
                )  # fmt: skip
    return [
        Table(
            title="Time to a complete diagnosis with every slot taken",
            columns=(
                "max_connections", "door", "slots used", "--observe s", "whole process s (median)", "range",
                "promised s", "", "first finding",
            ),
            rows=tuple(rows),
            notes=(
                (
                    f"{rounds} runs each of `pgvacancy doctor --format json` with a superuser's DSN; all slots are held"
                    " by"
                    " superuser sessions that rest, so that the reserve is gone too."
                ),
                "With default thresholds these sessions are too young to be called idle; what matters here is time.",
            ),
        )
    ]  # fmt: skip
