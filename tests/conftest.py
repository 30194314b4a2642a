"""What all tests share: the optional folder of research data."""

from __future__ import annotations

import os
from pathlib import Path

import hypothesis
import pytest

hypothesis.settings.register_profile("default", database=None)  # leaves no folder behind
hypothesis.settings.load_profile("default")

#: Where researchers who have the data sets next to their checkout keep them.
BESIDE_THE_PROJECT = Path(__file__).parent.parent.parent / "shared" / "data"


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The research data named by TESTBED_DATA, or beside the project; skips without either."""
    folder = Path(os.environ.get("TESTBED_DATA", BESIDE_THE_PROJECT))
    if not folder.is_dir():
        pytest.skip("no research data: name the folder in TESTBED_DATA")
    return folder


@pytest.fixture(scope="session")
def reference_dir(data_dir: Path) -> Path:
    """Outputs of public reference simulators, beside the research data."""
    folder = data_dir.parent / "reference"
    if not folder.is_dir():
        pytest.skip(f"no outputs of reference simulators in {folder}")
    return folder
