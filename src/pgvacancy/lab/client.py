"""A client program: real sessions through a real driver, behaving well or badly as told.

Run as ``python -m pgvacancy.lab.client BEHAVIOUR --dsn DSN ...`` in a process of its own. It prints one JSON line when
its first round is done (``{"event": "ready", "open": n, "refused": n}``) and ends when its standard input closes.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from pgvacancy.lab.drivers import DRIVERS, Session, connect, errors, is_refusal


@dataclass
class State:
    """What the client has done so far; threads share it."""

    sessions: list[Session] = field(default_factory=list)
    opened: int = 0
    refused: int = 0
    failed: int = 0
    statements: int = 0
    last_error: str = ""
    errors: tuple[type[Exception], ...] = ()
    """What the driver in use raises."""
    stop: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def report(self, event: str) -> None:
        """Print one line for the lab."""
        line = {
            "event": event,
            "open": len(self.sessions),
            "opened": self.opened,
            "refused": self.refused,
            "failed": self.failed,
            "statements": self.statements,
            "last_error": self.last_error[:200],
        }
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()


def open_one(options: argparse.Namespace, state: State, number: int) -> Session | None:
    """Open a session and run the first statement; None when refused."""
    try:
        session = connect(options.driver, options.dsn, options.application_name.replace("%d", str(number)))
        if options.begin:
            session.execute("BEGIN")
        if options.statement:
            session.execute(options.statement)
    except state.errors as error:
        with state.lock:
            state.last_error = str(error).strip()
            if is_refusal(error):
                state.refused += 1
            else:
                state.failed += 1
        return None
    with state.lock:
        state.opened += 1
        state.sessions.append(session)
    return session


def hold(options: argparse.Namespace, state: State) -> None:
    """Open sessions, one every ``interval`` seconds, run a statement on each, and keep them unused.

    With ``--forever`` it goes on opening (and being refused) until told to stop: a leak.
    """
    number = 0
    while not state.stop.is_set():
        number += 1
        open_one(options, state, number)
        if number == options.sessions:
            state.report("ready")
        if number >= options.sessions and not options.forever:
            break
        state.stop.wait(options.interval)
    state.stop.wait()


def pool(options: argparse.Namespace, state: State) -> None:
    """A pool that is used: ``rate`` statements a second, each on a session of the pool.

    ``--pick random`` spreads the use, ``lifo`` always takes the one used last, as most pools do.
    """
    _fill(options, state)
    state.report("ready")
    while not state.stop.wait(1 / options.rate if options.rate else None):
        if not state.sessions:
            _fill(options, state)
            continue
        index = random.randrange(len(state.sessions)) if options.pick == "random" else len(state.sessions) - 1  # noqa: S311 - not for secrets
        _use(state.sessions[index], options.work, state)


def busy(options: argparse.Namespace, state: State) -> None:
    """Every session works in a thread of its own: statement, think, statement, ..."""
    _fill(options, state)

    def work(session: Session) -> None:
        while not state.stop.is_set():
            if not _use(session, options.work, state):
                return
            state.stop.wait(options.think)

    _threads([partial(work, s) for s in list(state.sessions)])
    state.report("ready")
    state.stop.wait()


def chat(options: argparse.Namespace, state: State) -> None:
    """Like ``busy``, but in short transactions of two statements with a pause between them."""
    _fill(options, state)

    def work(session: Session) -> None:
        while not state.stop.is_set():
            for statement in ("BEGIN", options.work, options.work, "COMMIT"):
                if not _use(session, statement, state):
                    return
                state.stop.wait(options.think)

    _threads([partial(work, s) for s in list(state.sessions)])
    state.report("ready")
    state.stop.wait()


def once(options: argparse.Namespace, state: State) -> None:
    """Every session runs one statement in a thread of its own (a slow one, or one that waits for a lock)."""
    _fill(options, state)
    _threads([partial(_use, s, options.work, state) for s in list(state.sessions)])
    state.report("ready")
    state.stop.wait()


def churn(options: argparse.Namespace, state: State) -> None:
    """Connect, query, leave; again and again in ``sessions`` threads. A refused one tries again after ``think``."""

    def work() -> None:
        while not state.stop.is_set():
            session = open_one(options, state, 0)
            if session is None:
                state.stop.wait(options.think)
                continue
            _use(session, options.work, state)
            with state.lock:
                state.sessions.remove(session)
            session.close()
            state.stop.wait(options.interval)

    _threads([work for _ in range(options.sessions)])
    state.report("ready")
    state.stop.wait()


def retry(options: argparse.Namespace, state: State) -> None:
    """Every thread wants one session, keeps it once it has it, and tries again at once when refused."""

    def work() -> None:
        session: Session | None = None
        while not state.stop.is_set():
            if session is None:
                session = open_one(options, state, 0)
            elif not _use(session, options.work, state):
                session = None
            state.stop.wait(options.think)

    _threads([work for _ in range(options.sessions)])
    state.report("ready")
    state.stop.wait()


def recreate(options: argparse.Namespace, state: State) -> None:
    """Open ``pools`` pools of ``sessions`` sessions, one every ``interval`` seconds, and close none of them.

    ``--pick lifo`` goes on with the newest pool alone, ``random`` uses all there is, as a pool that grew in bursts.
    """
    in_use: list[Session] = []
    for _ in range(options.pools):
        opened = [open_one(options, state, number) for number in range(options.sessions)]
        newest = [session for session in opened if session is not None]
        in_use = newest or in_use if options.pick == "lifo" else state.sessions
        state.stop.wait(options.interval)
    state.report("ready")
    while in_use and options.rate and not state.stop.wait(1 / options.rate):
        index = random.randrange(len(in_use)) if options.pick == "random" else len(in_use) - 1  # noqa: S311 - not for secrets
        _use(in_use[index], options.work, state)
    state.stop.wait()


BEHAVIOURS: dict[str, Callable[[argparse.Namespace, State], None]] = {
    "hold": hold,
    "pool": pool,
    "busy": busy,
    "chat": chat,
    "once": once,
    "churn": churn,
    "retry": retry,
    "recreate": recreate,
}


def _fill(options: argparse.Namespace, state: State) -> None:
    for number in range(options.sessions):
        if open_one(options, state, number) is None and not options.forever:
            continue
        if options.interval:
            state.stop.wait(options.interval)


def _use(session: Session, statement: str, state: State) -> bool:
    try:
        session.execute(statement)
    except state.errors as error:
        with state.lock:
            state.last_error = str(error).strip()
            state.failed += 1
            if session in state.sessions:
                state.sessions.remove(session)
        session.close()
        return False
    with state.lock:
        state.statements += 1
    return True


def _threads(work: list[Callable[[], object]]) -> None:
    for item in work:
        threading.Thread(target=item, daemon=True).start()


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line and behave until standard input closes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("behaviour", choices=BEHAVIOURS)
    parser.add_argument("--dsn", required=True)
    parser.add_argument("--driver", choices=DRIVERS, default="psycopg")
    parser.add_argument("--application-name", default="app", help="%%d is replaced by the session's number")
    parser.add_argument("--sessions", type=int, default=1)
    parser.add_argument("--pools", type=int, default=1, help="how often the pool is made anew")
    parser.add_argument("--interval", type=float, default=0.0, help="seconds between two openings")
    parser.add_argument("--think", type=float, default=0.1, help="seconds between two uses")
    parser.add_argument("--rate", type=float, default=10.0, help="uses a second, over the whole pool")
    parser.add_argument("--pick", choices=("random", "lifo"), default="random")
    parser.add_argument("--statement", default="SELECT 1", help="run once on each new session")
    parser.add_argument("--work", default="SELECT 1", help="run at each use")
    parser.add_argument("--begin", action="store_true", help="open a transaction before the statement")
    parser.add_argument("--forever", action="store_true", help="go on opening")
    options = parser.parse_args(arguments)
    state = State(errors=errors(options.driver))

    def behave() -> None:
        BEHAVIOURS[options.behaviour](options, state)

    threading.Thread(target=behave, daemon=True).start()
    for line in sys.stdin:  # each line asks for a report; the end of input asks to leave
        state.report(line.strip() or "report")
    state.stop.set()
    time.sleep(0.01)
    for session in list(state.sessions):
        session.close()


if __name__ == "__main__":
    main()
