"""Access keys and client secrets: what Entra calls the Secret Token and the Client Secret (security requirements S1, S2).

A key is `pg_<id>_<secret>_<check>`: an id to find it by, 256 random bits, and check digits by which a cut or mistyped key is told
from a wrong one. It is shown once, when it is made; kept is an HMAC-SHA-256 under a pepper of this installation. At most two keys
of a target live at once, so that one can be replaced without a gap. A client secret is the same with the prefix `pgs`: it opens
nothing but the token endpoint, and a key does not open that.
"""

from __future__ import annotations

import asyncio
import hmac
import os
import secrets
import string
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Literal, TypeAlias

from msgspec import Struct

from gateway.records import KeyRecord
from gateway.refusals import Check, CheckVerdict, shown_time
from gateway.store import Store, Transaction

PREFIX = "pg"
CLIENT_PREFIX = "pgs"
SECRET_BYTES = 32
PEPPER_BYTES = 32
ID_CHARS = 10
SECRET_CHARS = 43
CHECK_CHARS = 6
LIVE_MAX = 2
DAYS_MIN = 90
DAYS_MAX = 730
DAYS_DEFAULT = 365
CLIENT_DAYS_MAX = 1_095
CLIENT_DAYS_DEFAULT = 730
"""Client secrets live 1 to 3 years at other products (Microsoft's list for its gallery)."""
DAY_S = 86_400.0
FRESH_S = 2.0
"""How long keys that were read are believed; a revocation elsewhere counts after this at the latest."""
USE_EVERY_S = 60.0
"""The last use of a key is written at most this often."""
WARN_DAYS = (1, 7, 14, 30)

Kind: TypeAlias = Literal["key", "client"]


class _Words(Struct, frozen=True):
    """What is different between the kinds: prefix of the text, longest life, and what an operator calls it."""

    prefix: str
    days_max: int
    noun: str
    plural: str
    days_default: int


_WORDS: Mapping[Kind, _Words] = {
    "key": _Words(PREFIX, DAYS_MAX, "key", "keys", DAYS_DEFAULT),
    "client": _Words(CLIENT_PREFIX, CLIENT_DAYS_MAX, "client secret", "client secrets", CLIENT_DAYS_DEFAULT),
}

Refusal: TypeAlias = Literal["malformed", "wrong", "expired", "revoked"]
"""Why a caller was refused; for the log, never for the answer."""

_CLIENT_START = f"{CLIENT_PREFIX}_"
_DIGITS = string.digits + string.ascii_uppercase + string.ascii_lowercase


def kind_of(row: KeyRecord) -> Kind:
    """Whether a row is an access key or a client secret."""
    return "client" if row.prefix.startswith(_CLIENT_START) else "key"


def is_live(row: KeyRecord, now: float) -> bool:
    """Whether a key opens anything at this moment (epoch seconds)."""
    return row.revoked_at is None and now < row.expires_at


def _verdict(passed: bool) -> CheckVerdict:
    return "passed" if passed else "failed"


class NewKey(Struct, frozen=True):
    """A key that was just made: the only time its text is known."""

    text: str
    row: KeyRecord


class KeyWarning(Struct, frozen=True):
    """A key that ends soon or has ended.

    Args:
        days_left: whole days that are left, 0 on the last one.
        threshold: the smallest of 30, 14, 7 and 1 that is reached; 0 when it has expired.
    """

    target: str
    key_id: str
    days_left: int
    threshold: int
    expires_at: float
    kind: Kind = "key"


class KeyProblem(Exception):
    """A key cannot be made or revoked; the text tells an operator why and what to do."""


def _in_digits(number: int, width: int) -> str:
    text = ""
    while number:
        number, digit = divmod(number, len(_DIGITS))
        text = _DIGITS[digit] + text
    return text.rjust(width, _DIGITS[0])


def check_digits(text: str) -> str:
    """CRC-32 of a key without its last part, as CHECK_CHARS digits of base 62."""
    return _in_digits(zlib.crc32(text.encode()), CHECK_CHARS)


def new_key_text(prefix: str = PREFIX) -> str:
    """A new key from 256 random bits of the operating system."""
    key_id = "".join(secrets.choice(_DIGITS) for _ in range(ID_CHARS))
    secret = _in_digits(int.from_bytes(secrets.token_bytes(SECRET_BYTES), "big"), SECRET_CHARS)
    body = f"{prefix}_{key_id}_{secret}"
    return f"{body}_{check_digits(body)}"


def key_id_of(text: str, prefix: str = PREFIX) -> str | None:
    """The id in the text of a key; None when this is no key, or one that was cut or mistyped."""
    if not text.isascii():
        return None
    body, _, check = text.rpartition("_")
    parts = body.split("_")
    if len(parts) != 3 or parts[0] != prefix or len(parts[1]) != ID_CHARS or len(parts[2]) != SECRET_CHARS:
        return None
    return parts[1] if check == check_digits(body) else None


def digest(pepper: bytes, text: str) -> bytes:
    """What is kept of a key."""
    return hmac.digest(pepper, text.encode("utf-8", "replace"), "sha256")


def pepper_in(path: Path) -> bytes:
    """The pepper of this installation, made on first use; several gateways of one installation need the same file.

    Raises:
        KeyProblem: the file cannot be read or made, is open to everyone, or holds something else.
    """
    try:
        if not path.exists():
            _make_pepper(path)
        if path.stat().st_mode & 0o007:
            raise KeyProblem(f"{path} is accessible to everyone; chmod 600 it.")
        pepper = bytes.fromhex(path.read_text(encoding="ascii").strip())
    except OSError as exc:
        raise KeyProblem(f"{path} cannot be read or made: {exc.strerror}.") from exc
    except ValueError as exc:
        raise KeyProblem(
            f"{path} holds no pepper; without the right file every access key has to be made anew."
        ) from exc
    if len(pepper) != PEPPER_BYTES:
        raise KeyProblem(f"{path} holds no pepper; without the right file every access key has to be made anew.")
    return pepper


def _make_pepper(path: Path) -> None:
    """Written aside and linked into place: of two gateways that start at once, both use the one that was first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
        file.write(secrets.token_bytes(PEPPER_BYTES).hex() + "\n")
        file.flush()
        os.fsync(file.fileno())
    try:
        os.link(fresh, path)
    except FileExistsError:
        pass
    finally:
        fresh.unlink()


class _Held(Struct):
    """The keys and client secrets of one target as they were read, each by id, and when (monotonic seconds)."""

    key: Mapping[str, KeyRecord]
    client: Mapping[str, KeyRecord]
    read_at: float

    def rows(self, kind: Kind) -> Mapping[str, KeyRecord]:
        return self.key if kind == "key" else self.client


class Keys:
    """The keys of all targets: makes, checks, lists and revokes them.

    Args:
        store: where their digests are kept.
        pepper: the secret of this installation, PEPPER_BYTES long.
        now: epoch seconds.
        clock: monotonic seconds.
    """

    def __init__(self, store: Store, pepper: bytes, *, now: Callable[[], float], clock: Callable[[], float]) -> None:
        if len(pepper) != PEPPER_BYTES:
            raise ValueError(f"a pepper has {PEPPER_BYTES} bytes")
        self._store = store
        self._pepper = pepper
        self._now = now
        self._clock = clock
        self._held: dict[str, _Held] = {}
        self._reading: dict[str, asyncio.Task[_Held]] = {}
        self._use_written: dict[str, float] = {}
        self._keyed = hmac.new(pepper, digestmod="sha256")
        self._nobody = digest(pepper, new_key_text())

    def derived(self, purpose: str) -> bytes:
        """A secret of 32 bytes for one purpose, the same in every gateway of this installation."""
        return hmac.digest(self._pepper, b"provgate/1/" + purpose.encode(), "sha256")

    def _digest(self, text: str) -> bytes:
        """As `digest`, which every request would make set up its pepper anew."""
        keyed = self._keyed.copy()
        keyed.update(text.encode("utf-8", "replace"))
        return keyed.digest()

    async def check(self, target: str, text: str, kind: Kind = "key") -> Refusal | None:
        """Whether a key opens a target now; None when it does, else the reason, which is for the log only.

        Args:
            target: a configured target, or "" for one that is not: the check then takes as long and finds nothing.
            kind: a client secret is no key, and the other way round.

        Raises:
            StoreError: the keys cannot be read.
        """
        key_id = key_id_of(text, PREFIX if kind == "key" else CLIENT_PREFIX)
        rows = await self._rows(target, kind) if target else {}
        row = rows.get(key_id) if key_id is not None else None
        right = hmac.compare_digest(row.hash if row is not None else self._nobody, self._digest(text))
        if key_id is None:
            return "malformed"
        if row is None or not right:
            return "wrong"
        now = self._now()
        if row.revoked_at is not None:
            return "revoked"
        if now >= row.expires_at:
            return "expired"
        self._note_use(row, now)
        return None

    async def known(self, target: str, key_id: str, kind: Kind) -> KeyRecord | None:
        """The key or client secret with this id, whatever has become of it; as it was at most FRESH_S ago.

        Raises:
            StoreError: the keys cannot be read.
        """
        return (await self._rows(target, kind)).get(key_id)

    async def explained(self, target: str, text: str, kind: Kind = "key") -> list[Check]:
        """The questions behind `check`, for the operator: ids and times, never the text.

        Args:
            target: a configured target.

        Raises:
            StoreError: the keys cannot be read.
        """
        words = _WORDS[kind]
        key_id = key_id_of(text, words.prefix)
        form = f"a {words.noun}, {words.prefix}_..., whole"
        if key_id is None:
            return [Check("form", form, f"{len(text):,} characters that are none", "failed")]
        checks = [Check("form", form, "one", "passed")]
        row = await self.known(target, key_id, kind)
        if row is None:
            return [*checks, Check("id", f"a {words.noun} of {target}", f"{key_id}, which is none", "failed")]
        checks.append(Check("id", f"a {words.noun} of {target}", key_id, "passed"))
        right = hmac.compare_digest(row.hash, digest(self._pepper, text))
        checks.append(Check("secret", "the right one", "the right one" if right else "another", _verdict(right)))
        now = self._now()
        ended = row.revoked_at is not None
        at = f"revoked at {shown_time(row.revoked_at)}" if ended else "not revoked"
        checks.append(Check("revoked", "not revoked", at, _verdict(not ended)))
        until = f"ends at {shown_time(row.expires_at)}"
        return [*checks, Check("expiry", f"an end after {shown_time(now)}", until, _verdict(now < row.expires_at))]

    def _note_use(self, row: KeyRecord, now: float) -> None:
        written = self._use_written.get(row.id) or row.last_used_at or 0.0
        if abs(now - written) >= USE_EVERY_S:
            self._use_written[row.id] = now
            self._store.post(lambda ledger: ledger.touch_key(row.id, now))

    async def _rows(self, target: str, kind: Kind) -> Mapping[str, KeyRecord]:
        held = self._held.get(target)
        if held is not None and self._clock() - held.read_at < FRESH_S:
            return held.rows(kind)
        reading = self._reading.get(target)
        if reading is None:
            reading = asyncio.create_task(self._read(target))
            self._reading[target] = reading
        return (await asyncio.shield(reading)).rows(kind)

    async def _read(self, target: str) -> _Held:
        asked_at = self._clock()
        current = asyncio.current_task()
        try:
            rows = await self._store.read(lambda reader: reader.keys(target))
            keys = {row.id: row for row in rows if kind_of(row) == "key"}
            clients = {row.id: row for row in rows if kind_of(row) == "client"}
            held = _Held(keys, clients, asked_at)
            if self._reading.get(target) is current:
                self._held[target] = held
            return held
        finally:
            if self._reading.get(target) is current:
                del self._reading[target]

    def _forget(self, target: str) -> None:
        """Keys changed: neither what was read counts any more, nor what is being read."""
        self._held.pop(target, None)
        self._reading.pop(target, None)

    async def issue(
        self, target: str, *, days: int | None = None, label: str = "", actor: str, kind: Kind = "key"
    ) -> NewKey:
        """Make a key. Its text is in the answer and nowhere else.

        Args:
            days: DAYS_MIN to DAYS_MAX (a client secret: CLIENT_DAYS_MAX); None takes the default of its kind.
            actor: who asked for it (audited).

        Raises:
            KeyProblem: the number of days is out of range, or LIVE_MAX keys of this target live already.
        """
        words = _WORDS[kind]
        if days is None:
            days = words.days_default
        if not DAYS_MIN <= days <= words.days_max:
            raise KeyProblem(f"A {words.noun} lives {DAYS_MIN} to {words.days_max} days; {days} were asked for.")
        text = new_key_text(words.prefix)
        key_id = text.split("_")[1]
        now = self._now()
        row = KeyRecord(
            id=key_id,
            target=target,
            label=label,
            prefix=f"{words.prefix}_{key_id}",
            hash=digest(self._pepper, text),
            created_at=now,
            expires_at=now + days * DAY_S,
        )

        def job(ledger: Transaction) -> bool:
            if sum(is_live(held, now) for held in ledger.keys(target) if kind_of(held) == kind) >= LIVE_MAX:
                return False
            ledger.add_key(row)
            detail = {"days": days, "label": label}
            ledger.audit(at=now, actor=actor, action=f"{kind}.issued", target=target, subject=row.id, detail=detail)
            return True

        if not await self._store.run(job):
            raise KeyProblem(
                f"{target} has {LIVE_MAX} live {words.plural}. Revoke the one that is no longer used in Entra first: "
                f"provgate {kind} list {target}, then provgate {kind} revoke ID."
            )
        self._forget(target)
        return NewKey(text, row)

    async def revoke(self, target: str, key_id: str, *, actor: str) -> KeyRecord:
        """End a key: at once in this process, within FRESH_S in others. A key that was ended before stays as it is.

        Raises:
            KeyProblem: the target has no such key.
        """
        now = self._now()

        def job(ledger: Transaction) -> KeyRecord | None:
            row = next((held for held in ledger.keys(target) if held.id == key_id), None)
            if row is not None and row.revoked_at is None:
                ledger.revoke_key(key_id, now)
                action = f"{kind_of(row)}.revoked"
                ledger.audit(at=now, actor=actor, action=action, target=target, subject=key_id, detail={})
            return row

        row = await self._store.run(job)
        self._forget(target)
        if row is None:
            raise KeyProblem(f"{target} has no key {key_id}.")
        return row

    async def listed(self, target: str | None = None, kind: Kind | None = None) -> list[KeyRecord]:
        """The keys of one target or of all, oldest first, ended ones included; `expiry_warnings` takes them as they are."""
        rows = await self._store.read(lambda reader: reader.keys(target))
        return [row for row in rows if kind is None or kind_of(row) == kind]


def last_ends(rows: Iterable[KeyRecord]) -> dict[str, float]:
    """When the last of these keys and client secrets that were not revoked ends (epoch seconds), by kind."""
    ends: dict[str, float] = {}
    for row in rows:
        if row.revoked_at is None:
            ends[kind_of(row)] = max(ends.get(kind_of(row), 0.0), row.expires_at)
    return ends


def expiry_warnings(rows: Iterable[KeyRecord], now: float) -> list[KeyWarning]:
    """Keys that end within 30 days or have ended without being revoked, soonest first.

    An expired key is no longer worth a warning when a later one of its target lives.
    """
    held = [row for row in rows if row.revoked_at is None]
    live = {(row.target, kind_of(row)) for row in held if is_live(row, now)}
    warnings = []
    for row in sorted(held, key=lambda row: row.expires_at):
        left_s = row.expires_at - now
        if left_s <= 0:
            if (row.target, kind_of(row)) not in live:
                warnings.append(KeyWarning(row.target, row.id, 0, 0, row.expires_at, kind_of(row)))
            continue
        reached = [days for days in WARN_DAYS if left_s <= days * DAY_S]
        if reached:
            days_left, threshold = int(left_s // DAY_S), min(reached)
            warnings.append(KeyWarning(row.target, row.id, days_left, threshold, row.expires_at, kind_of(row)))
    return warnings
