"""One contract for every registered controller: valid, deterministic, without memory."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest

from controllers import registry
from player.observation import AbrObservation, PastChunk
from player.trace import Trace

ONLINE = [name for name in registry.names("abr") if not registry.needs_future("abr", name)]


@pytest.fixture(scope="module", params=ONLINE)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def controller(name: str) -> registry.Controller:
    return registry.create("abr", name)


def test_decisions_are_levels_and_repeat(
    controller: registry.Controller,
    observe: Callable[[Trace], list[AbrObservation]],
    varied_trace: Trace,
) -> None:
    for observation in observe(varied_trace):
        level = controller.decide(observation)
        assert type(level) is int
        assert 0 <= level < observation.levels
        assert controller.decide(observation) == level


def test_interleaved_sessions_answer_as_separate_instances_do(
    name: str,
    controller: registry.Controller,
    observe: Callable[[Trace], list[AbrObservation]],
    varied_trace: Trace,
) -> None:
    here = observe(varied_trace)
    there = observe(Trace("other", varied_trace.times_s, varied_trace.rates_mbps[::-1].copy()))
    mixed = [
        (controller.decide(one), controller.decide(two))
        for one, two in zip(here, there, strict=True)
    ]
    alone, apart = registry.create("abr", name), registry.create("abr", name)
    assert [one for one, _ in mixed] == [alone.decide(observation) for observation in here]
    assert [two for _, two in mixed] == [apart.decide(observation) for observation in there]


def test_the_extremes_of_a_session_are_answered(controller: registry.Controller) -> None:
    ladder = (300.0, 750.0, 1200.0, 1850.0, 2850.0, 4300.0)
    sizes = tuple(int(rate * 500) for rate in ladder)
    first = AbrObservation(ladder, 4.0, 0, 48, 0.0, (sizes,) * 8, ())
    crawl = PastChunk(0, sizes[0], 1e5, 1e5, 4.0)
    rush = PastChunk(5, sizes[5], 1e-6, 0.0, 60.0)
    last = AbrObservation(ladder, 4.0, 1, 1, 60.0, (sizes,), (crawl,))
    both = AbrObservation(ladder, 4.0, 2, 1, 0.0, (sizes,), (crawl, rush))
    for observation in (first, last, both):
        assert 0 <= controller.decide(observation) < 6


def test_asking_for_bba_never_loads_torch() -> None:
    code = (
        "import sys; from controllers import registry; registry.create('abr', 'bba'); "
        "registry.needs_future('abr', 'netllm'); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
