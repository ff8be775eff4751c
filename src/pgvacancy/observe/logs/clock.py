"""Timestamps of log lines to seconds since the epoch.

The server writes local time with the abbreviation of its ``log_timezone``. An abbreviation is not an offset:
the common unambiguous ones are known here, any other is measured against the file's modification time, since the
last line of a log was written when the file was last modified.
Source: https://www.postgresql.org/docs/current/runtime-config-logging.html#GUC-LOG-TIMEZONE
"""

from __future__ import annotations

import re
from calendar import timegm

STAMP = re.compile(
    rb"(\d{4}-\d\d-\d\d)[ T](\d\d:\d\d):(\d\d)(?:[.,](\d{1,9}))?"
    rb"(?: ?(Z|[+-]\d\d(?::?\d\d)?|[A-Z][A-Za-z]{1,5}))?(?![\w:])"
)
"""Date, hour and minute, second, fraction, zone."""

_EPOCH = re.compile(rb"(?<![\d.])(\d{10})\.(\d{3})(?!\d)")

_HOUR_S = 3600
_ZONES_H = {
    "UTC": 0, "GMT": 0, "Z": 0, "UCT": 0, "WET": 0, "WEST": 1, "CET": 1, "CEST": 2, "EET": 2, "EEST": 3,
    "MSK": 3, "EST": -5, "EDT": -4, "CDT": -5, "MDT": -6, "MST": -7, "PDT": -7, "PST": -8,
    "AKST": -9, "AKDT": -8, "HST": -10, "JST": 9, "KST": 9, "SAST": 2, "AEST": 10, "AEDT": 11,
    "ACST": 9.5, "AWST": 8, "NZST": 12, "NZDT": 13, "WIB": 7, "HKT": 8, "SGT": 8, "PKT": 5,
}  # fmt: skip  # one line per group of zones reads better than one per zone
_NUMERIC = re.compile(r"([+-])(\d\d):?(\d\d)?")
_QUARTER_S = 900
_MTIME_TOLERANCE_S = 120
_CACHE_LIMIT = 4096


class Clock:
    """Turns timestamps into seconds since the epoch; remembers what it could not be sure of."""

    def __init__(self) -> None:
        """A clock that knows the common zones."""
        self._offsets: dict[str, float] = {}
        self._minutes: dict[tuple[bytes, bytes, bytes], float] = {}
        self.guessed: set[str] = set()
        """Zones taken as UTC, because nothing told their offset."""

    def read(self, line: bytes, start: int = 0, end: int | None = None) -> float | None:
        """The first timestamp in a piece of a line."""
        found = STAMP.search(line, start, len(line) if end is None else end)
        if found is not None:
            return self.at(found)
        epoch = _EPOCH.search(line, start, len(line) if end is None else end)
        return int(epoch[1]) + int(epoch[2]) / 1000 if epoch else None

    def at(self, found: re.Match[bytes]) -> float | None:
        """Seconds since the epoch of a match of :data:`STAMP`."""
        day, minute, second, fraction, zone = found.groups()
        key = (day, minute, zone or b"")
        base = self._minutes.get(key)
        if base is None:
            naive = _naive(day, minute)
            if naive is None:
                return None
            if len(self._minutes) > _CACHE_LIMIT:
                self._minutes.clear()
            base = self._minutes[key] = naive - self._offset(key[2].decode("ascii", "replace"))
        return base + int(second) + (int(fraction) / 10 ** len(fraction) if fraction else 0.0)

    def learn(self, line: bytes, mtime: float) -> None:
        """Measure an unknown zone of a file's last timestamp against the time the file was modified."""
        found = STAMP.search(line)
        zone = (found[5] or b"").decode("ascii", "replace") if found else ""
        if found is None or zone in _ZONES_H or _NUMERIC.fullmatch(zone) or zone in self._offsets:
            return
        naive = _naive(found[1], found[2])
        if naive is None:
            return
        gap = naive + int(found[3]) - mtime
        offset = round(gap / _QUARTER_S) * _QUARTER_S
        if abs(gap - offset) <= _MTIME_TOLERANCE_S and abs(offset) <= 14 * _HOUR_S:
            self._offsets[zone] = offset
            self.guessed.discard(zone)
            self._minutes.clear()

    def _offset(self, zone: str) -> float:
        if zone in self._offsets:
            return self._offsets[zone]
        numeric = _NUMERIC.fullmatch(zone)
        if numeric:
            sign = -1 if numeric[1] == "-" else 1
            offset: float = sign * (int(numeric[2]) * _HOUR_S + int(numeric[3] or 0) * 60)
        elif zone in _ZONES_H:
            offset = _ZONES_H[zone] * _HOUR_S
        else:
            self.guessed.add(zone or "(none)")
            return 0.0
        if len(self._offsets) < _CACHE_LIMIT:
            self._offsets[zone] = offset
        return offset


def _naive(day: bytes, minute: bytes) -> int | None:
    """Seconds since the epoch as if the zone were UTC; None for a 31st of February."""
    year, month, date = (int(part) for part in day.split(b"-"))
    hour, mins = (int(part) for part in minute.split(b":"))
    if not (1970 <= year <= 9998 and 1 <= month <= 12 and 1 <= date <= 31 and hour < 25 and mins < 60):
        return None
    return timegm((year, month, date, hour, mins, 0))
