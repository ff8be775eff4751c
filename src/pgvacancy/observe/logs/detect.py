"""Which format a log has, by its content: the name of a file says nothing."""

from __future__ import annotations

from pgvacancy.model.refusals import TOO_MANY_CONNECTIONS
from pgvacancy.observe.logs import csvlog, jsonlog, pooler, stderr
from pgvacancy.observe.logs.clock import Clock
from pgvacancy.observe.logs.csvlog import Csvlog
from pgvacancy.observe.logs.jsonlog import Jsonlog
from pgvacancy.observe.logs.pooler import Pooler
from pgvacancy.observe.logs.prefix import ZERO_CODE, compile_prefix
from pgvacancy.observe.logs.record import Dialect
from pgvacancy.observe.logs.stderr import Stderr
from pgvacancy.observe.logs.texts import (
    CODE_NEEDLES,
    FOREIGN_SEVERITIES,
    OLD_NEEDLES,
    SERVER_NEEDLES,
    TRANSLATED_LINES,
)

_FOREIGN_WORDS = tuple(f"{word}{colon}".encode() for word in FOREIGN_SEVERITIES for colon in (":  ", " :  "))


class Detected:
    """The reader for a log, and what its language and layout keep from us."""

    def __init__(self, dialect: Dialect, languages: tuple[str, ...], not_told: tuple[str, ...]) -> None:
        """Keep the three parts."""
        self.dialect = dialect
        self.languages = languages
        self.not_told = not_told


def detect(sample: bytes, clock: Clock, log_line_prefix: str | None) -> Detected | None:
    """The reader that understands most lines of a sample; None when none understands any."""
    lines = {
        "csvlog": len(csvlog.HEAD.findall(sample)),
        "jsonlog": len(jsonlog.HEAD.findall(sample)),
        "pgbouncer": len(pooler.HEAD.findall(sample)),
        "stderr": len(stderr.HEAD.findall(sample)),
    }
    best = max(lines, key=lambda name: lines[name])
    if not lines[best]:
        if not stderr.FOREIGN_HEAD.search(sample):
            return None
        best = "stderr"
    languages = _languages(sample)
    # The code finds refusals in every language; its one more pass over the bytes is worth that.
    needles: tuple[bytes, ...] = (*SERVER_NEEDLES, TOO_MANY_CONNECTIONS.encode())
    old_needles: tuple[bytes, ...] = (*OLD_NEEDLES, TOO_MANY_CONNECTIONS.encode())
    foreign = bool(languages)
    if languages or any(word in sample for word in _FOREIGN_WORDS):
        foreign = True
        starts = (start.strip().encode() for name in languages for _, start in TRANSLATED_LINES[name])
        needles = (*SERVER_NEEDLES, *CODE_NEEDLES, *starts)
        old_needles = (*OLD_NEEDLES, *CODE_NEEDLES)
    if best == "csvlog":
        return Detected(Csvlog(clock, needles, old_needles), languages, ())
    if best == "jsonlog":
        return Detected(Jsonlog(clock, needles, old_needles), languages, ())
    if best == "pgbouncer":
        return Detected(Pooler(clock), (), ())
    dialect, not_told = _stderr(sample, clock, log_line_prefix, foreign=foreign)
    dialect.needles, dialect.old_needles = needles, old_needles
    return Detected(dialect, languages, not_told)


def _languages(sample: bytes) -> tuple[str, ...]:
    """Languages whose connection lines stand in the sample."""
    return tuple(
        name for name, lines in TRANSLATED_LINES.items() if any(start.strip().encode() in sample for _, start in lines)
    )


def _stderr(
    sample: bytes, clock: Clock, log_line_prefix: str | None, *, foreign: bool
) -> tuple[Stderr, tuple[str, ...]]:
    prefix = log_line_prefix
    not_told: list[str] = []
    if prefix is not None and not _fits(prefix, sample):
        not_told.append(f'the lines do not begin as log_line_prefix "{prefix}" says: their parts were guessed')
        prefix = None
    heads = stderr.HEAD.findall(sample) or stderr.FOREIGN_HEAD.findall(sample)
    has_sqlstate = any(ZERO_CODE.search(head) for head in heads)
    dialect = Stderr(clock, log_line_prefix=prefix, has_sqlstate=has_sqlstate)
    if not dialect.has_sqlstate:
        not_told.append(
            "the messages are translated and log_line_prefix has no %e (SQLSTATE): refusals cannot be told"
            if foreign
            else "log_line_prefix has no %e (SQLSTATE): refusals are told by their English text alone"
        )
    return dialect, tuple(not_told)


def _fits(prefix: str, sample: bytes) -> bool:
    """Whether lines of the sample begin with the prefix."""
    pattern = compile_prefix(prefix)
    heads = stderr.HEAD.findall(sample)[-50:]
    return not heads or any(
        (found := pattern.match(head)) is not None and stderr.SEVERITY.match(head, found.end()) is not None
        for head in heads
    )
