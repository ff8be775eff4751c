"""The machine itself: processors, memory, pressure, and how many processes it makes.

Source: https://docs.kernel.org/accounting/psi.html
"""

from __future__ import annotations

import os
import re

from pgvacancy.observe.host.procfs import read_bytes

_SOME = re.compile(rb"^some avg10=([0-9.]+)", re.MULTILINE)
_FORKS = re.compile(rb"^processes (\d+)", re.MULTILINE)


def cores() -> int:
    """Processors of the machine."""
    return os.cpu_count() or 0


def memory_bytes() -> int:
    """Physical memory in bytes, 0 when it cannot be told."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return 0


def cpu_pressure_ratio() -> float | None:
    """Share of the last ten seconds in which some task waited for a processor; None without PSI (kernel 4.20)."""
    match = _SOME.search(read_bytes("/proc/pressure/cpu") or b"")
    return float(match.group(1)) / 100 if match else None


def forks() -> int | None:
    """Processes and threads created on this machine since it started."""
    match = _FORKS.search(read_bytes("/proc/stat") or b"")
    return int(match.group(1)) if match else None
