"""Print the page on 53300, on a pasted error text, a cause or a code. Needs no server."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import resources
from pathlib import Path

import click

from pgvacancy.cli._options import format_option

KIND_CAUSES = {
    "role-limit": "role-or-database-limit",
    "database-limit": "role-or-database-limit",
    "walsender-limit": "walsender-limit",
    "pooler-client-limit": "pooler-misfit",
    "pooler-wait-timeout": "pooler-misfit",
    "pooler-login-failing": "pooler-misfit",
    "pooler-client-cap": "pooler-misfit",
}
"""Refusals that one cause explains; all others lead to the page on 53300."""


@dataclass(frozen=True, slots=True)
class Page:
    """A page to print."""

    topic: str
    title: str
    text: str


@click.command()
@click.argument("topic", nargs=-1)
@format_option
def command(*, topic: tuple[str, ...], output_format: str) -> int:
    """Print the page on TOPIC: 53300, an error text pasted as it is, a cause (idle-sessions), a code (PGC104, PGE203).

    Without a topic, lists what there is. Reads a pasted text from standard input with TOPIC '-'.
    """
    wanted = " ".join(topic).strip()
    if wanted == "-":
        wanted = sys.stdin.buffer.read(100_000).decode(errors="replace").strip()
    page = find(wanted) if wanted else overview()
    if output_format == "json":
        form = {"schema": "pgvacancy.page/1", "topic": page.topic, "title": page.title, "text": page.text}
        click.echo(json.dumps(form, indent=2, ensure_ascii=False))
    else:
        click.echo(page.text)
    return 0


def find(wanted: str) -> Page:
    """The page a person means. Raises UnknownTopicError when there is none."""
    key = wanted.strip().lower()
    if key in {"53300", "too_many_connections", "too-many-connections"}:
        return page_53300()
    if key in _slugs():
        return cause_page(key)
    if re.fullmatch(r"pgc\d{3}", key):
        for slug in _slugs():
            if _code_of(slug) == key.upper():
                return cause_page(slug)
    if re.fullmatch(r"pge\d{3}", key):
        page = error_page(key.upper())
        if page is not None:
            return page
    page = pasted(wanted)
    if page is not None:
        return page
    from pgvacancy.model.errors import UnknownTopicError  # noqa: PLC0415 - only when needed

    near = get_close_matches(key, ["53300", *_slugs()], n=3, cutoff=0.5)
    raise UnknownTopicError(
        f"no page on {wanted[:80]!r}",
        seen=f"near it: {', '.join(near)}" if near else "it is no SQLSTATE, error text, cause or code known here",
        next=f"pgvacancy explain {near[0]}"
        if near
        else "pgvacancy explain 53300   or paste the text with its SQLSTATE (psql: \\errverbose)",
    )


def pasted(text: str) -> Page | None:
    """The page for an error text; in any language when the SQLSTATE stands in it."""
    from pgvacancy.model.refusals import classify  # noqa: PLC0415 - only when needed

    match = re.search(r"\b(53300|57P03|08P01|53000|53400)\b", text)
    sqlstate = match.group(1) if match else None
    kind = classify(sqlstate, text)
    if kind == "other" and sqlstate != "53300":
        return None
    if kind in {"starting-up", "fork-failed"}:
        return Page(sqlstate or kind, kind, _meaning(kind))
    cause = KIND_CAUSES.get(kind)
    head = f"What you pasted: {_meaning(kind)}\n\n"
    page = cause_page(cause) if cause else page_53300()
    return Page(page.topic, page.title, head + page.text)


def _meaning(kind: str) -> str:
    return {
        "slots-full": "slots-full: every slot is taken, the superusers' reserve included.",
        "reserved-for-superuser": "reserved-for-superuser: ordinary slots are used up, a superuser still gets in.",
        "reserved-for-role": "reserved-for-role: ordinary slots are used up, pg_use_reserved_connections gets in.",
        "role-limit": "role-limit: the role's own CONNECTION LIMIT is reached; the server has room.",
        "database-limit": "database-limit: the database's own CONNECTION LIMIT is reached; the server has room.",
        "walsender-limit": "walsender-limit: max_wal_senders is reached; max_connections plays no part.",
        "starting-up": "starting-up: the server does not accept connections yet; this is no lack of slots.",
        "fork-failed": "fork-failed: the server could not start a process (memory, pids limit, ulimit -u).",
        "pooler-client-limit": "pooler-client-limit: PgBouncer's max_client_conn, not PostgreSQL.",
        "pooler-wait-timeout": "pooler-wait-timeout: the client waited in PgBouncer for a server connection.",
        "pooler-login-failing": "pooler-login-failing: PgBouncer cannot log in to PostgreSQL.",
        "pooler-client-cap": "pooler-client-cap: PgBouncer's client cap for this user or database.",
    }.get(kind, "SQLSTATE 53300, too many connections; the text does not tell which limit.")


def overview() -> Page:
    """What can be explained."""
    lines = [
        "pgvacancy explain TOPIC",
        "",
        "  53300            the error itself: what it means, causes, solutions, traps",
    ]
    lines += [
        "  any error text   pasted as it is",
        "  PGE203           an error of this program by its code",
        "",
        "Causes:",
    ]
    return Page("", "topics", "\n".join([*lines, *_cause_lines()]))


def page_53300() -> Page:
    """The page everybody searches for."""
    text = resources.files("pgvacancy.pages").joinpath("53300.md").read_text(encoding="utf-8")
    return Page("53300", text.splitlines()[0], text.replace("{causes}", "\n".join(_cause_lines())).rstrip())


def cause_page(slug: str) -> Page:
    """A cause's own docstring, with its thresholds."""
    from pgvacancy.causes import load  # noqa: PLC0415 - only when needed

    cause = load(slug)
    lines = [f"{cause.slug} [{cause.code}]", "", cause.page.strip(), "", "Settings", "--------"]
    for setting in cause.settings:
        lines.append(f"{setting.name} = {setting.default:g}")
        lines.append(f"    {setting.why}")
    return Page(slug, cause.title, "\n".join(lines))


def error_page(code: str) -> Page | None:
    """An error of this program."""
    from pgvacancy.model import errors  # noqa: PLC0415 - only when needed

    for value in vars(errors).values():
        if isinstance(value, type) and issubclass(value, errors.PgvacancyError) and value.code == code:
            title = (value.__doc__ or "").strip()
            text = [f"{code} {value.__name__}", "", title, "", f"Exit status: {value.exit_status}", ""]
            text.append("The message itself says what was seen, what was tried and what to do next.")
            if code == "PGE203":
                text += ["", "See also: pgvacancy explain 53300"]
            return Page(code, title, "\n".join(text))
    return None


def _cause_lines() -> list[str]:
    return [f"  {slug:<24}{_title_of(slug)}" for slug in _slugs()]


def _slugs() -> list[str]:
    """Slugs of all causes by their files, without importing them: explain stays quick."""
    here = Path(__file__).parent.parent / "causes"
    return sorted(p.stem.replace("_", "-") for p in here.glob("*.py") if not p.stem.startswith("_"))


def _source(slug: str) -> str:
    path = Path(__file__).parent.parent / "causes" / f"{slug.replace('-', '_')}.py"
    return path.read_text(encoding="utf-8")


def _title_of(slug: str) -> str:
    return _source(slug).lstrip().removeprefix('"""').splitlines()[0].strip().strip('"').rstrip(".")


def _code_of(slug: str) -> str:
    found = re.search(r'^CODE = "(PGC\d{3})"', _source(slug), re.MULTILINE)
    return found.group(1) if found else ""
