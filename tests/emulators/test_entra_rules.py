"""Further rules of Entra's provisioning: roles in all forms, probes during cycles, quarantine and its end, scope, discovery."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from deploy.emulators.entra import (
    APP_ROLE_TYPE,
    KEEP_ALIVE_S,
    QUARANTINE_DISABLES_AFTER_S,
    SERVICE_INCOMPATIBLE,
    AppRole,
    AttributeMapping,
    Dialect,
    Directory,
    ManualClock,
    Mapping,
    ProvisioningJob,
    evaluate,
    make_people,
    parse_expression,
    role_values,
)
from tests.emulators.scim_stand_in import StandIn, someone
from tests.gateway.scim_listener import ALPHA, GroupShelf, listening

DAY_S = 86_400.0
AGENT = AppRole("0f1e2d3c-0000-4000-8000-000000000001", "agent", "Agent")
LEAD = AppRole("0f1e2d3c-0000-4000-8000-000000000002", "lead", "Lead")
PLAIN = (AttributeMapping("userPrincipalName", "userName", matching=1), AttributeMapping("displayName", "displayName"))


def roles_by(function: str, path: str = "roles") -> Mapping:
    row = AttributeMapping(f"{function}([appRoleAssignments])", path)
    return Mapping("roles", (*PLAIN, AttributeMapping("Not([IsSoftDeleted])", "active"), row))


SINGLE = roles_by("SingleAppRoleAssignment")


@pytest.fixture
def usual() -> Mapping:
    """Jobs map one role unless they say otherwise."""
    return SINGLE


# --- roles


def only(directory: Directory, *roles: AppRole) -> Any:
    """A directory of one person with these roles."""
    for person in list(directory.people.values())[1:]:
        del directory.people[person.object_id]
    return directory.set(someone(directory), app_role_assignments=list(roles))


def sent(server: StandIn, method: str) -> Any:
    return server.requests(method)[-1].body


POSTED = {
    "SingleAppRoleAssignment": [{"primary": True, "type": APP_ROLE_TYPE, "value": "agent"}],
    "AppRoleAssignmentsComplex": [
        {"primary": False, "type": APP_ROLE_TYPE, "displayName": "Agent", "value": "agent"},
        {"primary": False, "type": APP_ROLE_TYPE, "displayName": "Lead", "value": "lead"},
    ],
    "AssertiveAppRoleAssignmentsComplex": [
        {"primary": False, "type": APP_ROLE_TYPE, "display": "Agent", "value": "agent"},
        {"primary": False, "type": APP_ROLE_TYPE, "display": "Lead", "value": "lead"},
    ],
}
"""R1, R3 and R5 of the documentation."""


@pytest.mark.parametrize("function", POSTED)
async def test_a_create_carries_roles_in_the_form_of_the_expression(
    start: Any, server: StandIn, directory: Directory, function: str
) -> None:
    """customize-application-attributes: one primary role; several with displayName; several with display."""
    only(directory, AGENT, LEAD)
    path = 'roles[primary eq "True"].value' if function == "SingleAppRoleAssignment" else "roles"
    job = await start(roles_by(function, path))

    assert (await job.initial_cycle()).created == 1

    assert sent(server, "POST")["roles"] == POSTED[function]


def in_text(*roles: AppRole) -> list[dict[str, str]]:
    return [
        {"value": json.dumps({"id": r.id, "value": r.value, "displayName": r.display_name}, separators=(",", ":"))}
        for r in roles
    ]


@pytest.mark.parametrize(
    ("function", "dialect", "expected"),
    [
        ("AppRoleAssignmentsComplex", "legacy", {"op": "Add", "path": "roles", "value": in_text(AGENT, LEAD)}),
        (
            "AppRoleAssignmentsComplex",
            "flag",
            {"op": "add", "path": "roles", "value": POSTED["AppRoleAssignmentsComplex"]},
        ),
        *(
            (name, dialect, {"op": "replace", "path": "roles", "value": POSTED[name]})
            for name in ("AssertiveAppRoleAssignmentsComplex",)
            for dialect in ("legacy", "flag")
        ),
    ],
)
async def test_a_role_that_was_given_later_is_sent_in_the_form_of_the_dialect(
    start: Any, server: StandIn, directory: Directory, function: str, dialect: Dialect, expected: dict[str, Any]
) -> None:
    """R4: JSON documents in strings, Add only; with the flag PATCH looks like POST; R5 replaces all."""
    person = only(directory, AGENT)
    job = await start(roles_by(function), dialect=dialect)
    await job.initial_cycle()
    directory.set(person, app_role_assignments=[AGENT, LEAD])

    assert (await job.incremental_cycle()).updated == 1

    assert sent(server, "PATCH")["Operations"] == [expected]
    writes = len(server.requests("PATCH"))
    directory.set(person, display_name=person.display_name)
    await job.incremental_cycle()
    assert len(server.requests("PATCH")) == writes


async def test_a_role_taken_away_stays_in_the_additive_form_and_goes_in_the_assertive_one(
    start: Any, server: StandIn, directory: Directory
) -> None:
    """customize-application-attributes: the two expressions differ in exactly this."""
    person = only(directory, AGENT, LEAD)
    additive = await start(roles_by("AppRoleAssignmentsComplex"))
    await additive.initial_cycle()
    directory.set(person, app_role_assignments=[LEAD])
    assert (await additive.incremental_cycle()).skipped == 1
    assert server.requests("PATCH") == []

    assertive = await start(roles_by("AssertiveAppRoleAssignmentsComplex"))
    await assertive.initial_cycle()

    assert [entry["value"] for entry in sent(server, "PATCH")["Operations"][0]["value"]] == ["lead"]


@pytest.mark.parametrize(
    ("shape", "dialect", "expected"),
    [
        (
            "filtered",
            "legacy",
            {"op": "Replace", "path": 'roles[primary eq "True"].value', "value": "lead"},
        ),
        ("published", "legacy", {"op": "Add", "path": "roles", "value": in_text(LEAD)}),
        (
            "published",
            "flag",
            {"op": "add", "path": "roles", "value": [{"primary": True, "type": APP_ROLE_TYPE, "value": "lead"}]},
        ),
    ],
)
async def test_the_one_role_is_changed_in_both_forms_that_were_seen(
    start: Any, server: StandIn, directory: Directory, shape: Any, dialect: Dialect, expected: dict[str, Any]
) -> None:
    """R2 is the published sample; the filtered path is what the validator sends and what was reported."""
    person = only(directory, AGENT)
    job = await start(
        roles_by("SingleAppRoleAssignment", 'roles[primary eq "True"].value'), single_role=shape, dialect=dialect
    )
    await job.initial_cycle()
    directory.set(person, app_role_assignments=[LEAD])

    assert (await job.incremental_cycle()).updated == 1

    assert sent(server, "PATCH")["Operations"] == [expected]


@pytest.mark.parametrize(
    "function", ["AppRoleAssignmentsComplex", "AssertiveAppRoleAssignmentsComplex", "SingleAppRoleAssignment"]
)
async def test_roles_are_not_sent_on_demand_nor_when_everybody_is_in_scope(
    start: Any, server: StandIn, directory: Directory, function: str
) -> None:
    """Neither provision-on-demand nor "Sync all users and groups" supports app roles."""
    path = 'roles[primary eq "True"].value' if function == "SingleAppRoleAssignment" else "roles"
    job = await start(roles_by(function, path))
    await job.provision_on_demand(someone(directory))
    assert sent(server, "POST")["roles"] == []

    everybody = await start(roles_by(function, path), sync_all=True)
    directory.unassign(someone(directory, 1))
    assert (await everybody.initial_cycle()).created == 2

    assert [seen.body["roles"] for seen in server.requests("POST")] == [[], [], []]


@pytest.mark.parametrize("function", ["AppRoleAssignmentsComplex", "AssertiveAppRoleAssignmentsComplex"])
@pytest.mark.parametrize("dialect", ["legacy", "flag"])
async def test_the_gateway_understands_every_form_of_roles(
    tmp_path: Path, directory: Directory, function: str, dialect: Dialect
) -> None:
    """Whole cycles against the real listener: nothing fails, no role is doubled, and a second cycle has nothing to do."""
    person = only(directory, AGENT)
    async with listening(tmp_path, shelf=GroupShelf()) as scim:
        job = ProvisioningJob(scim.base(), scim.tokens[ALPHA], directory, roles_by(function), dialect)
        async with job:
            await job.initial_cycle()
            directory.set(person, app_role_assignments=[AGENT, LEAD])
            assert (await job.incremental_cycle()).updated == 1
            (user,) = (await scim.get("/Users")).body["Resources"]
            assert len(user["roles"]) == 2
            assert role_values(user["roles"]) == {"agent", "lead"}
            job.restart()
            assert (await job.initial_cycle()).skipped == 1


def test_an_expression_for_several_roles_is_no_text() -> None:
    """It can only stand for a whole attribute."""
    with pytest.raises(ValueError, match="wrong arguments"):
        evaluate(parse_expression("AppRoleAssignmentsComplex([appRoleAssignments])"), make_people(1)[0])


# --- probes


async def test_a_long_cycle_is_kept_alive_by_the_probe(start: Any, server: StandIn, clock: ManualClock) -> None:
    """Recorded: the probe of Test Connection is also seen during cycles."""
    job = await start()
    await job.initial_cycle(lambda done, total: clock.advance(KEEP_ALIVE_S / 2 + 1))
    operations = [exchange.operation for exchange in job.exchanges]
    assert operations == ["match_miss", "create", "match_miss", "create", "probe_users", "match_miss", "create"]
    assert job.quarantine is None

    quiet = await start(keep_alive_s=None)
    await quiet.initial_cycle(lambda done, total: clock.advance(DAY_S))
    assert "probe_users" not in [exchange.operation for exchange in quiet.exchanges]


async def test_a_keep_alive_that_is_refused_stops_the_job(start: Any, server: StandIn, clock: ManualClock) -> None:
    """A 401 quarantines at once, whichever request it answers."""
    server.fault("POST", "status", times=9, status=500)
    job = await start()

    def on_progress(done: int, total: int) -> None:
        clock.advance(KEEP_ALIVE_S)
        server.token = "another"

    report = await job.initial_cycle(on_progress)

    assert report.quarantined == "EncounteredQuarantineException"
    assert [exchange.operation for exchange in job.exchanges] == ["match_miss", "create", "probe_users"]


async def test_a_missing_groups_endpoint_fails_the_connection_test_as_wrong_credentials(
    start: Any, server: StandIn
) -> None:
    """Recorded: 404 on the groups probe is InvalidCredentials, which wraps that the service is incompatible."""
    server.fault("GET", "status", status=404, under="Groups")
    test = await (await start()).test_connection()
    assert (test.ok, test.error_code, test.status_code) == (False, "InvalidCredentials", 404)
    assert SERVICE_INCOMPATIBLE in test.message


@pytest.mark.parametrize("changed", [{"schemas": []}, {"totalResults": 1}, {"Resources": [{"id": "1"}]}])
async def test_an_answer_to_the_probe_that_is_no_empty_list_response_fails(
    start: Any, server: StandIn, changed: dict[str, Any]
) -> None:
    """200 alone is not enough: the schema, the count and the list are looked at."""
    server.listed_otherwise = changed
    test = await (await start()).test_connection()
    assert (test.ok, test.error_code) == (False, SERVICE_INCOMPATIBLE)


async def test_the_older_connection_test_asks_by_id_and_wants_a_scim_error(start: Any, server: StandIn) -> None:
    """The SCIM page: a random user and group are fetched; both 404 bodies must be SCIM errors."""
    job = await start(probe_by_id=True)
    server.fault("GET", "status", times=1, status=404, under="/Groups/")
    assert (await job.test_connection()).ok
    asked = [exchange.operation for exchange in job.exchanges]
    assert asked == ["probe_users", "probe_groups", "probe_user_by_id", "probe_group_by_id"]

    server.fault("GET", "html", times=1, under="/Users/")
    test = await job.test_connection()
    assert (test.ok, test.error_code) == (False, SERVICE_INCOMPATIBLE)


async def test_a_404_without_a_scim_error_is_no_sign_that_an_object_is_gone(
    start: Any, server: StandIn, directory: Directory
) -> None:
    """The SCIM page: an unknown id is answered with a SCIM error; a proxy's 404 must not lead to a second account."""
    job = await start()
    await job.initial_cycle()
    person = someone(directory)
    directory.set(person, display_name="Changed")
    server.fault("GET", "html404", times=1)

    report = await job.incremental_cycle()

    assert [entry.error_code for entry in report.entries] == [SERVICE_INCOMPATIBLE]
    assert report.state == "EntryLevelErrors"
    assert len(server.users) == 3


async def test_account_discovery_lists_page_by_page(start: Any, server: StandIn, tmp_path: Path) -> None:
    """RFC 7644 section 3.4.2.4: pages of 5 of 11 users, startIndex echoed exactly; each user once."""
    async with listening(tmp_path, shelf=GroupShelf()) as scim:
        directory = Directory(make_people(11, managers=False))
        async with ProvisioningJob(scim.base(), scim.tokens[ALPHA], directory) as job:
            await job.initial_cycle()
            found = await job.discover_accounts(page=5)
            assert len({user["id"] for user in found}) == len(found) == 11
            assert [
                exchange.target.partition("?")[2] for exchange in job.exchanges if exchange.operation == "discover"
            ] == [
                "startIndex=1&count=5",
                "startIndex=6&count=5",
                "startIndex=11&count=5",
            ]


# --- quarantine, scope, mapping


async def test_failures_alone_keep_a_job_in_quarantine_until_four_weeks_end_it(
    start: Any, server: StandIn, clock: ManualClock
) -> None:
    """Quarantine page: about one run a day, one mail, one success lifts it, disabled after four weeks, a restart begins anew."""
    server.fault("POST", "status", times=1_000, status=401)
    job = await start()
    await job.initial_cycle()
    began = clock()
    runs = 0
    while not job.disabled:
        clock.advance(DAY_S)
        runs += (await job.incremental_cycle()).ran
    assert clock() - began == QUARANTINE_DISABLES_AFTER_S
    assert runs == 27
    assert len(job.notices) == 1
    server.faults.clear()
    clock.advance(DAY_S)
    assert not (await job.incremental_cycle()).ran

    job.restart()

    assert (await job.incremental_cycle()).created == 3
    assert (job.quarantine, job.disabled) == (None, False)


async def test_one_success_lifts_the_quarantine(start: Any, server: StandIn, clock: ManualClock) -> None:
    """Quarantine page; what still fails then is an object's own trouble."""
    server.fault("POST", "status", times=1, status=401)
    job = await start()
    assert (await job.initial_cycle()).state == "Failed"
    clock.advance(DAY_S)
    server.fault("POST", "status", times=1, status=400)

    report = await job.incremental_cycle()

    assert (report.created, report.failed, report.quarantined, report.state) == (2, 1, "", "EntryLevelErrors")


async def test_a_saved_mapping_makes_the_next_cycle_an_initial_one_and_keeps_links(start: Any, server: StandIn) -> None:
    """How provisioning works: a change of mapping or scope starts over, without a second match of what is linked."""
    job = await start()
    await job.initial_cycle()
    job.change_mapping(Mapping("more", (*PLAIN, AttributeMapping("jobTitle", "title"))))
    before = len(job.exchanges)

    report = await job.incremental_cycle()

    assert (report.kind, report.updated) == ("initial", 3)
    assert {exchange.operation for exchange in list(job.exchanges)[before:]} == {"read", "update"}


async def test_a_stopped_job_runs_no_cycle_until_it_is_started(start: Any, server: StandIn) -> None:
    """How provisioning works: stop and start keep the watermark."""
    job = await start()
    job.stop()
    assert not (await job.initial_cycle()).ran
    assert server.seen == []
    job.start()
    assert (await job.incremental_cycle()).created == 3


async def test_with_everybody_in_scope_assignment_does_not_count(
    start: Any, server: StandIn, directory: Directory
) -> None:
    """Scope "Sync all users and groups"."""
    person = someone(directory)
    directory.unassign(person)
    job = await start(sync_all=True)
    assert (await job.initial_cycle()).created == 3
    directory.disable(person)
    assert (await job.incremental_cycle()).disabled == 1


def test_the_mark_of_guests_is_stripped_unless_the_original_name_is_mapped() -> None:
    """customize-application-attributes."""
    person = make_people(1)[0]
    person.user_principal_name = "ada_example.com#EXT#@contoso.example"
    assert evaluate(parse_expression("userPrincipalName"), person) == "ada_example.com@contoso.example"
    assert evaluate(parse_expression("[originalUserPrincipalName]"), person) == person.user_principal_name


@pytest.mark.parametrize(
    ("failures", "references", "successes", "expected"),
    [
        (4_999, 0, 0, ""),
        (5_000, 0, 5_000, "EncounteredEscrowProportionThreshold"),
        (5_000, 0, 10_000, ""),
        (1_000, 9_000, 0, ""),
        (0, 60_000, 90_000, "EncounteredEscrowProportionThreshold"),
        (40_001, 0, 200_000, "EncounteredEscrowProportionThreshold"),
        (39_999, 20_000, 200_000, ""),
        (40_000, 20_000, 200_000, "EncounteredEscrowProportionThreshold"),
    ],
)
async def test_the_thresholds_of_quarantine_are_the_documented_ones(
    start: Any, directory: Directory, failures: int, references: int, successes: int, expected: str
) -> None:
    """At least 5,000 failures and over 40 % or 40,000 without references; 60,000 with them in any case."""
    job = await start()
    person = someone(directory)
    failed = job._note(person, "Create", "Failure")
    reference = job._note(person, "Reference", "Failure")
    fine = job._note(person, "Create", "Success")

    job._check_failure_rate([failed] * failures + [reference] * references + [fine] * successes)

    assert (job.quarantine.reason if job.quarantine else "") == expected
