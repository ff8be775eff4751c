"""Saved snapshots: round trip without literals, and whatever bytes somebody hands over."""

from __future__ import annotations

import io
import json
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from pgvacancy.causes import diagnose, load_all
from pgvacancy.cli._report import print_report
from pgvacancy.model.errors import SnapshotFileError
from pgvacancy.model.report import to_json
from pgvacancy.observe.archive import load, save

EXAMPLES = [e.build() for c in load_all() for e in c.examples]


@pytest.mark.parametrize("number", range(0, len(EXAMPLES), 5))
def test_round_trip_gives_the_same_diagnosis(number: int, tmp_path: Path) -> None:
    path = tmp_path / "snapshot.json"
    save(EXAMPLES[number], path)
    again = load(path)
    assert to_json(diagnose(again)) == to_json(diagnose(EXAMPLES[number]))


def test_saved_for_the_owner_only_and_without_literals(tmp_path: Path) -> None:
    from dataclasses import replace

    snapshot = EXAMPLES[0]
    sample = snapshot.samples[-1]
    secret = replace(sample.sessions[0], query="SELECT * FROM users WHERE mail = 'jane@example.org' AND pin = 4711")
    path = tmp_path / "snapshot.json"
    save(replace(snapshot, samples=(replace(sample, sessions=(secret,)),)), path)
    text = path.read_text()
    assert "jane" not in text
    assert "4711" not in text
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def _survives(path: Path) -> None:
    try:
        snapshot = load(path)
    except SnapshotFileError:
        return
    diagnosis = diagnose(snapshot)
    json.dumps(to_json(diagnosis), allow_nan=False)
    print_report(diagnosis, Console(file=io.StringIO(), width=100))


@given(st.binary(max_size=300))
def test_any_bytes_are_refused_or_understood(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("any") / "snapshot.json"
    path.write_bytes(data)
    _survives(path)


JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    # Made anew each time: a second damage may go into what the first one put there.
    st.builds(list),
    st.builds(dict),
    st.builds(lambda: [[]]),
)


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(st.data())
def test_a_damaged_snapshot_is_refused_or_understood(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    directory = tmp_path_factory.mktemp("damaged")
    whole = directory / "whole.json"
    save(data.draw(st.sampled_from(EXAMPLES)), whole)
    tree: Any = json.loads(whole.read_text())
    for _ in range(data.draw(st.integers(1, 3))):
        _damage(tree, data)
    path = directory / "snapshot.json"
    path.write_text(json.dumps(tree)[: data.draw(st.integers(1, 10**7))])
    _survives(path)


def _damage(tree: Any, data: st.DataObject) -> None:
    node = tree
    for _ in range(data.draw(st.integers(0, 5))):
        if not isinstance(node, dict | list) or not node:
            break
        keys = sorted(node) if isinstance(node, dict) else range(len(node))
        key = data.draw(st.sampled_from(list(keys)))
        if not isinstance(node[key], dict | list) or data.draw(st.integers(0, 3)) == 0:
            node[key] = data.draw(JUNK)
            return
        node = node[key]
