"""Measurements: ``python -m bench [PART …]``. Nothing here asserts a time; it prints what was measured."""
