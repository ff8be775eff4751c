"""Print the SQL that gives a role the least privileges for a sub-command.

What the privileges open, and what they do not:

* ``pg_read_all_stats`` shows the sessions of all roles; without it another role's session shows neither state nor
  age nor client. Source: https://www.postgresql.org/docs/current/predefined-roles.html
* ``pg_read_all_settings`` shows in which file and line a setting stands. ``pg_monitor`` has both, and more than needed.
* ``pg_use_reserved_connections`` (16+) lets the role in while ordinary roles are refused.
  Source: https://www.postgresql.org/docs/16/runtime-config-connection.html
* ``REPLICATION`` opens a door that takes no slot of ``max_connections``, and allows a copy of the whole cluster to be
  taken. Source: https://www.postgresql.org/docs/current/role-attributes.html
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

import click

from pgvacancy.cli._options import format_option
from pgvacancy.model.errors import InputError

NAME_BYTES = 63
"""PostgreSQL cuts longer names off without a word, so that two could become one."""


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement with its reason."""

    why: tuple[str, ...]
    sql: str


@click.command("grant")
@click.option(
    "--for",
    "purpose",
    type=click.Choice(["doctor"]),
    default="doctor",
    show_default=True,
    help="The sub-command the role is for.",
)
@click.option("--role", default="pgvacancy", show_default=True, metavar="NAME", help="The role; made when missing.")
@click.option("--reserved", is_flag=True, help="Let it use the reserved slots (PostgreSQL 16 and later).")
@click.option(
    "--replication-door",
    is_flag=True,
    help="Let it in when every slot is taken, by a replication connection. A powerful right: it can copy all data.",
)
@format_option
def command(purpose: str, role: str, reserved: bool, replication_door: bool, output_format: str) -> None:  # noqa: FBT001 - click passes flags by name
    """Print the SQL that gives a role the least privileges for a sub-command.

    Nothing is executed: read it, then run it as a superuser, for instance with: pgvacancy grant | psql
    """
    statements = for_doctor(role, reserved=reserved, replication_door=replication_door)
    if output_format == "json":
        answer = {
            "schema": "pgvacancy.grant/1",
            "for": purpose,
            "role": role,
            "statements": [{**asdict(s), "why": " ".join(s.why)} for s in statements],
        }
        click.echo(json.dumps(answer, indent=1))
        return
    click.echo(f"-- Least privileges for pgvacancy {purpose}. Run as a superuser; running it again changes nothing.")
    for statement in statements:
        click.echo()
        for line in statement.why:
            click.echo(f"-- {line}")
        click.echo(statement.sql)


def for_doctor(role: str, *, reserved: bool, replication_door: bool) -> tuple[Statement, ...]:
    """The statements that let a role run the doctor. Raises InputError for a name that no role can have."""
    check_name(role)
    name = quoted(role)
    statements = [
        Statement(
            (
                "A role of its own, without a password: give it one with \\password in psql, or let it in by",
                "a peer or certificate line in pg_hba.conf.",
            ),
            create(role),
        ),
        Statement(
            ("It holds one slot at a time; the limit keeps a forgotten second call from taking many.",),
            f"ALTER ROLE {name} LOGIN CONNECTION LIMIT 2;",
        ),
        Statement(
            ("To see state, age and client of the sessions of all roles, not only of its own.",),
            f"GRANT pg_read_all_stats TO {name};",
        ),
        Statement(
            ("To see in which file a setting stands, so that advice names the right one.",),
            f"GRANT pg_read_all_settings TO {name};",
        ),
    ]
    if reserved:
        statements.append(
            Statement(
                (
                    "PostgreSQL 16 and later: to be let in while ordinary roles are refused. Has an effect only with",
                    "reserved_connections of at least 1, which takes a restart.",
                ),
                f"GRANT pg_use_reserved_connections TO {name};",
            )
        )
    if replication_door:
        statements.append(
            Statement(
                (
                    "To be let in when every slot is taken, superusers' included: a replication connection takes no",
                    "slot of max_connections, but one of max_wal_senders. Mind that this right also allows a copy of",
                    "the whole cluster to be taken. pg_hba.conf decides by the line of the database, since the",
                    "connection names one.",
                ),
                f"ALTER ROLE {name} REPLICATION;",
            )
        )
    return tuple(statements)


def check_name(role: str) -> None:
    """Refuse a name that PostgreSQL would refuse, or cut off. Raises InputError."""
    size = len(role.encode("utf-8", "surrogateescape"))
    if not role or "\0" in role:
        problem = "is empty or holds a zero byte"
    elif size > NAME_BYTES:
        problem = f"has {size} bytes, {NAME_BYTES} are the most"
    elif role.startswith("pg_") or role in {"public", "none"}:
        problem = "is reserved by PostgreSQL"
    elif not role.isprintable():
        problem = "holds characters that cannot be shown"
    else:
        return
    what = f"no role can be named {role[:NAME_BYTES]!r}"
    raise InputError(what, seen=f"the name {problem}", next="pgvacancy grant --role pgvacancy")


def create(role: str) -> str:
    """A statement that makes the role unless it is there: CREATE ROLE knows no IF NOT EXISTS."""
    tag = "$pgvacancy$"
    while tag in role:
        tag = f"{tag[:-1]}_$"
    literal = "'" + role.replace("'", "''") + "'"
    return (
        f"DO {tag}\nBEGIN\n"
        f"    IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = {literal}) THEN\n"
        f"        CREATE ROLE {quoted(role)} LOGIN CONNECTION LIMIT 2;\n"
        f"    END IF;\nEND\n{tag};"
    )


def quoted(name: str) -> str:
    """An identifier, quoted."""
    return '"' + name.replace('"', '""') + '"'
