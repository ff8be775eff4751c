"""The ledger: the arithmetic of slots.

PostgreSQL keeps ``max_connections`` entries for client backends. The last ``superuser_reserved_connections``
free ones are for superusers, the ``reserved_connections`` before them for roles with
``pg_use_reserved_connections`` (16+). The reserve is "the last N free slots", not a private pool.
Source: https://www.postgresql.org/docs/current/runtime-config-connection.html
"""

from __future__ import annotations

from dataclasses import dataclass

from pgvacancy.model.snapshot import Access, Sample, Server, Session


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """Slots taken and free at one instant.

    ``used`` counts every slot taken, unfinished log-ins and our own session included. Where privileges
    hide something ``used`` is the upper end of the range ``used_at_least .. used``.
    """

    max_connections: int
    superuser_reserved: int
    reserved: int
    used: int
    authenticating: int
    hidden: int
    own: int
    used_at_least: int

    @property
    def ordinary_slots(self) -> int:
        """How many slots ordinary roles can ever use."""
        return max(0, self.max_connections - self.superuser_reserved - self.reserved)

    @property
    def free_superuser(self) -> int:
        """What a superuser could still take."""
        return max(0, self.max_connections - self.used)

    @property
    def free_reserved(self) -> int:
        """What a role with pg_use_reserved_connections could still take."""
        return max(0, self.max_connections - self.used - self.superuser_reserved)

    @property
    def free_ordinary(self) -> int:
        """What an ordinary role could still take."""
        return max(0, self.max_connections - self.used - self.superuser_reserved - self.reserved)

    @property
    def fill_ratio(self) -> float:
        """Used slots over the slots ordinary roles can use; above 1 when the reserve is eaten too."""
        return self.used / self.ordinary_slots if self.ordinary_slots else 1.0


def holds_slot(session: Session) -> bool:
    """Whether a row takes one of the ``max_connections`` slots. Walsenders and workers do not."""
    return session.backend_type == "client backend"


def is_starting(session: Session) -> bool:
    """Whether the row is a log-in that is not finished (PostgreSQL 18 shows them)."""
    return holds_slot(session) and session.state == "starting"


def may_hold_slot(session: Session) -> bool:
    """Whether a row hidden from us could be a client backend: it has a role and a database."""
    return session.hidden and session.user is not None and session.database is not None


def make_ledger(server: Server, sample: Sample, access: Access) -> Ledger:
    """Count the slots of one sample."""
    visible = [s for s in sample.sessions if holds_slot(s) and not s.hidden]
    hidden = sum(1 for s in sample.sessions if may_hold_slot(s))
    starting = sum(1 for s in visible if is_starting(s))
    unseen = len(sample.unseen_logins)
    own = 0 if access.door in {"replication", "none"} else 1
    return Ledger(
        max_connections=server.setting_int("max_connections"),
        superuser_reserved=server.setting_int("superuser_reserved_connections"),
        reserved=server.setting_int("reserved_connections")
        + server.setting_int("rds.rds_superuser_reserved_connections"),
        used=len(visible) + unseen + hidden,
        authenticating=starting + unseen,
        hidden=hidden,
        own=own,
        used_at_least=len(visible) + unseen,
    )
