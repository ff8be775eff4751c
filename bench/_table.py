"""A table of results: Markdown for people, JSON for programs."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / ".cache" / "bench"


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """What one measurement found. ``notes`` say how it was taken and what spoils it."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[object, ...], ...]
    notes: tuple[str, ...] = field(default=())

    def markdown(self) -> str:
        """The table as text."""
        lines = [f"### {self.title}", "", _row(self.columns), _row(["---"] * len(self.columns))]
        lines += [_row([_cell(c) for c in row]) for row in self.rows]
        if self.notes:
            lines += ["", *(f"* {note}" for note in self.notes)]
        return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.2f}" if abs(value) < 10 else f"{value:,.1f}" if abs(value) < 100 else f"{value:,.0f}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value).replace("|", "\\|").replace("\n", " ")


def spread(values: Sequence[float]) -> str:
    """Smallest and largest, so that a reader sees the noise."""
    return f"{_cell(min(values))} to {_cell(max(values))}"


def middle(values: Sequence[float]) -> float:
    """The median, rounded to what a clock can tell."""
    return round(median(values), 2)


def verdict(measured: float, promised: float) -> str:
    """Whether the promise is kept."""
    return "kept" if measured <= promised else "NOT KEPT"


def save(part: str, tables: Sequence[Table]) -> Path:
    """Write the tables of a part to a file of its own."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{part}.json"
    content = {
        "part": part,
        "taken_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "load_1min": round(os.getloadavg()[0], 2),
        "tables": [{"title": t.title, "columns": t.columns, "rows": t.rows, "notes": t.notes} for t in tables],
    }
    path.write_text(json.dumps(content, indent=2, default=str) + "\n")
    return path
