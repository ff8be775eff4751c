"""PostgreSQL: the ways in, the wire probe, and the statements one session sends."""
