"""A second machine with all of the application's sessions loses its network without a farewell."""

from __future__ import annotations

from pgvacancy.lab.lab import Lab
from pgvacancy.lab.netns import Namespace

THRESHOLDS = {"dead-clients.min_idle_s": 2.0, "idle-sessions.min_idle_s": 2.0}
RESTED_S = 2.3


def fault(lab: Lab) -> None:
    """Clients on another machine fill the slots; the cable is cut; the server waits on."""
    far = machine(lab)
    hold_from(lab, far)
    lab.wait_refused()
    far.cut()
    wait_rested(lab, far)


def look_alike(lab: Lab) -> None:
    """The same clients on the same kind of machine, at rest and well."""
    far = machine(lab)
    hold_from(lab, far)
    wait_rested(lab, far)


def remedy(lab: Lab) -> None:
    """End what is proved dead, and have the server ask sooner in future."""
    far: Namespace = lab.beside["far"]
    lab.cluster.sql(
        f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE client_addr = '{far.address}'",
        "ALTER SYSTEM SET tcp_keepalives_idle = 60",
        "ALTER SYSTEM SET tcp_keepalives_interval = 10",
        "ALTER SYSTEM SET tcp_keepalives_count = 6",
        "SELECT pg_reload_conf()",
    )
    lab.wait_admitted()


def machine(lab: Lab) -> Namespace:
    """A second machine that reaches the server. Raises LabError where none can be made (it needs root)."""
    far = Namespace().__enter__()
    lab.defer(far.close)
    lab.beside["far"] = far
    lab.cluster.restart(listen_addresses=f"127.0.0.1,{far.host_address}")
    return far


def hold_from(lab: Lab, far: Namespace) -> None:
    """Two processes over there hold all ordinary slots."""
    size = lab.ordinary_slots
    for sessions, driver in ((size // 2, "psycopg2"), (size - size // 2, "asyncpg")):
        lab.client(
            "hold",
            user="batch",
            sessions=sessions,
            application_name="loader",
            driver=driver,
            host=far.host_address,
            prefix=["ip", "netns", "exec", far.name],
        ).ready()


def wait_rested(lab: Lab, far: Namespace) -> None:
    """Wait until all of its sessions have rested."""
    lab.wait(
        "rested sessions",
        lambda: lab.cluster.sql(
            "SELECT 1 FROM pg_stat_activity WHERE backend_type = 'client backend'"
            f" AND client_addr = '{far.address}'"
            f" HAVING count(*) > 0 AND max(state_change) < now() - interval '{RESTED_S} s'"
        ),
    )
