"""What must hold of arms that dash.js plays; messages begin with the key."""

from __future__ import annotations

from player.browser_rules import DASHJS_CONTROLLERS
from testbed.experiment_checks import require
from testbed.experiment_sections import ArmConfig, PlayerKind


def check_browser_keys(arm: ArmConfig, player: PlayerKind, driver: str) -> None:
    """Checks an arm of an experiment.

    Args:
        arm: the arm.
        player: what plays in it.
        driver: of the experiment.

    Raises:
        ValueError: what is wrong.
    """
    where = f"arms: {arm.label!r}"
    require(
        player == "headless" or driver == "emulated",
        f"{where}: dash.js plays in real time only; use driver = 'emulated'",
    )
    if arm.controller in DASHJS_CONTROLLERS:
        require(
            player == "dashjs",
            f"{where}: {arm.controller} is a rule of dash.js; set player = 'dashjs'",
        )
        require(not arm.options, f"{where}: {arm.controller} has no options")
