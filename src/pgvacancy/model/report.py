"""The diagnosis as the JSON that programs rely on (schema pgvacancy.diagnosis/1)."""

from __future__ import annotations

import math
from datetime import datetime, timezone
from typing import Any

from pgvacancy.model.diagnosis import SCHEMA, Diagnosis, Fact, Finding
from pgvacancy.model.ledger import Ledger

JSON = dict[str, Any]


def to_json(diagnosis: Diagnosis) -> JSON:
    """The whole answer."""
    snapshot = diagnosis.snapshot
    refusal = diagnosis.refusal
    return {
        "schema": SCHEMA,
        "taken_at": iso(snapshot.taken_at),
        "observed_s": round(snapshot.observed_s, 2),
        "target": snapshot.target,
        "server": server_json(diagnosis),
        "access": {
            "door": snapshot.access.door,
            "role": snapshot.access.role,
            "sees_all_sessions": snapshot.access.sees_all_sessions,
            "tried": [
                {"door": a.door, "outcome": a.outcome, "elapsed_ms": a.elapsed_ms} for a in snapshot.access.attempts
            ],
        },
        "refusal": None
        if refusal is None
        else {
            "sqlstate": refusal.sqlstate,
            "kind": refusal.kind,
            "message": refusal.message,
            "source": refusal.source,
            "user": refusal.user,
            "database": refusal.database,
        },
        "ledger": None if diagnosis.ledger is None else ledger_json(diagnosis.ledger),
        "severity": diagnosis.severity,
        "findings": [finding_json(f) for f in diagnosis.findings],
        "unexplained_slots": diagnosis.unexplained_slots,
        "not_checked": [
            *({"cause": n.cause, "reason": n.reason} for n in diagnosis.not_checked),
            *({"cause": c.cause, "reason": f"the check crashed: {c.error}"} for c in diagnosis.crashed),
        ],
        "gaps": [{"probe": g.probe, "reason": g.reason} for g in snapshot.gaps],
        "interrupted": snapshot.interrupted,
    }


def server_json(diagnosis: Diagnosis) -> JSON | None:
    """What is known of the server."""
    server = diagnosis.snapshot.server
    if server is None:
        return None
    return {
        "version_num": server.version_num,
        "version": server.version,
        "in_recovery": server.in_recovery,
        "managed_by": server.managed_by,
        "system_identifier": server.system_identifier,
        "started_at": iso(server.postmaster_start_at) if server.postmaster_start_at else None,
    }


def ledger_json(ledger: Ledger) -> JSON:
    """The arithmetic of slots."""
    return {
        "max_connections": ledger.max_connections,
        "superuser_reserved": ledger.superuser_reserved,
        "reserved": ledger.reserved,
        "used": ledger.used,
        "used_at_least": ledger.used_at_least,
        "authenticating": ledger.authenticating,
        "hidden": ledger.hidden,
        "own": ledger.own,
        "free": {
            "ordinary": ledger.free_ordinary,
            "reserved": ledger.free_reserved,
            "superuser": ledger.free_superuser,
        },
    }


def finding_json(finding: Finding) -> JSON:
    """One finding."""
    return {
        "code": finding.code,
        "cause": finding.cause,
        "severity": finding.severity,
        "confidence": round(finding.confidence, 2),
        "slots": finding.slots,
        "summary": finding.summary,
        "evidence": [fact_json(f) for f in finding.evidence],
        "counter_evidence": [fact_json(f) for f in finding.counter_evidence],
        "culprits": [
            {
                "application_name": c.application_name,
                "user": c.user,
                "database": c.database,
                "client": c.client,
                "slots": c.slots,
            }
            for c in finding.culprits
        ],
        "remedies": [
            {
                "slug": a.slug,
                "difficulty": a.difficulty,
                "disruption": a.disruption,
                "frees": a.frees,
                "command": a.command,
                "why": a.why,
            }
            for a in finding.remedies
        ],
    }


def fact_json(fact: Fact) -> JSON:
    """One fact; JSON knows no infinity, so such a value becomes null."""
    value = fact.value
    if isinstance(value, float) and not math.isfinite(value):
        value = None
    return {"fact": fact.fact, "value": value, "source": fact.source}


def iso(at: float) -> str:
    """An instant as ISO 8601 in UTC, to the second; ``?`` for a number that is no instant."""
    if not 0 <= at < 253_402_300_800:
        return "?"
    return datetime.fromtimestamp(at, tz=timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
