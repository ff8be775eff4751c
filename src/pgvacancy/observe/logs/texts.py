"""What a message means: the texts of the server and of PgBouncer, and which of them count as what.

English texts are matched as they are. In other languages the SQLSTATE tells a refusal, and the words that stay
untranslated inside the text (setting, role and attribute names) or a known translation tell its kind.
Sources: https://www.postgresql.org/docs/current/errcodes-appendix.html,
https://www.postgresql.org/docs/current/runtime-config-connection.html, https://www.pgbouncer.org/config.html
"""

from __future__ import annotations

import re
from typing import NamedTuple

from pgvacancy.model.refusals import CANNOT_CONNECT_NOW, TOO_MANY_CONNECTIONS, classify
from pgvacancy.observe.logs.record import Record


class Event(NamedTuple):
    """What one entry counts as."""

    what: str
    """``refusal``, ``failure``, ``received``, ``authenticated``, ``authorized``, ``ready``, ``disconnection``,
    ``start``, ``standby``, ``closing``."""
    kind: str = ""
    """The refusal kind, the reason of a failed log-in, or the reason of a closing."""


SERVER_NEEDLES = (b"connection", b"FATAL", b"startup packet", b"parameter settings")
"""Every English entry of interest has one of these; few, because each costs a pass over all bytes."""

OLD_NEEDLES = (b"FATAL", b"parameter settings", b"ready to accept", b"could not fork new process")
"""The same for the time before the recent window, of which connections are not counted one by one."""

CODE_NEEDLES = (b"53300", b"28P01", b"28000", b"57014", b"57P03", b"08P01")

_REFUSAL_STARTS = re.compile(
    r"sorry, too many clients already|remaining connection slots are reserved for |too many connections for |"
    r"number of requested standby connections exceeds |the database system is |not accepting connections",
    re.IGNORECASE,
)
"""How a refusal begins. Without a SQLSTATE the beginning must fit: further on may stand names that clients chose."""

_TRANSLATED: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        "slots-full",
        ("schon zu viele Verbindungen", "trop de clients sont", "demasiados clientes", "слишком много клиентов",
         "クライアント数が多すぎます", "troppi client", "客户端", "muitos clientes"),
    ),
    (
        "role-limit",
        ("Verbindungen von Rolle", "connexions pour le rôle", "conexiones para el rol", "подключений для роли",
         "からの接続が多すぎます", "connessioni per il ruolo"),
    ),
    (
        "database-limit",
        ("Verbindungen für Datenbank", "pour la base de données", "para la base de datos", "подключений к БД",
         "への接続が多すぎます", "connessioni al database"),
    ),
    (
        "reserved-for-superuser",
        ("SUPERUSER", "für Superuser", "superutilisateur", "a superusuarios", "суперпользовател",
         "スーパーユーザー", "superutenti"),
    ),
)  # fmt: skip  # one line per kind, not one per word

TRANSLATED_LINES: dict[str, tuple[tuple[str, str], ...]] = {
    "de": (("received", "Verbindung empfangen: "), ("authorized", "Verbindung autorisiert: "),
           ("authenticated", "Verbindung authentifiziert: "), ("disconnection", "Verbindungsende: "),
           ("start", "Datenbanksystem ist bereit, um "), ("packet", "unvollständiges Startpaket")),
    "fr": (("received", "connexion reçue : "), ("authorized", "connexion autorisée : "),
           ("authenticated", "connexion authentifiée : "), ("disconnection", "déconnexion : "),
           ("start", "le système de bases de données est prêt"), ("packet", "paquet de démarrage incomplet")),
    "es": (("received", "conexión recibida: "), ("authorized", "conexión autorizada: "),
           ("authenticated", "conexión autenticada: "), ("disconnection", "desconexión: "),
           ("start", "el sistema de bases de datos está listo"), ("packet", "el paquete de inicio está incompleto")),
    "ru": (("received", "принято подключение: "), ("authorized", "подключение авторизовано: "),
           ("authenticated", "соединение аутентифицировано: "), ("disconnection", "отключение: "),
           ("start", "система БД готова принимать"), ("packet", "неполный стартовый пакет")),
    "ja": (("received", "接続を受け付けました: "), ("authorized", "接続の認証完了: "),
           ("disconnection", "接続を切断: "), ("start", "データベースシステムの接続受け付け準備"),
           ("packet", "開始パケットが不完全です")),
    "it": (("received", "connessione ricevuta: "), ("authorized", "connessione autorizzata: "),
           ("disconnection", "disconnessione: "), ("start", "il database è pronto"),
           ("packet", "pacchetto di avvio incompleto")),
}  # fmt: skip  # pairs, several to a line
"""Language to (event, how its message begins), for logs that carry SQLSTATEs."""

FOREIGN_SEVERITIES = (
    "FEHLER", "WARNUNG", "PANIK", "HINWEIS", "ANWEISUNG", "ERREUR", "ATTENTION", "INSTRUCTION", "DÉTAIL",
    "SENTENCIA", "DETALLE", "FATALE", "ERRORE", "DETTAGLI", "ВАЖНО", "ОШИБКА", "СООБЩЕНИЕ", "ОПЕРАТОР",
    "文", "詳細", "日志", "致命错误", "错误", "로그", "치명적오류", "오류",
)  # fmt: skip  # a word list
"""Severity and auxiliary words of other languages (enough of each to notice the language)."""

_HARMLESS = frozenset(
    {"LOG", "ERROR", "WARNING", "NOTICE", "INFO", "DEBUG", "FEHLER", "WARNUNG", "ERREUR", "ERRORE", "ОШИБКА",
     "DETAIL", "HINT", "CONTEXT", "STATEMENT", "QUERY", "LOCATION", "BACKTRACE", "错误", "오류",
     *(f"DEBUG{n}" for n in range(1, 6))}
)  # fmt: skip  # a word list
"""Severities that end no session: user code may raise any SQLSTATE with them."""

_AUXILIARY = frozenset({"DETAIL", "HINT", "CONTEXT", "STATEMENT", "QUERY", "LOCATION", "BACKTRACE"})

_LINES = (
    ("connection received: ", "received"),
    ("connection authenticated: ", "authenticated"),
    ("connection authorized: ", "authorized"),
    ("replication connection authorized: ", "authorized"),
    ("connection ready: ", "ready"),
    ("disconnection: session time: ", "disconnection"),
    ("database system is ready to accept ", "start"),
)

_FAILURE_TEXTS: tuple[tuple[str, str], ...] = (
    ("no pg_hba.conf entry", "no-hba-rule"),
    ("pg_hba.conf rejects", "hba-reject"),
    ("canceling authentication due to timeout", "timeout"),
    ("incomplete startup packet", "incomplete-packet"),
    ("invalid length of startup packet", "invalid-packet"),
    ("unsupported frontend protocol", "invalid-packet"),
    ("invalid startup packet layout", "invalid-packet"),
    ("password authentication failed", "wrong-password"),
)
_UNKNOWN_ROLE = re.compile(r'^role ".*" does not exist', re.DOTALL)
_OTHER_FAILED = re.compile(r"authentication failed for user|is not permitted to log in")
_HBA_WORD = re.compile(r"pg_hba\.conf")
_STANDBY = re.compile(r"because of insufficient parameter settings|is a lower setting than on the (?:master|primary)")

DURATION = re.compile(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)")


def refusal_kind(sqlstate: str | None, message: str) -> str | None:
    """The kind of refusal a fatal message is, None when it is none. Kinds are those of the JSON contract."""
    if sqlstate is None:
        kind = classify(None, message) if _REFUSAL_STARTS.match(message) else "other"
        return None if kind == "other" else kind
    if sqlstate not in {TOO_MANY_CONNECTIONS, CANNOT_CONNECT_NOW}:
        return None
    kind = classify(sqlstate, message)
    return kind if kind != "other" else next((k for k, words in _TRANSLATED if any(w in message for w in words)), kind)


def failure_reason(sqlstate: str | None, message: str) -> str | None:
    """Why a log-in failed, None when the message is about something else."""
    for start, reason in _FAILURE_TEXTS:
        if message.startswith(start):
            return reason
    if sqlstate in {None, "28000"} and _UNKNOWN_ROLE.match(message):
        return "unknown-role"
    if sqlstate == "28P01":
        return "wrong-password"
    if sqlstate == "28000":
        return "no-hba-rule" if _HBA_WORD.search(message) else "other"
    return "other" if sqlstate is None and _OTHER_FAILED.search(message) else None


def event_of(record: Record, languages: tuple[str, ...]) -> Event | None:
    """What an entry of a server log counts as, None for one of no interest."""
    message = record.message
    if record.severity in _AUXILIARY:
        return None
    if _STANDBY.search(message) and record.severity not in {"ERROR", "INFO", "NOTICE"}:
        return Event("standby")
    if record.severity not in _HARMLESS:
        return _fatal_event(record)
    if record.severity == "LOG":
        return _log_event(record, languages)
    return None


def _log_event(record: Record, languages: tuple[str, ...]) -> Event | None:
    message = record.message
    for start, what in _LINES:
        if message.startswith(start):
            return Event(what)
    if "startup packet" in message:
        reason = failure_reason(record.sqlstate, message)
        return Event("failure", reason) if reason else None
    if message.startswith("could not fork new process for connection"):
        return Event("refusal", "fork-failed")
    return _translated_event(record, languages)


def _fatal_event(record: Record) -> Event | None:
    kind = refusal_kind(record.sqlstate, record.message)
    if kind is not None:
        return Event("refusal", kind)
    reason = failure_reason(record.sqlstate, record.message)
    if reason is not None:
        return Event("failure", reason)
    # A severity in another language may also stand before an entry of level LOG.
    return None if record.severity in {"FATAL", "PANIC"} else _translated_event(record, tuple(TRANSLATED_LINES))


def _translated_event(record: Record, languages: tuple[str, ...]) -> Event | None:
    if record.sqlstate is None:
        return None
    for language in languages:
        for what, start in TRANSLATED_LINES[language]:
            if record.message.startswith(start):
                return Event("failure", "incomplete-packet") if what == "packet" else Event(what)
    return None


def session_s(message: str) -> float | None:
    """Seconds of a ``disconnection`` line's session time."""
    found = DURATION.search(message)
    return int(found[1]) * 3600 + int(found[2]) * 60 + float(found[3]) if found else None
