"""Keeps the clients of a fault alive until told to stop. Started by ``pgvacancy lab run``.

Prints one line, the doctor's arguments as JSON, when the fault has been made; its clients die with it.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
from collections.abc import Mapping
from typing import Any

from pgvacancy.lab.lab import Lab
from pgvacancy.lab.scenario import load_scenario
from pgvacancy.lab.state import read_state
from pgvacancy.model.errors import PgvacancyError


def main(arguments: list[str]) -> int:
    """Make the fault, say so, wait."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda _number, _frame: stop.set())
    state = read_state()
    if state is None:
        sys.stderr.write("no lab is up\n")
        return 1
    scenario = load_scenario(arguments[0])
    lab = Lab(state.cluster())
    try:
        lab.furnish()
        if "--look-alike" in arguments:
            scenario.look_alike(lab)
        else:
            scenario.fault(lab)
        sys.stdout.write(json.dumps(_doctor(scenario.doctor(lab), scenario.thresholds, state.url)) + "\n")
        sys.stdout.close()
        stop.wait()
    except PgvacancyError as error:
        told = {"seen": f"{error.what}: {error.seen}", "tried": error.tried, "next": error.next}
        sys.stdout.write(json.dumps(told) + "\n")
        return error.exit_status
    finally:
        lab.stop_clients()
    return 0


def _doctor(wanted: Mapping[str, Any], thresholds: Mapping[str, float], url: str) -> list[str]:
    """The doctor's command line for this fault."""
    arguments = [str(wanted.get("dsn", url))]
    for name, flag in (("poolers", "--pgbouncer"), ("logs", "--log"), ("other_dsns", "--door")):
        for value in wanted.get(name, ()):
            arguments += [flag, str(value)]
    if wanted.get("host_only"):
        arguments.append("--host-only")
    for name, value in thresholds.items():
        arguments += ["--set", f"{name}={value:g}"]
    return arguments


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
