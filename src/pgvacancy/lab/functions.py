"""A crowd of cloud functions: each a process of its own, one session each, one statement, then frozen.

Run as ``python -m pgvacancy.lab.functions --dsn DSN --rate 6 --freeze 4``. An invocation starts a process that
opens ``--sessions`` sessions, runs a statement and then does nothing, as a frozen function does, until the
platform reclaims it after ``--freeze`` seconds without a word to the server. ``--busy`` keeps every process
working instead: a fleet. It prints one JSON line when ``--crowd`` invocations have been made, and ends when its
standard input closes.

The processes are forked from one that has loaded the driver, so that a crowd costs little memory and time.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import select
import signal
import sys
import time

from pgvacancy.lab.cluster import die_with_parent
from pgvacancy.lab.drivers import Session, connect


def invoke(options: argparse.Namespace, life_s: float) -> int:
    """Start one function; its pid."""
    pid = os.fork()
    if pid:
        return pid
    die_with_parent(signal.SIGKILL)
    os.close(0)  # else it would keep the parent's input open
    status = 1
    try:
        sessions = [connect(options.driver, options.dsn, options.application_name) for _ in range(options.sessions)]
        for session in sessions:
            session.execute(options.work)
        while options.busy:
            work(sessions, options)
        time.sleep(life_s)
        status = 0
    finally:
        os._exit(status)  # reclaimed: no farewell to the server


def work(sessions: list[Session], options: argparse.Namespace) -> None:
    """Use every session once, then think."""
    for session in sessions:
        session.execute(options.work)
    time.sleep(options.think)


def reap() -> None:
    """Collect the functions that have ended."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def main() -> None:
    """Invoke functions until standard input closes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dsn", required=True)
    parser.add_argument("--driver", choices=("psycopg", "psycopg2"), default="psycopg2")
    parser.add_argument("--application-name", default="")
    parser.add_argument("--crowd", type=int, default=16, help="invocations made at once in the beginning")
    parser.add_argument("--rate", type=float, default=6.0, help="further invocations a second")
    parser.add_argument("--freeze", type=float, default=4.0, help="seconds until a function is reclaimed, about")
    parser.add_argument("--sessions", type=int, default=1)
    parser.add_argument("--work", default="SELECT count(*) FROM accounts")
    parser.add_argument("--busy", action="store_true", help="keep working, never freeze")
    parser.add_argument("--think", type=float, default=0.1, help="seconds between two uses when busy")
    options = parser.parse_args()
    __import__(options.driver)  # once, for all children
    for number in range(options.crowd):
        # The first ones end one after another, as if they had come one after another.
        invoke(options, options.freeze * (number + 1) / options.crowd)
    sys.stdout.write(json.dumps({"event": "ready", "open": options.crowd}) + "\n")
    sys.stdout.flush()
    while not select.select([sys.stdin], [], [], 1 / options.rate if options.rate else None)[0]:
        invoke(options, options.freeze * random.uniform(0.8, 1.2))  # noqa: S311 - not for secrets
        reap()


if __name__ == "__main__":
    main()
