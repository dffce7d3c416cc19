"""The events of a run, where those who write observers find them; `umbel.runs.events` says what each is."""

from __future__ import annotations

from .runs.events import *  # noqa: F403
