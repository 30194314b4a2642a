"""Makes ``emulation_entries`` importable, here and inside sandboxes."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
