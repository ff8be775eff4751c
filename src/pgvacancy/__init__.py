"""pgvacancy: find out why PostgreSQL has no free connection slot, and what to do about it."""

__version__ = "0.1.0"
