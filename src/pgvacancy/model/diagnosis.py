"""What the doctor concludes: findings, what could not be checked, and how sure it is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from pgvacancy.model.ledger import Ledger
from pgvacancy.model.snapshot import Refusal, Snapshot

SCHEMA = "pgvacancy.diagnosis/1"

Severity = Literal["ok", "warning", "critical"]
SEVERITIES: tuple[Severity, ...] = ("ok", "warning", "critical")
Difficulty = Literal["easy", "medium", "hard"]
Disruption = Literal["none", "reload", "restart", "ends-sessions"]
SessionKey = tuple[int, float]
"""(pid, backend_start): pids are re-used, the pair is not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """One measured statement, with where it was read."""

    fact: str
    value: float | int | str | None = None
    source: str = "pg_stat_activity"


@dataclass(frozen=True, slots=True, kw_only=True)
class Culprit:
    """Who holds the slots."""

    application_name: str
    user: str
    database: str
    client: str
    slots: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """A remedy that fits, least disruptive first, with a command to copy where one exists."""

    slug: str
    difficulty: Difficulty
    disruption: Disruption
    frees: int = 0
    """Slots expected to be free at once."""
    command: str = ""
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A cause that was found. ``claims`` are the slots it explains; no slot is claimed twice.

    ``confidence`` is the share of cases, over the project's own scenarios, in which such a finding is right
    (see docs/benchmarks.md).
    """

    code: str
    cause: str
    severity: Severity
    confidence: float
    summary: str
    claims: frozenset[SessionKey] = frozenset()
    extra_slots: int = 0
    """Slots explained that have no session row: unfinished log-ins that only the lock table shows."""
    evidence: tuple[Fact, ...] = ()
    counter_evidence: tuple[Fact, ...] = ()
    culprits: tuple[Culprit, ...] = ()
    remedies: tuple[Advice, ...] = ()
    weight: float | None = None
    """Share of the trouble it explains, 0 to 1, where counting its slots would mislead (a leak that still
    grows, a limit that holds no slot); None: slots over used slots."""
    refusal_matches: bool = False
    """The refusal that clients get names exactly this limit."""

    @property
    def slots(self) -> int:
        """How many slots this finding explains."""
        return len(self.claims) + self.extra_slots

    def __post_init__(self) -> None:
        """Refuse a confidence that is no probability."""
        if not 0.0 <= self.confidence <= 1.0:
            msg = f"confidence of {self.cause} is {self.confidence}, not within 0..1"
            raise ValueError(msg)


@dataclass(frozen=True, slots=True, kw_only=True)
class NotChecked:
    """A cause that could not be judged, and what would make it possible."""

    cause: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Crashed:
    """A cause whose check failed: a defect of ours, shown as a line, never a traceback."""

    cause: str
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """The whole answer."""

    snapshot: Snapshot
    severity: Severity
    findings: tuple[Finding, ...] = ()
    ledger: Ledger | None = None
    refusal: Refusal | None = None
    unexplained_slots: int = 0
    not_checked: tuple[NotChecked, ...] = ()
    crashed: tuple[Crashed, ...] = field(default=())

    def __post_init__(self) -> None:
        """Refuse findings that claim one slot twice."""
        seen: set[SessionKey] = set()
        for finding in self.findings:
            if seen & finding.claims:
                msg = f"{finding.cause} claims a slot that another finding claims"
                raise ValueError(msg)
            seen |= finding.claims
