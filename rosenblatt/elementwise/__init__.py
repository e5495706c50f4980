"""Increasing maps of single coordinates; they own no weights."""
