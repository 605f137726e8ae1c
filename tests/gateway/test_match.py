"""The match report: who would be matched, made, duplicated or left over; at any size within little memory."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from deploy.emulators.bobs_business import BobsBusinessEmulator
from gateway.access import ACCESS_FILE
from gateway.comparison import sort_match
from gateway.entra_export import document_of, id_of
from gateway.report_files import COLUMNS, Examined, UnreadableExport, examine, read_users, safe_cell, write_csv
from gateway.spool import Spool
from schemas.comparison import ExpectedUser, ListedAccount
from schemas.specs import Attribute, Spec
from tests.conftest import NatsServer, free_port
from tests.gateway.compared import TARGET, compared
from tests.gateway.operated import clean_environment

ACCOUNTS = int(os.environ.get("PROVGATE_TEST_ACCOUNTS", "1200"))
"""How large the large comparison is, several answers and questions in any case; 50000 shows the promise of the requirement."""
RSS_MAX = 200 * 1024 * 1024
OBJECT = "8f1c0000-0000-0000-0000-"

# ---- what is said of whom


async def test_everybody_is_told_apart_before_the_first_cycle(nats_server: NatsServer, tmp_path: Path) -> None:
    """L1-L3, L11: an account under the other address, two accounts, somebody else's account; nothing is written."""
    async with compared(tmp_path / "here", nats_server) as here:
        here.product.seed(
            {
                "users": [
                    {"userName": "Anna@contoso.example", "displayName": "Anna"},
                    {"userName": "carol.white@contoso.example"},
                    {"userName": "frank@contoso.example"},
                    {"userName": "Frank@contoso.example"},
                    {"userName": "erin@contoso.example", "externalId": f"{OBJECT}999"},
                    {"userName": "left@contoso.example"},
                ]
            }
        )
        export = tmp_path / "users.csv"
        export.write_text(
            "userPrincipalName;displayName;id;mail;accountEnabled\n"
            f"anna@contoso.example;Anna;{OBJECT}1;anna@contoso.example;True\n"
            f"cwhite@contoso.example;Carol;{OBJECT}2;carol.white@contoso.example;True\n"
            f"frank@contoso.example;=HYPERLINK(1);{OBJECT}3;frank@contoso.example;True\n"
            f"erin@contoso.example;Erin;{OBJECT}4;erin@contoso.example;True\n"
            f"gwen@contoso.example;Gwen;{OBJECT}5;gwen@contoso.example;False\n"
            f"ian_x.com#EXT#@contoso.example;Ian;{OBJECT}6;ian@x.example;True\n",
            encoding="utf-8-sig",
        )
        before = here.product.recorded()[-1]["seq"] if here.product.recorded() else 0
        report = tmp_path / "report.csv"

        ended = await here.typed("match", TARGET, "--file", str(export), "--csv", str(report))
        said = await here.said("match", TARGET, "--file", str(export), "--show-values", code=1)

        assert ended.code == 1, ended.err
        assert "exists_under_other_address" in ended.out
        assert "anna@contoso.example" not in ended.out
        lines = {line["label"] or line["account_id"]: line for line in said["findings"]}
        told = {label: (line["class"], line["code"]) for label, line in lines.items()}
        assert told == {
            "anna@contoso.example": ("matched", ""),
            "cwhite@contoso.example": ("conflict", "exists_under_other_address"),
            "frank@contoso.example": ("conflict", "several_accounts"),
            "erin@contoso.example": ("conflict", "linked_elsewhere"),
            "gwen@contoso.example": ("create", ""),
            "ian_x.com#EXT#@contoso.example": ("refused", "bad_email"),
            "userName:left@contoso.example": ("orphan", ""),
        }
        assert said["counts"] == {"matched": 1, "conflict": 3, "create": 1, "refused": 1, "orphan": 1}
        assert lines["anna@contoso.example"]["resource"] == f"{OBJECT}1"
        with report.open(newline="") as file:
            rows = list(csv.reader(file))
        assert tuple(rows[0]) == COLUMNS
        assert len(rows) == 8
        assert stat.S_IMODE(report.stat().st_mode) == 0o600
        assert {call["method"] for call in here.product.recorded(before)} == {"GET"}
        audited = await here.gateway.store.read_slow(lambda reader: reader.audit(50))
        assert {"match.started", "values.shown"} <= {record.action for record in audited}


async def test_stored_users_are_matched_without_a_file(nats_server: NatsServer, tmp_path: Path) -> None:
    """Stored wishes count as they are: who is linked is matched, and the other account of that name is left over."""
    async with compared(tmp_path, nats_server) as here:
        await here.created("ada")
        here.product.seed({"users": [{"userName": "bea@contoso.example"}, {"userName": "ADA@contoso.example"}]})
        said = await here.said("match", TARGET, code=0)
        assert said["counts"] == {"matched": 1, "orphan": 2}
        assert said["codes"] == {"orphan.second_account": 1}
        wrong = await here.typed("match", "nowhere")
        assert (wrong.code, "no target" in wrong.err) == (2, True)
        missing = await here.typed("match", TARGET, "--file", str(tmp_path / "none.csv"))
        assert missing.code == 2
        export = tmp_path / "users.csv"
        export.write_text("userPrincipalName,mail\ncy@contoso.example,cy@example.com\n")
        slip = await here.typed("match", TARGET, "--file", str(export), "--map", "userName=mial")
        assert (slip.code, "no column 'mial', of which userName is made" in slip.err) == (2, True), slip
        assert "It has: mail, userPrincipalName" in slip.err


async def test_a_product_that_is_away_is_said_to_be_after_seconds(nats_server: NatsServer, tmp_path: Path) -> None:
    """Nobody waits half a minute for nothing: a sentence with the product's answer, what is waited for, and exit code 3."""
    async with compared(tmp_path, nats_server) as here:
        here.product.fault("status", status=503, retry_after=None)
        begun = time.monotonic()
        ended = await here.typed("match", TARGET)
        assert time.monotonic() - begun < 10
        assert (ended.code, ended.out) == (3, "")
        assert "Tried again in" in ended.err
        assert "no report: " in ended.err
        assert "503" in ended.err.splitlines()[-1]


def test_two_users_of_one_account_and_forbidden_adoption_are_conflicts() -> None:
    """Conflicts: two users for one identity; adoption not allowed by the target's policy."""
    for adopt, expected in ((True, "matched"), (False, "conflict")):
        spool = Spool()
        spool.add_accounts([ListedAccount(account_id=f"a{n}", identities=(f"userName:{n}",)) for n in range(3)])
        users = [("u1", 0), ("u2", 1), ("u3", 1)]
        spool.add_wishes(
            [(u, u, "compare", None, False, ExpectedUser(identities=(f"userName:{n}",))) for u, n in users]
        )
        sort_match(spool, adopt=adopt)
        found = {one.resource or one.account_id: (one.class_, one.code) for one in spool.findings()}
        assert found["u1"] == (expected, "" if adopt else "not_adopted")
        assert found["u2"] == found["u3"] == ("conflict", "several_users")
        assert found["a2"] == ("orphan", "")
        spool.close()


# ---- files


@pytest.mark.parametrize("value", ["=1+1", "+4420", "-1", "@SUM(A1)", "\t=1", "\r=1", "＝1"])
def test_no_cell_is_a_formula(value: str, tmp_path: Path) -> None:
    """Security requirement S13: CSV is escaped."""
    assert safe_cell(value) == f"'{value}"
    assert safe_cell("ada@contoso.example") == "ada@contoso.example"
    line = {"class": value, "code": value, "resource": value, "label": value, "account_id": value, "message": value}
    (tmp_path / "r.csv").touch(mode=0o644)  # of an earlier day, and open to others
    write_csv(tmp_path / "r.csv", [{**line, "attributes": [value]}])
    assert stat.S_IMODE((tmp_path / "r.csv").stat().st_mode) == 0o600
    with (tmp_path / "r.csv").open(newline="", encoding="utf-8") as file:
        assert all(cell.startswith("'") for cell in list(csv.reader(file))[1])


USERS = [{"userPrincipalName": f"u{n}@contoso.example", "id": f"{OBJECT}{n}", "note": "ä" * 90} for n in range(900)]


@pytest.mark.parametrize("form", ["list", "graph", "lines", "comma", "semicolon"])
def test_every_form_of_an_export_is_read_one_user_at_a_time(form: str, tmp_path: Path) -> None:
    """Graph's answer, a list, one object a line, and CSV with either separator; the same users of all."""
    path = tmp_path / ("users.csv" if form in ("comma", "semicolon") else "users.json")
    if form == "list":
        path.write_text(json.dumps(USERS, indent=1))
    elif form == "graph":
        path.write_text(json.dumps({"@odata.context": "https://graph.example.com/[x]", "value": USERS}))
    elif form == "lines":
        path.write_text("\n".join(json.dumps(user) for user in USERS))
    else:
        with path.open("w", newline="", encoding="utf-8-sig") as file:
            writer = csv.DictWriter(file, list(USERS[0]), delimiter="," if form == "comma" else ";")
            writer.writeheader()
            writer.writerows(USERS)

    assert list(read_users(path)) == USERS


@pytest.mark.parametrize("text", ["", "nothing", "[1]", '[{"a": 1}, {"b"', '{"value": 3', "[\x00"])
def test_what_is_no_export_is_said_to_be_none(text: str, tmp_path: Path) -> None:
    """A broken file is a sentence, never a traceback."""
    path = tmp_path / "users.json"
    path.write_text(text)
    with pytest.raises(UnreadableExport):
        list(read_users(path))


HEADING = "id,userPrincipalName,displayName"
WANTED = {"userName": "userPrincipalName", "externalId": "objectId", "title": "jobTitle"}


def examined(path: Path, content: str | bytes, needed: tuple[str, ...] = ("userName",)) -> Examined:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return examine(path, WANTED, needed, lambda count: None)


def test_a_file_of_any_form_is_read_and_all_its_mistakes_are_said_at_once(tmp_path: Path) -> None:
    """Marks, separators and encodings of spreadsheets are no mistake; what is one is named by line, before anything is sent."""
    path = tmp_path / "users.csv"
    lines = [HEADING, 'o1,a@contoso.example,"Ada,\nof two lines"', "o2,b@contoso.example,Bäb"]
    plain = "\r\n".join(lines)
    semicolons = plain.replace("Ada,", "Ada ").replace(",", ";")
    for content in (
        plain.encode("utf-8-sig"),
        plain.encode("utf-16"),
        plain.replace(",", "\t").replace("Ada\t", "Ada ").encode("utf-16-le"),
        f"sep=;\r\n{semicolons}",
        semicolons,
        plain + "\r\n\r\n,,\r\n",
    ):
        assert examined(path, content) == Examined(users=2, repeats=frozenset(), absent=("jobTitle",)), content
        assert [user["displayName"][-3:] for user in read_users(path)] == ["nes", "Bäb"]

    twice = examined(path, f"{plain}\n{lines[2]}\n")
    assert (twice.users, twice.repeats) == (2, {2}), "an equal line is no mistake"

    with pytest.raises(UnreadableExport) as told:
        examined(path, f"{plain}\no1,z@contoso.example,Zoe\no4,d@contoso.example\no5,e,f,g\n", ("userName", "title"))
    assert str(told.value).splitlines() == [
        "users.csv: 4 problems",
        "  no column 'jobTitle', of which title is made; --map title=COLUMN names another. "
        "It has: displayName, id, userPrincipalName",
        "  line 5 has the object id of line 2, and other values",
        "  line 6 has 2 cells, and the heading 3 columns",
        "  line 7 has 4 cells, and the heading 3 columns",
    ]
    for content, sentence in (
        (plain.encode("latin-1"), "it is not UTF-8 text; save it as CSV UTF-8"),
        (
            f'{HEADING}\no1,a,b\no2,"b,c\nd,e,f\n',
            "after line 2 it cannot be read as CSV: a quotation mark is never closed",
        ),
        (b"PK\x03\x04binary", "it is a workbook; save it as CSV UTF-8"),
        (HEADING, "it holds no users"),
        ("", "it is empty; its first line must name the columns"),
        (f"{HEADING},ID,id\no1,a,b,c,d\n", "its heading names id twice"),
    ):
        with pytest.raises(UnreadableExport, match=re.escape(sentence)):
            examined(path, content)

    many = io.StringIO()
    many.write(f"{HEADING}\n")
    for n in range(100_000):
        many.write(f"o{n},u{n}@contoso.example,{'only one cell' if n % 1_000 else 'one,too many'}\n")
    begun = time.monotonic()
    with pytest.raises(UnreadableExport) as told:
        examined(path, many.getvalue())
    assert len(str(told.value).splitlines()) == 22
    assert str(told.value).endswith("and 80 more")
    assert time.monotonic() - begun < 10


def test_an_exported_user_becomes_the_document_of_the_mapping() -> None:
    """The connector's declaration names the directory's attributes; the caller may name others; SCIM documents stay."""
    spec = Spec(
        name="x",
        title="X",
        attributes=(
            Attribute("userName", source="mobile"),
            Attribute("active", source="Not([IsSoftDeleted])"),
            Attribute('emails[type eq "work"].value', source="mail"),
            Attribute("name.givenName", source="givenName"),
            Attribute("urn:ietf:params:scim:schemas:extension:enterprise:2.0:User:department", source="department"),
        ),
    )
    record = {
        "\ufeffId": "o1",
        "Mobile Phone": " +44 7700 900123 ",
        "MAIL": "a@contoso.example",
        "Given Name": "Ada",
        "department": "R",
        "Account enabled": "No",
        "surname": None,
    }
    assert document_of(record, spec, {}) == {
        "userName": "+44 7700 900123",
        "externalId": "o1",
        "emails": [{"type": "work", "value": "a@contoso.example"}],
        "name": {"givenName": "Ada"},
        "urn:ietf:params:scim:schemas:extension:enterprise:2.0:User": {"department": "R"},
        "active": False,
    }
    assert document_of(record, spec, {"userName": "mail"})["userName"] == "a@contoso.example"
    assert document_of(record, None, {}) == {"externalId": "o1", "active": False}
    scim = {"id": "s1", "userName": "a", "active": True}
    assert document_of(scim, spec, {}) == {"userName": "a", "active": True}
    assert (id_of(record, {}), id_of(scim, scim), id_of({}, {"userName": "b"})) == ("o1", "s1", "b")


# ---- size


class Watched:
    """The highest memory of some processes, looked at ten times a second."""

    def __init__(self) -> None:
        self.highest: dict[str, int] = {}
        self.processes: dict[str, psutil.Process] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def _look(self) -> None:
        while not self._stop.wait(0.1):
            for name, process in list(self.processes.items()):
                try:
                    self.highest[name] = max(self.highest.get(name, 0), process.memory_info().rss)
                except psutil.Error:
                    continue

    def __enter__(self) -> Watched:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


@contextmanager
def processes(folder: Path, nats: str, accounts: int) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """An emulated product with so many accounts, a gateway and a worker, each in a process of its own."""
    import urllib.error
    import urllib.request

    root = Path(__file__).parent.parent.parent
    environment = clean_environment()
    started: dict[str, subprocess.Popen[bytes]] = {}

    def start(name: str, *command: str) -> None:
        with (folder / f"{name}.log").open("wb") as log:
            started[name] = subprocess.Popen(
                [sys.executable, "-m", *command], stdout=log, stderr=log, env=environment, cwd=root
            )

    def wait(what: str, there: Path, name: str) -> None:
        deadline = time.monotonic() + 60
        while not there.exists():
            assert started[name].poll() is None, (folder / f"{name}.log").read_text()
            assert time.monotonic() < deadline, what
            time.sleep(0.05)

    try:
        ready = folder / "emulators.json"
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        product = f"{BobsBusinessEmulator.name}:{port}"
        start("product", "deploy.emulators", product, "--ready-file", str(ready), "--rate-per-s", "0")
        secret = folder / "secret"
        secret.write_text(f"demo-token-{BobsBusinessEmulator.name}")
        secret.chmod(0o600)
        config = folder / "provgate.toml"
        config.write_text(
            f'[gateway]\nport = {free_port()}\noperator_port = {free_port()}\n[nats]\nurl = "{nats}"\n'
            f'[targets.{TARGET}]\nconnector = "bobs_business"\n[targets.{TARGET}.settings]\n'
            f'tenant_url = "{url}/scim/v2"\napi_key = {{ file = "{secret}" }}\nallow_loopback = true\n'
        )
        start("gateway", "gateway.cli", "gateway", "--config", str(config))
        start("worker", "workers", "--config", str(config))
        wait("the product answers", ready, "product")
        for at in range(0, accounts, 2_000):
            users = [_seeded(n) for n in range(at, min(at + 2_000, accounts))]
            body = json.dumps({"users": users}).encode()
            order = urllib.request.Request(f"{url}/__emu/seed", body, {"Content-Type": "application/json"})
            with urllib.request.urlopen(order, timeout=120) as answer:
                assert answer.status == 200
        wait("the gateway listens", folder / ACCESS_FILE, "gateway")
        access = json.loads((folder / ACCESS_FILE).read_text())
        asked = urllib.request.Request(
            f"{access['url']}/api/v1/targets/{TARGET}", headers={"Authorization": f"Bearer {access['token']}"}
        )
        deadline = time.monotonic() + 30
        while True:  # until the gateway answers, and knows the worker
            with suppress(urllib.error.URLError), urllib.request.urlopen(asked, timeout=30) as answer:
                if json.load(answer)["target"]["workers"]:
                    break
            assert time.monotonic() < deadline, (folder / "worker.log").read_text()
            time.sleep(0.1)
        yield started
    finally:
        for process in started.values():
            process.terminate()
        for process in started.values():
            process.wait(30)


def _seeded(n: int) -> dict[str, Any]:
    return {
        "userName": f"Person{n:06}@contoso.example",
        "givenName": "Given",
        "familyName": f"Family{n}",
        "displayName": f"Given Family{n}",
    }


@pytest.mark.timeout(120 + ACCOUNTS // 50)
def test_a_large_product_is_matched_within_little_memory(nats_server: NatsServer, tmp_path: Path) -> None:
    """L1: before the first cycle, however large. 50,000 accounts below 200 MiB in every process of ours."""
    users = tmp_path / "users.json"
    with users.open("w") as file:
        file.write('{"value": [')
        for n in range(ACCOUNTS // 10, ACCOUNTS + ACCOUNTS // 10):  # a tenth left over there, a tenth new here
            mail = f"person{n:06}@contoso.example"
            user = {"userPrincipalName": mail, "id": f"{OBJECT}{n:012}", "mail": mail, "givenName": "Given"}
            file.write(("," if n > ACCOUNTS // 10 else "") + json.dumps(user))
        file.write("]}")
    with processes(tmp_path, nats_server.url, ACCOUNTS) as running, Watched() as watched:
        watched.processes |= {name: psutil.Process(running[name].pid) for name in ("gateway", "worker")}
        begun = time.monotonic()
        command = [sys.executable, "-m", "gateway.cli", "match", TARGET, "--file", str(users), "--json"]
        arguments = [*command, "--data", str(tmp_path), "--csv", str(tmp_path / "report.csv")]
        with (tmp_path / "said.json").open("wb") as out, (tmp_path / "said.err").open("wb") as err:
            child = subprocess.Popen(arguments, stdout=out, stderr=err, env=clean_environment())
        watched.processes["command"] = psutil.Process(child.pid)
        code = child.wait(60 + ACCOUNTS / 50)
        took_s = time.monotonic() - begun
    assert code == 0, (tmp_path / "said.err").read_text()
    said = json.loads((tmp_path / "said.json").read_text())
    tenth = ACCOUNTS // 10
    assert said["counts"] == {"matched": ACCOUNTS - tenth, "create": tenth, "orphan": tenth}
    assert len(said["findings"]) == ACCOUNTS + tenth
    assert (tmp_path / "report.csv").read_text().count("\n") == ACCOUNTS + tenth + 1
    shown = ", ".join(f"{name} {size / 1024 / 1024:.0f} MiB" for name, size in sorted(watched.highest.items()))
    print(f"{ACCOUNTS:,} accounts in {took_s:.1f} s: {shown}")
    assert set(watched.highest) == {"gateway", "worker", "command"}
    assert max(watched.highest.values()) < RSS_MAX, shown
