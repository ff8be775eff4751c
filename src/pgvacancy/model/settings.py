"""A threshold as the user sees it: its full name, its default, and the reason for the default."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One threshold, named ``<cause or remedy>.<name>`` with the unit at the end of the name."""

    name: str
    default: float
    why: str
