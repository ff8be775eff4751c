"""The pins, the package and the scripts agree with each other."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from pgvacancy import __version__

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
PIN = re.compile(
    r"(?P<name>[A-Za-z0-9-]+)==(?P<version>[0-9][0-9a-z.]*)(; python_version (?P<than><|>=) \"3\.(?P<minor>[0-9]+)\")?"
)
MINORS = (10, 11, 12, 13)


def lines(path: Path) -> list[str]:
    return [text for text in path.read_text(encoding="utf-8").splitlines() if text and not text.startswith("#")]


def pins(minor: int) -> dict[str, set[str]]:
    """The versions that hold for Python 3.MINOR, by normalised name."""
    found: dict[str, set[str]] = {}
    for path in (ROOT / "constraints").glob("*.txt"):
        for line in lines(path):
            match = PIN.fullmatch(line)
            assert match is not None, f"{path.name}: {line!r} is not a plain name and version"
            limit = match["minor"]
            if limit and (minor < int(limit)) != (match["than"] == "<"):
                continue
            found.setdefault(normal(match["name"]), set()).add(match["version"])
    return found


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def project() -> dict[str, object]:
    found: dict[str, object] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return found


@pytest.mark.parametrize("minor", MINORS)
def test_one_version_of_each_package_for_each_python(minor: int) -> None:
    assert not {name: versions for name, versions in pins(minor).items() if len(versions) > 1}


@pytest.mark.parametrize("minor", MINORS)
def test_every_dependency_is_pinned(minor: int) -> None:
    described = project()
    extras = described["optional-dependencies"]
    direct = described["dependencies"]
    assert isinstance(extras, dict)
    assert isinstance(direct, list)
    wanted = [*direct, *(r for group in extras.values() for r in group), "hatchling"]
    if minor >= 11:
        wanted = [r for r in wanted if not r.startswith("tomli")]
    names = {normal(re.split(r"[\[<>=;! ]", r)[0]) for r in wanted}
    assert names <= set(pins(minor))


def test_what_is_installed_is_what_is_pinned() -> None:
    pinned = pins(sys.version_info.minor)
    ours = {"pgvacancy", "pip", "setuptools", "wheel"}
    installed = {normal(d.name): d.version for d in metadata.distributions()}
    strangers = {n: v for n, v in installed.items() if n not in ours and v not in pinned.get(n, set())}
    assert not strangers


def test_the_installed_version_is_that_of_the_source() -> None:
    assert metadata.version("pgvacancy") == __version__


@pytest.mark.parametrize("script", [*sorted((ROOT / "scripts").iterdir()), ROOT / ".ci" / "run"], ids=lambda p: p.name)
def test_scripts_can_be_run(script: Path) -> None:
    assert script.stat().st_mode & 0o111
    first = script.read_text(encoding="utf-8").splitlines()[0]
    if "bash" in first:
        subprocess.run(["bash", "-n", script], check=True)


def test_statements_and_type_mark_are_shipped(tmp_path: Path) -> None:
    """Everything below the package goes into the wheel, the .sql files too."""
    import zipfile

    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", tmp_path],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    shipped = set(zipfile.ZipFile(wheel).namelist())
    package = ROOT / "src"
    wanted = [p for p in package.rglob("*") if p.suffix in {".py", ".sql"} or p.name == "py.typed"]
    assert {str(p.relative_to(package)) for p in wanted} <= shipped
