"""Figures apart from pyplot, which would choose a window system: they are files, or pictures in a notebook."""

from __future__ import annotations

from io import BytesIO
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


class Picture(Figure):
    """A matplotlib `Figure` that a notebook shows, once, where it is the value of a cell, with or without pyplot."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        FigureCanvasAgg(self)

    def _repr_png_(self) -> bytes:
        # Notebooks ask an object for this by name; for a Figure they know what to do only once pyplot is imported.
        data = BytesIO()
        self.savefig(data, format="png")
        return data.getvalue()
