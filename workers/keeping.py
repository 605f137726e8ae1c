"""Keeps credentials alive that die when nobody uses them, also while Entra has nothing to say and nothing is reconciled.

Some products end a token that was not used for a while, and a person has to make the next one (`contract.KeepsAlive`). Any call
of a target counts as use; only when there was none for long enough each worker that serves it makes one cheap reading call.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from connectors.contract import KeepsAlive
from schemas.errors import ConnectorError
from schemas.logs import logger
from workers.targets import Served

LOOK_EVERY_S = 60.0
FIRST_S = 300.0
"""After a start nobody knows when the credential was used last; there is no hurry, and the next event may come first."""
AGAIN_S = 900.0
"""After a call that failed."""
CALL_S = 30.0
"""Longest of one call, the wait for the product's rate limit included."""


class KeepAlive:
    """Looks after the credentials of all targets of this worker.

    Args:
        served: the targets, by name; asked anew at each look.
    """

    def __init__(self, served: Callable[[], Mapping[str, Served]]) -> None:
        self._served = served
        self._again_at: dict[str, float] = {}
        self._failed: dict[str, str] = {}

    async def run(self) -> None:
        """Look for ever."""
        while True:
            await self.look()
            await asyncio.sleep(LOOK_EVERY_S)

    async def look(self) -> None:
        """Use each credential that was not used for as long as its connector allows. Never raises."""
        targets = self._served()
        for name in self._again_at.keys() - targets.keys():
            del self._again_at[name]
            self._failed.pop(name, None)
        await asyncio.gather(*(self._use(served) for served in targets.values() if self._is_due(served)))

    def _is_due(self, served: Served) -> bool:
        if not isinstance(served.connector, KeepsAlive):
            return False
        idle_max_s = served.connector.keep_alive_s()
        if idle_max_s <= 0:
            return False
        now = served.now()
        if now < self._again_at.setdefault(served.name, now + min(FIRST_S, idle_max_s)):
            return False
        idle_s = now - served.called_at
        return served.name in self._failed or not 0 <= idle_s < idle_max_s  # below 0: the machine's clock was set back

    async def _use(self, served: Served) -> None:
        assert isinstance(served.connector, KeepsAlive)
        code = ""
        try:
            async with asyncio.timeout(CALL_S):
                await served.connector.keep_alive()
        except TimeoutError:
            code = "timeout"
        except ConnectorError as exc:
            code = exc.code
        except Exception as exc:  # a connector may fail in any way; the other targets' credentials must not
            code = type(exc).__name__
        self._say(served, code)
        if code:
            self._again_at[served.name] = served.now() + AGAIN_S
            self._failed[served.name] = code
        else:
            self._failed.pop(served.name, None)

    def _say(self, served: Served, code: str) -> None:
        """One warning per cause of failure, and one line at its end."""
        before = self._failed.get(served.name, "")
        if code and code != before:
            logger().warning("credential.not_kept_alive", target=served.name, code=code, again_in_s=AGAIN_S)
        elif before and not code:
            logger().info("credential.kept_alive_again", target=served.name)
        elif not code:
            logger().debug("credential.kept_alive", target=served.name)
