"""Every cause is complete, and its worked examples say what it does."""

from __future__ import annotations

import ast
import re
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest

from pgvacancy import causes
from pgvacancy.causes._shape import HEADINGS
from pgvacancy.model.diagnosis import Diagnosis

CONTRACT = frozenset(
    {
        "abandoned-pools",
        "authentication-flood",
        "connection-leak",
        "dead-clients",
        "deploy-overlap",
        "idle-in-transaction",
        "idle-sessions",
        "limit-too-small",
        "lock-pileup",
        "monitoring-agents",
        "no-pooling",
        "oversized-pools",
        "pooler-misfit",
        "retry-storm",
        "role-or-database-limit",
        "serverless-fanout",
        "slow-queries",
        "standby-limit",
        "superuser-application",
        "traffic-spike",
        "walsender-limit",
    }
)
FIXED_SETTINGS = frozenset(
    {
        "connection-leak.min_idle_s",
        "dead-clients.min_idle_s",
        "idle-in-transaction.min_idle_s",
        "idle-sessions.min_idle_s",
        "slow-queries.min_running_s",
    }
)
REMEDIES = frozenset(
    {
        "cancel-blocker",
        "demote-superuser-application",
        "deploy-pooler",
        "end-idle-sessions",
        "end-idle-transactions",
        "fix-application-code",
        "limit-role-connections",
        "raise-database-limit",
        "raise-max-connections",
        "raise-max-wal-senders",
        "raise-pooler-clients",
        "raise-role-limit",
        "reserve-slots",
        "resize-pool",
        "set-authentication-timeout",
        "set-idle-in-transaction-timeout",
        "set-idle-session-timeout",
        "set-tcp-keepalives",
    }
)
UNITS = ("_s", "_ms", "_bytes", "_ratio", "_at", "_per_s", "_per_minute", "_count")
KINDS = {"quiet", "fires", "cleared"}
FOLDER = Path(causes.__file__).parent
each_cause = pytest.mark.parametrize("slug", causes.slugs())


def test_the_causes_are_those_of_the_contract() -> None:
    assert set(causes.slugs()) == CONTRACT


def test_codes_are_of_their_range_and_unique() -> None:
    codes = [cause.code for cause in causes.load_all()]
    assert all(re.fullmatch(r"PGC1[0-9]{2}", code) for code in codes)
    assert len(set(codes)) == len(codes)


def test_settings_fixed_by_the_contract_exist() -> None:
    assert {s.name for cause in causes.load_all() for s in cause.settings} >= FIXED_SETTINGS


@each_cause
def test_the_page_has_its_headings_in_order(slug: str) -> None:
    page = causes.load(slug).page
    found = re.findall(r"^(.+)\n-{3,}$", page, re.MULTILINE)
    assert tuple(found) == HEADINGS
    summary = page.strip().splitlines()[0]
    assert summary.endswith(".")
    for text in re.split(r"^.+\n-{3,}$", page, flags=re.MULTILINE)[1:]:
        assert text.strip(), "a heading without text"
    assert re.search(r"https://\S+", page.split("Sources")[-1])


@each_cause
def test_thresholds_carry_a_unit_and_a_reason(slug: str) -> None:
    cause = causes.load(slug)
    assert is_dataclass(cause.module.Settings)
    assert len(cause.settings) == len(fields(cause.module.Settings)), "a threshold without a default"
    for setting in cause.settings:
        assert setting.name.endswith(UNITS), setting.name
        assert len(setting.why.split()) >= 4, setting.name
        assert setting.default >= 0


@each_cause
def test_the_fixed_attributes_are_there(slug: str) -> None:
    cause = causes.load(slug)
    assert isinstance(cause.order, int)
    assert cause.needs
    assert all(need and all(isinstance(word, str) for word in need) for need in cause.needs)


@each_cause
def test_a_cause_knows_no_other_cause(slug: str) -> None:
    source = (FOLDER / f"{slug.replace('-', '_')}.py").read_text(encoding="utf-8")
    others = {f"pgvacancy.causes.{s.replace('-', '_')}" for s in causes.slugs()}
    imported: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module:
            imported |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
    assert not imported & others


@each_cause
def test_there_are_enough_examples(slug: str) -> None:
    outcomes = [example.outcome for example in causes.load(slug).examples]
    assert set(outcomes) <= KINDS
    assert outcomes.count("quiet") >= 2
    assert "fires" in outcomes
    assert "cleared" in outcomes


def cases() -> list[object]:
    return [
        pytest.param(slug, number, id=f"{slug}: {example.outcome}: {example.name}")
        for slug in causes.slugs()
        for number, example in enumerate(causes.load(slug).examples)
    ]


@pytest.mark.parametrize(("slug", "number"), cases())
def test_an_example_does_what_it_says(slug: str, number: int) -> None:
    example = causes.load(slug).examples[number]
    diagnosis = causes.diagnose(example.build())
    assert not diagnosis.crashed
    found = [finding.cause for finding in diagnosis.findings]
    if example.outcome == "fires":
        assert found[:1] == [slug], described(diagnosis)
        first = diagnosis.findings[0]
        assert first.code == causes.load(slug).code
        assert first.summary
        assert first.evidence
        assert first.remedies
        assert {advice.slug for advice in first.remedies} <= REMEDIES
    else:
        assert slug not in found, described(diagnosis)


@pytest.mark.parametrize(("slug", "number"), cases())
def test_the_same_snapshot_gives_the_same_answer(slug: str, number: int) -> None:
    snapshot = causes.load(slug).examples[number].build()
    assert causes.diagnose(snapshot) == causes.diagnose(snapshot)


def described(diagnosis: Diagnosis) -> str:
    """The findings in brief, for the message of a failed test."""
    lines = [f"{f.cause} {f.confidence:.2f} {f.slots} slots: {f.summary}" for f in diagnosis.findings]
    lines += [f"not checked: {n.cause}: {n.reason}" for n in diagnosis.not_checked]
    return "\n".join(["", *lines])
