"""Lantern as its connector sees it: people with a unique address, a name, and one of some roles.

Where nothing is known the strict reading is taken: roles are exact, and an address is unique ignoring letter case.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import msgspec

from connectors.testing.harness import (
    Answer,
    Call,
    Change,
    Emulator,
    Refusal,
    Route,
    Rows,
    Setting,
    check_fields,
)

FIELDS = {"email": str, "name": str, "active": bool, "role": str}


class LanternEmulator(Emulator):
    """State: `people` by id, `settings` with the roles."""

    name: ClassVar[str] = "lantern"
    rate_per_s: ClassVar[float] = 10.0
    SETTINGS: ClassVar[Mapping[str, Setting]] = {
        "roles": Setting(["Reader", "Keeper"], list[str], "roles that can be given, exact"),
        "unique": Setting(True, bool, "an address can be taken once only"),
        "page_people": Setting(100, Annotated[int, msgspec.Meta(ge=1)], "people on one page of the list"),
    }

    def routes(self) -> list[Route]:
        """The calls the connector makes, no more."""
        return [
            Route("GET", "/v1/people", self._list),
            Route("POST", "/v1/people", self._create),
            Route("PATCH", "/v1/people/{id}", self._update),
            Route("DELETE", "/v1/people/{id}", self._delete),
            Route("GET", "/v1/roles", self._roles),
        ]

    def first_tables(self) -> Rows:
        """Nobody."""
        return {"people": {}}

    def seed(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """`{"people": [{"email", "name"?, "active"?, "role"?}]}`."""
        check_fields(document, {"people": list})
        made = [self._new(wanted) for wanted in document.get("people", [])]
        self.control("seed", [("people", person["id"], person) for person in made])
        return {"ids": [person["id"] for person in made]}

    def error_answer(self, refusal: Refusal, call: Call) -> Answer:
        """`{"code", "message"}`."""
        return Answer(refusal.status, {"code": refusal.reason, "message": refusal.message}, dict(refusal.headers))

    def _list(self, call: Call) -> Answer:
        wanted = call.query(("email", "cursor"))
        people = sorted(call.rows["people"].values(), key=lambda person: str(person["id"]))
        if "email" in wanted:
            people = [person for person in people if person["email"] == wanted["email"].lower()]
        people = [person for person in people if person["id"] > wanted.get("cursor", "")]
        size: int = self.setting("page_people")
        page = people[:size]
        return Answer(200, {"people": page, "next": page[-1]["id"] if len(people) > size else None})

    def _create(self, call: Call) -> Answer:
        body = call.json()
        check_fields(body, FIELDS, ("email",))
        person = self._new(body)
        self.effect(
            call, "create", person["id"], person["email"], body, [("people", person["id"], person)], sorted(body)
        )
        return Answer(201, person)

    def _update(self, call: Call) -> Answer:
        held = self._held(call)
        body = call.json()
        check_fields(body, FIELDS)
        after = {**held, **body}
        self._checked(after)
        changed = [field for field in FIELDS if after[field] != held[field]]
        self.effect(call, "update", held["id"], after["email"], body, [("people", held["id"], after)], changed)
        return Answer(200, after)

    def _delete(self, call: Call) -> Answer:
        held = self._held(call)
        gone: list[Change] = [("people", held["id"])]
        self.effect(call, "delete", held["id"], held["email"], {}, gone)
        return Answer(204)

    def _roles(self, call: Call) -> Answer:
        call.query(())
        return Answer(200, {"roles": self.setting("roles")})

    def _held(self, call: Call) -> dict[str, Any]:
        held: dict[str, Any] | None = self.tables.rows["people"].get(call.params["id"])
        if held is None:
            raise Refusal(404, "unknown_person", "There is no such person")
        return held

    def _new(self, wanted: Mapping[str, Any]) -> dict[str, Any]:
        blank = {"name": "", "active": True, "role": self.setting("roles")[0]}
        person = {"id": uuid.uuid4().hex, **blank, **wanted}
        self._checked(person)
        return person

    def _checked(self, person: dict[str, Any]) -> None:
        """Refuse a role that does not exist and an address that somebody else has."""
        person["email"] = person["email"].lower()
        if person["role"] not in self.setting("roles"):
            raise Refusal(400, "unknown_role", f"There is no role {person['role']!r}")
        if self.setting("unique"):
            for other in self.tables.rows["people"].values():
                if other["email"] == person["email"] and other["id"] != person["id"]:
                    raise Refusal(409, "duplicate", "This address is taken")
