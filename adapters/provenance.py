"""Where a checkpoint comes from: versions, commit and machine, for its card."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("torch", "transformers", "peft", "safetensors", "numpy")


def describe_origin(device: torch.device | None = None) -> dict[str, Any]:
    """Version, commit if this runs from a checkout, date, packages and machine, as JSON values.

    Args:
        device: where the training ran; by default on the CPU.
    """
    has_gpu = device is not None and device.type == "cuda"
    return {
        "version": package_versions("netllm-testbed")["netllm-testbed"],
        **_commit(Path(__file__).parent.parent),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "packages": package_versions(*PACKAGES),
        "machine": {
            "python": platform.python_version(),
            "system": f"{platform.system()} {platform.release()}",
            "processor": platform.machine(),
            "cpus": os.cpu_count(),
            "torch_threads": torch.get_num_threads(),
            "device": torch.cuda.get_device_name(device) if has_gpu else "cpu",
        },
    }


def package_versions(*packages: str) -> dict[str, str]:
    """Versions of packages by name, ``unknown`` where one is not installed."""
    found = dict.fromkeys(packages, "unknown")
    for name in packages:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _commit(root: Path) -> dict[str, Any]:
    """Commit of the checkout, and whether files differ from it; nothing known outside of one."""
    found = _git(root, "rev-parse", "--show-toplevel", "HEAD")
    if found is None or len(found) != 2 or Path(found[0]).resolve() != root.resolve():
        return {"commit": None, "is_modified": None}
    changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    return {"commit": found[1], "is_modified": changed is None or bool(changed)}


def _git(root: Path, *arguments: str) -> list[str] | None:
    """Lines that git prints; None if it fails or is not there."""
    try:
        done = subprocess.run(
            ["git", "--no-optional-locks", "-C", str(root), *arguments],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.splitlines() if done.returncode == 0 else None
