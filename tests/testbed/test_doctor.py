from __future__ import annotations

import io
import json

import emulation_entries as entries
import pytest
from rich.console import Console

from testbed import doctor
from testbed.doctor import Check, Diagnosis, diagnose, render
from testbed.sandbox import SandboxError, SandboxProbe

GOOD = Check(True, "fine", required=True)
BAD = Check(False, "no [thing]; install it", required=True)
BAD_BUT_OPTIONAL = Check(False, "no luxury; buy it")


def shown(diagnosis: Diagnosis) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(render(diagnosis))
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text


def test_only_required_checks_decide() -> None:
    assert Diagnosis({"a": GOOD, "b": BAD_BUT_OPTIONAL}).ready
    assert not Diagnosis({"a": GOOD, "b": BAD}).ready


def test_the_document_has_exactly_the_promised_keys() -> None:
    diagnosis = Diagnosis({"a": GOOD, "b": BAD}, ("kernel",), ("linuxbridge",), "user")
    assert diagnosis.as_json() == {
        "checks": {
            "a": {"ok": True, "detail": "fine"},
            "b": {"ok": False, "detail": "no [thing]; install it"},
        },
        "backends": {"link": ["kernel"], "switch": ["linuxbridge"], "sandbox": "user"},
    }
    assert Diagnosis({}).as_json()["backends"] == {"link": [], "switch": [], "sandbox": None}


def test_the_table_says_all_of_it() -> None:
    text = shown(Diagnosis({"first": GOOD, "second": BAD, "third": BAD_BUT_OPTIONAL}))
    assert "not ready" in text
    for words in ("first", "fine", "no [thing]; install it", "no luxury; buy it", "none"):
        assert words in text


def test_a_missing_program_comes_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.shutil, "which", lambda program, path=None: None)
    monkeypatch.setattr(doctor, "TORCH_PROBE", "import no_such_package")
    monkeypatch.setattr(doctor, "probe_sandbox", lambda: SandboxProbe(None, "forbidden; allow it"))
    diagnosis = diagnose()
    assert diagnosis.checks["mnexec"].detail == "missing; apt-get install mininet"
    assert diagnosis.checks["sandbox"] == Check(False, "forbidden; allow it", required=True)
    assert "no_such_package" in diagnosis.checks["torch"].detail
    assert not diagnosis.ready
    assert diagnosis.as_json()["backends"] == {"link": [], "switch": [], "sandbox": None}


def test_probes_that_die_are_a_failed_check(monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*args: object, **kwargs: object) -> None:
        raise SandboxError("it died")

    monkeypatch.setattr(doctor, "run_in_sandbox", die)
    assert "it died" in doctor._inside()["probes"].detail


@pytest.mark.emulation
def test_this_machine_is_told_apart_by_trying() -> None:
    entries.require(network=True)
    diagnosis = diagnose()
    checks = diagnosis.checks
    assert json.loads(json.dumps(diagnosis.as_json())) == diagnosis.as_json()
    assert {"sandbox", "namespaces", "htb", "netem", "tun", "ovs", "mnexec", "congestion", "torch",
            "backbones", "ffmpeg", "network"} <= set(checks)  # fmt: skip
    assert checks["htb"].ok
    assert checks["netem"].ok == entries.has_netem()
    assert checks["network"].ok, checks["network"].detail
    assert diagnosis.link_backends[0] == "kernel"
    assert ("userspace" in diagnosis.link_backends) == checks["tun"].ok
    assert diagnosis.sandbox is not None
    for check in checks.values():
        assert check.ok or ";" in check.detail  # the remedy
