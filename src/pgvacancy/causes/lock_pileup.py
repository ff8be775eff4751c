"""Sessions queue behind one blocker.

What it is
----------
One transaction holds a lock that others want: a forgotten `BEGIN; UPDATE ...` in a console, a migration, a dump, a
prepared transaction nobody finished. Everybody who comes after waits. Two kinds matter, because the cure differs:

* the blocker *holds* the lock, most often idle in transaction;
* the blocker itself *waits*: `ALTER TABLE` wants ACCESS EXCLUSIVE, a long reader is in its way, and from then on
  even plain SELECTs queue behind the waiting ALTER, although reader and SELECTs would not disturb each other.

Why it takes slots
------------------
A waiting session keeps its slot, and the application, still without an answer, opens another one for the next
request. A lock held for a minute turns a pool of ten into a full server; the requests are victims, not the cause.

How we know
-----------
Sessions with `wait_event_type = 'Lock'` are followed with `pg_blocking_pids()` over all steps to the root, in every
reading. A root that stays the same transaction is a blocker; a root that changes again and again is a hot row whose
queue moves, and no finding. A waiting table lock request without which the queue would pass is named on its own.
The wait is aged by `pg_locks.waitstart` (14+), never by `query_start`.

What to do, least disruptive first
----------------------------------
1. If a DDL statement waits at the head of the queue, cancel *it*: `SELECT pg_cancel_backend(pid);`. It did nothing
   yet, so nothing is lost, and everybody behind it passes at once. Ending the reader instead lets the DDL run.
2. Cancel the blocker's statement with `pg_cancel_backend` when it is running one.
3. End the blocker's session with `pg_terminate_backend` when it is idle in transaction: a cancel does nothing then.
   Its transaction is rolled back.
4. A prepared transaction has no pid: look it up in `pg_prepared_xacts` and use `ROLLBACK PREPARED 'gid';`.
5. For the future: `SET lock_timeout = '3s'` and retries in migrations; `idle_in_transaction_session_timeout` for the
   role that forgot its transaction.

Never end the victims: they come back and queue again.

Often mistaken for
------------------
Slow queries (active too, but not waiting for a Lock) · idle in transaction (many sessions, each blocking nobody) ·
a hot row (short waits, the head of the queue changes) · waits of type LWLock or IO, which no blocker explains ·
a limit that is too small: more slots only make the queue longer.

Sources
-------
https://www.postgresql.org/docs/current/explicit-locking.html
https://www.postgresql.org/docs/current/functions-info.html
https://www.postgresql.org/docs/current/view-pg-locks.html
https://www.postgresql.org/docs/current/runtime-config-client.html#GUC-LOCK-TIMEOUT
https://www.postgresql.org/docs/current/functions-admin.html#FUNCTIONS-ADMIN-SIGNAL
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, replace
from statistics import median

from pgvacancy.causes._common import severity_of, sql_in
from pgvacancy.causes._demand import lock_wait_s
from pgvacancy.causes._examples import Pair, pool, server, snapshot
from pgvacancy.causes._locks import PREPARED, Pile, end_command, piles
from pgvacancy.causes._shape import Example, setting
from pgvacancy.model.diagnosis import Advice, Culprit, Fact, Finding
from pgvacancy.model.fingerprint import without_literals
from pgvacancy.model.series import Case, Owner, Track, culprits, keys
from pgvacancy.model.snapshot import Session

CODE = "PGC106"
ORDER = 50
NEEDS = ({"sql", "states", "all-sessions"},)


@dataclass(frozen=True, slots=True)
class Settings:
    """Thresholds of lock-pileup."""

    min_hold_s: float = setting(1, "a lock held for a second is no passing contention at any sensible load")
    min_waiters_count: float = setting(3, "two who meet at a row are everyday life, three are a queue")
    min_share_ratio: float = setting(0.1, "below a tenth of the ordinary slots the queue is not what filled the server")
    early_share_ratio: float = setting(0.2, "with slots free, a queue of a fifth of them is on its way to the limit")
    max_roots_per_s: float = setting(0.7, "a queue whose head changes this often moves: a hot row, not a blocker")


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """How long the same root has held everybody up, and how sure that is."""

    seconds: float
    steady: bool
    roots_seen: int
    readings: int


def detect(case: Case, settings: Settings) -> Finding | None:
    """Find queues behind a lasting blocker."""
    ledger = case.ledger
    if ledger is None or case.last is None:
        return None
    found = [p for p in piles(case.last) if len(p.waiters) >= settings.min_waiters_count]
    if not found:
        return None
    hold = _hold(case, found[0], settings)
    if hold is None:
        return None
    victims = [t for p in found for t in _tracks(case, p.waiters)]
    roots = [t for p in found for t in _tracks(case, p.roots)]
    share = len(victims) / max(1, ledger.ordinary_slots)
    if share < (settings.min_share_ratio if case.scarce else settings.early_share_ratio):
        return None
    blocker = Blocker(case, found[0])
    held = {t.key for t in roots}
    return Finding(
        code=CODE,
        cause="lock-pileup",
        severity=severity_of(case, share),
        confidence=_confidence(hold, blocker),
        summary=f"{len(found[0].waiters)} sessions queue behind {blocker.name}: {blocker.promise}",
        claims=keys(victims) | held,
        evidence=_evidence(found, victims, blocker, hold),
        counter_evidence=(
            Fact(fact="active sessions that do not wait for a lock", value=_unhindered(case, held)),
            Fact(fact="different heads of the queue seen while we looked", value=hold.roots_seen, source="pg_locks"),
        ),
        culprits=(*blocker.culprits, *culprits((v for v in victims if v.session.pid not in blocker.named_pids), 6)),
        remedies=_advice(blocker),
    )


class Blocker:
    """The head of a queue, put into words and commands."""

    def __init__(self, case: Case, pile: Pile) -> None:
        """Look at one pile."""
        self.case = case
        self.pile = pile
        self.root = pile.roots[0] if pile.roots else None
        self.pid = self.root.pid if self.root is not None else pile.root_pids[0]
        # Idle outside a transaction holds everybody up too: by an advisory lock of the session.
        self.idle = self.root is not None and (self.root.state or "").startswith("idle")
        self.freed = len(pile.waiters) + len(pile.roots)

    @property
    def kind(self) -> str:
        """What the root is."""
        if self.root is None:
            return "a prepared transaction" if self.pid == PREPARED else "a server process, such as autovacuum"
        if self.idle:
            return "idle, with a session's advisory lock" if self.root.state == "idle" else str(self.root.state)
        if "pg_dump" in self.root.application_name:
            return "pg_dump"
        return f"running {statement_name(self.root)}"

    @property
    def name(self) -> str:
        """The head of the queue as a person would name it."""
        if self.pile.gate is not None:
            gate = self.pile.gate
            return f"pid {gate.pid}, a waiting {statement_name(gate)}, which waits for {self._root_name()}"
        return self._root_name()

    def _root_name(self) -> str:
        if self.pid == PREPARED:
            return self.kind
        more = f" and {len(self.pile.root_pids) - 1} more" if len(self.pile.root_pids) > 1 else ""
        return f"pid {self.pid}{more} ({self.kind})"

    @property
    def promise(self) -> str:
        """What the first act brings."""
        if self.pile.gate is not None:
            through = self.pile.behind_gate
            first = f"cancelling pid {self.pile.gate.pid} lets {through} sessions through, frees {through + 1} slots"
            return f"{first}; {self.root_promise}" if self.idle else first
        return self.root_promise

    @property
    def root_promise(self) -> str:
        """What removing the root brings."""
        if self.pid == PREPARED:
            return f"rolling it back lets {len(self.pile.waiters)} sessions through"
        if self.idle:
            return f"ending pid {self.pid} frees {self.freed} slots"
        return f"cancelling pid {self.pid} lets {len(self.pile.waiters)} sessions through"

    @property
    def culprits(self) -> tuple[Culprit, ...]:
        """The blocker first: the one to act upon, then what stands behind it."""
        # One by one: culprits() would order them by name and number, not by who is to be acted upon first.
        return tuple(c for s in self._named() for c in culprits(_tracks(self.case, (s,))))

    @property
    def named_pids(self) -> frozenset[int]:
        """Who is named first, and so is not counted among the victims again."""
        return frozenset(s.pid for s in self._named())

    def _named(self) -> tuple[Session, ...]:
        gate = () if self.pile.gate is None else (self.pile.gate,)
        return (*self.pile.roots[:3], *gate) if self.idle else (*gate, *self.pile.roots[:3])


def statement_name(session: Session) -> str:
    """The first words of a statement: its kind and object, no literals."""
    text = without_literals(session.query).split("/*")[0].strip()
    words = re.split(r"[\s();]+", text)
    return " ".join(w for w in words[:3] if w) or "statement"


def _tracks(case: Case, sessions: tuple[Session, ...]) -> list[Track]:
    wanted = {(s.pid, s.backend_start_at or 0.0) for s in sessions}
    return [t for t in case.tracks if t.key in wanted]


def _hold(case: Case, pile: Pile, settings: Settings) -> Hold | None:
    """How long this root has been the head; None when the queue moves or the waits are short."""
    heads = [(s.taken_at, p[0].identity) for s in case.samples if (p := piles(s))]
    since_at = case.now_at
    for taken_at, identity in reversed(heads):
        if not identity & pile.identity:
            break
        since_at = taken_at
    seconds = case.now_at - since_at
    root = pile.roots[0] if pile.roots else None
    if root is not None and (root.state or "").startswith("idle") and root.state_change_at is not None:
        seconds = max(seconds, case.now_at - root.state_change_at)
    heads_seen = len({identity for _, identity in heads})
    steady = seconds >= settings.min_hold_s or pile.root_pids == (PREPARED,)
    hold = Hold(seconds=seconds, steady=steady, roots_seen=heads_seen, readings=len(heads))
    if steady:
        return hold
    waits = [lock_wait_s(t) for t in _tracks(case, pile.waiters)]
    if not waits or median(waits) < settings.min_hold_s:
        return None
    if case.window_s > 0 and heads_seen / max(case.window_s, settings.min_hold_s) >= settings.max_roots_per_s:
        return None
    return hold


def _confidence(hold: Hold, blocker: Blocker) -> float:
    if not hold.steady:
        return 0.55
    if blocker.idle or blocker.pile.gate is not None or blocker.pid == PREPARED:
        return 0.95 if hold.readings > 1 else 0.85
    return 0.9 if hold.readings > 1 else 0.75


def _unhindered(case: Case, held: set[tuple[int, float]]) -> int:
    return sum(1 for t in case.tracks if t.session.state == "active" and not t.waits_for_lock and t.key not in held)


def _evidence(found: list[Pile], victims: list[Track], blocker: Blocker, hold: Hold) -> tuple[Fact, ...]:
    owners = Counter(Owner.of(t) for t in victims).most_common(3)
    facts = [
        Fact(fact="sessions that wait for a lock, the queue's members", value=len(victims)),
        Fact(fact="head of the queue", value=blocker.name, source="pg_blocking_pids"),
        Fact(fact=blocker.root_promise, source="pg_blocking_pids"),
        Fact(fact="seconds the same transaction has been at the root", value=round(hold.seconds, 1)),
        Fact(
            fact="longest wait in seconds",
            value=round(max((lock_wait_s(t) for t in victims), default=0.0), 1),
            source="pg_locks.waitstart",
        ),
        Fact(fact="waiting: " + "; ".join(f"{n} of {owner}" for owner, n in owners)),
    ]
    if blocker.pile.gate is not None:
        facts.insert(2, Fact(fact=blocker.promise, source="pg_blocking_pids"))
    if blocker.root is not None:
        facts.append(Fact(fact="last statement of the root", value=without_literals(blocker.root.query)[:120]))
    if len(found) > 1:
        facts.append(Fact(fact="queues behind different roots", value=len(found), source="pg_blocking_pids"))
    return tuple(facts)


def _advice(blocker: Blocker) -> tuple[Advice, ...]:
    pile = blocker.pile
    result: list[Advice] = []
    if pile.gate is not None:
        result.append(
            Advice(
                slug="cancel-blocker",
                difficulty="easy",
                disruption="none",
                frees=pile.behind_gate + 1,
                command=f"SELECT pg_cancel_backend({pile.gate.pid});",
                why=f"the {statement_name(pile.gate)} only waits, so nothing is lost; everybody behind it passes",
            )
        )
    if blocker.pid == PREPARED:
        result.append(
            Advice(
                slug="cancel-blocker",
                difficulty="medium",
                disruption="none",
                frees=len(pile.waiters),
                command="SELECT gid, prepared, owner, database FROM pg_prepared_xacts ORDER BY prepared;",
                why="then ROLLBACK PREPARED 'gid' in that database, once its transaction manager agrees",
            )
        )
    elif blocker.idle and blocker.root is not None:
        result.append(
            Advice(
                slug="cancel-blocker",
                difficulty="easy",
                disruption="ends-sessions",
                frees=blocker.freed,
                command=end_command(blocker.root),
                why=f"{blocker.root_promise}; its transaction is rolled back; a cancel would do nothing",
            )
        )
    else:
        result.append(
            Advice(
                slug="cancel-blocker",
                difficulty="easy",
                disruption="none",
                frees=len(pile.waiters),
                command=f"SELECT pg_cancel_backend({blocker.pid});",
                why=f"{blocker.root_promise}; the cancelled statement is rolled back",
            )
        )
    role = blocker.root.user if blocker.root is not None and blocker.idle else None
    if role:
        result.append(
            Advice(
                slug="set-idle-in-transaction-timeout",
                difficulty="easy",
                disruption="none",
                command=f"ALTER ROLE {sql_in([role])} SET idle_in_transaction_session_timeout = '60s';",
                why="a forgotten transaction then ends by itself; new sessions only",
            )
        )
    why = "SET lock_timeout = '3s' and retry in migrations; keep transactions short"
    result.append(Advice(slug="fix-application-code", difficulty="medium", disruption="none", why=why))
    return tuple(result)


def _waiting(count: int, root: Pair, *, wait_s: float, wait_event: str = "transactionid") -> list[Pair]:
    """Sessions that wait for one root."""
    return pool(
        "web",
        count,
        state="active",
        idle_s=wait_s,
        age_s=wait_s + 60,
        query="UPDATE accounts SET balance = 1 WHERE id = 1",
        wait_event_type="Lock",
        wait_event=wait_event,
        blocked_by=(root[1].pid,),
        has_xmin=True,
    )


def _moving() -> list[Pair]:
    """A hot row: each reading has another session at the head of the queue."""
    first, second = (pool("web", 1, state="active", idle_s=0.1, age_s=90, use_span_s=9)[0] for _ in range(2))
    queue = _waiting(90, first, wait_s=0.4)
    moved = [(before, replace(after, blocked_by=(second[1].pid,))) for before, after in queue]
    return [first, second, *moved]


def _behind_ddl() -> list[Pair]:
    reader = pool("report", 1, state="active", idle_s=600, age_s=700, query="SELECT * FROM accounts")[0]
    ddl = pool(
        "migrate",
        1,
        state="active",
        idle_s=40,
        age_s=41,
        query="ALTER TABLE accounts ADD COLUMN note text",
        wait_event_type="Lock",
        wait_event="relation",
        lock_mode="AccessExclusiveLock",
        blocked_by=(reader[1].pid,),
    )[0]
    return [reader, ddl, *_waiting(93, ddl, wait_s=30, wait_event="relation")]


def _behind_idle(count: int) -> list[Pair]:
    root = pool("psql", 1, user="alice", state="idle in transaction", idle_s=120, age_s=300)[0]
    return [root, *_waiting(count, root, wait_s=60)]


EXAMPLES = (
    Example("two sessions that meet at a row", "quiet", lambda: snapshot(server(100), _behind_idle(2))),
    Example("a hot row whose queue moves, on a full server", "quiet", lambda: snapshot(server(100), _moving())),
    Example(
        "slow statements without locks",
        "quiet",
        lambda: snapshot(server(100), pool("web", 96, state="active", idle_s=90, age_s=200)),
    ),
    Example("ninety-six behind a forgotten transaction", "fires", lambda: snapshot(server(100), _behind_idle(96))),
    Example("everybody behind a waiting ALTER TABLE", "fires", lambda: snapshot(server(100), _behind_ddl())),
    Example(
        "the blocker is gone and the queue has drained",
        "cleared",
        lambda: snapshot(server(100), pool("web", 96, idle_s=(0, 1), used=True)),
    ),
)
