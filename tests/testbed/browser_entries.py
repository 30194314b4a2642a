"""What the tests of the browser run inside a sandbox."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from testbed import browser_emulation
from testbed.emulation_inside import run_sessions
from testbed.sandbox import Send


def run_with_picture(job: dict[str, Any], send: Send) -> None:
    """Runs sessions as ever, and keeps a picture of each page."""
    browser_emulation.play_in_browser = functools.partial(  # type: ignore[attr-defined]
        browser_emulation.play_in_browser, screenshot=Path(job["picture"])
    )
    run_sessions(job["plan"], send)
