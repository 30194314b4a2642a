"""What a task adds to an emulated session; network, links, captures and so on are equal for all."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from player.media_http import Limits
from player.records import BackgroundRecord, CaptureRecord, LinkRecord
from player.server import Hosted
from testbed.experiment_base import Experiment
from testbed.session_records import Record
from testbed.sessions import Session, StreamPlan


@dataclass(frozen=True, kw_only=True)
class Seat:
    """What a player's process plays with.

    Attributes:
        manifest_url: on the session's media server.
        session_id: what the player tells that server that it is (CMCD's ``sid``).
        ask: asks the controller of the session's arm.
        controller_url: where that one takes observations, for players that ask by themselves.
        decision_timeout_s: longest wait for its answer; ``ask`` has it already.
        fallback: decides when that does not answer; None ends the session then.
        limits: longest waits.
        live_start_s: when the live event begins that all behind the bottleneck join together (Unix
            seconds); None: the video is all there.
        before_start: is awaited right before the session's clock starts.
        on_chunk: is told the record of every chunk.
        on_figures: is told what else the task's record needs, as JSON values.
    """

    manifest_url: str
    session_id: str
    ask: Callable[[Any], Awaitable[Any]]
    controller_url: str
    decision_timeout_s: float
    fallback: Callable[[Any], Any] | None
    limits: Limits
    live_start_s: float | None
    before_start: Callable[[], Awaitable[None]]
    on_chunk: Callable[[Any], None]
    on_figures: Callable[[Mapping[str, Any]], None]


@dataclass
class Played:
    """What is known of one player so far; a failure leaves it as it was reached.

    Attributes:
        session: that it plays.
        chunks: records of its chunks.
        wall_s: how long it took, once it has ended.
        figures: what else it told, by the task's own names.
        error: why it failed.
        capture: what its packets say.
    """

    session: Session
    chunks: list[Any] = field(default_factory=list)
    wall_s: float = 0.0
    figures: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None
    capture: CaptureRecord | None = None


class Shared(NamedTuple):
    """What the players behind one bottleneck have in common."""

    link: LinkRecord
    background: tuple[BackgroundRecord, ...]


class EmulatedTask(Protocol):
    """The differences, one implementation per task."""

    def prepare(self, plan: Any) -> None:
        """Makes, outside the sandbox, what takes long and is kept on disk.

        Raises:
            ContentError: it cannot be made.
        """
        ...

    def encode(self, plan: Any, sessions: Sequence[Any]) -> dict[str, Any]:
        """What the plan holds besides experiment, traces and sessions, as JSON values."""
        ...

    def encode_session(self, session: Any) -> dict[str, Any]:
        """What a session holds besides the attributes of :class:`Session`, as JSON values."""
        ...

    def decode(
        self,
        experiment: Experiment,
        sessions: Sequence[tuple[Session, Mapping[str, Any]]],
        content: Mapping[str, Any],
    ) -> StreamPlan:
        """Inverse of the other two; each session comes with what :meth:`encode_session` made."""
        ...

    def labels(self, session: Any) -> dict[str, str]:
        """What rows of ``link.jsonl`` and ``requests.jsonl`` say they are of."""
        ...

    def hosted(self, plan: Any, session: Any) -> Hosted:
        """What the media server of a session offers."""
        ...

    def live_start_s(self, plan: Any, sessions: Sequence[Any], now_s: float) -> float | None:
        """When the live event of those behind a bottleneck begins, so that all can join in time.

        Args:
            plan: the experiment.
            sessions: the players behind the bottleneck.
            now_s: Unix seconds, before their set-up.

        Returns:
            Unix seconds; None: nothing is live.
        """
        ...

    async def play(self, plan: Any, session: Any, seat: Seat) -> float:
        """Plays a session in real time, in the player's own process; returns its length, seconds.

        Raises:
            Exception: whatever ends it belongs into its record.
        """
        ...

    def chunk(self, document: Mapping[str, Any]) -> Any:
        """The record of a chunk, of its attributes as JSON values."""
        ...

    def record(self, plan: Any, played: Played, shared: Shared) -> Record:
        """What is written down about a player."""
        ...
