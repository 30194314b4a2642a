"""Result folders that are gone on with: a bottleneck is finished when all of its players are."""

from __future__ import annotations

import json
from pathlib import Path

from player.records import LinkRecord, SessionRecord, Status
from testbed.experiment import Experiment, parse_experiment
from testbed.result_files import ResultFiles

ARMS = [{"controller": "bba"}, {"controller": "rate"}]


def experiment(shared_by: str) -> Experiment:
    network = {"clients": 2, "shared_by": shared_by}
    return parse_experiment({"task": "abr", "arms": ARMS, "network": network}, where="test")


def row(
    group: str, arm: str, client: int, status: Status = "ok", trace: str = "t"
) -> SessionRecord:
    return SessionRecord(
        arm=arm,
        controller=arm,
        trace=trace,
        seed=0,
        driver="emulated",
        status=status,
        error=None,
        qoe_per_chunk=1.0,
        startup_s=1.0,
        wall_s=1.0,
        start_index=1,
        link=LinkRecord(backend="kernel"),
        chunks=(),
        client=client,
        group=group,
    )


def lines(path: Path) -> list[tuple[str, str]]:
    rows = map(json.loads, path.read_text().splitlines())
    return [(one["arm"], one["trace"]) for one in rows]


def test_a_group_is_played_again_when_one_of_its_players_is_missing(tmp_path: Path) -> None:
    asked = experiment("arm")
    files = ResultFiles.create(tmp_path / "out", asked, resume=False)
    for arm, client, status in (
        *(("bba", 0, "ok"), ("bba", 1, "ok")),
        *(("rate", 0, "ok"), ("rate", 1, "failed")),
    ):
        files.add_session(row(arm, arm, client, status))
    files.add_link_seconds([{"arm": arm, "trace": "t", "second": 0} for arm in ("bba", "rate")])
    files.add_requests(
        [{"arm": arm, "group": arm, "client": 0, "trace": "t"} for arm in ("bba", "rate")]
    )
    again = ResultFiles.create(tmp_path / "out", asked, resume=True)
    assert again.finished() == {("bba", "t")}
    assert lines(tmp_path / "out" / "sessions.jsonl") == [("bba", "t"), ("bba", "t")]
    assert lines(tmp_path / "out" / "link.jsonl") == [("bba", "t")]
    assert lines(tmp_path / "out" / "requests.jsonl") == [("bba", "t")]


def test_all_arms_of_a_shared_bottleneck_are_finished_together(tmp_path: Path) -> None:
    asked = experiment("all")
    files = ResultFiles.create(tmp_path / "out", asked, resume=False)
    players = [("bba", 0), ("bba", 1), ("rate", 2), ("rate", 3)]
    for arm, client in players:
        files.add_session(row("bba+rate", arm, client))
    for arm, client in players[:3]:
        files.add_session(row("bba+rate", arm, client, trace="u"))
    assert files.finished() == {("bba+rate", "t")}
