"""Lantern keeps what every connector promises."""

from __future__ import annotations

from typing import Any

from connectors.testing.conformance import WITHOUT_GROUPS, Bench, Conformance, Seen
from connectors.testing.example_emulator import LanternEmulator


class TestLantern(Conformance):
    """What the suite has to know about this product; the promises come with the class."""

    connector = "lantern"
    create_call = ("POST", "/v1/people$")
    page_size = 3
    not_applicable = WITHOUT_GROUPS

    def emulator(self) -> LanternEmulator:
        """Without a limit on calls, and with short pages, so that the suite is quick."""
        return LanternEmulator(token=self.credential, rate_per_s=0, page_people=3)

    def settings(self, url: str, secret: str) -> dict[str, Any]:
        """The table `[targets.<name>.settings]`; `secret` is the path of a file that holds the credential."""
        return {"base_url": url, "token": {"file": secret}, "allow_loopback": True}

    def user(self, number: int, *, text: str = "Ada Example", active: bool = True) -> dict[str, Any]:
        """A person as Entra sends it; `text` goes where the product keeps a name."""
        return {
            "userName": f"person{number}@example.com",
            "externalId": f"00000000-0000-4000-8000-{number:012d}",
            "displayName": text,
            "active": active,
        }

    def with_unknown_role(self, user: dict[str, Any], role: str) -> dict[str, Any]:
        """The same person with a role the product does not have."""
        return {**user, "roles": [{"value": role}]}

    def accounts(self, bench: Bench) -> list[Seen]:
        """What the product holds, read from its own state and not through the connector."""
        return [
            Seen(account_id=held["id"], key=held["email"], active=held["active"], texts=(held["name"],))
            for held in bench.product.state()["people"].values()
        ]
