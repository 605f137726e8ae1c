"""Mails to operators: what is told, once, to whom, and that nothing is lost on the way; against a real SMTP server."""

from __future__ import annotations

import asyncio
import email
import email.policy
import time
from collections.abc import AsyncIterator
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.smtp import SMTP, Envelope
from aiosmtpd.smtp import Session as SmtpSession

from gateway.mails_store import CLAIM_S, claim_mails, listed_mails, outbox
from gateway.notices import OVER_AFTER_S
from gateway.notify import Notifier
from schemas.config import MailSettings
from schemas.events import Reason
from tests.gateway.operated import ALPHA, BETA, Operated, operated

OPS, ALPHA_OPS = "ops@example.com", "alpha-ops@example.com"
NAME = Reason(code="bad_name", message="Not a name the product takes.", attribute="name.familyName")
NUMBER = Reason(code="bad_number", message="Not a number.", attribute='phoneNumbers[type eq "mobile"].value')
CANARIES = ("canary.person@contoso.example", "Canarina", "Zugvogel", "+44 7700 900987", "447700900987")


class Server:
    """A real SMTP server on a free port. `answers`: what the next mails are told instead of 250; "kill": cut the line."""

    def __init__(self, **options: Any) -> None:
        self.options = options
        self.mails: list[EmailMessage] = []
        self.recipients: list[str] = []
        self.answers: list[str] = []
        self.port = 0
        self._server: asyncio.Server | None = None

    async def handle_DATA(self, server: SMTP, session: SmtpSession, envelope: Envelope) -> str:
        if self.answers:
            return self.answers.pop(0)
        message = email.message_from_bytes(envelope.content or b"", policy=email.policy.default)
        assert isinstance(message, EmailMessage)
        self.mails.append(message)
        self.recipients += envelope.rcpt_tos
        return "250 taken"

    async def up(self) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: SMTP(self, **self.options), "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def down(self) -> None:
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    def texts(self) -> list[str]:
        return [f"{mail['Subject']}\n{mail.get_content()}" for mail in self.mails]


class Told:
    """A gateway whose operators are told by mail. `later` moves its clock."""

    def __init__(self, here: Operated, server: Server) -> None:
        self.here, self.server = here, server
        self.ahead_s = 0.0
        self.settings: MailSettings | None = MailSettings(
            host="127.0.0.1", port=server.port, tls="none", sender="provgate@example.com", to=(OPS,)
        )
        self.outcomes: list[str] = []
        self.notifier = self.another()

    def another(self) -> Notifier:
        """A further gateway on the same store, or the same one started again."""
        return Notifier(
            self.here.store,
            lambda: self.settings,
            lambda: self.here.configured,
            lambda: self.here.workers,
            self.here.bus.connected,
            base=self.here.folder,
            place="https://provgate.example.com",
            now=lambda: time.time() + self.ahead_s,
            counted=self.outcomes.append,
        )

    async def looks(self, later_s: float = 0.0) -> list[str]:
        """Time passes, the gateway looks and sends; the texts of the mails that came."""
        self.ahead_s += later_s
        seen = len(self.server.mails)
        await self.notifier.look()
        while await self.notifier.send_due():
            pass
        return self.server.texts()[seen:]


@pytest.fixture
async def told(tmp_path: Path) -> AsyncIterator[Told]:
    """A gateway and a mail server."""
    server = Server()
    await server.up()
    async with operated(tmp_path) as here:
        for target in (ALPHA, BETA):
            await here.keys.issue(target, days=365, label="", actor="test")
        yield Told(here, server)
    await server.down()


async def test_the_first_failure_of_a_cause_is_told_at_once_and_the_next_in_a_digest(told: Told) -> None:
    """Vendor requirement S7: a cause is told once and not once per person; then once an hour by how much it grew; then its end."""
    assert await told.looks() == []
    first = await told.here.dead("ada", reason=NAME)
    (mail,) = await told.looks()
    assert "[Provgate] alpha has 1 dead letter: bad_name (name.familyName)" in mail
    assert f"provgate dead list --target {ALPHA}" in mail
    assert told.server.recipients == [OPS]
    second = await told.here.dead("bob", reason=NAME)
    third = await told.here.dead("eve", reason=NAME)
    assert await told.looks() == []
    assert await told.looks(1_800) == []
    (digest,) = await told.looks(1_900)
    assert "still: alpha has 3 dead letters" in digest
    assert "2 more than told before" in digest
    assert await told.looks(3_700) == []
    other = await told.here.dead("pam", reason=NUMBER)
    (again,) = await told.looks()
    assert "alpha has 1 dead letter: bad_number (phoneNumbers)" in again
    assert "Told before and still so" in again
    await told.here.post("/dead/discard", {"ids": [first, second, third], "reason": "left"})
    assert await told.looks() == []
    assert await told.looks(OVER_AFTER_S / 2) == []
    (over,) = await told.looks(OVER_AFTER_S)
    assert "alpha, over: dead letters: bad_name (name.familyName)" in over
    assert "bad_number" in over
    await told.here.dead("zoe", reason=NAME)
    assert await told.looks() == [], "what comes back soon waits for a digest"
    (back,) = await told.looks(3_700)
    assert "It is back since" in back
    assert other
    assert set(told.outcomes) == {"sent"}


@pytest.mark.parametrize("restarted", [False, True])
async def test_a_mail_server_that_is_away_loses_nothing(told: Told, restarted: bool) -> None:
    """SMTP down then up, with and without a restart of the gateway: every mail comes, once."""
    await told.server.down()
    await told.here.dead("ada", reason=NAME)
    await told.here.dead("bob", BETA, reason=NAME)
    assert await told.looks() == []
    assert await told.looks(20) == []
    numbers = await told.here.store.read(outbox)
    assert (numbers.waiting, numbers.failed) == (2, 0)
    assert numbers.error == f"127.0.0.1:{told.server.port} cannot be used: connection refused"
    if restarted:
        told.notifier = told.another()
    await told.server.up()
    texts = await told.looks(1_000)
    assert sorted(text.split()[1] for text in texts) == [ALPHA, BETA]
    assert await told.looks(100_000) != [], "reminded a day later"
    assert {"deferred", "sent"} == set(told.outcomes)


async def test_a_kill_between_send_and_record_sends_at_most_one_copy_with_the_same_message_id(told: Told) -> None:
    """At least once: the claim of a gateway that died ends, and the next one sends the very same mail."""
    await told.here.dead("ada", reason=NAME)
    await told.notifier.look()
    died = told.another()
    now = time.time()
    claimed = await told.here.store.run(lambda ledger: claim_mails(ledger, died.holder, now, 20))
    assert len(claimed) == 1
    assert await told.looks() == [], "somebody has it"
    assert len(await told.looks(CLAIM_S + 1)) == 1
    assert await told.looks(CLAIM_S + 1) == []
    assert told.server.mails[0]["Message-ID"] == claimed[0].message_id
    assert (await told.here.store.read(lambda reader: listed_mails(reader, None, 10)))[0].state == "sent"
