"""The SQL this product sends: one file a statement, chosen by the server's version, rows typed once.

A file ``NAME_13.sql`` is the form for servers older than the plain ``NAME.sql``'s ``since`` header. There is no
ladder of versions in code.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from importlib import resources

OLDEST = 13
"""The oldest supported major."""


@dataclass(frozen=True, slots=True)
class Statement:
    """One SQL file."""

    name: str
    since: int
    sql: str


@cache
def statements() -> dict[str, tuple[Statement, ...]]:
    """Every statement by its plain name, newest form first."""
    found: dict[str, list[Statement]] = {}
    for entry in resources.files("pgvacancy.observe.postgres").joinpath("queries").iterdir():
        if not entry.name.endswith(".sql"):
            continue
        text = entry.read_text(encoding="utf-8")
        since = re.search(r"^-- since: (\d+)$", text, re.MULTILINE)
        if since is None:
            msg = f"{entry.name} has no '-- since:' header"
            raise ValueError(msg)
        body = "\n".join(line for line in text.splitlines() if not line.startswith("--"))
        stem = entry.name.removesuffix(".sql")
        plain = re.sub(r"_\d+$", "", stem)
        found.setdefault(plain, []).append(Statement(stem, int(since.group(1)), body.strip()))
    return {name: tuple(sorted(forms, key=lambda s: -s.since)) for name, forms in found.items()}


def statement(name: str, version_num: int) -> str:
    """The form of a statement for a server, given its ``server_version_num``. KeyError when there is none."""
    major = version_num // 10_000
    for form in statements()[name]:
        if major >= form.since:
            return form.sql
    msg = f"{name} has no form for PostgreSQL {major}"
    raise KeyError(msg)
