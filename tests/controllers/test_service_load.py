"""The controller service when it is late: deadlines, overload, askers that hang up, batches."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from running_service import PAST, QUESTION, Ask, Scripted, with_service

from controllers.service import ServiceLimits
from player.observation import AbrObservation


@dataclass
class Batching:
    """Notes the sizes of its batches; the first one waits for ``go``."""

    go: threading.Event = field(default_factory=threading.Event)
    batches: list[int] = field(default_factory=list)
    poisoned_index: int = -1

    def decide(self, observation: AbrObservation) -> int:
        return self.decide_many([observation])[0]

    def decide_many(self, observations: Sequence[AbrObservation]) -> list[int]:
        self.go.wait(5)
        self.batches.append(len(observations))
        if any(seen.chunk_index == self.poisoned_index for seen in observations):
            raise ArithmeticError("poison")
        return [seen.chunk_index for seen in observations]


def question(index: int) -> dict[str, Any]:
    return QUESTION | {"chunk_index": index, "history": [PAST] * index}


def test_deadline_is_kept_and_other_arms_are_not_held_up() -> None:
    release = threading.Event()
    slow = Scripted(lambda _: release.wait(10) and 1)

    async def test(ask: Ask) -> None:
        began = time.monotonic()
        late = asyncio.create_task(ask("/v1/abr/slow/decide", **{"X-Deadline-Ms": "300"}))
        await asyncio.sleep(0.05)
        assert (await ask())[0] == 200
        assert not late.done()
        status, document = await late
        assert (status, document["error"]["type"]) == (503, "deadline")
        assert time.monotonic() - began < 5
        release.set()
        assert (await ask("/v1/abr/slow/decide"))[1]["decision"] == 1

    with_service(test, slow=slow)


def test_overload_is_refused_at_once() -> None:
    release = threading.Event()
    slow = Scripted(lambda _: release.wait(10) and 1)

    async def test(ask: Ask) -> None:
        waiting = [asyncio.create_task(ask("/v1/abr/slow/decide")) for _ in range(3)]
        await asyncio.sleep(0.2)
        status, document = await ask("/v1/abr/slow/decide")
        assert (status, document["error"]["type"]) == (503, "overload")
        assert (await ask())[0] == 200  # another arm is not held up
        release.set()
        assert [status for status, _ in await asyncio.gather(*waiting)] == [200, 200, 200]
        assert (await ask())[0] == 200

    with_service(test, slow=slow, limits=ServiceLimits(waiting=3))


def test_hung_arm_refuses_at_once_when_its_queue_is_full() -> None:
    release = threading.Event()
    hung = Scripted(lambda _: release.wait(20) and 1)

    async def test(ask: Ask) -> None:
        kinds = []
        for _ in range(6):
            _, document = await ask("/v1/abr/hung/decide", **{"X-Deadline-Ms": "20"})
            kinds.append(document["error"]["type"])
        assert kinds == ["deadline"] * 4 + ["overload"] * 2
        assert (await ask())[0] == 200
        release.set()

    with_service(test, hung=hung, limits=ServiceLimits(waiting=3))


def test_questions_whose_asker_is_gone_never_reach_the_controller() -> None:
    release = threading.Event()
    seen: list[int] = []

    def decide(observation: AbrObservation) -> int:
        seen.append(observation.chunk_index)
        release.wait(10)
        return 1

    async def test(ask: Ask) -> str:
        waiting = [
            asyncio.create_task(ask("/v1/abr/slow/decide", question(index))) for index in range(4)
        ]
        for in_flight in (4, 1):
            line = f"testbed_in_flight {in_flight}\n"
            while line not in (await ask("/metrics", method="GET"))[1]:
                await asyncio.sleep(0.01)
            for one in waiting[1:]:  # the first keeps the controller busy
                one.cancel()
        release.set()
        assert (await waiting[0])[0] == 200
        assert (await ask("/v1/abr/slow/decide", question(9)))[0] == 200
        return str((await ask("/metrics", method="GET"))[1])

    text = with_service(test, slow=Scripted(decide))
    assert seen == [0, 9]
    assert 'testbed_requests_total{task="abr",arm="slow",outcome="aborted"} 3' in text


def test_what_waits_is_answered_in_one_call() -> None:
    batching = Batching()

    async def test(ask: Ask) -> list[int]:
        tasks = [
            asyncio.create_task(ask("/v1/abr/many/decide", question(index))) for index in range(20)
        ]
        await asyncio.sleep(0.3)
        batching.go.set()
        return [document["decision"] for _, document in await asyncio.gather(*tasks)]

    assert with_service(test, many=batching) == list(range(20))
    assert sum(batching.batches) == 20
    assert len(batching.batches) <= 3


def test_one_poisoned_question_does_not_spoil_the_batch() -> None:
    batching = Batching(poisoned_index=7)

    async def test(ask: Ask) -> list[int]:
        tasks = [
            asyncio.create_task(ask("/v1/abr/many/decide", question(index))) for index in range(12)
        ]
        await asyncio.sleep(0.3)
        batching.go.set()
        return [status for status, _ in await asyncio.gather(*tasks)]

    assert with_service(test, many=batching) == [200] * 7 + [500] + [200] * 4


def test_a_hung_controller_does_not_keep_it_from_ending() -> None:
    release = threading.Event()
    began = time.monotonic()
    hung = Scripted(lambda _: release.wait(60) and 1)
    status, _ = with_service(
        lambda ask: ask("/v1/abr/hung/decide", **{"X-Deadline-Ms": "50"}), hung=hung
    )
    release.set()
    assert status == 503
    assert time.monotonic() - began < 20
