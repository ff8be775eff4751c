"""The client is gone and the server has not noticed.

What it is
----------
A machine lost its power or its network, a container was frozen and removed, a firewall or NAT forgot the connection:
no farewell packet arrived. The server still waits for the next message of a client that does not exist any more.

Why it takes slots
------------------
Nothing tells the server. An idle TCP connection sends no packets, so silence looks the same as patience; Linux asks
for the first time after two hours (tcp_keepalives_idle 0 means the system's 7200 s). A session that died in the
middle of a COPY or of a message is `active`, so that no idle timeout applies to it.

How we know
-----------
On the server's own machine the kernel tells: the connection is ESTABLISHED, but there is no route to the client, no
neighbour answers for its address, packets stay unanswered, or, for a client on this machine, no process holds the
other end. Such a session is *proved* dead. Without that proof only a suspicion is possible: `active` with the wait
event Client/ClientRead or Client/ClientWrite for longer than `min_idle_s` means a client that stopped in the middle
of a message, dead or stuck. Idle sessions without proof are not claimed: their clients may simply be quiet.

What to do, least disruptive first
----------------------------------
1. End the sessions that are proved dead. Nobody is there to notice; locks and slots come back.
2. Have the server ask sooner: `ALTER SYSTEM SET tcp_keepalives_idle = 60; ... tcp_keepalives_interval = 10; ...
   tcp_keepalives_count = 6;` and reload. It reaches sessions that are already idle only at their next command.
3. `client_connection_check_interval = '10s'` (14+) lets a *running* statement notice that its client has left.
Traps: keepalives do not exist on Unix sockets; behind a proxy they test the proxy; idle_session_timeout does not end
an `active` session.

Often mistaken for
------------------
Idle sessions (their clients exist and have nothing to say) · LISTEN connections · a paused or frozen client, a
debugger · a slow COPY: its client exists and sends from time to time.

Sources
-------
https://www.postgresql.org/docs/current/runtime-config-connection.html#RUNTIME-CONFIG-TCP-SETTINGS
https://www.postgresql.org/docs/current/monitoring-stats.html#WAIT-EVENT-CLIENT-TABLE
https://man7.org/linux/man-pages/man7/tcp.7.html
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from pgvacancy.causes._common import severity_of
from pgvacancy.causes._examples import pool, server, snapshot
from pgvacancy.causes._shape import Example, setting
from pgvacancy.model.diagnosis import Advice, Fact, Finding
from pgvacancy.model.evidence import HostEvidence, PeerState
from pgvacancy.model.series import Case, Track, culprits, keys
from pgvacancy.model.snapshot import Server

CODE = "PGC112"
ORDER = 70
NEEDS = ({"sql", "states"},)


@dataclass(frozen=True, slots=True)
class Settings:
    """Thresholds of dead-clients."""

    min_idle_s: float = setting(60, "no client pauses a minute within one message; proved deaths need no such patience")
    min_share_ratio: float = setting(0.1, "below a tenth of the ordinary slots they are not what filled the server")
    min_unanswered_count: float = setting(3, "three packets in a row without answer are seconds of silence")


def detect(case: Case, settings: Settings) -> Finding | None:
    """Find sessions whose client is gone."""
    ledger = case.ledger
    if ledger is None:
        return None
    peers = _peers(case)
    proved = [t for t in case.tracks if (p := peers.get(_end(t))) is not None and p.gone and not t.changed]
    stopped = [t for t in case.tracks if t not in proved and _silent(t, peers.get(_end(t)), settings)]
    stopped += [t for t in _mid_message(case) if t not in proved and t.state_age_s >= settings.min_idle_s]
    suspected = stopped if case.scarce else []
    dead = proved + suspected
    share = len(dead) / max(1, ledger.ordinary_slots)
    if not dead or share < settings.min_share_ratio:
        return None
    stuck = [t for t in _mid_message(case) if t in dead]
    oldest = max(t.state_age_s for t in dead)
    return Finding(
        code=CODE,
        cause="dead-clients",
        severity=severity_of(case, share),
        confidence=_confidence(case, proved, suspected),
        summary=_summary(proved, suspected, oldest),
        claims=keys(dead),
        evidence=(
            Fact(fact="sessions whose client is proved to be gone", value=len(proved), source="sockets"),
            *(
                Fact(fact=f"proof: {why}", value=count, source="sockets")
                for why, count in Counter(peers[_end(t)].why for t in proved).most_common(3)
            ),
            Fact(fact="active, yet waiting for their client longer than min_idle_s", value=len(stuck)),
            Fact(fact="longest silence, now() - state_change, in seconds", value=round(oldest, 1)),
        ),
        counter_evidence=tuple(_counter_evidence(case, suspected, peers)),
        culprits=culprits(dead),
        remedies=_remedies(case, proved, suspected),
    )


def _end(track: Track) -> tuple[str, int]:
    return (track.session.client_addr or "", track.session.client_port or 0)


def _peers(case: Case) -> dict[tuple[str, int], PeerState]:
    host = case.snapshot.host
    return {(p.address, p.port): p for p in host.peers} if host is not None else {}


def _mid_message(case: Case) -> list[Track]:
    """Active, and at every reading waiting for its client rather than working."""
    waits = {"ClientRead", "ClientWrite"}
    working = {s.pid for sample in case.samples for s in sample.sessions if s.wait_event not in waits}
    if case.snapshot.host is not None:  # a slow COPY wakes whenever its client sends something
        working |= {b.pid for b in case.snapshot.host.backends if b.used}
    return [t for t in case.tracks if t.session.state == "active" and not t.changed and t.session.pid not in working]


def _silent(track: Track, peer: PeerState | None, settings: Settings) -> bool:
    """At rest, and the peer has left several packets unanswered."""
    if peer is None or track.session.state == "active" or track.changed or track.state_age_s < settings.min_idle_s:
        return False
    return max(peer.retransmits, peer.unanswered_probes) >= settings.min_unanswered_count


def _known_alive(case: Case, track: Track) -> bool:
    """Whether a process on this machine holds the client's end: then it is stuck, or slow, but there."""
    return track.client != (track.session.client_addr or "local") and case.snapshot.host is not None


def _confidence(case: Case, proved: list[Track], suspected: list[Track]) -> float:
    if len(proved) >= len(suspected):
        return 0.95
    if 2 * sum(1 for t in suspected if _known_alive(case, t)) >= len(suspected):
        return 0.55  # stuck rather than gone, and still nobody else's doing
    return 0.65 if case.window_s > 0 else 0.5


def _summary(proved: list[Track], suspected: list[Track], oldest: float) -> str:
    if not suspected:
        return f"the clients of {len(proved)} sessions are gone, some for {oldest:.0f} s; the server waits on"
    seems = f"{len(suspected)} sessions wait for a client that stopped in the middle, for up to {oldest:.0f} s"
    return f"the clients of {len(proved)} sessions are gone, and {seems}" if proved else seems


def _counter_evidence(case: Case, suspected: list[Track], peers: dict[tuple[str, int], PeerState]) -> list[Fact]:
    answering = sum(1 for t in case.tracks if (p := peers.get(_end(t))) is not None and not p.gone)
    alive = sum(1 for t in suspected if _known_alive(case, t))
    facts = [Fact(fact="sessions at rest whose client was not found to be gone", value=answering, source="sockets")]
    if alive:
        facts.append(Fact(fact="suspected, but a process here holds the client's end", value=alive, source="sockets"))
    if case.snapshot.host is None:
        facts.append(Fact(fact="no proof possible: we are not on the server's machine", source="sockets"))
    return facts


def _remedies(case: Case, proved: list[Track], suspected: list[Track]) -> tuple[Advice, ...]:
    advice = []
    if proved:
        ends = ", ".join(f"({t.session.pid}, {t.session.client_port})" for t in proved[:40])
        advice.append(
            Advice(
                slug="end-idle-sessions",
                difficulty="easy",
                disruption="ends-sessions",
                frees=len(proved),
                command=(
                    "SELECT pid, pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'client backend' "
                    f"AND (pid, client_port) IN ({ends});"
                ),
                why="their clients are proved to be gone: nobody is there to lose work",
            )
        )
    advice.append(
        Advice(
            slug="set-tcp-keepalives",
            difficulty="easy",
            disruption="reload",
            command=_keepalives(case.snapshot.server),
            why="the next dead client is noticed within two minutes instead of two hours",
        )
    )
    if suspected:
        ends = ", ".join(f"({t.session.pid}, {t.session.client_port})" for t in suspected[:40])
        advice.append(
            Advice(
                slug="end-idle-sessions",
                difficulty="medium",
                disruption="ends-sessions",
                frees=len(suspected),
                command=(
                    "SELECT pid, pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'client backend' "
                    f"AND wait_event IN ('ClientRead', 'ClientWrite') AND (pid, client_port) IN ({ends});"
                ),
                why="not proved: ask first whether these clients still run",
            )
        )
    return tuple(advice)


def _keepalives(srv: Server | None) -> str:
    statements = [
        "ALTER SYSTEM SET tcp_keepalives_idle = 60;",
        "ALTER SYSTEM SET tcp_keepalives_interval = 10;",
        "ALTER SYSTEM SET tcp_keepalives_count = 6;",
    ]
    if srv is None or srv.version_num >= 140_000:
        statements.append("ALTER SYSTEM SET client_connection_check_interval = '10s';")
    return " ".join([*statements, "SELECT pg_reload_conf();"])


def _host(count: int, *, gone: bool) -> HostEvidence:
    why = "no neighbour answers for the client's address on eth0" if gone else "the client's machine answers"
    ports = range(20_000, 20_000 + count)
    return HostEvidence(
        peers=tuple(
            PeerState(address="10.0.0.1", port=port, tcp_state="ESTABLISHED", gone=gone, why=why) for port in ports
        )
    )


EXAMPLES = (
    Example("a default server at rest", "quiet", lambda: snapshot(server(100), pool("psql", 2, idle_s=9000))),
    Example(
        "sessions that idle for hours, their machine answers",
        "quiet",
        lambda: snapshot(server(100), pool("web", 97, idle_s=(7000, 9000), use_span_s=600), host=_host(97, gone=False)),
    ),
    Example(
        "a machine with ninety sessions has lost its power",
        "fires",
        lambda: snapshot(server(100), pool("web", 97, idle_s=(700, 900), use_span_s=600), host=_host(90, gone=True)),
    ),
    Example(
        "died in the middle of COPY, seen from another machine",
        "fires",
        lambda: snapshot(
            server(100),
            pool("loader", 97, state="active", idle_s=(700, 900), wait_event_type="Client", wait_event="ClientRead"),
        ),
    ),
    Example(
        "after the dead ones were ended",
        "cleared",
        lambda: snapshot(server(100), pool("web", 7, idle_s=(0, 2), used=True), host=_host(7, gone=False)),
    ),
)
