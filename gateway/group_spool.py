"""Where groups and their members lie while they are compared, in the database that held the users before them.

Members are compared group by group, so the largest group and not all of them together says what is needed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from msgspec import Struct

from gateway.spool import Spool

_TABLES = """
CREATE TABLE person(account TEXT PRIMARY KEY, inactive INTEGER NOT NULL, resource TEXT) WITHOUT ROWID;
CREATE TABLE there(account TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE here(account TEXT PRIMARY KEY, member TEXT NOT NULL, firm INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE fix(grp TEXT NOT NULL, member TEXT NOT NULL, add_ INTEGER NOT NULL, PRIMARY KEY(grp, member)) WITHOUT ROWID;
"""
_MISSING = (
    "FROM here h JOIN person p ON p.account = h.account WHERE h.firm AND NOT p.inactive "
    "AND h.account NOT IN (SELECT account FROM there)"
)
_EXTRA = (
    "FROM there t JOIN person p ON p.account = t.account WHERE p.resource IS NOT NULL "
    "AND t.account NOT IN (SELECT account FROM here)"
)
_STRANGE = (
    "FROM there t LEFT JOIN person p ON p.account = t.account WHERE p.resource IS NULL "
    "AND t.account NOT IN (SELECT account FROM here)"
)


class LinkedGroup(Struct, frozen=True):
    """A group at rest whose linked group the product lists."""

    n: int
    id: str
    label: str
    account_id: str


class Difference(Struct, frozen=True):
    """How the members of one group differ.

    Args:
        compared: members that are in as far as we know.
        shown: members the product shows.
        missing: of those compared, the ones that are not in; who has no account, or an inactive one, is not missed.
        extra: members with an account of ours that Entra did not put in.
        strange: members nobody here knows.
    """

    compared: int = 0
    shown: int = 0
    missing: int = 0
    extra: int = 0
    strange: int = 0


class GroupSpool(Spool):
    """A spool that takes users first and, after `turn_to_groups`, groups."""

    def __init__(self) -> None:
        super().__init__()
        self._db.executescript(_TABLES)

    def turn_to_groups(self) -> None:
        """The lines about users stay, and who has which account; what was compared makes room for the groups."""

        def work() -> None:
            self._db.execute(
                "INSERT INTO person SELECT a.id, a.active IS 0, (SELECT w.id FROM wish w WHERE w.account_id = a.id "
                "AND w.wished != 'gone' ORDER BY w.n LIMIT 1) FROM account a"
            )
            for table in ("pair", "wish_name", "wish", "account_name", "account"):
                self._db.execute(f"DELETE FROM {table}")  # noqa: S608 - one of five names

        self.at_once(work)

    def linked_groups(self, after: int, limit: int) -> list[LinkedGroup]:
        """Groups whose members can be compared, after a number."""
        with self._turn:
            found = self._db.execute(
                "SELECT w.n, w.id, w.label, w.account_id FROM wish w JOIN account a ON a.id = w.account_id "
                "WHERE w.n > ? AND w.wished = 'compare' AND w.code = '' ORDER BY w.n LIMIT ?",
                (after, limit),
            ).fetchall()
        return [LinkedGroup(*row) for row in found]

    def begin_members(self) -> None:
        """The next group."""

        def work() -> None:
            self._db.execute("DELETE FROM there")
            self._db.execute("DELETE FROM here")

        self.at_once(work)

    def add_there(self, accounts: Iterable[str]) -> int:
        """Members the product shows; how many of them were not shown before."""

        def work() -> int:
            before = self._db.total_changes
            self._db.executemany("INSERT INTO there VALUES(?) ON CONFLICT DO NOTHING", [(one,) for one in accounts])
            return self._db.total_changes - before

        return int(self.at_once(work))

    def add_here(self, members: Iterable[tuple[str, str, bool]]) -> None:
        """Members of this group here: account, resource, and whether that is settled."""

        def work() -> None:
            self._db.executemany("INSERT INTO here VALUES(?,?,?) ON CONFLICT DO NOTHING", list(members))

        self.at_once(work)

    def compare_members(self, group: str, *, ours: bool) -> Difference:
        """Compare the members taken in for a group, and keep what a repair would change.

        Args:
            ours: it was made from here; nobody is ever taken out of a group that was there before.
        """

        def work() -> Difference:
            def count(what: str) -> int:
                return int(self._db.execute(f"SELECT count(*) {what}").fetchone()[0])

            self._db.execute(f"INSERT INTO fix SELECT ?, h.member, 1 {_MISSING}", (group,))
            if ours:
                self._db.execute(
                    f"INSERT INTO fix SELECT ?, p.resource, 0 {_EXTRA} ON CONFLICT DO NOTHING",
                    (group,),
                )
            return Difference(
                compared=count("FROM here WHERE firm"),
                shown=count("FROM there"),
                missing=count(_MISSING),
                extra=count(_EXTRA),
                strange=count(_STRANGE),
            )

        return self.at_once(work)  # type: ignore[no-any-return]

    def fixes(self, group: str) -> dict[Literal["add", "remove"], list[str]]:
        """Which members of a group a repair would add and remove, by resource id."""
        with self._turn:
            found = self._db.execute("SELECT member, add_ FROM fix WHERE grp = ?", (group,)).fetchall()
        return {"add": [m for m, add in found if add], "remove": [m for m, add in found if not add]}

    def forget_fixes(self, groups: Sequence[str] | None = None) -> None:
        """Nothing is to be changed about the members of these groups, or of any."""

        def work() -> None:
            if groups is None:
                self._db.execute("DELETE FROM fix")
            else:
                self._db.executemany("DELETE FROM fix WHERE grp = ?", [(one,) for one in groups])

        self.at_once(work)

    def count_fixes(self) -> int:
        """Memberships a repair would change."""
        with self._turn:
            return int(self._db.execute("SELECT count(*) FROM fix").fetchone()[0])

    def retract(self, numbers: Sequence[int]) -> None:
        """Take lines of the report back."""

        def work() -> None:
            self._db.executemany("DELETE FROM found WHERE n = ?", [(one,) for one in numbers])

        self.at_once(work)

    def retract_classes(self, *classes: str) -> None:
        """Take all lines of some classes back."""

        def work() -> None:
            self._db.executemany("DELETE FROM found WHERE class = ?", [(one,) for one in classes])

        self.at_once(work)
