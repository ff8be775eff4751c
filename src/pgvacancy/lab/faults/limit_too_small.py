"""Four services with modest pools, all of them in use, and a limit that one of them too many has reached."""

from __future__ import annotations

from pgvacancy.lab.lab import Client, Lab

SERVICES = (
    ("web", "shop", "psycopg"),
    ("app", "billing", "asyncpg"),
    ("batch", "mail", "psycopg2"),
    ("report", "search", "sqlalchemy"),
)
LOOK_S = 3.0


def fault(lab: Lab) -> None:
    """Every service opens its pool and uses all of it; an ordinary client is refused."""
    _demand(lab, lab.ordinary_slots)
    lab.wait_refused()


def look_alike(lab: Lab) -> None:
    """The same services with pools of the same sizes, of which each uses a member or two: nobody needs more slots."""
    share, rest = divmod(lab.ordinary_slots, len(SERVICES))
    for number, (user, name, driver) in enumerate(SERVICES):
        size = share + (1 if number < rest else 0)
        lab.client(
            "pool", user=user, sessions=size, application_name=name, driver=driver, pick="lifo", rate=4
        ).ready()  # fmt: skip
    lab.wait_refused()


def remedy(lab: Lab) -> None:
    """Raise the limit, restart, and let the very same demand come back, the refused one included."""
    wanted = lab.ordinary_slots + 1
    lab.stop_clients()
    raised = 2 * int(lab.cluster.sql("SHOW max_connections")[0][0])
    lab.cluster.restart(max_connections=str(raised))
    _demand(lab, wanted)
    lab.wait_admitted()


def _demand(lab: Lab, sessions: int) -> None:
    share, rest = divmod(sessions, len(SERVICES))
    clients: list[Client] = []
    for number, (user, name, driver) in enumerate(SERVICES):
        count = share + (1 if number < rest else 0)
        clients.append(
            lab.client(
                "busy", user=user, sessions=count, application_name=name, driver=driver, think=0.3,
                work="SELECT balance FROM accounts WHERE id = 7",
            )
        )  # fmt: skip
    for client in clients:
        client.ready()
    lab.wait("every pool to be open", lambda: lab.used_slots >= sessions)
