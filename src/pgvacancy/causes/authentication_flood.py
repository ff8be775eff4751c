"""Slots are held by log-ins that never finish.

What it is
----------
Clients open a connection, say who they are, and never answer the demand for a password: scanners, broken health
checks, load balancers that test the port with half a protocol, attackers. Or the server itself is slow to
decide: LDAP, RADIUS or PAM behind the log-in, reverse DNS with `log_hostname`. Or passwords are guessed at a
rate that keeps slots occupied.

Why it takes slots
------------------
A slot is taken *before* the password is asked for and before any limit is checked, and is kept until the log-in
succeeds, fails, or `authentication_timeout` (a minute by default) is over. The reserve for superusers does not
help: a log-in that has not finished may take the last slot.

How we know
-----------
PostgreSQL 18 shows unfinished log-ins in `pg_stat_activity` with state `starting`; up to 17 they have no row,
but hold a `virtualxid` lock whose pid no row has, and so the view counts fewer sessions than there are slots
taken. On the server's machine their process titles end in `authentication`. What counts is that the *same*
log-ins stay, for longer than `min_login_s`: many quick log-ins show other pids at every reading. The server's
log adds `canceling authentication due to timeout` and the failures.

What to do, least disruptive first
----------------------------------
1. Give log-ins less time: `ALTER SYSTEM SET authentication_timeout = '10s'; SELECT pg_reload_conf();` It
   reaches new log-ins. Leave slow LDAP, RADIUS or mobile clients the time they need.
2. Keep strangers out: the firewall, `reject` rules in `pg_hba.conf` above the others, `log_hostname = off`.
3. End those that are there (superusers only: an unfinished log-in has no role that pg_signal_backend would
   cover): `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE state = 'starting'`.
4. Keep a guard's connection open: it cannot be pushed out.

`superuser_reserved_connections` and `reserved_connections` are no protection here.

Often mistaken for
------------------
A retry storm (other pids at every reading, refused at once) · no pooling (the log-ins finish) · sessions hidden
from us for lack of `pg_read_all_stats` · superusers eating the reserve (they have finished, and have rows).

Sources
-------
https://www.postgresql.org/docs/current/runtime-config-connection.html#GUC-AUTHENTICATION-TIMEOUT
https://www.postgresql.org/docs/current/monitoring-stats.html#MONITORING-PG-STAT-ACTIVITY-VIEW
https://www.postgresql.org/docs/current/auth-pg-hba-conf.html
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

from pgvacancy.causes._arrivals import spare_forks_per_s
from pgvacancy.causes._common import sql_text
from pgvacancy.causes._examples import Pair, pool, server, snapshot
from pgvacancy.causes._shape import Example, setting
from pgvacancy.model.diagnosis import Advice, Culprit, Fact, Finding, SessionKey
from pgvacancy.model.ledger import Ledger
from pgvacancy.model.series import Case, keys
from pgvacancy.model.snapshot import Session, Snapshot

CODE = "PGC117"
ORDER = 20
NEEDS = ({"all-sessions", "server"},)


MIN_SILENT_COUNT = 10
"""The cap on children is twice max_connections and more: a handful of port scanners does not reach it."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Thresholds of authentication-flood."""

    min_login_s: float = setting(1, "a log-in takes milliseconds; a second is long even with LDAP behind it")
    min_share_ratio: float = setting(0.2, "a fifth of the ordinary slots is more than a slow client or two")
    min_failed_per_s: float = setting(10, "passwords are mistyped now and then, not ten times a second")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Logins:
    """Unfinished log-ins that stay."""

    claims: frozenset[SessionKey]
    unseen: tuple[int, ...]
    """Pids without a row (up to 17)."""
    oldest_s: float
    clients: Counter[str]
    followed: bool
    """Seen at two readings at least, or known by the machine to be old."""

    @property
    def count(self) -> int:
        """How many slots they hold."""
        return len(self.claims) + len(self.unseen)


def detect(case: Case, settings: Settings) -> Finding | None:
    """Find log-ins that stay unfinished, or fail at a rate that keeps slots occupied."""
    ledger = case.ledger
    if ledger is None:
        return None
    lasting = _lasting(case, settings.min_login_s)
    share = lasting.count / max(1, ledger.ordinary_slots)
    if share >= settings.min_share_ratio and (case.scarce or share >= 0.5):
        return _finding(case, ledger, lasting, settings)
    return _silent(case, ledger) or _guessing(case, ledger, settings)


def _silent(case: Case, ledger: Ledger) -> Finding | None:
    """Connections that say nothing hold no slot, but a child process each, and these are limited as well.

    The refusal is then the one of full slots while slots are free.
    """
    host = case.snapshot.host
    refused = any(r.kind == "slots-full" for r in case.snapshot.refusals)
    if host is None or not refused or not ledger.free_superuser:
        return None
    silent = [b for b in host.backends if b.kind == "connecting"]
    if len(silent) < MIN_SILENT_COUNT:
        return None
    oldest_s = max(case.now_at - b.start_at for b in silent)
    clients = Counter(c.address + " " + c.command + f"[{c.pid}]" for c in host.clients)
    return Finding(
        code=CODE,
        cause="authentication-flood",
        severity="critical",
        confidence=0.85,
        summary=(
            f"{len(silent)} connections have sent no start-up packet, the oldest for {oldest_s:.0f} s: they take all "
            f"the server's child processes while {ledger.free_superuser} slots are free"
        ),
        weight=1.0,
        refusal_matches=True,
        evidence=(
            Fact(fact="child processes that wait for a start-up packet", value=len(silent), source="/proc"),
            Fact(fact="age of the oldest, in seconds", value=round(oldest_s, 1), source="/proc"),
            Fact(fact="slots free while clients are refused for full slots", value=ledger.free_superuser),
            Fact(fact=f"most connections come from {next(iter(clients), 'another machine')}", source="/proc/net/tcp"),
            *_timeout_fact(case),
        ),
        counter_evidence=(Fact(fact="slots in use", value=ledger.used),),
        remedies=_remedies(
            _Logins(claims=frozenset(), unseen=(), oldest_s=oldest_s, clients=Counter(), followed=True), Settings()
        ),
    )


def _lasting(case: Case, min_login_s: float) -> _Logins:
    rows = [t for t in case.starting if t.age_s >= min_login_s and (t.samples > 1 or len(case.samples) == 1)]
    unseen, oldest_s, known_old = _unseen(case, min_login_s)
    return _Logins(
        claims=keys(rows),
        unseen=unseen,
        oldest_s=max([oldest_s, *(t.age_s for t in rows)]),
        clients=Counter([*(t.client for t in rows), *_addresses(case, unseen)]),
        followed=any(t.samples > 1 for t in rows) or known_old,
    )


def _unseen(case: Case, min_login_s: float) -> tuple[tuple[int, ...], float, bool]:
    """Log-ins without a row that stay: their pids, the longest time one is known to have been there, and how sure."""
    if case.last is None or not case.last.unseen_logins:
        return (), 0.0, False
    host = case.snapshot.host
    ages = {b.pid: case.now_at - b.start_at for b in host.backends if b.kind == "authenticating"} if host else {}
    lasting: dict[int, float] = {}
    for pid in case.last.unseen_logins:
        first_at = min(s.taken_at for s in case.samples if pid in s.unseen_logins)
        age_s = max(case.now_at - first_at, ages.get(pid, 0.0))
        # With a single reading and no titles their age is not known: all of them count, at less confidence.
        if age_s >= min_login_s or (len(case.samples) == 1 and not ages):
            lasting[pid] = age_s
    return tuple(lasting), max(lasting.values(), default=0.0), any(a >= min_login_s for a in lasting.values())


def _addresses(case: Case, pids: tuple[int, ...]) -> list[str]:
    host = case.snapshot.host
    known = {b.pid: b.client_addr or "local" for b in host.backends} if host else {}
    return [known.get(pid, "") for pid in pids]


def _finding(case: Case, ledger: Ledger, lasting: _Logins, settings: Settings) -> Finding:
    log = case.snapshot.log
    return Finding(
        code=CODE,
        cause="authentication-flood",
        severity="critical" if case.full else "warning",
        confidence=0.95 if lasting.followed else 0.7,
        summary=(
            f"{lasting.count} slots are held by log-ins that have not finished, the oldest for {lasting.oldest_s:.0f} s"
        ),
        claims=lasting.claims,
        extra_slots=len(lasting.unseen),
        # What holds the slots before anybody is let in is the trouble, whatever the others do with the rest.
        weight=min(1.0, 1.5 * lasting.count / max(1, ledger.used)),
        evidence=(
            Fact(fact="log-ins unfinished for longer than min_login_s", value=lasting.count, source=_source(case)),
            Fact(fact="age of the oldest, in seconds", value=round(lasting.oldest_s, 1), source=_source(case)),
            Fact(
                fact="failed or given-up log-ins in the last minute of the log",
                value=log.authentication_failures if log is not None else "not known",
                source="log",
            ),
            *_timeout_fact(case),
        ),
        counter_evidence=(
            Fact(fact="sessions whose log-in has finished", value=len(case.tracks)),
            Fact(fact="unfinished log-ins younger than min_login_s", value=ledger.authenticating - lasting.count),
        ),
        culprits=tuple(
            Culprit(application_name="", user="", database="", client=client, slots=slots)
            for client, slots in lasting.clients.most_common(8)
        ),
        remedies=_remedies(lasting, settings),
    )


def _guessing(case: Case, ledger: Ledger, settings: Settings) -> Finding | None:
    """Log-ins that fail one after another and keep slots occupied between them."""
    log, spare = case.snapshot.log, spare_forks_per_s(case)
    if log is None or case.window_s <= 0 or not log.authentication_failures:
        return None
    rate = log.authentication_failures / max(1.0, min(log.recent_s, log.span_s))
    rate = rate if spare is None else min(rate, spare)
    starting = [sum(1 for s in x.sessions if s.state == "starting") + len(x.unseen_logins) for x in case.samples]
    mean = sum(starting) / len(starting)
    admitted = case.sessions_per_s or 0.0
    busy = mean >= settings.min_share_ratio * ledger.ordinary_slots or (case.scarce and mean >= 1)
    if not busy or rate < settings.min_failed_per_s or admitted > rate:
        return None
    claims = keys(case.starting)
    unseen = len(case.last.unseen_logins) if case.last is not None else 0
    return Finding(
        code=CODE,
        cause="authentication-flood",
        severity="critical" if case.full else "warning",
        confidence=0.8,
        summary=f"about {rate:.0f} log-ins a second fail, and {mean:.0f} slots are in their hands at any time",
        claims=claims,
        extra_slots=unseen,
        weight=min(1.0, 2 * mean / max(1, case.peak_used)),
        evidence=(
            Fact(fact="failed log-ins per second", value=round(rate, 1), source="log"),
            Fact(fact="slots held by unfinished log-ins, mean over the readings", value=round(mean, 1)),
            *(Fact(fact=f"of the failures: {k}", value=v, source="log") for k, v in log.login_failures.items()),
            *(
                Fact(fact=f"of the failures, from {client}", value=times, source="log")
                for client, times in list(log.login_failures_by_client.items())[:8]
            ),
        ),
        counter_evidence=(
            Fact(fact="sessions established per second", value=round(admitted, 1), source="pg_stat_database"),
        ),
        remedies=_remedies(_lasting(case, settings.min_login_s), settings),
    )


def _source(case: Case) -> str:
    if case.last is not None and case.last.source == "host":
        return "process titles"
    return "pg_locks" if case.last is not None and case.last.unseen_logins else "pg_stat_activity"


def _timeout_fact(case: Case) -> tuple[Fact, ...]:
    server_ = case.snapshot.server
    value = server_.settings.get("authentication_timeout") if server_ is not None else None
    return (Fact(fact="authentication_timeout", value=value, source="pg_settings"),) if value else ()


def _remedies(lasting: _Logins, settings: Settings) -> tuple[Advice, ...]:
    pids = sorted([*(pid for pid, _ in lasting.claims), *lasting.unseen])[:40]
    interval = sql_text(f"{settings.min_login_s:g} s")
    if lasting.claims:
        end = (
            "SELECT pid, pg_terminate_backend(pid) FROM pg_stat_activity WHERE state = 'starting' "
            f"AND backend_start < now() - interval {interval};"
        )
    else:
        end = f"SELECT pid, pg_terminate_backend(pid) FROM unnest(ARRAY{pids}) AS pid;" if pids else ""
    return (
        Advice(
            slug="set-authentication-timeout",
            difficulty="easy",
            disruption="reload",
            command="ALTER SYSTEM SET authentication_timeout = '10s'; SELECT pg_reload_conf();",
            why="log-ins that do not finish leave after ten seconds; reaches new ones only",
        ),
        Advice(
            slug="end-idle-sessions",
            difficulty="easy",
            disruption="ends-sessions",
            frees=lasting.count,
            command=end,
            why="frees their slots now; nobody is logged in there, so nothing is lost (superusers only)",
        ),
    )


def _starting(count: int, age_s: float, *, stay: bool = True) -> list[Pair]:
    """An example: unfinished log-ins, the same at both readings or new at the second."""
    pairs = pool("", count, state="starting", idle_s=age_s, age_s=age_s, query="")

    def blank(session: Session, pid: int) -> Session:
        return replace(session, pid=pid, user=None, database=None, state_change_at=None, query_start_at=None)

    return [(blank(a, a.pid if stay else a.pid + 1_000_000), blank(b, b.pid)) for a, b in pairs]


def _without_rows(count: int, *, stay: bool) -> Snapshot:
    """An example up to PostgreSQL 17: pids that hold a slot and have no row."""
    base = snapshot(replace(server(20), version_num=150000), pool("web", 3, idle_s=(0, 1), age_s=900, used=True))
    pids = tuple(range(500_000, 500_000 + count))
    first = pids if stay else tuple(p + 1000 for p in pids)
    a, b = base.samples
    return replace(base, samples=(replace(a, unseen_logins=first), replace(b, unseen_logins=pids)))


EXAMPLES = (
    Example(
        "a client that is slow to answer, on a busy server",
        "quiet",
        lambda: snapshot(server(20), pool("web", 15, idle_s=(0, 1), age_s=900, used=True), _starting(2, 20)),
    ),
    Example(
        "many quick log-ins that finish: others at every reading",
        "quiet",
        lambda: snapshot(server(20), pool("php", 6, idle_s=0, age_s=0.2), _starting(11, 0.02), sessions_per_s=150),
    ),
    Example("the same on 15, where they have no row", "quiet", lambda: _without_rows(14, stay=False)),
    Example(
        "fifteen log-ins that wait for a password nobody sends",
        "fires",
        lambda: snapshot(server(20), pool("web", 3, idle_s=(0, 1), age_s=900, used=True), _starting(15, 30)),
    ),
    Example("the same on 15, where they have no row", "fires", lambda: _without_rows(15, stay=True)),
    Example(
        "after authentication_timeout was lowered",
        "cleared",
        lambda: snapshot(server(20), pool("web", 3, idle_s=(0, 1), age_s=900, used=True), _starting(1, 0.5)),
    ),
)
