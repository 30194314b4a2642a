"""The rules that keep the system easy to see: imports point one way, machines are pure."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
#: A package may import from itself and from those before it.
ORDER = ("player", "cluster_sim", "adapters", "controllers", "testbed")
SOURCES = sorted(path for package in ORDER for path in (ROOT / package).rglob("*.py"))
#: Logic without a clock, a socket or a file: time is an argument.
PURE = (
    "player/machine.py",
    "player/abandonment.py",
    "player/live.py",
    "player/live_playhead.py",
    "player/observation.py",
    "player/qoe.py",
    "player/link_models.py",
    "player/tiled_machine.py",
    "player/tiled_events.py",
    "player/tile_allocation.py",
    "player/tile_accounts.py",
    "player/tiled_link.py",
    "player/viewer.py",
    "player/prediction_errors.py",
    "player/viewport_observation.py",
    "cluster_sim/machine.py",
    "cluster_sim/events.py",
    "cluster_sim/stages.py",
    "cluster_sim/pools.py",
    "cluster_sim/speculation.py",
    "cluster_sim/views.py",
    "cluster_sim/observation.py",
    "cluster_sim/jobs.py",
    "cluster_sim/fabric.py",
    "cluster_sim/live_clock.py",
    "cluster_sim/live_run.py",
    "cluster_sim/map_outputs.py",
    "cluster_sim/task_records.py",
)
IMPURE = {"asyncio", "socket", "time", "random", "datetime", "threading", "subprocess", "os"}
MAY_IMPORT_TORCH = (
    "adapters/",
    "controllers/abr/netllm.py",
    "controllers/scheduling/netllm.py",
    "controllers/viewport/gru.py",
    "controllers/viewport/netllm.py",
)
HEAVY = {"torch", "transformers", "peft", "accelerate", "safetensors"}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}:{node.lineno}: relative import"
            yield (node.module or "").split(".")[0]


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_imports_point_one_way(path: Path) -> None:
    own = ORDER.index(path.relative_to(ROOT).parts[0])
    assert not set(imports(path)) & set(ORDER[own + 1 :])


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_only_adapters_load_heavy_libraries(path: Path) -> None:
    if not name_of(path).startswith(MAY_IMPORT_TORCH):
        assert not set(imports(path)) & HEAVY


@pytest.mark.parametrize("name", PURE)
def test_machines_are_pure(name: str) -> None:
    assert not set(imports(ROOT / name)) & IMPURE


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_nothing_unsafe_or_silent(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        where = f"{name_of(path)}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.keyword):
            shell = node.arg == "shell" and getattr(node.value, "value", None) is True
            unpickles = node.arg == "allow_pickle" and getattr(node.value, "value", None) is True
            assert not shell, where
            assert not unpickles, where
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"{where}: bare except"
        if isinstance(node, ast.Global):
            raise AssertionError(f"{where}: global")
        if isinstance(node, ast.ImportFrom):
            assert all(alias.name != "*" for alias in node.names), f"{where}: import *"
    assert "pickle" not in set(imports(path)), name_of(path)


def test_every_package_of_the_order_that_exists_is_built() -> None:
    packages = [package for package in ORDER if (ROOT / package / "__init__.py").exists()]
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for package in packages:
        assert f'"{package}"' in text
