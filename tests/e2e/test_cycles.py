"""Entra's provisioning cycles against all targets: what Entra wishes in the end is what the products hold."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import aiohttp
import pytest

from deploy.emulators import entra
from deploy.emulators.entra import Dialect, Directory, Person, ProvisioningJob
from tests.e2e.running import MANAGER, TALKDESK, Product, Running, Scim, a_mobile, an_address

PEOPLE = 6
APPLY_MAX_S = 60.0
ROLES = ("Agent", "Supervisor", "Team Lead")
TEAMS = ("Porto", "Tier-1")
MAPPINGS = {"talkdesk": entra.TALKDESK, "telemessage": entra.telemessage(MANAGER), "observe": entra.OBSERVE}
TOO_LONG = "x" * 5_000
SPOIL: dict[str, Callable[[Directory, Person], Person]] = {
    "talkdesk": lambda directory, person: directory.set(person, app_role_assignments=["Wizard"]),
    "telemessage": lambda directory, person: directory.set(person, mobile="4477009"),
    "observe": lambda directory, person: directory.set(person, job_title=TOO_LONG),
}
MEND: dict[str, Callable[[Directory, Person], Person]] = {
    "talkdesk": lambda directory, person: directory.set(person, app_role_assignments=["Supervisor"]),
    "telemessage": lambda directory, person: directory.set(person, mobile=a_mobile()),
    "observe": lambda directory, person: directory.set(person, job_title="Position 1"),
}


@pytest.mark.slow
@pytest.mark.parametrize("dialect", ["legacy", "flag"])
async def test_cycles_of_every_target_end_with_what_entra_wishes(
    system: Running, session: aiohttp.ClientSession, talkdesk: Product, telemessage: Product, dialect: Dialect
) -> None:
    """Initial cycle, changes, renames, disable, enable, delete, unassign, escrow and retry, in both dialects of PATCH.

    Vendor requirement M4: cycles come again, and those without anything new write nothing.
    """
    products = {"talkdesk": talkdesk, "telemessage": telemessage}

    async def run(target: str) -> None:
        entry = system.ready["targets"][target]
        people = entra.make_people(PEOPLE, prefix=f"{dialect}{target}", app_roles=ROLES, teams=TEAMS)
        directory = Directory(people)
        for person in people:
            directory.set(person, mobile=a_mobile())
        url = entry["tenant_url"] + (f"/?{entra.FLAG}" if dialect == "flag" else "")
        async with ProvisioningJob(
            url, entry["token"], directory, MAPPINGS[target], dialect, 2, escrow=entra.EVERY_CYCLE
        ) as job:
            assert (await job.test_connection()).ok
            assert (await job.read_schemas()).ok
            await cycles(target, job, directory, people)
            await system.settled(session, target, APPLY_MAX_S)
            scim = system.scim(session, target)
            wrong = [await wrong_wish(scim, products.get(target), wish) for wish in job.final_wishes.values()]
            assert not any(wrong), [problem for problem in wrong if problem]
            assert len(job.final_wishes) == PEOPLE

    async with asyncio.TaskGroup() as group:
        for target in MAPPINGS:
            group.create_task(run(target))


async def cycles(target: str, job: ProvisioningJob, directory: Directory, people: list[Person]) -> None:
    """What happens in the directory, and what each run must report."""
    changed, renamed, disabled, deleted, unassigned, spoiled = people  # the first one is the manager of all
    SPOIL[target](directory, spoiled)

    first = await job.initial_cycle()
    assert (first.created, first.failed, first.escrowed) == (PEOPLE - 1, 1, 1), failures(first)

    again = await job.incremental_cycle()
    assert (again.created, again.failed, again.escrowed) == (0, 1, 1), "what Entra holds in escrow fails again, alone"

    directory.rename(renamed, an_address("renamed"))
    directory.set(renamed, mobile=a_mobile())
    directory.set(changed, given_name="Changed", surname="Person", mail="changed@example.com", job_title="Boss")
    directory.set(changed, app_role_assignments=["Team Lead"], extensionAttribute1="Tier-1")
    directory.disable(disabled)
    directory.hard_delete(deleted)
    directory.unassign(unassigned)
    MEND[target](directory, spoiled)

    second = await job.incremental_cycle()
    assert second.failed == 0, failures(second)
    assert (second.created, second.deleted, second.escrowed) == (1, 1, 0)
    assert second.disabled == 2

    directory.enable(disabled)
    directory.set(changed, surname="Person-Again")
    third = await job.incremental_cycle()
    assert (third.failed, third.enabled, third.updated) == (0, 1, 1), failures(third)

    idle = await job.incremental_cycle()
    assert (idle.created, idle.updated, idle.disabled, idle.deleted, idle.failed) == (0, 0, 0, 0, 0)
    job.restart()
    everybody = await job.initial_cycle()
    assert (everybody.created, everybody.updated, everybody.failed) == (0, 0, 0), failures(everybody)


def failures(report: entra.CycleReport) -> list[str]:
    """What the provisioning log says went wrong."""
    return [f"{entry.action} {entry.error_code} {entry.response_body}" for entry in report.entries if entry.error_code]


async def wrong_wish(scim: Scim, product: Product | None, wish: entra.FinalWish) -> str:
    """How gateway or product differ from what Entra was told is done; "" when they do not."""
    shown = await scim.get(wish.target_id)
    name = wish.values["userName"]
    account = await product.user(name) if product is not None else None
    if wish.deleted:
        if shown.status != 404:
            return f"{name} was deleted and is shown"
        left = account is not None and account.get("status", "active") == "active"
        return f"{name} was deleted and is there: {account}" if left else ""
    for path, value in wish.values.items():
        held = entra.held(shown.document, path)
        held = held["value"] if path.endswith(":manager") and held else held
        if not entra.same(value, "" if held is None else held):
            return f"{name}: {path} is {held!r}, wished {value!r}"
    if product is None:
        return ""
    if account is None:
        return f"{name} is not at the product"
    there = as_scim(account)
    differing = {
        path: (value, there[path]) for path, value in wish.values.items() if path in there and there[path] != value
    }
    return f"{name} at the product: {differing}" if differing else ""


def as_scim(account: dict[str, Any]) -> dict[str, str]:
    """What an emulated product holds, by the paths of the mapping."""
    if "status" in account:
        return {
            "userName": account["mobilePhone"],
            "active": str(account["status"] == "active"),
            "displayName": account["manager"],
            'emails[type eq "work"].value': account["email"],
            "name.givenName": account["firstName"],
            "name.familyName": account["lastName"],
        }
    return {
        "userName": account["userName"],
        "active": str(account["active"]),
        "externalId": account["externalId"] or "",
        "name.givenName": account["givenName"],
        "name.familyName": account["familyName"],
        f"{TALKDESK}:rolesString": account["rolesString"],
        f"{TALKDESK}:teamsString": account["teamsString"],
    }


async def test_provision_on_demand_shows_the_products_own_word(system: Running, talkdesk: Product) -> None:
    """What an admin does first: one person at once; the refusal of the product stands in the log, and so does the success."""
    entry = system.ready["targets"]["talkdesk"]
    ada, byron = entra.make_people(2, prefix="demand", app_roles=ROLES, teams=("Nowhere",))
    directory = Directory((ada, byron))
    async with ProvisioningJob(entry["tenant_url"], entry["token"], directory, entra.TALKDESK) as job:
        refused = await job.provision_on_demand(ada)
        assert refused.status == "Failure", refused
        assert refused.status_code == 400
        assert "'Nowhere'" in refused.response_body

        directory.set(ada, extensionAttribute1="Porto")
        done = await job.provision_on_demand(ada)
        assert done.status == "Success", done
        account = await talkdesk.user(ada.user_principal_name)
        assert account is not None
        assert account["teamsString"] == "Porto"


@pytest.mark.parametrize(("target", "mapping"), [("sofa", entra.SOFA), ("bobs_business", entra.BOBS_BUSINESS)])
async def test_on_demand_and_repeated_full_cycles_agree(
    system: Running, session: aiohttp.ClientSession, target: str, mapping: entra.Mapping
) -> None:
    """Vendor requirements L14 and S27: one person at once, everybody by the cycle; full cycles again write nothing."""
    entry, product = system.ready["targets"][target], system.product(session, target)
    people = entra.make_people(2, prefix=f"again{target}")
    async with ProvisioningJob(entry["tenant_url"], entry["token"], Directory(people), mapping) as job:
        done = await job.provision_on_demand(people[0])
        assert done.status == "Success", done
        held = json.dumps(await product.control("GET", "state"))
        assert people[0].user_principal_name in held
        assert people[1].user_principal_name not in held

        await job.initial_cycle()
        await system.settled(session, target, APPLY_MAX_S)
        assert people[1].user_principal_name in json.dumps(await product.control("GET", "state"))

        since = await product.now()
        job.restart()
        again = await job.initial_cycle()
        assert (again.created, again.updated, again.failed) == (0, 0, 0), failures(again)
        assert await product.calls(since) == []
