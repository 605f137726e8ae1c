"""Speaks SMTP (RFC 5321): composes a mail and hands it to the configured server. The only module that knows how.

A server's words may repeat an address, and after a sign-in anything, so little of them gets out: the number, and for what is not
the sign-in the masked sentence. With TLS the certificate is checked, and a server that does not offer it gets nothing.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from email.message import EmailMessage
from email.policy import SMTP as SMTP_POLICY
from email.utils import format_datetime
from pathlib import Path
from typing import Literal

import aiosmtplib
from msgspec import Struct

from gateway.explanations import mask_message, sentence_of
from schemas.config import MailSettings, Secret, mail_address
from schemas.errors import ConfigurationError
from schemas.logs import redact_text, register_secret

SUBJECT_CHARS_MAX = 150
DETAIL_CHARS_MAX = 300
LINE_CHARS_MAX = 998
"""RFC 5322 section 2.1.1; longer lines of a body are encoded."""
GOODBYE_WAIT_S = 2.0
PERMANENT = 500
"""Replies from this number on are final (RFC 5321 section 4.2.1)."""

_policy = SMTP_POLICY.clone(max_line_length=LINE_CHARS_MAX)


class Letter(Struct, frozen=True, kw_only=True):
    """One mail to one recipient. `message_id` is the same however often it is sent; `created_at` epoch seconds."""

    message_id: str
    recipient: str
    subject: str
    body: str
    created_at: float


class Verdict(Struct, frozen=True):
    """What became of one letter: `sent`, `later` (try again) or `refused` (never); `detail`: why, without secrets."""

    outcome: Literal["sent", "later", "refused"]
    detail: str = ""


class MailProblem(Exception):
    """The server cannot be used now; the sentence may be shown to operators and logged."""


def compose(letter: Letter, sender: str) -> bytes:
    """The message as it goes over the wire (RFC 5322), marked as made by a machine (RFC 3834).

    Raises:
        ValueError: an address is none.
    """
    if not (mail_address(letter.recipient) and mail_address(sender)):
        raise ValueError("not a mail address")
    message = EmailMessage(policy=_policy)
    message["From"] = f"Provgate <{sender}>"
    message["To"] = letter.recipient
    message["Subject"] = sentence_of(letter.subject)[:SUBJECT_CHARS_MAX]
    message["Date"] = format_datetime(datetime.fromtimestamp(letter.created_at, UTC))
    message["Message-ID"] = letter.message_id
    message["Auto-Submitted"] = "auto-generated"
    message["X-Auto-Response-Suppress"] = "All"
    message.set_content(letter.body)
    return message.as_bytes()


class Session:
    """A connection to the server that takes mails."""

    def __init__(self, client: aiosmtplib.SMTP, settings: MailSettings) -> None:
        self._client = client
        self._settings = settings

    async def send(self, letter: Letter) -> Verdict:
        """Hand over one letter.

        Raises:
            MailProblem: the connection is of no use any more; whether the server took the letter is not known.
        """
        try:
            data = compose(letter, self._settings.sender)
        except ValueError as exc:
            return Verdict("refused", str(exc))
        try:
            async with asyncio.timeout(self._settings.timeout_s * 2):
                await self._client.sendmail(self._settings.sender, [letter.recipient], data)
        except aiosmtplib.SMTPRecipientsRefused as exc:
            return _judged("the recipient", exc.recipients[0])
        except aiosmtplib.SMTPSenderRefused as exc:
            return Verdict("later", _said("the sender", exc))
        except aiosmtplib.SMTPResponseException as exc:
            return _judged("the mail", exc)
        except (aiosmtplib.SMTPException, OSError) as exc:
            raise MailProblem(f"{_name(self._settings)} broke off: {_why(exc)}") from None
        return Verdict("sent")


def _judged(what: str, exc: aiosmtplib.SMTPResponseException) -> Verdict:
    return Verdict("refused" if exc.code >= PERMANENT else "later", _said(what, exc))


def _said(what: str, exc: aiosmtplib.SMTPResponseException) -> str:
    words = _cut(redact_text(mask_message(" ".join(exc.message.split()))))
    return f"the server refused {what} ({exc.code}{f': {words}' if words else ''})"


def _cut(text: str) -> str:
    return sentence_of(text)[:DETAIL_CHARS_MAX]


def _name(settings: MailSettings) -> str:
    host, port = settings.place()
    return f"{host}:{port}"


def _why(exc: BaseException) -> str:
    """What kept us from the server, in a few words that hold no secret."""
    cause = exc.__cause__ or exc
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {cause.verify_message}"
    if isinstance(cause, ssl.SSLError):
        return f"TLS failed: {cause.reason or 'no reason given'}"
    if isinstance(cause, TimeoutError | aiosmtplib.SMTPTimeoutError):
        return "no answer in time"
    if isinstance(cause, socket.gaierror):
        return "the name is not known"
    if isinstance(cause, OSError):
        return os.strerror(cause.errno).lower() if cause.errno else "no connection"
    return type(cause).__name__


@asynccontextmanager
async def signed_in(settings: MailSettings, base: Path) -> AsyncIterator[Session]:
    """A session with the configured server, over TLS and signed in as the settings say.

    Args:
        base: folder of the configuration file, for relative paths of secrets and of `ca_file`.

    Raises:
        MailProblem: it cannot be had.
    """
    client = await _connected(settings, base)
    try:
        yield Session(client, settings)
    finally:
        with suppress(aiosmtplib.SMTPException, OSError):
            async with asyncio.timeout(GOODBYE_WAIT_S):
                await client.quit()
        client.close()


async def _connected(settings: MailSettings, base: Path) -> aiosmtplib.SMTP:
    host, port = settings.place()
    username, password = _revealed(settings.username, base), _revealed(settings.password, base)
    client = aiosmtplib.SMTP(
        hostname=host,
        port=port,
        timeout=settings.timeout_s,
        use_tls=settings.tls == "tls",
        start_tls=settings.tls == "starttls",
        tls_context=None if settings.tls == "none" else await asyncio.to_thread(_trust, settings, base),
        local_hostname=socket.gethostname(),  # the library would ask the DNS, and block
    )
    try:
        async with asyncio.timeout(settings.timeout_s * 2):
            await client.connect()
            if username:
                await client.login(username, password)
    except aiosmtplib.SMTPAuthenticationError as exc:  # its words may repeat what was sent
        problem = f"{_name(settings)} refused username or password ({exc.code})"
    except aiosmtplib.SMTPResponseException as exc:
        problem = f"{_name(settings)} does not want to talk ({exc.code})"
    except aiosmtplib.SMTPException as exc:
        missing = next((what for what in ("AUTH", "STARTTLS") if f"{what} extension not" in _plain(exc)), None)
        problem = f"{_name(settings)} " + (f"does not offer {missing}" if missing else f"cannot be used: {_why(exc)}")
    except (OSError, ValueError) as exc:
        problem = f"{_name(settings)} cannot be used: {_why(exc)}"
    else:
        return client
    client.close()
    raise MailProblem(problem)


def _plain(exc: aiosmtplib.SMTPException) -> str:
    """The library's own sentence about what a server lacks."""
    return str(exc).replace("extension is not", "extension not")


def _trust(settings: MailSettings, base: Path) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=str(base / settings.ca_file) if settings.ca_file else None)
    except (OSError, ssl.SSLError):
        raise MailProblem("mail.ca_file cannot be read, or holds no certificates") from None


def _revealed(secret: Secret | None, base: Path) -> str:
    if secret is None:
        return ""
    try:
        value = secret.reveal(base)
    except ConfigurationError as exc:
        raise MailProblem(f"{exc.source} {exc.problems[0]}") from None
    register_secret(value)
    return value


async def knock(settings: MailSettings, base: Path) -> None:
    """See whether the server would take mails: connect, TLS, sign in, and nothing more.

    Raises:
        MailProblem: it would not.
    """
    async with signed_in(settings, base):
        return
