"""What holds for the files of the project, whoever wrote them."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "pgvacancy"
MAX_LINES = 400
HERE = Path(__file__).relative_to(ROOT)

# Each pattern has a letter in brackets, so that it does not find itself here.
FORBIDDEN = {
    "host name of a package registry": re.compile(
        "pypi[.]org|pythonhoste[d]|npmj[s]|deb[.]debian[.]org|archive[.]ubuntu[.]com|crates[.]io|proxy[.]golang[.]org"
    ),
    "path of one machine": re.compile("/wor[k]/|/roo[t]/|/hom[e]/[a-z]|/User[s]/[a-z]|/tmp/v[0]|[.]pyen[v]"),
    "unfinished work": re.compile(r"\bTOD[O]\b|\bFIXM[E]\b|\bXX[X]\b"),
    "address of a package index": re.compile("--(extra-)?index-ur[l]|--find-link[s]|--trusted-hos[t]"),
}
VAGUE = ("util", "utils", "helper", "helpers", "manager", "managers", "misc", "common_utils")


def files() -> list[Path]:
    """Every file of the project, as git sees it: tracked, or new and not ignored."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return sorted({ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()})


def texts() -> list[tuple[Path, str]]:
    """Every text file of the project."""
    found = []
    for path in files():
        content = path.read_bytes()
        if b"\0" not in content[:8000]:
            found.append((path.relative_to(ROOT), content.decode("utf-8", "replace")))
    return found


def test_no_file_is_too_long() -> None:
    checked = {".py", ".sql", ".sh", ".md", ".toml", ""}
    long = {
        str(path): lines
        for path, text in texts()
        if path.suffix in checked and path.name != "LICENSE" and (lines := text.count("\n")) > MAX_LINES
    }
    assert not long


@pytest.mark.parametrize("what", FORBIDDEN)
def test_nothing_forbidden_is_written_anywhere(what: str) -> None:
    found = [
        f"{path}:{number}: {line.strip()[:120]}"
        for path, text in texts()
        for number, line in enumerate(text.splitlines(), 1)
        if FORBIDDEN[what].search(line)
    ]
    assert not found, what


def test_modules_are_nouns_of_the_field() -> None:
    assert not [p for p in PACKAGE.rglob("*.py") if p.stem.strip("_") in VAGUE]


def test_every_package_is_one() -> None:
    folders = {p.parent for p in PACKAGE.rglob("*.py")}
    assert not [f for f in folders if not (f / "__init__.py").is_file()]


def test_imports_are_layered() -> None:
    done = subprocess.run(
        [ROOT / ".venv" / "bin" / "lint-imports", "--no-cache"] if (ROOT / ".venv").exists() else ["lint-imports"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_pure_rooms_are_all_under_contract() -> None:
    contract = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for room in ("causes", "remedies", "planning", "model"):
        if (PACKAGE / room / "__init__.py").exists():
            (line,) = re.findall(r"^source_modules = \[(.*)\]$", contract, re.MULTILINE)
            assert f'"pgvacancy.{room}"' in line


def test_catching_everything_is_left_to_the_check_runner() -> None:
    allowed = {PACKAGE / "causes" / "_verdict.py"}
    found = []
    for path in set(PACKAGE.rglob("*.py")) - allowed:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ExceptHandler):
                names = {n.id for n in ast.walk(node.type) if isinstance(n, ast.Name)} if node.type else {"everything"}
                raises = any(isinstance(n, ast.Raise) and n.exc is None for n in ast.walk(node))
                if names & {"Exception", "BaseException", "everything"} and not raises:
                    found.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert not found


def test_every_exception_to_a_rule_is_explained() -> None:
    bare = re.compile(r"#\s*noqa(?!: [A-Z]+[0-9]+(, [A-Z]+[0-9]+)* - \w)|#\s*type: ignore(?!\[)")
    found = [
        f"{path}:{number}"
        for path, text in texts()
        if path.suffix == ".py" and path != HERE
        for number, line in enumerate(text.splitlines(), 1)
        if bare.search(line)
    ]
    assert not found


def statements() -> list[Path]:
    return sorted(PACKAGE.rglob("*.sql"))


def test_every_statement_is_used() -> None:
    """A statement is named in code by its file's stem, with or without the version it begins with (name_13.sql)."""
    code = "\n".join(p.read_text(encoding="utf-8") for p in PACKAGE.rglob("*.py"))
    names = set(re.findall(r"[\"']([\w/.-]+?)(?:\.sql)?[\"']", code))
    short = {n.rsplit("/", 1)[-1] for n in names}
    unused = [p.name for p in statements() if not {p.stem, re.sub(r"_\d+$", "", p.stem)} & short]
    assert not unused


def test_every_statement_is_marked_as_ours_and_qualified() -> None:
    """The mark stays visible in pg_stat_activity: the server shows the text from its first character on."""
    unmarked = [
        p.name
        for p in statements()
        if not re.search(r"^\s*(--[^\n]*\n\s*)*/\* pgvacancy:[\w-]+", p.read_text(encoding="utf-8"))
    ]
    assert not unmarked
