"""Readers of a run's log that put it into the tools in which people watch their runs."""
