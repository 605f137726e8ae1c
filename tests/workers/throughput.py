"""How many events a second one worker process settles: `python -m tests.workers.throughput [EVENTS] [CONCURRENCY]`.

A real nats-server, a real worker process with the observe connector, a publisher that has stored everything beforehand; the
clock runs from the first to the last outcome. Not a test: the figure depends on the machine.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
import nats
import psutil

from schemas import topology
from schemas.events import BeginReply, ProvisioningEvent, encode, event_headers
from schemas.states import Change
from tests.conftest import NatsServer

DONE_WAIT_S = 120.0


async def measure(events: int, concurrency: int) -> dict[str, Any]:
    """Publish, serve, count."""
    folder = Path(tempfile.mkdtemp())
    server = NatsServer(folder)
    server.start()
    config = folder / "provgate.toml"
    config.write_text(
        f'[nats]\nurl = "{server.url}"\n[worker]\nconcurrency_max = {concurrency}\n'
        '[targets.observe]\nconnector = "observe"\n'
    )
    client = await nats.connect(server.url)

    async def request(subject: str, body: bytes) -> bytes:
        return (await client.request(subject, body, timeout=5)).data

    worker: subprocess.Popen[bytes] | None = None
    try:
        await topology.declare_stream(request, topology.WORK)
        await topology.declare_stream(request, topology.OUTCOMES)
        worker = subprocess.Popen(  # noqa: ASYNC220
            [sys.executable, "-m", "workers", "--config", str(config)],
            stderr=(folder / "worker.log").open("wb"),
            env={**os.environ},
        )
        heard = asyncio.Event()
        seen: list[float] = []

        async def on_outcome(message: Any) -> None:
            seen.append(time.perf_counter())
            if len(seen) == events:
                heard.set()

        async def on_begin(message: Any) -> None:
            await message.respond(msgspec.json.encode(BeginReply(go=True)))

        await client.subscribe("prov.v1.outcome.>", cb=on_outcome)
        await client.subscribe(topology.BEGIN_SUBJECT, cb=on_begin)
        process = psutil.Process(worker.pid)
        consumer = await _bound(request)
        await _pause(request, consumer, "2100-01-01T00:00:00Z")  # so that everything is stored when the clock starts
        js = client.jetstream()
        for number in range(events):
            event = _event(number)
            body = encode(event)
            headers = event_headers(event, recorded_at=time.time(), act_before=time.time() + 60)
            await js.publish(topology.event_subject("observe", "user", event.resource), body, headers=headers)
        cpu_before = sum(process.cpu_times()[:2])
        await _pause(request, consumer, "2000-01-01T00:00:00Z")
        async with asyncio.timeout(DONE_WAIT_S):
            await heard.wait()
        cpu = sum(process.cpu_times()[:2]) - cpu_before
        took = seen[-1] - seen[0]
        return {
            "events": events,
            "concurrency": concurrency,
            "events_per_s": round(events / took),
            "cpu_ms_per_event": round(cpu / events * 1000, 3),
            "rss_mib": round(process.memory_info().rss / 2**20, 1),
        }
    finally:
        if worker is not None:
            worker.terminate()
            worker.wait(timeout=30)
        await client.close()
        server.kill()


async def _pause(request: Any, consumer: str, until: str) -> None:
    body = msgspec.json.encode({"pause_until": until})
    reply = json.loads(await request(f"$JS.API.CONSUMER.PAUSE.{topology.WORK}.{consumer}", body))
    assert "error" not in reply, reply


async def _bound(request: Any) -> str:
    """Until the worker waits at its consumer, whose name is returned."""
    state = await topology.stream_state(request, topology.WORK)
    assert state is not None
    name = topology.consumer_name("observe", state.created)
    async with asyncio.timeout(20):
        while not json.loads(await request(f"$JS.API.CONSUMER.INFO.{topology.WORK}.{name}", b"")).get("num_waiting"):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    return name


def _event(number: int) -> ProvisioningEvent:
    document = {
        "schemas": ["urn:ietf:params:scim:schemas:core:2.0:User"],
        "userName": f"user{number}@contoso.example",
        "externalId": f"{number:032x}",
        "active": True,
        "displayName": f"User {number}",
        "name": {"givenName": "Given", "familyName": f"Family {number}"},
        "emails": [{"type": "work", "primary": True, "value": f"user{number}@contoso.example"}],
        "phoneNumbers": [{"type": "mobile", "value": "+441234567890"}],
        "title": "Engineer",
    }
    return ProvisioningEvent(
        id=f"{number:026d}",
        target="observe",
        connector="observe",
        kind="user",
        resource=f"r{number}",
        generation=1,
        fence=1,
        change=Change.CREATE,
        document=msgspec.Raw(msgspec.json.encode(document)),
        identities=(f"userName:user{number}@contoso.example",),
        lookup=(f"userName:user{number}@contoso.example",),
    )


if __name__ == "__main__":
    count, at_once = (int(a) for a in (sys.argv[1:] + ["5000", "32"][len(sys.argv[1:]) :])[:2])
    print(json.dumps(asyncio.run(measure(count, at_once))))
