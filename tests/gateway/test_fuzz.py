"""A few thousand generated requests on every run; `python -m tests.fuzz 100000` sends as many as wanted."""

from __future__ import annotations

import os
from pathlib import Path
from random import Random

import pytest

from tests.fuzz.generators import KINDS, Known, generated
from tests.fuzz.running import Found, fuzz
from tests.gateway.scim_listener import Listener, listening
from tests.gateway.wire import ERROR, Heard, Wire, judge

REQUESTS = int(os.environ.get("PROVGATE_FUZZ_REQUESTS", "1500"))
SEED = int(os.environ.get("PROVGATE_FUZZ_SEED", "20261123"))


def test_no_generated_request_gets_a_5xx_a_hang_or_an_error_that_is_none_of_scim(tmp_path: Path) -> None:
    """Malformed is 400, too large 413, wrong type 415, and never 500; by schemathesis and by our own grammar."""
    found = fuzz(tmp_path, REQUESTS, SEED, lambda: None)

    assert not found.failures, "\n".join(
        f"{one.wrong} ({one.where})\n{one.request[:1_000]}" for one in found.failures[:5]
    )
    assert found.total >= REQUESTS * 0.97  # schemathesis may have nothing to vary at an address
    assert {kind for _, kind in found.counts} >= {*KINDS, "published positive"}
    statuses = {status for status, _ in found.counts}
    assert {200, 201, 400, 401, 404, 409, 415} <= statuses, "the requests are too much alike"


def test_the_same_seed_and_number_give_the_same_request() -> None:
    """A failing request can be sent again: `--seed` and `--only` are all that is needed."""
    known = Known("alpha", ["u1", "u2"], ["g1"], ["f1"], ["AAAA"])

    first = [generated(3, number, known).wire("token") for number in range(300)]

    assert first == [generated(3, number, known).wire("token") for number in range(300)]
    assert len(set(first)) > 250


def test_every_kind_is_broken_sometimes_and_whole_sometimes() -> None:
    """A generator whose requests are all refused at the first character tests one line of code."""
    known = Known("alpha", ["u1", "u2"], ["g1"], ["f1"], ["AAAA"])
    for kind, (_, make) in KINDS.items():
        shots = [make(Random(number), known).wire("token") for number in range(100)]
        assert len(set(shots)) > 20, kind


@pytest.mark.parametrize(
    ("heard", "wrong"),
    [
        (Heard(500, {}, b""), "500"),
        (Heard(503, {"content-type": "application/scim+json"}, b"{}"), "503"),
        (Heard(problem="hang"), "hang"),
        (Heard(400, {"content-type": "text/html"}, b"{}"), "media type text/html"),
        (Heard(400, {"content-type": "application/scim+json"}, b"<html>"), "no JSON"),
        (Heard(400, {"content-type": "application/scim+json"}, b'{"detail":"x"}'), "no SCIM error"),
        (
            Heard(
                400,
                {"content-type": "application/scim+json"},
                b'{"schemas":["%s"],"status":"401","detail":"x"}' % ERROR.encode(),
            ),
            "no SCIM error",
        ),
        (Heard(204, {}, b"x"), "a body where none may be"),
        (
            Heard(
                400,
                {"content-type": "application/scim+json"},
                b'{"schemas":["%s"],"status":"400","detail":"x"}' % ERROR.encode(),
            ),
            "",
        ),
        (Heard(204, {}, b""), ""),
    ],
)
def test_the_judge_sees_what_is_wrong(heard: Heard, wrong: str) -> None:
    """RFC 7644 section 3.12; the checker is tested too."""
    assert judge(heard) == wrong


async def test_a_server_that_does_not_answer_is_a_hang_not_a_wait_without_end(tmp_path: Path) -> None:
    """Every wait has a bound; a body that never comes is noticed by the one who sent it."""
    async with listening(tmp_path) as scim:
        wire = Wire(scim.port)
        heard = await wire.send(
            b"POST /scim/v2/alpha/Users HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer "
            + scim.tokens["alpha"].encode()
            + b"\r\nContent-Length: 5\r\n\r\n",
            wait_s=0.3,
        )

    assert judge(heard) == "hang"


async def test_what_is_no_http_is_a_line_of_our_log_and_none_of_the_server(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Found by the fuzz run: the server wrote a line of its own, without time and not as JSON, for whatever a stranger sent."""
    scim: Listener
    async with listening(tmp_path) as scim:
        answer = await scim.raw(b"\x16\x03\x01 this is TLS, or nothing\r\n\r\n")

    said = "".join(capfd.readouterr())
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert "Invalid HTTP" not in said
    assert "listener.refused" in said


def test_counts_are_by_status_and_kind_and_failures_are_bounded() -> None:
    """What the command prints."""
    found = Found()
    for _ in range(1_500):
        found.note("filter", 500, "500", "--seed 1 --only 1", "GET /")

    assert (found.total, len(found.failures)) == (1_500, 1_000)
