"""A real streaming standby of a private server, made by pg_basebackup.

Source: https://www.postgresql.org/docs/current/app-pgbasebackup.html
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from pgvacancy.lab.binaries import account, lab_root
from pgvacancy.lab.cluster import Cluster
from pgvacancy.lab.lab import Lab
from pgvacancy.model.errors import MissingProgramError

NAME = "standby"


def standby_of(lab: Lab, **settings: str) -> Cluster:
    """The lab's standby, made and started when there is none; it goes with the lab's clients.

    It has the primary's settings, with ``settings`` over them. Raises :class:`MissingProgramError` where the server
    comes without pg_basebackup.
    """
    known = lab.beside.get(NAME)
    if isinstance(known, Cluster):
        return known
    standby = make_standby(lab.cluster, **settings)
    lab.beside[NAME] = standby
    lab.defer(standby.destroy)
    return standby


def make_standby(primary: Cluster, **settings: str) -> Cluster:
    """Copy a running server and start the copy as its streaming standby. To be destroyed by the caller."""
    if not (primary.bin / "pg_basebackup").exists():
        raise MissingProgramError(
            "no standby can be made from this server",
            seen=f"no pg_basebackup in {primary.bin}",
            next="--pg-bin /usr/lib/postgresql/15/bin, or the embedded server",
        )
    home = Path(tempfile.mkdtemp(prefix="s-", dir=lab_root()))
    account().own(home)
    # The retry after a restart of the primary is five seconds by default.
    quick = {"wal_retrieve_retry_interval": "200ms"}
    standby = Cluster({**primary.settings, **quick, **settings}, pg_bin=primary.bin, data=home / "data")
    try:
        primary.run("pg_basebackup", "-D", str(home / "data"), "-R", "-c", "fast", "-d", primary.dsn(database=""))
        standby.create()
        standby.start()
    except BaseException:
        standby.destroy()
        raise
    finally:
        shutil.rmtree(home, ignore_errors=True)
    return standby
