"""The wire samples: requests as they were documented or seen, and what has to become of them.

Two kinds lie in one folder. Most say what a filter finds, or what a document is after a POST or PATCH: `samples`. The others
have an `expect` and say how the running gateway answers: `exchanges`. Every file is named by its source first: `FAMILIES`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent.parent / "samples"
DOCS = "MicrosoftDocs/entra-docs, "
REFERENCE = "AzureAD/SCIMReferenceCode"
FAMILIES: dict[str, tuple[str, ...]] = {
    "entra": (DOCS, REFERENCE, "pranems/SCIMServer, issue log"),
    "validator": ("pranems/SCIMServer, recorded runs of Microsoft's SCIM Validator",),
    "logicapp": (f"{REFERENCE}, Microsoft.SCIM.LogicAppValidationTemplate",),
    "postman": (f"{REFERENCE}, PostmanCollection.json",),
    "federation": (f"{REFERENCE}, Workload-Identity-Federation-for-SCIM-Provisioning.md",),
    "scimgateway": ("jelhub/scimgateway",),
    "snipeit": ("grokability/snipe-it#",),
    "rfc6749": ("RFC 6749 section ",),
    "rfc7644": ("RFC 7644 section ",),
}
"""By the first word of a file's name, how its source begins; what Entra was seen sending in a public thread is named after it."""


def every() -> dict[str, dict[str, Any]]:
    """All samples by file name without suffix."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("*.json"))}


def samples(method: str) -> dict[str, dict[str, Any]]:
    """The samples of one HTTP method that say what is found or stored, by file name without suffix."""
    return {
        name: sample for name, sample in every().items() if sample.get("method") == method and "expect" not in sample
    }


def exchanges() -> dict[str, dict[str, Any]]:
    """The samples that say how the gateway answers, by file name without suffix."""
    return {name: sample for name, sample in every().items() if "expect" in sample}
