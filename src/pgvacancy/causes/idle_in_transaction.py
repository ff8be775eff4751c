"""Sessions wait inside an open transaction.

What it is
----------
The application began a transaction, ran a statement, and then did something else: an HTTP call, a long computation,
waiting for a person. Often nobody knows there is a transaction: many drivers open one for a plain SELECT and keep it
until `commit()`, `rollback()` or `close()`.

Why it takes slots
------------------
Such a session cannot be given to anybody else, not even by a pooler in transaction mode: the slot is kept for the
length of the pause. It also keeps its locks and holds back VACUUM for every table.

How we know
-----------
The state is `idle in transaction` (or `idle in transaction (aborted)`), and two ages tell the rest: the *idle age*,
now() - state_change, is at least `min_idle_s` and nobody used the session while we looked; or the *transaction age*,
now() - xact_start, is ten times that although a statement is run now and then, which keeps every timeout from firing.
Ages are counted, not rows: an application that is often inside a short transaction shows many rows and tiny ages.

What to do, least disruptive first
----------------------------------
1. `ALTER ROLE ... SET idle_in_transaction_session_timeout = '60s'` for the role that does it: the server then ends
   such sessions by itself (new sessions only; the transaction is rolled back, the client sees SQLSTATE 25P03).
2. Find the statement before the pause (it is shown) and the code behind it: commit after reads, autocommit where no
   transaction is wanted, no network call between BEGIN and COMMIT.
3. End the oldest now with `pg_terminate_backend`; what they had not committed is lost. `pg_cancel_backend` does
   nothing to a session that runs no statement. Look for pg_dump and migrations first.
4. Behind PgBouncer: `idle_transaction_timeout`.

Often mistaken for
------------------
A chatty ORM (many rows, each milliseconds old) · a lock pile-up (one of these sessions holds up the rest: end that
one) · idle sessions (outside a transaction) · a connection leak whose sessions happen to hold a transaction: it grows ·
a dump between two tables.

Sources
-------
https://www.postgresql.org/docs/current/monitoring-stats.html#MONITORING-PG-STAT-ACTIVITY-VIEW
https://www.postgresql.org/docs/current/runtime-config-client.html#GUC-IDLE-IN-TRANSACTION-SESSION-TIMEOUT
https://www.pgbouncer.org/config.html#idle_transaction_timeout
https://www.psycopg.org/psycopg3/docs/basic/transactions.html
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from pgvacancy.causes._common import gone_clients, severity_of, sql_in
from pgvacancy.causes._examples import pool, server, snapshot
from pgvacancy.causes._shape import Example, setting
from pgvacancy.model.diagnosis import Advice, Fact, Finding
from pgvacancy.model.fingerprint import without_literals
from pgvacancy.model.series import Case, Owner, Track, culprits, keys, ramp_ratio, span_s

CODE = "PGC105"
ORDER = 60
NEEDS = ({"sql", "states"},)

LONG_TRANSACTION = 10
"""A transaction this many times older than ``min_idle_s`` counts although it is used now and then."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Thresholds of idle-in-transaction."""

    min_idle_s: float = setting(60, "no healthy code pauses a minute inside a transaction")
    min_share_ratio: float = setting(0.1, "below a tenth of the ordinary slots they are not what filled the server")
    early_share_ratio: float = setting(0.3, "with slots still free, a third parked inside transactions is no accident")


def detect(case: Case, settings: Settings) -> Finding | None:
    """Find sessions parked inside a transaction."""
    ledger = case.ledger
    if ledger is None:
        return None
    gone = gone_clients(case)  # nobody is at the other end of these any more: another cause's matter
    inside = [t for t in case.tracks if t.in_transaction and t.key not in gone]
    dumps = [t for t in inside if is_dump(t)]
    parked = [t for t in inside if is_parked(t, settings.min_idle_s) and not is_dump(t)]
    share = len(parked) / max(1, ledger.ordinary_slots)
    if not parked or share < (settings.min_share_ratio if case.scarce else settings.early_share_ratio):
        return None
    idle_s = max(t.state_age_s for t in parked)
    transaction_s = max(t.transaction_age_s for t in parked)
    aborted = sum(1 for t in parked if "aborted" in (t.session.state or ""))
    pids = [t.session.pid for t in sorted(parked, key=lambda t: -t.state_age_s)]
    roles = [name for name, _ in Counter(Owner.of(t).user for t in parked).most_common() if name]
    query, times = Counter(without_literals(t.session.query)[:100] for t in parked).most_common(1)[0]
    grows = still_grows(case, parked)
    return Finding(
        code=CODE,
        cause="idle-in-transaction",
        severity=severity_of(case, share),
        confidence=_confidence(case, parked, grows=grows),
        summary=f"{len(parked)} sessions have been idle inside a transaction for up to {idle_s:.0f} s",
        claims=keys(parked),
        evidence=(
            Fact(fact="sessions idle in transaction beyond min_idle_s", value=len(parked)),
            Fact(fact="oldest idle age, now() - state_change, in seconds", value=round(idle_s, 1)),
            Fact(fact="oldest transaction, now() - xact_start, in seconds", value=round(transaction_s, 1)),
            Fact(fact="of these, in a failed transaction (aborted)", value=aborted),
            Fact(fact="of these, holding back VACUUM (backend_xmin)", value=sum(t.session.has_xmin for t in parked)),
            Fact(fact=f"last statement of {times} of them", value=query),
        ),
        counter_evidence=(
            Fact(fact="in a transaction too, but in use or younger", value=len(inside) - len(parked) - len(dumps)),
            Fact(fact="pg_dump or COPY between two tables, left alone", value=len(dumps)),
            Fact(
                fact="more of them were opened while we looked and none closed: a leak too"
                if grows
                else "more of them being opened while we looked, none closed (a leak)",
                value=int(grows),
            ),
        ),
        culprits=culprits(parked),
        remedies=(
            Advice(
                slug="set-idle-in-transaction-timeout",
                difficulty="easy",
                disruption="none",
                command="\n".join(
                    f"ALTER ROLE {sql_in([r])} SET idle_in_transaction_session_timeout = '60s';" for r in roles[:3]
                ),
                why="the server ends such sessions from now on; new sessions only",
            ),
            Advice(
                slug="end-idle-transactions",
                difficulty="easy",
                disruption="ends-sessions",
                frees=len(parked),
                command=(
                    "SELECT pid, pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'client backend' "
                    "AND state LIKE 'idle in transaction%' "
                    f"AND xact_start < now() - interval '{settings.min_idle_s:g} s' "
                    f"AND pid IN ({', '.join(map(str, pids[:40]))});"
                ),
                why="frees the slots now; what these transactions did is rolled back",
            ),
            Advice(
                slug="fix-application-code",
                difficulty="medium",
                disruption="none",
                why="commit after reads, no network call between BEGIN and COMMIT",
            ),
        ),
    )


def is_parked(track: Track, min_idle_s: float) -> bool:
    """Unused inside a transaction for long enough, or in a very long one that is mostly idle."""
    if track.state_age_s >= min_idle_s and not track.changed:
        return True
    mostly_idle = track.active_samples * 2 < track.samples
    return mostly_idle and track.transaction_age_s >= max(LONG_TRANSACTION * min_idle_s, min_idle_s + 1)


def is_dump(track: Track) -> bool:
    """A dump or a COPY by name: it looks idle in transaction between two tables."""
    return "pg_dump" in track.session.application_name or track.session.query.lstrip().upper().startswith("COPY ")


def still_grows(case: Case, parked: list[Track]) -> bool:
    """Whether owners of these sessions keep opening more, evenly, and close none: they leak open transactions."""
    owners = {Owner.of(t) for t in parked}
    mine = [t for t in case.tracks if Owner.of(t) in owners and t.in_transaction]
    born = sum(1 for t in mine if t.born_in_window)
    ended = sum(1 for t in case.all_tracks if not t.alive and Owner.of(t) in owners)
    return born > 1 and not ended and span_s(mine) > case.window_s and ramp_ratio(mine) > 0.8


def _confidence(case: Case, parked: list[Track], *, grows: bool) -> float:
    if grows:
        return 0.8
    if case.window_s <= 0:
        return 0.75
    unused = sum(1 for t in parked if not t.used_in_window)
    return 0.9 if unused * 2 > len(parked) else 0.7


EXAMPLES = (
    Example(
        "a chatty ORM: many short transactions, seen between two statements",
        "quiet",
        lambda: snapshot(
            server(100), pool("django", 96, state="idle in transaction", idle_s=(0, 0.2), age_s=900, used=True)
        ),
    ),
    Example(
        "one forgotten console",
        "quiet",
        lambda: snapshot(server(100), pool("psql", 1, state="idle in transaction", idle_s=7200)),
    ),
    Example(
        "a server filled by sessions that are idle outside a transaction",
        "quiet",
        lambda: snapshot(server(100), pool("psql", 97, idle_s=(600, 900))),
    ),
    Example(
        "eighty workers call a web service between SELECT and COMMIT",
        "fires",
        lambda: snapshot(
            server(100),
            pool("worker", 80, state="idle in transaction", idle_s=(70, 400), age_s=500, has_xmin=True),
            pool("web", 17, idle_s=(0, 2), used=True),
        ),
    ),
    Example(
        "after the time limit has ended them",
        "cleared",
        lambda: snapshot(server(100), pool("web", 17, idle_s=(0, 2), used=True)),
    ),
)
