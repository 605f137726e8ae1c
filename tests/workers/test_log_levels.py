"""The three levels of logging, per target: what one target is to say does not make the others talk, or silent."""

from __future__ import annotations

import json
import subprocess
import sys

from schemas.logs import LEVELS

PROGRAM = """
import asyncio, sys
from schemas import logs
from schemas.logs import at_level, logger

async def target(name):
    with at_level(name):
        await asyncio.sleep(0)
        for method in ("debug", "info", "warning", "error"):
            getattr(logger(), method)(f"{name}.{method}")
            await asyncio.sleep(0)
    logger().info(f"after.{name}")

async def main():
    await asyncio.gather(*(target(name) for name in sys.argv[1:]))

logs.configure("worker", level="debug")
asyncio.run(main())
"""
SHOWN = {"warning": {"warning", "error"}, "information": {"info", "warning", "error"}}


def said(*levels: str) -> list[str]:
    """The events of a process whose targets have these levels and work at the same time."""
    ended = subprocess.run(  # a process of its own: the shape of the log is a setting of the whole process
        [sys.executable, "-c", PROGRAM, *levels], capture_output=True, text=True, timeout=30, check=True
    )
    return [json.loads(line)["event"] for line in ended.stderr.splitlines()]


def test_every_target_has_a_level_of_its_own() -> None:
    """S13: Warning, Information and Debug, of each connection, also while deliveries of others run at the same time."""
    events = said(*LEVELS)
    for level in LEVELS:
        methods = {event.split(".")[1] for event in events if event.startswith(f"{level}.")}
        assert methods == SHOWN.get(level, {"debug", "info", "warning", "error"}), level
        assert f"after.{level}" in events


def test_of_an_exception_types_and_places_are_logged_and_never_its_text() -> None:
    """No person's value and no secret in a log: a text may be one, also of a cause or inside a group; at a terminal alike."""
    program = """
from schemas import logs

def broken():
    try:
        {}["ada@contoso.example"]
    except KeyError as exc:
        raise ExceptionGroup("ada@contoso.example", [exc, ValueError("ada@contoso.example")]) from exc

for pretty in (False, True):
    logs.configure("worker", pretty=pretty)
    try:
        broken()
    except Exception as exc:
        logs.logger().error("delivery.failed", exc_info=exc)
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True)

    first, shown = ended.stderr.split("\n", 1)
    assert "ada@" not in ended.stderr
    (trace, *_) = json.loads(first)["exception"]
    assert (trace["exc_type"], trace["frames"][-1]["name"]) == ("ExceptionGroup", "broken")
    assert [inner[0]["exc_type"] for inner in trace["exceptions"]] == ["KeyError", "ValueError"]
    assert "delivery.failed" in shown
    assert ":8 in broken" in shown
