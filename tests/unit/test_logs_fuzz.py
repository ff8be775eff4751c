"""Whatever the bytes are: evidence or LogFileError, never anything else."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from pgvacancy.model.errors import LogFileError
from pgvacancy.model.evidence import LogEvidence
from pgvacancy.observe.logs import read_log, read_tail

REAL = (
    (
        b'2026-11-22 21:51:48.687 UTC,"limited","postgres",5428,"127.0.0.1:35000",6b0363f4.1534,4,"startup",'
        b'2026-11-22 21:51:48 UTC,1/1,0,FATAL,53300,"too many connections for role ""limited""",,,,,,,,,"",'
        b'"client backend",,0\n'
    ),
    (
        b'{"timestamp":"2026-11-22 21:51:48.687 UTC","user":"limited","dbname":"postgres","pid":5428,'
        b'"remote_host":"127.0.0.1","remote_port":35000,"session_id":"6b0363f4.1534","error_severity":"FATAL",'
        b'"state_code":"53300","message":"too many connections for role \\"limited\\""}\n'
    ),
    b"2026-11-22 21:51:49.820 CET [5523] 53300 app@postgres FATAL:  sorry, too many clients already\n",
    b"2026-11-22 21:51:49.820 UTC [5523] LOG:  connection received: host=127.0.0.1 port=48282\n",
    b"2026-11-22 21:51:49.820 UTC [5523] LOG:  disconnection: session time: 0:00:00.199 user=a database=b host=c\n",
    (
        b"2026-11-22 21:58:02.756 UTC [6830] WARNING C-0x5: (nodb)/(nouser)@127.0.0.1:48364 pooler error: no more "
        b"connections allowed (max_client_conn)\n"
    ),
    b"2026-11-22 21:58:02.777 UTC [6830] ERROR S: login failed: FATAL: sorry, too many clients already\n",
    "2026-11-22 21:51:48 MSK [7] 53300 ВАЖНО:  извините, уже слишком много клиентов\n".encode(),
)

JUNK = st.one_of(
    st.binary(max_size=20),
    st.sampled_from(
        [b'"', b'""', b"\n", b"\t", b",", b"\x00", b"\xff", b"FATAL:  ", b"53300", b"{", b"}", b"9" * 30, b"["]
    ),
)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """Real lines with bytes put in, taken out and written over."""
    text = bytearray(b"".join(draw(st.lists(st.sampled_from(REAL), min_size=1, max_size=6))))
    for _ in range(draw(st.integers(0, 6))):
        place = draw(st.integers(0, len(text)))
        text[place : place + draw(st.integers(0, 12))] = draw(JUNK)
    return bytes(text)


def survives(text: bytes, prefix: str | None = None) -> None:
    try:
        evidence = read_tail(text, cut=False, recent_s=1e9, log_line_prefix=prefix)
    except LogFileError as error:
        assert error.seen
        assert error.next
        return
    assert isinstance(evidence, LogEvidence)
    assert 0 <= evidence.recent_refusals <= sum(group.count for group in evidence.refusals)
    assert evidence.lines >= evidence.undecodable_lines
    # What was read can be written down again.
    json.dumps([(group.message, group.user, group.client) for group in evidence.refusals], ensure_ascii=False).encode()


@settings(deadline=None)
@given(st.binary(max_size=2000))
def test_arbitrary_bytes(text: bytes) -> None:
    survives(text)


@settings(deadline=None)
@given(mutated())
def test_real_lines_with_damage(text: bytes) -> None:
    survives(text)


@settings(deadline=None)
@given(mutated(), st.text(alphabet="%mtnpudahrbelcsxqPQ-0129 []@:=,.é|", max_size=20))
def test_any_prefix(text: bytes, prefix: str) -> None:
    survives(text, prefix)


@settings(deadline=None)
@given(st.recursive(st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text()), st.lists, max_leaves=5))
def test_values_of_any_type_in_json(value: object) -> None:
    for key in ("timestamp", "user", "message", "error_severity", "state_code", "remote_host", "record"):
        survives(json.dumps({"error_severity": "FATAL", "state_code": "53300", "message": "x", key: value}).encode())
    survives(b'{"error_severity":"FATAL","message":"connection \\ud800","user":"\\ud800","state_code":"53300"}\n')
    survives(b'{"error_severity":"FATAL connection","pid":' + b"9" * 5000 + b"}\n" + b"[" * 20000)


@settings(deadline=None)
@given(mutated(), st.integers(0, 400), st.integers(1, 600))
def test_files_packed_and_cut(tmp_path_factory: object, text: bytes, cut: int, budget: int) -> None:
    directory: Path = tmp_path_factory.getbasetemp()  # type: ignore[attr-defined]
    for name, content in (("fuzz.log", text), ("fuzz.log.gz", gzip.compress(text)[: -cut or None])):
        path = directory / name
        path.write_bytes(content)
        try:
            evidence = read_log([path], max_bytes=budget)
        except LogFileError as error:
            assert error.seen
        else:
            assert evidence.bytes_read <= budget
