"""Opening logs and reading their tails in blocks: bounded memory whatever the size.

A log may be plain or gzip, still written to, rotated or truncated while we read: we read up to the size it had when
it was opened, and less when there is less.
"""

from __future__ import annotations

import errno
import os
import stat
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from pgvacancy.model.errors import LogFileError

BLOCK_BYTES = 1 << 20
SAMPLE_BYTES = 1 << 18
LINE_LIMIT_BYTES = 8 << 20
"""A longer line is cut: no entry of interest is that long."""

_GZIP = b"\x1f\x8b"
_GZIP_WBITS = 31
_PACKED_BYTES = 1 << 16
_NEXT = "name a PostgreSQL csvlog, jsonlog or stderr log, or a PgBouncer log:  pgvacancy doctor --log FILE"


@dataclass(frozen=True, kw_only=True)
class Source:
    """A log that can be read, its size when it was opened, and a look at its end."""

    name: str
    path: Path
    size_bytes: int
    """Of the text, not of the compressed file."""
    compressed: bool
    mtime: float
    tail: bytes
    """The last :data:`SAMPLE_BYTES` of the text."""


def open_source(path: Path, measured: Callable[[int, int], None] | None = None) -> Source | None:
    """Look at a log; None for an empty one.

    Finding the end of a gzip file means unpacking all of it once; ``measured`` is told (compressed bytes read, all).
    Raises LogFileError for whatever is no readable file.
    """
    with _opened(path) as file:
        status = os.fstat(file.fileno())
        compressed = file.read(2) == _GZIP
        if compressed:
            file.seek(0)
            size, tail = _measure_gzip(path, file, status.st_size, measured)
        else:
            size = status.st_size
            file.seek(max(0, size - SAMPLE_BYTES))
            tail = _read(path, file, SAMPLE_BYTES)
    if not size:
        return None
    if not tail.strip(b"\x00 \r\n\t"):
        raise LogFileError(
            f"{path} is no readable log", seen=f"its last {len(tail)} bytes are blank or zero", next=_NEXT
        )
    return Source(name=str(path), path=path, size_bytes=size, compressed=compressed, mtime=status.st_mtime, tail=tail)


def blocks(source: Source, budget_bytes: int) -> Iterator[bytes]:
    """The last ``budget_bytes`` of a log, in blocks that end with a line; the line cut at the beginning is left out."""
    start = max(0, source.size_bytes - budget_bytes)
    with _opened(source.path) as file:
        text: _Readable = file
        if source.compressed:
            text = _Gunzip(file)
            text.skip(start)
        else:
            file.seek(start)
        yield from _whole_lines(source.path, text, source.size_bytes - start, cut=start > 0)


def split_blocks(text: bytes, *, cut: bool) -> Iterator[bytes]:
    """A piece of log in memory as one block, without the line cut at its beginning."""
    start = text.find(b"\n") + 1 if cut else 0
    if start < len(text):
        yield text[start:]


def _whole_lines(path: Path, file: _Readable, left: int, *, cut: bool) -> Iterator[bytes]:
    carry = b""
    skipping = cut
    while left > 0:
        read = _read(path, file, min(BLOCK_BYTES, left))
        if not read:
            break
        left -= len(read)
        if skipping:
            _, newline, read = read.partition(b"\n")
            skipping = not newline
        end = read.rfind(b"\n") + 1
        if end or len(carry) > LINE_LIMIT_BYTES:
            yield carry + read[:end]
            carry = read[end:]
        else:
            carry += read
    if carry:
        yield carry


def _read(path: Path, file: _Readable, size: int) -> bytes:
    """Read; a file that was truncated meanwhile just ends."""
    try:
        return file.read(size) or b""
    except OSError as error:
        raise LogFileError(f"cannot read {path}", seen=_reason(error), next=_NEXT) from error


def _measure_gzip(
    path: Path, file: BinaryIO, all_bytes: int, measured: Callable[[int, int], None] | None
) -> tuple[int, bytes]:
    """Size of the text and its last bytes; a file cut short counts as far as it goes."""
    size, tail = 0, b""
    text = _Gunzip(file)
    while read := text.read(BLOCK_BYTES):
        size += len(read)
        tail = (tail + read)[-SAMPLE_BYTES:]
        if measured is not None:
            measured(min(file.tell(), all_bytes), all_bytes)
    if text.problem and not size:
        raise LogFileError(f"cannot unpack {path}", seen=text.problem, next=_NEXT)
    return size, tail


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes | None: ...


class _Gunzip:
    """A gzip stream that gives all that can be unpacked of a damaged or cut file, and then just ends."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._member = zlib.decompressobj(_GZIP_WBITS)
        self._packed = b""
        self._ended = False
        self.problem = ""

    def read(self, size: int, /) -> bytes:
        """Up to ``size`` bytes; none at the end."""
        parts: list[bytes] = []
        while size > 0 and not self._ended:
            part = self._some(size)
            size -= len(part)
            parts.append(part)
        return b"".join(parts)

    def skip(self, size: int) -> None:
        """Pass over ``size`` bytes."""
        while size > 0 and (read := self.read(min(size, BLOCK_BYTES))):
            size -= len(read)

    def _some(self, size: int) -> bytes:
        if self._member.eof:
            # Further members may follow; they begin where the last one ended.
            self._packed = self._member.unused_data or self._file.read(_PACKED_BYTES)
            if not self._packed.strip(b"\x00"):
                self._ended = True
                return b""
            self._member = zlib.decompressobj(_GZIP_WBITS)
        self._packed = self._packed or self._file.read(_PACKED_BYTES)
        last = not self._packed
        try:
            part = self._member.decompress(self._packed, size)
        except zlib.error as error:
            self.problem, self._ended = str(error).lower(), True
            return b""
        self._packed = self._member.unconsumed_tail
        if last and not part and not self._member.eof:
            self.problem, self._ended = "the packed file ends before its time", True
        return part


def _opened(path: Path) -> BinaryIO:
    """Open a regular file for reading, never waiting for a writer as opening a FIFO would."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        raise LogFileError(f"cannot open {path}", seen=_reason(error), next=_advice(error)) from error
    mode = os.fstat(handle).st_mode
    if not stat.S_ISREG(mode):
        os.close(handle)
        kind = next((name for test, name in _KINDS if test(mode)), "a special file")
        raise LogFileError(f"{path} is no log file", seen=kind, next=_NEXT)
    return os.fdopen(handle, "rb", buffering=0)


_KINDS: tuple[tuple[Callable[[int], bool], str], ...] = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a pipe: it has no end to read backwards from"),
    (stat.S_ISCHR, "a character device"),
    (stat.S_ISBLK, "a block device"),
)


def _reason(error: Exception) -> str:
    strerror = error.strerror if isinstance(error, OSError) else None
    return (strerror or str(error)).lower()


def _advice(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno in {errno.EACCES, errno.EPERM}:
        return "run as a user who may read it, or make the log readable:  log_file_mode = 0640 and the group adm"
    return "SELECT pg_current_logfile()  tells where the server writes its log"
