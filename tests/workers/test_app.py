"""The worker process against a real nats-server and a real HTTP product; rule numbers are those of the delivery rules."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import nats
import pytest

from schemas import topology
from schemas.events import timestamp
from schemas.states import Result
from tests.conftest import NatsServer
from tests.waiting import until
from tests.workers.conftest import Clock, Gateway, StartWorker
from tests.workers.shelf import ShelfServer
from workers import presence
from workers.app import Worker, epoch_ns
from workers.ownership import Held, Link, Pulls, Signals, Slots
from workers.receiving import ack_facts, is_fresh, may_have_a_copy

BADGE = "badge = true\n"


# ---- the usual way


async def test_an_event_is_applied_told_and_then_acknowledged(
    gateway: Gateway, shelf: ShelfServer, start_worker: StartWorker
) -> None:
    """Rule A5: the outcome is in its stream, with all facts of the delivery, and the event is gone from the work stream."""
    worker = await start_worker()

    event = await gateway.send("r1")

    outcome = await gateway.outcome()
    await until(gateway.acknowledged)
    assert (outcome.result, outcome.account_id, outcome.created) == (Result.APPLIED, "a1", True)
    assert (outcome.event_id, outcome.fence, outcome.generation, outcome.delivery) == (event.id, 1, 1, 1)
    assert [(step.method, step.path, step.status) for step in outcome.steps] == [
        ("GET", "/accounts", 200),
        ("POST", "/accounts", 200),
    ]
    assert outcome.worker == worker.id
    assert shelf.accounts["a1"]["key"] == event.message_id


async def test_events_of_different_resources_run_at_once_and_no_more_than_configured(
    gateway: Gateway, shelf: ShelfServer, start_worker: StartWorker
) -> None:
    """Promise P5: one slow user delays nobody; `concurrency_max` is the bound of what is in a worker's hands."""
    await start_worker()
    shelf.gate.clear()

    for number in range(7):
        await gateway.send(f"r{number}")
    await until(lambda: len(shelf.writes()) == 4)
    consumer = (await gateway.consumers())[0]

    assert consumer["num_ack_pending"] == 4
    shelf.gate.set()
    await until(gateway.acknowledged)
    assert len(shelf.accounts) == 7


async def test_what_nobody_can_read_is_ended_and_the_next_event_is_served(
    gateway: Gateway, shelf: ShelfServer, start_worker: StartWorker
) -> None:
    """An unparsable message, or one of another subject, is terminated; no call, no outcome."""
    await start_worker()

    await gateway.send("r1", body=b'{"not": "an event"}')
    await gateway.send("r2", body=b"\xff\xfe")
    await gateway.send("r3", body=msgspec.json.encode({"id": "x", "target": "other"}))
    await gateway.send("r4")

    await until(gateway.acknowledged)
    assert [outcome.resource for outcome in gateway.outcomes] == ["r4"]
    assert len(shelf.accounts) == 1


async def test_a_name_that_appeared_meanwhile_is_found_by_one_refresh(
    gateway: Gateway, shelf: ShelfServer, start_worker: StartWorker
) -> None:
    """A name nobody knows costs one look at the product; a second unknown name within a minute costs none."""
    await start_worker()

    await gateway.send("r1", document={"userName": "r1", "title": "Clerk"})
    first = await gateway.outcome(1)
    await gateway.send("r2", document={"userName": "r2", "title": "Wizard"})
    second = await gateway.outcome(2)

    assert first.result is Result.APPLIED
    assert second.result is Result.REJECTED
    assert second.reason is not None
    assert second.reason.names == ("Wizard",)
    assert shelf.journal.count(("GET", "/roles")) == 1


# ---- R6: who may act


async def test_R6_a_fresh_first_delivery_asks_nobody(gateway: Gateway, start_worker: StartWorker) -> None:
    """R6: delivered for the first time, stored in time, connection up since: it acts at once."""
    await start_worker()

    await gateway.send("r1")

    await gateway.outcome()
    assert gateway.asked == []


async def test_R6_an_event_that_a_lost_stream_may_have_carried_rests_before_it_even_asks(
    gateway: Gateway, shelf: ShelfServer, start_worker: StartWorker
) -> None:
    """R6: its row was read before the stream was made, so another worker may hold a copy, a first delivery like this one."""
    await start_worker()

    await gateway.send("r1", recorded_at=timestamp(time.time() - 60))

    await gateway.send("r2")
    assert (await gateway.outcome()).resource == "r2"  # the worker had both in hand
    await until(lambda: len(shelf.writes()) == 1)
    assert gateway.asked == []
    await until(lambda: _only_one_is_left(gateway))


async def _only_one_is_left(gateway: Gateway) -> bool:
    return await gateway.left() == 1


@pytest.mark.parametrize(
    ("recorded_at", "copied"),
    [
        ("1970-01-01T00:00:01.001Z", False),
        ("1970-01-01T00:00:01.000Z", True),
        ("1970-01-01T00:00:00Z", True),
        ("", False),
        ("soon", False),
    ],
)
def test_R6_only_what_was_recorded_before_the_stream_was_made_may_have_a_copy(recorded_at: str, copied: bool) -> None:
    """R6: the time stands in the event and is the same in every copy; here the stream was made one second after the epoch."""
    assert may_have_a_copy(recorded_at, 1_000_000_000) is copied


async def test_R6_an_event_without_the_header_asks_first(gateway: Gateway, start_worker: StartWorker) -> None:
    """R6: nobody knows when its row was read, so it acts only after a go."""
    await start_worker()

    await gateway.send("r1", act_before_s=None)

    assert (await gateway.outcome()).result is Result.APPLIED
    asked = gateway.asked[0]
    assert (asked.target, asked.resource, asked.fence, asked.delivery) == ("shelf", "r1", 1, 1)


async def test_R6_an_event_older_than_the_connection_asks_first(gateway: Gateway, start_worker: StartWorker) -> None:
    """R6: what was stored before this worker came may have been in somebody's hands, whatever the broker counts."""
    await gateway.send("r1", act_before_s=60)

    await start_worker()

    await gateway.outcome()
    assert len(gateway.asked) == 1


async def test_R6_a_dropped_delivery_is_acknowledged_without_any_call(
    gateway: Gateway, shelf: ShelfServer, start_worker: StartWorker
) -> None:
    """R6: the gateway says that the message is not current."""
    gateway.go = False
    await start_worker()

    await gateway.send("r1", act_before_s=None)

    await until(lambda: gateway.asked)
    await until(gateway.acknowledged)
    assert shelf.journal == []
    assert gateway.outcomes == []


async def test_R6_without_an_answer_nothing_is_done_and_the_event_comes_back(
    gateway: Gateway, shelf: ShelfServer, start_worker: StartWorker
) -> None:
    """R6: no answer means neither go nor drop; the message waits a few seconds, and the redelivery asks with its number."""
    gateway.go = None
    await start_worker()

    await gateway.send("r1", act_before_s=None)
    await until(lambda: len(gateway.asked) == 1)
    assert shelf.journal == []
    assert not await gateway.acknowledged()
    gateway.go = True

    assert (await gateway.outcome()).delivery == 2
    assert [asked.delivery for asked in gateway.asked] == [1, 2]


async def test_R6_a_redelivery_asks_and_looks_before_it_writes(
    gateway: Gateway, shelf: ShelfServer, start_worker: StartWorker
) -> None:
    """R6: another worker had the event before; the account it made is found and reported, not written on (R4)."""
    shelf.accounts["a9"] = {"name": "r1@contoso.example"}
    durable = await topology.declare_work_consumer(
        gateway.request, await gateway.declare(), "shelf", ack_pending_max=1000
    )
    await gateway.send("r1", act_before_s=60)
    other = await gateway.client.jetstream().pull_subscribe("", durable=durable, stream=topology.WORK)
    await (await other.fetch(1))[0].nak()

    await start_worker()

    outcome = await gateway.outcome()
    assert [asked.delivery for asked in gateway.asked] == [2]
    assert (outcome.result, outcome.delivery, outcome.looked) == (Result.FOUND, 2, True)
    assert outcome.sightings[0].account_id == "a9"
    assert shelf.writes() == []


NOW_NS = 1_795_378_224_043_890_609
FRESH = {
    "delivery": 1,
    "stored_ns": NOW_NS,
    "act_before": str(NOW_NS // 1_000_000 + 1),
    "since_ns": NOW_NS - 1,
    "lost": False,
}


@pytest.mark.parametrize(
    ("change", "fresh"),
    [
        ({}, True),
        ({"delivery": 2}, False),
        ({"act_before": str(NOW_NS // 1_000_000 - 1)}, False),
        ({"act_before": ""}, False),
        ({"act_before": "-1"}, False),
        ({"since_ns": NOW_NS + 1}, False),
        ({"lost": True}, False),
    ],
    ids=[
        "all hold",
        "redelivered",
        "stored late",
        "no header",
        "no number",
        "connection younger",
        "connection lost since",
    ],
)
def test_R6_each_condition_counts_by_itself(change: dict[str, Any], fresh: bool) -> None:
    """R6: first delivery, stored in time, connection and consumer up since before that; one that fails means asking."""
    facts: dict[str, Any] = {**FRESH, **change}
    link = Link(Clock())
    held = Held(link, "reply", pulled_at=link.clock(), epoch=link.epoch)
    if facts["lost"]:
        link.lost()

    assert fresh is is_fresh(held, facts["since_ns"], facts["act_before"], facts["delivery"], facts["stored_ns"])


# ---- R7: whose delivery it is


async def test_R7_a_gap_between_signals_ends_the_delivery_before_its_next_call(
    gateway: Gateway, shelf: ShelfServer, start_worker: StartWorker
) -> None:
    """R7 and R8: after 11 s of silence no call is made; what was done is reported; nothing settles, nothing is acknowledged."""
    clock = Clock()
    await start_worker(BADGE, clock=clock)
    shelf.gate.clear()
    await gateway.send("r1")
    await until(lambda: shelf.writes())

    clock.added_s += topology.OWNED_S + 1
    shelf.gate.set()

    outcome = await gateway.outcome()
    assert outcome.result is Result.GAVE_UP
    assert shelf.writes() == [("POST", "/accounts")]
    assert await gateway.left() == 1


async def test_R7_answered_signals_keep_a_slow_delivery_ours(
    gateway: Gateway, shelf: ShelfServer, start_worker: StartWorker
) -> None:
    """R7: a delivery of 18 s, with a signal answered in between each 6 s, goes through to its end."""
    clock = Clock()
    worker = await start_worker(BADGE, clock=clock)
    shelf.gate.clear()
    await gateway.send("r1")
    await until(lambda: shelf.writes())

    for _ in range(3):
        (held,) = worker._signals._held
        before = held.sent_at
        clock.added_s += topology.SIGNAL_EVERY_S + 1
        await until(lambda held=held, before=before: held.sent_at > before)
    shelf.gate.set()

    assert (await gateway.outcome()).result is Result.APPLIED
    await until(gateway.acknowledged)


async def test_R7_an_unanswered_signal_renews_nothing(
    gateway: Gateway, nats_server: NatsServer, shelf: ShelfServer, start_worker: StartWorker
) -> None:
    """R7: a signal that was sent and not answered counts as none; the delivery is over although the connection stands."""
    clock = Clock()
    worker = await start_worker(BADGE, clock=clock)
    shelf.gate.clear()
    await gateway.send("r1")
    await until(lambda: shelf.writes())
    (held,) = worker._signals._held

    pulled_at = held.sent_at

    nats_server.freeze()
    clock.added_s += topology.SIGNAL_EVERY_S + 1
    await until(lambda: held.signalling)
    await until(lambda: not held.signalling)  # its time to be answered is up
    assert held.sent_at == pulled_at
    clock.added_s += topology.OWNED_S - topology.SIGNAL_EVERY_S
    shelf.gate.set()
    await until(lambda: not held.ours)
    nats_server.thaw()

    assert (await gateway.outcome()).result is Result.GAVE_UP
    assert shelf.writes() == [("POST", "/accounts")]
    assert await gateway.left() == 1


async def test_R7_a_reconnect_ends_the_delivery_for_good(
    gateway: Gateway, nats_server: NatsServer, shelf: ShelfServer, start_worker: StartWorker
) -> None:
    """R7 and R8: the bus went down and came back within a second; the delivery is over, and says what it did."""
    worker = await start_worker(BADGE)
    shelf.gate.clear()
    await gateway.send("r1")
    await until(lambda: shelf.writes())

    nats_server.restart()
    await until(lambda: worker._link.epoch == 1 and worker._link.up and gateway.client.is_connected)
    shelf.gate.set()

    assert (await gateway.outcome()).result is Result.GAVE_UP
    assert shelf.writes() == [("POST", "/accounts")]
    assert await gateway.left() == 1


async def test_R7_ownership_counts_from_the_pull_request_and_not_from_the_receipt(
    gateway: Gateway, nats_server: NatsServer
) -> None:
    """R7: a message that lay unread for 11 s, as after a freeze of the process, is not ours when it is read."""
    clock = Clock()
    client = await nats.connect(nats_server.url)
    link = Link(clock)
    link.client = client
    signals = Signals(link)
    pulls = await _pulls(gateway, link, signals)
    asking = asyncio.create_task(pulls.fetch(4))
    await until(_waiting(gateway))
    asked_at = clock()

    clock.added_s += topology.OWNED_S + 1  # the process slept; the request was sent before, the message comes after
    await gateway.send("r1")
    (message,) = await asking

    held = pulls.take(message.reply)
    assert held is not None
    assert held.pulled_at <= asked_at
    assert not held.ours
    await pulls.unsubscribe()
    await client.close()


async def test_R7_nothing_an_ended_pull_request_left_behind_is_taken_for_the_next_ones(
    gateway: Gateway, nats_server: NatsServer
) -> None:
    """R7: a pull request that was given up takes its inbox with it; what still comes there is delivered again, not run."""
    clock = Clock()
    client = await nats.connect(nats_server.url)
    link = Link(clock)
    link.client = client
    pulls = await _pulls(gateway, link, Signals(link))
    asking = asyncio.create_task(pulls.fetch(4))
    await until(_waiting(gateway))
    asking.cancel()
    clock.added_s += 3  # its end is overdue, so the next fetch gives it up

    first_inbox = pulls._inbox
    asking = asyncio.create_task(pulls.fetch(4))
    await until(lambda: pulls._inbox != first_inbox)
    await gateway.send("r1")
    (message,) = await asking

    held = pulls.take(message.reply)
    assert held is not None
    assert held.ours
    assert clock() - held.pulled_at < 2
    await pulls.unsubscribe()
    await client.close()


async def _pulls(gateway: Gateway, link: Link, signals: Signals) -> Pulls:
    stream = await gateway.declare()
    durable = await topology.declare_work_consumer(gateway.request, stream, "shelf", ack_pending_max=100)
    pulls = Pulls(link, signals, Slots(4), stream=topology.WORK, durable=durable)
    pulls.verified(link.epoch, 0)
    return pulls


def _waiting(gateway: Gateway) -> Callable[[], Any]:
    async def waiting() -> bool:
        return any(consumer["num_waiting"] for consumer in await gateway.consumers())

    return waiting


# ---- R8: what a delivery did is told


async def test_R8_an_outcome_that_cannot_be_told_in_time_becomes_a_report(
    gateway: Gateway, nats_server: NatsServer, shelf: ShelfServer, start_worker: StartWorker
) -> None:
    """R8: the account was created, the bus went away before the outcome was confirmed: reported when the bus is back."""
    worker = await start_worker()
    shelf.gate.clear()
    await gateway.send("r1")
    await until(lambda: shelf.accounts)

    nats_server.kill()
    await until(lambda: worker._link.epoch == 1 and not gateway.client.is_connected)
    shelf.gate.set()
    nats_server.start()

    report = await gateway.outcome()
    assert (report.result, report.account_id, report.created) == (Result.GAVE_UP, "a1", True)
    assert await gateway.left() == 1


async def test_R8_an_outcome_waits_for_its_stream_and_the_event_waits_for_the_outcome(
    gateway: Gateway, shelf: ShelfServer, start_worker: StartWorker
) -> None:
    """Rule A5: the outcome stream was deleted; it is declared again, the outcome stored there, and only then the event acked."""
    await start_worker()
    shelf.gate.clear()
    await gateway.send("r1")
    await until(lambda: shelf.accounts)

    await gateway.request(f"$JS.API.STREAM.DELETE.{topology.OUTCOMES}")
    shelf.gate.set()
    await until(gateway.acknowledged)

    reply = msgspec.json.decode(await gateway.request(f"$JS.API.STREAM.INFO.{topology.OUTCOMES}"))
    assert reply["state"]["messages"] == 1
    assert {outcome.id for outcome in gateway.outcomes} == {gateway.outcomes[0].id}


# ---- R10 and what else can happen to the bus


async def test_R10_after_a_wipe_a_consumer_of_a_new_name_serves_the_new_stream(
    gateway: Gateway, nats_server: NatsServer, shelf: ShelfServer, start_worker: StartWorker
) -> None:
    """R10: consumer names carry the stream's creation time, and the subscriber moves by itself."""
    worker = await start_worker()
    (before,) = await gateway.consumers()

    nats_server.wipe()
    await until(lambda: worker._link.epoch == 1 and gateway.client.stats["reconnects"] == 1)
    await until(_is_declared(gateway))
    (after,) = await gateway.consumers()
    await gateway.send("r1")

    assert (await gateway.outcome()).result is Result.APPLIED
    assert after["name"] != before["name"]


async def test_a_deleted_consumer_is_declared_again(gateway: Gateway, start_worker: StartWorker) -> None:
    """A FastStream subscriber whose consumer was deleted would wait for ever; the supervisor restarts it."""
    await start_worker()
    (consumer,) = await gateway.consumers()

    await gateway.request(f"$JS.API.CONSUMER.DELETE.{topology.WORK}.{consumer['name']}")
    await gateway.send("r1")

    assert (await gateway.outcome()).result is Result.APPLIED


async def test_a_worker_that_starts_before_nats_waits_for_it(
    nats_server: NatsServer, gateway: Gateway, start_worker: StartWorker
) -> None:
    """A worker needs no order of starting."""
    nats_server.kill()
    worker = await start_worker(wait=False)
    nats_server.start()

    await until(worker.serving.is_set)
    await until(lambda: gateway.client.is_connected)
    await gateway.send("r1")
    assert (await gateway.outcome()).result is Result.APPLIED


def _is_declared(gateway: Gateway) -> Callable[[], Any]:
    async def declared() -> bool:
        try:
            return bool(await gateway.consumers())
        except (nats.errors.Error, TimeoutError):
            return False

    return declared


# ---- presence and questions


async def test_presence_tells_who_serves_what_and_why_not(
    gateway: Gateway, shelf: ShelfServer, start_worker: StartWorker
) -> None:
    """A target with wrong settings or a broken connector is named with its problems; the others are served."""
    more = (
        '[targets.typo]\nconnector = "shelf"\n[targets.typo.settings]\nbase_ulr = "x"\n'
        '[targets.gone]\nconnector = "broken"\n[targets.off]\nconnector = "shelf"\nenabled = false\n'
        '[targets.nosecret]\nconnector = "shelf"\n[targets.nosecret.settings]\n'
        f'base_url = "{shelf.url}"\ntoken = {{env = "PROVGATE_NO_SUCH_VARIABLE"}}\n'
    )
    worker = await start_worker(more)

    document = await _presence(gateway, worker)

    assert document.worker == worker.id
    assert set(document.targets) == {"shelf", "typo", "gone", "nosecret"}
    served = document.targets["shelf"]
    assert (served.serving, served.connector, served.problems) == (True, "shelf", ())
    assert served.spec is not None
    assert served.spec.title == "Shelf"
    assert (
        "targets.typo.settings.base_ulr: not a setting of Shelf; did you mean base_url?"
        in document.targets["typo"].problems
    )
    assert document.targets["gone"].problems[0].startswith("targets.gone.connector: broken")
    assert "PROVGATE_NO_SUCH_VARIABLE" in document.targets["nosecret"].problems[0]
    assert not any(document.targets[name].serving for name in ("typo", "gone", "nosecret"))
    await gateway.send("r1")
    assert (await gateway.outcome()).result is Result.APPLIED


async def test_presence_ends_with_an_orderly_stop(gateway: Gateway, start_worker: StartWorker) -> None:
    """Whoever reads the bucket sees at once that the worker has gone."""
    worker = await start_worker()
    await _presence(gateway, worker)

    worker.stop()

    bucket = await gateway.client.jetstream().key_value(topology.WORKERS_BUCKET)

    async def gone() -> bool:
        try:
            await bucket.get(worker.id)
        except nats.js.errors.KeyNotFoundError:
            return True
        return False

    await until(gone)


async def test_two_workers_of_a_target_share_its_rate_limit(gateway: Gateway, start_worker: StartWorker) -> None:
    """The product's limit belongs to the target: each of two workers takes half, and all of it again when one has left."""
    first = await start_worker()
    second = await start_worker()
    limits = [worker.served["shelf"].limit for worker in (first, second)]

    await until(lambda: [limit._calls for limit in limits] == [250, 250])
    second.stop()

    await until(lambda: limits[0]._calls == 500)


async def test_a_probe_is_answered_with_what_the_connector_found(
    gateway: Gateway, shelf: ShelfServer, start_worker: StartWorker
) -> None:
    """The gateway closes or keeps open a circuit by this answer."""
    await start_worker()

    good = await gateway.ask("shelf", {"do": "probe"})
    shelf.status = 401
    bad = await gateway.ask("shelf", {"do": "probe"})

    assert (good["ok"], good["code"]) == (True, "reachable")
    assert good["findings"] == [{"level": "ok", "code": "reachable", "message": "The shelf answers."}]
    assert (bad["ok"], bad["code"]) == (False, "unauthorized")
    assert "401" in bad["message"]


async def test_natural_keys_are_told_for_filters(gateway: Gateway, start_worker: StartWorker) -> None:
    """Rule A1: a filter that spells a value as the product does finds the resource; what does not fit has no keys."""
    await start_worker()

    told = await gateway.ask("shelf", {"do": "identities", "document": {"userName": "Ada@Contoso.example"}})
    none = await gateway.ask("shelf", {"do": "identities", "document": {"userName": "x", "title": "Wizard"}})

    assert told["account_keys"] == ["ada@contoso.example"]
    assert none["account_keys"] == []


async def test_names_can_be_refreshed_on_demand_and_nonsense_is_answered(
    gateway: Gateway, shelf: ShelfServer, start_worker: StartWorker
) -> None:
    """An operator does not wait for the minute; a question nobody understands is answered as such."""
    await start_worker()

    assert (await gateway.ask("shelf", {"do": "refresh"}))["ok"] is True
    shelf.roles.append("Wizard")
    assert (await gateway.ask("shelf", {"do": "refresh"}))["ok"] is True
    await gateway.send("r1", document={"userName": "r1", "title": "Wizard"})

    assert (await gateway.outcome()).result is Result.APPLIED
    assert shelf.journal.count(("GET", "/roles")) == 2
    assert (await gateway.ask("shelf", {"do": "dance"}))["code"] == "bad_question"


async def _presence(gateway: Gateway, worker: Worker) -> presence.Presence:
    bucket = await gateway.client.jetstream().key_value(topology.WORKERS_BUCKET)

    async def told() -> bytes | None:
        try:
            return (await bucket.get(worker.id)).value
        except nats.js.errors.KeyNotFoundError:
            return None

    return presence.decode(await until(told))


# ---- the process


class Process:
    """`python -m workers` as a child."""

    def __init__(self, folder: Path, plugin: Path, url: str, shelf_url: str, **environment: str) -> None:
        config = folder / "provgate.toml"
        config.write_text(
            f'[nats]\nurl = "{url}"\n[worker]\nconcurrency_max = 4\ndrain_s = 5\n'
            f'[targets.shelf]\nconnector = "shelf"\n[targets.shelf.settings]\nbase_url = "{shelf_url}"\n'
            'token = {file = "token"}\n'
        )
        (folder / "token").write_text(SECRET)
        (folder / "token").chmod(0o600)
        self.log = folder / "worker.log"
        path = os.pathsep.join((str(plugin), str(Path.cwd())))
        with self.log.open("wb") as log:
            self.child = subprocess.Popen(
                [sys.executable, "-m", "workers", "--config", str(config)],
                stderr=log,
                env={**os.environ, "PYTHONPATH": path, **environment},
            )

    def lines(self) -> list[dict[str, Any]]:
        """What it logged."""
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]

    def ended(self) -> int | None:
        """Its exit code, once there is one."""
        code = self.child.poll()
        return None if code is None else code + 1_000  # so that 0 counts as an answer

    def has(self, event: str) -> bool:
        """Whether such a line was logged."""
        return any(line["event"] == event for line in self.lines())


SECRET = "shelf-secret-value"


@pytest.fixture
def process(
    nats_server: NatsServer, shelf: ShelfServer, plugin_folder: Path, tmp_path: Path
) -> Iterator[Callable[..., Process]]:
    """Starts worker processes and ends them."""
    children: list[Process] = []

    def start(**environment: str) -> Process:
        children.append(Process(tmp_path, plugin_folder, nats_server.url, shelf.url, **environment))
        return children[-1]

    yield start
    for one in children:
        if one.child.poll() is None:
            one.child.kill()
        one.child.wait()


async def test_SIGTERM_lets_running_deliveries_finish(
    gateway: Gateway, shelf: ShelfServer, process: Callable[..., Process]
) -> None:
    """A rolling restart costs no redelivery: nothing new is taken, what runs is told and acknowledged, exit code 0."""
    worker = process()
    await until(lambda: worker.has("consumer.declared"))
    shelf.gate.clear()
    await gateway.send("r1")
    await until(lambda: shelf.writes())

    worker.child.send_signal(signal.SIGTERM)
    await until(lambda: worker.has("worker.draining"))
    shelf.gate.set()

    assert await until(worker.ended) == 1_000
    assert (await gateway.outcome()).result is Result.APPLIED
    assert await gateway.acknowledged()


async def test_a_second_signal_ends_at_once(
    gateway: Gateway, shelf: ShelfServer, process: Callable[..., Process]
) -> None:
    """Somebody who presses Ctrl-C twice means it."""
    worker = process()
    await until(lambda: worker.has("consumer.declared"))
    shelf.gate.clear()
    await gateway.send("r1")
    await until(lambda: shelf.writes())

    worker.child.send_signal(signal.SIGINT)
    await until(lambda: worker.has("worker.draining"))
    asked_at = time.monotonic()
    worker.child.send_signal(signal.SIGINT)

    assert await until(worker.ended) == 1_000 + 128 + signal.SIGINT
    assert time.monotonic() - asked_at < 2
    assert await gateway.left() == 1


CRASHES = [
    # point, calls before it, outcomes stored, events left
    ("W1", 0, 0, 1),
    ("W3", 0, 0, 1),
    ("W4", 2, 0, 1),
    ("W5", 2, 1, 1),
    ("W6", 2, 1, 0),
    ("W7:2", 1, 0, 1),
]


@pytest.mark.parametrize(("point", "calls", "outcomes", "left"), CRASHES, ids=[crash[0] for crash in CRASHES])
async def test_a_crash_leaves_the_event_until_its_outcome_was_confirmed(
    gateway: Gateway,
    shelf: ShelfServer,
    process: Callable[..., Process],
    point: str,
    calls: int,
    outcomes: int,
    left: int,
) -> None:
    """Rule A12 and A5: at every named point, the event is gone only when the outcome is in its stream."""
    worker = process(PROVGATE_CRASH_AT=point, PROVGATE_TEST_BUILD="1")
    await until(lambda: worker.has("consumer.declared"))

    await gateway.send("r1")

    assert await until(worker.ended) == 1_137
    assert len(shelf.journal) == calls
    assert len(gateway.outcomes) == outcomes
    assert await gateway.left() == left


async def test_a_crash_point_is_asleep_outside_test_builds(gateway: Gateway, process: Callable[..., Process]) -> None:
    """Rule A12: the environment variable alone does nothing."""
    worker = process(PROVGATE_CRASH_AT="W1")
    await until(lambda: worker.has("consumer.declared"))

    await gateway.send("r1")

    assert (await gateway.outcome()).result is Result.APPLIED
    assert worker.child.poll() is None


async def test_a_delivery_is_one_line_without_values_or_secrets(
    gateway: Gateway, shelf: ShelfServer, process: Callable[..., Process]
) -> None:
    """S11 and P9: ids and the result; neither the person nor the credential, which the product did receive."""
    worker = process()
    await until(lambda: worker.has("consumer.declared"))

    await gateway.send("r1", txn="txn-1")
    await until(lambda: worker.has("delivery.applied"))

    (line,) = [line for line in worker.lines() if line["event"].startswith("delivery.")]
    assert {key: line[key] for key in ("target", "resource_id", "txn", "attempt", "result", "level", "process")} == {
        "target": "shelf",
        "resource_id": "r1",
        "txn": "txn-1",
        "attempt": 1,
        "result": "applied",
        "level": "info",
        "process": "worker",
    }
    assert line["ms"] > 0
    assert "r1@contoso" not in worker.log.read_text()
    assert SECRET not in worker.log.read_text()


async def test_a_worker_stays_small(gateway: Gateway, process: Callable[..., Process]) -> None:
    """A worker that has served something stays far below 150 MiB."""
    import psutil

    worker = process()
    await until(lambda: worker.has("consumer.declared"))
    await gateway.send("r1")
    await gateway.outcome()

    assert psutil.Process(worker.child.pid).memory_info().rss < 110 * 2**20


# ---- small things


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1970-01-01T00:00:01Z", 1_000_000_000),
        ("1970-01-01T00:00:01.5Z", 1_500_000_000),
        ("1970-01-01T01:00:00.000000001+01:00", 1),
        ("2026-11-22T20:10:24.043890609Z", 1_795_378_224_043_890_609),
    ],
)
def test_times_of_the_broker_are_read_to_the_nanosecond(text: str, expected: int) -> None:
    """Message times are nanoseconds; a time cut to microseconds could make an older message look fresh."""
    assert epoch_ns(text) == expected


@pytest.mark.parametrize(
    "reply",
    [
        "$JS.ACK.PROV_WORK.shelf-1.3.7.9.1795378224051242151.0",
        "$JS.ACK._.hash.PROV_WORK.shelf-1.3.7.9.1795378224051242151.0.token",
        "$JS.ACK.hub.hash.PROV_WORK.shelf-1.3.7.9.1795378224051242151.0",
    ],
    ids=["plain", "with account", "with domain, without token"],
)
def test_the_ack_subject_says_how_often_and_when(reply: str) -> None:
    """Both forms of JetStream's ack subject carry the delivery count and the time of storing."""
    assert ack_facts(reply) == (3, 1_795_378_224_051_242_151)


def test_an_ack_subject_of_somebody_else_is_refused() -> None:
    """Anything else says nothing about a delivery."""
    with pytest.raises(ValueError, match="ack subject"):
        ack_facts("_INBOX.abc.1")
