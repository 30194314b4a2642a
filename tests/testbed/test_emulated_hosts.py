from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from player.trace import Trace
from testbed.emulated_hosts import capture_path
from testbed.experiment_sections import ArmConfig
from testbed.sessions import Session

NAMES = ("bba", "../../etc", "a/b\0c", "x" * 500, "naïve 100 %", "..")


@pytest.mark.parametrize("arm", NAMES)
@pytest.mark.parametrize("trace", NAMES)
def test_captures_stay_in_their_folder_whatever_names_say(
    tmp_path: Path, arm: str, trace: str
) -> None:
    on = Trace(trace, np.array([0.0, 1.0]), np.array([1.0, 1.0]))
    session = Session(3, ArmConfig(controller="bba", name=arm), on, 1, client=2)
    path = capture_path(tmp_path, session)
    assert path.parent == tmp_path
    assert path.name.startswith("0003_")
    path.touch()
