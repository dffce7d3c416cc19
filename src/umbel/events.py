"""The events of a run, where those who write observers find them; `umbel.runs.events` says what each is."""

from .runs.events import *  # noqa: F403
