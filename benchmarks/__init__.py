"""Measurements: every published figure comes from a config here, one command, and a results file."""
