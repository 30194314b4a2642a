"""What can make a link on this machine, found by trying.

There are two back-ends. The kernel's (``testbed.links.kernel``) shapes with HTB and leaves what
else happens to packets to netem (``tc-netem(8)``). The one in user space
(``testbed.links.userspace``) carries the packets itself and needs neither, but TAP interfaces.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from testbed.links.htb import qdisc_problem
from testbed.links.netem import netem_options
from testbed.links.queues import qdisc_kind, qdisc_options
from testbed.links.spec import DirectionSpec, GilbertElliott, LinkSpec
from testbed.links.tap import TUN_REMEDY, tap_problem

BACKENDS = ("auto", "kernel", "userspace")
MODULE_REMEDY = (
    "use a kernel with the module sch_{kind} (Debian: a stock or cloud kernel; Ubuntu: "
    "linux-modules-extra-$(uname -r))"
)
NETEM_REMEDY = MODULE_REMEDY.format(kind="netem") + ", or set delay_ms and loss to 0"
OPPORTUNITIES_REMEDY = 'set replay to "rate"'
QUEUE_BYTES_REMEDY = "give the queue a limit in packets alone"


class LinkUnsupported(ValueError):
    """This machine cannot make such a link; says what is missing and what to do instead."""


@dataclass(frozen=True, slots=True)
class Backend:
    """What makes the link.

    Attributes:
        name: ``kernel`` or ``userspace``.
        why: why this one, in words.
    """

    name: str
    why: str


def choose_backend(link: LinkSpec, *, controller_delay_ms: float = 0.0) -> Backend:
    """Finds what can make the link, by trying it in this network namespace; touches only ``lo``.

    Left to choose, the kernel makes what it can do exactly, and the user-space link what is
    random: its draws are the same ones again with the same seed, those of netem never are.

    Raises:
        LinkUnsupported: a back-end that there is not, or that cannot do what is asked here.
    """
    if link.backend not in BACKENDS:
        raise LinkUnsupported(
            f"there is no link back-end {link.backend!r}; there are {', '.join(BACKENDS)}"
        )
    if link.backend == "userspace":
        if problem := tap_problem():
            raise LinkUnsupported(f"the user-space link needs TUN/TAP: {problem}; {TUN_REMEDY}")
        return Backend("userspace", "asked for")
    problems = "; ".join(_kernel_problems(link, controller_delay_ms))
    if link.backend == "kernel":
        if problems:
            raise LinkUnsupported(f"{problems}; or use the link back-end userspace")
        return Backend("kernel", "asked for")
    if not problems and not is_random(link):
        return Backend("kernel", "the kernel can do all that is asked")
    if tun_problem := tap_problem():
        if not problems:
            return Backend(
                "kernel",
                "the kernel can do all that is asked, with draws that cannot be repeated; "
                f"for such as can, {TUN_REMEDY} ({tun_problem})",
            )
        raise LinkUnsupported(
            f"{problems}; or, for the user-space link, {TUN_REMEDY} ({tun_problem})"
        )
    if problems:
        return Backend("userspace", f"the kernel cannot do all that is asked: {problems}")
    return Backend("userspace", "what is drawn at random can be repeated with the seed")


def is_random(link: LinkSpec) -> bool:
    """Whether anything is drawn."""
    return any(spec.is_random for _, spec in link.directions) or any(
        change.loss for change in link.changes
    )


def _kernel_problems(link: LinkSpec, controller_delay_ms: float) -> Iterator[str]:
    """What the kernel cannot do of what is asked, each with the remedy."""
    if problem := qdisc_problem("htb"):
        yield f"the kernel has no HTB (module sch_htb): {problem}"
    for direction, spec in link.directions:
        if spec.trace is not None:
            yield from _bottleneck_problems(spec, "up " if direction == "up" else "")
    wanted = _wanted_of_netem(link, controller_delay_ms)
    if wanted and (problem := qdisc_problem("netem", "delay", "1ms")):
        yield f"{', '.join(wanted)} needs netem: {problem}; {NETEM_REMEDY}"
    elif wanted:
        yield from _netem_problems(link)


def _bottleneck_problems(spec: DirectionSpec, prefix: str) -> Iterator[str]:
    queue = spec.queue
    if spec.replay == "opportunities":
        yield (
            f"{prefix}replay = opportunities is more than the kernel has, which sends at a rate: "
            f"{OPPORTUNITIES_REMEDY}"
        )
    if queue.kind != "droptail" and queue.size_bytes is not None:
        yield (
            f"{prefix}queue_bytes = {queue.size_bytes} is not to be had in the kernel's "
            f"{queue.kind}: {QUEUE_BYTES_REMEDY}"
        )
    kind = qdisc_kind(queue)
    if problem := qdisc_problem(kind, *qdisc_options(queue)):
        yield f"{prefix}queue = {queue.kind} needs {kind}: {problem}; " + MODULE_REMEDY.format(
            kind=kind
        )


def _netem_problems(link: LinkSpec) -> Iterator[str]:
    """Tries what netem may lack in a part: a table of its tool, a model of loss."""
    for _, spec in link.directions:
        options = netem_options(spec)
        if options and (problem := qdisc_problem("netem", *options)):
            yield f"netem does not take {' '.join(options)}: {problem}; update iproute2"


def _wanted_of_netem(link: LinkSpec, controller_delay_ms: float) -> list[str]:
    """What is asked that needs netem, as it is written in an experiment."""
    wanted: dict[str, object] = {}
    for direction, spec in link.directions:
        prefix = "up " if direction == "up" else ""
        loss = "bursts" if isinstance(spec.loss, GilbertElliott) else spec.loss
        wanted |= {
            f"{prefix}delay_ms": spec.delay_ms,
            f"{prefix}jitter_ms": spec.jitter_ms,
            f"{prefix}loss": loss,
            f"{prefix}duplicate": spec.duplicate,
        }
    for change in link.changes:
        for name in ("delay_ms", "loss"):
            wanted[f"{name} at {change.at_s:g} s"] = getattr(change, name)
    wanted["controller delay_ms"] = controller_delay_ms
    return [f"{name} = {value}" for name, value in wanted.items() if value]
