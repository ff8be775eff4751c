"""TLS as libpq does it, from the standard library.

The certificate chain is checked in ``verify-ca`` and ``verify-full``, and in every other mode too when a root
certificate file exists (``prefer`` then goes on without TLS if it does not hold); ``verify-full`` checks the host name
as well. Client certificate, key and revocation lists have libpq's
default places under ``~/.postgresql``. Left out: GSSAPI encryption, and ``sslnegotiation=direct``, which every
server that knows it also grants by request.

Source: https://www.postgresql.org/docs/current/libpq-ssl.html
"""

from __future__ import annotations

import ipaddress
import ssl
from pathlib import Path

from pgvacancy.observe.postgres.conninfo import Host, Target

_VERSIONS = {
    "TLSV1": ssl.TLSVersion.TLSv1,
    "TLSV1.1": ssl.TLSVersion.TLSv1_1,
    "TLSV1.2": ssl.TLSVersion.TLSv1_2,
    "TLSV1.3": ssl.TLSVersion.TLSv1_3,
}


class TlsSetupError(Exception):
    """A certificate, key or list that was named cannot be used."""


def context_for(target: Target) -> ssl.SSLContext:
    """The context for a target. Raises :class:`TlsSetupError`."""
    mode = target.sslmode
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    options = target.options
    context.minimum_version = _VERSIONS.get(options.get("ssl_min_protocol_version", "").upper(), ssl.TLSVersion.TLSv1_2)
    highest = _VERSIONS.get(options.get("ssl_max_protocol_version", "").upper())
    if highest is not None:
        context.maximum_version = highest
    try:
        _trust(context, target, mode)
        _present(context, target)
    except (OSError, ssl.SSLError) as e:
        raise TlsSetupError(str(e)) from e
    return context


def server_name(target: Target, host: Host) -> str | None:
    """The name to check the certificate against and to send as SNI; None where there is none to send."""
    name = host.name or host.address
    if target.sslmode == "verify-full":
        return name
    if target.options.get("sslsni") == "0" or not name:
        return None
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name
    return None


def _trust(context: ssl.SSLContext, target: Target, mode: str) -> None:
    verify = mode in {"verify-ca", "verify-full"}
    given = target.options.get("sslrootcert", "")
    root = Path(given) if given else _default("root.crt")
    if given == "system":
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    elif root.is_file():
        # A root certificate at hand turns verification on in every mode.
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cafile=str(root))
    elif verify:
        msg = f"sslmode={mode} needs a root certificate, and there is no file {str(root)!r}"
        raise TlsSetupError(msg)
    context.check_hostname = mode == "verify-full"
    crl_given, crl_dir = target.options.get("sslcrl", ""), target.options.get("sslcrldir", "")
    crl = Path(crl_given) if crl_given else _default("root.crl")
    if crl.is_file() or crl_dir:
        context.load_verify_locations(cafile=str(crl) if crl.is_file() else None, capath=crl_dir or None)
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_CHAIN


def _present(context: ssl.SSLContext, target: Target) -> None:
    """Load the client certificate, if there is one to show."""
    if target.options.get("sslcertmode") == "disable":
        return
    given = target.options.get("sslcert", "")
    certificate = Path(given) if given else _default("postgresql.crt")
    if not certificate.is_file():
        return
    key_given = target.options.get("sslkey", "")
    key = Path(key_given) if key_given else _default("postgresql.key")
    password = target.sslpassword.reveal()
    # A function rather than a string: without one OpenSSL would ask on the terminal.
    context.load_cert_chain(str(certificate), str(key), password=lambda: password)


def _default(name: str) -> Path:
    return Path("~/.postgresql").expanduser() / name
