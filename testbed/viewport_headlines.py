"""Which viewport arm is ahead, of which, and whether the recordings suffice to say so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from testbed.report_elements import counted, difference, includes_zero, interval_text
from testbed.result_rows import AnyRecord
from testbed.statistics import Estimate
from testbed.svg import fixed
from testbed.viewport_runs import ViewportRun

DECIMALS = 3


@dataclass(frozen=True, slots=True)
class Ranked:
    """An arm and what it is ranked by."""

    arm: str
    estimate: Estimate


def headline(
    run: ViewportRun[AnyRecord],
    ranked: Sequence[Ranked],
    pairs: Sequence[Mapping[str, Any]],
    *,
    is_less_better: bool,
    what: str,
    unit: str,
    noun: str,
) -> tuple[str, ...]:
    """The best arm against the others; one that knows the future is the ceiling and no competitor.

    Args:
        run: the run.
        ranked: its arms.
        pairs: differences between them, as in the summary.
        is_less_better: whether the least is the best.
        what: what the arms are ranked by.
        unit: of that, as it follows a number.
        noun: of what was paired.
    """
    sign = 1 if is_less_better else -1
    usable = sorted(
        (one for one in ranked if one.estimate.mean is not None),
        key=lambda one: sign * (one.estimate.mean or 0.0),
    )
    rivals = [one for one in usable if one.arm not in run.knowing]
    if not usable:
        return ("No session ended well.",)
    said = []
    order = "lowest" if is_less_better else "highest"
    if rivals:
        best = rivals[0]
        said.append(f"{best.arm} has the {order} {what}: {_told(best.estimate, unit)}.")
        for other in rivals[1:]:
            delta = difference(pairs, best.arm, other.arm)
            if delta is None or delta.mean is None:
                continue
            verdict = f"; these {noun}s cannot tell the two apart" if includes_zero(delta) else ""
            said.append(
                f"Against {other.arm}: {fixed(delta.mean, DECIMALS, sign=True)}{unit}"
                f"{interval_text(delta.ci95, DECIMALS)} over "
                f"{counted(delta.n, f'paired {noun}')}{verdict}."
            )
    said += [
        f"{one.arm} is told the future and shows what there is to gain: "
        f"{_told(one.estimate, unit)}."
        for one in usable
        if one.arm in run.knowing
    ]
    return tuple(said)


def _told(estimate: Estimate, unit: str) -> str:
    return f"{fixed(estimate.mean, DECIMALS)}{unit}{interval_text(estimate.ci95, DECIMALS)}"
