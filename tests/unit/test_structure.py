"""What tells bursts, steps, ramps and generations apart."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgvacancy.causes._examples import NOW_AT, pool, server, snapshot
from pgvacancy.causes._structure import (
    Life,
    equal_steps,
    families,
    family_name,
    generations,
    is_paced,
    is_ramp,
    lives,
    members,
    names_release,
    patience_s,
    spread_count,
    steps,
    without_bursts,
)
from pgvacancy.model.series import Case, Track
from pgvacancy.model.snapshot import Sample


def born(*ages_s: float, opened_in_s: float = 0.008, client: str = "10.0.0.1", name: str = "web") -> list[Life]:
    """Idle sessions of these ages, used once right after their birth."""
    pairs = pool(name, len(ages_s), client=client)
    sessions = [
        replace(p[1], backend_start_at=NOW_AT - age, state_change_at=NOW_AT - age + opened_in_s)
        for p, age in zip(pairs, ages_s, strict=True)
    ]
    return [Life(track_of(s), 0) for s in sessions]


def track_of(session: object) -> Track:
    """A session seen unchanged at two readings."""
    case = Case(snapshot(server(), [(session, session)]))  # type: ignore[list-item]
    return case.all_tracks[0]


def steps_of(size: int, count: int, *, every_s: float, within_s: float = 0.01) -> list[float]:
    """Ages of ``count`` pools of ``size``."""
    return [10 + every_s * n + within_s * i for n in range(count) for i in range(size)]


@settings(deadline=None)
@given(st.integers(2, 9), st.integers(3, 9), st.floats(0.4, 100))
def test_equal_pools_are_steps_and_no_ramp(size: int, count: int, every_s: float) -> None:
    items = born(*steps_of(size, count, every_s=every_s))
    assert [len(s) for s in steps(items)] == [size] * count
    assert len(equal_steps(items)) == count
    assert not is_ramp(items)


@settings(deadline=None)
@given(st.integers(5, 60), st.floats(0.05, 500))
def test_an_even_ramp_is_one_step(count: int, gap_s: float) -> None:
    items = born(*(5 + gap_s * n for n in range(count)))
    assert len(steps(items)) == 1
    assert is_ramp(items)
    assert is_paced(items)
    assert spread_count(items) == pytest.approx(count - 1, rel=0.01)


@settings(deadline=None)
@given(st.integers(0, 10_000))
def test_random_arrivals_are_a_ramp(seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311 - not for secrets
    ages, age = [], 3.0
    for _ in range(40):
        ages.append(age)
        age += chance.expovariate(1 / 0.2)
    assert is_ramp(born(*ages))


@settings(deadline=None)
@given(st.integers(4, 40), st.floats(0.004, 0.2))
def test_a_pool_filled_in_a_loop_is_not_paced_however_slow_the_machine(count: int, opening_s: float) -> None:
    ages = [5 + opening_s * 1.1 * n for n in range(count)]
    assert not is_paced(born(*ages, opened_in_s=opening_s))


def test_a_pool_filled_before_a_leak_is_left_out() -> None:
    filled = [20 + 0.01 * n for n in range(8)]
    leaked = [3 + 0.3 * n for n in range(12)]
    kept = without_bursts(born(*filled, *leaked))
    assert len(kept) == pytest.approx(12, abs=1)


def test_a_burst_is_kept_when_there_is_nothing_else() -> None:
    assert len(without_bursts(born(*(5 + 0.01 * n for n in range(10))))) == 10


@pytest.mark.parametrize(
    ("one", "other"),
    [("web-1", "web-12"), ("shop@v1.4.2", "shop@v2.0.0"), ("api-blue", "api-green"), ("worker1", "worker7"),
     ("orders-7d9f8b6c5-x2x4z", "orders-55c6d7f4b-k8q2w"), ("Web 1", "web 2")],
)  # fmt: skip
def test_instances_and_releases_are_one_family(one: str, other: str) -> None:
    assert family_name(one) == family_name(other)


@pytest.mark.parametrize(
    ("one", "other"), [("web", "api"), ("psql", "dbeaver"), ("orders-web", "orders-jobs"), ("", "x")]
)
def test_other_applications_are_other_families(one: str, other: str) -> None:
    assert family_name(one) != family_name(other)


@settings(deadline=None)
@given(st.text(max_size=30))
def test_any_name_has_a_family(name: str) -> None:
    assert isinstance(family_name(name), str)
    assert family_name(name) == family_name(name.lower())


@pytest.mark.parametrize(
    ("name", "release"),
    [("shop-v2", True), ("shop 1.4", True), ("api-green", True), ("web-2", False), ("", False), ("evergreen", False)],
)
def test_a_release_is_no_ordinal(name: str, *, release: bool) -> None:
    assert names_release(name) is release


def parts_of(*began_s_ago: float, size: int = 4) -> list[tuple[Life, ...]]:
    """Clients by the age of their pools."""
    return [
        tuple(born(*(age - 0.01 * i for i in range(size)), client=f"10.0.0.{n}")) for n, age in enumerate(began_s_ago)
    ]


def test_two_generations() -> None:
    pair = generations(parts_of(600.2, 600.0, 20.1, 20.0))
    assert pair is not None
    assert [len(p) for p in pair] == [8, 8]


@pytest.mark.parametrize(
    "began_s_ago",
    [(20.0,), (20.9, 20.6, 20.3, 20.0), (21.0, 20.0), (600.0, 300.0, 0.5), (600.3, 600.2, 600.1, 20.0)],
    ids=["one", "started in turn", "a second apart", "evenly over time", "one of four restarted"],
)
def test_no_two_generations(began_s_ago: tuple[float, ...]) -> None:
    assert generations(parts_of(*began_s_ago)) is None


def case_with_uses(uses: list[int], readings: int = 13) -> Case:
    """One client's sessions, each used in so many of the intervals between the readings."""
    base = snapshot(server(), pool("web", len(uses), idle_s=50, age_s=60))
    first, last = base.samples[0], base.samples[-1]
    samples: list[Sample] = []
    for n in range(readings):
        at = NOW_AT - 3 + 3 * n / (readings - 1)
        sessions = tuple(
            replace(
                s,
                state_change_at=at - 0.1
                if 0 < n <= u
                else (samples[-1].sessions[i].state_change_at if samples else s.state_change_at),
            )
            for i, (s, u) in enumerate(zip(last.sessions, uses, strict=True))
        )
        samples.append(replace(first, taken_at=at, sessions=sessions))
    return Case(replace(base, samples=tuple(samples)))


def test_late_uses_are_counted() -> None:
    assert [m.late_uses for m in lives(case_with_uses([0, 1, 5, 12]))] == [0, 1, 5, 12]


@pytest.mark.parametrize("uses", [[0] * 20, [12] + [0] * 19, [12] * 8 + [0] * 9, [4] + [0] * 40])
def test_unused_sessions_stand_apart(uses: list[int]) -> None:
    case = case_with_uses(uses)
    assert patience_s(case, lives(case)) == 0


@pytest.mark.parametrize("uses", [[1, 0, 2, 0, 1, 0, 0, 1, 3, 0, 1, 1], [1] * 4 + [0] * 12, [3, 2, 4, 3, 1, 2, 5, 3]])
def test_chance_among_equals_is_a_habit(uses: list[int]) -> None:
    case = case_with_uses(uses)
    assert patience_s(case, lives(case)) > 3


def test_members_are_told_apart_by_client_and_name_unless_every_session_has_a_name() -> None:
    base = server(100)
    named = Case(snapshot(base, *(pool(f"web-{n}", 5) for n in range(3))))
    assert [len(p) for p in members(next(iter(families(named).values())))] == [5, 5, 5]
    single = Case(snapshot(base, *(pool(f"web-{n}", 1, client=f"10.0.0.{n % 2}") for n in range(8))))
    assert [len(p) for p in members(next(iter(families(single).values())))] == [4, 4]


@settings(deadline=None)
@given(st.lists(st.floats(0.001, 1000), min_size=1, max_size=40))
def test_steps_lose_nobody_and_keep_the_order(ages_s: list[float]) -> None:
    found = steps(born(*ages_s))
    flat = [m.track.session.backend_start_at or 0.0 for s in found for m in s]
    assert len(flat) == len(ages_s)
    assert all(a <= b for a, b in pairwise(flat))
