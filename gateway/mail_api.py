"""The operators' API of mails: whether they get through, what is in the outbox, a test, and another try for what was given up."""

from __future__ import annotations

from typing import Annotated

from litestar import Router, get, post
from litestar.params import FromQuery, RawBody
from msgspec import Meta, Struct

from gateway.mails_store import LISTED_MAX, Mail, MailHealth, Outbox, health_of, listed_mails, outbox, retry_failed
from gateway.notify import Notifier, Tested
from gateway.services import ACTOR, PREFIX, OperatorError, ReasonOrder, Services, limit_of, order_of, record
from gateway.smtp import MailProblem
from gateway.store import Reader, Transaction
from schemas.config import mail_address

LIST_DEFAULT = 50
STATES = ("waiting", "sent", "failed")


class TestOrder(Struct, frozen=True, forbid_unknown_fields=True):
    """Send a test mail; without `to`: to everybody who is told anything."""

    to: Annotated[str, Meta(max_length=320)] = ""


class MailStatusView(Struct, frozen=True, kw_only=True):
    """Whether operators can be told, by which server, and who is told about what.

    Args:
        configured: whether there is a `[mail]`; without it everything else is empty.
        targets: who is told about a target that names its own.
    """

    at: float
    configured: bool
    server: str = ""
    tls: str = ""
    sender: str = ""
    to: tuple[str, ...] = ()
    targets: dict[str, tuple[str, ...]] = {}
    health: MailHealth | None = None
    outbox: Outbox | None = None


class MailView(Struct, frozen=True, kw_only=True):
    """One mail, without its text. `next_at`: when it is tried next, while it waits."""

    id: str
    target: str
    kind: str
    recipient: str
    subject: str
    created_at: float
    state: str
    attempts: int
    next_at: float | None
    ended_at: float | None
    error: str


class MailsView(Struct, frozen=True):
    """The newest mails first; `total` in the outbox and kept."""

    at: float
    total: int
    mails: tuple[MailView, ...]


class TestedView(Struct, frozen=True):
    """What became of a test mail, for each recipient."""

    at: float
    fine: bool
    tested: tuple[Tested, ...]


class RetriedView(Struct, frozen=True):
    """How many mails that were given up are tried again."""

    at: float
    retried: int


def mail_router(services: Services, notifier: Notifier) -> Router:
    """The routes of this module, to be put beside the operators' others."""

    @get("/mail")
    async def show_mail() -> MailStatusView:
        """Whether mails get through."""
        now, settings = services.clock.now(), notifier.settings()
        if settings is None:
            return MailStatusView(at=now, configured=False)
        box = await services.store.read_slow(outbox)
        host, port = settings.place()
        return MailStatusView(
            at=now,
            configured=True,
            server=f"{host}:{port}",
            tls=settings.tls,
            sender=settings.sender,
            to=settings.to,
            targets={name: one.alert_to for name, one in services.targets().items() if one.alert_to},
            health=health_of(box, now),
            outbox=box,
        )

    @get("/mail/list")
    async def list_mails(in_state: FromQuery[str | None] = None, limit: FromQuery[int] = LIST_DEFAULT) -> MailsView:
        """The newest mails, of one state or of all."""
        state = in_state
        if state is not None and state not in STATES:
            raise OperatorError(400, f"state must be one of {', '.join(STATES)}.")
        most = limit_of(limit, LISTED_MAX)

        def query(reader: Reader) -> tuple[list[Mail], Outbox]:
            return listed_mails(reader, state, most), outbox(reader)

        mails, box = await services.store.read_slow(query)
        counts = {"waiting": box.waiting, "sent": box.sent, "failed": box.failed}
        total = counts[state] if state is not None else sum(counts.values())
        return MailsView(services.clock.now(), total, tuple(map(_view, mails)))

    @post("/mail/test", status_code=200)
    async def test_mail(body: RawBody) -> TestedView:
        """Send a test mail right away, and say what the server said."""
        order = order_of(body, TestOrder)
        if order.to and not mail_address(order.to):
            raise OperatorError(400, "That is no plain mail address; it looks like ops@example.com.")
        now = services.clock.now()
        try:
            tested = await notifier.test([order.to] if order.to else notifier.everybody(), now)
        except MailProblem as exc:
            raise OperatorError(409, f"No test mail was sent: {exc}.") from None

        await record(services, "mail.tested", "", {one.recipient: one.outcome for one in tested}, subject="mail")
        return TestedView(now, all(one.outcome == "sent" for one in tested), tuple(tested))

    @post("/mail/retry", status_code=200)
    async def retry_mails(body: RawBody) -> RetriedView:
        """Have every mail that was given up tried again."""
        order, now = order_of(body, ReasonOrder), services.clock.now()

        def job(ledger: Transaction) -> int:
            count = retry_failed(ledger, now)
            detail = {"reason": order.reason, "mails": count}
            ledger.audit(at=now, actor=ACTOR, action="mail.retried", target="", subject="mail", detail=detail)
            return count

        return RetriedView(now, await services.store.run(job))

    return Router(PREFIX, route_handlers=[show_mail, list_mails, test_mail, retry_mails])


def _view(mail: Mail) -> MailView:
    return MailView(
        id=mail.notice,
        target=mail.target,
        kind=mail.kind,
        recipient=mail.recipient,
        subject=mail.subject,
        created_at=mail.created_at,
        state=mail.state,
        attempts=mail.attempts,
        next_at=mail.next_at if mail.state == "waiting" else None,
        ended_at=mail.ended_at,
        error=mail.error,
    )
