from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgvacancy.cli._settings import MAX_FILE_BYTES, Settings, known_settings, load, number
from pgvacancy.model.errors import ConfigError
from pgvacancy.model.settings import Setting

KNOWN = (
    Setting(name="idle-sessions.min_idle_s", default=300, why="an example"),
    Setting(name="idle-sessions.min_share_ratio", default=0.1, why="an example"),
    Setting(name="end-idle-sessions.keep_youngest", default=2, why="an example"),
)


def settings(
    directory: Path,
    *overrides: str,
    environment: Mapping[str, str] | None = None,
    file: str | bytes | None = None,
    home: Path | None = None,
    known: Sequence[Setting] = KNOWN,
) -> Settings:
    if file is not None:
        (directory / "pgvacancy.toml").write_bytes(file if isinstance(file, bytes) else file.encode())
    return load(overrides, directory=directory, environment=environment or {}, home=home, known=known)


def problems(directory: Path, *overrides: str, file: str | bytes | None = None, **variables: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        settings(directory, *overrides, file=file, environment=variables)
    return caught.value.problems


def test_defaults_stand_with_their_reason(tmp_path: Path) -> None:
    got = settings(tmp_path)
    assert got.numbers == {s.name: s.default for s in KNOWN}
    assert {v.origin for v in got.values.values()} == {"default"}
    assert got.values["idle-sessions.min_idle_s"].why == "an example"


def test_set_beats_file_beats_environment_beats_default(tmp_path: Path) -> None:
    variable = {"PGVACANCY_IDLE_SESSIONS__MIN_IDLE_S": "1"}
    name = "idle-sessions.min_idle_s"
    assert settings(tmp_path, environment=variable).values[name].value == 1
    toml = "[idle-sessions]\nmin_idle_s = 2\n"
    from_file = settings(tmp_path, environment=variable, file=toml).values[name]
    assert (from_file.value, from_file.origin) == (2, f"file {tmp_path / 'pgvacancy.toml'}")
    from_set = settings(tmp_path, f"{name}=3", environment=variable).values[name]
    assert (from_set.value, from_set.origin, from_set.default) == (3, "--set", 300)


def test_of_two_set_options_the_last_counts(tmp_path: Path) -> None:
    name = "idle-sessions.min_idle_s"
    assert settings(tmp_path, f"{name}=1", f"{name}=2")[name] == 2


def test_named_file_beats_current_directory_beats_home(tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / ".config" / "pgvacancy").mkdir(parents=True)
    (home / ".config" / "pgvacancy" / "pgvacancy.toml").write_text("[idle-sessions]\nmin_idle_s = 1\n")
    here = tmp_path / "here"
    here.mkdir()
    name = "idle-sessions.min_idle_s"
    assert settings(here, home=home)[name] == 1
    assert settings(here, environment={"HOME": str(home)})[name] == 1
    assert settings(here, home=home, file="[idle-sessions]\nmin_idle_s = 2\n")[name] == 2
    named = tmp_path / "named.toml"
    named.write_text("[idle-sessions]\nmin_idle_s = 3\n")
    assert settings(here, home=home, environment={"PGVACANCY_CONFIG": str(named)})[name] == 3


def test_named_file_that_is_missing_is_a_mistake(tmp_path: Path) -> None:
    found = problems(tmp_path, PGVACANCY_CONFIG="/nowhere/at/all.toml")
    assert found == ("environment: PGVACANCY_CONFIG names '/nowhere/at/all.toml', which is not there or out of reach",)


def test_all_mistakes_are_named_at_once(tmp_path: Path) -> None:
    file = (
        "stray = 1\nmin_idle_s = 4\n"
        "[idle-session]\nmin_idle_s = 1\n"
        "[idle-sessions]\nmin_idel_s = 1\nmin_share_ratio = '0.5 or so'\n"
        "[end-idle-sessions]\nkeep_youngest = true\n"
    )
    found = problems(
        tmp_path,
        "idle-sessions.min_idle=5",
        "nonsense",
        "idle-sessions.min_idle_s=-1",
        "idle-sessions.min_share_ratio=inf",
        file=file,
        PGVACANCY_IDLE_SESSIONS__MIN_IDLE_S="10min",
        PGVACANCY_IDLE_SESSIONS_MIN_IDLE_S="10",
        PGVACANCY_OTHER="of no interest",
    )
    path = tmp_path / "pgvacancy.toml"
    no_number = "is no plain number; the unit is in the setting's name"
    variable = "PGVACANCY_IDLE_SESSIONS__MIN_IDLE_S"
    assert found == (
        f"environment: unknown variable PGVACANCY_IDLE_SESSIONS_MIN_IDLE_S; did you mean '{variable}'?",
        f"environment: {variable}: '10min' {no_number}",
        f"{path}: 'stray' stands outside a table; settings stand in a table named after their cause or remedy",
        f"{path}: 'min_idle_s' stands outside a table; write [idle-sessions] and below it min_idle_s = NUMBER",
        f"{path}: unknown table [idle-session]; did you mean 'idle-sessions'?",
        f"{path}: unknown key 'min_idel_s' in [idle-sessions]; did you mean 'min_idle_s'?",
        f"{path}: idle-sessions.min_share_ratio: '0.5 or so' {no_number}",
        f"{path}: end-idle-sessions.keep_youngest: True is no number",
        "--set: unknown setting 'idle-sessions.min_idle'; did you mean 'idle-sessions.min_idle_s'?",
        "--set: 'nonsense' is not NAME=VALUE",
        "--set: idle-sessions.min_idle_s: '-1' is negative",
        f"--set: idle-sessions.min_share_ratio: 'inf' {no_number}",
    )


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"[idle-sessions\n", "not TOML"),
        (b"\xff\xfe\x00", "not UTF-8 at byte 0"),
        (b"a = " + b"[" * 5000, "not TOML"),
        (b"#" * (MAX_FILE_BYTES + 1), "larger than"),
        (b"[idle-sessions]\nmin_idle_s = nan\n", "not finite"),
        (b"[idle-sessions]\nmin_idle_s = -inf\n", "not finite"),
        (b"[idle-sessions]\nmin_idle_s = -0.5\n", "-0.5 is negative"),
        (b"[idle-sessions]\nmin_idle_s = 1" + b"0" * 400 + b"\n", "not finite"),
        (b"[idle-sessions]\nmin_idle_s = 1" + b"0" * 5000 + b"\n", ""),
        (b"[idle-sessions]\nmin_idle_s = [1]\n", "is no number"),
        (b"[idle-sessions]\nmin_idle_s = 1\nmin_idle_s = 2\n", "not TOML"),
    ],
)
def test_a_bad_file_is_one_clear_line(tmp_path: Path, content: bytes, said: str) -> None:
    (found,) = problems(tmp_path, file=content)
    assert found.startswith(str(tmp_path / "pgvacancy.toml"))
    assert said in found
    assert "\n" not in found


def test_a_directory_in_place_of_the_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "pgvacancy.toml").mkdir()
    (found,) = problems(tmp_path)
    assert "cannot be read: is a directory" in found


def test_places_out_of_reach_hold_no_file_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "stat", refuse)
    assert settings(tmp_path, home=tmp_path).values["idle-sessions.min_idle_s"].origin == "default"


def test_a_path_of_any_bytes_can_be_printed(tmp_path: Path) -> None:
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.toml"))
    odd.write_text("[idle-sessions]\nmin_idle_s = 1\n")
    got = settings(tmp_path, environment={"PGVACANCY_CONFIG": str(odd)}).values["idle-sessions.min_idle_s"]
    assert got.origin.encode("utf-8").endswith(rb"/\xff.toml")


@given(st.one_of(st.text(), st.floats(), st.integers(), st.booleans(), st.none(), st.lists(st.integers())))
def test_a_number_is_finite_and_not_negative_or_refused(raw: object) -> None:
    try:
        got = number(raw)
    except ValueError as wrong:
        assert str(wrong)
    else:
        assert math.isfinite(got)
        assert got >= 0


@given(st.binary(max_size=200))
def test_any_bytes_are_settings_or_mistakes(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    directory = tmp_path_factory.mktemp("any")
    try:
        settings(directory, file=content)
    except ConfigError as wrong:
        assert wrong.problems


def test_settings_are_frozen(tmp_path: Path) -> None:
    got = settings(tmp_path)
    with pytest.raises(TypeError):
        got.numbers["idle-sessions.min_idle_s"] = 1  # type: ignore[index]
    with pytest.raises(FrozenInstanceError):
        got.values = {}  # type: ignore[misc]


def test_names_fixed_by_the_contract_that_are_ours_to_know() -> None:
    names = {s.name for s in known_settings()}
    assert {
        "end-idle-sessions.min_idle_s",
        "end-idle-sessions.keep_youngest",
        "end-idle-sessions.max_per_minute",
        "end-idle-transactions.min_idle_s",
        "idle-sessions.min_idle_s",
    } <= names
