"""What a session in a real browser needs, and where it is: Chromium, playwright, dash.js."""

from __future__ import annotations

import importlib.util
import shutil
from dataclasses import dataclass
from pathlib import Path

PAGE_FOLDER = Path(__file__).with_name("page")
#: One file of the pinned package; ``make setup-browser`` puts it there.
LIBRARY_NAME = "dash.all.min.js"
LIBRARY = PAGE_FOLDER / "vendor" / LIBRARY_NAME
CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
REMEDY = "run make setup-browser"


class BrowserMissing(ValueError):
    """A part is not there; the message names it and says what to do."""


@dataclass(frozen=True, slots=True)
class BrowserParts:
    """Where the parts are.

    Attributes:
        chromium: the program.
        library: dash.js, one file.
    """

    chromium: Path
    library: Path


def find_browser() -> BrowserParts:
    """Looks for all parts; starts none of them.

    Raises:
        BrowserMissing: one or more are not there.
    """
    missing = []
    program = next(filter(None, map(shutil.which, CHROMIUM_NAMES)), None)
    if program is None:
        missing.append(f"Chromium (any of {', '.join(CHROMIUM_NAMES)} on the PATH)")
    if importlib.util.find_spec("playwright") is None:
        missing.append("the Python package playwright")
    library = find_library(missing)
    if missing or program is None:
        raise BrowserMissing(f"no browser for dash.js: missing {', '.join(missing)}; {REMEDY}")
    return BrowserParts(Path(program), library)


def find_library(missing: list[str] | None = None) -> Path:
    """Where dash.js is.

    Args:
        missing: is told that it is not there, instead of an error.

    Raises:
        BrowserMissing: it is not there.
    """
    if not LIBRARY.is_file():
        what = f"dash.js ({LIBRARY.relative_to(PAGE_FOLDER.parent.parent)})"
        if missing is None:
            raise BrowserMissing(f"missing {what}; {REMEDY}")
        missing.append(what)
    return LIBRARY
