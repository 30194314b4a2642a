"""What can make a link on this machine, found by trying.

There are two back-ends. The kernel's shapes the output of one interface with HTB
(``testbed.links.htb``) and leaves one-way delay and loss to netem (``tc-netem(8)``) on other
interfaces, before the bottleneck for what comes down and behind the client for what goes up, so
that neither touches the bottleneck's queue. The one in user space (``testbed.links.userspace``)
carries the packets itself and needs neither.
"""

from __future__ import annotations

from dataclasses import dataclass

from testbed.links.htb import qdisc_problem
from testbed.links.spec import LinkSpec
from testbed.links.tap import TUN_REMEDY, tap_problem

BACKENDS = ("auto", "kernel", "userspace")
NETEM_QUEUE_PACKETS = 100_000  # netem must hold delay × rate and never drop
NETEM_REMEDY = (
    "use a kernel with the module sch_netem (Debian: a stock or cloud kernel; Ubuntu: "
    "linux-modules-extra-$(uname -r)), or set delay_ms and loss to 0"
)


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
    problem = _kernel_problem(link, controller_delay_ms)
    if link.backend == "kernel":
        if problem is not None:
            raise LinkUnsupported(f"{problem}; or use the link back-end userspace")
        return Backend("kernel", "asked for")
    if problem is None:
        return Backend("kernel", "the kernel can do all that is asked")
    if tun_problem := tap_problem():
        raise LinkUnsupported(
            f"{problem}; or, for the user-space link, {TUN_REMEDY} ({tun_problem})"
        )
    return Backend("userspace", f"the kernel cannot do all that is asked: {problem}")


def _kernel_problem(link: LinkSpec, controller_delay_ms: float) -> str | None:
    """Why the kernel cannot make the link, with the remedy."""
    if problem := qdisc_problem("htb"):
        return f"the kernel has no HTB (module sch_htb): {problem}"
    asked = {
        "delay_ms": link.down.delay_ms,
        "loss": link.down.loss,
        "controller delay_ms": controller_delay_ms,
    }
    if any(asked.values()) and (problem := qdisc_problem("netem", "delay", "1ms")):
        wanted = ", ".join(f"{name} = {value}" for name, value in asked.items() if value)
        return f"{wanted} needs netem: {problem}; {NETEM_REMEDY}"
    return None


def netem_options(delay_ms: float, loss: float = 0.0) -> tuple[str, ...]:
    """Arguments for ``tc qdisc add … netem``; empty if nothing is asked."""
    if not (delay_ms or loss):
        return ()
    options = ["limit", str(NETEM_QUEUE_PACKETS)]
    if delay_ms:
        options += ["delay", f"{delay_ms:.3f}ms"]
    if loss:
        options += ["loss", f"{loss * 100:.6f}%"]
    return tuple(options)
