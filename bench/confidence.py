"""Whether a confidence means something: every fault, staged several times with other numbers, beside its look-alike.

A seed chooses the server's size, the drivers of the clients and how long the doctor looks; the thresholds of all
causes are lowered, not only those of the cause at hand, so that every other cause may speak up as well.
"""

from __future__ import annotations

import argparse
import random
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bench._process import note
from bench._table import Table
from pgvacancy.causes import diagnose
from pgvacancy.lab.lab import Client, Lab
from pgvacancy.lab.scenario import Scenario, load_scenario, scenario_slugs
from pgvacancy.model.diagnosis import Diagnosis
from pgvacancy.model.errors import PgvacancyError
from pgvacancy.observe.observation import Request, observe

RUNS = 3
SIZES = (16, 40)
LONGER_S = (-0.5, 1.0)
"""The doctor looks this much shorter or longer than the scenario says, within 1 to 3 s (longer when it says so)."""
LIKE_LIBPQ = ("psycopg", "psycopg2")
BUCKETS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One staging and what the doctor said. ``first`` is None when nothing was found."""

    slug: str
    stage: str
    seed: int
    max_connections: str
    first: str | None = None
    confidence: float = 0.0
    others: tuple[tuple[str, float], ...] = ()
    crashed: tuple[str, ...] = ()
    trouble: str = ""

    @property
    def right(self) -> bool:
        """For a fault: its cause stands first. For a look-alike: its cause is not named at all."""
        named = [self.first, *(cause for cause, _ in self.others)]
        return self.first == self.slug if self.stage == "fault" else self.slug not in named


class _VariedLab(Lab):
    """A lab whose clients may use another driver than the fault file says, where the two behave alike."""

    def __init__(self, cluster: Any, dice: random.Random) -> None:  # noqa: ANN401 - what Lab takes
        super().__init__(cluster)
        self._dice = dice

    def client(self, behaviour: str, *, user: str = "app", database: str = "app", **options: Any) -> Client:  # noqa: ANN401 - as in Lab
        if options.get("driver", "psycopg") in LIKE_LIBPQ:
            options["driver"] = self._dice.choice(LIKE_LIBPQ)
        return super().client(behaviour, user=user, database=database, **options)


def measure(options: argparse.Namespace) -> list[Table]:
    """Stage every fault and every look-alike ``--rounds`` times."""
    chosen = options.causes or list(scenario_slugs())
    scenarios = [load_scenario(slug) for slug in chosen]
    lowered: dict[str, float] = {}
    for slug in scenario_slugs():
        for name, value in load_scenario(slug).thresholds.items():
            lowered[name] = min(value, lowered.get(name, value))
    runs: list[Run] = []
    started = time.monotonic()
    for number in range(options.rounds or RUNS):
        for scenario in scenarios:
            for stage in ("fault", "look-alike"):
                begun = time.monotonic()
                if options.minutes and begun - started > options.minutes * 60:
                    continue
                runs.append(_stage(scenario, stage, options.seed * 1000 + number, lowered))
                note(f"confidence: {_describe(runs[-1])} ({time.monotonic() - begun:.0f} s)")
    return [_buckets(runs), _causes(runs), _confusions(runs)]


def _stage(scenario: Scenario, stage: str, seed: int, lowered: Mapping[str, float]) -> Run:
    dice = random.Random(f"{scenario.slug} {stage} {seed}")  # noqa: S311 - not for secrets
    settings: dict[str, str] = {}
    if "max_connections" not in getattr(scenario.module, "SERVER", {}):
        settings["max_connections"] = str(dice.randint(*SIZES))
    size = settings.get("max_connections", "as the fault says")
    planned = scenario.observe_s if stage == "fault" else scenario.look_s
    observe_s = min(max(1.0, planned + dice.uniform(*LONGER_S)), max(3.0, planned))
    try:
        with scenario.cluster(None, **settings) as cluster:
            lab = _VariedLab(cluster, dice)
            lab.furnish()
            try:
                (scenario.fault if stage == "fault" else scenario.look_alike)(lab)
                request: dict[str, Any] = {"dsn": cluster.dsn(), "observe_s": observe_s, **scenario.doctor(lab)}
                diagnosis = diagnose(observe(Request(**request)), {**lowered, **scenario.thresholds})
            finally:
                lab.stop_clients()
    except (PgvacancyError, OSError) as error:
        trouble = str(error).replace("\n", " ")[:150]
        return Run(slug=scenario.slug, stage=stage, seed=seed, max_connections=size, trouble=trouble)
    return _run(scenario.slug, stage, seed, size, diagnosis)


def _run(slug: str, stage: str, seed: int, size: str, diagnosis: Diagnosis) -> Run:
    found = [(f.cause, f.confidence) for f in diagnosis.findings]
    return Run(
        slug=slug,
        stage=stage,
        seed=seed,
        max_connections=size,
        first=found[0][0] if found else None,
        confidence=found[0][1] if found else 0.0,
        others=tuple(found[1:]),
        crashed=tuple(c.cause for c in diagnosis.crashed),
    )


def _describe(run: Run) -> str:
    said = f"{run.first} {run.confidence:.2f}" if run.first else "nothing"
    verdict = "not staged" if run.trouble else "right" if run.right else "WRONG"
    return f"{run.slug} {run.stage}, {run.max_connections} slots, seed {run.seed}: {said}, {verdict} {run.trouble}"


def _bucket(confidence: float) -> float:
    return next(b for b in BUCKETS if confidence >= b - 1e-9)


def _buckets(runs: list[Run]) -> Table:
    """First findings by what confidence they were said with. A look-alike counts where its cause was named first."""
    said: Counter[float] = Counter()
    right: Counter[float] = Counter()
    for run in runs:
        if run.first is None or run.trouble or (run.stage != "fault" and run.first != run.slug):
            continue
        bucket = _bucket(run.confidence)
        said[bucket] += 1
        right[bucket] += run.stage == "fault" and run.right
    names = {b: f"{b:.1f} to {'1.0' if n == 0 else format(BUCKETS[n - 1], '.1f')}" for n, b in enumerate(BUCKETS)}
    faults = [r for r in runs if r.stage == "fault" and not r.trouble]
    silent = sum(1 for r in faults if r.first is None)
    return Table(
        title="Confidence of the first finding, and how often it was right",
        columns=("said with confidence", "first findings", "right", "share right"),
        rows=tuple((names[b], said[b], right[b], f"{right[b] / said[b]:.0%}" if said[b] else "-") for b in BUCKETS),
        notes=(
            (
                "right: on a staged fault, the cause that was staged. Wrong: another cause on a fault, or the cause"
                " itself"
                " on its look-alike. Other causes named on a look-alike are in the list of confusions: whether they are"
                " right is not known."
            ),
            (
                f"{len(faults)} faults staged, {silent} of them without any finding;"
                f" {sum(1 for r in runs if r.trouble)} runs could not be staged;"
                f" {sum(len(r.crashed) for r in runs)} checks crashed."
            ),
            (
                f"max_connections {SIZES[0]} to {SIZES[1]} where the fault leaves it open, psycopg 3 or psycopg2 by"
                " chance, the thresholds of all causes lowered as far as any scenario lowers them."
            ),
        ),
    )


def _causes(runs: list[Run]) -> Table:
    rows: list[tuple[object, ...]] = []
    for slug in sorted({r.slug for r in runs}):
        row: list[object] = [slug]
        for stage in ("fault", "look-alike"):
            staged = [r for r in runs if r.slug == slug and r.stage == stage and not r.trouble]
            row += [len(staged), sum(1 for r in staged if r.right)]
        sure = [r.confidence for r in runs if r.slug == slug and r.stage == "fault" and r.right and not r.trouble]
        row.append(f"{min(sure):.2f} to {max(sure):.2f}" if sure else "-")
        row.append(sum(1 for r in runs if r.slug == slug and r.trouble))
        rows.append(tuple(row))
    return Table(
        title="Each cause",
        columns=(
            "cause", "faults staged", "cause first", "look-alikes staged", "cause not named", "confidence when right",
            "not staged",
        ),
        rows=tuple(rows),
    )  # fmt: skip


def _confusions(runs: list[Run]) -> Table:
    seen: Counter[tuple[str, str, str]] = Counter()
    told: dict[tuple[str, str, str], list[str]] = {}
    for run in runs:
        if run.trouble:
            key = (run.slug, run.stage, f"not staged: {run.trouble}")
        elif run.right and (run.stage == "fault" or run.first is None):
            continue
        else:
            key = (run.slug, run.stage, run.first or "nothing")
        seen[key] += 1
        told.setdefault(key, []).append(
            f"{run.confidence:.2f}" + "".join(f", then {c} {k:.2f}" for c, k in run.others[:2])
        )
    return Table(
        title="What was named instead",
        columns=("staged", "stage", "named first", "runs", "confidence, and what followed"),
        rows=tuple((*key, count, "; ".join(told[key])) for key, count in sorted(seen.items())),
    )
