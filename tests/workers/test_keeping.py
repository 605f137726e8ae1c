"""Credentials that die when nobody uses them: the emulated Talkdesk's tokens, on a clock moved by hand."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import structlog

from connectors.talkdesk import KEEP_ALIVE_S
from deploy.emulators.harness import running
from deploy.emulators.scim import ScimProductEmulator
from deploy.emulators.talkdesk import DEMO_CLIENT, OPAQUE_IDLE_S, TalkdeskEmulator
from schemas.config import TargetSettings
from workers.control import probe
from workers.keeping import AGAIN_S, FIRST_S, KeepAlive
from workers.limits import CallLimit
from workers.targets import Served

HOUR_S = 3600.0


async def _at_once(limit: CallLimit) -> None:
    """No limit."""


class Product:
    """The emulated product, and targets that call it with tokens it gave out."""

    def __init__(self, emulator: TalkdeskEmulator, url: str, folder: Path) -> None:
        self.emulator, self.url, self.folder = emulator, url, folder
        self.targets: dict[str, Served] = {}

    async def serve(self, name: str, **settings: Any) -> Served:
        """A target with a token of its own, as a person copies it from the product, or with `settings` instead of it."""
        if not settings:
            form = {"grant_type": "client_credentials", "token_type": "opaque", "scope": "scim"}
            headers = {"Authorization": aiohttp.encode_basic_auth(*DEMO_CLIENT)}
            async with aiohttp.ClientSession() as plain:
                answer = await plain.post(f"{self.url}/oauth/token", data=form, headers=headers)
                token = (await answer.json())["access_token"]
            self.written(name, token)
            settings = {"token": {"file": name}}
        table = {"base_url": self.url, "allow_loopback": True, **settings}
        configured = TargetSettings(connector="talkdesk", settings=table)
        now = self.emulator.clock.now
        served = Served(name, configured, self.folder, concurrency_max=1, before_call=_at_once, now=now)
        self.targets[name] = served
        return served

    def written(self, name: str, text: str) -> None:
        file = self.folder / name
        file.write_text(text, encoding="utf-8")
        file.chmod(0o600)

    def pass_s(self, seconds: float) -> None:
        self.emulator.clock.advance(seconds)

    def calls(self) -> list[str]:
        return [
            f"{call['method']} {call['path']}" for call in self.emulator.recorded() if "/oauth/" not in call["path"]
        ]


@pytest.fixture
async def product(tmp_path: Path) -> AsyncIterator[Product]:
    """Talkdesk, whose clock stands still unless it is moved."""
    emulator = TalkdeskEmulator(rate_per_s=0)
    emulator.clock.freeze(True)
    async with running(emulator) as url:
        one = Product(emulator, url, tmp_path)
        yield one
        for served in one.targets.values():
            await served.close()
    assert not emulator.violations, list(emulator.violations)


async def test_a_token_that_nobody_uses_dies_and_one_that_is_kept_alive_does_not(product: Product) -> None:
    """T2: a token lives as long as it is used; with nothing to provision and nothing to reconcile a worker uses it in time."""
    kept, left = await product.serve("kept"), await product.serve("left")
    worker = KeepAlive(lambda: {"kept": kept})
    for _ in range(3 * 24):
        product.pass_s(HOUR_S)
        await worker.look()
    used = len(product.calls())
    assert (await probe(kept)).ok
    assert (await probe(left)).code == "unauthorized"
    assert set(product.calls()[:used]) == {"GET /scim/v2/Users"}
    assert used <= 3 * 24 * HOUR_S / KEEP_ALIVE_S + 1, "twice a day, not at every look"
    assert KEEP_ALIVE_S <= OPAQUE_IDLE_S / 2


async def test_a_target_in_use_and_one_that_fetches_its_tokens_cost_no_call(product: Product) -> None:
    """Any call counts as use; client credentials buy the next token anyway; a worker that was just started waits a little."""
    busy = await product.serve("busy")
    product.written("secret", DEMO_CLIENT[1])
    fetching = await product.serve(
        "fetching",
        client_id=DEMO_CLIENT[0],
        client_secret={"file": "secret"},
        token_url=f"{product.url}/oauth/token",
    )
    worker = KeepAlive(lambda: {"busy": busy, "fetching": fetching})
    await worker.look()
    product.pass_s(FIRST_S - 1)
    await worker.look()
    assert product.calls() == []
    for _ in range(3):
        assert (await probe(busy)).ok
        before = len(product.calls())
        product.pass_s(KEEP_ALIVE_S - 1)
        await worker.look()
        assert len(product.calls()) == before


async def test_a_call_that_failed_is_made_again_soon_and_said_once(product: Product) -> None:
    """One line per cause, none of them with the token; a new token takes effect by itself."""
    served = await product.serve("kept")
    worker = KeepAlive(lambda: product.targets)
    with structlog.testing.capture_logs() as lines:
        await worker.look()
        product.pass_s(FIRST_S)
        await worker.look()
        product.emulator.revoke_issued_tokens()
        product.pass_s(KEEP_ALIVE_S)
        for _ in range(3):
            await worker.look()
            product.pass_s(AGAIN_S)
        assert len([call for call in product.emulator.recorded() if call["status"] == 401]) == 3
        fresh = await product.serve("fresh")
        product.written("kept", (product.folder / "fresh").read_text(encoding="utf-8"))
        await worker.look()
    assert (await probe(served)).ok
    assert fresh.called_at == 0.0
    said = [(line["event"], line.get("code")) for line in lines if line["event"].startswith("credential.")]
    assert said == [
        ("credential.kept_alive", None),
        ("credential.not_kept_alive", "unauthorized"),
        ("credential.kept_alive_again", None),
    ]
    assert "token" not in str([line for line in lines if line["event"].startswith("credential.")])


async def test_a_product_that_needs_no_code_is_kept_alive_as_its_settings_say(tmp_path: Path) -> None:
    """The generic SCIM connector: any product whose token dies when it lies idle, by one setting; without it no call."""
    emulator = ScimProductEmulator(token="idle-token-of-the-keeping-tests", rate_per_s=0)
    emulator.clock.freeze(True)
    (tmp_path / "token").write_text("idle-token-of-the-keeping-tests", encoding="utf-8")
    (tmp_path / "token").chmod(0o600)
    async with running(emulator) as url:
        table = {"base_url": f"{url}/scim/v2", "auth": {"token": {"file": "token"}}, "allow_loopback": True}
        targets = {}
        for name, more in (("idle", {"keep_alive_s": HOUR_S}), ("other", {})):
            configured = TargetSettings(connector="scim", settings={**table, **more})
            now = emulator.clock.now
            targets[name] = Served(name, configured, tmp_path, concurrency_max=1, before_call=_at_once, now=now)
        worker = KeepAlive(lambda: targets)
        await worker.look()
        for _ in range(4):
            emulator.clock.advance(HOUR_S)
            await worker.look()
        for served in targets.values():
            await served.close()
    assert [f"{call['method']} {call['path']}" for call in emulator.recorded()] == ["GET /scim/v2/Users"] * 4
    assert not emulator.violations, list(emulator.violations)
