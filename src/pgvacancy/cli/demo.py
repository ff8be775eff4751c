"""The whole story on a private server: clients refused, the cause named."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.option("--cause", default="connection-leak", show_default=True, help="Which fault to stage.")
@click.option("--pg-bin", type=click.Path(path_type=Path), metavar="DIR", help="Use the server in this directory.")
def command(cause: str, pg_bin: Path | None) -> int:
    """Stage a real shortage of slots on a private server and let the doctor name its cause.

    Nothing outside the private server is touched, and nothing is left behind.
    """
    from pgvacancy.lab.binaries import require_extra  # noqa: PLC0415 - only when the lab is wanted

    require_extra()
    from pgvacancy.cli._report import print_report  # noqa: PLC0415 - imports rich
    from pgvacancy.cli._trial import ask, laboratory  # noqa: PLC0415 - imports the driver
    from pgvacancy.lab.scenario import load_scenario  # noqa: PLC0415 - likewise
    from pgvacancy.lab.state import forget_templates  # noqa: PLC0415 - likewise

    scenario = load_scenario(cause)
    step("starting a private PostgreSQL on loopback, with 20 connection slots")
    with laboratory(scenario, pg_bin) as lab:
        step(f"PostgreSQL {lab.cluster.major} runs: {lab.cluster.url()}")
        step(f"now real clients make it happen: {cause}")
        scenario.fault(lab)
        step("a fresh ordinary client tries to get in:")
        refusal = lab.refusal()
        click.echo(f"    {refusal.strip().splitlines()[-1] if refusal else 'it is let in'}")
        step(f"pgvacancy doctor, looking for {scenario.observe_s:g} s:")
        click.echo()
        diagnosis = ask(scenario, lab, scenario.observe_s)
        print_report(diagnosis)
    forget_templates()
    click.echo()
    named = diagnosis.findings[0].cause if diagnosis.findings else "nothing"
    step(f"the cause was {cause}; the doctor named {named}")
    return 0 if named == cause else 1


def step(text: str) -> None:
    """One step of the story."""
    click.secho(f"==> {text}", bold=True)
