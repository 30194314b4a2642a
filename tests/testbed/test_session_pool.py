"""The environment of processes that play or label sessions."""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from testbed.session_pool import THREAD_VARIABLES, one_thread_each


def test_processes_start_with_one_thread_each(monkeypatch: pytest.MonkeyPatch) -> None:
    given, *missing = THREAD_VARIABLES
    monkeypatch.setenv(given, "2")
    for name in missing:
        monkeypatch.delenv(name, raising=False)
    # What a process started with, not what it has set since then.
    at_start = Path("/proc/self/environ").read_bytes
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        with one_thread_each():
            found = pool.submit(at_start)
        lines = found.result().decode().split("\0")
    assert f"{given}=2" in lines
    for name in missing:
        assert f"{name}=1" in lines
        assert name not in os.environ
