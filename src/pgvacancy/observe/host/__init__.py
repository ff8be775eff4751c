"""Evidence from the server's own machine (Linux), without a slot: processes, sockets, pressure.

Everything here reads; only :mod:`~pgvacancy.observe.host.peer_watch` may send a packet. Where something is closed to
us the answer is a reason, never a failure.
"""

from __future__ import annotations

from pgvacancy.observe.host.backends import read_backends
from pgvacancy.observe.host.peer_watch import peers
from pgvacancy.observe.host.postmaster import Located, find_postmaster, locate_postmaster, read_limits, server_log_path
from pgvacancy.observe.host.samples import sample_from_backends
from pgvacancy.observe.host.watch import HostWatch

__all__ = [
    "HostWatch",
    "Located",
    "find_postmaster",
    "locate_postmaster",
    "peers",
    "read_backends",
    "read_limits",
    "sample_from_backends",
    "server_log_path",
]
