"""Whole pools are re-created (reload, test context, notebook) and the old ones never closed.

What it is
----------
A development server reloads the module that makes the pool, a test suite builds an application context per
class, a notebook cell is run again, a handler makes a pool per request or per tenant. Each time a new pool
opens its sessions, and the one before is neither closed nor used: nothing refers to it any more but its own
threads.

Why it takes slots
------------------
The process is alive and holds the sockets of every pool it ever made. Each re-creation costs the whole size of
a pool.

How we know
-----------
Births of one client's sessions come in *steps* of equal size with clear pauses between them. No session of an
older step was used after the next step began; the newest step may be in use, and may be cut short by the limit.
One client (process, else address) holds them all: that is what sets it apart from a deployment or from many
workers. Three steps are convincing, two are a hint.

What to do, least disruptive first
----------------------------------
1. Give the development or test role an idle limit: `ALTER ROLE dev SET idle_session_timeout = '5min'` (14+, new
   sessions only).
2. Cap that role: `ALTER ROLE dev CONNECTION LIMIT n`, so that a reload loop never hurts anybody else.
3. End the sessions of every step but the newest: nobody holds a reference to them.
4. The cure: one pool per process, kept outside of what is reloaded, and closed in the shutdown hook.

Often mistaken for
------------------
A deployment in progress (two generations, different processes or addresses, resolves itself) · a leak (one at a
time, a ramp) · pools that grow in bursts (the old members stay in use) · oversized pools (several clients).

Sources
-------
https://www.postgresql.org/docs/current/runtime-config-client.html#GUC-IDLE-SESSION-TIMEOUT
https://www.prisma.io/docs/orm/more/help-and-troubleshooting/nextjs-help
https://docs.spring.io/spring-framework/reference/testing/testcontext-framework/ctx-management/caching.html
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from pgvacancy.causes._common import severity_of, sql_in
from pgvacancy.causes._examples import NOW_AT, pool, server, snapshot
from pgvacancy.causes._shape import Example, setting
from pgvacancy.causes._structure import (
    PEOPLE,
    Life,
    began_at,
    common_size,
    described,
    equal_steps,
    families,
    family_of,
    members,
    tracks_of,
)
from pgvacancy.model.diagnosis import Advice, Fact, Finding
from pgvacancy.model.series import Case, culprits, keys

CODE = "PGC109"
ORDER = 80
NEEDS = ({"sql", "states"},)
GRACE_S = 1.0
"""Uses this soon after the next step began belong to the change from one pool to the other."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Thresholds of abandoned-pools."""

    min_share_ratio: float = setting(0.25, "a few forgotten pools that hold less than a quarter do not fill the server")
    min_steps_count: float = setting(2, "a single pool is not a series; two are a hint, three convince")


def detect(case: Case, settings: Settings) -> Finding | None:
    """Find one client whose sessions came in equal steps, the older of them never used again."""
    ledger = case.ledger
    if ledger is None or not case.scarce:
        return None
    best: list[tuple[Life, ...]] = []
    for family in families(case).values():
        for member in members(family):
            found = _abandoned(member, settings)
            if sum(map(len, found)) > sum(map(len, best)):
                best = found
    total = sum(map(len, best))
    if not best or total < settings.min_share_ratio * ledger.ordinary_slots:
        return None
    return _finding(case, best, total / max(1, ledger.ordinary_slots))


def _abandoned(member: Sequence[Life], settings: Settings) -> list[tuple[Life, ...]]:
    found = equal_steps(member, at_least=int(settings.min_steps_count))
    people = sum(1 for m in member if PEOPLE.search(m.track.session.application_name))
    # A person opens two or three sessions at a time; pools of one larger size, again and again, are a program's.
    if people > len(member) / 2 and (len(found) < 3 or common_size(found[:-1])[0] < 4):
        return []
    for step, following in pairwise(found):
        left_at = began_at(following) + GRACE_S
        kept = [m for m in step if not m.resting or (m.track.session.state_change_at or 0.0) > left_at]
        if kept:
            return []
    # Two steps are a hint only when the newer one is what the program works with now.
    if len(found) == 2 and (not any(m.late_uses for m in found[1]) or len(found[0]) != len(found[1])):
        return []
    return found


def _finding(case: Case, found: Sequence[tuple[Life, ...]], share: float) -> Finding:
    lives = [m for step in found for m in step]
    newest_used = any(m.late_uses for m in found[-1])
    # What is in use is nobody's leftover: only a newest step that rests as well is claimed with the others.
    left = [m for step in (found[:-1] if newest_used else found) for m in step]
    tracks = tracks_of(lives)
    family = family_of(tracks[0])
    size, _ = common_size(found[:-1])
    began = [began_at(step) for step in found]
    pauses = [b - a for a, b in pairwise(began)]
    step_born = all(m.track.born_in_window for m in found[-1])
    sure = 0.62 if len(found) == 2 else 0.8 if len(found) == 3 else 0.86
    sure += 0.05 * newest_used + 0.03 * step_born - 0.1 * (size == 2) - 0.1 * (case.window_s <= 0)
    # Behind one loopback address or socket several processes may hide, each with a pool of its own.
    sure -= 0.12 * (tracks[0].client.startswith(("127.", "::1", "local")) and "[" not in tracks[0].client)
    role = sql_in([family[0]])
    old = tracks_of(m for step in found[:-1] for m in step)
    return Finding(
        code=CODE,
        cause="abandoned-pools",
        severity=severity_of(case, share),
        confidence=round(min(sure, 0.92), 2),
        summary=(
            f"{described(family)}: one client opened {len(found)} pools of {size} one after another and left "
            f"{len(old)} sessions of the older ones behind"
        ),
        claims=keys(tracks),
        evidence=(
            Fact(fact="steps in which one client's sessions were born", value=len(found)),
            Fact(fact="sessions per step, oldest first", value=" ".join(str(len(step)) for step in found)),
            Fact(fact="shortest time between two steps, in seconds", value=round(min(pauses), 2)),
            Fact(fact="sessions of older steps, none used after the next step began", value=len(old)),
            Fact(fact="client", value=tracks[0].client),
        ),
        counter_evidence=(
            Fact(fact="sessions of the newest step", value=len(found[-1])),
            Fact(fact="of these used while we looked", value=sum(1 for m in found[-1] if m.late_uses)),
        ),
        culprits=culprits(tracks),
        remedies=(
            Advice(
                slug="set-idle-session-timeout",
                difficulty="easy",
                disruption="none",
                command=f"ALTER ROLE {role} SET idle_session_timeout = '5min';",
                why="reaches new sessions only (PostgreSQL 14+)",
            ),
            Advice(
                slug="limit-role-connections",
                difficulty="easy",
                disruption="none",
                command=f"ALTER ROLE {role} CONNECTION LIMIT {2 * size};",
                why="room for a pool and its successor; refuses this role's new sessions at once",
            ),
            Advice(
                slug="end-idle-sessions",
                difficulty="easy",
                disruption="ends-sessions",
                frees=len(old),
                command=(
                    "SELECT pid, pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'client backend'"
                    f" AND state = 'idle' AND pid IN ({', '.join(str(t.session.pid) for t in old[:60])});"
                ),
                why=f"all steps but the newest; {len(left)} sessions rest in all",
            ),
            Advice(
                slug="fix-application-code",
                difficulty="medium",
                disruption="none",
                command=r'grep -rnE "create_engine\(|ConnectionPool\(|create_pool\(|new Pool\(|HikariDataSource\(" .',
                why="one pool per process, made outside of what is reloaded, closed at shutdown",
            ),
        ),
    )


def _steps(count: int, size: int, *, used: bool = False, every_s: float = 60.0) -> list[list[tuple]]:  # type: ignore[type-arg]
    groups = []
    for n in range(count):
        newest = n == count - 1
        age_s = 5 + every_s * (count - 1 - n)
        pairs = pool("next-dev", size, idle_s=0.5 if used or newest else age_s, age_s=age_s, used=used or newest)
        groups.append(
            [
                (
                    replace(a, backend_start_at=NOW_AT - age_s + 0.01 * i),
                    replace(b, backend_start_at=NOW_AT - age_s + 0.01 * i),
                )
                for i, (a, b) in enumerate(pairs)
            ]
        )
    return groups


EXAMPLES = (
    Example("one pool at work", "quiet", lambda: snapshot(server(100), *_steps(1, 10))),
    Example(
        "a pool that grew in bursts and uses all of its members",
        "quiet",
        lambda: snapshot(server(100), *_steps(9, 10, used=True)),
    ),
    Example(
        "nine pools of ten from one process, the newest in use", "fires", lambda: snapshot(server(100), *_steps(9, 10))
    ),
    Example("after all but the newest were ended", "cleared", lambda: snapshot(server(100), *_steps(1, 10))),
)
