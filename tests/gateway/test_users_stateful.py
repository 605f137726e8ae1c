"""Random sequences of what Entra does to users in two targets, against the ingress and a model in plain Python (hypothesis).

The model is dictionaries and lists; it knows RFC 7644 section 3.5.2 and what Entra sends, and uses nothing of ours.
`PROVGATE_STATEFUL_EXAMPLES` makes it run longer.
"""

from __future__ import annotations

import contextlib
import copy
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from connectors.contract import Delivery, Found, Identity
from schemas.resources import User
from tests.gateway.scim_listener import ALPHA, BETA, Answer, Listener, Shelf, listening
from tests.gateway.test_groups_stateful import Loop

EXAMPLES = int(os.environ.get("PROVGATE_STATEFUL_EXAMPLES", "10"))
STEPS = 20
ENTERPRISE = "urn:ietf:params:scim:schemas:extension:enterprise:2.0:User"
TARGETS = (ALPHA, BETA)
NAMES = tuple(f"{name}@contoso.example" for name in ("ada", "Bo", "ÇAĞ", "dee"))
EXTERNALS = ("x1", "X1", "x2", None, None)
TEXTS = ("Engineer", "Ingénieur 😀", 'a\\b"c', " padded ", "True", "1")
REFUSED = "forbidden"
"""The product takes no such title (`Shelf`)."""
YES = (True, "True", "true", "TRUE")
NO = (False, "False", "false", "FALSE")
NOTHING = ("", None)

where = st.sampled_from(TARGETS)
which = st.integers(0, 5)
name = st.sampled_from(NAMES)
text = st.sampled_from(TEXTS)
kind = st.sampled_from(("work", "home"))
address = st.sampled_from(("one@contoso.example", "two@contoso.example", "Three@contoso.example"))
adding = st.sampled_from(("add", "Add", "replace", "Replace"))
flag = st.booleans()

Doc = dict[str, Any]


# ---- the model


def set_simple(doc: Doc, attribute: str, value: Any) -> None:
    """A simple attribute; nothing clears it."""
    if value in NOTHING:
        doc.pop(attribute, None)
    else:
        doc[attribute] = value


def set_part(doc: Doc, attribute: str, part: str, value: Any) -> None:
    """A part of a complex attribute or of the extension; the last part takes the whole with it."""
    held = dict(doc.get(attribute, {}))
    set_simple(held, part, value)
    if held:
        doc[attribute] = held
    else:
        doc.pop(attribute, None)


def set_entries(doc: Doc, attribute: str, entries: list[Doc]) -> None:
    """A multi-valued attribute; an empty one is none."""
    if entries:
        doc[attribute] = entries
    else:
        doc.pop(attribute, None)


def add_entries(doc: Doc, attribute: str, sent: Sequence[Doc]) -> None:
    """What is there already is completed; at most one is primary, the one named last."""
    entries = copy.deepcopy(doc.get(attribute, []))
    for new in sent:
        same = [old for old in entries if old.get("value") == new["value"] and old.get("type") == new.get("type")]
        if same:
            same[0].update(new)
            chosen = same[0]
        else:
            chosen = dict(new)
            entries.append(chosen)
        if new.get("primary") is True:
            for old in entries:
                if old is not chosen and old.get("primary") is True:
                    old["primary"] = False
    set_entries(doc, attribute, entries)


def set_typed(doc: Doc, attribute: str, kind: str, value: Any) -> None:
    """`emails[type eq "work"].value`: all of that type; there is one afterwards unless it was cleared."""
    entries = copy.deepcopy(doc.get(attribute, []))
    same = [entry for entry in entries if entry.get("type") == kind]
    if value in NOTHING:
        entries = [entry for entry in entries if entry.get("type") != kind]
    elif same:
        for entry in same:
            entry["value"] = value
    else:
        entries.append({"type": kind, "value": value})
    set_entries(doc, attribute, entries)


def folded(value: str) -> str:
    """How names are compared."""
    return value.strip().casefold()


class Target:
    """What one target holds: live users by id, ids that are gone."""

    def __init__(self) -> None:
        self.live: dict[str, Doc] = {}
        self.gone: list[str] = []

    def taken(self, doc: Doc, but: str = "") -> bool:
        """Whether somebody else has this name or this external id."""
        return any(
            folded(held["userName"]) == folded(doc["userName"])
            or ("externalId" in doc and held.get("externalId") == doc["externalId"])
            for user, held in self.live.items()
            if user != but
        )


# ---- the product


class Blank(Shelf):
    """A product that recognises nobody, so that both targets may hold the same names."""

    async def find(self, account: User | None, identities: Sequence[Identity], ctx: Delivery) -> list[Found]:
        """Nobody."""
        return []


class UsersOfEntra(RuleBasedStateMachine):
    """Two targets, a handful of names; every answer and everything that can be read is compared."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = Loop()
        self.stack = contextlib.AsyncExitStack()
        self.folder = tempfile.TemporaryDirectory(prefix="users-")
        self.shelf = Blank()
        self.scim: Listener = self.loop.run(
            self.stack.enter_async_context(listening(Path(self.folder.name), shelf=self.shelf))
        )
        self.targets = {at: Target() for at in TARGETS}

    def teardown(self) -> None:
        self.loop.run(self.stack.aclose())
        self.loop.close()
        self.folder.cleanup()

    # ---- talking to it

    def send(self, method: str, path: str, at: str, json: Any = None) -> Answer:
        return self.loop.run(self.scim.send(method, path, target=at, json=json))

    def pick(self, at: str, number: int) -> str:
        """Somebody who lives there; "" for nobody."""
        held = list(self.targets[at].live)
        return held[number % len(held)] if held else ""

    def seen(self, answer: Answer, doc: Doc) -> None:
        """The resource in an answer is this document and nothing more."""
        shown = {key: value for key, value in answer.body.items() if key not in ("id", "schemas", "meta")}
        assert shown == doc

    def patch(self, at: str, number: int, operations: list[Doc], expected: Doc | None) -> None:
        """Send it and compare; None: it has to be 400."""
        user = self.pick(at, number)
        held = self.targets[at]
        answer = self.loop.run(self.scim.patch(f"/Users/{user}", *operations, target=at))
        if expected is None or (expected.get("title") == REFUSED and not held.taken(expected, user)):
            assert answer.status == 400, answer.body
        elif held.taken(expected, user):
            assert (answer.status, answer.body["scimType"]) == (409, "uniqueness"), answer.body
        else:
            assert answer.status == 200, answer.body
            self.seen(answer, expected)
            held.live[user] = expected

    def copied(self, at: str, number: int) -> Doc:
        return copy.deepcopy(self.targets[at].live[self.pick(at, number)])

    def given_up(self, at: str, name: str) -> bool:
        """Whether somebody had this name a moment ago: whoever wants it next waits until the gateway has looked again (R2)."""
        held = self.targets[at]
        rows = self.loop.run(
            self.scim.store.read(lambda reader: [reader.row(user) for user in (*held.live, *held.gone)])
        )
        return any(row is not None and f"userName:{name.casefold()}" in row.doubts.trail for row in rows)

    def anybody(self) -> bool:
        return all(held.live for held in self.targets.values())

    # ---- creating and replacing

    @initialize()
    def begin(self) -> None:
        for at in TARGETS:
            self.create(at, NAMES[0], "x0", TEXTS[0], YES[0], address="one@contoso.example", nulls=True)

    @rule(
        at=where,
        name=name,
        external=st.sampled_from(EXTERNALS),
        title=st.sampled_from((*TEXTS, REFUSED)),
        active=st.sampled_from((*YES, *NO, None)),
        address=address,
        nulls=flag,
    )
    def create(
        self, at: str, name: str, external: str | None, title: str, active: Any, address: str, nulls: bool
    ) -> None:
        body: Doc = {"userName": name, "title": title, "emails": [{"type": "work", "value": address, "primary": True}]}
        doc = copy.deepcopy(body)
        if external is not None:
            body["externalId"] = doc["externalId"] = external
        if active is not None:
            body["active"], doc["active"] = active, active in YES
        if nulls:  # Entra's own sample has them, also at places where they do not belong
            body |= {"displayName": None, "department": None, "manager": None, "roles": [], "nickName": ""}
        held = self.targets[at]
        if self.given_up(at, name):
            return
        answer = self.send("POST", "/Users", at, body)
        if held.taken(doc):
            assert (answer.status, answer.body["scimType"]) == (409, "uniqueness"), answer.body
        elif title == REFUSED:
            assert (answer.status, answer.body["scimType"]) == (400, "invalidValue"), answer.body
        else:
            assert answer.status == 201, answer.body
            assert answer.body["id"] not in {*held.live, *held.gone}
            self.seen(answer, doc)
            held.live[answer.body["id"]] = doc

    @precondition(anybody)
    @rule(at=where, number=which, name=name, title=st.sampled_from((*TEXTS, REFUSED)), given=text, manager=which)
    def put(self, at: str, number: int, name: str, title: str, given: str, manager: int) -> None:
        user, held = self.pick(at, number), self.targets[at]
        boss = self.pick(at, manager)
        if self.given_up(at, name):
            return
        body: Doc = {
            "USERNAME": name,
            "title": title,
            "name": {"givenName": given, "familyName": None},
            "Active": "true",
            ENTERPRISE: {"manager": boss, "department": given},
        }
        doc: Doc = {
            "userName": name,
            "title": title,
            "name": {"givenName": given},
            "active": True,
            ENTERPRISE: {"manager": {"value": boss}, "department": given},
        }
        answer = self.send("PUT", f"/Users/{user}", at, body)
        if held.taken(doc, user):
            assert (answer.status, answer.body["scimType"]) == (409, "uniqueness")
        elif title == REFUSED:
            assert answer.status == 400
        else:
            assert answer.status == 200, answer.body
            self.seen(answer, doc)
            held.live[user] = doc

    # ---- PATCH, the default dialect: one path for each operation

    @precondition(anybody)
    @rule(at=where, number=which, op=adding, value=st.sampled_from((*TEXTS, *NOTHING, REFUSED)))
    def simple(self, at: str, number: int, op: str, value: Any) -> None:
        doc = self.copied(at, number)
        set_simple(doc, "title", value)
        self.patch(at, number, [{"op": op, "path": "TITLE", "value": value}], doc)

    @precondition(anybody)
    @rule(
        at=where,
        number=which,
        attribute=st.sampled_from(
            ("title", "displayName", "externalId", "active", "emails", "roles", "name", ENTERPRISE)
        ),
    )
    def remove(self, at: str, number: int, attribute: str) -> None:
        doc = self.copied(at, number)
        doc.pop(attribute, None)
        self.patch(at, number, [{"op": "Remove", "path": attribute}], doc)

    @precondition(anybody)
    @rule(at=where, number=which, op=adding, value=st.sampled_from((*YES, *NO)), wrapped=flag)
    def switch(self, at: str, number: int, op: str, value: Any, wrapped: bool) -> None:
        doc = self.copied(at, number) | {"active": value in YES}
        sent = [{"$ref": None, "value": value}] if wrapped else value
        self.patch(at, number, [{"op": op, "path": "active", "value": sent}], doc)

    @precondition(anybody)
    @rule(at=where, number=which, new=name, extra=st.sampled_from((None, REFUSED)))
    def rename(self, at: str, number: int, new: str, extra: str | None) -> None:
        if self.given_up(at, new):
            return
        doc = self.copied(at, number) | {"userName": new}
        operations = [{"op": "Replace", "path": "userName", "value": new}]
        if extra is not None:
            doc["title"] = extra
            operations.append({"op": "Replace", "path": "title", "value": extra})
        self.patch(at, number, operations, doc)

    @precondition(anybody)
    @rule(
        at=where,
        number=which,
        op=adding,
        attribute=st.sampled_from(("emails", "phoneNumbers")),
        kind=kind,
        value=st.one_of(address, st.sampled_from(NOTHING)),
    )
    def typed(self, at: str, number: int, op: str, attribute: str, kind: str, value: Any) -> None:
        doc = self.copied(at, number)
        set_typed(doc, attribute, kind, value)
        self.patch(at, number, [{"op": op, "path": f'{attribute}[type eq "{kind}"].value', "value": value}], doc)

    @precondition(anybody)
    @rule(at=where, number=which, attribute=st.sampled_from(("emails", "phoneNumbers")), kind=kind, part=flag)
    def remove_typed(self, at: str, number: int, attribute: str, kind: str, part: bool) -> None:
        doc = self.copied(at, number)
        set_typed(doc, attribute, kind, None)
        tail = ".value" if part else ""
        self.patch(at, number, [{"op": "remove", "path": f'{attribute}[type eq "{kind}"]{tail}'}], doc)

    @precondition(anybody)
    @rule(
        at=where,
        number=which,
        attribute=st.sampled_from(("emails", "phoneNumbers")),
        sent=st.lists(st.tuples(kind, address, flag), min_size=1, max_size=3),
        op=st.sampled_from(("Add", "Replace")),
        single=flag,
    )
    def entries(self, at: str, number: int, attribute: str, sent: list[Any], op: str, single: bool) -> None:
        some: list[Doc] = [{"type": kind, "value": value} for kind, value, _ in (sent[:1] if single else sent)]
        if sent[0][2]:
            some[0]["primary"] = True
        doc = self.copied(at, number)
        if op == "Replace":
            set_entries(doc, attribute, copy.deepcopy(some))
        else:
            add_entries(doc, attribute, some)
        self.patch(at, number, [{"op": op, "path": attribute, "value": some[0] if single else some}], doc)

    @precondition(anybody)
    @rule(
        at=where,
        number=which,
        values=st.lists(text, min_size=1, max_size=3, unique=True),
        op=st.sampled_from(("add", "replace", "remove")),
    )
    def roles(self, at: str, number: int, values: list[str], op: str) -> None:
        some: list[Doc] = [{"value": value} for value in values]
        doc = self.copied(at, number)
        if op == "add":
            add_entries(doc, "roles", some)
        elif op == "replace":
            set_entries(doc, "roles", copy.deepcopy(some))
        else:
            set_entries(doc, "roles", [entry for entry in doc.get("roles", []) if entry["value"] not in values])
        self.patch(at, number, [{"op": op, "path": "roles", "value": some}], doc)

    @precondition(anybody)
    @rule(at=where, number=which, boss=which, shape=st.integers(0, 4), full=flag)
    def manager(self, at: str, number: int, boss: int, shape: int, full: bool) -> None:
        someone = self.pick(at, boss)
        value: Any = (
            someone,
            {"value": someone},
            [{"$ref": None, "value": someone}],
            {"$ref": "x", "value": someone, "displayName": "x"},
            "",
        )[shape]
        doc = self.copied(at, number)
        set_part(doc, ENTERPRISE, "manager", {"value": someone} if shape < 4 else None)
        path = f"{ENTERPRISE}:manager" if full else "manager"
        self.patch(at, number, [{"op": "Add", "path": path, "value": value}], doc)

    @precondition(anybody)
    @rule(
        at=where,
        number=which,
        part=st.sampled_from(("department", "employeeNumber")),
        op=adding,
        value=st.sampled_from((*TEXTS, *NOTHING)),
    )
    def extension(self, at: str, number: int, part: str, op: str, value: Any) -> None:
        doc = self.copied(at, number)
        set_part(doc, ENTERPRISE, part, value)
        self.patch(at, number, [{"op": op, "path": f"{ENTERPRISE}:{part}", "value": value}], doc)

    @precondition(anybody)
    @rule(
        at=where,
        number=which,
        given=st.sampled_from((*TEXTS, *NOTHING)),
        family=st.sampled_from((*TEXTS, *NOTHING)),
    )
    def several(self, at: str, number: int, given: Any, family: Any) -> None:
        doc = self.copied(at, number)
        set_part(doc, "name", "givenName", given)
        set_part(doc, "name", "familyName", family)
        set_typed(doc, "emails", "work", "three@contoso.example")
        operations = [
            {"op": "Replace", "path": "name.givenName", "value": given},
            {"op": "Replace", "path": "name.familyName", "value": family},
            {"op": "Add", "path": 'emails[type eq "work"].value', "value": "three@contoso.example"},
        ]
        self.patch(at, number, operations, doc)

    # ---- PATCH, the other dialect: values without a path, dotted keys

    @precondition(anybody)
    @rule(
        at=where,
        number=which,
        op=adding,
        active=st.sampled_from((*YES, *NO)),
        given=st.sampled_from((*TEXTS, *NOTHING)),
        department=st.sampled_from((*TEXTS, *NOTHING)),
        shown=text,
        filtered=flag,
    )
    def pathless(
        self, at: str, number: int, op: str, active: Any, given: Any, department: Any, shown: str, filtered: bool
    ) -> None:
        doc = self.copied(at, number) | {"active": active in YES, "displayName": shown}
        set_part(doc, "name", "givenName", given)
        set_part(doc, ENTERPRISE, "department", department)
        value: Doc = {
            "active": active,
            "displayName": shown,
            "name.givenName": given,
            f"{ENTERPRISE}:department": department,
        }
        if filtered:
            set_typed(doc, "phoneNumbers", "home", "one@contoso.example")
            value['phoneNumbers[type eq "home"].value'] = "one@contoso.example"
        self.patch(at, number, [{"op": op, "value": value}], doc)

    # ---- what must be refused, and change nothing

    @precondition(anybody)
    @rule(
        at=where,
        number=which,
        bad=st.sampled_from(
            (
                {"op": "Replace", "path": "userName", "value": ""},
                {"op": "remove", "path": "userName"},
                {"op": "Replace", "path": "active", "value": "perhaps"},
                {"op": "Replace", "path": "id", "value": "x"},
                {"op": "Replace", "path": 'emails[type eq "work"', "value": "x"},
                {"op": "Replace", "path": "title", "value": {"a": 1}},
                {"op": "move", "path": "title", "value": "x"},
            )
        ),
    )
    def nothing_of_it(self, at: str, number: int, bad: Doc) -> None:
        good = {"op": "Replace", "path": "displayName", "value": "never seen"}
        self.patch(at, number, [good, bad], None)

    @precondition(anybody)
    @rule(at=where, number=which)
    def repeat(self, at: str, number: int) -> None:
        """What is so already changes nothing, not even the version."""
        user = self.pick(at, number)
        doc = self.targets[at].live[user]
        before = self.send("GET", f"/Users/{user}", at)
        answer = self.loop.run(
            self.scim.patch(
                f"/Users/{user}", {"op": "Replace", "path": "userName", "value": doc["userName"]}, target=at
            )
        )
        assert answer.status == 200
        self.seen(answer, doc)
        self.seen(before, doc)

    # ---- deleting, and the other at

    @precondition(anybody)
    @rule(at=where, number=which)
    def delete(self, at: str, number: int) -> None:
        held = self.targets[at]
        if len(held.live) < 2:
            return
        user = self.pick(at, number)
        assert self.send("DELETE", f"/Users/{user}", at).status == 204
        del held.live[user]
        held.gone.append(user)

    @precondition(lambda self: any(held.gone for held in self.targets.values()))
    @rule(number=which, method=st.sampled_from(("GET", "DELETE", "PATCH", "PUT")))
    def what_is_gone_stays_gone(self, number: int, method: str) -> None:
        for at, held in self.targets.items():
            if held.gone:
                self.nobody(at, held.gone[number % len(held.gone)], method)

    @precondition(anybody)
    @rule(number=which, method=st.sampled_from(("GET", "DELETE", "PATCH", "PUT")))
    def a_stranger(self, number: int, method: str) -> None:
        self.nobody(ALPHA, self.pick(BETA, number), method)
        self.nobody(BETA, self.pick(ALPHA, number), method)

    def nobody(self, at: str, user: str, method: str) -> None:
        body = {
            "PATCH": {"Operations": [{"op": "remove", "path": "title"}]},
            "PUT": {"userName": "nobody@contoso.example"},
        }
        answer = self.send(method, f"/Users/{user}", at, body.get(method))
        assert (answer.status, answer.body["status"]) == (404, "404")

    # ---- questions

    def found(self, at: str, question: str) -> set[str]:
        quoted = "".join(f"%{byte:02X}" for byte in question.encode())
        answer = self.send("GET", f"/Users?filter={quoted}", at)
        assert answer.status == 200, answer.body
        resources = answer.body["Resources"]
        assert answer.body["totalResults"] == len(resources)
        for resource in resources:
            self.seen(Answer(200, {}, b"", resource), self.targets[at].live[resource["id"]])
        return {resource["id"] for resource in resources}

    @rule(at=where, name=name, upper=flag, external=st.sampled_from(EXTERNALS[:3]), address=address)
    def match(self, at: str, name: str, upper: bool, external: str, address: str) -> None:
        live = self.targets[at].live
        spelled = name.upper() if upper else name
        assert self.found(at, f'userName eq "{spelled}"') == {
            u for u, d in live.items() if folded(d["userName"]) == folded(name)
        }
        assert self.found(at, f'externalId eq "{external}"') == {
            u for u, d in live.items() if d.get("externalId") == external
        }
        works = {
            user
            for user, doc in live.items()
            if any(
                e.get("type") == "work" and e.get("value", "").lower() == address.lower() for e in doc.get("emails", [])
            )
        }
        assert self.found(at, f'emails[type eq "work"].value eq "{address}"') == works

    @rule(at=where, title=text, active=flag)
    def search(self, at: str, title: str, active: bool) -> None:
        live = self.targets[at].live
        quoted = title.replace("\\", "\\\\").replace('"', '\\"')
        assert self.found(at, f'title eq "{quoted}"') == {
            u for u, d in live.items() if d.get("title", "").lower() == title.lower()
        }
        assert self.found(at, f"active eq {str(active).lower()}") == {
            u for u, d in live.items() if d.get("active") is active
        }

    @rule(at=where, count=st.integers(1, 3), by_cursor=flag)
    def pages(self, at: str, count: int, by_cursor: bool) -> None:
        live = self.targets[at].live
        listed: list[str] = []
        more: str | None = f"cursor=&count={count}" if by_cursor else f"startIndex=1&count={count}"
        while more is not None:
            body = self.send("GET", f"/Users?{more}", at).body
            assert body["totalResults"] == len(live)
            page = [resource["id"] for resource in body["Resources"]]
            assert len(page) == body["itemsPerPage"] <= count
            listed += page
            if by_cursor:
                more = f"cursor={body['nextCursor']}" if "nextCursor" in body else None
            else:
                more = f"startIndex={len(listed) + 1}&count={count}" if page else None
        assert len(listed) == len(set(listed))
        assert set(listed) == set(live)

    # ---- what must hold after every step

    @invariant()
    def everything_reads_as_it_was_asked(self) -> None:
        for at, held in self.targets.items():
            for user, doc in held.live.items():
                answer = self.send("GET", f"/Users/{user}", at)
                assert answer.status == 200
                assert answer.headers["etag"] == answer.body["meta"]["version"]
                self.seen(answer, doc)

    @invariant()
    def the_product_holds_what_is_read(self) -> None:
        live = {user: doc for held in self.targets.values() for user, doc in held.live.items()}
        rows = self.loop.run(self.scim.store.read(lambda reader: {user: reader.row(user) for user in live}))
        for user, doc in live.items():
            account = self.shelf.accounts[str(rows[user].account_id)]  # type: ignore[union-attr]
            assert (account.user_name, account.title or None) == (doc["userName"], doc.get("title"))
            assert account.active is doc.get("active", account.active)


UsersOfEntra.TestCase.settings = settings(
    max_examples=EXAMPLES,
    stateful_step_count=STEPS,
    deadline=None,
    phases=[Phase.generate],  # to shrink a sequence means to start hundreds of listeners
    database=None,
    suppress_health_check=list(HealthCheck),
)
TestUsersOfEntra = UsersOfEntra.TestCase
"""RFC 7644 sections 3.3 to 3.6, and both dialects of Entra: every answer, every question and the product agree with the model."""
