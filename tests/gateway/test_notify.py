"""Mails to operators: what is told, once, to whom, and that nothing is lost on the way; against a real SMTP server."""

from __future__ import annotations

import asyncio
import email
import email.policy
import ipaddress
import json
import ssl
import sys
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword
from aiosmtpd.smtp import Session as SmtpSession
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from gateway.checks import run_checks
from gateway.lifecycle import open_circuit
from gateway.mails_store import CLAIM_S, claim_mails, listed_mails, outbox
from gateway.notices import OVER_AFTER_S
from gateway.notify import GIVE_UP_AFTER_S
from gateway.smtp import Letter, MailProblem, Verdict, compose, knock
from gateway.store import Store
from schemas.config import MailSettings, Secret, parse
from schemas.errors import ConfigurationError
from schemas.events import Reason, Step
from schemas.states import Circuit, Result
from tests.gateway.operated import ALPHA, BETA, WAIT_S, Operated, clean_environment, operated, worker_of
from tests.gateway.test_store import postgres, postgres_url  # noqa: F401 - fixtures
from tests.waiting import until

OPS, ALPHA_OPS = "ops@example.com", "alpha-ops@example.com"
USER, PASSWORD = "mail-user-of-this-test", "mail-password-of-this-test"
DAY_S = 86_400.0
NAME = Reason(code="bad_name", message="Not a name the product takes.", attribute="name.familyName")
NUMBER = Reason(code="bad_number", message="Not a number.", attribute='phoneNumbers[type eq "mobile"].value')


class Server:
    """A real SMTP server on a free port. `answers`: what the next mails are told instead of being taken."""

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
    """A gateway whose operators are told by mail."""

    def __init__(self, here: Operated, server: Server) -> None:
        self.here, self.server = here, server
        self.notifier = here.notifier
        here.mail = MailSettings(
            host="127.0.0.1", port=server.port, tls="none", sender="provgate@example.com", to=(OPS,)
        )

    async def looks(self, later_s: float = 0.0) -> list[str]:
        """Time passes, the gateway looks and sends; the texts of the mails that came."""
        self.here.ahead_s += later_s
        seen = len(self.server.mails)
        await self.notifier.look()
        while await self.notifier.send_due():
            pass
        return self.server.texts()[seen:]

    def counted(self) -> dict[str, int]:
        """What the metric says."""
        lines = self.here.metrics.render(()).decode().splitlines()
        mails = [line.removeprefix("provgate_mails_total{outcome=") for line in lines if "mails_total{" in line]
        return {line.partition('"}')[0].strip('"'): int(float(line.rpartition(" ")[2])) for line in mails}


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    """A mail server."""
    one = Server()
    await one.up()
    yield one
    await one.down()


@pytest.fixture
async def told(tmp_path: Path, server: Server) -> AsyncIterator[Told]:
    """A gateway with that mail server."""
    async with operated(tmp_path) as here:
        for target in (ALPHA, BETA):
            await here.keys.issue(target, days=365, label="", actor="test")
        yield Told(here, server)


# ---- what is told, and when


async def test_the_first_failure_of_a_cause_is_told_at_once_and_the_next_in_a_digest(told: Told) -> None:
    """Vendor requirement S7: a cause is told once and not once per person; then hourly by how much it grew; then its end."""
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
    await told.here.dead("pam", reason=NUMBER)
    (again,) = await told.looks()
    assert "alpha has 1 dead letter: bad_number (phoneNumbers)" in again
    assert "Told before and still so" in again
    await told.here.post("/dead/discard", {"ids": [first, second, third], "reason": "left"})
    assert await told.looks() == []
    assert await told.looks(OVER_AFTER_S / 2) == []
    (over,) = await told.looks(OVER_AFTER_S)
    assert "alpha, over: dead letters: bad_name (name.familyName)" in over
    assert "Z, after " in over
    assert "bad_number" in over
    await told.here.dead("zoe", reason=NAME)
    assert await told.looks() == [], "what comes back soon waits for a digest"
    (back,) = await told.looks(3_700)
    assert "It is back since" in back
    assert told.counted() == {"sent": 5}


async def test_whatever_needs_a_person_is_told_to_those_who_are_to_know(told: Told) -> None:
    """Vendor requirements S7 and M6: refused credentials, held deletions, no licence; alert_to goes before the default."""
    here = told.here
    alpha = msgspec.structs.replace(here.configured[ALPHA], alert_to=(ALPHA_OPS, OPS))
    here.configured[ALPHA] = alpha
    credential = {"what": "Sofa access key", "ends_at": time.time() - DAY_S, "remedy": "Generate a new key in Sofa."}
    targets = {**worker_of(ALPHA, BETA)["targets"], ALPHA: {"serving": True, "credential": credential}}
    here.workers[:] = [{"worker": "worker-1", "targets": targets}]
    await here.held("ada")
    licence = Reason(code="no_licence", message="No licence left.", attribute="active")
    waiting = await here.created("bob")
    await here.comes_to(waiting, Result.BLOCKED, licence, blocked_on="licence")
    here.rights_settle_s = 300.0
    resource = await here.created("eve")
    refusal = Reason(code="refused", message="The product refused the credentials.")
    steps = (Step(method="POST", path="/Users/{id}", status=403, ms=1.0),)
    await here.comes_to(resource, Result.MISCONFIGURED, refusal, steps=steps)
    mails = await told.looks()
    assert len(mails) == 2
    assert sorted(told.server.recipients) == [ALPHA_OPS, OPS]
    assert mails[0] == mails[1]
    assert "alpha: 3 new problems" in mails[0]
    settled = await told.looks(301)
    assert len(settled) == 2, "rights that were just granted may take their time"
    assert "[Provgate] alpha refuses our credentials or settings; " in settled[0]
    assert "The call that was refused: POST /Users/{id} (403)." in settled[0]
    assert "has a Sofa access key that has ended" in mails[0]
    assert "has 1 change that waits for: licence (no_licence, active)" in mails[0]
    assert "provgate held approve --target alpha" in mails[0]
    here.workers.clear()
    assert await told.looks() == [], "a worker that is started anew is no news"
    late = await told.looks(OVER_AFTER_S + 1)
    assert len(late) == 3
    assert all("is served by no worker" in mail for mail in late)
    assert not any("access key ends: over" in mail for mail in late), "whoever could say is away"
    here.bus.up = False
    await told.looks()
    assert "the gateway cannot reach NATS" in (await told.looks(OVER_AFTER_S + 1))[0]


async def test_a_name_that_is_missing_is_told_at_once_and_an_approval_when_it_is_overdue(told: Told) -> None:
    """A product that approves in a daily run is no news every day; a role that nobody has made is, without its name."""
    pending = Reason(code="pending", message="Approved in the daily run.")
    await told.here.comes_to(await told.here.created("ada"), Result.BLOCKED, pending, blocked_on="approval")
    assert await told.looks() == []
    role = Reason(code="unknown_role", message="No role 'Wizard'.", attribute="roles", names=("Wizard",))
    await told.here.comes_to(await told.here.created("bob"), Result.REJECTED, role)
    (name,) = await told.looks()
    assert "alpha has 1 change that waits for: role (unknown_role, roles)" in name
    assert "Wizard" not in name
    assert not any("approval" in mail for mail in await told.looks(25 * 3_600))
    (overdue,) = await told.looks(2 * 3_600)
    assert "alpha has 1 change that waits for: approval (pending)" in overdue


async def test_keys_and_credentials_are_told_30_14_7_and_1_days_before_they_end(told: Told) -> None:
    """S1, vendor requirement S16: Entra's keys and the product's own, once per threshold, also over a restart; then their end."""
    start = time.time()
    ends_at = start + 365 * DAY_S
    said: list[tuple[float, int]] = []
    for left in (40, 29.5, 29, 13.5, 13, 6.5, 0.5, 0.4, -0.5, -2):
        document = worker_of(ALPHA, BETA)
        credential = {"what": "access key of a product", "ends_at": ends_at, "remedy": "Generate a new one."}
        here = {**document["targets"][ALPHA], "credential": credential}
        told.here.workers[:] = [{**document, "targets": {**document["targets"], ALPHA: here}}]
        told.here.ahead_s = ends_at - left * DAY_S - start
        told.notifier = told.here.another_notifier(told.here.store)
        mails = [mail for mail in await told.looks() if "alpha" in mail]
        assert all("access key of a product that" in mail and "has the access key" in mail for mail in mails)
        said.append((left, len(mails)))
    assert [left for left, count in said if count] == [29.5, 13.5, 6.5, 0.5, -0.5]
    assert max(count for _, count in said) == 1


async def test_a_target_gets_a_bounded_number_of_mails_an_hour_and_nothing_is_left_out(told: Told) -> None:
    """Many causes, one after the other: the bound holds, and what came on top stands in the next mail."""
    assert told.here.mail is not None
    told.here.mail = msgspec.structs.replace(told.here.mail, per_hour_max=2)
    mails = []
    for number in range(5):
        await told.here.dead(f"user{number}", reason=Reason(code=f"cause_{number}", message="no", attribute="title"))
        mails += await told.looks()
    assert len(mails) == 2
    mails += await told.looks(3_700)
    assert len(mails) == 3
    assert "3 new problems" in mails[2]
    assert all(any(f"cause_{number} (title)" in mail for mail in mails) for number in range(5))


# ---- nothing is lost, nothing comes twice


@pytest.mark.parametrize("restarted", [False, True])
async def test_a_mail_server_that_is_away_loses_nothing(told: Told, restarted: bool) -> None:
    """SMTP down then up, with and without a restart of the gateway: every mail comes, once; status says it meanwhile."""
    await told.server.down()
    await told.here.dead("ada", reason=NAME)
    for later_s in (0, 400, 400, 400, 400, 400):
        assert await told.looks(later_s) == []
    await told.here.dead("bob", BETA, reason=NAME)
    assert await told.looks() == []
    numbers = await told.here.store.read(outbox)
    assert (numbers.waiting, numbers.failed) == (2, 0)
    assert numbers.error == f"127.0.0.1:{told.server.port} cannot be used: connection refused"
    status = await told.here.get("/status")
    assert not status["fine"]
    assert "2 wait, none is lost" in status["mail"]["sentence"]
    if restarted:
        told.notifier = told.here.another_notifier(told.here.store)
    await told.server.up()
    texts = await told.looks(13)
    assert len(texts) == 2, "one got through, so the others need not wait for their turn"
    assert sorted(text.split()[1] for text in texts) == [ALPHA, BETA]
    assert told.counted() == {"deferred": 7, "sent": 2}
    assert (await told.here.get("/status"))["mail"]["fine"]
    reminded = await told.looks(DAY_S)
    assert len(reminded) == 2
    assert all("still: " in text for text in reminded)


async def test_a_kill_between_send_and_record_sends_at_most_one_copy_with_the_same_message_id(told: Told) -> None:
    """At least once: the claim of a gateway that died ends, and the next one sends the very same mail."""
    await told.here.dead("ada", reason=NAME)
    await told.notifier.look()
    died = told.here.another_notifier(told.here.store)
    now = time.time()
    (claimed,) = await told.here.store.run(lambda ledger: claim_mails(ledger, died.holder, now, 20))
    letter = Letter(
        message_id=claimed.message_id,
        recipient=OPS,
        subject=claimed.subject,
        body=claimed.body,
        created_at=claimed.created_at,
    )
    sent_before = email.message_from_bytes(compose(letter, "provgate@example.com"), policy=email.policy.default)
    assert await told.looks() == [], "somebody has it"
    assert len(await told.looks(CLAIM_S + 1)) == 1
    assert await told.looks(CLAIM_S + 1) == []
    (mail,) = told.server.mails
    assert mail.items() == sent_before.items()
    assert mail["Message-ID"] == claimed.message_id
    assert (mail["Auto-Submitted"], mail["To"]) == ("auto-generated", OPS)
    await died.record(claimed, Verdict("later", "cut off"))
    (row,) = await told.here.store.read(lambda reader: listed_mails(reader, None, 10))
    assert (row.state, row.attempts) == ("sent", 2), "the dead one's late word counts no more"


async def test_what_the_server_takes_never_is_given_up_shown_and_tried_again_on_order(told: Told) -> None:
    """5xx ends a mail at once and 4xx does not (RFC 5321 section 4.2.1); after three days nothing is tried any more."""
    told.server.answers = ["451 later, please", f"550 no such user {OPS}"]
    await told.here.dead("ada", reason=NAME)
    assert await told.looks() == []
    assert await told.looks(20) == []
    (row,) = await told.here.store.read(lambda reader: listed_mails(reader, None, 10))
    assert (row.state, row.attempts) == ("failed", 2)
    assert row.error == "the server refused the mail (550: no such user o•••@example.com)"
    shown = await told.here.typed("mail", "status")
    assert (shown.code, "1 mail was given up" in shown.out) == (1, True)
    assert "550" in (await told.here.typed("mail", "list", "--state", "failed")).out
    retried = await told.here.typed("mail", "retry", "--reason", "the address is there now")
    assert retried.out == "1 mail will be tried again.\n"
    assert len(await told.looks()) == 1
    assert len(await told.here.audited("mail.retried")) == 1
    await told.here.dead("bob", BETA, reason=NAME)
    await told.server.down()
    assert await told.looks() == []
    assert await told.looks(GIVE_UP_AFTER_S) == []
    states = [row.state for row in await told.here.store.read(lambda reader: listed_mails(reader, None, 10))]
    assert states.count("failed") == 1


@pytest.mark.postgres
async def test_of_several_gateways_one_looks_and_one_sends_each_mail(
    tmp_path: Path,
    server: Server,
    postgres: str,  # noqa: F811 - the fixture
) -> None:
    """On PostgreSQL a lease decides who looks, and a claim who sends; if the one that looked goes, another one takes over."""
    here, other = Operated(tmp_path, Store.open(postgres)), Store.open(postgres)
    told = Told(here, server)
    second = here.another_notifier(other)
    await here.dead("ada", reason=NAME)
    await here.dead("bob", BETA, reason=NAME)
    for _ in range(3):
        await asyncio.gather(told.notifier.look(), second.look())
        await asyncio.gather(told.notifier.send_due(), second.send_due())
    dead = [text for text in server.texts() if "dead letter" in text]
    assert len(dead) == 2
    assert len({mail["Message-ID"] for mail in server.mails}) == len(server.mails)
    leader = told.notifier if told.notifier.leads_until else second
    follower = second if leader is told.notifier else told.notifier
    assert not follower.leads_until
    await here.dead("eve", reason=NUMBER)
    await follower.look()
    assert await follower.send_due() == 0
    here.ahead_s += 120
    await follower.look()
    assert await follower.send_due() >= 1
    assert any("bad_number" in text for text in server.texts())
    await here.settled()
    await here.store.close()
    await other.close()


# ---- nothing in a mail that must not be there


async def test_nothing_personal_and_no_header_comes_into_a_mail_whatever_products_say(told: Told) -> None:
    """S11: canaries in names, numbers, messages, codes, paths and reasons; line breaks wherever a vendor may put them."""
    here = told.here
    person = {
        "nickName": "Zugvogel",
        "displayName": "Canarina Zugvogel",
        "phoneNumbers": [{"type": "mobile", "value": "+44 7700 900987"}],
    }
    said = "Canarina Zugvogel <canary@contoso.example> +44 7700 900987\r\nBcc: evil@contoso.example"
    evil = "x\r\nBcc: evil@contoso.example"
    refused = Reason(
        code=f"bad_name{evil}", message=said, attribute=f'name[value eq "Zugvogel"].x{evil}', names=("Zugvogel",)
    )
    await here.dead("canary", reason=refused, **person)
    await here.held("canary2")
    blocked = await here.created("canary3", **person)
    reason = Reason(code="no_licence", message=said, attribute="active", names=("Canarina",))
    await here.comes_to(blocked, Result.BLOCKED, reason, blocked_on=f"licence of Canarina{evil}")
    down = await here.created("canary4", BETA, **person)
    steps = (Step(method="GET", path=f"/Users?filter=Zugvogel{evil}", status=401, ms=1.0, error=said),)
    await here.comes_to(down, Result.MISCONFIGURED, Reason(code="refused", message=said), steps=steps)
    await here.store.run(lambda ledger: _opens(ledger, said))
    await here.post(f"/targets/{ALPHA}/pause", {"reason": said})
    mails = await told.looks() + await told.looks(1_000) + await told.looks(2 * DAY_S)
    assert len(mails) >= 4
    raw = "\n".join(mail.as_string() for mail in told.server.mails) + "\n".join(mails)
    assert {mail["Bcc"] for mail in told.server.mails} == {None}
    assert set(told.server.recipients) == {OPS}
    for canary in ("canar", "Zugvogel", "900987", "7700", "evil", "contoso"):
        assert canary.lower() not in raw.lower(), canary
    assert "The call that was refused: GET /Users (401)." in raw
    letter = Letter(message_id="<a@example.com>", recipient=OPS, subject=f"a\r\nBcc: {OPS}", body="", created_at=1.0)
    assert email.message_from_bytes(compose(letter, "p@example.com"))["Bcc"] is None
    with pytest.raises(ValueError, match="not a mail address"):
        compose(msgspec.structs.replace(letter, recipient=f"{OPS}\r\nBcc: x@example.com"), "p@example.com")


def _opens(ledger: Any, said: str) -> None:
    target = ledger.target(ALPHA)
    open_circuit(target, Circuit.DOWN, f"30 resources were refused alike: {said}", time.time())
    ledger.save_target(target)


# ---- the server


def certificate(folder: Path) -> tuple[Path, ssl.SSLContext]:
    """A certificate for this machine, signed by itself, and a server's side of it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, now - timedelta(days=1), now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    public, both = folder / "public.pem", folder / "server.pem"
    public.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    both.write_bytes(key.private_bytes(*private) + public.read_bytes())
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(both)
    return public, context


def _checked(server: Any, session: Any, envelope: Any, mechanism: str, given: Any) -> AuthResult:
    assert isinstance(given, LoginPassword)
    right = (given.login, given.password) == (USER.encode(), PASSWORD.encode())
    return AuthResult(success=right, handled=right)


async def test_mails_go_over_checked_TLS_with_a_sign_in_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """STARTTLS with a certificate that is trusted, and a sign-in; a wrong password, a strange certificate and no TLS stop it."""
    public, context = certificate(tmp_path)
    (tmp_path / "password").write_text(PASSWORD)
    (tmp_path / "password").chmod(0o600)
    monkeypatch.setenv("PROVGATE_MAIL_USER", USER)
    monkeypatch.setenv("PROVGATE_WRONG", "some-wrong-password")
    server = Server(tls_context=context, require_starttls=True, auth_required=True, authenticator=_checked)
    bare = Server()
    await server.up()
    await bare.up()
    silent = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
    nobody = silent.sockets[0].getsockname()[1]
    settings = MailSettings(
        host="127.0.0.1",
        port=server.port,
        username=Secret(env="PROVGATE_MAIL_USER"),
        password=Secret(file="password"),
        ca_file="public.pem",
        sender="provgate@example.com",
        to=(OPS,),
    )
    assert public.exists()
    changed = msgspec.structs.replace
    problems = {}
    for what, wrong in {
        "password": changed(settings, password=Secret(env="PROVGATE_WRONG")),
        "certificate": changed(settings, ca_file=""),
        "no TLS": changed(settings, port=bare.port),
        "secret": changed(settings, password=Secret(env="PROVGATE_NOT_SET")),
        "silence": changed(settings, port=nobody, timeout_s=0.1),
        "no sign-in": changed(settings, port=bare.port, tls="none", ca_file=""),
    }.items():
        with pytest.raises(MailProblem) as problem:
            await knock(wrong, tmp_path)
        problems[what] = str(problem.value)
    assert problems == {
        "password": f"127.0.0.1:{server.port} refused username or password (535)",
        "certificate": f"127.0.0.1:{server.port} cannot be used: its certificate is not trusted: self-signed certificate",
        "no TLS": f"127.0.0.1:{bare.port} does not offer STARTTLS",
        "secret": "environment variable PROVGATE_NOT_SET is not set or empty",
        "silence": f"127.0.0.1:{nobody} cannot be used: no answer in time",
        "no sign-in": f"127.0.0.1:{bare.port} does not offer AUTH",
    }
    assert not bare.mails
    silent.close()
    async with operated(tmp_path / "gateway") as here:
        told = Told(here, server)
        here.mail = settings
        here.notifier.base = tmp_path
        await here.dead("ada", reason=NAME)
        assert len(await told.looks()) == 1
    await server.down()
    await bare.down()


# ---- operators


async def test_operators_test_list_and_watch_mails_by_command(told: Told, tmp_path: Path) -> None:
    """Every command with --json, exit codes, and a test mail that reaches those who are told anything; tests are recorded."""
    here = told.here
    settings, here.mail = here.mail, None
    nobody = await here.typed("mail", "status")
    assert (nobody.code, "Nobody is told by mail" in nobody.out) == (1, True)
    assert (await here.typed("mail", "test")).code == 2
    here.mail = settings
    here.configured[ALPHA] = msgspec.structs.replace(here.configured[ALPHA], alert_to=(ALPHA_OPS,))
    tested = await here.typed("mail", "test", "--json")
    assert (tested.code, [one["outcome"] for one in json.loads(tested.out)["tested"]]) == (0, ["sent", "sent"])
    assert sorted(told.server.recipients) == [ALPHA_OPS, OPS]
    only = await here.typed("mail", "test", "--to", "new@example.com")
    assert (only.code, "taken by the server" in only.out) == (0, True)
    strange = await here.typed("mail", "test", "--to", "a@b.example\nBcc: c@d.example")
    assert (strange.code, "no plain mail address" in strange.err) == (2, True)
    told.server.answers = ["550 not here"]
    refused = await here.typed("mail", "test", "--to", "new@example.com")
    assert (refused.code, "550" in refused.out) == (1, True)
    assert len(await here.audited("mail.tested")) == 3
    await here.dead("ada", reason=NAME)
    assert len(await told.looks()) == 1
    fine = await here.typed("mail", "status")
    assert (fine.code, fine.out.splitlines()[0]) == (0, "Mails get through.")
    assert ALPHA_OPS in fine.out
    listed = json.loads((await here.typed("mail", "list", "--json")).out)
    assert [(mail["state"], mail["target"]) for mail in listed["mails"]] == [("sent", ALPHA)]
    assert (await here.typed("mail", "list", "--state", "lost")).code == 2
    assert "body" not in listed["mails"][0]
    await told.server.down()
    await here.dead("bob", reason=NUMBER)
    await told.looks()
    shown = await here.typed("status")
    assert "Mails to operators do not get through since" in " ".join(shown.out.split())
    config = tmp_path / "provgate.toml"
    config.write_text(
        f'[store]\npath = "store.sqlite3"\n[mail]\nhost = "127.0.0.1"\nport = {told.server.port}\ntls = "none"\n'
        'sender = "provgate@example.com"\nto = ["ops@example.com"]\n'
    )
    found = await asyncio.to_thread(run_checks, config)
    assert [one.message for one in found if one.where == "mail"] == [
        f"127.0.0.1:{told.server.port} cannot be used: connection refused",
        "1 mail to operators did not get through",
    ]


async def test_a_gateway_process_tells_by_itself_what_needs_a_person(tmp_path: Path, server: Server) -> None:
    """From the file to the mail: a process of its own, with a key of Entra's in the store that ends in five days."""
    async with operated(tmp_path) as here:
        made = await here.keys.issue(ALPHA, days=90, label="", actor="test")
        ends_at = time.time() + 5.5 * DAY_S
        await here.store.run(
            lambda ledger: ledger.connection.execute(f"UPDATE access_key SET expires_at = {ends_at}")  # type: ignore[attr-defined]
        )
    file = tmp_path / "provgate.toml"
    file.write_text(
        '[gateway]\nport = 0\noperator_port = 0\n[store]\npath = "store.sqlite3"\n[nats]\nurl = "nats://127.0.0.1:1"\n'
        f'[mail]\nhost = "127.0.0.1"\nport = {server.port}\ntls = "none"\nsender = "provgate@example.com"\n'
        'to = ["ops@example.com"]\n[targets.alpha]\nconnector = "observe"\n'
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "gateway",
        "--config",
        str(file),
        stderr=asyncio.subprocess.DEVNULL,
        env=clean_environment(),
    )
    try:
        await until(lambda: server.mails, "the mail", wait_s=60.0)
    finally:
        process.terminate()
        await asyncio.wait_for(process.wait(), WAIT_S)
    assert f"alpha has the access key {made.row.id}, which ends in 5 days" in server.texts()[0]
    assert process.returncode == 0


def test_mistakes_in_the_mail_settings_are_all_said_at_once() -> None:
    """Path first: addresses that could carry a header, no TLS over a network, half a sign-in, nobody to send for alert_to."""
    with pytest.raises(ConfigurationError) as refused:
        parse(
            '[mail]\nhost = "mail.example.com"\nsender = "a@b.example\\nBcc: c@d.example"\nto = ["ops"]\ntls = "none"\n'
            'username = { env = "U" }\n[targets.a]\nconnector = "observe"\nalert_to = ["A <a@b.example>"]\n'
        )
    assert [problem.partition(":")[0] for problem in refused.value.problems] == [
        "mail.sender",
        "mail.to",
        "mail.tls",
        "mail.password",
        "targets.a.alert_to",
    ]
    with pytest.raises(ConfigurationError, match=r"targets\.a\.alert_to: nobody would be told"):
        parse('[targets.a]\nconnector = "observe"\nalert_to = ["ops@example.com"]\n')
