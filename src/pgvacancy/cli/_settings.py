"""Every threshold with its value and where that came from.

Precedence: ``--set NAME=VALUE``, then the settings file, then the environment, then the default. The file is the one
named by ``PGVACANCY_CONFIG``, else ``pgvacancy.toml`` in the current directory, else
``~/.config/pgvacancy/pgvacancy.toml``; only the first of these is read. Wrong settings are refused, never repaired,
and all of them are named at once.
"""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType

from pgvacancy.model.errors import ConfigError
from pgvacancy.model.settings import Setting

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FILE_NAME = "pgvacancy.toml"
FILE_VARIABLE = "PGVACANCY_CONFIG"
PREFIX = "PGVACANCY_"
MAX_FILE_BYTES = 1_000_000
_NUMBER = re.compile(r"[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]+)?|\.[0-9]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """One setting in force. The unit is at the end of its name."""

    value: float
    origin: str
    """``default``, ``environment VARIABLE``, ``file PATH`` or ``--set``."""
    why: str
    """The reason for the default."""
    default: float


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings in force, by name."""

    values: Mapping[str, Value]

    @property
    def numbers(self) -> Mapping[str, float]:
        """Name to value, as :func:`pgvacancy.causes.diagnose` takes them."""
        return MappingProxyType({name: v.value for name, v in self.values.items()})

    def __getitem__(self, name: str) -> float:
        """The value of one setting. Raises KeyError for an unknown name."""
        return self.values[name].value


def known_settings() -> tuple[Setting, ...]:
    """Every threshold there is, by name: those of the causes and those of the remedies."""
    from pgvacancy import remedies  # noqa: PLC0415 - with the causes, only when settings are read
    from pgvacancy.causes import load_all  # noqa: PLC0415 - imports every cause

    found = [s for cause in load_all() for s in cause.settings]
    return tuple(sorted([*found, *remedies.SETTINGS], key=lambda s: s.name))


def load(
    overrides: Sequence[str] = (),
    *,
    directory: Path | None = None,
    environment: Mapping[str, str] | None = None,
    home: Path | None = None,
    known: Iterable[Setting] | None = None,
) -> Settings:
    """Put together the settings in force.

    ``overrides`` are the texts after ``--set``; of two for one name the last counts. Raises ConfigError, with every
    mistake in ``problems``.
    """
    reader = _Reader(known_settings() if known is None else tuple(known))
    variables = os.environ if environment is None else environment
    reader.read_environment(variables)
    path = _file(variables, directory or Path(), home, reader)
    if path is not None:
        reader.read_file(path)
    reader.read_overrides(overrides)
    return reader.result()


class _Reader:
    """Reads the sources from the weakest to the strongest and collects all mistakes."""

    def __init__(self, known: tuple[Setting, ...]) -> None:
        self.known = {s.name: s for s in known}
        self.tables = sorted({name.partition(".")[0] for name in self.known})
        self.given: dict[str, tuple[float, str]] = {}
        self.problems: list[str] = []

    def read_environment(self, variables: Mapping[str, str]) -> None:
        """``PGVACANCY_IDLE_SESSIONS__MIN_IDLE_S=600``. A variable that is nearly one of ours is a mistake."""
        names = {_variable(name): name for name in self.known}
        for variable in sorted(v for v in variables if v.startswith(PREFIX) and v != FILE_VARIABLE):
            if variable in names:
                self._take(names[variable], variables[variable], f"environment {variable}", f"environment: {variable}")
                continue
            near = get_close_matches(variable, [*names, FILE_VARIABLE], n=1, cutoff=0.85)
            # Other variables of the same prefix belong to other parts, unless they look like a setting.
            if near or "__" in variable:
                self.problems.append(f"environment: unknown variable {variable}{_hint(near)}")

    def read_file(self, path: Path) -> None:
        """One table per cause or remedy."""
        shown = _shown(path)
        for table, content in self._parse(path, shown).items():
            if not isinstance(content, dict):
                self.problems.append(f"{shown}: {table!r} stands outside a table; {self._how_to(table)}")
                continue
            if table not in self.tables:
                near = get_close_matches(table, self.tables, n=1)
                self.problems.append(f"{shown}: unknown table [{table}]{_hint(near)}")
                continue
            for key, value in content.items():
                name = f"{table}.{key}"
                if name in self.known:
                    self._take(name, value, f"file {shown}", f"{shown}: {name}")
                else:
                    fields = [n.partition(".")[2] for n in self.known if n.startswith(f"{table}.")]
                    near = get_close_matches(key, fields, n=1)
                    self.problems.append(f"{shown}: unknown key {key!r} in [{table}]{_hint(near)}")

    def read_overrides(self, overrides: Sequence[str]) -> None:
        """``NAME=VALUE``."""
        for text in overrides:
            name, equals, value = text.partition("=")
            if not equals:
                self.problems.append(f"--set: {text!r} is not NAME=VALUE")
            elif name not in self.known:
                near = get_close_matches(name, self.known, n=1)
                self.problems.append(f"--set: unknown setting {name!r}{_hint(near)}")
            else:
                self._take(name, value, "--set", f"--set: {name}")

    def result(self) -> Settings:
        """The settings, or one error with all mistakes."""
        if self.problems:
            count = len(self.problems)
            raise ConfigError(
                f"{count} setting{'s' if count > 1 else ''} cannot be used",
                next="correct these, then see what is in force: pgvacancy config",
                problems=tuple(self.problems),
            )
        values = {}
        for name, known in sorted(self.known.items()):
            value, origin = self.given.get(name, (known.default, "default"))
            values[name] = Value(value=value, origin=origin, why=known.why, default=known.default)
        return Settings(MappingProxyType(values))

    def _take(self, name: str, raw: object, origin: str, where: str) -> None:
        try:
            self.given[name] = (number(raw), origin)
        except ValueError as wrong:
            self.problems.append(f"{where}: {wrong}")

    def _parse(self, path: Path, shown: str) -> dict[str, object]:
        try:
            with path.open("rb") as file:
                content = file.read(MAX_FILE_BYTES + 1)
            if len(content) > MAX_FILE_BYTES:
                self.problems.append(f"{shown}: larger than {MAX_FILE_BYTES} bytes, which no settings file is")
                return {}
            parsed: dict[str, object] = tomllib.loads(content.decode("utf-8"))
        except OSError as error:
            self.problems.append(f"{shown}: cannot be read: {(error.strerror or 'unknown reason').lower()}")
        except UnicodeDecodeError as error:
            self.problems.append(f"{shown}: not UTF-8 at byte {error.start}")
        except (ValueError, RecursionError) as error:
            # Besides its own error the parser lets impossible dates and over-deep nesting through as these.
            self.problems.append(f"{shown}: not TOML: {str(error)[:200]}")
        else:
            return parsed
        return {}

    def _how_to(self, key: str) -> str:
        """How a key at the top of the file should have been written."""
        near = get_close_matches(key, self.known, n=1)
        if not near:
            near = [n for n in self.known if n.partition(".")[2] == key][:1]
        if not near:
            return "settings stand in a table named after their cause or remedy"
        table, _, field = near[0].partition(".")
        return f"write [{table}] and below it {field} = NUMBER"


def number(raw: object) -> float:
    """A finite number, zero or more. Raises ValueError with the reason, in words."""
    if isinstance(raw, str):
        text = raw.strip()
        if text.startswith("-") and _NUMBER.fullmatch(text[1:]):
            raise ValueError(f"{raw!r} is negative")
        if not _NUMBER.fullmatch(text):
            raise ValueError(f"{raw!r} is no plain number; the unit is in the setting's name")
        raw = float(text)
    elif isinstance(raw, bool) or not isinstance(raw, (int, float)):
        raise ValueError(f"{raw!r} is no number")  # noqa: TRY004 - collected with all other mistakes of the user
    try:
        value = float(raw)
    except OverflowError:
        value = math.inf
    if not math.isfinite(value):
        raise ValueError(f"{str(raw)[:40]} is not finite")
    if value < 0:
        raise ValueError(f"{value:g} is negative")
    return value


def _file(variables: Mapping[str, str], directory: Path, home: Path | None, reader: _Reader) -> Path | None:
    """The settings file to read, if there is one."""
    named = variables.get(FILE_VARIABLE)
    if named:
        path = Path(named)
        if _is_there(path):
            return path
        reader.problems.append(f"environment: {FILE_VARIABLE} names {named!r}, which is not there or out of reach")
        return None
    if home is None and variables.get("HOME"):
        home = Path(variables["HOME"])
    candidates = [directory / FILE_NAME]
    if home is not None:
        candidates.append(home / ".config" / "pgvacancy" / FILE_NAME)
    return next((c for c in candidates if _is_there(c)), None)


def _is_there(path: Path) -> bool:
    """Whether there is something of that name. Out of our reach (``sudo -u`` keeps HOME) counts as not there."""
    try:
        path.stat()
    except OSError:
        return False
    return True


def _shown(path: Path) -> str:
    """A path that can be printed, whatever bytes it holds."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _variable(name: str) -> str:
    """The environment variable of a setting."""
    return PREFIX + name.replace(".", "__").replace("-", "_").upper()


def _hint(near: Sequence[str]) -> str:
    return f"; did you mean {near[0]!r}?" if near else ""
