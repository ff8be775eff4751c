"""The shape every cause has, and how causes are found."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from pgvacancy.model.diagnosis import Finding
from pgvacancy.model.series import Case
from pgvacancy.model.settings import Setting
from pgvacancy.model.snapshot import Snapshot

HEADINGS = (
    "What it is",
    "Why it takes slots",
    "How we know",
    "What to do, least disruptive first",
    "Often mistaken for",
    "Sources",
)
"""The headings of a cause's docstring: the same text is what ``explain`` and the documentation print."""

Outcome = Literal["quiet", "fires", "cleared"]


def setting(default: float, why: str) -> Any:  # noqa: ANN401 - stands for a float in a dataclass body
    """A threshold with the reason for its default. The unit is in the field's name."""
    return field(default=default, metadata={"why": why})


@dataclass(frozen=True, slots=True)
class Example:
    """A worked example: the smallest snapshot that shows the cause firing, staying quiet, or cleared."""

    name: str
    outcome: Outcome
    build: Callable[[], Snapshot]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """A cause module, looked at through its fixed attributes."""

    slug: str
    code: str
    order: int
    """Who claims a slot first: lower is more specific. Causes of equal order compete by confidence."""
    needs: tuple[frozenset[str], ...]
    """Alternatives: judged when any one set of probes is complete."""
    why_not: str
    """What to add to the words on what is missing, when none is."""
    module: ModuleType

    @property
    def page(self) -> str:
        """The explanation: the module's docstring."""
        return self.module.__doc__ or ""

    @property
    def title(self) -> str:
        """The first line of the page, without the full stop."""
        return self.page.strip().splitlines()[0].rstrip(".")

    @property
    def examples(self) -> tuple[Example, ...]:
        """The worked examples."""
        return tuple(self.module.EXAMPLES)

    @property
    def settings(self) -> tuple[Setting, ...]:
        """Every threshold of this cause."""
        return tuple(
            Setting(name=f"{self.slug}.{f.name}", default=float(f.default), why=f.metadata["why"])
            for f in fields(self.module.Settings)
            if f.default is not MISSING
        )

    def make_settings(self, values: Mapping[str, float]) -> object:
        """The cause's own settings object, with ``<slug>.<name>`` values put over the defaults."""
        prefix = f"{self.slug}."
        own = {k.removeprefix(prefix): v for k, v in values.items() if k.startswith(prefix)}
        return self.module.Settings(**own)

    def detect(self, case: Case, values: Mapping[str, float]) -> Finding | None:
        """Judge one case."""
        finding: Finding | None = self.module.detect(case, self.make_settings(values))
        return finding


@cache
def slugs() -> tuple[str, ...]:
    """The slugs of all causes, in the order of their codes' files; imports none of them."""
    here = str(Path(__file__).parent)
    names = sorted(m.name for m in pkgutil.iter_modules([here]) if not m.name.startswith("_"))
    return tuple(name.replace("_", "-") for name in names)


@cache
def load(slug: str) -> Cause:
    """Import one cause. Raises KeyError for an unknown slug."""
    if slug not in slugs():
        raise KeyError(slug)
    module = importlib.import_module(f"pgvacancy.causes.{slug.replace('-', '_')}")
    return Cause(
        slug=slug,
        code=module.CODE,
        order=module.ORDER,
        needs=tuple(frozenset(n) for n in module.NEEDS),
        why_not=getattr(module, "WHY_NOT", ""),
        module=module,
    )


@cache
def load_all() -> tuple[Cause, ...]:
    """Every cause, by code."""
    return tuple(sorted((load(s) for s in slugs()), key=lambda c: c.code))
