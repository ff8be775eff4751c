"""Remedies: what can be done about a finding, and the limits that keep a remedy from doing harm."""

from pgvacancy.remedies._settings import SETTINGS

__all__ = ["SETTINGS"]
