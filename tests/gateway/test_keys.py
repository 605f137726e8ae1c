"""Access keys: made from real randomness, kept as keyed hashes, two at a time, ended at once (security requirement S1)."""

from __future__ import annotations

import re
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.keys import (
    DAY_S,
    FRESH_S,
    PEPPER_BYTES,
    USE_EVERY_S,
    KeyProblem,
    Keys,
    check_digits,
    digest,
    expiry_warnings,
    key_id_of,
    new_key_text,
    pepper_in,
)
from gateway.records import KeyRecord
from gateway.store import Store

PEPPER = bytes(range(PEPPER_BYTES))
NOON = 1_800_000_000.0


class HandClock:
    """Time that moves only when a test says so; wall time and monotonic time together."""

    def __init__(self) -> None:
        self.at = NOON

    def __call__(self) -> float:
        return self.at


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
async def store(tmp_path: Path, empty_store: Path) -> AsyncIterator[Store]:
    opened = Store.open(shutil.copy(empty_store, tmp_path / "store.sqlite3"))
    yield opened
    await opened.close()


@pytest.fixture
def keys(store: Store, clock: HandClock) -> Keys:
    return Keys(store, PEPPER, now=clock, clock=clock)


def a_row(key_id: str, *, left_days: float, target: str = "alpha", revoked: bool = False) -> KeyRecord:
    return KeyRecord(
        id=key_id,
        target=target,
        label="",
        prefix=f"pg_{key_id}",
        hash=key_id.encode(),
        created_at=NOON - 100 * DAY_S,
        expires_at=NOON + left_days * DAY_S,
        revoked_at=NOON if revoked else None,
    )


def test_a_key_is_recognisable_and_no_two_are_alike() -> None:
    """S1: a prefix by which scanners of leaked secrets know it, an id, 256 bits, check digits; one word to select."""
    texts = {new_key_text() for _ in range(200)}

    assert len(texts) == 200
    for text in texts:
        assert re.fullmatch(r"pg_[0-9A-Za-z]{10}_[0-9A-Za-z]{43}_[0-9A-Za-z]{6}", text)
        assert key_id_of(text) == text.split("_")[1]


def test_a_cut_or_mistyped_key_is_told_from_a_wrong_one() -> None:
    """S1: check digits; the operator reads `malformed` in the log and knows that the copy is bad, not the key."""
    text = new_key_text()
    swapped = text[:20] + ("a" if text[20] != "a" else "b") + text[21:]

    for bad in (text[:-1], text[1:], swapped, text.lower() + "x", "", "pg___", "Bearer", f"{text}_{text}", "pg_é_x_y"):
        assert key_id_of(bad) is None


def everything_in(folder: Path) -> bytes:
    return b"".join(file.read_bytes() for file in folder.iterdir())


async def test_the_store_never_holds_the_key_itself(keys: Keys, store: Store, tmp_path: Path) -> None:
    """S1: what is kept is a hash under a pepper that is not in the database."""
    made = await keys.issue("alpha", actor="operator")

    secret = made.text.split("_")[2].encode()
    assert secret not in everything_in(tmp_path)
    assert made.row.hash == digest(PEPPER, made.text)
    assert digest(bytes(PEPPER_BYTES), made.text) != made.row.hash


async def test_a_key_opens_its_own_target_and_no_other(keys: Keys) -> None:
    """I11: nothing of one target is reachable with the key of another."""
    made = await keys.issue("alpha", actor="operator")

    assert await keys.check("alpha", made.text) is None
    assert await keys.check("beta", made.text) == "wrong"
    assert await keys.check("", made.text) == "wrong"
    assert await keys.check("alpha", new_key_text()) == "wrong"
    assert await keys.check("alpha", made.text[:-1]) == "malformed"


async def test_a_key_with_the_right_id_and_another_secret_is_wrong(keys: Keys) -> None:
    """The id of a key is shown in lists; knowing it must not help."""
    made = await keys.issue("alpha", actor="operator")
    body = f"pg_{made.row.id}_{new_key_text().split('_')[2]}"
    forged = f"{body}_{check_digits(body)}"

    assert key_id_of(forged) == made.row.id
    assert await keys.check("alpha", forged) == "wrong"


async def test_at_most_two_keys_of_a_target_live_at_once(keys: Keys) -> None:
    """S1: two for a change without a gap, never a third that somebody forgets; another target is not concerned."""
    first = await keys.issue("alpha", actor="operator")
    await keys.issue("alpha", actor="operator")

    with pytest.raises(KeyProblem, match="2 live keys"):
        await keys.issue("alpha", actor="operator")

    await keys.issue("beta", actor="operator")
    await keys.revoke("alpha", first.row.id, actor="operator")
    third = await keys.issue("alpha", actor="operator")
    assert await keys.check("alpha", third.text) is None


async def test_an_expired_key_makes_room_for_a_new_one(keys: Keys, clock: HandClock) -> None:
    """S1: only live keys count."""
    for _ in range(2):
        await keys.issue("alpha", days=90, actor="operator")

    clock.at += 90 * DAY_S

    assert (await keys.issue("alpha", actor="operator")).row.id


@pytest.mark.parametrize("days", [89, 731, 0, -1])
async def test_a_life_outside_90_to_730_days_is_refused(keys: Keys, days: int) -> None:
    """S1."""
    with pytest.raises(KeyProblem, match="90 to 730"):
        await keys.issue("alpha", days=days, actor="operator")


async def test_a_key_ends_on_its_day(keys: Keys, clock: HandClock) -> None:
    """S1: expiry is a refusal of its own in the log."""
    made = await keys.issue("alpha", days=90, actor="operator")
    clock.at += 90 * DAY_S - 1
    assert await keys.check("alpha", made.text) is None

    clock.at += 1

    assert await keys.check("alpha", made.text) == "expired"


async def test_a_revoked_key_is_refused_at_once_where_it_was_revoked(keys: Keys) -> None:
    """S1: no waiting for any cache in this process."""
    made = await keys.issue("alpha", actor="operator")
    assert await keys.check("alpha", made.text) is None

    await keys.revoke("alpha", made.row.id, actor="operator")

    assert await keys.check("alpha", made.text) == "revoked"


async def test_a_key_revoked_in_another_gateway_is_refused_within_five_seconds(
    keys: Keys, store: Store, clock: HandClock
) -> None:
    """S1: several gateways share a store; what one has read is believed for FRESH_S at most."""
    made = await keys.issue("alpha", actor="operator")
    assert await keys.check("alpha", made.text) is None
    await Keys(store, PEPPER, now=clock, clock=clock).revoke("alpha", made.row.id, actor="operator")
    assert await keys.check("alpha", made.text) is None

    clock.at += FRESH_S

    assert FRESH_S < 5
    assert await keys.check("alpha", made.text) == "revoked"


async def test_a_key_of_another_target_cannot_be_revoked(keys: Keys) -> None:
    """I11, and a sentence for who mixed them up."""
    made = await keys.issue("alpha", actor="operator")

    with pytest.raises(KeyProblem, match="beta has no key"):
        await keys.revoke("beta", made.row.id, actor="operator")

    assert await keys.check("alpha", made.text) is None


async def test_the_last_use_is_kept_and_written_at_most_once_a_minute(
    keys: Keys, store: Store, clock: HandClock
) -> None:
    """S1, vendor requirement S19: last use kept, without a write for every request."""
    made = await keys.issue("alpha", actor="operator")

    async def last_use() -> float | None:
        await store.run(lambda ledger: None)  # posted jobs before this one are done
        return (await keys.listed("alpha"))[0].last_used_at

    await keys.check("alpha", made.text)
    first = clock.at
    assert await last_use() == first
    clock.at += USE_EVERY_S - 1
    await keys.check("alpha", made.text)
    assert await last_use() == first
    clock.at += 1
    await keys.check("alpha", made.text)
    assert await last_use() == clock.at


async def test_a_refused_key_leaves_no_trace_of_use(keys: Keys, store: Store) -> None:
    """A wrong key with a right id must not look as if Entra had used it."""
    made = await keys.issue("alpha", actor="operator")
    await keys.revoke("alpha", made.row.id, actor="operator")

    await keys.check("alpha", made.text)

    await store.run(lambda ledger: None)
    assert (await keys.listed("alpha"))[0].last_used_at is None


async def test_making_and_ending_a_key_is_audited_without_the_key(keys: Keys, store: Store) -> None:
    """S13: who did what; the audit trail is read by more people than may hold keys."""
    made = await keys.issue("alpha", label="Entra", actor="operator:jane")
    await keys.revoke("alpha", made.row.id, actor="operator:jane")

    acts = await store.read_slow(lambda reader: reader.audit(10))

    assert sorted(act.action for act in acts) == ["key.issued", "key.revoked"]
    assert {act.subject for act in acts} == {made.row.id}
    assert all(made.text.split("_")[2].encode() not in bytes(act.detail) for act in acts)


def test_warnings_name_the_smallest_threshold_that_is_reached() -> None:
    """S1: 30, 14, 7 and 1 days; soonest first."""
    rows = [
        a_row("a", left_days=31, target="a"),
        a_row("b", left_days=30, target="b"),
        a_row("c", left_days=14.5, target="c"),
        a_row("d", left_days=6.5, target="d"),
        a_row("e", left_days=0.5, target="e"),
        a_row("f", left_days=-1, target="f"),
        a_row("g", left_days=0.5, target="g", revoked=True),
    ]

    found = [(warning.key_id, warning.threshold, warning.days_left) for warning in expiry_warnings(rows, NOON)]

    assert found == [("f", 0, 0), ("e", 1, 0), ("d", 7, 6), ("c", 30, 14), ("b", 30, 30)]


def test_an_expired_key_that_was_replaced_is_not_worth_a_warning() -> None:
    """A warning that cannot be acted on hides those that can."""
    rows = [a_row("old", left_days=-1), a_row("new", left_days=300)]

    assert expiry_warnings(rows, NOON) == []


def test_the_pepper_is_made_once_and_only_its_owner_may_read_it(tmp_path: Path) -> None:
    """S14: readable key files are refused; a second start finds the same pepper."""
    path = tmp_path / "secrets" / "pepper"

    made = pepper_in(path)

    assert len(made) == PEPPER_BYTES
    assert pepper_in(path) == made
    assert path.stat().st_mode & 0o077 == 0
    path.chmod(0o644)
    with pytest.raises(KeyProblem, match="chmod 600"):
        pepper_in(path)


@pytest.mark.parametrize("text", ["", "not hexadecimal", "00ff"])
def test_a_file_that_holds_no_pepper_is_refused_by_name(tmp_path: Path, text: str) -> None:
    """A wrong file would silently end every key; better not to start."""
    path = tmp_path / "pepper"
    path.write_text(text)
    path.chmod(0o600)

    with pytest.raises(KeyProblem, match="holds no pepper"):
        pepper_in(path)
