"""From single findings to one answer: who claims which slot, what ranks first, what is left unexplained.

Claiming goes from specific to general (each cause's ``ORDER``); causes of equal order compete by confidence.
A finding that loses half of its slots to a more specific one is dropped: it described the same sessions less
well. Ranking asks a different question, which finding explains the trouble best: the one that names the very
limit clients are refused by, then confidence times the share of the trouble it explains.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from pgvacancy.causes._common import sql_in
from pgvacancy.causes._shape import Cause, load_all
from pgvacancy.model.diagnosis import (
    SEVERITIES,
    Crashed,
    Diagnosis,
    Finding,
    NotChecked,
    SessionKey,
    Severity,
)
from pgvacancy.model.ledger import may_hold_slot
from pgvacancy.model.series import Case
from pgvacancy.model.snapshot import Snapshot

RESIDUAL = frozenset({"limit-too-small"})
"""Explains what no other cause does, so it ranks behind any finding that is at least likely."""
LIKELY = 0.5
MISSING = {
    "sessions": "no session could be seen: nobody could log in, and the server's processes are not within reach",
    "sql": "pg_stat_activity was not read: no session could be had; process titles tell neither ages nor use",
    "states": "session states are not recorded: track_activities is off",
    "time": "there is one reading only, and use shows between two: give --observe 3",
    "server": "the server's settings and roles could not be read",
    "log": "the server's log was not read: give --log FILE, or run on the server's machine",
    "host": "the server's own machine was not seen: run there",
    "pooler": "no pooler's console was read: give --pgbouncer DSN",
    "refusal": "no refusal was met",
}
"""One true sentence for each word of :func:`available_probes`; hidden sessions have one of their own."""


def available_probes(snapshot: Snapshot) -> frozenset[str]:
    """Which kinds of evidence a snapshot holds; causes declare what they need in these words.

    ``sessions`` any session rows · ``sql`` rows from SQL, with ages · ``all-sessions`` nothing hidden ·
    ``time`` at least two readings · ``server`` settings and limits · ``log`` · ``host`` · ``pooler`` ·
    ``refusal`` a refusal seen · ``states`` session states known (track_activities on).
    """
    probes: set[str] = set()
    if snapshot.samples:
        probes.add("sessions")
        if snapshot.samples[-1].source == "sql":
            probes.add("sql")
        if not hidden_slots(snapshot):
            probes.add("all-sessions")
        if len(snapshot.samples) > 1:
            probes.add("time")
        others = [s for s in snapshot.samples[-1].sessions if not s.is_own]
        known = any(s.state not in {None, "disabled", "starting"} for s in others)
        if known or not any(s.state == "disabled" or s.hidden for s in others):
            probes.add("states")
    if snapshot.server is not None:
        probes.add("server")
    for name, present in (
        ("log", snapshot.log),
        ("host", snapshot.host),
        ("pooler", any(p.reachable for p in snapshot.poolers)),
        ("refusal", snapshot.refusals),
    ):
        if present:
            probes.add(name)
    return frozenset(probes)


def diagnose(
    snapshot: Snapshot, values: Mapping[str, float] | None = None, causes: tuple[Cause, ...] | None = None
) -> Diagnosis:
    """Judge every cause and put the findings in order. Pure: the same snapshot gives the same answer."""
    case = Case(snapshot)
    probes = available_probes(snapshot)
    found: list[tuple[Cause, Finding]] = []
    not_checked: list[NotChecked] = []
    crashed: list[Crashed] = []
    for cause in causes if causes is not None else load_all():
        if not any(need <= probes for need in cause.needs):
            not_checked.append(NotChecked(cause=cause.slug, reason=_reason(cause, probes, snapshot)))
            continue
        try:
            finding = cause.detect(case, values or {})
        except Exception as error:  # noqa: BLE001 - the check runner: a crashed check is a line in the report
            crashed.append(Crashed(cause=cause.slug, error=f"{type(error).__name__}: {error}"))
            continue
        if finding is not None:
            found.append((cause, finding))
        elif "all-sessions" not in probes and all("sql" in need for need in cause.needs if need <= probes):
            # What we saw is proof enough where it speaks for a cause; its silence says nothing about what is hidden.
            reason = f"not among the sessions we may see; {_hidden(snapshot)}"
            not_checked.append(NotChecked(cause=cause.slug, reason=reason))
    findings = rank(claim(found), case)
    return Diagnosis(
        snapshot=snapshot,
        severity=overall(case, findings),
        findings=findings,
        ledger=case.ledger,
        refusal=case.refusal,
        unexplained_slots=_unexplained(case, findings),
        not_checked=tuple(not_checked),
        crashed=tuple(crashed),
    )


def claim(found: list[tuple[Cause, Finding]]) -> list[Finding]:
    """Give each slot to one finding, the likely and specific ones first."""
    ordered = sorted(found, key=lambda cf: (cf[1].confidence < LIKELY, cf[0].order, -cf[1].confidence, cf[0].code))
    taken: set[SessionKey] = set()
    result: list[Finding] = []
    for _, finding in ordered:
        left = finding.claims - taken
        if finding.claims and len(left) * 2 <= len(finding.claims):
            continue
        taken |= left
        result.append(replace(finding, claims=left))
    return result


def rank(findings: list[Finding], case: Case) -> tuple[Finding, ...]:
    """Best explanation first."""
    used = max(1, case.peak_used)

    def key(finding: Finding) -> tuple[bool, bool, float]:
        share = finding.weight if finding.weight is not None else min(1.0, finding.slots / used)
        residual = finding.cause in RESIDUAL or finding.confidence < LIKELY
        return (not finding.refusal_matches, residual, -finding.confidence * (0.2 + 0.8 * share))

    return tuple(sorted(findings, key=key))


def overall(case: Case, findings: tuple[Finding, ...]) -> Severity:
    """The worst of the findings; critical whenever clients are refused."""
    worst = max((SEVERITIES.index(f.severity) for f in findings), default=0)
    if case.full or (case.refusal is not None and case.refusal.kind != "other"):
        worst = SEVERITIES.index("critical")
    elif case.scarce:
        worst = max(worst, SEVERITIES.index("warning"))
    return SEVERITIES[worst]


def _unexplained(case: Case, findings: tuple[Finding, ...]) -> int:
    """Slots no finding accounts for; our own session explains itself."""
    ledger = case.ledger
    if ledger is None:
        return 0
    alive = {t.key for t in case.tracks} | {t.key for t in case.starting}
    claimed = sum(len(f.claims & alive) + f.extra_slots for f in findings)
    return max(0, ledger.used - ledger.own - claimed)


def hidden_slots(snapshot: Snapshot) -> int:
    """The most sessions that may hold a slot and of which we saw the role and no more, at any reading."""
    return max((sum(1 for s in sample.sessions if may_hold_slot(s)) for sample in snapshot.samples), default=0)


def _reason(cause: Cause, probes: frozenset[str], snapshot: Snapshot) -> str:
    """What is really missing, by the alternative that lacks least; a cause's own words are an addition."""
    lacking = min((need - probes for need in cause.needs), key=lambda words: (len(words), sorted(words)))
    if "sessions" in lacking or "sql" in lacking:
        lacking -= {"states", "all-sessions", "time"}  # all of them follow from it
    if "states" in lacking and hidden_slots(snapshot):
        lacking = (lacking - {"states"}) | {"all-sessions"}
    sentences = [_hidden(snapshot) if word == "all-sessions" else MISSING.get(word, word) for word in sorted(lacking)]
    return "; ".join([*sentences, cause.why_not] if cause.why_not else sentences)


def _hidden(snapshot: Snapshot) -> str:
    role = snapshot.access.role or "the role"
    return (
        f"{hidden_slots(snapshot)} sessions of other roles are hidden from {role}: "
        f"GRANT pg_read_all_stats TO {sql_in([role])}"
    )
