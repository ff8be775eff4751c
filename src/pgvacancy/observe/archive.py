"""Saving a snapshot and reading it back elsewhere.

A saved snapshot holds no secret and no literal of a query. Reading refuses what is not ours, with every mistake
named, and never crashes on it.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import tempfile
from pathlib import Path
from typing import Any

from pgvacancy.model.errors import SnapshotFileError
from pgvacancy.model.fingerprint import without_literals
from pgvacancy.model.snapshot import SCHEMA, Sample, Session, Snapshot

MAX_BYTES = 512 * 1024 * 1024
"""A larger file is no snapshot of ours: 5,000 sessions over a minute take about 100 MB."""


LATEST_AT = 253_402_300_799.0
"""The end of the year 9999: what a date can show."""


def redacted(snapshot: Snapshot) -> Snapshot:
    """The snapshot with the literals of every query removed."""
    done: dict[int, Session] = {}

    def clean(session: Session) -> Session:
        known = done.get(id(session))
        if known is None:
            known = dataclasses.replace(session, query=without_literals(session.query))
            done[id(session)] = known
        return known

    def clean_sample(sample: Sample) -> Sample:
        return dataclasses.replace(sample, sessions=tuple(clean(s) for s in sample.sessions))

    return dataclasses.replace(snapshot, samples=tuple(clean_sample(s) for s in snapshot.samples))


def save(snapshot: Snapshot, path: Path) -> None:
    """Write a snapshot, readable by its owner only, whole or not at all."""
    text = json.dumps(dataclasses.asdict(redacted(snapshot)), default=_plain, separators=(",", ":"))
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as f:
                f.write(text + "\n")
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise SnapshotFileError(
            f"the snapshot cannot be written to {path}", seen=error.strerror or "", next="--save another/file.json"
        ) from None


def load(path: Path) -> Snapshot:
    """Read a snapshot. Raises SnapshotFileError for whatever is not one."""
    from pydantic import TypeAdapter, ValidationError  # noqa: PLC0415 - slow to import, seldom used

    try:
        size = path.stat().st_size
        if not path.is_file():
            raise SnapshotFileError(f"{path} is not a file", next="give a file written by pgvacancy doctor --save")
        if size > MAX_BYTES:
            raise SnapshotFileError(f"{path} is too large for a snapshot", seen=f"{size} bytes, limit {MAX_BYTES}")
        text = path.read_bytes()
    except OSError as error:
        raise SnapshotFileError(
            f"the snapshot cannot be read: {path}",
            seen=error.strerror or "",
            next="give a file written by pgvacancy doctor --save",
        ) from None
    try:
        data: Any = json.loads(text, parse_constant=_no_such_number, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise SnapshotFileError(
            f"{path} is not JSON, or cut off", seen=str(error)[:200], next="save it again: pgvacancy doctor --save FILE"
        ) from None
    schema = data.get("schema") if isinstance(data, dict) else None
    if schema != SCHEMA:
        raise SnapshotFileError(
            f"{path} is not a snapshot of this version",
            seen=f"schema {str(schema)[:80]!r}, expected {SCHEMA!r}",
            next="give a file written by pgvacancy doctor --save, not its --format json report",
        )
    try:
        snapshot = TypeAdapter(Snapshot).validate_python(data)
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_input=False)]
        more = f" (and {len(problems) - 5} more)" if len(problems) > 5 else ""
        raise SnapshotFileError(
            f"{path} is damaged",
            seen="; ".join(problems[:5]) + more,
            next="save it again: pgvacancy doctor --save FILE",
        ) from None
    if not 0 <= snapshot.taken_at <= LATEST_AT:
        raise SnapshotFileError(f"{path} is damaged", seen=f"taken_at {snapshot.taken_at!r} is no instant")
    return snapshot


def _no_such_number(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is too large")
    return value


def _plain(value: object) -> object:
    if isinstance(value, frozenset | set):
        return sorted(value)
    return str(value)
