"""QoE-lin by hand."""

from __future__ import annotations

import pytest

from player.qoe import QoeWeights, chunk_qoe, session_qoe


def test_bitrate_minus_stalls_minus_switches() -> None:
    assert chunk_qoe(1850, 750, 0.5) == pytest.approx(1.85 - 4.3 * 0.5 - 1.1)
    assert chunk_qoe(1850, 750, 0.5, QoeWeights(rebuffer=1, switch=0)) == pytest.approx(1.35)


def test_chunk_zero_is_not_scored() -> None:
    assert session_qoe([-10.0, 1.0, 2.0]) == pytest.approx(1.5)
    assert session_qoe([-10.0]) is None
    assert session_qoe([]) is None
