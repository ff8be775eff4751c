"""The ledger as a picture: one cell a slot, each holder a letter, the reserve at the right end."""

from __future__ import annotations

from itertools import cycle
from string import ascii_uppercase

from rich.text import Text

from pgvacancy.model.diagnosis import Diagnosis
from pgvacancy.model.ledger import Ledger
from pgvacancy.model.series import Case, Track

COLOURS = ("cyan", "magenta", "blue", "yellow", "green", "bright_red", "bright_blue", "bright_magenta")
MAX_OWNERS = 8
Segment = tuple[str, int, str, str]
"""Letter, slots, style, meaning."""


def slot_bar(diagnosis: Diagnosis, width: int) -> Text:
    """The bar, its legend, and what is free for whom."""
    ledger = diagnosis.ledger
    if ledger is None:
        return Text()
    segments = _segments(diagnosis, ledger)
    text = Text()
    for letter, cells, style, _ in _scaled(segments, ledger.max_connections, width):
        text.append(letter * cells, style)
    text.append("\n")
    used = f"{ledger.used_at_least} to {ledger.used}" if ledger.hidden else str(ledger.used)
    text.append(f"{used} of {ledger.max_connections} slots used", "bold")
    text.append(
        f" · free for ordinary roles {ledger.free_ordinary}, for pg_use_reserved_connections {ledger.free_reserved},"
        f" for superusers {ledger.free_superuser}"
    )
    for letter, slots, style, meaning in segments:
        text.append("\n")
        text.append(letter, style)
        text.append(f" {slots:>4} {meaning}")
    return text


def _segments(diagnosis: Diagnosis, ledger: Ledger) -> list[Segment]:
    case = Case(diagnosis.snapshot)
    letters, colours = iter(ascii_uppercase), cycle(COLOURS)
    segments: list[Segment] = []
    for n, (owner, tracks) in enumerate(case.owners.items()):
        if n == MAX_OWNERS:
            rest = sum(len(t) for t in list(case.owners.values())[MAX_OWNERS:])
            segments.append(("+", rest, "white", f"{len(case.owners) - MAX_OWNERS} more owners"))
            break
        segments.append((next(letters), len(tracks), f"black on {next(colours)}", f"{owner} ({_states(tracks)})"))
    for letter, slots, style, meaning in (
        ("@", ledger.own, "bold", "our own session"),
        ("?", ledger.authenticating, "black on white", "log-ins that are not finished"),
        ("#", ledger.hidden, "dim", "hidden from us for lack of privilege"),
        ("·", ledger.free_ordinary, "dim", "free"),
        ("r", ledger.free_reserved - ledger.free_ordinary, "dim", "free for pg_use_reserved_connections only"),
        ("s", ledger.free_superuser - ledger.free_reserved, "dim", "free for superusers only"),
    ):
        if slots > 0:
            segments.append((letter, slots, style, meaning))
    return segments


def _states(tracks: tuple[Track, ...]) -> str:
    counts: dict[str, int] = {}
    for track in tracks:
        state = track.session.state or "state unknown"
        counts[state] = counts.get(state, 0) + 1
    return ", ".join(f"{n} {state}" for state, n in sorted(counts.items(), key=lambda item: -item[1]))


def _scaled(segments: list[Segment], total: int, width: int) -> list[Segment]:
    """Cells for each segment: one a slot when they fit, else in proportion, at least one for what is there."""
    if total <= width:
        return segments
    return [
        (letter, max(1, round(slots * width / total)), style, meaning) for letter, slots, style, meaning in segments
    ]
