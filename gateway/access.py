"""Where the operators' API is and with which token, left for the commands that run beside the gateway.

Kept apart from `gateway/cli.py`, so that a gateway need not load what draws tables for people.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

ACCESS_FILE = "operator.json"


def write_access_file(folder: Path, url: str, token: str) -> Path:
    """Leave address and token where the commands find them: `<folder>/operator.json`, readable by its owner only.

    Args:
        url: address of the operators' listener, e.g. http://127.0.0.1:8081
    """
    path = folder / ACCESS_FILE
    fresh = path.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        json.dump({"url": url, "token": token}, file)
    fresh.replace(path)
    return path
