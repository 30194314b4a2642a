"""One emulated session: a network of its own, a DASH server, its players, and what they measured.

A session is all that happens on one bottleneck: one player, or several that share it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from player import cmcd
from player.records import BackgroundRecord, LinkRecord
from testbed.background_flows import Background
from testbed.emulated_hosts import capture_path, captured, handed_over, look_through, media_server
from testbed.emulated_player import Players, session_id
from testbed.emulated_task import Played, Shared
from testbed.emulated_tasks import EMULATED_TASKS
from testbed.experiment_base import Experiment
from testbed.experiment_sections import HostConfig, LinkConfig
from testbed.host_tcp import HostTcp
from testbed.links.engine import EngineHandle
from testbed.links.measurement import LinkMeasurement
from testbed.links.spec import LinkChange, LinkSpec
from testbed.namespaces import unshare_network
from testbed.sandbox import Send
from testbed.sessions import Session, StreamPlan
from testbed.topology import HOSTS, SessionNetwork

log = logging.getLogger(__name__)

#: A link that stands still is noticed after a few of these.
LINK_CHECK_S = 0.5
SEED_BYTES = 8


@dataclass
class _Outcome:
    """What is known of a session so far."""

    players: tuple[Played, ...]
    link: LinkMeasurement | None = None
    background: tuple[BackgroundRecord, ...] = ()
    requests: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def of(cls, group: Sequence[Session]) -> _Outcome:
        """Nothing yet."""
        return cls(tuple(map(Played, group)))

    def fail(self, why: str) -> None:
        """All players suffer from it, those that came to their end as well."""
        for played in self.players:
            played.error = why


# ---- what is asked ------------------------------------------------------------------------------


def session_network(
    experiment: Experiment, session: Session, *, engine: EngineHandle | None = None
) -> SessionNetwork:
    """The network that a session asks for; nothing is built yet.

    Args:
        experiment: says what it is like.
        session: any of the players in it.
        engine: carries the packets of user-space links; None: one of its own.
    """
    return SessionNetwork(
        link_spec(experiment, session),
        clients=experiment.players,
        has_background=bool(experiment.background),
        controller_delay_ms=experiment.controller_link.delay_ms,
        switch=experiment.network.switch,
        hosts={name: _host_tcp(experiment, getattr(experiment.hosts, name)) for name in HOSTS},
        engine=engine,
    )


def link_spec(experiment: Experiment, session: Session) -> LinkSpec:
    """The bottleneck of a session; its chances are those of the seed and the unit alone.

    So all arms meet the same losses on a trace, by the number of the packet.
    """
    link, seed = experiment.link, f"{experiment.seed}/{session.unit}"
    return LinkSpec(
        down=link.direction(
            trace=session.trace,
            start_s=session.start_s,
            delay_ms=link.delay_ms,
            seed=f"{seed}/down",
        ),
        up=link.up_direction(
            trace=session.up_trace,
            start_s=0.0 if session.up_trace is None else session.start_s,
            seed=f"{seed}/up",
        ),
        backend=link.backend,
        changes=_changes(link),
    )


def _changes(link: LinkConfig) -> tuple[LinkChange, ...]:
    """In the order of time; a rate for both ways is one for those that have a bottleneck."""
    changes: list[LinkChange] = []
    for change in sorted(link.changes, key=lambda change: change.at_s):
        if change.rate_mbps is None or change.direction is not None or link.has_up_bottleneck:
            changes.append(change)
            continue
        changes.append(dataclasses.replace(change, direction="down"))
        if change.delay_ms is not None or change.loss is not None:
            changes.append(dataclasses.replace(change, direction="up", rate_mbps=None))
    return tuple(changes)


def _host_tcp(experiment: Experiment, host: HostConfig) -> HostTcp:
    link = experiment.link
    marks = link.ecn or (link.up is not None and link.up.ecn)
    return HostTcp(
        congestion=host.congestion or link.congestion,
        settings=({"ecn": 1} if marks else {}) | host.tcp,
    )


# ---- playing ------------------------------------------------------------------------------------


def play_session(
    plan: StreamPlan,
    group: Sequence[Session],
    control: socket.socket,
    send: Send,
    is_up: Callable[[], object],
    *,
    engine: EngineHandle | None = None,
    captures: Path | None = None,
) -> None:
    """Plays one session and sends a record per player; runs in a process of its own.

    Args:
        plan: the experiment.
        group: the players on one bottleneck.
        control: where the controller service takes listening sockets from.
        send: takes messages for the outside.
        is_up: is called once the session's network stands.
        engine: carries the packets of user-space links; None: one of its own.
        captures: folder for the packets, if the experiment asks for them.
    """
    outcome = _Outcome.of(group)
    paths = [] if captures is None else [capture_path(captures, session) for session in group]
    try:
        unshare_network()
        with session_network(plan.experiment, group[0], engine=engine) as network:
            _play(plan, network, outcome, control, send, is_up, paths)
        for played, path in zip(outcome.players, paths, strict=False):
            played.capture = look_through(path)
    except Exception as error:  # whatever went wrong belongs into the records
        log.debug("session %d failed", group[0].number, exc_info=True)
        outcome.fail(f"{type(error).__name__}: {error}")
    for message in _ended(plan, group, outcome):
        send(message)


def death_notices(plan: StreamPlan, group: Sequence[Session], status: int) -> list[dict[str, Any]]:
    """The messages in the place of those of a session whose process died before it could.

    Args:
        plan: the experiment.
        group: the players.
        status: exit status of the process, or minus the signal that killed it.
    """
    how = f"signal {-status}" if status < 0 else f"exit status {status}"
    outcome = _Outcome.of(group)
    outcome.fail(f"the session's process died: {how}")
    return _ended(plan, group, outcome)


def _play(
    plan: StreamPlan,
    network: SessionNetwork,
    outcome: _Outcome,
    control: socket.socket,
    send: Send,
    is_up: Callable[[], object],
    paths: Sequence[Path],
) -> None:
    def tell(session: Session, index: int) -> None:
        send({"session": session.number, "kind": "chunk", "index": index})

    first, task = outcome.players[0].session, EMULATED_TASKS[plan.experiment.task]
    with (
        handed_over(control, str(first.number), network.controller),
        media_server(task.hosted(plan, first), network.server) as outcome.requests,
        _background(plan, network, first) as background,
        captured(network.clients, paths),
    ):
        is_up()
        with Players(plan, network, outcome.players) as players:
            _conduct(plan, network, players, background, tell)
        outcome.background = background.stop()
        if any(played.chunks for played in outcome.players):
            outcome.link = network.stop_replay()


def _conduct(
    plan: StreamPlan,
    network: SessionNetwork,
    players: Players,
    background: Background,
    on_chunk: Callable[[Session, int], None],
) -> None:
    """Has the players begin together, and looks after the network until they have ended."""
    began_s: float | None = None
    ends_s = float("inf")
    check_s = time.monotonic() + LINK_CHECK_S
    while players.are_playing:
        players.listen(min(check_s, ends_s) - time.monotonic(), on_chunk)
        now_s = time.monotonic()
        if now_s >= check_s:
            network.check_alive()
            check_s = now_s + LINK_CHECK_S
        if players.are_ready and began_s is None:
            began_s = network.start_replay()
            background.start(began_s)
            ends_s = began_s + _shortest_s(plan.experiment, players.played[0].session)
            players.begin()
        if now_s >= ends_s:
            players.fail(
                "TraceEnded: the link stopped at the end of its trace while the session still "
                'played (link.at_end = "stop")'
            )
    if any(played.error for played in players.played):
        network.check_alive()  # or the link may be what a player suffered from


def _shortest_s(experiment: Experiment, session: Session) -> float:
    """After how much time the link stops for good: where its trace does, unless it left that."""
    link = link_spec(experiment, session)
    ends = [
        spec.ends_s
        for name, spec in link.directions
        if spec.ends_s is not None
        and not any(
            change.rate_mbps is not None
            and change.direction in (None, name)
            and change.at_s < spec.ends_s
            for change in link.changes
        )
    ]
    return min(ends, default=float("inf"))


def _background(plan: StreamPlan, network: SessionNetwork, session: Session) -> Background:
    """The other traffic; equal on a trace for all arms."""
    experiment = plan.experiment
    near, far = network.background or (network.client, network.server)
    text = f"{experiment.seed}/{session.unit}/background"
    digest = hashlib.sha256(text.encode()).digest()
    return Background(
        experiment.background,
        seed=int.from_bytes(digest[:SEED_BYTES]),
        near=(near.pid, near.address),
        far=(far.pid, far.address),
    )


# ---- what is written down -----------------------------------------------------------------------


def _ended(plan: StreamPlan, group: Sequence[Session], outcome: _Outcome) -> list[dict[str, Any]]:
    """A message per player; what they have in common comes with the first."""
    task = EMULATED_TASKS[plan.experiment.task]
    which = {"arm": group[0].group} | task.labels(group[0])
    shared = Shared(
        outcome.link.record if outcome.link else LinkRecord(backend="none"), outcome.background
    )
    seconds = outcome.link.seconds if outcome.link else ()
    players = {
        cmcd.identifier(session_id(session)): {"arm": session.arm.label, "client": session.client}
        for session in group
    }
    messages: list[dict[str, Any]] = []
    for played in outcome.players:
        is_first = not messages
        messages.append(
            {
                "session": played.session.number,
                "kind": "session",
                "record": dataclasses.asdict(task.record(plan, played, shared)),
                "link_seconds": [
                    which | dataclasses.asdict(second) for second in seconds if is_first
                ],
                "requests": [
                    which
                    | {"group": group[0].group}
                    | players.get(str(request["cmcd"].get("sid")), {})
                    | request
                    for request in outcome.requests
                    if is_first
                ],
            }
        )
    return messages
