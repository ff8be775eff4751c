"""The trial of a cause on a real server: baseline quiet, look-alike quiet, fault found first, remedy quiet again.

The tests, the benchmark of confidence and ``pgvacancy lab trial`` share it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pgvacancy.causes import diagnose
from pgvacancy.lab.lab import Lab
from pgvacancy.lab.scenario import Scenario
from pgvacancy.model.diagnosis import Diagnosis
from pgvacancy.observe.observation import INTERVAL_S, Request, observe


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of a trial and what the doctor said."""

    name: str
    diagnosis: Diagnosis
    passed: bool

    def describe(self) -> str:
        """One line for people."""
        found = ", ".join(f"{f.cause} {f.slots}/{f.confidence:.2f}" for f in self.diagnosis.findings) or "nothing"
        crashed = "".join(f" CRASHED {c.cause}: {c.error}" for c in self.diagnosis.crashed)
        return f"{'ok  ' if self.passed else 'FAIL'} {self.name:<11} {self.diagnosis.severity:<8} {found}{crashed}"


@contextmanager
def laboratory(scenario: Scenario, pg_bin: Path | None = None, **settings: str) -> Iterator[Lab]:
    """A furnished private server for a scenario, gone afterwards."""
    with scenario.cluster(pg_bin, **settings) as cluster:
        lab = Lab(cluster)
        lab.furnish()
        try:
            yield lab
        finally:
            lab.stop_clients()


STARVED_RATIO = 0.5
"""Fewer readings than this share of what the window has room for: the machine gave the doctor no time to look."""
LOOKS = 3


def look(scenario: Scenario, lab: Lab, observe_s: float) -> Diagnosis:
    """Let the doctor look, again when the machine was too busy to let it see anything."""
    wanted = STARVED_RATIO * observe_s / INTERVAL_S
    for _ in range(LOOKS - 1):
        diagnosis = ask(scenario, lab, observe_s)
        if not diagnosis.snapshot.samples or len(diagnosis.snapshot.samples) >= wanted:
            return diagnosis
    return ask(scenario, lab, observe_s)


def ask(scenario: Scenario, lab: Lab, observe_s: float, **more: Any) -> Diagnosis:  # noqa: ANN401 - fields of Request
    """Let the doctor look."""
    fields = {"dsn": lab.cluster.dsn(), "observe_s": observe_s, **scenario.doctor(lab), **more}
    return diagnose(observe(Request(**fields)), scenario.thresholds)


def trial(scenario: Scenario, lab: Lab, note: Callable[[Stage], None] = lambda _stage: None) -> list[Stage]:
    """Walk through all four stages; ``note`` hears of each as it ends."""
    stages: list[Stage] = []

    def judge(name: str, *, wanted_first: bool, observe_s: float) -> None:
        diagnosis = look(scenario, lab, observe_s)
        found = [f.cause for f in diagnosis.findings]
        passed = found[:1] == [scenario.slug] if wanted_first else scenario.slug not in found
        stages.append(Stage(name, diagnosis, passed and not diagnosis.crashed))
        note(stages[-1])

    judge("baseline", wanted_first=False, observe_s=0.5)
    scenario.look_alike(lab)
    judge("look-alike", wanted_first=False, observe_s=scenario.look_s)
    lab.stop_clients()
    scenario.fault(lab)
    judge("fault", wanted_first=True, observe_s=scenario.observe_s)
    scenario.remedy(lab)
    judge("remedy", wanted_first=False, observe_s=scenario.observe_s)
    return stages
