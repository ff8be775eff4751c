"""How sessions were born, who holds them and how they are used: what tells pools, leaks and generations apart.

The causes that read this look alike in a single figure (many idle sessions of one application), so they
share one set of judgements and cannot disagree about what is a step, a ramp, a generation or a habit.

* **late uses** of a session are the intervals between two readings in which it was used, what happened within
  :data:`BIRTH_S` seconds after its birth left out: everybody uses a session once when it is new.
* a group's **habit** says how long a pause is usual. Uses per session follow the law of chance when the pool picks
  any of them; when they are spread far more unequally, the unused ones stand apart (a leak beside a pool, the
  depth of a last-in-first-out pool) and the habit of the others says nothing about them.
* the **spread** of births is the number of equal gaps that would be as uneven: n-1 for an even ramp, about half
  of that for random arrivals, the number of gaps between steps for steps, about 0 to 1 for bursts.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from statistics import median

from pgvacancy.causes._common import by_design, is_monitor
from pgvacancy.model.series import Case, Track, group

BIRTH_S = 1.0
"""Uses this soon after a session's birth belong to opening it."""
REQUEST_S = 60.0
"""The longest piece of work that may follow an opening, when sessions are old enough to tell."""
STEP_S = 0.1
"""The shortest pause between two steps: opening a single session takes a tenth of it."""
SLOW_S = 0.5
"""No pool takes this long over each session it opens."""
PAUSE_S = 0.02
"""Between two sessions that a loop opens lie a few milliseconds at most, on a machine with nothing else to do."""
LONGEST_FILL_S = 5.0
"""Births further apart than a filling of this length come from use, not from filling a pool."""
TWO_WORKERS_S = 5.0
"""A supervisor starts the second worker sooner than this after the first."""
OPENINGS = 20
"""A program that starts takes no longer than this many openings of a session."""
CHURN_RATIO = 0.3
"""As many births *and* ends as this share of what is there, within a few seconds: sessions pass through."""
PATIENCE = 5.0
"""Pauses up to this many mean intervals are usual: a longer one has a probability of e^-5, below one percent."""

PEOPLE = re.compile(
    r"\bpsql\b|dbeaver|pgadmin|datagrip|postico|tableplus|pgcli|heidisql|navicat|beekeeper|jupyter|ipython|rstudio"
    r"|excel|power ?bi|tableau|dbvisualizer|squirrel|notebook",
    re.IGNORECASE,
)
"""Programs that people drive: what they leave behind is forgotten, not leaked by code."""
_POOLERS = re.compile(r"pgbouncer|pgcat|odyssey|pgpool|supavisor", re.IGNORECASE)
_RELEASE_WORDS = frozenset(
    {
        "v",
        "blue",
        "green",
        "old",
        "new",
        "canary",
        "stable",
        "next",
        "prev",
        "previous",
        "current",
        "rev",
        "release",
        "gen",
    }
)
_RELEASE = re.compile(
    r"(?:^|[^a-z])(?:v\.?\d|\d+\.\d|(?=[0-9a-f]*\d)[0-9a-f]{7,}\b|(?:"
    + "|".join(sorted(_RELEASE_WORDS - {"v"}))
    + r")\b)"
)


@dataclass(frozen=True, slots=True)
class Life:
    """A session with its uses counted."""

    track: Track
    late_uses: int
    """Intervals between readings in which it was used, its birth left out."""

    @property
    def resting(self) -> bool:
        """Idle, and not used while we looked, but for its birth."""
        return self.track.idle and self.late_uses == 0

    @property
    def used_once(self) -> bool:
        """Used right after its birth and never again."""
        t = self.track
        return self.resting and t.use_span_s <= max(BIRTH_S, min(0.2 * t.age_s, REQUEST_S))


@lru_cache(maxsize=2)
def lives(case: Case) -> tuple[Life, ...]:
    """Sessions that programs hold now: watchers, listeners and a pooler's own sessions left out."""
    uses: Counter[tuple[int, float]] = Counter()
    before: dict[tuple[int, float], tuple[float | None, float | None]] = {}
    for sample in case.samples:
        for s in sample.sessions:
            born_at = s.backend_start_at or 0.0
            key, marks = (s.pid, born_at), (s.state_change_at, s.query_start_at)
            last_at = max(s.state_change_at or 0.0, s.query_start_at or 0.0)
            advanced = key in before and before[key] != marks and last_at - born_at > BIRTH_S
            working = s.state == "active" and sample.taken_at - born_at > BIRTH_S
            uses[key] += advanced or working
            before[key] = marks
    return tuple(Life(t, uses[t.key]) for t in case.tracks if not (by_design(t) or is_monitor(t) or is_pooler(t)))


def is_pooler(track: Track) -> bool:
    """Whether the client is a connection pooler: its sessions follow its own rules."""
    return bool(_POOLERS.search(track.client) or _POOLERS.search(track.session.application_name))


def patience_s(case: Case, members: Sequence[Life]) -> float:
    """The idle age from which an unused session of this group is out of its habit; 0 when any is."""
    intervals = len(case.samples) - 1
    used = sum(m.late_uses for m in members)
    if not used or intervals < 1 or case.window_s <= 0 or _stand_apart(members, intervals):
        return 0.0
    return PATIENCE * len(members) * case.window_s / used


def _stand_apart(members: Sequence[Life], intervals: int) -> bool:
    """Whether the used and the unused are two kinds, rather than one kind that chance treats unequally.

    Uses that fall on any member alike vary as a Poisson law does, variance equal to the mean, and leave a known number
    unused. Far more variance (four standard deviations) or far more unused ones (three) is no chance.
    """
    count, used = len(members), sum(m.late_uses for m in members)
    mean = used / count
    if count > 2 and max(m.late_uses for m in members) >= 3:
        dispersion = sum((m.late_uses - mean) ** 2 for m in members) / (count - 1) / mean
        if (dispersion - 1) * math.sqrt((count - 1) / 2) >= 4:
            return True
    missed_ratio = (1 - min(1.0, mean / intervals)) ** intervals
    deviation = math.sqrt(count * missed_ratio * (1 - missed_ratio))
    unused = sum(1 for m in members if m.late_uses == 0)
    return unused >= count * missed_ratio + 3 * deviation + 1


def family_name(application_name: str) -> str:
    """The name of an application without what tells its instances and releases apart.

    ``web-1`` and ``web-2`` are both ``web``; ``shop@v1.4`` is ``shop``; a name of digits alone stays as it is.
    """
    words = []
    for token in re.findall(r"[a-z0-9]+", application_name.lower()):
        word = token.rstrip("0123456789")
        hexadecimal = len(token) >= 6 and re.fullmatch(r"[0-9a-f]*\d[0-9a-f]*", token)
        if word and not hexadecimal and word not in _RELEASE_WORDS and not re.search(r"\d", word):
            words.append(word)
    kept = [w for w in words if len(w) > 1] or words
    return " ".join(kept) or application_name.lower()


def names_release(application_name: str) -> bool:
    """Whether a name carries a version, a commit or a colour, not a mere ordinal."""
    return bool(_RELEASE.search(application_name.lower()))


Family = tuple[str, str, str]


def family_of(track: Track) -> Family:
    """User, database and the application's name without its suffix."""
    s = track.session
    return (s.user or "", s.database or "", family_name(s.application_name))


def described(family: Family) -> str:
    """A family as a person would name it."""
    user, database, name = family
    return f"{name or '(no application_name)'}, user {user}, database {database}"


def families(case: Case) -> dict[Family, tuple[Life, ...]]:
    """Lives by family, largest first."""
    of = {life.track.key: life for life in lives(case)}
    groups = group((life.track for life in of.values()), family_of)
    return {k: tuple(of[t.key] for t in tracks) for k, tracks in groups.items()}


def members(family: Iterable[Life]) -> list[tuple[Life, ...]]:
    """A family's lives by client, the one that began first leading.

    A client is a process, or an address where processes are unknown; several names within one client are
    several clients, unless nearly every session has a name of its own.
    """
    items = _with_known_clients(list(family))
    parts = _parts(items, lambda m: (m.track.client, m.track.session.application_name))
    if sum(1 for p in parts if len(p) == 1) > len(parts) / 2:
        parts = _parts(items, lambda m: m.track.client)
    return sorted(parts, key=began_at)


def _with_known_clients(items: list[Life]) -> list[Life]:
    """Leave out the few whose process is not known although their neighbours' at the same address are.

    They are somebody's, but nobody can say whose: as a client of its own their address would be an invention.
    """
    known = {m.track.session.client_addr for m in items if m.track.client != (m.track.session.client_addr or "local")}
    sure = [
        m
        for m in items
        if m.track.client != (m.track.session.client_addr or "local") or m.track.session.client_addr not in known
    ]
    return sure if 2 * len(sure) >= len(items) else items


def _parts(items: Sequence[Life], key: Callable[[Life], Hashable]) -> list[tuple[Life, ...]]:
    parts: dict[Hashable, list[Life]] = {}
    for item in items:
        parts.setdefault(key(item), []).append(item)
    return [tuple(p) for p in parts.values()]


def began_at(member: Iterable[Life]) -> float:
    """The first birth, on the server's clock."""
    return min(born_at(m) for m in member)


def comes_and_goes(case: Case, family: Family) -> bool:
    """Whether this family's sessions are opened and closed all the time: what exists at one instant is no pool then.

    Sessions of a start-up are born and those of a shutdown end; only a connection per request does both. Where
    sessions live for less than the pause between two readings, the server's own count of them tells.
    """
    mine = [t for t in case.all_tracks if not t.session.is_own and family_of(t) == family]
    alive = [t for t in mine if t.alive]
    born, ended = sum(1 for t in mine if t.born_in_window), sum(1 for t in mine if not t.alive)
    if min(born, ended) >= max(2, CHURN_RATIO * len(alive)):
        return True
    if not alive or case.window_s <= 0 or median(t.age_s for t in alive) > case.window_s:
        return False
    missed = (case.sessions_per_s or 0.0) * case.window_s - case.births
    return missed + ended >= max(2, len(alive))


def born_at(life: Life) -> float:
    """When a session began, on the server's clock."""
    return life.track.session.backend_start_at or 0.0


def births(items: Iterable[Life]) -> list[float]:
    """Instants of birth, ascending."""
    return sorted(born_at(m) for m in items)


def gaps(instants: Sequence[float]) -> list[float]:
    """Seconds between neighbours."""
    return [b - a for a, b in pairwise(instants)]


def spread_count(items: Iterable[Life]) -> float:
    """How many equal gaps the births are worth: few for bursts and steps, many for a ramp."""
    between = gaps(births(items))
    squares = sum(g * g for g in between)
    return sum(between) ** 2 / squares if squares > 0 else 0.0


def steps(items: Iterable[Life]) -> list[tuple[Life, ...]]:
    """Births as steps, oldest first; one step when there is no natural break between short gaps and long ones.

    The break is where the sorted gaps jump most, by a factor of 2.5 at least, and long gaps are the smaller part.
    """
    ordered = sorted(items, key=born_at)
    between = gaps([born_at(m) for m in ordered])
    if not between:
        return [tuple(ordered)] if ordered else []
    ranked = sorted(between)
    best_ratio, limit_s = 2.5, math.inf
    start = max(0, len(ranked) // 2 - 1)
    for low, high in zip(ranked[start:], ranked[start + 1 :], strict=False):
        floor = max(low, 0.01)
        if high >= STEP_S and high / floor >= best_ratio:
            best_ratio, limit_s = high / floor, math.sqrt(high * floor)
    result: list[list[Life]] = [[ordered[0]]]
    for life, gap in zip(ordered[1:], between, strict=True):
        if gap > limit_s:
            result.append([life])
        else:
            result[-1].append(life)
    return [tuple(r) for r in result]


def common_size(parts: Sequence[Sequence[Life]]) -> tuple[int, float]:
    """The commonest size of these parts (the larger one in a tie), and the share of parts that have it."""
    counts = Counter(len(p) for p in parts)
    if not counts:
        return 0, 0.0
    size, times = max(counts.items(), key=lambda item: (item[1], item[0]))
    return size, times / len(parts)


def equal_steps(items: Iterable[Life], *, at_least: int = 3) -> list[tuple[Life, ...]]:
    """The steps when they are of one size (two sessions or more); the newest may be cut short. Else nothing."""
    parts = steps(items)
    if len(parts) < at_least:
        return []
    size, share = common_size(parts[:-1])
    return parts if size >= 2 and share >= 0.75 and len(parts[-1]) <= size else []


def generations(parts: Sequence[tuple[Life, ...]]) -> tuple[tuple[Life, ...], tuple[Life, ...]] | None:
    """Two generations of clients, the older and the younger, when their beginnings fall clearly in two.

    ``parts`` in the order they began. The widest gap between two beginnings must be three times any other, and wide
    enough not to be the time a program takes to start.
    """
    if len(parts) < 2:
        return None
    begun = [began_at(p) for p in parts]
    between = gaps(begun)
    at = max(range(len(between)), key=between.__getitem__)
    others = between[:at] + between[at + 1 :]
    older, younger = parts[: at + 1], parts[at + 1 :]
    old_names = {m.track.session.application_name for p in older for m in p}
    new_names = {m.track.session.application_name for p in younger for m in p}
    renamed = not old_names & new_names and any(map(names_release, old_names | new_names))
    old, new = tuple(m for p in older for m in p), tuple(m for p in younger for m in p)
    old_uses, new_uses = (sum(m.late_uses for m in g) for g in (old, new))
    # Two processes that are used alike may be two workers of one start: then the pause between them must be longer.
    alone_s = TWO_WORKERS_S if 0 < new_uses < 3 * old_uses else 1.5
    needed_s = 0.5 if renamed else 1.0 if min(len(older), len(younger)) > 1 else alone_s
    # A program starts as slowly as this machine opens sessions just now, which the quickest unused one shows.
    opened_in_s = [m.track.use_span_s for m in (*old, *new) if m.used_once]
    needed_s = max(needed_s, min(LONGEST_FILL_S, OPENINGS * min(opened_in_s))) if len(opened_in_s) > 2 else needed_s
    # Nor may a client count that only waited until the one before had filled its pool.
    needed_s += max(min(LONGEST_FILL_S, (len(p) - 1) * median(gaps(births(p)) or [0.0])) for p in older)
    balanced = min(len(old), len(new)) >= 0.4 * max(len(old), len(new))
    if between[at] < max(needed_s, 3 * max(others, default=0.0)) or not balanced:
        return None
    if min(len(older), len(younger)) < 0.4 * max(len(older), len(younger)):
        return None
    return old, new


def pause_s(items: Sequence[Life]) -> float:
    """Median seconds between the last use of a session and the birth of the next; below 0 when they overlap."""
    ordered = sorted(items, key=born_at)
    pauses = [born_at(b) - (a.track.session.state_change_at or born_at(a)) for a, b in pairwise(ordered)]
    return median(pauses) if pauses else 0.0


def without_bursts(items: Sequence[Life]) -> list[Life]:
    """Leave out births that came in a run far quicker than the rest: a pool was filled there."""
    ordered = sorted(items, key=born_at)
    between = gaps(births(ordered))
    if len(between) < 4:
        return ordered
    quick_s = 0.1 * sorted(between)[3 * len(between) // 4]
    kept: list[Life] = []
    run: list[Life] = [ordered[0]]
    for life, gap in zip(ordered[1:], between, strict=True):
        if gap >= quick_s:
            kept += run if len(run) < 3 else []
            run = []
        run.append(life)
    return kept + (run if len(run) < 3 else [])


def is_ramp(items: Sequence[Life]) -> bool:
    """Whether births came one by one: neither in one burst nor in equal steps."""
    return spread_count(items) >= max(1.8, 0.25 * (len(items) - 1)) and not equal_steps(items)


def is_paced(items: Sequence[Life]) -> bool:
    """Whether something other than opening itself set the pace of these births.

    A loop that fills a pool opens the next session as soon as the last one is there. How long that takes on this
    machine now is measured on the sessions themselves: from birth to last use.
    """
    instants = births(items)
    if len(instants) < 2:
        return False
    opened_in_s = median(m.track.use_span_s for m in items)
    mean_gap_s = (instants[-1] - instants[0]) / (len(instants) - 1)
    return mean_gap_s >= SLOW_S or pause_s(items) > max(PAUSE_S, opened_in_s)


def tracks_of(items: Iterable[Life]) -> tuple[Track, ...]:
    """The sessions themselves."""
    return tuple(m.track for m in items)
