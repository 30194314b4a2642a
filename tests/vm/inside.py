"""Plays one small experiment over both link back-ends and compares what the links did.

For a machine whose kernel has netem, such as the one of the Vagrantfile, as root or not:

    .venv/bin/python tests/vm/inside.py

Prints a table of figures and exits with 1 when one of them is off. The bars are wide enough for a
machine under software emulation, where timers are late and decisions take ten times longer.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from socket import AF_INET, SOCK_DGRAM, create_connection, socket
from typing import Any

from testbed.emulated_session import session_network
from testbed.emulation import decode_plan, encode_plan
from testbed.experiment import plan_experiment, read_experiment
from testbed.namespaces import in_network_of, socket_in
from testbed.sandbox import SandboxError, Send, run_in_sandbox
from testbed.topology import NetworkHost, SessionNetwork

BACKENDS = ("kernel", "userspace")
CHECKS = ("sandbox", "htb", "netem", "tun", "kernel link", "user-space link", "network")
ARMS = ("bba", "robustmpc")
DELAY_MS = 20.0  # one way, as link.delay_ms
CONTROLLER_DELAY_MS = 10.0
TRACES = {  # s, Mbit/s; on these, unlike on larger steps, a few ms do not change much of the QoE
    "steady": ((0, 1.5), (600, 1.5)),
    "steps": ((0, 3.0), (2, 3.0), (2.001, 1.5), (4, 1.5)),
}
EXPERIMENT = f"""
task = "abr"
driver = "emulated"
traces = "traces"
chunks = 10
[link]
delay_ms = {DELAY_MS}
[controller_link]
delay_ms = {CONTROLLER_DELAY_MS}
[player]
decision_timeout_s = 30.0
[simulation]
decision_s = 0.0
""" + "".join(f'[[arms]]\ncontroller = "{arm}"\n' for arm in ARMS)

LOSS = 0.1
DATAGRAMS = 1000
DATAGRAM_BYTES = 100
DATAGRAM_GAP_S = 0.002  # a tenth of the slowest trace's rate: no queue
CONNECTS = 25
WAIT_S = 1.0  # for the last datagram
COMMAND_TIMEOUT_S = 1200.0

MAX_NMAE = 0.1
MAX_RTT_EXCESS_MS = 25.0
MAX_QOE_DIFFERENCE = 0.4  # from the simulator; 0.3 is what 15 ms more delay make there
MAX_LOSS_DEVIATION = 5 * math.sqrt(LOSS * (1 - LOSS) / DATAGRAMS)  # five standard errors


@dataclass(frozen=True, slots=True)
class Row:
    """One figure of both back-ends.

    Attributes:
        name: what was measured.
        asked: what it should be.
        measured: by back-end; None where there was nothing to measure.
        low: a smaller one is off.
        high: a larger one is off.
        digits: behind the point.
    """

    name: str
    asked: str
    measured: Mapping[str, float | None]
    low: float
    high: float
    digits: int

    @property
    def is_good(self) -> bool:
        """Whether both are there and within the bounds."""
        values = self.measured.values()
        return all(value is not None and self.low <= value <= self.high for value in values)

    def __str__(self) -> str:
        cells = (
            "–" if value is None else f"{value:.{self.digits}f}" for value in self.measured.values()
        )
        bounds = f"{self.low:.{self.digits}f} … {self.high:.{self.digits}f}"
        verdict = "ok" if self.is_good else "OFF"
        return _line(self.name, self.asked, *cells, bounds, verdict)


def main() -> int:
    """Returns the exit code."""
    print(" ".join(_kernel_and_user()), flush=True)
    problems = list(_doctor_problems())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write_experiment(folder)
        simulated = _run(folder, "simulated", "--driver", "simulated")
        if simulated.problems:
            raise SystemExit(f"simulation: {'; '.join(simulated.problems)}")
        runs = {
            backend: _run(folder, backend, "--jobs", "1", "--set", f"link.backend={backend}")
            for backend in BACKENDS
        }
        problems += [f"{run.name}: {problem}" for run in runs.values() for problem in run.problems]
        probes = {backend: _probe(folder, backend) for backend in BACKENDS}
    rows = [*_qoe_rows(runs, simulated), *_link_rows(runs, probes)]
    print(_line("figure", "asked", *BACKENDS, "bounds", ""))
    for row in rows:
        print(row)
    problems += [f"{row.name} is off" for row in rows if not row.is_good]
    for problem in problems:
        print(f"problem: {problem}")
    return int(bool(problems))


def _line(*cells: str) -> str:
    return "".join(
        f"{cell:{width}}" for cell, width in zip(cells, (26, 12, 11, 11, 16, 3), strict=True)
    ).rstrip()


def _kernel_and_user() -> Iterator[str]:
    for command in (("uname", "-r"), ("nproc",), ("id", "-un")):
        yield subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


# ---- outside of the sandbox ---------------------------------------------------------------------


def _testbed(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs the command line; what it says on stderr is shown."""
    began_s = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "testbed.cli", *arguments],
        stdout=subprocess.PIPE,
        text=True,
        timeout=COMMAND_TIMEOUT_S,
        check=False,
    )
    took_s = time.monotonic() - began_s
    print(f"testbed {arguments[0]}: exit code {done.returncode} after {took_s:.0f} s", flush=True)
    return done


def _doctor_problems() -> Iterator[str]:
    done = _testbed("doctor", "--json")
    if not done.stdout:
        raise SystemExit("the doctor died")
    found = json.loads(done.stdout)
    if done.returncode:
        yield f"doctor: exit code {done.returncode}"
    for name, check in found["checks"].items():
        print(f"  {'+' if check['ok'] else '-'} {name}: {check['detail']}", flush=True)
        if name in CHECKS and not check["ok"]:
            yield f"doctor: {name}: {check['detail']}"
    print(f"  back-ends: {json.dumps(found['backends'])}", flush=True)


def _write_experiment(folder: Path) -> None:
    (folder / "traces").mkdir()
    for name, points in TRACES.items():
        text = "".join(f"{time_s} {rate_mbps}\n" for time_s, rate_mbps in points)
        (folder / "traces" / name).write_text(text)
    (folder / "experiment.toml").write_text(EXPERIMENT)


@dataclass(frozen=True, slots=True)
class Run:
    """What a run left behind.

    Attributes:
        name: of the run.
        qoe: per chunk, mean of the sessions of each arm.
        nmae: the worst wire NMAE of all sessions.
        problems: what went wrong, in words.
    """

    name: str
    qoe: Mapping[str, float | None]
    nmae: float | None
    problems: Sequence[str]


def _run(folder: Path, name: str, *options: str) -> Run:
    out = folder / name
    done = _testbed("run", str(folder / "experiment.toml"), "--out", str(out), "--json", *options)
    if not (out / "summary.json").exists():
        return Run(name, {}, None, [f"exit code {done.returncode}"])
    lines = (out / "sessions.jsonl").read_text().splitlines()
    sessions = [json.loads(line) for line in lines]
    problems = [
        f"{session['arm']} on {session['trace']}: {session['error']}"
        for session in sessions
        if session["status"] != "ok"
    ]
    if any(chunk["fallback"] for session in sessions for chunk in session["chunks"]):
        problems.append("the fallback decided")
    wrong = {session["link"]["backend"] for session in sessions} - {name}
    if name in BACKENDS and wrong:
        problems.append(f"the link was made by {', '.join(wrong)}")
    summary = json.loads((out / "summary.json").read_text())
    return Run(
        name,
        {arm["arm"]: arm["qoe_per_chunk"]["mean"] for arm in summary["arms"]},
        summary["link"]["wire_nmae_1s"]["max"],
        problems,
    )


def _probe(folder: Path, backend: str) -> Mapping[str, float]:
    """Round trips and loss on the network of the experiment's first session."""
    experiment = read_experiment(folder / "experiment.toml", overrides=[f"link.backend={backend}"])
    lossy = dataclasses.replace(experiment, link=dataclasses.replace(experiment.link, loss=LOSS))
    figures: dict[str, float] = {}
    for entry, asked in (("probe_round_trips", experiment), ("probe_loss", lossy)):
        plan = plan_experiment(asked, data_dir=None, base=folder)
        job = encode_plan(plan, plan.sessions[:1], jobs=1)
        try:
            run_in_sandbox(f"inside:{entry}", job, on_message=figures.update)
        except SandboxError as error:
            print(f"{entry} over the link back-end {backend}: {error}", flush=True)
    return figures


# ---- inside of the sandbox ----------------------------------------------------------------------


def probe_round_trips(job: dict[str, Any], send: Send) -> None:
    """Entry of the sandbox: times of the TCP handshake, which is one round trip."""
    with _network(job) as network:
        network.start_replay()
        send({"media": _round_trip_ms(network, network.server)})
        send({"controller": _round_trip_ms(network, network.controller)})


def probe_loss(job: dict[str, Any], send: Send) -> None:
    """Entry of the sandbox: the share of datagrams that do not come down."""
    with _network(job) as network:
        network.start_replay()
        with (
            in_network_of(network.client.pid, socket, AF_INET, SOCK_DGRAM) as receiver,
            in_network_of(network.server.pid, socket, AF_INET, SOCK_DGRAM) as sender,
        ):
            receiver.bind((network.client.address, 0))
            receiver.setblocking(False)
            sender.connect(receiver.getsockname())
            received = 0
            for _ in range(DATAGRAMS):
                sender.send(bytes(DATAGRAM_BYTES))
                time.sleep(DATAGRAM_GAP_S)
                received += _arrived(receiver)
            time.sleep(WAIT_S)
            received += _arrived(receiver)
    send({"loss": 1 - received / DATAGRAMS})


def _network(job: Mapping[str, Any]) -> SessionNetwork:
    plan = decode_plan(job)
    return session_network(plan.experiment, plan.sessions[0])


def _arrived(receiver: socket) -> int:
    """Takes out of the receive buffer what waits there; how many datagrams that was."""
    number = 0
    with contextlib.suppress(BlockingIOError):
        while receiver.recv(DATAGRAM_BYTES):
            number += 1
    return number


def _round_trip_ms(network: SessionNetwork, host: NetworkHost) -> float:
    with socket_in(host.pid, host.address, 0) as listener:
        times_ms = in_network_of(network.client.pid, _connect, listener.getsockname())
    return statistics.median(times_ms)


def _connect(address: tuple[str, int]) -> list[float]:
    times_ms = []
    for _ in range(CONNECTS):
        began_s = time.monotonic()
        create_connection(address).close()
        times_ms.append((time.monotonic() - began_s) * 1000)
    return times_ms


# ---- figures ------------------------------------------------------------------------------------


def _qoe_rows(runs: Mapping[str, Run], simulated: Run) -> Iterator[Row]:
    for arm in ARMS:
        asked = simulated.qoe[arm]
        assert asked is not None  # the simulator has no failed sessions
        measured = {backend: run.qoe.get(arm) for backend, run in runs.items()}
        low, high = asked - MAX_QOE_DIFFERENCE, asked + MAX_QOE_DIFFERENCE
        yield Row(f"QoE per chunk, {arm}", f"sim {asked:.3f}", measured, low, high, 3)


def _link_rows(runs: Mapping[str, Run], probes: Mapping[str, Mapping[str, float]]) -> Iterator[Row]:
    nmae = {backend: run.nmae for backend, run in runs.items()}
    yield Row("wire NMAE 1 s, worst", "0", nmae, 0.0, MAX_NMAE, 4)
    for name, delay_ms in (("media", DELAY_MS), ("controller", CONTROLLER_DELAY_MS)):
        measured = {backend: probe.get(name) for backend, probe in probes.items()}
        rtt_ms = 2 * delay_ms
        high = rtt_ms + MAX_RTT_EXCESS_MS
        yield Row(f"RTT {name}, median ms", f"{rtt_ms:.0f}", measured, rtt_ms, high, 1)
    loss = {backend: probe.get("loss") for backend, probe in probes.items()}
    low, high = LOSS - MAX_LOSS_DEVIATION, LOSS + MAX_LOSS_DEVIATION
    yield Row("loss", f"{LOSS}", loss, low, high, 3)


if __name__ == "__main__":
    sys.exit(main())
