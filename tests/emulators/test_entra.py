"""What the emulated Entra sends, in which order, and how it takes the answers (Microsoft's provisioning documentation)."""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import phonenumbers
import pytest
import uvloop

from deploy.emulators.entra import (
    CORE_GROUP,
    DEFAULT,
    ENTERPRISE_USER,
    EVERY_CYCLE,
    MICROSOFT_GROUP,
    MOBILES_MAX,
    OBSERVE,
    TALKDESK,
    TALKDESK_USER,
    TELEMESSAGE,
    AttributeMapping,
    Change,
    Dialect,
    Directory,
    ManualClock,
    Mapping,
    ProvisioningJob,
    evaluate,
    filter_query,
    load_cycle,
    make_groups,
    make_people,
    members_body,
    parse_expression,
    patch_body,
)
from tests.emulators.scim_stand_in import TOKEN, StandIn, running, someone

HOUR_S = 3600.0
DAY_S = 86_400.0


# --- people and expressions


def test_the_same_seed_makes_the_same_people_and_another_seed_others() -> None:
    """Repeatable runs are what lets a second process find the users of the first."""
    assert make_people(30, seed=4) == make_people(30, seed=4)
    assert {person.object_id for person in make_people(30, seed=4)}.isdisjoint(
        person.object_id for person in make_people(30, seed=5)
    )


def test_every_mobile_number_is_unique_possible_and_set_aside_for_fiction() -> None:
    """TeleMessage's key is the mobile number (M9), full international digits (M10); 555-01xx belongs to nobody."""
    mobiles = [person.mobile for person in make_people(2_000)]
    assert len(set(mobiles)) == 2_000
    for mobile in mobiles:
        assert mobile is not None
        number = phonenumbers.parse(f"+{mobile}")
        assert phonenumbers.is_possible_number_with_reason(number) == phonenumbers.ValidationResult.IS_POSSIBLE
        assert mobile[4:9] == "55501"
    assert make_people(MOBILES_MAX + 1)[-1].mobile is None


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("mail", "user0001@example.com"),
        ("[surname]", "Number 0001"),
        ('"Company ""', ValueError),
        ('"Company Manager"', "Company Manager"),
        ('Join(" ", [givenName], [surname])', "User Number 0001"),
        ('Join("-", [givenName], [state], [city])', "User-Example City"),
        ('Switch([IsSoftDeleted], , "False", "True", "True", "False")', "True"),
        ('Switch([country], "elsewhere", "AT", "Austria")', "elsewhere"),
        ("Not([IsSoftDeleted])", "True"),
        ("SingleAppRoleAssignment([appRoleAssignments])", "Agent"),
        ("[extensionAttribute9]", None),
        ("Mid([mail], 1, 2)", ValueError),
        ("[noSuchThing]", ValueError),
        ("Not([mail]", ValueError),
    ],
)
def test_expressions_give_what_the_portal_promises(source: str, expected: str | type[ValueError] | None) -> None:
    """Microsoft, customize-application-attributes: functions Switch, Not, Join, SingleAppRoleAssignment, constants."""
    person = make_people(1)[0]
    if expected is ValueError:
        with pytest.raises(ValueError):
            evaluate(parse_expression(source), person)
    else:
        assert evaluate(parse_expression(source), person) == expected


@pytest.mark.parametrize("verb", ["unassign", "disable", "soft_delete", "hard_delete"])
def test_each_way_of_leaving_makes_a_person_soft_deleted(directory: Directory, verb: str) -> None:
    """Microsoft: IsSoftDeleted is true when unassigned, out of scope, soft-deleted, or the account is disabled."""
    person = someone(directory)
    assert TELEMESSAGE.values(person)["active"] == "True"
    before = directory.sequence
    getattr(directory, verb)(person)
    assert TELEMESSAGE.values(person)["active"] == "False"
    assert directory.changed_since(before) == [person.object_id]


# --- wire forms


def test_a_filter_is_encoded_as_seen_on_the_wire() -> None:
    """Recorded requests: blank as +, quotes as %22, @ as %40, brackets encoded, a plus sign in the value as %2B."""
    assert filter_query("userName", "a+b@x") == "filter=userName+eq+%22a%2Bb%40x%22"
    assert (
        filter_query('emails[type eq "work"].value', "ada@contoso.example")
        == "filter=emails%5Btype+eq+%22work%22%5D.value+eq+%22ada%40contoso.example%22"
    )


def test_a_legacy_patch_has_capital_verbs_a_path_each_and_booleans_as_text() -> None:
    """Microsoft, application-provisioning-config-problem-scim-compatibility: the default form."""
    changes = [
        Change("displayName", "Ada King", "Ada Byron"),
        Change('emails[type eq "work"].value', "king@contoso.example", "ada@contoso.example"),
        Change(f"{ENTERPRISE_USER}:department", "Retail"),
        Change("active", "False", True),
    ]
    assert patch_body(changes, "legacy")["Operations"] == [
        {"op": "Replace", "path": "displayName", "value": "Ada King"},
        {"op": "Replace", "path": 'emails[type eq "work"].value', "value": "king@contoso.example"},
        {"op": "Add", "path": f"{ENTERPRISE_USER}:department", "value": "Retail"},
        {"op": "Replace", "path": "active", "value": "False"},
    ]


def test_a_flagged_patch_shares_one_operation_without_a_path_and_has_real_booleans() -> None:
    """Same page, aadOptscim062020: filtered paths stay apart, dotted and full URN keys in one value."""
    changes = [
        Change("displayName", "Ada King", "Ada Byron"),
        Change("name.familyName", "King", "Byron"),
        Change('emails[type eq "work"].value', "king@contoso.example", "ada@contoso.example"),
        Change(f"{ENTERPRISE_USER}:employeeNumber", "701985", "701984"),
        Change("active", "False", True),
    ]
    assert patch_body(changes, "flag")["Operations"] == [
        {"op": "replace", "path": 'emails[type eq "work"].value', "value": "king@contoso.example"},
        {"op": "replace", "path": "active", "value": False},
        {
            "op": "replace",
            "value": {
                "displayName": "Ada King",
                "name.familyName": "King",
                f"{ENTERPRISE_USER}:employeeNumber": "701985",
            },
        },
    ]
    assert patch_body([Change("nickName", "Babs")], "flag")["Operations"] == [
        {"op": "add", "path": "nickName", "value": "Babs"}
    ]


def test_the_default_mapping_posts_the_documented_document() -> None:
    """Microsoft, use-scim-to-provision-users-and-groups, create request: one entry per type, work is primary."""
    person = make_people(1, managers=False)[0]
    assert DEFAULT.document(DEFAULT.values(person, creating=True), "legacy") == {
        "schemas": ["urn:ietf:params:scim:schemas:core:2.0:User", ENTERPRISE_USER],
        "userName": "user0001@contoso.example",
        "active": True,
        "displayName": "User 0001",
        "title": "Position 1",
        "emails": [{"primary": True, "type": "work", "value": "user0001@example.com"}],
        "preferredLanguage": "en-GB",
        "name": {"givenName": "User", "familyName": "Number 0001", "formatted": "User Number 0001"},
        "addresses": [
            {
                "primary": True,
                "type": "work",
                "formatted": "Office 1",
                "streetAddress": "1 Example Street",
                "locality": "Example City",
                "postalCode": "10000",
                "country": "CH",
            }
        ],
        "phoneNumbers": [{"type": "mobile", "value": "12005550100"}],
        "externalId": "user0001",
        ENTERPRISE_USER: {"employeeNumber": "E0001", "department": "Department 01"},
        "meta": {"resourceType": "User"},
        "roles": [],
    }


def test_telemessage_maps_exactly_its_seven_attributes() -> None:
    """Vendor's guide, M8-M23: the number is both userName and externalId, displayName is the manager's constant."""
    person = make_people(1)[0]
    assert TELEMESSAGE.values(person) == {
        "userName": person.mobile,
        "active": "True",
        "displayName": "Company Manager",
        'emails[type eq "work"].value': person.mail,
        "name.givenName": person.given_name,
        "name.familyName": person.surname,
        "externalId": person.mobile,
    }


def test_talkdesk_sends_role_and_team_in_its_own_extension_and_active_as_text() -> None:
    """Vendor's guide, T6-T17; a custom extension's URN is not listed in `schemas` (Microsoft)."""
    person = make_people(1, teams=("Porto",))[0]
    document = TALKDESK.document(TALKDESK.values(person, creating=True), "legacy")
    assert document == {
        "schemas": ["urn:ietf:params:scim:schemas:core:2.0:User"],
        "userName": person.user_principal_name,
        "name": {"givenName": person.given_name, "familyName": person.surname},
        "active": "True",
        "externalId": person.object_id,
        TALKDESK_USER: {"rolesString": "Agent", "teamsString": "Porto"},
        "meta": {"resourceType": "User"},
        "roles": [],
    }
    assert TALKDESK.document(TALKDESK.values(person), "flag")["active"] is True


# --- connection


async def test_the_connection_test_asks_both_endpoints_for_something_random(start: Any, server: StandIn) -> None:
    """Recorded: matching attribute eq a GUID, no paging, no User-Agent; the groups endpoint is asked too."""
    job = await start()
    assert (await job.test_connection()).ok
    users, groups = server.seen
    assert users.raw.startswith("/scim/Users?filter=userName+eq+%22")
    assert users.raw.count("-") == 4
    assert groups.raw.startswith("/scim/Groups?excludedAttributes=members&filter=displayName+eq+%22")
    assert "User-Agent" not in users.headers
    assert users.headers["Authorization"] == f"Bearer {TOKEN}"
    assert (await job.read_schemas()).ok


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ({"kind": "status", "status": 404, "under": "Groups"}, "InvalidCredentials"),
        ({"kind": "status", "status": 401}, "InvalidCredentials"),
        ({"kind": "status", "status": 403}, "InvalidCredentials"),
        ({"kind": "status", "status": 500}, "InternalServerError"),
        ({"kind": "html"}, "SystemForCrossDomainIdentityManagementServiceIncompatible"),
        ({"kind": "reset"}, "WebException"),
    ],
)
async def test_the_connection_test_fails_on_anything_but_an_empty_list(
    start: Any, server: StandIn, fault: dict[str, Any], code: str
) -> None:
    """Microsoft: 200 with an empty ListResponse is required on both endpoints, a 404 breaks the test."""
    server.fault("GET", times=5, **fault)
    test = await (await start()).test_connection()
    assert not test.ok
    assert test.error_code == code


async def test_the_tenant_url_may_end_in_a_slash_and_its_flag_chooses_the_dialect(start: Any, server: StandIn) -> None:
    """Microsoft: the flag is appended to the tenant URL as a query."""
    job = await start(tenant_url=f"{server.url}/?aadOptscim062020")
    assert job.dialect == "flag"
    assert (await job.test_connection()).ok
    assert server.seen[0].raw.startswith("/scim/Users?filter=")


# --- cycles


async def test_an_initial_cycle_matches_before_it_creates_and_writes_managers_last(
    server: StandIn, clock: ManualClock
) -> None:
    """Microsoft, how-provisioning-works: match query, create, references once both objects exist."""
    directory = Directory(make_people(3, seed=7))
    async with ProvisioningJob(server.url, TOKEN, directory, DEFAULT, clock=clock) as job:
        report = await job.initial_cycle()
    assert [seen.method for seen in server.seen] == ["GET", "POST"] * 3 + ["PATCH"] * 2
    assert server.seen[0].query == "filter=userName+eq+%22user0001%40contoso.example%22"
    assert server.seen[1].headers["Content-Type"] == "application/scim+json; charset=utf-8"
    leader = server.user("user0001@contoso.example")["id"]
    assert server.seen[-1].body["Operations"] == [{"op": "Add", "path": f"{ENTERPRISE_USER}:manager", "value": leader}]
    assert server.user("user0003@contoso.example")[ENTERPRISE_USER]["manager"] == {"value": leader}
    assert (report.created, report.references, report.failed, report.escrowed) == (3, 2, 0, 0)


async def test_a_second_process_links_what_it_finds_and_has_nothing_to_do(start: Any, server: StandIn) -> None:
    """Microsoft: an object found by the match query is linked; no difference means EntrySynchronizationSkipped."""
    await (await start()).initial_cycle()
    server.seen.clear()
    job = await start()
    report = await job.initial_cycle()
    assert [seen.method for seen in server.seen] == ["GET"] * 3
    assert report.skipped == 3
    assert {entry.message for entry in report.entries} == {"EntrySynchronizationSkipped"}
    assert job.acknowledged == []
    assert {wish.values["userName"] for wish in job.final_wishes.values()} == {
        user["userName"] for user in server.users.values()
    }


@pytest.mark.parametrize("dialect", ["legacy", "flag"])
async def test_an_incremental_cycle_reads_by_id_and_sends_only_the_differences(
    start: Any, server: StandIn, directory: Directory, dialect: str
) -> None:
    """Microsoft: only changed objects; read target, compare, send differences; both dialects mean the same."""
    job = await start(dialect=dialect)
    await job.initial_cycle()
    server.seen.clear()
    person = someone(directory)
    directory.set(person, job_title="Lead", mail="lead@example.com", state="BE")
    directory.rename(person, "renamed@contoso.example")
    report = await job.incremental_cycle()
    assert [seen.method for seen in server.seen] == ["GET", "PATCH"]
    assert server.seen[0].raw == f"/scim/Users/{job.links[person.object_id].target_id}"
    user = server.user("renamed@contoso.example")
    assert user["title"] == "Lead"
    assert user["emails"] == [{"primary": True, "type": "work", "value": "lead@example.com"}]
    assert user["addresses"][0]["region"] == "BE"
    assert user["displayName"] == "User 0001"
    assert report.updated == 1
    assert len(report.entries) == 1
    assert ("title", "Position 1", "Lead") in report.entries[0].modified
    sent = server.seen[1].body["Operations"]
    verbs = {operation["op"] for operation in sent}
    assert verbs == ({"Add", "Replace"} if dialect == "legacy" else {"add", "replace"})
    if dialect == "flag":
        assert sent[-1] == {"op": "replace", "value": {"userName": "renamed@contoso.example", "title": "Lead"}}
    else:
        assert len(sent) == 4
    assert (await job.incremental_cycle()).entries == []


async def test_a_value_emptied_in_the_directory_is_not_sent(start: Any, server: StandIn, directory: Directory) -> None:
    """Microsoft, known issues: empty attributes are left out, so clearing does not reach the target."""
    job = await start()
    await job.initial_cycle()
    directory.set(someone(directory), job_title=None)
    report = await job.incremental_cycle()
    assert server.requests("PATCH") == []
    assert report.skipped == 1


@pytest.mark.parametrize(
    ("dialect", "disable", "enable"),
    [
        (
            "legacy",
            {"op": "Replace", "path": "active", "value": "False"},
            {"op": "Add", "path": "active", "value": "True"},
        ),
        (
            "flag",
            {"op": "replace", "path": "active", "value": False},
            {"op": "replace", "path": "active", "value": True},
        ),
    ],
)
@pytest.mark.parametrize(("leave", "come_back"), [("disable", "enable"), ("unassign", "assign")])
async def test_leaving_switches_off_and_coming_back_matches_and_switches_on_the_same_id(
    start: Any,
    server: StandIn,
    directory: Directory,
    dialect: str,
    disable: dict[str, Any],
    enable: dict[str, Any],
    leave: str,
    come_back: str,
) -> None:
    """Microsoft: leaving is PATCH active false; restored or reassigned is match query, then PATCH on the same id."""
    job = await start(dialect=dialect)
    await job.initial_cycle()
    person = someone(directory)
    target_id = job.links[person.object_id].target_id
    getattr(directory, leave)(person)
    assert (await job.incremental_cycle()).disabled == 1
    assert server.seen[-1].body["Operations"] == [disable]
    assert server.users[target_id]["active"] is False
    server.seen.clear()
    getattr(directory, come_back)(person)
    assert (await job.incremental_cycle()).enabled == 1
    assert [seen.method for seen in server.seen] == ["GET", "PATCH"]
    assert "filter=userName" in server.seen[0].raw
    assert server.seen[-1].body["Operations"] == [enable]
    assert server.users[target_id]["active"] is True
    assert job.final_wishes[person.object_id].values["active"] == "True"
    assert len(server.users) == 3


async def test_someone_renamed_while_away_keeps_the_same_id(start: Any, server: StandIn, directory: Directory) -> None:
    """The match misses under the new name; the remembered id still holds, so no second user is made."""
    job = await start()
    await job.initial_cycle()
    person = someone(directory)
    directory.unassign(person)
    await job.incremental_cycle()
    directory.rename(person, "renamed@contoso.example")
    await job.incremental_cycle()
    directory.assign(person)
    await job.incremental_cycle()
    assert len(server.users) == 3
    assert server.user("renamed@contoso.example")["active"] is True


async def test_soft_then_hard_deletion_is_switched_off_then_deleted(
    start: Any, server: StandIn, directory: Directory
) -> None:
    """Microsoft: soft-deleted is PATCH active false, purged is DELETE answered 204."""
    job = await start()
    await job.initial_cycle()
    person = someone(directory)
    directory.soft_delete(person)
    assert (await job.incremental_cycle()).disabled == 1
    directory.hard_delete(person)
    assert (await job.incremental_cycle()).deleted == 1
    assert server.seen[-1].method == "DELETE"
    assert len(server.users) == 2
    assert job.final_wishes[person.object_id].deleted
    with pytest.raises(ValueError, match="purged"):
        directory.restore(person)


async def test_no_delete_follows_an_unassignment(start: Any, server: StandIn, directory: Directory) -> None:
    """Microsoft: after an unassignment the user is no longer managed; a later deletion sends nothing."""
    job = await start()
    await job.initial_cycle()
    person = someone(directory)
    directory.unassign(person)
    await job.incremental_cycle()
    directory.hard_delete(person)
    await job.incremental_cycle()
    assert server.requests("DELETE") == []
    assert len(server.users) == 3


async def test_without_an_active_mapping_leaving_means_delete(
    start: Any, server: StandIn, directory: Directory
) -> None:
    """Microsoft: when the application has no `active` mapping, the user is deleted instead."""
    rows = tuple(row for row in DEFAULT.attributes if row.path != "active")
    job = await start(Mapping("no active", rows))
    await job.initial_cycle()
    directory.disable(someone(directory))
    directory.unassign(someone(directory, 1))
    assert (await job.incremental_cycle()).deleted == 2
    assert len(server.users) == 1


async def test_out_of_scope_deletions_can_be_skipped(start: Any, server: StandIn, directory: Directory) -> None:
    """Microsoft, skip-out-of-scope-deletions: nothing is sent for scope changes."""
    job = await start(skip_out_of_scope_deletions=True)
    await job.initial_cycle()
    directory.unassign(someone(directory))
    assert (await job.incremental_cycle()).skipped == 1
    assert server.requests("PATCH") == []


async def test_nobody_is_created_only_to_be_switched_off(start: Any, server: StandIn, directory: Directory) -> None:
    """Microsoft: a disabled user that was never provisioned is not created."""
    directory.disable(someone(directory))
    directory.unassign(someone(directory, 1))
    report = await (await start()).initial_cycle()
    assert report.created == 1
    assert [user["userName"] for user in server.users.values()] == ["user0003@contoso.example"]


async def test_a_disabled_person_who_exists_at_the_target_is_switched_off(
    start: Any, server: StandIn, directory: Directory
) -> None:
    """A new job finds by the match query whom an earlier one left active."""
    await (await start()).initial_cycle()
    directory.disable(someone(directory))
    report = await (await start()).initial_cycle()
    assert report.disabled == 1
    assert server.user("user0001@contoso.example")["active"] is False


async def test_more_leavers_than_the_threshold_are_held_back_until_allowed(
    start: Any, server: StandIn, directory: Directory, clock: ManualClock
) -> None:
    """Microsoft, accidental-deletions: nothing is deleted, the job is quarantined; an admin allows the deletions."""
    job = await start(deletion_threshold=1)
    await job.initial_cycle()
    directory.unassign(someone(directory))
    directory.hard_delete(someone(directory, 1))
    report = await job.incremental_cycle()
    assert report.quarantined == "TooManyDeletes"
    clock.advance(2 * DAY_S)
    assert not (await job.incremental_cycle()).ran
    assert all(user["active"] for user in server.users.values())
    job.allow_deletions()
    report = await job.incremental_cycle()
    assert (report.disabled, report.deleted, report.quarantined) == (1, 1, "")


@pytest.mark.parametrize(
    ("shape", "path", "value"),
    [
        ("string", f"{ENTERPRISE_USER}:manager", "ID"),
        ("object", f"{ENTERPRISE_USER}:manager", {"value": "ID"}),
        ("reference", "manager", [{"$ref": "URL/Users/ID", "value": "ID"}]),
    ],
)
async def test_a_manager_is_written_in_each_shape_that_was_seen(
    server: StandIn, shape: Any, path: str, value: Any
) -> None:
    """Captured and published forms of the manager reference; a second cycle has nothing to do; removal sends ""."""
    directory = Directory(make_people(2))
    async with ProvisioningJob(server.url, TOKEN, directory, DEFAULT, manager_shape=shape) as job:
        await job.initial_cycle()
        target_id = job.links[someone(directory).object_id].target_id
        wanted = json.loads(json.dumps(value).replace("URL", server.url).replace("ID", target_id))
        assert server.seen[-1].body["Operations"] == [{"op": "Add", "path": path, "value": wanted}]
        directory.set(someone(directory, 1), manager=None)
        if shape != "reference":  # there the stand-in keeps the manager outside the extension
            await job.incremental_cycle()
            removal = "" if shape == "string" else {"value": ""}
            assert server.seen[-1].body["Operations"] == [{"op": "Replace", "path": path, "value": removal}]


async def test_a_reference_to_a_manager_who_failed_is_made_good_later(server: StandIn, clock: ManualClock) -> None:
    """A failed reference is escrowed like an object and does not count as an object's failure."""
    directory = Directory(make_people(2))
    leader = someone(directory)
    server.fault("POST", "status", status=500, containing=leader.user_principal_name)
    async with ProvisioningJob(server.url, TOKEN, directory, DEFAULT, clock=clock) as job:
        report = await job.initial_cycle()
        assert (report.created, report.failed, report.failed_references) == (1, 1, 1)
        clock.advance(40 * 60)
        report = await job.incremental_cycle()
        assert (report.created, report.references, report.escrowed) == (1, 1, 0)


# --- on demand


async def test_on_demand_probes_matches_and_patches_in_the_legacy_form(
    start: Any, server: StandIn, directory: Directory
) -> None:
    """Recorded order: probe, match query, PATCH straight away; the flag is ignored and roles are not sent."""
    job = await start(TALKDESK, dialect="flag")
    person = someone(directory)
    entry = await job.provision_on_demand(person)
    assert (entry.action, entry.status) == ("Create", "Success")
    assert TALKDESK_USER not in server.seen[-1].body
    assert server.seen[-1].body["active"] == "True"
    server.seen.clear()
    directory.set(person, given_name="Other")
    entry = await job.provision_on_demand(person)
    assert [seen.method for seen in server.seen] == ["GET", "GET", "PATCH"]
    assert all("filter=" in seen.raw for seen in server.seen[:2])
    assert server.seen[2].body["Operations"] == [{"op": "Replace", "path": "name.givenName", "value": "Other"}]
    directory.disable(person)
    assert (await job.provision_on_demand(person)).status == "Skipped"


# --- groups


@pytest.fixture
def crowd() -> Directory:
    """Seven people in two groups, four and three."""
    people = make_people(7, seed=7, managers=False)
    return Directory(people, make_groups(people, 2, seed=7))


@pytest.fixture
async def job(server: StandIn, crowd: Directory, clock: ManualClock) -> AsyncIterator[ProvisioningJob]:
    async with ProvisioningJob(server.url, TOKEN, crowd, DEFAULT, clock=clock) as job:
        yield job


def a_group(directory: Directory, index: int = 0) -> Any:
    return list(directory.groups.values())[index]


def at_target(job: ProvisioningJob, server: StandIn, group: Any) -> set[str]:
    """Object ids of the members the target has."""
    known = {link.target_id: object_id for object_id, link in job.links.items()}
    known |= {link.target_id: object_id for object_id, link in job.group_links.items()}
    return {known.get(member, member) for member in server.group(group.display_name)["members"]}


async def test_groups_come_after_people_empty_and_are_filled_at_the_end(
    job: ProvisioningJob, server: StandIn, crowd: Directory
) -> None:
    """Microsoft: users, then groups without members, then references; matched by displayName, members left out of answers."""
    report = await job.initial_cycle()

    assert [seen.method for seen in server.seen] == ["GET", "POST"] * 9 + ["PATCH"] * 2
    first = a_group(crowd)
    assert server.seen[14].query == "excludedAttributes=members&filter=displayName+eq+%22Group+1%22"
    assert server.seen[15].body == {
        "schemas": [CORE_GROUP, MICROSOFT_GROUP],
        "externalId": first.object_id,
        "displayName": "Group 1",
        "meta": {"resourceType": "Group"},
    }
    members = [{"$ref": None, "value": job.links[member].target_id} for member in first.members]
    assert server.seen[-2].body["Operations"] == [{"op": "Add", "path": "members", "value": members}]
    assert (report.created, report.groups_created, report.memberships, report.failed) == (7, 2, 7, 0)
    for group in crowd.groups.values():
        assert at_target(job, server, group) == set(group.members)
        wish = job.final_groups[group.object_id]
        assert wish.members == set(server.groups[wish.target_id]["members"])


@pytest.mark.parametrize(
    ("dialect", "operations"),
    [
        (
            "legacy",
            [
                {"op": "Add", "path": "members", "value": [{"$ref": None, "value": "new"}]},
                {
                    "op": "Remove",
                    "path": "members",
                    "value": [{"$ref": None, "value": "a"}, {"$ref": None, "value": "b"}],
                },
            ],
        ),
        (
            "flag",
            [
                {"op": "add", "path": "members", "value": [{"$ref": None, "value": "new"}]},
                {"op": "remove", "path": 'members[value eq "a"]'},
                {"op": "remove", "path": 'members[value eq "b"]'},
            ],
        ),
    ],
)
def test_members_are_changed_in_the_form_of_the_dialect(dialect: Dialect, operations: list[dict[str, Any]]) -> None:
    """Microsoft, compatibility page: a value array in the older dialect, filtered paths with the flag."""
    assert members_body(["new"], ["a", "b"], dialect)["Operations"] == operations


@pytest.mark.parametrize("dialect", ["legacy", "flag"])
async def test_changes_of_a_group_are_sent_as_differences_and_members_are_never_read(
    server: StandIn, crowd: Directory, clock: ManualClock, dialect: Dialect
) -> None:
    """Microsoft: only changed groups are looked at; what was sent before is remembered, because members are not read."""
    async with ProvisioningJob(server.url, TOKEN, crowd, DEFAULT, dialect, clock=clock) as job:
        await job.initial_cycle()
        group, other = a_group(crowd), a_group(crowd, 1)
        mover, joiner = group.members[0], other.members[0]
        crowd.rename_group(group, "Renamed")
        crowd.remove_members(group, mover)
        crowd.add_members(group, joiner)
        server.seen.clear()

        report = await job.incremental_cycle()

        assert [seen.method for seen in server.seen] == ["GET", "PATCH", "PATCH"]
        assert server.seen[0].query == "excludedAttributes=members"
        rename = [{"op": "Replace", "path": "displayName", "value": "Renamed"}]
        if dialect == "flag":
            rename = [{"op": "replace", "value": {"displayName": "Renamed"}}]
        assert server.seen[1].body["Operations"] == rename
        add, remove = [job.links[joiner].target_id], [job.links[mover].target_id]
        assert server.seen[2].body == members_body(add, remove, dialect)
        assert at_target(job, server, group) == set(group.members)
        assert (report.groups_updated, report.memberships) == (1, 2)
        server.seen.clear()
        assert (await job.incremental_cycle()).entries == []
        assert server.seen == []


@pytest.mark.parametrize(("per_patch", "patches"), [(1, 7), (3, 3), (100, 2)])
async def test_a_patch_carries_as_many_members_as_it_is_told(
    server: StandIn, crowd: Directory, clock: ManualClock, per_patch: int, patches: int
) -> None:
    """The number is not documented; one per PATCH and many were seen."""
    async with ProvisioningJob(server.url, TOKEN, crowd, clock=clock, members_per_patch=per_patch) as job:
        await job.initial_cycle()
        assert len(server.requests("PATCH")) == patches
        assert all(at_target(job, server, group) == set(group.members) for group in crowd.groups.values())


@pytest.mark.parametrize("verb", ["unassign_group", "delete_group"])
async def test_a_group_that_leaves_is_deleted_and_comes_back_filled(
    job: ProvisioningJob, server: StandIn, crowd: Directory, verb: str
) -> None:
    """Microsoft: out of scope or unassigned means DELETE; its users are handled on their own."""
    await job.initial_cycle()
    group = a_group(crowd)
    server.seen.clear()
    getattr(crowd, verb)(group)

    report = await job.incremental_cycle()

    assert [(seen.method, "Groups" in seen.raw) for seen in server.seen] == [("DELETE", True)]
    assert (report.groups_deleted, len(server.groups), len(server.users)) == (1, 1, 7)
    assert job.final_groups[group.object_id].deleted
    if verb == "unassign_group":
        crowd.assign_group(group)
        assert (await job.incremental_cycle()).groups_created == 1
        assert at_target(job, server, group) == set(group.members)
        assert not job.final_groups[group.object_id].deleted


async def test_a_disabled_member_stays_and_a_purged_one_is_forgotten(
    job: ProvisioningJob, server: StandIn, crowd: Directory
) -> None:
    """Microsoft: memberships of somebody who comes back are not resent, so they are never taken away."""
    await job.initial_cycle()
    group = a_group(crowd)
    disabled, purged = group.members[:2]
    crowd.disable(disabled)
    crowd.hard_delete(purged)
    crowd.remove_members(group, purged)
    server.seen.clear()

    await job.incremental_cycle()

    assert [seen.method for seen in server.seen if "Groups" in seen.raw] == ["GET"]
    assert job.final_groups[group.object_id].members == {job.links[member].target_id for member in group.members}


async def test_a_member_who_is_provisioned_later_is_put_in_then(server: StandIn, clock: ManualClock) -> None:
    """A member that failed is not sent; once it is at the target, the group follows without having changed itself."""
    people = make_people(2, seed=7, managers=False)
    crowd = Directory(people, make_groups(people, 1, seed=7))
    server.fault("POST", "status", status=400, containing=people[1].user_principal_name)
    async with ProvisioningJob(server.url, TOKEN, crowd, clock=clock) as job:
        first = await job.initial_cycle()
        assert (first.created, first.memberships, first.failed) == (1, 1, 1)
        clock.advance(HOUR_S)
        second = await job.incremental_cycle()
        assert (second.created, second.memberships) == (1, 1)
        assert at_target(job, server, a_group(crowd)) == {person.object_id for person in people}


async def test_a_group_in_a_group_is_a_member_by_its_own_id(
    job: ProvisioningJob, server: StandIn, crowd: Directory
) -> None:
    """Microsoft: only direct members count; the child group itself may be sent as one."""
    outer, inner = crowd.groups.values()
    crowd.add_members(outer, inner)
    await job.initial_cycle()
    assert inner.object_id in at_target(job, server, outer)


async def test_a_second_process_links_groups_and_sends_their_members_again(
    job: ProvisioningJob, server: StandIn, crowd: Directory, clock: ManualClock
) -> None:
    """Nobody can tell which members a target has, so a job without a memory sends all of them; that must be harmless."""
    await job.initial_cycle()
    held = {group["id"]: list(group["members"]) for group in server.groups.values()}
    async with ProvisioningJob(server.url, TOKEN, crowd, DEFAULT, clock=clock) as second:
        report = await second.initial_cycle()
        assert (report.groups_created, report.memberships) == (0, 7)
    job.restart()
    report = await job.initial_cycle()
    assert (report.groups_created, report.memberships) == (0, 7)
    assert {group["id"]: list(group["members"]) for group in server.groups.values()} == held


async def test_a_group_lost_at_the_target_fails_until_a_restart_makes_it_again(
    job: ProvisioningJob, server: StandIn, crowd: Directory
) -> None:
    """Microsoft: by-id 404 is InvalidAnchor, for groups as for people."""
    await job.initial_cycle()
    group = a_group(crowd)
    server.groups.clear()
    crowd.rename_group(group, "Renamed")
    report = await job.incremental_cycle()
    assert ("InvalidAnchor", "group") in [(entry.error_code, entry.kind) for entry in report.entries]
    job.restart()
    assert (await job.initial_cycle()).groups_created == 2
    assert at_target(job, server, group) == set(group.members)


@pytest.mark.parametrize(("under", "method"), [("/Groups", "POST"), ("/Groups/", "PATCH")])
async def test_a_group_that_fails_waits_in_escrow_and_is_good_in_the_next_cycle(
    job: ProvisioningJob, server: StandIn, crowd: Directory, clock: ManualClock, under: str, method: str
) -> None:
    """Microsoft: failures come back by themselves; failed references do not count as failed objects."""
    server.fault(method, "status", status=503, under=under)
    report = await job.initial_cycle()
    failed = (1, 0) if method == "POST" else (0, 1)
    assert (report.failed, report.failed_references, report.escrowed) == (*failed, 1)
    clock.advance(HOUR_S)
    assert (await job.incremental_cycle()).escrowed == 0
    assert all(at_target(job, server, group) == set(group.members) for group in crowd.groups.values())


async def test_a_group_on_demand_takes_five_members_at_most(
    server: StandIn, crowd: Directory, clock: ManualClock
) -> None:
    """Microsoft: one group with up to five members chosen; probe, match, POST or PATCH, always in the older dialect."""
    group = crowd.add_members(a_group(crowd), *crowd.people)
    async with ProvisioningJob(server.url, TOKEN, crowd, DEFAULT, "flag", clock=clock) as job:
        with pytest.raises(ValueError, match="at most 5"):
            await job.provision_group_on_demand(group, group.members[:6])
        with pytest.raises(ValueError, match="not in the group"):
            await job.provision_group_on_demand(group, ["somebody"])
        assert server.seen == []

        entries = await job.provision_group_on_demand(group, group.members[:5])

        assert [entry.status for entry in entries] == ["Success"] * 7
        assert at_target(job, server, group) == set(group.members[:5])
        server.seen.clear()
        crowd.rename_group(group, "Renamed")
        await job.provision_group_on_demand(group, group.members[:1])
        assert [seen.method for seen in server.seen] == ["GET", "GET", "GET", "PATCH", "PATCH"]
        assert [seen.body["Operations"][0]["op"] for seen in server.seen[3:]] == ["Replace", "Add"]
        assert len(server.groups) == 1
        crowd.delete_group(group)
        assert [entry.status for entry in await job.provision_group_on_demand(group)] == ["Skipped"]


async def test_groups_can_be_left_out(server: StandIn, crowd: Directory, clock: ManualClock) -> None:
    """Mappings > Provision Microsoft Entra ID Groups > Enabled: No."""
    async with ProvisioningJob(server.url, TOKEN, crowd, clock=clock, provision_groups=False) as job:
        report = await job.initial_cycle()
        crowd.rename_group(a_group(crowd), "Renamed")
        await job.incremental_cycle()
    assert (report.created, report.groups_created) == (7, 0)
    assert [seen for seen in server.seen if "Groups" in seen.raw] == []


# --- answers that are no success


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ({"kind": "status", "status": 400}, "SystemForCrossDomainIdentityManagementServiceIncompatible"),
        ({"kind": "status", "status": 403}, "InsufficientRights"),
        ({"kind": "status", "status": 409}, "EntryConflict"),
        ({"kind": "status", "status": 422}, "UnprocessableEntity"),
        ({"kind": "status", "status": 429}, "TooManyRequests"),
        ({"kind": "status", "status": 503}, "InternalServerError"),
        ({"kind": "accepted"}, "SystemForCrossDomainIdentityManagementServiceIncompatible"),
        ({"kind": "html"}, "SystemForCrossDomainIdentityManagementServiceIncompatible"),
        ({"kind": "no_id"}, "SystemForCrossDomainIdentityManagementServiceIncompatible"),
        ({"kind": "reset"}, "WebException"),
        ({"kind": "lost"}, "WebException"),
    ],
)
async def test_a_failed_create_is_logged_escrowed_and_good_in_the_next_cycle(
    start: Any, server: StandIn, directory: Directory, clock: ManualClock, fault: dict[str, Any], code: str
) -> None:
    """Microsoft: the log shows the complete answer; a failed object comes back by itself; nobody is created twice."""
    server.fault("POST", times=1, **fault)
    job = await start()
    report = await job.initial_cycle()
    assert (report.created, report.failed, report.escrowed) == (2, 1, 1)
    failure = next(entry for entry in report.entries if entry.status == "Failure")
    assert (failure.action, failure.error_code) == ("Create", code)
    if fault["kind"] == "status":
        assert failure.status_code == fault["status"]
        assert json.loads(failure.response_body)["detail"] == "told to fail"
    assert len(job.unacknowledged) == 1
    clock.advance(40 * 60)
    report = await job.incremental_cycle()
    assert (report.failed, report.escrowed) == (0, 0)
    assert sorted(user["userName"] for user in server.users.values()) == [
        f"user000{number}@contoso.example" for number in (1, 2, 3)
    ]
    assert len(job.final_wishes) == 3
    assert all(wish.values["displayName"].startswith("User ") for wish in job.final_wishes.values())


async def test_an_answer_that_is_too_slow_is_asked_again_within_the_run(
    start: Any, server: StandIn, clock: ManualClock
) -> None:
    """Microsoft: a slow create is repeated within the run, may then meet 409, and is linked by the next cycle."""
    server.fault("POST", "slow")
    job = await start(request_timeout_s=0.3)
    report = await job.initial_cycle()
    failure = next(entry for entry in report.entries if entry.status == "Failure")
    assert failure.error_code == "EntryConflict"
    assert [write.status for write in job.unacknowledged] == [0, 409]
    assert [exchange.error for exchange in job.exchanges if exchange.operation == "create"][:2] == ["Timeout", ""]
    clock.advance(40 * 60)
    assert (await job.incremental_cycle()).skipped == 1
    assert len(server.users) == 3


async def test_escrow_thins_out_and_ends_after_28_days(
    start: Any, server: StandIn, directory: Directory, clock: ManualClock
) -> None:
    """Microsoft, quarantine status: next cycle, 6, 12, 24 hours after the first failure, then daily until day 28."""
    person = someone(directory)
    server.fault("POST", "status", times=1_000, status=500, containing=person.user_principal_name)
    job = await start()
    await job.initial_cycle()
    began = clock.now_s
    attempts: list[float] = [0.0]
    while job.escrow:
        clock.advance(HOUR_S)
        before = len(server.requests("POST"))
        await job.incremental_cycle()
        if len(server.requests("POST")) > before:
            attempts.append((clock.now_s - began) / HOUR_S)
    assert attempts == [0.0, 1.0, 6.0, 12.0, 24.0, *(24.0 * day for day in range(2, 28))]
    assert clock.now_s - began == 28 * DAY_S


async def test_a_changed_object_is_tried_at_once_although_it_waits_in_escrow(
    start: Any, server: StandIn, directory: Directory, clock: ManualClock
) -> None:
    """A change brings the object into the delta query whatever escrow says, and with the values of that later time."""
    person = someone(directory)
    server.fault("POST", "status", times=2, status=500, containing=person.user_principal_name)
    job = await start()
    await job.initial_cycle()
    clock.advance(60)
    await job.incremental_cycle()
    clock.advance(60)
    assert (await job.incremental_cycle()).entries == []
    directory.set(person, job_title="Lead")
    assert (await job.incremental_cycle()).created == 1
    assert server.user(person.user_principal_name)["title"] == "Lead"


@pytest.mark.parametrize(
    "fault", [{"status": 401, "under": "Users"}, {"status": 404, "under": "Users", "containing": "filter="}]
)
async def test_wrong_credentials_or_a_missing_endpoint_quarantine_the_job_at_once(
    start: Any, server: StandIn, clock: ManualClock, fault: dict[str, Any]
) -> None:
    """Microsoft, quarantine status: 401 and 404 on a query stop the run; then about one run a day; success lifts it."""
    server.fault("GET", "status", times=2, **fault)
    job = await start()
    report = await job.initial_cycle()
    assert report.quarantined == "EncounteredQuarantineException"
    assert len(server.seen) == 1
    clock.advance(HOUR_S)
    assert not (await job.incremental_cycle()).ran
    assert len(server.seen) == 1
    clock.advance(DAY_S)
    assert not (await job.incremental_cycle()).ran
    assert len(server.seen) == 2
    clock.advance(DAY_S)
    report = await job.incremental_cycle()
    assert (report.kind, report.created, report.quarantined) == ("initial", 3, "")


async def test_an_object_lost_at_the_target_fails_until_a_restart_makes_it_again(
    start: Any, server: StandIn, directory: Directory
) -> None:
    """Microsoft: by-id 404 is InvalidAnchor; a restart, or deleting the connection, is the remedy."""
    job = await start()
    await job.initial_cycle()
    person = someone(directory)
    server.users.clear()
    directory.set(person, job_title="Lead")
    report = await job.incremental_cycle()
    assert [entry.error_code for entry in report.entries] == ["InvalidAnchor"]
    job.delete_connection(person)
    assert (await job.incremental_cycle()).created == 1
    job.restart()
    report = await job.initial_cycle()
    assert (report.created, report.skipped) == (2, 1)
    assert len(server.users) == 3


async def test_several_objects_that_match_are_a_failure(start: Any, server: StandIn, directory: Directory) -> None:
    """Microsoft, provisioning logs: more than one hit is DuplicateTargetEntries, and nothing is written."""
    rows = (AttributeMapping("department", "title", matching=1), AttributeMapping("mail", "userName"))
    job = await start(Mapping("by department", rows))
    server.users = {key: {"id": key, "userName": key, "title": "Department 01"} for key in ("one", "two")}
    report = await job.initial_cycle()
    assert "DuplicateTargetEntries" in {entry.error_code for entry in report.entries}
    assert [user["userName"] for user in server.users.values()][:2] == ["one", "two"]


async def test_matching_attributes_are_asked_in_order_until_one_hits(
    start: Any, server: StandIn, directory: Directory
) -> None:
    """Microsoft: each matching attribute by precedence, stop at the first hit, never combined."""
    rows = (AttributeMapping("mail", "userName", matching=2), AttributeMapping("objectId", "externalId", matching=1))
    server.users = {"one": {"id": "one", "userName": "user0001@example.com", "externalId": "other"}}
    job = await start(Mapping("two keys", rows))
    await job.initial_cycle()
    first, second, third = server.seen[:3]
    assert "externalId+eq" in first.query
    assert "userName+eq" in second.query
    assert third.method == "PATCH"
    assert len(server.users) == 3


# --- many at once, and what faults leave behind


@pytest.mark.parametrize("connections", [1, 8])
async def test_as_many_requests_are_open_as_there_are_connections(
    server: StandIn, clock: ManualClock, connections: int
) -> None:
    """The number of connections bounds the requests at the same time, and is used."""
    directory = Directory(make_people(60))
    async with ProvisioningJob(server.url, TOKEN, directory, OBSERVE, connections=connections, clock=clock) as job:
        steps: list[tuple[int, int]] = []
        report = await job.initial_cycle(lambda done, total: steps.append((done, total)))
    assert report.created == 60
    assert report.references == 59
    assert server.at_once_max == connections
    assert steps[-1] == (60, 60)
    assert len(steps) == 60
    assert len(job.latencies["create"]) == 60
    assert all(seconds > 0 for seconds in job.latencies["create"])


async def test_acknowledged_writes_survive_a_server_that_goes_away_again_and_again(clock: ManualClock) -> None:
    """Refused and broken connections are failures to be repeated; what was acknowledged is what the server holds."""
    directory = Directory(make_people(40, managers=False))
    state = StandIn()
    async with running(state=state) as first:
        port = int(first.url.split(":")[2].split("/")[0])
        job = ProvisioningJob(first.url, TOKEN, directory, TALKDESK, connections=4, clock=clock, escrow=EVERY_CYCLE)
        state.fault("POST", "lost", times=7)
        state.fault("PATCH", "reset", times=5)
        report = await job.initial_cycle()
        assert report.failed == 7
    for person in directory.people.values():
        directory.set(person, surname="Changed")
    report = await job.incremental_cycle()  # nobody listens
    assert report.failed == 40
    assert {entry.error_code for entry in report.entries} == {"WebException"}
    state.released.clear()
    async with running(port, state):
        for _ in range(10):
            directory.disable(someone(directory, 5))
            if not (await job.incremental_cycle()).escrowed:
                break
        assert not job.escrow
    await job.aclose()
    assert len(state.users) == 40
    for wish in job.final_wishes.values():
        user = state.users[wish.target_id]
        assert user["name"]["familyName"] == wish.values["name.familyName"] == "Changed"
        assert str(user["active"]) == wish.values["active"]
    assert sum(write.operation == "create" for write in job.acknowledged) == 33
    assert all(200 <= write.status < 300 for write in job.acknowledged)
    assert len([write for write in job.unacknowledged if write.status == 0]) >= 12
    assert TOKEN not in repr(list(job.exchanges)) + repr(job.log) + repr(job.unacknowledged)


@pytest.mark.parametrize("mapping", [OBSERVE, TALKDESK, TELEMESSAGE], ids=lambda mapping: mapping.name)
async def test_a_load_cycle_runs_the_same_six_requests_for_every_user(server: StandIn, mapping: Mapping) -> None:
    """The benchmark's life: miss, POST, hit, PATCH with four operations, GET, PATCH active "False"."""
    result = await load_cycle(server.url, TOKEN, 5, 1, mapping=mapping, seed=3)
    assert result.refused == {}
    assert {step: len(seconds) for step, seconds in result.latencies.items()} == dict.fromkeys(result.latencies, 5)
    assert [seen.method for seen in server.seen] == ["GET", "POST", "GET", "PATCH", "GET", "PATCH"] * 5
    miss, _, hit, update, read, disable = server.seen[:6]
    assert miss.raw == hit.raw
    assert len(update.body["Operations"]) == 4
    assert disable.body["Operations"] == [{"op": "Replace", "path": "active", "value": "False"}]
    assert read.raw.rsplit("/", 1)[1] in server.users
    assert all(user["active"] is False for user in server.users.values())
    assert result.requests == 30
    assert 0 < result.quantile("create", 0.5) <= result.quantile("create", 1.0)


async def test_a_load_cycle_uses_all_connections_and_counts_what_went_wrong(server: StandIn) -> None:
    """Refusals and lost connections are counted by step and status, and the other users go on."""
    server.fault("POST", "status", times=2, status=503)
    server.fault("PATCH", "reset", times=3)
    result = await load_cycle(server.url, TOKEN, 40, 8, seed=3)
    assert result.refused["create"] == {503: 2}
    assert sum(count for counts in result.refused.values() for count in counts.values() if counts.get(0)) == 3
    assert len(server.users) == 38
    assert server.at_once_max == 8


async def test_a_load_cycle_keeps_the_pace_it_was_given(server: StandIn) -> None:
    """25 requests a second per tenant is the documented rate to be ready for; here 120 requests at 400 a second."""
    result = await load_cycle(server.url, TOKEN, 20, 4, seed=3, requests_per_s=400.0)
    assert result.elapsed_s >= 119 / 400
    assert result.requests == 120


async def test_load_and_cycles_run_on_uvloop_too(server: StandIn) -> None:
    """The benchmarks run on uvloop, whose transports are classes of their own."""

    async def both() -> tuple[int, int]:
        async with ProvisioningJob(server.url, TOKEN, Directory(make_people(4)), OBSERVE) as job:
            report = await job.initial_cycle()
        return report.created, (await load_cycle(server.url, TOKEN, 4, 2)).requests

    assert await asyncio.to_thread(uvloop.run, both()) == (4, 24)


async def test_nobody_listening_is_counted_and_does_not_stop_the_load() -> None:
    """Connection refused is an answer of its own: status 0."""
    async with running() as gone:
        pass
    result = await load_cycle(gone.url, TOKEN, 3, 2)
    assert result.refused == {"match_miss": {0: 3}, "create": {0: 3}}


# --- the command line


async def run_command(*arguments: str) -> tuple[int, str, str]:
    """Run the program as a child process and wait for its end."""
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "deploy.emulators.entra",
        *arguments,
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(child.communicate(), 60)
    assert child.returncode is not None
    return child.returncode, out.decode(), err.decode()


async def test_the_command_line_runs_a_cycle_and_prints_a_table_or_json(server: StandIn, tmp_path: Path) -> None:
    """The demo's use: a cycle for some people, then the same again, which finds nothing to do."""
    token_file = tmp_path / "token"
    token_file.write_text(f"{TOKEN}\n")
    common = ("--tenant-url", server.url, "--token-file", str(token_file), "--mapping", "talkdesk", "--users", "5")
    code, out, err = await run_command("cycle", *common)
    assert code == 0, err
    assert "Create" in out
    assert len(server.users) == 5
    code, out, err = await run_command("cycle", *common, "--dialect", "flag", "--connections", "3", "--json")
    assert code == 0, err
    report = json.loads(out)
    assert report["connection"]["ok"] is True
    assert (report["cycle"]["created"], report["cycle"]["skipped"]) == (0, 5)
    code, out, err = await run_command("load", *common, "--json")
    assert code == 0, err
    assert json.loads(out)["steps"]["create"]["count"] == 5


async def test_the_command_line_says_why_the_connection_test_failed(server: StandIn, tmp_path: Path) -> None:
    """An admin reads the complete answer; the exit code tells scripts."""
    token_file = tmp_path / "token"
    token_file.write_text("wrong")
    code, out, _ = await run_command("cycle", "--tenant-url", server.url, "--token-file", str(token_file))
    assert code == 1
    assert "InvalidCredentials" in out
    assert "wrong token" in out
    assert server.requests("POST") == []
