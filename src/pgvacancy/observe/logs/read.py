"""Reading logs: which files, how much of each, in which format, and the evidence they give."""

from __future__ import annotations

from codecs import utf_8_decode
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pgvacancy.model.errors import LogFileError
from pgvacancy.model.evidence import LogEvidence
from pgvacancy.observe.logs.clock import Clock
from pgvacancy.observe.logs.detect import Detected, detect
from pgvacancy.observe.logs.record import Dialect
from pgvacancy.observe.logs.source import SAMPLE_BYTES, Source, blocks, open_source, split_blocks
from pgvacancy.observe.logs.tally import PEAK_WINDOW_S, TOP, Tally

DEFAULT_MAX_BYTES = 64 << 20
"""How much of the tail is read when nothing else is said: minutes of the worst storm, weeks of a quiet log.

A quiet log passes at hundreds of MB/s, but a log of nothing but refusals at a few, and it is read in an emergency.
"""

_LOOK_BACK_BYTES = 65536
_DISORDER_S = 10.0
_BORDER_BYTES = 16384
_FIRST_LINES = 2000
_POOLER = "pgbouncer"
_NEXT = "name a PostgreSQL csvlog, jsonlog or stderr log, or a PgBouncer log:  pgvacancy doctor --log FILE"


@dataclass
class _Log:
    """One log to read."""

    name: str
    detected: Detected
    clock: Clock
    last_at: float | None
    first_at: float | None
    budget_bytes: int
    size_bytes: int
    source: Source | None = None
    text: bytes = b""
    cut: bool = False

    def blocks(self) -> Iterator[bytes]:
        """The bytes to read, block by block."""
        if self.source is None:
            return split_blocks(self.text, cut=self.cut)
        return blocks(self.source, self.budget_bytes)


@dataclass
class _Passage:
    """What was read besides the entries."""

    lines: int = 0
    bytes_read: int = 0
    undecodable: int = 0
    unparsed: int = 0
    first_at: float | None = None
    last_at: float | None = None


def read_log(  # noqa: PLR0913 - each argument is one of the options a caller has
    paths: Sequence[Path],
    *,
    recent_s: float = 60.0,
    max_bytes: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    now_at: float | None = None,
    log_line_prefix: str | None = None,
) -> LogEvidence:
    """Read the tails of the logs of one server (or of one PgBouncer).

    At most ``max_bytes`` of text are read, the newest first (64 MiB unless told). What is ``recent`` lies within
    ``recent_s`` before ``now_at``, or before the last line. ``progress`` is told (bytes read, bytes to read); for gzip
    files there is a first round over the packed bytes to find the end. Raises LogFileError for a file that is missing,
    unreadable, no regular file, or no log.
    """
    sources = [source for path in paths if (source := open_source(Path(path), progress)) is not None]
    if not sources:
        named = ", ".join(str(path) for path in paths) or "no file"
        raise LogFileError("there is nothing to read in the log", seen=f"{named}: empty", next=_NEXT)
    logs, not_told = _without_doubles([_opened(source, log_line_prefix) for source in sources])
    logs.sort(key=lambda log: (log.last_at is None, log.last_at or 0.0))
    _share(logs, DEFAULT_MAX_BYTES if max_bytes is None else max(1, max_bytes))
    return _evidence(logs, recent_s=recent_s, now_at=now_at, progress=progress, not_told=not_told)


def read_tail(  # noqa: PLR0913 - as read_log
    text: bytes,
    *,
    name: str = "pg_read_file",
    recent_s: float = 60.0,
    now_at: float | None = None,
    log_line_prefix: str | None = None,
    cut: bool = True,
) -> LogEvidence:
    """Read a piece of log that the server itself gave (``pg_read_binary_file``).

    ``cut`` says that it may begin in the middle of a line, which is then left out. Raises
    LogFileError when it is no log.
    """
    clock = Clock()
    sample = text if len(text) <= 2 * SAMPLE_BYTES else text[:SAMPLE_BYTES] + b"\n" + text[-SAMPLE_BYTES:]
    detected = detect(sample, clock, log_line_prefix)
    if detected is None:
        raise _no_log(name, sample)
    if now_at is not None:
        clock.learn(_last_line(sample, detected.dialect), now_at)
    log = _Log(
        name=name,
        detected=detected,
        clock=clock,
        first_at=None,
        last_at=_last_at(text[-SAMPLE_BYTES:], detected.dialect),
        budget_bytes=len(text),
        size_bytes=len(text),
        text=text,
        cut=cut,
    )
    return _evidence([log], recent_s=recent_s, now_at=now_at, progress=None, not_told=[])


def _opened(source: Source, log_line_prefix: str | None) -> _Log:
    """Find the format of a log from its two ends."""
    clock = Clock()
    head = next(blocks(source, source.size_bytes), b"")[:SAMPLE_BYTES]
    sample = head + b"\n" + source.tail if source.size_bytes > SAMPLE_BYTES else source.tail
    detected = detect(source.tail, clock, log_line_prefix) or detect(sample, clock, log_line_prefix)
    if detected is None:
        raise _no_log(source.name, source.tail)
    clock.learn(_last_line(source.tail, detected.dialect), source.mtime)
    return _Log(
        name=source.name,
        detected=detected,
        clock=clock,
        first_at=_first_at(head, detected.dialect),
        last_at=_last_at(source.tail, detected.dialect),
        budget_bytes=source.size_bytes,
        size_bytes=source.size_bytes,
        source=source,
    )


def _no_log(name: str, sample: bytes) -> LogFileError:
    start = sample[:60].decode("utf-8", "replace")
    return LogFileError(
        f"{name} is no PostgreSQL or PgBouncer log", seen=f"no line looks like one: {start!r}", next=_NEXT
    )


def _without_doubles(logs: list[_Log]) -> tuple[list[_Log], list[str]]:
    """Leave out files that say the same as another: a stderr log beside a csvlog, a csvlog beside a jsonlog."""
    kept: list[_Log] = []
    not_told: list[str] = []
    rank = {_POOLER: 0, "csvlog": 0, "jsonlog": 1, "stderr": 2}
    for log in sorted(logs, key=lambda one: rank[one.detected.dialect.name]):
        twin = next((other for other in kept if _same_entries(other, log)), None)
        if twin is None:
            kept.append(log)
        else:
            not_told.append(f"{log.name} was not read: {twin.name} covers the same time and says more")
    return kept, not_told


def _same_entries(kept: _Log, log: _Log) -> bool:
    names = {kept.detected.dialect.name, log.detected.dialect.name}
    if _POOLER in names or None in {kept.first_at, kept.last_at, log.first_at, log.last_at}:
        return False
    if len(names) == 1:
        return kept.source is not None and log.source is not None and _same_file(kept.source, log.source)
    return (kept.first_at or 0) <= (log.last_at or 0) and (log.first_at or 0) <= (kept.last_at or 0)


def _same_file(one: Source, other: Source) -> bool:
    try:
        return one.path.samefile(other.path)
    except OSError:
        return False


def _share(logs: list[_Log], budget_bytes: int) -> None:
    """Give the newest logs their share of the budget first."""
    for log in reversed(logs):
        log.budget_bytes = min(log.size_bytes, budget_bytes)
        budget_bytes -= log.budget_bytes


def _evidence(
    logs: list[_Log],
    *,
    recent_s: float,
    now_at: float | None,
    progress: Callable[[int, int], None] | None,
    not_told: list[str],
) -> LogEvidence:
    ends = [log.last_at for log in logs if log.last_at is not None]
    tally = Tally(end_at=now_at if now_at is not None else max(ends, default=None), recent_s=recent_s)
    passage = _Passage(last_at=max(ends, default=None))
    total = sum(log.budget_bytes for log in logs)
    for log in logs:
        for block in log.blocks():
            _read_block(block, log.detected, tally, passage)
            if progress is not None:
                progress(min(passage.bytes_read, total), total)
    skipped = sum(log.size_bytes - log.budget_bytes for log in logs)
    names = dict.fromkeys(log.detected.dialect.name for log in logs)
    return LogEvidence(
        files=tuple(log.name for log in logs),
        format=", ".join(names),
        first_at=passage.first_at,
        last_at=passage.last_at,
        lines=passage.lines,
        bytes_read=passage.bytes_read,
        refusals=tally.refusals(),
        recent_refusals=tally.recent_refusals,
        recent_s=recent_s,
        received=tally.recent["received"],
        authorized=tally.recent["authorized"],
        authentication_failures=tally.failures.total(),
        short_sessions=tally.short_sessions,
        disconnections=tally.recent["disconnection"],
        standby_limit_lines=tuple(tally.standby),
        server_starts=tally.starts,
        undecodable_lines=passage.undecodable,
        recent_by_kind=_top(tally.recent_kinds),
        peak_refusals=tally.peak,
        peak_window_s=float(PEAK_WINDOW_S),
        peak_at=tally.peak_at,
        dead_end_refusals=tally.dead_ends,
        received_by_client=_top(tally.received_clients),
        authenticated=tally.recent["authenticated"],
        ready=tally.recent["ready"],
        login_failures=_top(tally.failures),
        login_failures_by_client=_top(tally.failure_clients),
        connections_logged=tally.connections_logged,
        disconnections_logged=tally.disconnections_logged,
        last_start_at=tally.last_start_at,
        pooler_closings=_top(tally.closings),
        skipped_bytes=skipped,
        unparsed_lines=passage.unparsed,
        not_told=(*not_told, *_not_told(logs, tally, passage, skipped)),
    )


def _read_block(block: bytes, detected: Detected, tally: Tally, passage: _Passage) -> None:
    dialect = detected.dialect
    passage.bytes_read += len(block)
    passage.lines += block.count(b"\n") + (not block.endswith(b"\n"))
    passage.undecodable += 0 if block.isascii() else _undecodable(block)
    if passage.first_at is None:
        passage.first_at = _first_at(block, dialect)
    pooler = dialect.name == _POOLER
    needles = dialect.needles
    if _is_old(block, dialect, tally.recent_from_at):
        needles = dialect.old_needles
        tally.connections_logged |= any(needle in block for needle in (b"connection received: ", b"login attempt: "))
        tally.disconnections_logged |= b"disconnection: session time: " in block
    for start, end in candidates(block, needles):
        record = dialect.parse(block, start, end)
        if record is None:
            passage.unparsed += dialect.looks_relevant(block[start:end])
        elif pooler:
            tally.add_pooler(record)
        else:
            tally.add(record, detected.languages)
    if needles is dialect.old_needles and dialect.name == "stderr":
        _remember_sessions(block[-_BORDER_BYTES:], detected, tally)


def _remember_sessions(end_of_block: bytes, detected: Detected, tally: Tally) -> None:
    """Keep who was connecting when a block of old lines ended: the refusal may stand in the next one."""
    for start, end in candidates(end_of_block, (b"connection received: ", b"connection authorized: ")):
        record = detected.dialect.parse(end_of_block, start, end)
        if record is not None and record.severity == "LOG":
            tally.add(record, detected.languages)


def _is_old(block: bytes, dialect: Dialect, recent_from_at: float | None) -> bool:
    """Whether a block ends well before the recent window: lines may be a little out of order."""
    if recent_from_at is None:
        return False
    last_at = _last_at(block[-_LOOK_BACK_BYTES:], dialect)
    return last_at is not None and last_at < recent_from_at - _DISORDER_S


def candidates(block: bytes, needles: Sequence[bytes]) -> Iterator[tuple[int, int]]:
    """Start and end of the lines that contain a needle, in order. Everything else costs one search per needle."""
    found: dict[int, int] = {}
    for needle in needles:
        at = block.find(needle)
        while at >= 0:
            end = block.find(b"\n", at)
            end = len(block) if end < 0 else end
            found[block.rfind(b"\n", 0, at) + 1] = end
            at = block.find(needle, end)
    yield from sorted(found.items())


def _undecodable(block: bytes) -> int:
    """How many lines are not UTF-8."""
    bad, start = 0, 0
    view = memoryview(block)
    while start < len(block):
        try:
            utf_8_decode(view[start:], "strict", True)  # noqa: FBT003 - the parameter has no name
        except UnicodeDecodeError as error:
            bad += 1
            newline = block.find(b"\n", start + error.start)
            if newline < 0:
                break
            start = newline + 1
        else:
            break
    return bad


def _first_at(block: bytes, dialect: Dialect) -> float | None:
    for line in block[:SAMPLE_BYTES].split(b"\n", _FIRST_LINES)[:_FIRST_LINES]:
        at = dialect.line_at(line)
        if at is not None:
            return at
    return None


def _last_line(tail: bytes, dialect: Dialect) -> bytes:
    """The last line of a tail that has a time."""
    return next((line for line in reversed(tail.split(b"\n")) if dialect.line_at(line) is not None), b"")


def _last_at(tail: bytes, dialect: Dialect) -> float | None:
    line = _last_line(tail, dialect)
    return dialect.line_at(line) if line else None


def _top(counter: Counter[str]) -> dict[str, int]:
    return dict(counter.most_common(TOP))


def _not_told(logs: list[_Log], tally: Tally, passage: _Passage, skipped: int) -> Iterator[str]:
    """Sentences about what this log keeps from us."""
    yield from dict.fromkeys(sentence for log in logs for sentence in log.detected.not_told)
    if skipped:
        yield f"only the last {passage.bytes_read} bytes were read: {skipped} bytes before them were left out"
    if passage.last_at is None:
        yield "no line has a time (log_line_prefix without %m, %t or %n): nothing can be said about the last minute"
    guessed = sorted({zone for log in logs for zone in log.clock.guessed})
    if guessed:
        yield f"time zone {', '.join(guessed)} is not known and was taken as UTC"
    if not tally.connections_logged and any(log.detected.dialect.name != _POOLER for log in logs):
        yield "no connection lines (log_connections is off): the rate of attempts cannot be told"
    if tally.unknown_who:
        yield f"{tally.unknown_who} refusals name neither user nor client (log_line_prefix without %u and %h)"
    if tally.overflow:
        yield "there are more different refusals than are kept apart: the rest is counted together"
