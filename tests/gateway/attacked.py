"""Two targets with secrets in each, hostile requests against one of them, and what came of them."""

from __future__ import annotations

import base64
import contextlib
import re
import time
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import msgspec
import structlog
from msgspec import Struct

from schemas.config import TargetSettings
from tests.gateway.hostile import MARK, Hostile
from tests.gateway.scim_listener import ALPHA, BETA, GroupShelf, Listener, listening
from tests.gateway.wire import Heard, Wire, judge

ALPHA_CANARY, BETA_CANARY = "Zeisig-7f3a91", "Stieglitz-c20b6e"
"""Values of the two targets; neither may be in an answer to the other, or in a log line."""
_PLACE = re.compile(rb"@([a-z_]+[0-9]*)@")
_FLIPPED = "cursor_flipped_"


class Met(Struct):
    """One request, its answers, and what is wrong with them ("" nothing)."""

    shot: Hostile
    answers: list[Heard]
    wrong: str

    @property
    def took_s(self) -> float:
        """Until the first answer."""
        return self.answers[0].took_s if self.answers else 0.0

    @property
    def is_refusal(self) -> bool:
        """Whether it was told no."""
        return bool(self.answers) and 400 <= self.answers[0].status < 500


class World:
    """A listener, what requests may name, and what must never be seen."""

    def __init__(self, scim: Listener, names: dict[str, str], lines: list[Any]) -> None:
        self.scim = scim
        self.names = names
        self.lines = lines
        self.secrets = [*scim.tokens.values(), names["beta_secret"]]
        self._wire = Wire(scim.port)

    def filled(self, data: bytes) -> bytes:
        """The same bytes with what `@name@` stands for."""

        def value(found: re.Match[bytes]) -> bytes:
            name = found[1].decode()
            if name.startswith(_FLIPPED):
                return self._flipped(int(name.removeprefix(_FLIPPED))).encode()
            return self.names[name].encode() if name in self.names else found[0]

        return _PLACE.sub(value, data)

    def _flipped(self, place: int) -> str:
        sealed = bytearray(base64.urlsafe_b64decode(self.names["cursor"] + "=" * (-len(self.names["cursor"]) % 4)))
        sealed[place] ^= 1
        return base64.urlsafe_b64encode(bytes(sealed)).decode().rstrip("=")

    def sent(self, shot: Hostile) -> bytes:
        """The request as it goes out."""
        ready = msgspec.structs.replace(
            shot,
            path=self.filled(shot.path),
            headers=tuple((name, self._header(value)) for name, value in shot.headers),
            body=None if shot.body is None else self.filled(shot.body),
            raw=self.filled(shot.raw),
        )
        return ready.wire(self.names["token"])

    def _header(self, value: bytes) -> bytes:
        if value.startswith(b"Basic "):
            with contextlib.suppress(ValueError):
                inner = base64.b64decode(value[6:], validate=True)
                return b"Basic " + base64.b64encode(self.filled(inner))
        return self.filled(value)

    async def meet(self, shot: Hostile) -> Met:
        """Send one and judge it."""
        data = self.sent(shot)
        if shot.raw:
            answers = await self._wire.alone(data, quiet_s=0.02, wait_s=1.0)
        else:
            answers = [await self._wire.send(data, head=shot.method == b"HEAD")]
        return Met(shot, answers, self._wrong(shot, answers))

    def _wrong(self, shot: Hostile, answers: list[Heard]) -> str:
        if not answers:
            return "no answer"
        if shot.raw and len(answers) > shot.answers_max:
            return f"{len(answers)} answers to one request"
        for heard in answers:
            wrong = judge(heard, head=shot.method == b"HEAD", token_endpoint=b"/oauth2/" in shot.path)
            wrong = wrong or self._leak(heard, shot) or _unexpected(heard, shot)
            if wrong:
                return wrong
        return ""

    def _leak(self, heard: Heard, shot: Hostile) -> str:
        said = repr(heard.headers).encode() + heard.body
        forbidden = [BETA_CANARY, *self.secrets] + ([] if shot.signed else [ALPHA_CANARY])
        for text in forbidden:
            if text.encode() in said:
                return "a secret of another in the answer"
        return ""

    def logged(self) -> list[str]:
        """Log lines that hold a canary, a token, or a value of a request."""
        forbidden = [ALPHA_CANARY, BETA_CANARY, MARK, *self.secrets]
        return [str(line) for line in self.lines if any(text in str(line) for text in forbidden)]

    async def everything(self, target: str) -> dict[str, Any]:
        """All resources of a target by id, without the victim."""
        found: dict[str, Any] = {}
        for kind in ("Users", "Groups"):
            cursor: str | None = ""
            while cursor is not None:
                page = (await self.scim.get(f"/{kind}?cursor={cursor}", target=target)).body
                found |= {resource["id"]: resource for resource in page["Resources"]}
                cursor = page.get("nextCursor")
        found.pop(self.names["alpha_victim"], None)
        return found

    async def close(self) -> None:
        """End the connection."""
        await self._wire.close()


def _unexpected(heard: Heard, shot: Hostile) -> str:
    if not shot.signed and heard.status not in (400, 401, 405, 413, 414, 415, 431):
        return f"{heard.status} for somebody who has not signed in"
    if shot.outcome == "refused" and not 400 <= heard.status < 500:
        return f"{heard.status} instead of a refusal"
    if shot.outcome == "empty" and heard.status == 200 and msgspec.json.decode(heard.body).get("totalResults") != 0:
        return "found somebody"
    return ""


@contextlib.asynccontextmanager
async def attacked(folder: Path) -> AsyncIterator[World]:
    """Two targets with people, groups, keys and client secrets; canaries are in the values of both."""
    settings = {name: TargetSettings(connector="shelf", auth=("key", "oauth")) for name in (ALPHA, BETA)}
    with structlog.testing.capture_logs() as lines:
        async with listening(folder, shelf=GroupShelf(), targets=settings) as scim:
            world = World(scim, await _names(scim), lines)
            lines.clear()
            yield world
            await world.close()


async def _names(scim: Listener) -> dict[str, str]:
    names: dict[str, str] = {}
    for target, canary, first in (
        (ALPHA, ALPHA_CANARY, "ada@contoso.example"),
        (BETA, BETA_CANARY, f"{BETA_CANARY}@contoso.example"),
    ):
        document = {
            "userName": first,
            "title": canary,
            "externalId": f"{canary}-external",
            "displayName": canary,
            "name": {"givenName": canary, "familyName": canary},
            "emails": [{"type": "work", "value": first, "display": canary}],
        }
        user = (await scim.post("/Users", document, target=target)).body
        group = await scim.group(f"{canary} group", user["id"], target=target)
        for number in range(3):
            await scim.user(f"more-{number}-{canary}@contoso.example", target=target, title=canary)
        page = await scim.get("/Users?cursor=&count=1", target=target)
        names |= {
            f"{target}_user": user["id"],
            f"{target}_group": group["id"],
            f"{target}_name": first,
            f"{target}_external": f"{canary}-external",
            f"{target}_canary": canary,
            f"{target}_cursor": page.body["nextCursor"],
        }
    victim = await scim.user("victim@contoso.example")
    later = await scim.post(
        "/Users", {"userName": f"later-{BETA_CANARY}@contoso.example"}, target=BETA, headers={"Prefer": "respond-async"}
    )
    secret = await scim.keys.issue(BETA, actor="test", kind="client")
    token, beta_token = scim.tokens[ALPHA], scim.tokens[BETA]
    cursor = names["alpha_cursor"]
    half = len(token) // 2
    return names | {
        "alpha_victim": victim["id"],
        "beta_txn": later.headers["set-txn"],
        "beta_key": secret.row.id,
        "beta_secret": secret.text,
        "token": token,
        "token_cut": token[:-1],
        "token_upper": token.swapcase(),
        "token_flipped": token[:-3] + ("A" if token[-3] != "A" else "B") + token[-2:],
        "token_mixed": token[:half] + beta_token[half:],
        "beta_token": beta_token,
        "cursor": cursor,
        "cursor_upper": cursor.swapcase(),
        "cursor_cut": cursor[:-1],
    }


async def meet_all(world: World, shots: Iterable[Hostile]) -> list[Met]:
    """Send them one after the other."""
    return [await world.meet(shot) for shot in shots]


def percentile(times_s: list[float], share: float) -> float:
    """The time within which this share of them lies, in seconds."""
    held = sorted(times_s)
    return held[min(len(held) - 1, int(len(held) * share))]


async def refusal_times(world: World, shots: Iterable[Hostile]) -> list[float]:
    """How long each refusal took, in seconds."""
    started = time.perf_counter()
    met = await meet_all(world, shots)
    assert time.perf_counter() >= started
    return [one.took_s for one in met if one.is_refusal]
