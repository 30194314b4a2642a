"""``testbed serve``: the controller service as a program of its own."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request

import pytest

from testbed.serving import UsageError, parse_arm

OBSERVATION = {
    "levels_kbps": [300, 750],
    "chunk_s": 4.0,
    "chunk_index": 0,
    "chunks_left": 1,
    "buffer_s": 30.0,
    "upcoming_sizes_bytes": [[100, 200]],
    "history": [],
}


def test_arms_are_names_with_options() -> None:
    assert parse_arm("bba") == ("bba", {})
    assert parse_arm("bba=reservoir_s=3,cushion_s=8.5") == (
        "bba",
        {"reservoir_s": 3, "cushion_s": 8.5},
    )
    assert parse_arm("netllm=checkpoint=some/folder") == ("netllm", {"checkpoint": "some/folder"})
    with pytest.raises(UsageError, match="key=value"):
        parse_arm("bba=reservoir")


def serve(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-u", "-m", "testbed.cli", "serve", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_it_answers_until_it_is_stopped() -> None:
    with serve("--arm", "bba", "--arm", "fixed=level=1", "--port", "0") as service:
        try:
            assert service.stdout is not None
            url = service.stdout.readline().split()[-1]
            for arm in ("bba", "fixed"):
                request = urllib.request.Request(
                    f"{url}/v1/abr/{arm}/decide", json.dumps(OBSERVATION).encode()
                )
                with urllib.request.urlopen(request, timeout=10) as answer:
                    assert json.load(answer)["decision"] == 1
            with urllib.request.urlopen(f"{url}/v1", timeout=10) as answer:
                assert {arm["arm"] for arm in json.load(answer)["arms"]} == {"bba", "fixed"}
            with pytest.raises(urllib.error.HTTPError, match="404"):
                urllib.request.urlopen(f"{url}/v1/abr/bola/decide", b"{}", timeout=10)
            service.send_signal(signal.SIGTERM)
            assert service.wait(timeout=10) == 0
        finally:
            service.kill()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--arm", "nobody"), "there are bba"),
        (("--arm", "bba=reservoir"), "key=value"),
        (("--arm", "bba", "--arm", "bba"), "twice"),
        (("--arm", "bba=depth=3"), "no option 'depth'"),
        (("--arm", "netllm=checkpoint=/nowhere"), "/nowhere"),
    ],
)
def test_wrong_arms_are_told(arguments: tuple[str, ...], message: str) -> None:
    with serve(*arguments, "--port", "0") as service:
        _, errors = service.communicate(timeout=60)
    assert service.returncode == 2
    assert message in errors
    assert "Traceback" not in errors


def test_a_port_in_use_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with serve("--arm", "bba", "--port", str(port)) as service:
            _, errors = service.communicate(timeout=60)
    assert service.returncode == 2
    assert f"127.0.0.1:{port}" in errors
