"""How many bytes cross each edge of a job, where nobody has measured it.

A model: the stages without parents share the input in proportion to their tasks; each stage writes
a fixed share of what it reads, and each child reads all that its parents wrote.
"""

from __future__ import annotations

from collections.abc import Sequence

from cluster_sim.jobs import Edge, Stage

#: What a stage writes of what it reads: scans and joins of analytical queries throw most away.
SELECTIVITY = 0.3


def with_shuffle_bytes(
    stages: Sequence[Stage],
    pairs: Sequence[tuple[int, int]],
    input_bytes: float,
    selectivity: float = SELECTIVITY,
) -> tuple[Edge, ...]:
    """Edges for pairs of (parent, child), with the bytes of the model.

    Pairs that make a loop carry nothing: building the job says what is wrong with them.
    """
    parents: dict[int, list[int]] = {index: [] for index in range(len(stages))}
    for parent, child in pairs:
        parents.setdefault(child, []).append(parent)
    root_tasks = sum(stages[index].tasks for index in range(len(stages)) if not parents[index])
    read: dict[int, float] = {}
    left = set(range(len(stages)))
    while ready := sorted(index for index in left if all(one in read for one in parents[index])):
        for index in ready:
            if parents[index]:
                read[index] = sum(selectivity * read[one] for one in parents[index])
            else:
                read[index] = input_bytes * stages[index].tasks / root_tasks
        left.difference_update(ready)
    return tuple(
        Edge(parent, child, round(selectivity * read.get(parent, 0.0))) for parent, child in pairs
    )
