"""Where to knock: a conninfo string or URI, the ``PG*`` environment, the service file, exactly as libpq reads them.

libpq itself does the reading. It is asked to connect with one option that it must reject after everything else is
resolved and before it touches the network; what it resolved is then read back. So precedence, the service file,
the compiled-in socket directory and every complaint are libpq's own.

The password file is libpq's affair too: a probe needs no password, and whoever logs in hands :attr:`Target.conninfo`
to the driver.

Source: https://www.postgresql.org/docs/current/libpq-connect.html
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from pgvacancy.model.errors import ConninfoError, Secret

_SENTINEL = "stop-before-connecting"
_DEFAULT_PORT = 5432
NO_SECRET = Secret()
_SECRETS = frozenset({"password", "sslpassword", "scram_client_key", "scram_server_key", "oauth_client_secret"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """One place to knock at. ``name`` beginning with ``/`` or ``@`` is a socket directory."""

    name: str
    address: str = ""
    """hostaddr: the IP address to use in place of a look-up of ``name``."""
    port: int = _DEFAULT_PORT

    @property
    def is_unix(self) -> bool:
        """A Unix socket rather than TCP."""
        return not self.address and self.name[:1] in {"/", "@"}

    @property
    def socket_path(self) -> str:
        """The path of the socket; a leading ``@`` stands for Linux's abstract namespace."""
        return f"{self.name}/.s.PGSQL.{self.port}"

    @property
    def display(self) -> str:
        """The place for people."""
        if self.is_unix:
            return self.socket_path
        name = self.name or self.address
        return f"[{name}]:{self.port}" if ":" in name else f"{name}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A resolved connection string. Nothing in it shows a password."""

    hosts: tuple[Host, ...]
    user: str
    database: str
    options: Mapping[str, str] = field(default_factory=dict)
    """Every other option libpq resolved (``sslmode``, ``sslrootcert``, ...), secrets left out."""
    conninfo: Secret = NO_SECRET
    """What was given, for the driver."""
    sslpassword: Secret = NO_SECRET

    @property
    def sslmode(self) -> str:
        """``disable`` to ``verify-full``."""
        return self.options.get("sslmode", "prefer")

    @property
    def display(self) -> str:
        """Where we knock and as whom, without secrets."""
        places = ",".join(host.display for host in self.hosts)
        return f"{places} (user {self.user!r}, database {self.database!r})"

    @property
    def shareable(self) -> str:
        """A conninfo string that leads to the same place, without secrets."""
        parts = {
            "host": ",".join(h.name for h in self.hosts),
            "hostaddr": ",".join(h.address for h in self.hosts).strip(","),
            "port": ",".join(str(h.port) for h in self.hosts),
            "user": self.user,
            "dbname": self.database,
            **{k: self.options[k] for k in ("sslmode", "sslrootcert") if self.options.get(k, "prefer") != "prefer"},
        }
        return " ".join(f"{k}={_quoted(v)}" for k, v in parts.items() if v)


def _quoted(value: str) -> str:
    if re.fullmatch(r"[^\s'\\]+", value):
        return value
    return "'" + re.sub(r"(['\\])", r"\\\1", value) + "'"


def read_target(dsn: str | None = None) -> Target:
    """Resolve a conninfo string or URI (None or empty: the environment alone).

    Raises :class:`ConninfoError` with libpq's complaint, its quoted parts masked where they may hold a password.
    """
    # The driver takes longer to load than all the rest: only when a target is read.
    from psycopg import Error, pq  # noqa: PLC0415 - see above
    from psycopg.conninfo import make_conninfo  # noqa: PLC0415 - see above

    given = (dsn or "").strip()
    try:
        marked = make_conninfo(given, target_session_attrs=_SENTINEL)
    except (Error, UnicodeError) as e:
        raise _refused(given, str(e)) from None
    connection = pq.PGconn.connect_start(marked.encode("utf-8", "surrogateescape"))
    try:
        complaint = connection.error_message.decode("utf-8", "replace").strip()
        if _SENTINEL not in complaint:
            raise _refused(given, complaint)
        values = {o.keyword.decode(): _text(o.val) for o in connection.info if o.val}
        default_host = _text(connection.host)
    finally:
        connection.finish()
    values.pop("target_session_attrs", None)
    user = values.get("user", "")
    return Target(
        hosts=_hosts(values, default_host, given),
        user=user,
        database=values.get("dbname") or user,
        options={k: v for k, v in values.items() if k not in _SECRETS | {"host", "hostaddr", "port", "user", "dbname"}},
        conninfo=Secret(given),
        sslpassword=Secret(values.get("sslpassword", "")),
    )


def _hosts(values: Mapping[str, str], default_host: str, given: str) -> tuple[Host, ...]:
    """Pair the lists. libpq has checked their lengths: equal, or a single port for all."""
    names = values.get("host", "").split(",")
    addresses = values["hostaddr"].split(",") if values.get("hostaddr") else []
    count = max(len(names), len(addresses))
    names += [""] * (count - len(names))
    addresses += [""] * (count - len(addresses))
    ports = values.get("port", "").split(",")
    ports = ports * count if len(ports) == 1 else ports
    first_unnamed = default_host if default_host[:1] in {"/", "@"} else "localhost"
    hosts = []
    for name, address, text in zip(names, addresses, ports, strict=False):
        port = int(text) if text.strip().isdigit() else (_DEFAULT_PORT if not text.strip() else 0)
        if not 1 <= port <= 65535:
            raise _refused(given, f'invalid port number: "{text}"')
        hosts.append(Host(name=name or ("" if address else first_unnamed), address=address, port=port))
    return tuple(hosts)


def _text(raw: bytes | None) -> str:
    # Replaced rather than escaped: what is read here is also printed.
    return (raw or b"").decode("utf-8", "replace")


def _refused(given: str, complaint: str) -> ConninfoError:
    """Mask what libpq quotes; in a string that may hold a password nothing of it is shown."""
    may_hold_secret = "@" in given or "pass" in given.lower()
    shown = re.sub(r'"[^"]*("|$)', '"***"', complaint) if may_hold_secret else complaint
    return ConninfoError(
        "the connection string cannot be read",
        seen=" ".join(shown.split()),
        tried="as libpq reads it: conninfo string or URI, PG* environment, service file",
        next="pgvacancy probe 'host=db1 port=5432 user=app dbname=app'   or   'postgresql://app@db1:5432/app'",
    )
