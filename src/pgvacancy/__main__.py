"""``python -m pgvacancy``: the same as the ``pgvacancy`` command."""

from __future__ import annotations

import sys

from pgvacancy.cli.main import main

sys.exit(main())
