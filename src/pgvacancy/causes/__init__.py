"""One file per cause: a pure function from what was observed to a finding.

There is no list to edit: every module here whose name does not begin with an underscore is a cause.
:func:`load` imports a single one, so ``explain`` stays quick.
"""

from pgvacancy.causes._shape import Cause, Example, load, load_all, setting, slugs
from pgvacancy.causes._verdict import available_probes, diagnose

__all__ = ["Cause", "Example", "available_probes", "diagnose", "load", "load_all", "setting", "slugs"]
