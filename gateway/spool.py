"""Where a comparison lies while it runs: a database of its own that spills to a temporary file and vanishes with the process.

So fifty thousand accounts and as many users cost a few megabytes of memory. SQLite deletes the file when it opens it: nobody else
can read what is in it, and nothing is left behind by a crash.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, cast

import msgspec
from msgspec import Struct

from schemas.comparison import ExpectedUser, ListedAccount

CACHE_KIB = 8_192
"""Pages kept in memory; the rest lies in the temporary file."""

Wished = Literal["compare", "moving", "gone"]
"""What is done about a user: compared; only known, because something is on its way; deleted here and perhaps left over there."""

_json = msgspec.json.Encoder(order="deterministic")
_digests = msgspec.json.Decoder(dict[str, str])

_TABLES = """
CREATE TABLE account(n INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, active INTEGER, owner TEXT, digests BLOB, label TEXT,
  touched INTEGER NOT NULL DEFAULT 0);
CREATE TABLE account_name(name TEXT NOT NULL, n INTEGER NOT NULL, PRIMARY KEY(name, n)) WITHOUT ROWID;
CREATE TABLE wish(n INTEGER PRIMARY KEY, id TEXT, label TEXT, wished TEXT, account_id TEXT, inactive_known INTEGER,
  active INTEGER, owner TEXT, digests BLOB, code TEXT, message TEXT, attribute TEXT);
CREATE TABLE wish_name(name TEXT NOT NULL, elsewhere INTEGER NOT NULL, n INTEGER NOT NULL, PRIMARY KEY(name, elsewhere, n))
  WITHOUT ROWID;
CREATE INDEX wish_elsewhere ON wish_name(n) WHERE elsewhere = 1;
CREATE INDEX wish_account ON wish(account_id) WHERE account_id IS NOT NULL;
CREATE TABLE pair(wish INTEGER NOT NULL, account INTEGER NOT NULL, PRIMARY KEY(wish, account)) WITHOUT ROWID;
CREATE INDEX pair_account ON pair(account);
CREATE TABLE found(n INTEGER PRIMARY KEY, class TEXT NOT NULL, code TEXT, resource TEXT, account_id TEXT, label TEXT,
  attributes TEXT, message TEXT);
CREATE INDEX found_class ON found(class, n);
"""


class Finding(Struct, frozen=True, kw_only=True):
    """One line of a report.

    Args:
        n: its number; pages of a report go on after it.
        class_: e.g. `matched` or `drifted`; see `gateway/comparison.py`.
        code: the finer cause, or "".
        resource: id of the user, at this gateway or in the file; "" when only an account is meant.
        account_id: the product's id, or several with a blank between.
        label: who it is about: userName, or what the product recognises the account by. A person's value.
        attributes: SCIM paths that differ, or that the refusal is about.
        message: one sentence where the code alone does not say enough.
    """

    n: int
    class_: str = msgspec.field(name="class")
    code: str
    resource: str
    account_id: str
    label: str
    attributes: tuple[str, ...]
    message: str


class WishRow(Struct, frozen=True, kw_only=True):
    """A user as it is compared.

    Args:
        inactive_known: the product is known to keep it inactive although it is wished active, e.g. for want of a licence.
    """

    n: int
    id: str
    label: str
    wished: Wished
    account_id: str | None
    inactive_known: bool
    active: bool
    owner: str
    digests: dict[str, str]
    code: str
    message: str
    attribute: str | None


class AccountRow(Struct, frozen=True, kw_only=True):
    """An account as it is compared; `touched`: something was said about it, or somebody has it."""

    n: int
    id: str
    active: bool | None
    owner: str
    digests: dict[str, str]
    label: str
    touched: bool


class Spool:
    """See the module. Used by one thread at a time; `close` gives everything back."""

    def __init__(self) -> None:
        self._db = sqlite3.connect("", check_same_thread=False, isolation_level=None)
        self._turn = threading.Lock()
        for pragma in ("journal_mode = off", "synchronous = off", f"cache_size = -{CACHE_KIB}", "temp_store = file"):
            self._db.execute(f"PRAGMA {pragma}").fetchall()
        self._db.executescript(_TABLES)

    def close(self) -> None:
        """Forget everything."""
        with self._turn:
            self._db.close()

    def at_once(self, work: Callable[[], Any]) -> Any:
        """Run many changes in one go, which is much quicker than one by one."""
        with self._turn:
            self._db.execute("BEGIN")
            try:
                return work()
            finally:
                self._db.execute("COMMIT")

    # ---- what is compared

    def add_accounts(self, accounts: Iterable[ListedAccount]) -> int:
        """Take in a part of the list; an account that is listed twice counts once. How many were new."""

        def work() -> int:
            new = 0
            for one in accounts:
                label = one.identities[0] if one.identities else one.account_id
                active = None if one.active is None else int(one.active)
                row = (one.account_id, active, one.owner, _json.encode(one.digests), label)
                made = self._db.execute(
                    "INSERT INTO account(id, active, owner, digests, label) VALUES(?,?,?,?,?) ON CONFLICT DO NOTHING",
                    row,
                )
                if made.rowcount == 1:
                    new += 1
                    names = [(name, made.lastrowid) for name in dict.fromkeys(one.identities)]
                    self._db.executemany("INSERT INTO account_name(name, n) VALUES(?,?)", names)
            return new

        return int(self.at_once(work))

    def add_wishes(self, wishes: Iterable[tuple[str, str, Wished, str | None, bool, ExpectedUser]]) -> None:
        """Take in users: id, label, what is done about it, linked account, whether it is known to be inactive, expectation."""

        def work() -> None:
            for id_, label, wished, account_id, inactive_known, user in wishes:
                digests = _json.encode(user.digests)
                facts = (id_, label, wished, account_id, inactive_known, user.active, user.owner, digests)
                made = self._db.execute(
                    "INSERT INTO wish(id, label, wished, account_id, inactive_known, active, owner, digests, code, message, "
                    "attribute) VALUES(?,?,?,?,?,?,?,?,?,?,?)",
                    (*facts, user.code, user.message, user.attribute),
                )
                names = [(name, 0, made.lastrowid) for name in dict.fromkeys(user.identities)]
                names += [(name, 1, made.lastrowid) for name in dict.fromkeys(user.elsewhere)]
                self._db.executemany("INSERT INTO wish_name(name, elsewhere, n) VALUES(?,?,?)", names)

        self.at_once(work)

    def pair_up(self) -> None:
        """Who answers to whom: by link where there is one, by names otherwise."""

        def work() -> None:
            self._db.execute(
                "INSERT INTO pair SELECT w.n, a.n FROM wish w JOIN account a ON a.id = w.account_id ON CONFLICT DO NOTHING"
            )
            self._db.execute(
                "INSERT INTO pair SELECT w.n, a.n FROM wish_name w JOIN account_name a ON a.name = w.name "
                "WHERE NOT w.elsewhere ON CONFLICT DO NOTHING"
            )

        self.at_once(work)

    def count(self, table: Literal["account", "wish", "found"]) -> int:
        """Rows of one table."""
        with self._turn:
            return int(self._db.execute(f"SELECT count(*) FROM {table}").fetchone()[0])  # noqa: S608 - one of three names

    def count_linked(self) -> int:
        """Users that are compared and have an account."""
        with self._turn:
            which = "wished = 'compare' AND active AND code = '' AND account_id IS NOT NULL"
            return int(self._db.execute(f"SELECT count(*) FROM wish WHERE {which}").fetchone()[0])  # noqa: S608 - constant

    # ---- inside `at_once`

    def wishes(self) -> Iterator[WishRow]:
        """All users, in the order in which they came."""
        after = 0
        while True:
            found = self._db.execute("SELECT * FROM wish WHERE n > ? ORDER BY n LIMIT 500", (after,)).fetchall()
            for row in found:
                yield _wish(row)
            if not found:
                return
            after = found[-1][0]

    def accounts_of(self, wish: int) -> list[AccountRow]:
        """Accounts that answer to a user, the linked one first."""
        found = self._db.execute(
            "SELECT a.* FROM pair p JOIN account a ON a.n = p.account JOIN wish w ON w.n = p.wish WHERE p.wish = ? "
            "ORDER BY a.id IS NOT w.account_id, a.n",
            (wish,),
        )
        return [_account(row) for row in found.fetchall()]

    def elsewhere(self, wish: int) -> list[AccountRow]:
        """Accounts that are perhaps the same person's under another name."""
        found = self._db.execute(
            "SELECT DISTINCT a.* FROM wish_name w JOIN account_name x ON x.name = w.name JOIN account a ON a.n = x.n "
            "WHERE w.n = ? AND w.elsewhere = 1 ORDER BY a.n",
            (wish,),
        )
        return [_account(row) for row in found.fetchall()]

    def rivals(self, account: int, wish: int) -> list[tuple[str, str | None]]:
        """Other live users that answer to an account: id, and the account each is linked to."""
        found = self._db.execute(
            "SELECT w.id, w.account_id FROM pair p JOIN wish w ON w.n = p.wish "
            "WHERE p.account = ? AND p.wish != ? AND w.wished != 'gone' ORDER BY w.n",
            (account, wish),
        )
        return cast("list[tuple[str, str | None]]", found.fetchall())

    def touch(self, *accounts: int) -> None:
        """These accounts are accounted for."""
        self._db.executemany("UPDATE account SET touched = 1 WHERE n = ?", [(one,) for one in accounts])

    def untouched(self) -> Iterator[AccountRow]:
        """Accounts nothing was said about."""
        after = 0
        while True:
            found = self._db.execute(
                "SELECT * FROM account WHERE n > ? AND NOT touched ORDER BY n LIMIT 500", (after,)
            ).fetchall()
            for row in found:
                yield _account(row)
            if not found:
                return
            after = found[-1][0]

    def leavers(self, account: int) -> list[WishRow]:
        """Users deleted here to whom an account answers."""
        found = self._db.execute(
            "SELECT w.* FROM pair p JOIN wish w ON w.n = p.wish WHERE p.account = ? AND w.wished = 'gone'", (account,)
        )
        return [_wish(row) for row in found.fetchall()]

    def say(
        self,
        class_: str,
        *,
        code: str = "",
        resource: str = "",
        accounts: Sequence[str] = (),
        label: str = "",
        attributes: Sequence[str] = (),
        message: str = "",
    ) -> None:
        """Add a line to the report."""
        self._db.execute(
            "INSERT INTO found(class, code, resource, account_id, label, attributes, message) VALUES(?,?,?,?,?,?,?)",
            (class_, code, resource, " ".join(accounts), label, _json.encode(attributes).decode(), message),
        )

    # ---- the report

    def counts(self) -> dict[str, int]:
        """Lines by class."""
        with self._turn:
            return dict(self._db.execute("SELECT class, count(*) FROM found GROUP BY class").fetchall())

    def codes(self) -> dict[str, int]:
        """Lines by class and cause, `class.code`."""
        with self._turn:
            found = self._db.execute(
                "SELECT class || '.' || code, count(*) FROM found WHERE code != '' GROUP BY class, code"
            ).fetchall()
        return dict(found)

    def findings(self, *, class_: str | None = None, after: int = 0, limit: int = 500) -> list[Finding]:
        """Lines of the report after a number, of one class or of all."""
        if class_ is None:
            sql, values = "SELECT * FROM found WHERE n > ? ORDER BY n LIMIT ?", (after, limit)
        else:
            sql = "SELECT * FROM found WHERE class = ? AND n > ? ORDER BY n LIMIT ?"
            values = (class_, after, limit)  # type: ignore[assignment]
        with self._turn:
            rows = self._db.execute(sql, values).fetchall()
        return [
            Finding(
                n=n,
                class_=name,
                code=code,
                resource=resource,
                account_id=account,
                label=label,
                attributes=tuple(msgspec.json.decode(attributes)),
                message=message,
            )
            for n, name, code, resource, account, label, attributes, message in rows
        ]


def _wish(row: Sequence[Any]) -> WishRow:
    n, id_, label, wished, account_id, inactive_known, active, owner, digests, code, message, attribute = row
    return WishRow(
        n=n,
        id=id_,
        label=label,
        wished=wished,
        account_id=account_id,
        inactive_known=bool(inactive_known),
        active=bool(active),
        owner=owner,
        digests=_digests.decode(digests),
        code=code,
        message=message,
        attribute=attribute,
    )


def _account(row: Sequence[Any]) -> AccountRow:
    n, id_, active, owner, digests, label, touched = row
    return AccountRow(
        n=n,
        id=id_,
        active=None if active is None else bool(active),
        owner=owner,
        digests=_digests.decode(digests),
        label=label,
        touched=bool(touched),
    )
