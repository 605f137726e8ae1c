"""The wire samples: requests as they were documented or seen, and what has to become of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent.parent / "samples"


def samples(method: str) -> dict[str, dict[str, Any]]:
    """The samples of one HTTP method by file name without suffix."""
    read = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("*.json"))}
    return {name: sample for name, sample in read.items() if sample.get("method") == method}
