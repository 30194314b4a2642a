from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_it_runs_through_with_tiny_models() -> None:
    done = subprocess.run(
        [sys.executable, "benchmarks/gpu.py", "--tiny", "--rounds", "1", "--block", "5"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for line in ("tiny llama", "tiny opt", "weights read", "decision", "window moved", "step"):
        assert len(re.findall(rf"^{line}", done.stdout, re.MULTILINE)) in (1, 2), done.stdout
    differences = re.findall(r"full pass: (\S+) of", done.stdout)
    assert len(differences) == 2
    assert max(float(one) for one in differences) < 0.05  # of bfloat16
