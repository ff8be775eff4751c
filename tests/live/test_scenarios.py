"""Every cause on a real server: baseline quiet, look-alike quiet, fault first, documented remedy quiet again."""

from __future__ import annotations

from pathlib import Path

import pytest

from pgvacancy.causes import slugs
from pgvacancy.cli._trial import laboratory, trial
from pgvacancy.lab.scenario import load_scenario, scenario_slugs

MATRIX = frozenset({"limit-too-small", "connection-leak", "no-pooling", "traffic-spike", "idle-sessions"})
"""The five causes everybody lists are tried on every major."""


@pytest.mark.parametrize(
    "slug", [pytest.param(s, marks=[pytest.mark.matrix] if s in MATRIX else []) for s in scenario_slugs()]
)
def test_cause_is_recognised_and_its_look_alike_is_not(slug: str, pg_bin: Path | None) -> None:
    scenario = load_scenario(slug)
    with laboratory(scenario, pg_bin) as lab:
        stages = trial(scenario, lab)
    failed = [s.describe() for s in stages if not s.passed]
    assert not failed, "\n".join(s.describe() for s in stages)


def test_every_cause_has_a_scenario() -> None:
    assert set(scenario_slugs()) == set(slugs())
