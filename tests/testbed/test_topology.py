from __future__ import annotations

import logging
import socket

import emulation_entries as entries
import pytest
from mininet.log import info, warn

from testbed import topology
from testbed.links.spec import DirectionSpec, LinkSpec
from testbed.topology import NetworkHost, SessionNetwork, TopologyError, silence_mininet

JOB = {"times_s": [0, 1], "rates_mbps": [5, 5]}


@pytest.mark.emulation
@pytest.mark.parametrize("congestion", ["cubic", "reno"])
def test_the_client_reaches_both_hosts_and_nothing_is_left(congestion: str) -> None:
    entries.require(network=True)
    up, after = entries.collect("inspect", {**JOB, "network": {"congestion": congestion}})
    assert up["reached"] == {"server": "server", "controller": "controller"}
    assert up["backend"] == "kernel"
    for address in up["addresses"]:
        socket.inet_aton(address)
    assert len(set(up["addresses"])) == 3
    assert after["interfaces"] == ["lo"]
    assert after["processes"] == 0


@pytest.mark.emulation
def test_open_vswitch_carries_a_session_or_says_what_it_lacks() -> None:
    entries.require(network=True)
    job = {"times_s": [0, 1, 2], "rates_mbps": [1, 1, 2], "network": {"switch": "ovs"}}
    (first,) = entries.collect("support", {"jobs": [job]})
    if first["error"] is not None:
        assert first["type"] == "SwitchUnsupported"
        assert "linuxbridge" in first["error"]
        assert first["interfaces"] == ["lo"]
        pytest.skip(first["error"])
    (seen,) = entries.collect("replay", {**job, "seconds": 5})
    assert seen["record"]["wire_nmae_1s"] <= 0.02


@pytest.mark.emulation
@pytest.mark.parametrize("backend", ["kernel", "userspace"])
def test_players_and_background_share_the_bottleneck(backend: str) -> None:
    entries.require(network=True)
    job = {
        **JOB,
        "seconds": 4,
        "link": {"backend": backend},
        "network": {"clients": 2, "has_background": True},
        "hosts": {
            "server": {"settings": {"rmem": "4096  131072 1048576"}},
            "background": {"congestion": "reno"},
        },
    }
    (seen,) = entries.collect("share", job)
    assert len(seen["received_bytes"]) == 3
    assert all(seen["received_bytes"])
    assert sum(seen["received_bytes"]) <= 5e6 / 8 * 4.5  # one bottleneck, not one for each
    assert seen["record"]["backend"] == backend
    assert seen["record"]["wire_nmae_1s"] <= 0.02
    assert seen["rmem"]["server"] == ["4096", "131072", "1048576"]
    assert seen["rmem"]["client"] != seen["rmem"]["server"]
    assert seen["controllers_reached"] == [True, True]


@pytest.mark.emulation
def test_a_network_can_be_built_again_in_the_same_place() -> None:
    entries.require(network=True)
    assert entries.collect("build_twice", JOB) == [{"built": 0}, {"built": 1}]


@pytest.mark.emulation
def test_a_network_that_fails_half_way_is_taken_down() -> None:
    entries.require(network=True)
    (seen,) = entries.collect("fail_half_way", JOB)
    assert seen == {"interfaces": ["lo"], "error": "in the middle"}


@pytest.mark.emulation
def test_what_there_is_not_is_refused_with_the_alternatives() -> None:
    entries.require(network=True)
    asked = [
        {"network": {"congestion": "magic"}},
        {"network": {"switch": "magic"}},
        {"hosts": {"client": {"settings": {"magic": 1}}}},
        {"hosts": {"client": {"settings": {"rmem": "magic"}}}},
    ]
    seen = entries.collect("support", {"jobs": [{**JOB, **more} for more in asked]})
    alternatives = ("cubic", "linuxbridge", "slow_start_after_idle", "hosts.client.tcp.rmem")
    for answer, alternative in zip(seen, alternatives, strict=True):
        assert "magic" in answer["error"]
        assert alternative in answer["error"]
        assert answer["interfaces"] == ["lo"]


@pytest.mark.emulation
def test_a_dead_shell_does_not_hang_the_end() -> None:
    entries.require(network=True)
    (seen,) = entries.collect("kill_shell", JOB)
    assert seen["interfaces"] == ["lo"]


def test_mininet_speaks_through_logging(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    silence_mininet()
    with caplog.at_level(logging.DEBUG, logger="testbed.topology"):
        info("*** Adding hosts\n")
        warn("careful\n")
    assert "careful" in caplog.text
    assert capsys.readouterr().err == ""


def test_a_connection_that_one_end_alone_has_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def half_open(*_: object) -> socket.socket:
        return socket.socket()

    def listening(*_: object) -> socket.socket:
        return socket.create_server(("127.0.0.1", 0))

    monkeypatch.setattr(topology, "CONNECT_TIMEOUT_S", 0.05)
    monkeypatch.setattr(topology, "in_network_of", half_open)
    monkeypatch.setattr(topology, "socket_in", listening)
    network = SessionNetwork(LinkSpec(down=DirectionSpec()))
    near, far = NetworkHost(1, "10.0.0.2"), NetworkHost(1, "10.0.0.1")
    with pytest.raises(TopologyError, match=r"10\.0\.0\.2 got no connection to 10\.0\.0\.1"):
        network._verify_way(near, "client", far, "server")
