from __future__ import annotations

from typing import Literal

import pytest

from testbed.links.spec import DirectionSpec, LinkChange, LinkSpec, QueueSpec, constant_trace


@pytest.mark.parametrize("at_end", ["loop", "hold", "stop"])
def test_a_constant_rate_has_no_end(at_end: Literal["loop", "hold", "stop"]) -> None:
    capacity = DirectionSpec(trace=constant_trace(2.0), at_end=at_end).capacity
    assert capacity is not None
    assert float(capacity.bits_until(1e6)) == 2e12


def test_what_a_link_cannot_do_is_refused_with_the_bounds() -> None:
    with pytest.raises(ValueError, match=r"interval_ms 1e-06 is not at least 1\.0 with pie"):
        QueueSpec(kind="pie", interval_ms=1e-6)
    assert QueueSpec(kind="codel", interval_ms=0.5).interval_ms == 0.5
    changes = tuple(LinkChange(at_s=at_s, loss=0.1) for at_s in (3.0, 1.0))
    with pytest.raises(ValueError, match=r"\[3\.0, 1\.0\] is not in the order of time"):
        LinkSpec(down=DirectionSpec(), changes=changes)
