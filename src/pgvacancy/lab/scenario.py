"""A fault as a scenario: what server it needs, how it begins, its look-alike, and the documented remedy.

A fault module holds functions ``fault(lab)``, ``look_alike(lab)`` and ``remedy(lab)``, each returning when what
it promises is true on the server, and optional constants:

``SERVER``  settings the server needs · ``HBA``  pg_hba lines · ``THRESHOLDS``  lowered thresholds, so that ages of
a few seconds suffice · ``OBSERVE_S``  how long the doctor looks (2) · ``LOOK_S``  the same for the look-alike ·
``doctor(lab)``  a mapping of further things to look at: ``dsn``, ``poolers``, ``logs``, ``host_only`` ·
``SINCE``  oldest major it can be staged on (13).
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any

from pgvacancy.lab.cluster import Cluster
from pgvacancy.lab.lab import Lab
from pgvacancy.model.errors import UnknownTopicError

MAX_CONNECTIONS = 20
"""Small, so that a real shortage takes a second to make."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """A fault module, looked at through its fixed names."""

    slug: str
    module: ModuleType

    def cluster(self, pg_bin: Path | None = None, **settings: str) -> Cluster:
        """The server this scenario needs; not started."""
        wanted = {"max_connections": str(MAX_CONNECTIONS), **getattr(self.module, "SERVER", {}), **settings}
        return Cluster(wanted, pg_bin=pg_bin, hba=getattr(self.module, "HBA", ()))

    @property
    def thresholds(self) -> Mapping[str, float]:
        """Settings for the doctor."""
        return getattr(self.module, "THRESHOLDS", {})

    @property
    def observe_s(self) -> float:
        """How long the doctor looks at the fault."""
        return float(getattr(self.module, "OBSERVE_S", 2.0))

    @property
    def look_s(self) -> float:
        """How long the doctor looks at the look-alike."""
        return float(getattr(self.module, "LOOK_S", self.observe_s))

    @property
    def since(self) -> int:
        """The oldest major it can be staged on."""
        return int(getattr(self.module, "SINCE", 13))

    def doctor(self, lab: Lab) -> dict[str, Any]:
        """Further things the doctor is to look at."""
        if not hasattr(self.module, "doctor"):
            return {}
        wanted: dict[str, Any] = self.module.doctor(lab)
        return wanted

    def fault(self, lab: Lab) -> None:
        """Make it happen."""
        self.module.fault(lab)

    def look_alike(self, lab: Lab) -> None:
        """Make what looks like it, and is not."""
        self.module.look_alike(lab)

    def remedy(self, lab: Lab) -> None:
        """Do what the cause's page says."""
        self.module.remedy(lab)


def scenario_slugs() -> tuple[str, ...]:
    """Every fault there is; imports none."""
    here = str(Path(__file__).parent / "faults")
    names = sorted(m.name for m in pkgutil.iter_modules([here]) if not m.name.startswith("_"))
    return tuple(n.replace("_", "-") for n in names)


def load_scenario(slug: str) -> Scenario:
    """One scenario. Raises UnknownTopicError for an unknown slug."""
    if slug not in scenario_slugs():
        near = get_close_matches(slug, scenario_slugs(), n=1)
        raise UnknownTopicError(
            f"no such fault: {slug}",
            seen=f"known: {', '.join(scenario_slugs())}",
            next=f"pgvacancy lab run {near[0]}" if near else "pgvacancy lab run --help",
        )
    return Scenario(slug, importlib.import_module(f"pgvacancy.lab.faults.{slug.replace('-', '_')}"))
