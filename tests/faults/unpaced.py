"""The shipped connectors without the products' rate limits: what takes minutes at four calls a second must fit into a test.

Named in a target as `telemessage_unpaced` and `talkdesk_unpaced`, through the entry points any connector author would use.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from connectors.talkdesk import Talkdesk
from connectors.telemessage import TeleMessage


class UnpacedTelemessage(TeleMessage):
    """TeleMessage as fast as it answers."""

    spec = msgspec.structs.replace(TeleMessage.spec, name="telemessage_unpaced", rate_limit=None)


class UnpacedTalkdesk(Talkdesk):
    """Talkdesk as fast as it answers."""

    spec = msgspec.structs.replace(Talkdesk.spec, name="talkdesk_unpaced", rate_limit=None)


def install(folder: Path) -> None:
    """Make the two known to any Python that has `folder` on its path, as an installed package would."""
    package = folder / "provgate_fault_connectors-1.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: provgate-fault-connectors\nVersion: 1\n")
    (package / "entry_points.txt").write_text(
        "[provgate.connectors]\n"
        "telemessage_unpaced = tests.faults.unpaced:UnpacedTelemessage\n"
        "talkdesk_unpaced = tests.faults.unpaced:UnpacedTalkdesk\n"
    )
