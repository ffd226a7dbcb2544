"""Counts of parsed rows."""

from tests.support.parsed_rows import parsed

__all__ = ["parsed"]
