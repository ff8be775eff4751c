"""Frozen data that every other room passes around. No I/O, no clock, no driver."""
