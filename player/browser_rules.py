"""dash.js's own adaptation rules as arms, by the settings ``streaming.abr.rules`` of dash.js 5.

``dashjs-dynamic`` is what dash.js does unless told otherwise: the throughput rule while the buffer
is short, BOLA above that (Spiteri et al., ACM TOMM 2019). L2A (Karagkioules et al., MMSys 2020) and
LoL+ (Bentaleb et al., IEEE TMM 2022) decide alone, as in dash.js before version 5. Departing from
dash.js, no arm abandons a request: every chunk is fetched once.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

#: All rules that dash.js has; every arm says of each whether it is active.
RULES = (
    *("throughputRule", "bolaRule", "insufficientBufferRule", "switchHistoryRule"),
    *("droppedFramesRule", "abandonRequestsRule", "l2ARule", "loLPRule"),
)
_GUARDS = ("insufficientBufferRule", "switchHistoryRule")  # on by default beside the first two
#: Active rules by the name of the arm's controller.
DASHJS_CONTROLLERS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "dashjs-dynamic": ("throughputRule", "bolaRule", *_GUARDS),
        "dashjs-throughput": ("throughputRule", *_GUARDS),
        "dashjs-bola": ("bolaRule", *_GUARDS),
        "dashjs-l2a": ("l2ARule",),
        "dashjs-lolp": ("loLPRule",),
    }
)


def active_rules(controller: str) -> dict[str, bool]:
    """Whether each rule of dash.js is active; none where another controller decides."""
    active = DASHJS_CONTROLLERS.get(controller, ())
    return {rule: rule in active for rule in RULES}
