"""A standby's limits are below its primary's, so it cannot follow any more.

What it is
----------
A standby that is to answer queries needs max_connections, max_worker_processes, max_wal_senders,
max_prepared_transactions and max_locks_per_transaction of at least its primary's values. Somebody raised one of
them on the primary first, often because of "too many clients".

Why it takes slots
------------------
It takes none; it takes the whole standby. From 14 on the standby pauses replay and keeps answering, with data that
grow older; the next start ends with `recovery aborted because of insufficient parameter settings`. Up to 13 it stops
at once. Clients of the read replica get stale answers, 57P03 or no connection, and crowd onto the primary's slots.

How we know
-----------
The server is in recovery, replay is `paused`, and the primary's value that the WAL recorded (in the control file,
`pg_controldata`) is above the standby's own; or the standby's log says `hot standby is not possible because of
insufficient parameter settings` (14+) or `... is a lower setting than on the primary server`. No SQL function tells the
recorded values, so without the log and without access to the standby's machine a pause alone proves nothing: somebody
may have called pg_wal_replay_pause().

What to do, least disruptive first
----------------------------------
1. Raise the settings on the **standby**, all five at least as high as on the primary, and restart it. It continues
   where it stopped; nothing is lost.
2. Raise standbys first and the primary afterwards, always. When lowering: the primary first.
Do not promote it in this state, and do not only resume replay: from 14 on that ends the standby.

Often mistaken for
------------------
A standby that is simply full (its own 53300: judge it as a server of its own) · replay paused by hand · 57P03 while a
standby starts up, or with hot_standby off · 18's wait for a snapshot while a transaction has very many subtransactions.

Sources
-------
https://www.postgresql.org/docs/current/hot-standby.html#HOT-STANDBY-ADMIN
https://www.postgresql.org/docs/current/functions-admin.html#FUNCTIONS-RECOVERY-CONTROL
https://www.postgresql.org/docs/current/app-pgcontroldata.html
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from pgvacancy.causes._examples import pool, server, snapshot
from pgvacancy.causes._shape import Example, setting
from pgvacancy.model.diagnosis import Advice, Fact, Finding
from pgvacancy.model.evidence import HostEvidence, LogEvidence
from pgvacancy.model.series import Case
from pgvacancy.model.snapshot import Server

CODE = "PGC120"
ORDER = 10
NEEDS = ({"server"}, {"log"})

RECORDED = {
    "max_connections": "max_connections setting",
    "max_worker_processes": "max_worker_processes setting",
    "max_wal_senders": "max_wal_senders setting",
    "max_prepared_transactions": "max_prepared_xacts setting",
    "max_locks_per_transaction": "max_locks_per_xact setting",
}
"""Settings that a standby needs as high as its primary, and their names in the control file."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Thresholds of standby-limit."""

    min_lines_count: float = setting(1, "one such line in the log of a standby that is down says it all")


def detect(case: Case, settings: Settings) -> Finding | None:
    """Find a standby that stopped because its settings are below the primary's."""
    srv = case.snapshot.server
    lines = case.snapshot.log.standby_limit_lines if case.snapshot.log is not None else ()
    if srv is not None and srv.version_num > 0:
        if not srv.in_recovery or srv.replay_pause_state not in {"paused", "pause requested"}:
            return None  # it is no standby, or it replays: what the log tells is over
        short = shortfalls(case)
        if not short and not lines:
            return None
        return _finding(case, short, lines, state=srv.replay_pause_state or "")
    if len(lines) < max(1, settings.min_lines_count) or case.samples:
        return None
    return _finding(case, {}, lines, state="")


def shortfalls(case: Case) -> dict[str, tuple[int, int]]:
    """Settings of the standby below those its WAL recorded: own value and the primary's."""
    srv, host = case.snapshot.server, case.snapshot.host
    if srv is None:
        return {}
    recorded: dict[str, str] = dict(srv.primary_settings)
    if host is not None:
        recorded |= {name: host.control[line] for name, line in RECORDED.items() if line in host.control}
    return {
        name: (srv.setting_int(name), int(value))
        for name, value in recorded.items()
        if name in RECORDED and name in srv.settings and value.isdigit() and int(value) > srv.setting_int(name)
    }


def _finding(case: Case, short: Mapping[str, tuple[int, int]], lines: tuple[str, ...], *, state: str) -> Finding:
    down = not case.samples
    refused = any(r.kind == "starting-up" for r in case.snapshot.refusals)
    if short:
        which = ", ".join(f"{name} {own} < {wanted}" for name, (own, wanted) in short.items())
        summary = f"this standby's settings are below its primary's ({which}): replay has stopped"
    elif down:
        summary = "the standby ended or did not start, its settings are below its primary's"
    else:
        summary = "replay has stopped, the log says that this standby's settings are below its primary's"
    return Finding(
        code=CODE,
        cause="standby-limit",
        severity="critical",
        confidence=0.95 if short else 0.85,
        summary=summary,
        evidence=(
            *(
                Fact(fact=f"{name} on the primary, where this standby has {own}", value=wanted, source="pg_controldata")
                for name, (own, wanted) in short.items()
            ),
            *((Fact(fact="state of replay", value=state, source="pg_get_wal_replay_pause_state()"),) if state else ()),
            *(Fact(fact="the standby's log says", value=line, source="log") for line in lines[:3]),
        ),
        counter_evidence=tuple(_counter_evidence(case, short)),
        remedies=(
            Advice(
                slug="raise-max-connections",
                difficulty="medium",
                disruption="restart",
                command=_command(short),
                why="the standby continues where it stopped; the five settings: standbys first, then the primary",
            ),
        ),
        weight=0.3 if case.full else 1.0,
        refusal_matches=(refused or down) and not case.full,
    )


def _command(short: Mapping[str, tuple[int, int]]) -> str:
    if not short:  # the values are not known here: show them
        return "pg_controldata -D DATA_DIRECTORY | grep setting:   # what the standby needs at least"
    statements = " ".join(f"ALTER SYSTEM SET {name} = {wanted};" for name, (_, wanted) in short.items())
    return f"{statements} -- on the standby, then restart it"


def _counter_evidence(case: Case, short: Mapping[str, tuple[int, int]]) -> list[Fact]:
    facts = []
    if not short and case.snapshot.host is None:
        facts.append(Fact(fact="the recorded values of the primary", value="not readable from here", source="host"))
    if case.ledger is not None:
        facts.append(Fact(fact="slots of the standby free for ordinary roles", value=case.ledger.free_ordinary))
    return facts


def _standby(max_connections: int, state: str) -> Server:
    return replace(server(max_connections), in_recovery=True, replay_pause_state=state)


def _recorded(max_connections: int) -> HostEvidence:
    return HostEvidence(control={"max_connections setting": str(max_connections)})


EXAMPLES = (
    Example(
        "a standby that follows",
        "quiet",
        lambda: snapshot(_standby(100, "not paused"), pool("report", 5), host=_recorded(100)),
    ),
    Example(
        "replay paused by hand, on a standby that is full",
        "quiet",
        lambda: snapshot(_standby(100, "paused"), pool("report", 97, idle_s=(0, 2), used=True), host=_recorded(100)),
    ),
    Example(
        "the primary was raised to 200 first",
        "fires",
        lambda: snapshot(_standby(100, "paused"), pool("report", 5), host=_recorded(200)),
    ),
    Example(
        "after the standby was raised and restarted; the old lines still stand in the log",
        "cleared",
        lambda: snapshot(
            _standby(200, "not paused"),
            pool("report", 5),
            host=_recorded(200),
            log=LogEvidence(standby_limit_lines=("hot standby is not possible because of insufficient settings",)),
        ),
    ),
)
