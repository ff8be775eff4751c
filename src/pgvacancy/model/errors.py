"""Errors that help: what, what was seen, what was tried, the next command.

A tree by what the caller can do next. Each error has a code, an exit status and one JSON form, and prints in at
most five lines. Exit status: 2 for wrong usage, configuration or input file, 3 for what could not be checked
or carried out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar


class Secret(str):
    """A string that never shows itself: ``repr`` and ``format`` give ``***``. Use :meth:`reveal` to read it."""

    __slots__ = ()

    def __repr__(self) -> str:
        """Hide the value."""
        return "***"

    def __str__(self) -> str:
        """Hide the value."""
        return "***"

    def __format__(self, spec: str) -> str:
        """Hide the value."""
        return "***"

    def reveal(self) -> str:
        """The value itself."""
        return str.__str__(self)


@dataclass(eq=False)
class PgvacancyError(Exception):
    """The root: every error a user can meet."""

    what: str
    seen: str = ""
    tried: str = ""
    next: str = ""
    code: ClassVar[str] = "PGE000"
    exit_status: ClassVar[int] = 3

    def lines(self) -> list[str]:
        """The message, one line per part, empty parts left out."""
        parts = [f"error[{self.code}]: {self.what}"]
        parts += [
            f"  {name + ':':<7}{value}"
            for name, value in (("seen", self.seen), ("tried", self.tried), ("next", self.next))
            if value
        ]
        return [*parts, f"  {'see:':<7}pgvacancy explain {self.code}"]

    def __str__(self) -> str:
        """All lines."""
        return "\n".join(self.lines())

    def to_json(self) -> dict[str, object]:
        """The one JSON form."""
        return {
            "schema": "pgvacancy.error/1",
            "error": {
                "code": self.code,
                "what": self.what,
                "seen": self.seen,
                "tried": self.tried,
                "next": self.next,
                "exit_status": self.exit_status,
            },
        }


# --- wrong usage, configuration or input: mend the call (exit 2) ---


class InputError(PgvacancyError):
    """Mend what was given and call again."""

    code = "PGE100"
    exit_status = 2


@dataclass(eq=False)
class ConfigError(InputError):
    """Settings are wrong; every mistake is named at once."""

    problems: tuple[str, ...] = field(default=())
    code: ClassVar[str] = "PGE101"

    def lines(self) -> list[str]:
        """The message with every mistake on a line of its own."""
        first, *rest = PgvacancyError.lines(self)
        return [first, *(f"  - {p}" for p in self.problems), *rest]


class ConninfoError(InputError):
    """The connection string cannot be read."""

    code = "PGE102"


class SnapshotFileError(InputError):
    """The file is no snapshot of ours."""

    code = "PGE103"


class LogFileError(InputError):
    """The log cannot be read as a PostgreSQL log."""

    code = "PGE104"


class UnknownTopicError(InputError):
    """There is no page on that topic."""

    code = "PGE105"


# --- the server cannot be asked: mend the way in (exit 3) ---


class AccessError(PgvacancyError):
    """No answer could be had from the server."""

    code = "PGE200"


class UnreachableError(AccessError):
    """Nothing answers there."""

    code = "PGE201"


class NotPostgresError(AccessError):
    """Something answers, but it is not PostgreSQL."""

    code = "PGE202"


class NoFreeSlotError(AccessError):
    """No door opened: every slot is taken."""

    code = "PGE203"


class LoginError(AccessError):
    """The server refused the log-in for a reason other than slots."""

    code = "PGE204"


class TlsError(AccessError):
    """TLS is required and cannot be had, or its certificate is not trusted."""

    code = "PGE205"


class StartingUpError(AccessError):
    """The server is starting up, shutting down or recovering."""

    code = "PGE206"


class UnsupportedVersionError(AccessError):
    """A server older than PostgreSQL 13."""

    code = "PGE207"


class ServerGoneError(AccessError):
    """The server went away while we looked."""

    code = "PGE208"


class PoolerError(AccessError):
    """A PgBouncer answers where a server was expected."""

    code = "PGE209"


# --- the lab (exit 3) ---


class LabError(PgvacancyError):
    """The private server could not be made, started or driven."""

    code = "PGE300"


class MissingProgramError(LabError):
    """A program the lab needs is not installed."""

    code = "PGE301"
