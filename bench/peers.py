"""A full server, and the question "why?", put to other command-line tools and to us."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from contextlib import contextmanager

from bench._peer_tools import Answer, Tool, pgvacancy, tools
from bench._process import note
from bench._server import Witness, server, witness
from bench._table import RESULTS, Table
from pgvacancy.lab.lab import Lab

MAX_CONNECTIONS = 20
PEOPLE = ("alice", "bob", "carol", "report")
MIN_IDLE_S = 2.0
CAUSE = "idle-sessions"
_ERROR = re.compile(r"FATAL|ERROR|error\[|too many clients|reserved for|could not connect|Traceback", re.IGNORECASE)
_NUMBERS = re.compile(r"\b\d+ of \d+\b|\d+\s*/\s*\d+|\(\d+%\)|backends?=?\D{0,20}\d+|idle\D{0,12}\d+", re.IGNORECASE)

_IDLE = re.compile(r"\b\d+ idle\b|\bidle\W{1,3}\d+")
_CAUSE = re.compile(
    rf"\b{CAUSE}\b|(?:nobody|no one) (?:has )?use|idle (?:sessions|connections) (?:hold|take|fill)", re.IGNORECASE
)
_VERDICT = re.compile(r"CRITICAL|WARNING|FATAL|Sessions:|POSTGRES_\w+")


def measure(options: argparse.Namespace) -> list[Table]:
    """Ordinary slots full, then every slot; asked as a member of pg_monitor and as a superuser."""
    del options
    found, missing = tools()
    asked = [*found, pgvacancy(0, "--set", f"{CAUSE}.min_idle_s={MIN_IDLE_S}")]
    asked.append(pgvacancy(3, "--set", f"{CAUSE}.min_idle_s={MIN_IDLE_S}"))
    rows: list[tuple[object, ...]] = []
    with server(MAX_CONNECTIONS) as lab, witness(lab) as seen:
        for fullness in ("ordinary slots full", "every slot taken"):
            with _filled(lab, every_slot=fullness == "every slot taken"):
                for role in ("monitor", "postgres"):
                    for tool in asked:
                        note(f"peers: {fullness}, {role}: {tool.called}")
                        named = (fullness, role, f"{tool.name} {tool.version}", tool.called)
                        rows.append((*named, *_one(lab, seen, tool, role)))
    return [
        Table(
            title="The same question on a full server",
            columns=(
                "server", "role", "tool", "called", "answered", "counts idle sessions", "names who holds the slots",
                "names the cause", "s", "slots held at most", "sessions or attempts", "refused attempts",
                "the line that tells most",
            ),
            rows=tuple(rows),
            notes=(
                (
                    f"the fault ({CAUSE}): psql and DBeaver of four people hold every ordinary slot with sessions that"
                    " nobody uses; superuser sessions take the reserve besides for every slot taken. max_connections ="
                    f" {MAX_CONNECTIONS}; role monitor is a member of pg_monitor, postgres a superuser."
                ),
                (
                    "answered: something about the sessions was printed instead of only an error. names who: at least"
                    " two of the four role names appear. names the cause: the text says that sessions nobody uses hold"
                    " the slots; a count by state alone is not a cause. The same patterns are tried on every tool."
                ),
                "s: until the answer; for pg_activity, which is a full-screen program, until its first screen.",
                "slots held and sessions: by another connection; refused attempts: FATAL lines in the server's log.",
                *(f"not measured: {line}" for line in missing),
            ),
        )
    ]  # fmt: skip


@contextmanager
def _filled(lab: Lab, *, every_slot: bool) -> Iterator[None]:
    """People's idle sessions in all ordinary slots; with ``every_slot`` the reserve is taken as well."""
    share, rest = divmod(lab.ordinary_slots, len(PEOPLE))
    # The witness sits in an ordinary slot, taken when the server was empty.
    for number, person in enumerate(PEOPLE):
        sessions = share + (rest if number == 0 else 0) - (1 if number == 1 else 0)
        tool = "DBeaver 24.1 - SQLEditor" if number % 2 else "psql"
        lab.client("hold", user=person, sessions=sessions, application_name=tool).ready()
    lab.wait_refused()
    if every_slot:
        lab.client("hold", user="postgres", sessions=3, application_name="backup").ready()
    _wait_idle(lab)
    yield
    lab.stop_clients()


def _wait_idle(lab: Lab) -> None:
    """Poll with the replication door, which takes no slot, until the sessions are older than the threshold."""
    import psycopg  # noqa: PLC0415 - beside its only use

    dsn = lab.cluster.dsn(replication="database")
    with psycopg.connect(dsn, autocommit=True, cursor_factory=psycopg.ClientCursor, prepare_threshold=None) as door:
        lab.wait(
            "the sessions to have rested",
            lambda: door.execute(
                "SELECT 1 WHERE NOT EXISTS (SELECT 1 FROM pg_stat_activity WHERE state = 'idle'"
                " AND usename <> 'postgres' AND now() - state_change < make_interval(secs => %s))",
                (MIN_IDLE_S + 0.5,),
            ).fetchall(),
        )


def _one(lab: Lab, seen: Witness, tool: Tool, role: str) -> tuple[object, ...]:
    before = _refusals(lab)
    with seen.watching():
        answer = tool.ask(lab.cluster, role)
    _keep(tool, role, answer)
    text = answer.text
    answered = bool(_NUMBERS.search(text)) and not (_ERROR.search(text) and len(text) < 400)
    who = sum(1 for person in PEOPLE if re.search(rf"\b{person}\b", text)) >= 2
    idle = bool(_IDLE.search(text))
    cause = bool(_CAUSE.search(text.split("not checked")[0]))  # a list of what could not be judged names none
    return (
        answered, idle, who, cause, answer.elapsed_s, seen.slots, len(seen.pids), _refusals(lab) - before,
        _telling_line(text),
    )  # fmt: skip


def _refusals(lab: Lab) -> int:
    return lab.cluster.log.read_text(errors="replace").count("] 53300 ")


def _telling_line(text: str) -> str:
    lines = [" ".join(line.split()) for line in text.splitlines()]
    told = sorted((line for line in lines if len(line) > 3), key=lambda line: not _VERDICT.search(line))
    return re.sub(r"port \d+", "port …", told[0] if told else "nothing")[:120]


def _keep(tool: Tool, role: str, answer: Answer) -> None:
    """Keep what was said, so that a reader can judge it too."""
    folder = RESULTS / "peers"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{tool.name}-{role}.txt").open("a") as f:
        f.write(f"--- {tool.called}, status {answer.status}, {answer.elapsed_s:.2f} s\n{answer.text}\n")
