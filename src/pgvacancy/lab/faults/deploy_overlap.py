"""A rollout starts the new release while the old one still holds its pools; the new one does not fit."""

from __future__ import annotations

from pgvacancy.lab.lab import Client, Lab

REPLICAS = 2
APART_S = 2.0


def fault(lab: Lab) -> None:
    """The old generation rests, the new one, from other addresses, is at work and refused part of its pool."""
    size = lab.ordinary_slots // (2 * REPLICAS)
    _generation(lab, ("127.0.0.11", "127.0.0.12"), size, rate=0)
    lab.wait("the old generation to have some age", lambda: _youngest_s(lab) > APART_S)
    _generation(lab, ("127.0.0.21", "127.0.0.22"), size + 1, rate=20.0)
    lab.wait_refused()


def look_alike(lab: Lab) -> None:
    """One generation of twice as many replicas, all of them at work."""
    size = (lab.ordinary_slots - 1) // (2 * REPLICAS)
    _generation(lab, ("127.0.0.31", "127.0.0.32", "127.0.0.33", "127.0.0.34"), size, rate=4.0 * size)


def remedy(lab: Lab) -> None:
    """The old generation is gone, the new one holds its pools."""
    lab.stop_clients()
    _generation(lab, ("127.0.0.21", "127.0.0.22"), lab.ordinary_slots // (2 * REPLICAS), rate=20.0)
    lab.wait_admitted()


def _generation(lab: Lab, addresses: tuple[str, ...], size: int, *, rate: float) -> list[Client]:
    """One replica per address, started together."""
    ports = [lab.relay(address) for address in addresses]
    replicas = [
        lab.client("pool", port=port, sessions=size, rate=rate, application_name="checkout", driver=driver)
        for port, driver in zip(ports, ("psycopg", "asyncpg") * 2, strict=False)
    ]
    for replica in replicas:
        replica.ready()
    return replicas


def _youngest_s(lab: Lab) -> float:
    return float(
        lab.cluster.sql(
            "SELECT extract(epoch FROM now() - max(backend_start)) FROM pg_stat_activity"
            " WHERE application_name = 'checkout'"
        )[0][0]
    )
