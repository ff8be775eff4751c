"""Statements without their literals: what may be saved and shown, and what makes two statements "the same"."""

from __future__ import annotations

import re

_LITERALS = re.compile(
    r"""
      \$(?P<tag>\w*)\$.*?(?:\$(?P=tag)\$|\Z)            # dollar-quoted, perhaps cut off
    | \b[eE]'(?:[^'\\]|\\.|'')*(?:'|\Z)                 # escape string
    | (?:\b(?:[bBxXnN]|[uU]&))?'(?:[^']|'')*(?:'|\Z)        # string, perhaps cut off
    | --[^\n]*                                          # comments may quote data
    | /\*.*?(?:\*/|\Z)
    | (?<![\w$"])[-+]?(?:\d[\d_]*\.?\d*(?:[eE][-+]?\d+)?|\.\d+|0[xXoObB][0-9a-fA-F_]+)\b
    """,
    re.VERBOSE | re.DOTALL,
)
_OWN_TAG = re.compile(r"/\*\s*pgvacancy:\w+\s*\*/")
_LISTS = re.compile(r"\(\s*\?(?:\s*,\s*\?)+\s*\)")
_SECRET_STATEMENT = re.compile(r"\bpassword\b", re.IGNORECASE)


def without_literals(query: str) -> str:
    """The statement with every literal as ``?`` and comments dropped; our own tag survives.

    Works on text that is cut off in the middle. A statement that sets a password is reduced to its first word.
    """
    tag = _OWN_TAG.search(query)
    if _SECRET_STATEMENT.search(query):
        return f"{query.split(maxsplit=1)[0] if query.split() else ''} ... (hidden: it mentions a password)"
    text = _LITERALS.sub(lambda m: " " if m.group().startswith(("--", "/*")) else "?", query)
    text = _LISTS.sub("(?)", " ".join(text.split()))
    return f"{tag.group()} {text}" if tag else text


def fingerprint(query: str, query_id: int | None = None) -> str:
    """What makes two statements the same: the server's query_id when it computes one, else the normalised text."""
    return str(query_id) if query_id else without_literals(query).casefold()
