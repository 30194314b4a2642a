"""Quality of experience per chunk, QoE-lin of Pensieve (Mao et al., SIGCOMM 2017, table 1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

KBPS_PER_MBPS = 1000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class QoeWeights:
    """Penalties of QoE-lin.

    Attributes:
        rebuffer: per second of stall; 4.3 is the top bitrate of Pensieve's ladder in Mbit/s.
        switch: per Mbit/s of difference between two chunks.
    """

    __pydantic_config__ = {"extra": "forbid", "allow_inf_nan": False}  # noqa: RUF012
    rebuffer: float = 4.3
    switch: float = 1.0


PENSIEVE_QOE = QoeWeights()


def chunk_qoe(
    bitrate_kbps: float,
    previous_kbps: float,
    rebuffer_s: float,
    weights: QoeWeights = PENSIEVE_QOE,
) -> float:
    """QoE of one chunk: Mbit/s - rebuffer weight * stall - switch weight * |change in Mbit/s|."""
    switch_mbps = abs(bitrate_kbps - previous_kbps) / KBPS_PER_MBPS
    return (
        bitrate_kbps / KBPS_PER_MBPS - weights.rebuffer * rebuffer_s - weights.switch * switch_mbps
    )


def session_qoe(chunk_qoes: Sequence[float]) -> float | None:
    """Mean over chunks 1, 2, …: chunk 0 has no predecessor. None for fewer than two chunks."""
    scored = chunk_qoes[1:]
    return sum(scored) / len(scored) if scored else None
