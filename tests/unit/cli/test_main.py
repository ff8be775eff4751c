from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from pgvacancy import __version__
from pgvacancy.cli import main as entry
from pgvacancy.model.errors import NoFreeSlotError

ERROR = NoFreeSlotError("no free slot", seen="97 of 97", tried="ordinary", next="pgvacancy doctor --host-only")


def with_command(monkeypatch: pytest.MonkeyPatch, body: Callable[[], object]) -> None:
    """Put a sub-command ``config`` in place that does ``body``."""

    @click.command("config")
    @click.option("--format", "output_format", default="text")
    def command(output_format: str) -> object:
        return body()

    monkeypatch.setattr(entry.Commands, "get_command", lambda *_: command)


def raising(error: BaseException) -> Callable[[], object]:
    def body() -> object:
        raise error

    return body


def test_every_sub_command_has_a_command_of_its_name_and_a_line_of_help() -> None:
    group = entry.cli
    context = click.Context(group)
    assert isinstance(group, entry.Commands)
    names = group.list_commands(context)
    assert {"config", "grant"} <= set(names)
    for name in names:
        command = group.get_command(context, name)
        assert command is not None
        assert command.name == name
        assert entry.first_line(name)


def test_overview_imports_no_command_and_no_driver() -> None:
    program = (
        "import sys\nfrom pgvacancy.cli.main import main\nstatus = main(['--help'])\n"
        "heavy = {'psycopg', 'rich', 'pydantic', 'asyncio', 'json', 'pgvacancy.cli.config', 'pgvacancy.causes'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\nsys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "List every setting" in done.stdout


@pytest.mark.parametrize("arguments", [["--version"], ["-V"]])
def test_version(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert entry.main(arguments) == 0
    assert capsys.readouterr().out == f"pgvacancy, version {__version__}\n"


def test_an_unknown_command_gets_a_suggestion(capsys: pytest.CaptureFixture[str]) -> None:
    assert entry.main(["cofnig"]) == 2
    shown = capsys.readouterr()
    assert "no such command 'cofnig'; did you mean 'config'?" in shown.err
    assert not shown.out


def test_a_command_unlike_any_other_gets_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert entry.main(["zzzzzz"]) == 2
    assert "known: " in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--no-such-option"], ["config", "--no-such-option"], ["config", "surplus"]])
def test_wrong_usage_ends_with_two(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert entry.main(arguments) == 2
    assert "Error: " in capsys.readouterr().err


def test_wrong_usage_is_json_when_json_was_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert entry.main(["config", "--no-such-option", "--format", "json"]) == 2
    shown = capsys.readouterr()
    assert json.loads(shown.out)["error"]["exit_status"] == 2
    assert not shown.err


@pytest.mark.parametrize(("returned", "status"), [(None, 0), (0, 0), (1, 1), (3, 3)])
def test_what_a_command_returns_is_the_exit_status(
    monkeypatch: pytest.MonkeyPatch, returned: int | None, status: int
) -> None:
    with_command(monkeypatch, lambda: returned)
    assert entry.main(["config"]) == status


def test_a_known_error_is_five_lines_on_standard_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with_command(monkeypatch, raising(ERROR))
    assert entry.main(["config"]) == 3
    shown = capsys.readouterr()
    assert not shown.out
    assert shown.err.splitlines() == [
        "error[PGE203]: no free slot",
        "  seen:  97 of 97",
        "  tried: ordinary",
        "  next:  pgvacancy doctor --host-only",
        "  see:   pgvacancy explain PGE203",
    ]


@pytest.mark.parametrize("arguments", [["--format", "json"], ["--format=json"]])
def test_a_known_error_is_json_when_json_was_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    with_command(monkeypatch, raising(ERROR))
    assert entry.main(["config", *arguments]) == 3
    shown = capsys.readouterr()
    assert json.loads(shown.out)["error"]["code"] == "PGE203"
    assert not shown.err


def test_an_interrupt_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with_command(monkeypatch, raising(KeyboardInterrupt()))
    assert entry.main(["config"]) == 130
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", "interrupted\n")


def test_a_defect_of_ours_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    with_command(monkeypatch, raising(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        entry.main(["config"])


def test_a_reader_that_left_is_no_traceback() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as closed:
        done = subprocess.run(
            [sys.executable, "-m", "pgvacancy", "config"], stdout=closed, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 141
    assert not done.stderr


def test_wrong_settings_are_refused_by_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pgvacancy.toml").write_text("[idle-sesions]\nmin_idle_s = 1\n")
    assert entry.main(["config", "--set", "idle-sessions.min_idle_s=x"]) == 2
    shown = capsys.readouterr().err.splitlines()
    assert shown[0] == "error[PGE101]: 2 settings cannot be used"
    assert "pgvacancy.toml: unknown table [idle-sesions]; did you mean 'idle-sessions'?" in shown[1]
    assert "'x' is no plain number" in shown[2]


def test_config_lists_value_and_origin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert entry.main(["config", "--set", "idle-sessions.min_idle_s=7.5", "--format", "json"]) == 0
    listed = {s["name"]: s for s in json.loads(capsys.readouterr().out)["settings"]}
    assert listed["idle-sessions.min_idle_s"]["value"] == 7.5
    assert listed["idle-sessions.min_idle_s"]["origin"] == "--set"
    assert listed["end-idle-sessions.keep_youngest"]["origin"] == "default"
    assert all(s["why"] for s in listed.values())
    assert entry.main(["config"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(listed)
    assert next(line for line in lines if line.startswith("end-idle-sessions.max_per_minute")).split() == [
        "end-idle-sessions.max_per_minute",
        "60",
        "default",
    ]
