#!/usr/bin/env python3
"""Writes docs/reference from the code: commands, causes, settings, errors. ``--check`` says whether it is current."""

from __future__ import annotations

import inspect
import os
import sys
from pathlib import Path

import click

DOCS = Path(__file__).resolve().parent.parent / "docs" / "reference"
NOTE = "<!-- Written by scripts/reference.py from the code; change it there. -->\n\n"


def pages() -> dict[str, str]:
    """Every generated page by its path below docs/reference."""
    from pgvacancy.causes import load_all  # noqa: PLC0415 - the package is what is documented

    result = {"commands.md": commands(), "settings.md": settings(), "errors.md": errors()}
    index = ["# Causes", "", "| code | cause | in one line |", "|---|---|---|"]
    for cause in load_all():
        index.append(f"| {cause.code} | [{cause.slug}](causes/{cause.slug}.md) | {cause.title} |")
        result[f"causes/{cause.slug}.md"] = cause_page(cause.slug, cause.code, cause.page)
    result["causes.md"] = "\n".join([*index, ""])
    return {path: NOTE + text for path, text in result.items()}


def cause_page(slug: str, code: str, page: str) -> str:
    """A cause's docstring as Markdown: its underlined headings are Markdown already."""
    first, _, rest = page.strip().partition("\n")
    return f"# {slug} ({code})\n\n{first}\n{rest}\n"


def commands() -> str:
    """The help of every command, as it prints itself."""
    from pgvacancy.cli.main import cli  # noqa: PLC0415 - the package is what is documented

    parts = ["# Commands\n"]

    def add(command: click.Command, path: list[str], parent: click.Context | None) -> None:
        context = click.Context(command, info_name=path[-1], parent=parent, terminal_width=100, max_content_width=100)
        parts.append(f"## `{' '.join(path)}`\n\n```\n{command.get_help(context)}\n```\n")
        if isinstance(command, click.Group):
            for name in command.list_commands(context):
                child = command.get_command(context, name)
                if child is not None:
                    add(child, [*path, name], context)

    add(cli, ["pgvacancy"], None)
    return "\n".join(parts)


def settings() -> str:
    """Every threshold with its default and the reason for it."""
    from pgvacancy.cli._settings import known_settings  # noqa: PLC0415 - the package is what is documented

    rows = [f"| `{s.name}` | {s.default:g} | {s.why} |" for s in known_settings()]
    head = ["# Settings", "", "Given by `--set NAME=VALUE`, `pgvacancy.toml` or the environment, in that order.", ""]
    return "\n".join([*head, "| name | default | why |", "|---|---|---|", *rows, ""])


def errors() -> str:
    """Every error a user can meet."""
    from pgvacancy.model import errors as module  # noqa: PLC0415 - the package is what is documented

    found = {c.code: c for _, c in inspect.getmembers(module, inspect.isclass) if hasattr(c, "exit_status")}
    rows = [f"| {code} | {cls.exit_status} | {inspect.getdoc(cls)} |" for code, cls in sorted(found.items())]
    rows = [" ".join(row.split()) for row in rows]
    return "\n".join(["# Errors", "", "| code | exit status | meaning |", "|---|---|---|", *rows, ""])


def main() -> int:
    """Write, or compare."""
    os.environ["NO_COLOR"] = "1"
    wanted = pages()
    existing = {str(p.relative_to(DOCS)) for p in DOCS.rglob("*.md")}
    stale = sorted(existing - set(wanted))
    old = [p for p, text in wanted.items() if not (DOCS / p).exists() or (DOCS / p).read_text() != text]
    if "--check" in sys.argv:
        for path in [*old, *stale]:
            sys.stdout.write(f"not current: docs/reference/{path}\n")
        return 1 if old or stale else 0
    for path in stale:
        (DOCS / path).unlink()
    for path, text in wanted.items():
        (DOCS / path).parent.mkdir(parents=True, exist_ok=True)
        (DOCS / path).write_text(text)
    sys.stdout.write(f"{len(wanted)} pages, {len(old)} changed, {len(stale)} removed\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
