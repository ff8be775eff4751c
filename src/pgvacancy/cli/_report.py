"""The doctor's answer on one screen: verdict, slots as a bar, causes with their evidence, what could not be checked."""

from __future__ import annotations

import math
import sys

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from pgvacancy.cli._bar import slot_bar
from pgvacancy.model.diagnosis import Diagnosis, Fact, Finding
from pgvacancy.model.report import iso

STYLES = {"critical": "bold white on red", "warning": "bold black on yellow", "ok": "bold black on green"}
MAX_CULPRITS = 6
MAX_COMMANDS = 3
MAX_NOT_CHECKED = 6
SCARCE_RATIO = 0.8
"""Below it nobody asks who holds the rest."""


def print_report(diagnosis: Diagnosis, console: Console | None = None) -> None:
    """Print the whole answer to standard output."""
    out = console or Console(highlight=False, soft_wrap=False)
    if console is None and not out.is_terminal:
        # A file wants no blanks up to the width of a screen.
        with out.capture() as captured:
            _print(diagnosis, out)
        sys.stdout.write("\n".join(line.rstrip() for line in captured.get().splitlines()) + "\n")
    else:
        _print(diagnosis, out)


def _print(diagnosis: Diagnosis, out: Console) -> None:
    out.print(_head(diagnosis))
    out.print(_verdict(diagnosis))
    if diagnosis.refusal is not None:
        refusal = diagnosis.refusal
        who = f" (user {refusal.user}, database {refusal.database})" if refusal.user else ""
        out.print(_line("refused", f"{refusal.sqlstate or 'no SQLSTATE'} {refusal.kind}: {refusal.message}{who}"))
    if diagnosis.ledger is not None:
        out.print(Padding(slot_bar(diagnosis, max(20, out.width - 4)), (1, 0, 0, 2)))
    for number, finding in enumerate(diagnosis.findings, 1):
        out.print()
        _finding(out, number, finding)
    scarce = diagnosis.ledger is None or diagnosis.ledger.fill_ratio >= SCARCE_RATIO
    if diagnosis.unexplained_slots and diagnosis.findings and scarce:
        out.print()
        out.print(_line("left over", f"{diagnosis.unexplained_slots} used slots that no finding accounts for"))
    _not_checked(out, diagnosis)


def _head(diagnosis: Diagnosis) -> Text:
    snapshot = diagnosis.snapshot
    server = snapshot.server
    parts = [snapshot.target or "a saved snapshot"]
    if server is not None and server.version:
        parts.append(f"PostgreSQL {server.version}" + (" (standby)" if server.in_recovery else ""))
    if server is not None and server.managed_by:
        parts.append(f"managed by {server.managed_by}")
    door = snapshot.access.door
    parts.append(f"{door} door" if door != "none" else "no door opened")
    parts.append(
        f"observed {snapshot.observed_s:.1f} s, {len(snapshot.samples)} reading{'s' * (len(snapshot.samples) != 1)}"
    )
    parts.append(iso(snapshot.taken_at))
    return Text(" · ".join(parts), style="dim")


def _verdict(diagnosis: Diagnosis) -> Text:
    text = Text()
    text.append(f" {diagnosis.severity.upper()} ", STYLES[diagnosis.severity])
    text.append(" ")
    if diagnosis.findings:
        best = diagnosis.findings[0]
        text.append(f"{best.cause}", "bold")
        text.append(f": {best.summary}")
    elif diagnosis.severity == "ok":
        unchecked = len(diagnosis.not_checked) + len(diagnosis.crashed) + len(diagnosis.snapshot.gaps)
        text.append("no cause found")
        text.append("; not everything could be looked at, see below" if unchecked else " in any of the causes checked")
    else:
        text.append("no cause stands out; a longer look (--observe 30) or other thresholds may tell")
    if diagnosis.snapshot.interrupted:
        text.append(f"\n {diagnosis.snapshot.interrupted}", "yellow")
    return text


def _finding(out: Console, number: int, finding: Finding) -> None:
    title = Text()
    title.append(f"{number}. {finding.cause} ", "bold")
    title.append(f"[{finding.code}] {finding.severity}, {_slots(finding)}, confidence {finding.confidence:.0%}", "dim")
    out.print(title)
    if number > 1:
        out.print(_line("", finding.summary))
    for label, facts in (("evidence", finding.evidence), ("against", finding.counter_evidence)):
        for n, fact in enumerate(facts):
            out.print(_line(label if n == 0 else "", _fact(fact)))
    _culprits(out, finding)
    commands = [a for a in finding.remedies if a.command] or list(finding.remedies)
    for n, advice in enumerate(commands[:MAX_COMMANDS]):
        frees = f", frees {advice.frees}" if advice.frees else ""
        why = f": {advice.why}" if advice.why else ""
        label = "first" if n == 0 else "then" if n == 1 else ""
        out.print(_line(label, f"{advice.slug} ({advice.difficulty}, disruption {advice.disruption}{frees}){why}"))
        if advice.command:
            # No wrapping of our own: a command is there to be copied.
            for line in advice.command.splitlines():
                out.print(Text(" " * 12 + line, style="cyan"), soft_wrap=True)
    out.print(_line("", f"pgvacancy explain {finding.cause}"))


def _culprits(out: Console, finding: Finding) -> None:
    if not finding.culprits:
        return
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for column in ("slots", "application", "user", "database", "client"):
        table.add_column(column, justify="right" if column == "slots" else "left", overflow="fold")
    for culprit in finding.culprits[:MAX_CULPRITS]:
        name = culprit.application_name or "(no application_name)"
        table.add_row(str(culprit.slots), Text(name), culprit.user, culprit.database, Text(culprit.client))
    rest = len(finding.culprits) - MAX_CULPRITS
    if rest > 0:
        table.add_row("", f"and {rest} more owners")
    out.print(_line("who", table))


def _not_checked(out: Console, diagnosis: Diagnosis) -> None:
    reasons: dict[str, list[str]] = {}
    for gap in diagnosis.snapshot.gaps:
        reasons.setdefault(gap.reason, [])
    for item in diagnosis.not_checked:
        reasons.setdefault(item.reason, []).append(item.cause)
    for crash in diagnosis.crashed:
        reasons.setdefault(f"the check crashed, a defect of ours: {crash.error}", []).append(crash.cause)
    if not reasons:
        return
    out.print()
    out.print(Text("not checked", "bold"))
    for reason, causes in list(reasons.items())[:MAX_NOT_CHECKED]:
        prefix = f"{', '.join(causes)}: " if causes else ""
        out.print(_line("", f"{prefix}{reason}"))
    if len(reasons) > MAX_NOT_CHECKED:
        out.print(_line("", f"and {len(reasons) - MAX_NOT_CHECKED} more: --format json lists all"))


def _slots(finding: Finding) -> str:
    return f"{finding.slots} slots" if finding.slots != 1 else "1 slot"


def _fact(fact: Fact) -> str:
    if fact.value is None:
        return f"{fact.fact}  ({fact.source})"
    value = fact.value
    shown = f"{value:g}" if isinstance(value, float) and math.isfinite(value) else str(value)
    return f"{fact.fact}: {shown}  ({fact.source})"


def _line(label: str, content: str | Table) -> Padding:
    grid = Table.grid(padding=(0, 1))
    grid.add_column(width=9, style="dim")
    grid.add_column(overflow="fold")
    grid.add_row(label, Text(content) if isinstance(content, str) else content)
    return Padding(grid, (0, 0, 0, 2))
