"""Where in the user's own code an error arose, and its traceback as it can be handed on."""

from __future__ import annotations

import traceback
from functools import lru_cache
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
LONGEST = 8000
"""Characters of a traceback that are kept."""
LIBRARY = Path(traceback.__file__).resolve().parent


def own_frame(error: BaseException, folder: Path | None = None) -> traceback.FrameSummary | None:
    """The deepest frame of an error that is in the user's own code, in a `folder` where one is given: not in Umbel, in
    Python's library, in a package that is installed, or in code that was made from text, such as a dataclass's
    ``__init__``. None where there is none.
    """
    frames = traceback.extract_tb(error.__traceback__)
    return next((frame for frame in reversed(frames) if is_own(frame.filename, folder)), None)


@lru_cache(maxsize=1000)
def is_own(filename: str, folder: Path | None = None) -> bool:
    """Whether a file is the user's own code."""
    if filename.startswith("<"):
        return False
    path = Path(filename).resolve()
    if path.is_relative_to(PACKAGE) or path.is_relative_to(LIBRARY):
        return False
    return not {"site-packages", "dist-packages"} & set(path.parts) and (folder is None or path.is_relative_to(folder))


def traced(error: BaseException) -> str:
    """An error's traceback as text, the end of it where it is long. It may show what the data holds: it is for whoever
    has the data, and is never sent to a server.
    """
    try:
        text = "".join(traceback.format_exception(error))
    except Exception:  # other people's errors may not even be printable
        text = "".join(traceback.format_tb(error.__traceback__)) + type(error).__name__ + "\n"
    return text if len(text) <= LONGEST else f"...{text[-LONGEST:]}"
