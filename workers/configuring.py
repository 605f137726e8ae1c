"""Settings that a product keeps and only its interface can change, read and written for an operator (vendor ids B3, B4)."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any

import msgspec

from connectors.contract import HasConfiguration
from schemas.configured import CONFIGURE_S, DIFFERENCES_MAX, Configured
from schemas.errors import ConnectorError
from workers.targets import Served

VERSION_CHARS = 16

_json = msgspec.json.Encoder(order="deterministic")


async def configuration(served: Served, *, write: bool = False, version: str = "") -> Configured:
    """What the product holds beside what it must hold; with `write` it is made so first. Never raises.

    Args:
        version: of what the operator looked at. Nothing is written when the product holds something else by now.
    """
    title = served.spec.title
    connector = served.connector
    if not isinstance(connector, HasConfiguration):
        return Configured(
            ok=False,
            code="no_configuration",
            product=title,
            message=f"{title} has no settings that are written from here.",
        )
    if write and served.configured.shadow:
        return Configured(ok=False, code="shadow", product=title, message="In shadow mode nothing is written.")
    sent = False
    try:
        async with asyncio.timeout(CONFIGURE_S):
            held = await connector.read_configuration()
            before = connector.compare_configuration(held)[:DIFFERENCES_MAX]
            if not write:
                return Configured(ok=True, product=title, version=_version(held), differences=tuple(before))
            if _version(held) != version:
                return Configured(
                    ok=False,
                    code="changed_meanwhile",
                    message=f"{title} holds other settings than those you looked at; look again.",
                    product=title,
                    version=_version(held),
                    differences=tuple(before),
                )
            if before:
                sent = True
                held = await connector.write_configuration()
            after = tuple(connector.compare_configuration(held)[:DIFFERENCES_MAX])
    except TimeoutError:
        code, message = "timeout", f"{title} took longer than {CONFIGURE_S:.0f} s."
    except ConnectorError as exc:
        code, message = exc.code, exc.message
    except Exception as exc:
        code, message = "connector_bug", f"The connector raised {type(exc).__name__}."
    else:
        still = {one.path for one in after}
        return Configured(
            ok=not after,
            code="not_taken" if after else "",
            message=f"{title} answered success and still holds other settings." if after else "",
            product=title,
            version=_version(held),
            differences=after,
            changed=tuple(one for one in before if one.path not in still),
            sent=sent,
        )
    return Configured(ok=False, code=code, message=message, product=title, sent=sent)


def _version(held: Any) -> str:
    return hashlib.sha256(_json.encode(held)).hexdigest()[:VERSION_CHARS]
