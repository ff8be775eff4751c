"""The limits of remedies that end sessions. Their names are fixed: scripts and configuration files use them."""

from __future__ import annotations

from pgvacancy.model.settings import Setting

SETTINGS: tuple[Setting, ...] = (
    Setting(
        name="end-idle-sessions.keep_youngest",
        default=2,
        why="of each owner so many sessions stay, the most recently used ones: a pool that is emptied refills at once",
    ),
    Setting(
        name="end-idle-sessions.max_per_minute",
        default=60,
        why="clients whose session was ended log in again; one a second is a load every server bears",
    ),
    Setting(
        name="end-idle-sessions.min_idle_s",
        default=900,
        why="a session unused for a quarter of an hour belongs to nobody who is waiting for it",
    ),
    Setting(
        name="end-idle-transactions.min_idle_s",
        default=300,
        why="ending one loses its uncommitted work, so it gets the time of a debugger's pause or a slow step elsewhere",
    ),
)
"""By name. How many sessions, how fast and how old: decided here, enforced by whoever acts."""
