"""Tells operators by mail what needs them: a cause when it begins, what has grown in digests, and when it is over.

What is told is made of what the store and the workers say, again and again, and compared with what was told before. So nothing
can be forgotten on the way: that something is told, and the mail about it, are written in one transaction. Mails leave through an
outbox, at least once and with the same Message-ID each time; a mail server that is away delays nothing and loses nothing for
GIVE_UP_AFTER_S. Of several gateways on one store one looks, and each mail is tried by one at a time.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from msgspec import Struct
from ulid import ULID

from gateway.explanations import DAY_S, served_by
from gateway.mails_store import (
    CLAIM_S,
    Alert,
    Mail,
    MailHealth,
    add_mail,
    alerts,
    any_due,
    claim_mails,
    drop_alert,
    forget_mails,
    hasten_mails,
    health_of,
    mails_lately,
    mails_waiting,
    outbox,
    put_alert,
    settle_mail,
)
from gateway.notices import ALL_TARGETS, Judged, Look, judge, look_at, look_at_all, write
from gateway.reports_store import take_lease
from gateway.smtp import Letter, MailProblem, Session, Verdict, signed_in
from gateway.store import Reader, Store, Transaction
from schemas.config import MailSettings, TargetSettings
from schemas.logs import logger

LOOK_EVERY_S = 10.0
LOOK_PAUSE_S = 3.0
"""However often something happens, looks are so far apart."""
SEND_EVERY_S = 2.0
LEASE_S = 60.0
LEASE_NAME = "alerts"
BATCH_MAX = 20
"""Mails of one connection."""
WAITING_MAX = 1_000
"""Mails in the outbox; what comes on top stays untold until there is room, and is then told at once."""
WAIT_FIRST_S = 10.0
WAIT_MAX_S = 900.0
GIVE_UP_AFTER_S = 3 * DAY_S
ATTEMPTS_MAX = 400
"""More than GIVE_UP_AFTER_S has room for."""
KEPT_S = 30 * DAY_S
"""How long it can be seen which mails were sent or given up."""
FORGET_EVERY_S = 3_600.0
HOUR_S = 3_600.0
TEST_WAIT_S = 25.0
TESTED_MAX = 32

log = logger()

Counted = Callable[[str], None]


class Tested(Struct, frozen=True):
    """What became of a test mail: `sent`, `later` or `refused`, and why."""

    recipient: str
    outcome: str
    detail: str


class Notifier:
    """Looks for what needs a person, and empties the outbox.

    `leads_until`: until when it is this gateway that looks, of several.

    Args:
        settings: those of `[mail]`; None while nobody is to be told.
        targets: settings of the configured targets by name.
        presences: the presence documents of all workers heard of lately.
        bus_connected: whether NATS can be reached.
        configuration_problems: of a changed file that was refused; 0 when none was.
        rights_settle_s: how long a target's product takes to let granted rights count.
        base: folder of the configuration file.
        place: how this gateway is called from outside.
        now: epoch seconds.
        counted: is told what became of each attempt: `sent`, `deferred` or `failed`.
    """

    def __init__(
        self,
        store: Store,
        settings: Callable[[], MailSettings | None],
        targets: Callable[[], Mapping[str, TargetSettings]],
        presences: Callable[[], Sequence[Mapping[str, Any]]],
        bus_connected: Callable[[], bool],
        *,
        configuration_problems: Callable[[], int] = lambda: 0,
        rights_settle_s: Callable[[str], float] = lambda target: 0.0,
        base: Path,
        place: str = "",
        now: Callable[[], float] = time.time,
        counted: Counted = lambda outcome: None,
    ) -> None:
        self.store = store
        self.settings = settings
        self.targets = targets
        self.base = base
        self.place = place
        self.now = now
        self.holder = str(ULID())
        self._presences = presences
        self._bus_connected = bus_connected
        self._configuration_problems = configuration_problems
        self._rights_settle_s = rights_settle_s
        self._counted = counted
        self._kicked = asyncio.Event()
        self._queued = asyncio.Event()
        self._testing = asyncio.Lock()
        self.leads_until = 0.0
        self._forget_at = 0.0

    # ---- looking

    def kick(self) -> None:
        """Something happened that may need a person: look now, not in a while."""
        self._kicked.set()

    async def watch(self) -> None:
        """One look, then a wait for the next or for a kick; to be called for ever."""
        self._kicked.clear()
        await self.look()
        await asyncio.sleep(LOOK_PAUSE_S)
        with suppress(TimeoutError):
            async with asyncio.timeout(LOOK_EVERY_S):
                await self._kicked.wait()

    async def look(self) -> None:
        """Compare what is so with what was told, and put what is news into the outbox.

        Raises:
            StoreError: the store cannot be used now; the next look finds the same.
        """
        settings = self.settings()
        if settings is None or not await self._leads():
            return
        targets = {name: one for name, one in self.targets().items() if one.enabled}
        presences, now = self._presences(), self.now()

        def read(reader: Reader) -> tuple[dict[str, Look], dict[tuple[str, str], Alert], set[str]]:
            looks = {
                name: look_at(
                    reader, name, one, served_by(presences, name), now, rights_settle_s=self._rights_settle_s(name)
                )
                for name, one in targets.items()
            }
            looks[ALL_TARGETS] = look_at_all(
                bus_connected=self._bus_connected(), configuration_problems=self._configuration_problems()
            )
            held = alerts(reader)
            judged = {
                name: judge(_of(held, name), name, look, now, digest_s=_digest_s(settings))
                for name, look in looks.items()
            }
            moved = {
                name
                for name, one in judged.items()
                if one.put or one.drop or (one.news and _may_tell(reader, name, one, settings, now))
            }
            return looks, held, moved

        looks, held, moved = await self.store.read_slow(read)
        strangers = [key for key in held if key[0] not in looks]
        if moved or strangers:
            queued = await self.store.run(
                lambda ledger: self._tell(ledger, {name: looks[name] for name in moved}, strangers, settings, now)
            )
            if queued:
                log.info("mail.queued", mails=queued)
                self._queued.set()
        if now >= self._forget_at:
            await self.store.run(lambda ledger: forget_mails(ledger, now - KEPT_S))
            self._forget_at = now + FORGET_EVERY_S

    async def _leads(self) -> bool:
        """Whether this gateway is the one that looks; on SQLite there is no other."""
        now = self.now()
        if self.store.engine == "sqlite" or now < self.leads_until - LEASE_S / 2:
            return True
        if await self.store.run(lambda ledger: take_lease(ledger, LEASE_NAME, self.holder, now, LEASE_S)):
            self.leads_until = now + LEASE_S
            return True
        self.leads_until = 0.0
        return False

    def _tell(
        self,
        ledger: Transaction,
        looks: Mapping[str, Look],
        strangers: Sequence[tuple[str, str]],
        settings: MailSettings,
        now: float,
    ) -> int:
        """One transaction: how alerts move, what of it is told, and the mails that tell it; how many of these."""
        held, queued = alerts(ledger), 0
        for target, cause in strangers:
            drop_alert(ledger, target, cause)
        for name, look in looks.items():
            judged = judge(_of(held, name), name, look, now, digest_s=_digest_s(settings))
            for alert in judged.put:
                put_alert(ledger, alert)
            for cause in judged.drop:
                drop_alert(ledger, name, cause)
            if judged.news and _may_tell(ledger, name, judged, settings, now):
                for alert in judged.told:
                    put_alert(ledger, alert)
                queued += self._queue(ledger, name, judged, settings, now)
        return queued

    def _queue(self, ledger: Transaction, name: str, judged: Judged, settings: MailSettings, now: float) -> int:
        written = write(name, judged.news, now, place=self.place)
        notice = str(ULID())
        recipients = self.recipients(name, settings)
        for number, recipient in enumerate(recipients):
            add_mail(
                ledger,
                Mail(
                    notice=notice,
                    copy_number=number,
                    message_id=_message_id(f"{notice}.{number}", settings),
                    target=name,
                    kind=written.kind,
                    recipient=recipient,
                    subject=written.subject,
                    body=written.body,
                    created_at=now,
                    next_at=now,
                ),
            )
        return len(recipients)

    def recipients(self, target: str, settings: MailSettings) -> tuple[str, ...]:
        """Who is told about a target: those it names itself, otherwise those of `[mail]`."""
        named = self.targets().get(target)
        return tuple(dict.fromkeys((named.alert_to if named is not None else ()) or settings.to))

    # ---- sending

    async def deliver(self) -> None:
        """One round of sending, after a while or when something was queued; to be called for ever."""
        self._queued.clear()
        await self.send_due()
        with suppress(TimeoutError):
            async with asyncio.timeout(SEND_EVERY_S):
                await self._queued.wait()

    async def send_due(self) -> int:
        """Try the mails whose turn it is, at most BATCH_MAX; how many were sent.

        Raises:
            StoreError: the store cannot be used now. What was sent and could not be recorded is sent once more.
        """
        settings, now = self.settings(), self.now()
        if settings is None or not await self.store.read(lambda reader: any_due(reader, now)):
            return 0
        mails = await self.store.run(lambda ledger: claim_mails(ledger, self.holder, now, BATCH_MAX))
        started, sent = time.monotonic(), 0
        left = list(mails)
        try:
            async with signed_in(settings, self.base) as session:
                while left and time.monotonic() - started < CLAIM_S / 2:
                    verdict = await session.send(_letter(left[0]))
                    await self.record(left.pop(0), verdict)
                    sent += verdict.outcome == "sent"
        except MailProblem as exc:
            for mail in left:
                await self.record(mail, Verdict("later", str(exc)))
            left = []
        for mail in left:  # the server is slow, and the claim ends
            await self.record(mail, Verdict("later", "the server takes long for each mail"))
        return sent

    async def record(self, mail: Mail, verdict: Verdict) -> None:
        """Write down what became of a mail that this gateway claimed; nothing when somebody else has it by now."""
        now = self.now()
        state, again_at = _next(mail, verdict, now)

        def job(ledger: Transaction) -> None:
            settle_mail(ledger, mail.seq, self.holder, state, now, again_at=again_at, error=verdict.detail)
            if state == "sent" and mail.attempts > 1:
                hasten_mails(ledger, now)

        await self.store.run(job)
        outcome = "deferred" if state == "waiting" else state
        self._counted(outcome)
        say = log.info if state == "sent" else log.warning if state == "waiting" else log.error
        say(f"mail.{outcome}", target=mail.target, kind=mail.kind, notice=mail.notice, detail=verdict.detail)

    # ---- for operators

    async def test(self, recipients: Sequence[str], now: float) -> list[Tested]:
        """Send a test mail right away, past the outbox.

        Raises:
            MailProblem: there is no server, or it cannot be used; the sentence says why.
        """
        settings = self.settings()
        if settings is None:
            raise MailProblem("there is no [mail] in the configuration file")
        try:
            async with self._testing, asyncio.timeout(TEST_WAIT_S), signed_in(settings, self.base) as session:
                return [await self._test(session, one, settings, now) for one in recipients[:TESTED_MAX]]
        except TimeoutError:
            raise MailProblem(f"the server took longer than {TEST_WAIT_S:.0f} s") from None

    async def _test(self, session: Session, recipient: str, settings: MailSettings, now: float) -> Tested:
        body = (
            "This is a test: mails of Provgate reach you.\n\nNothing needs you now because of it.\n\n-- \n"
            f"Provgate{f' at {self.place}' if self.place else ''}\n"
        )
        letter = Letter(
            message_id=_message_id(str(ULID()), settings),
            recipient=recipient,
            subject="[Provgate] test",
            body=body,
            created_at=now,
        )
        verdict = await session.send(letter)
        return Tested(recipient, verdict.outcome, verdict.detail)

    def everybody(self) -> list[str]:
        """Every address that is told anything now."""
        settings = self.settings()
        if settings is None:
            return []
        own = [one for target in self.targets().values() for one in target.alert_to]
        return list(dict.fromkeys((*settings.to, *own)))

    def health(self, reader: Reader) -> MailHealth | None:
        """Whether operators can be told; None when they are not to be."""
        return None if self.settings() is None else health_of(outbox(reader), self.now())


def _of(held: Mapping[tuple[str, str], Alert], target: str) -> dict[str, Alert]:
    return {cause: alert for (name, cause), alert in held.items() if name == target}


def _digest_s(settings: MailSettings) -> float:
    return settings.digest_every_hours * HOUR_S


def _may_tell(within: Transaction | Reader, target: str, judged: Judged, settings: MailSettings, now: float) -> bool:
    """Whether a mail about this target may be written now; what may not is told by the next one that may."""
    count, last_at = mails_lately(within, target, now - max(HOUR_S, _digest_s(settings)))
    if not (judged.news.new or judged.news.over) and now - last_at < _digest_s(settings):
        return False
    if _digest_s(settings) > HOUR_S:
        count, _ = mails_lately(within, target, now - HOUR_S)
    return count < settings.per_hour_max and mails_waiting(within) < WAITING_MAX


def _message_id(unique: str, settings: MailSettings) -> str:
    return f"<{unique.lower()}@{settings.sender.rpartition('@')[2].lower()}>"


def _letter(mail: Mail) -> Letter:
    return Letter(
        message_id=mail.message_id,
        recipient=mail.recipient,
        subject=mail.subject,
        body=mail.body,
        created_at=mail.created_at,
    )


def _next(mail: Mail, verdict: Verdict, now: float) -> tuple[str, float]:
    """The state of a mail after an attempt, and when it is tried next."""
    if verdict.outcome == "sent":
        return "sent", 0.0
    if verdict.outcome == "refused" or mail.attempts >= ATTEMPTS_MAX or now - mail.created_at >= GIVE_UP_AFTER_S:
        return "failed", 0.0
    wait_s = min(WAIT_MAX_S, WAIT_FIRST_S * 2.0 ** min(mail.attempts - 1, 10))
    return "waiting", now + wait_s * random.uniform(0.8, 1.2)
