"""Choose parts and measure: tables to standard output as Markdown, progress to standard error, JSON to .cache/bench."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import time
from collections.abc import Callable, Sequence

import psycopg

from bench._process import note, yardstick_ms
from bench._table import Table, save
from pgvacancy.model.errors import PgvacancyError

FAILURES = (PgvacancyError, psycopg.Error, OSError, ValueError)

PARTS = {
    "held": "sessions the doctor holds at each door",
    "sample": "server time of one sample, and memory of a run, at 100, 1,000 and 5,000 sessions",
    "doctor": "wall time of a doctor run beyond its imports, at 100 sessions",
    "explain": "pgvacancy --help and explain beside importing click",
    "full": "time to a diagnosis when every slot is taken",
    "peers": "the same question put to other command-line tools",
    "confidence": "whether a confidence of 0.9 is right nine times in ten",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the parts asked for, all by default. 3 when a part could not be measured."""
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="\n".join(f"  {name:<12}{what}" for name, what in PARTS.items()),
    )
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], metavar="PART", help="all when none is named")
    parser.add_argument("--rounds", type=int, help="readings or runs of each kind (each part has its own default)")
    parser.add_argument("--sizes", type=int, nargs="+", default=[100, 1000, 5000], help="sessions, for: sample")
    parser.add_argument("--causes", nargs="+", default=[], metavar="SLUG", help="for: confidence (default: all)")
    parser.add_argument("--seed", type=int, default=1, help="for: confidence")
    parser.add_argument("--minutes", type=float, help="for: confidence, no further run is begun after so long")
    options = parser.parse_args(arguments)
    failed = 0
    for part in options.parts or PARTS:
        begun = time.monotonic()
        load = f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores, yardstick {yardstick_ms():.0f} ms"
        note(f"{part}: {PARTS[part]} ({load})")
        measure: Callable[[argparse.Namespace], list[Table]] = importlib.import_module(f"bench.{part}").measure
        try:
            tables = measure(options)
        except FAILURES as error:  # the other parts are to be measured all the same
            failed = 3
            note(f"{part}: not measured: {type(error).__name__}: {error}")
            continue
        path = save(part, tables)
        note(f"{part}: {time.monotonic() - begun:.0f} s, {path}")
        for table in tables:
            print(table.markdown(), end="\n\n", flush=True)
        print(f"Machine at the beginning of this part: {load}.", end="\n\n", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
