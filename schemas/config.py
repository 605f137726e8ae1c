"""The configuration file: one TOML file for a single machine and for a cluster alike.

All mistakes are reported at once, path first, with the nearest valid name. Secrets are references and are resolved only by
the process that uses them.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta, Struct

from schemas.errors import ConfigurationError


class Mistakes(ValueError):
    """What is wrong between the fields of one table, all at once.

    Args:
        found: name of the field and the sentence about it, each.
    """

    def __init__(self, found: Sequence[tuple[str, str]]) -> None:
        super().__init__("; ".join(f"{name}: {sentence}" for name, sentence in found))
        self.found = tuple(found)


class Secret(Struct, frozen=True, forbid_unknown_fields=True):
    """A reference to a secret: `{env = "NAME"}` or `{file = "path"}`. Never the secret itself; printing shows the reference.

    A file must not be readable by everyone.
    """

    env: str | None = None
    file: str | None = None

    def __post_init__(self) -> None:
        if (self.env is None) == (self.file is None):
            raise ValueError('a secret is a reference: {env = "NAME"} or {file = "path"}')

    def reveal(self, base: Path = Path()) -> str:
        """Read the secret.

        Args:
            base: the folder of the configuration file; a relative file lies beside it.

        Raises:
            ConfigurationError: the variable or file is missing, empty, or readable by everyone.
        """
        if self.env is not None:
            value = os.environ.get(self.env, "")
            if not value:
                raise ConfigurationError(f"environment variable {self.env}", ["is not set or empty"])
            return value
        path = base / (self.file or "")
        try:
            if path.stat().st_mode & 0o007:
                raise ConfigurationError(str(path), ["is accessible to everyone; chmod 600 it"])
            value = path.read_text(encoding="utf-8").strip()
        except OSError as exc:
            raise ConfigurationError(str(path), [f"cannot be read: {exc.strerror}"]) from exc
        if not value:
            raise ConfigurationError(str(path), ["is empty"])
        return value


Port = Annotated[int, Meta(ge=0, le=65_535)]
Seconds = Annotated[float, Meta(gt=0)]
Count = Annotated[int, Meta(ge=1)]


Rate = Annotated[int, Meta(ge=1)] | Literal["unlimited"]


class LimitSettings(Struct, frozen=True, kw_only=True):
    """Bounds on what a caller may send and hold (security requirements S7, S8). Changed by a restart only.

    Args:
        body_bytes_max: a request body, in bytes; `group_body_bytes_max` and `bulk_body_bytes_max` for those of groups and bulks.
        header_bytes_max: all header names and values of a request together.
        url_bytes_max: path and query.
        depth_max: objects and arrays inside each other in a body.
        keys_max: keys in all objects of a body, member references and operations not counted.
        operations_max: operations of one PATCH or one bulk request.
        string_bytes_max: one string of a body, as UTF-8.
        filter_depth_max, filter_terms_max: brackets inside each other, and comparisons, in one filter.
        count_max: resources on one page; more are never sent, whatever was asked for.
        body_wait_s: how long a body may take, in seconds.
        header_wait_s: how long a new connection may be silent, and how long the headers of a request may take.
        idle_wait_s: how long a connection may rest between two requests, or leave an answer unread.
        connections_max: open connections of one listener; `connections_per_source_max` of them from one address, unless it is a
            trusted proxy.
        requests_per_s_per_target: what one target is served in the long run, by one gateway process: four times the rate that
            Entra asks for.
        refused_sign_ins_per_min_per_source: wrong keys that one address is told about in full; the next are 429.
    """

    body_bytes_max: Count = 256 * 1024
    group_body_bytes_max: Count = 1024 * 1024
    bulk_body_bytes_max: Count = 1024 * 1024
    header_bytes_max: Count = 16 * 1024
    url_bytes_max: Count = 8 * 1024
    depth_max: Count = 32
    keys_max: Count = 2_000
    members_max: Count = 10_000
    operations_max: Count = 1_000
    string_bytes_max: Count = 4_096
    filter_bytes_max: Count = 1_024
    filter_depth_max: Count = 8
    filter_terms_max: Count = 32
    count_max: Count = 200
    body_wait_s: Seconds = 10.0
    header_wait_s: Seconds = 10.0
    idle_wait_s: Seconds = 75.0
    connections_max: Count = 2_000
    connections_per_source_max: Count = 500
    requests_per_s_per_target: Rate = 100
    refused_sign_ins_per_min_per_source: Rate = 300


PROXIES_MAX = 64


class GatewaySettings(Struct, frozen=True, kw_only=True):
    """Listeners of the gateway: SCIM for Entra, and the operators' own listener (loopback unless set otherwise).

    Args:
        trusted_proxies: addresses or networks whose `X-Forwarded-For` and `X-Forwarded-Proto` are believed; nobody's by default.
    """

    host: str = "127.0.0.1"
    port: Port = 8080
    public_url: str = ""
    operator_host: str = "127.0.0.1"
    operator_port: Port = 8081
    operator_token: Secret | None = None
    answer_wait_s: Seconds = 4.0
    trusted_proxies: Annotated[tuple[str, ...], Meta(max_length=PROXIES_MAX)] = ()
    limits: LimitSettings = LimitSettings()

    def __post_init__(self) -> None:
        found = [("trusted_proxies", _proxy_mistake(proxy)) for proxy in self.trusted_proxies]
        if found := [(name, sentence) for name, sentence in found if sentence]:
            raise Mistakes(found)


def _proxy_mistake(proxy: str) -> str:
    try:
        network = ipaddress.ip_network(proxy, strict=False)
    except ValueError:
        return f"{proxy!r} is neither an address nor a network like 10.0.0.0/24"
    return "" if network.prefixlen else f"{proxy!r} would trust everybody"


class StoreSettings(Struct, frozen=True, kw_only=True):
    """Where the status store lives: an SQLite file, or a PostgreSQL URL (a secret, because it carries a password)."""

    path: str = "provgate.sqlite3"
    url: Secret | None = None


class NatsSettings(Struct, frozen=True, kw_only=True):
    """How to reach NATS. `manage = true` lets `provgate up` start a nats-server of its own."""

    url: str = "nats://127.0.0.1:4222"
    credentials: Secret | None = None
    manage: bool = False
    data: str = "nats"
    replicas: Annotated[int, Meta(ge=1, le=5)] = 1


class WorkerSettings(Struct, frozen=True, kw_only=True):
    """Which targets a worker serves (all when empty) and how many deliveries run at once per target."""

    targets: tuple[str, ...] = ()
    concurrency_max: Count = 16
    drain_s: Seconds = 20.0


class RetrySettings(Struct, frozen=True, kw_only=True):
    """How long a target may keep a change waiting; whichever bound is reached first ends it."""

    wait_first_s: Seconds = 2.0
    wait_max_s: Seconds = 900.0
    give_up_after_s: Seconds = 72 * 3600.0
    rate_limit_wait_max_s: Seconds = 3600.0
    poison_attempts_max: Count = 5


class BrakeSettings(Struct, frozen=True, kw_only=True):
    """Safety brake: more deactivations and deletions in an hour than max(`count_min`, `share` of the target) are held."""

    enabled: bool = True
    count_min: Count = 50
    share: Annotated[float, Meta(gt=0, le=1)] = 0.2


class ReconcileSettings(Struct, frozen=True, kw_only=True):
    """Comparing the product's accounts with what was applied, by itself every so often.

    Args:
        mode: `report` says what differs; `repair` also has it applied again; `off`: only when an operator asks.
        every_hours: time between two comparisons.
        call_share: which part of the product's rate limit a comparison and its repairs may use.
        list_share_min: a list shorter than this part of the last one is taken for broken.
        held_share: a repair of more than max(`held_count_min`, this part of the users) waits for an operator's approval.
        unknown: accounts nobody here has: only said, or deleted where they carry the externalId of a user deleted here.
        settle_s: how long after a write the product's lists may still show what was before it, unless its connector knows.
    """

    mode: Literal["off", "report", "repair"] = "report"
    every_hours: Annotated[float, Meta(ge=1, le=24 * 31)] = 24.0
    call_share: Annotated[float, Meta(gt=0, le=0.2)] = 0.2
    list_share_min: Annotated[float, Meta(ge=0, le=1)] = 0.8
    held_share: Annotated[float, Meta(gt=0, le=1)] = 0.05
    held_count_min: Count = 10
    unknown: Literal["report", "delete-ours"] = "report"
    settle_s: Annotated[float, Meta(ge=0, le=86_400)] | None = None


# ---- how Entra signs in

_GUID = r"^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$"
Guid = Annotated[str, Meta(pattern=_GUID)]
Guids = Annotated[tuple[Guid, ...], Meta(max_length=32)]
SomeGuids = Annotated[tuple[Guid, ...], Meta(min_length=1, max_length=32)]
Audiences = Annotated[tuple[Annotated[str, Meta(min_length=1, max_length=200)], ...], Meta(min_length=1, max_length=32)]
_LOOPBACK = frozenset(("127.0.0.1", "::1", "localhost"))


class EntraCloud(Struct, frozen=True, kw_only=True):
    """Where a Microsoft cloud issues tokens and publishes the keys they are signed with.

    Args:
        authority: scheme and host of the sign-in service; the metadata of every tenant lies below it.
        issuer_v1: what `iss` of a token of version 1.0 is, `{tenant}` in the place of the tenant id.
        issuer_v2: the same for version 2.0.
        key_hosts: further hosts that the metadata may name for the keys; the authority's own always may.
        http_loopback: take http, from this machine only. For tests.
    """

    authority: str
    issuer_v1: str
    issuer_v2: str
    key_hosts: tuple[str, ...] = ()
    http_loopback: bool = False

    def __post_init__(self) -> None:
        found = []
        parts = urlsplit(self.authority)
        plain = parts.scheme == "http" and self.http_loopback and parts.hostname in _LOOPBACK
        if not (parts.scheme == "https" or plain) or not parts.hostname:
            found.append(("authority", "must be https://HOST (http only with http_loopback, on this machine)"))
        elif parts.path or parts.query or parts.fragment or "@" in parts.netloc:
            found.append(("authority", "must be a scheme and a host, nothing behind it"))
        found += [
            (name, "must be an address with {tenant} in it")
            for name, issuer in (("issuer_v1", self.issuer_v1), ("issuer_v2", self.issuer_v2))
            if issuer.count("{tenant}") != 1 or "://" not in issuer
        ]
        if found:
            raise Mistakes(found)


CLOUDS: Mapping[str, EntraCloud] = {
    "public": EntraCloud(
        authority="https://login.microsoftonline.com",
        issuer_v1="https://sts.windows.net/{tenant}/",
        issuer_v2="https://login.microsoftonline.com/{tenant}/v2.0",
    ),
    "us-government": EntraCloud(
        authority="https://login.microsoftonline.us",
        issuer_v1="https://sts.windows.net/{tenant}/",
        issuer_v2="https://login.microsoftonline.us/{tenant}/v2.0",
    ),
    "china": EntraCloud(
        authority="https://login.partner.microsoftonline.cn",
        issuer_v1="https://sts.chinacloudapi.cn/{tenant}/",
        issuer_v2="https://login.partner.microsoftonline.cn/{tenant}/v2.0",
        key_hosts=("login.chinacloudapi.cn",),
    ),
}
CloudName = Literal["public", "us-government", "china", "custom"]


def _check_cloud(name: str, custom: EntraCloud | None) -> None:
    if (name == "custom") != (custom is not None):
        raise Mistakes([("custom", 'a table of this name goes together with cloud = "custom"')])


class EntraSignIn(Struct, frozen=True, kw_only=True):
    """Entra-signed tokens, which Entra sends when its Secret Token is left blank (security requirement S3).

    The audience is the same for all tenants of the world, so `tenant` is the lock, and `object_ids` the one within a tenant.

    Args:
        tenant: the directory (tenant) id; one and no other.
        custom: the addresses of another cloud than those known by name.
        versions: token versions that are taken.
        audiences: what `aud` may be; the default is the one of every non-gallery application.
        callers: application ids (`appid`, `azp`) that may call; the default is Entra's provisioning service.
        object_ids: object ids (`oid`) that may call; all when empty.
    """

    tenant: Guid
    cloud: CloudName = "public"
    custom: EntraCloud | None = None
    versions: Annotated[tuple[Literal["1.0", "2.0"], ...], Meta(min_length=1, max_length=2)] = ("1.0", "2.0")
    audiences: Audiences = ("8adf8e6e-67b2-4cf2-a259-e3dc5476c621",)
    callers: SomeGuids = ("00000014-0000-0000-c000-000000000000",)
    object_ids: Guids = ()

    def __post_init__(self) -> None:
        _check_cloud(self.cloud, self.custom)

    def addresses(self) -> EntraCloud:
        """The cloud's addresses."""
        return self.custom if self.custom is not None else CLOUDS[self.cloud]


class Federation(Struct, frozen=True, kw_only=True):
    """Workload identity federation: an assertion signed by Entra takes the place of a client secret (RFC 7523 section 2.2).

    Args:
        tenant: the directory (tenant) id.
        app_id: application id of the workload identity; the assertion is for it, with or without `api://`.
        subjects: what `sub` may be: the object Entra shows as Subject.
        callers: application ids (`appid`, `azp`) that may sign in; `app_id` itself when empty.
        object_ids: object ids (`oid`) that may sign in; all when empty.
        replay: whether an assertion that was used may be used again before it expires.
    """

    tenant: Guid
    app_id: Guid
    subjects: SomeGuids
    callers: Guids = ()
    object_ids: Guids = ()
    cloud: CloudName = "public"
    custom: EntraCloud | None = None
    replay: Literal["refuse", "allow"] = "refuse"

    def __post_init__(self) -> None:
        _check_cloud(self.cloud, self.custom)

    def addresses(self) -> EntraCloud:
        """The cloud's addresses."""
        return self.custom if self.custom is not None else CLOUDS[self.cloud]


class OAuthSignIn(Struct, frozen=True, kw_only=True):
    """OAuth client credentials: Entra buys short-lived tokens at our own token endpoint (RFC 6749 section 4.4).

    Args:
        token_life_s: how long a token opens the target, in seconds; 1 to 6 hours.
        federation: assertions that are taken instead of a client secret; none when left out.
    """

    token_life_s: Annotated[int, Meta(ge=3_600, le=21_600)] = 3_600
    federation: Federation | None = None


# ---- mails to operators

MAIL_ADDRESS = re.compile(r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")
"""A plain address (RFC 5321 section 4.1.2 without quoted local parts): nothing in it can end a header or begin a second one."""
RECIPIENTS_MAX = 16
MAIL_PORTS: Mapping[str, int] = {"starttls": 587, "tls": 465, "none": 25}
Recipients = Annotated[tuple[str, ...], Meta(max_length=RECIPIENTS_MAX)]
SomeRecipients = Annotated[tuple[str, ...], Meta(min_length=1, max_length=RECIPIENTS_MAX)]


class MailSettings(Struct, frozen=True, kw_only=True):
    """How operators are told by mail what needs them (vendor requirement S7).

    Args:
        host: the mail server.
        sender: the address mails come from.
        to: who is told about targets without `alert_to` of their own, and about what concerns all targets.
        port: 587, 465 and 25 for the three kinds of `tls` when left out.
        tls: `starttls` and `tls` check the server's certificate and never go on without; `none` only on this machine.
        username, password: for a server that wants a sign-in; both or neither.
        ca_file: certificates to trust instead of the system's (PEM), for a server with a certificate of one's own.
        timeout_s: longest wait for one answer of the server.
        per_hour_max: mails about one target within an hour; what comes on top is put into the next one.
        digest_every_hours: how often it is said that something that is known already has grown.
    """

    host: Annotated[str, Meta(min_length=1, max_length=253)]
    sender: str
    to: SomeRecipients
    port: Annotated[int, Meta(ge=1, le=65_535)] | None = None
    tls: Literal["starttls", "tls", "none"] = "starttls"
    username: Secret | None = None
    password: Secret | None = None
    ca_file: str = ""
    timeout_s: Annotated[float, Meta(gt=0, le=20)] = 10.0
    per_hour_max: Annotated[int, Meta(ge=1, le=60)] = 12
    digest_every_hours: Annotated[float, Meta(ge=0.25, le=24)] = 1.0

    def __post_init__(self) -> None:
        found = [("sender", _address_mistake(self.sender)), *(("to", _address_mistake(one)) for one in self.to)]
        if re.fullmatch(r"[A-Za-z0-9.:-]+", self.host) is None:
            found.append(("host", f"{self.host!r} is no name of a server; a port has a setting of its own"))
        elif self.tls == "none" and not _is_loopback(self.host):
            found.append(("tls", '"none" is for a server on this machine only; use "starttls" or "tls"'))
        if (self.username is None) != (self.password is None):
            missing = "password" if self.password is None else "username"
            found.append((missing, "missing; a sign-in needs username and password"))
        if self.tls == "none" and self.ca_file:
            found.append(("ca_file", 'is of no use with tls = "none"'))
        if found := [(name, sentence) for name, sentence in found if sentence]:
            raise Mistakes(found)

    def place(self) -> tuple[str, int]:
        """Host and port of the server."""
        return self.host, self.port if self.port is not None else MAIL_PORTS[self.tls]


def mail_address(text: str) -> bool:
    """Whether a text is a plain mail address."""
    return MAIL_ADDRESS.fullmatch(text) is not None and ".." not in text


def _address_mistake(text: str) -> str:
    return "" if mail_address(text) else f"{text!r} is no plain mail address; it looks like ops@example.com"


def _is_loopback(host: str) -> bool:
    try:
        return host.lower() in _LOOPBACK or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


SignInWay = Literal["key", "entra", "oauth"]
TARGET_NAME = r"^[a-z][a-z0-9_-]{0,47}$"


class TargetSettings(Struct, frozen=True, kw_only=True):
    """One configured product: one Entra application, one Tenant URL.

    Args:
        alert_to: who is told by mail about this target, instead of those in `[mail]`.
        shadow: rehearse every change and send nothing that writes; Entra is told success at once, whatever `pending` says.
    """

    connector: str
    title: str = ""
    description: str = ""
    enabled: bool = True
    shadow: bool = False
    log_level: Literal["warning", "information", "debug"] = "information"
    alert_to: Recipients = ()
    pending: Literal["accept", "retry-later"] = "accept"
    adopt: Literal["always", "never"] = "always"
    auth: Annotated[tuple[SignInWay, ...], Meta(min_length=1, max_length=3)] = ("key",)
    entra: EntraSignIn | None = None
    oauth: OAuthSignIn = OAuthSignIn()
    window: Count = 16
    retry: RetrySettings = RetrySettings()
    brake: BrakeSettings = BrakeSettings()
    reconcile: ReconcileSettings = ReconcileSettings()
    settings: dict[str, Any] = {}

    def __post_init__(self) -> None:
        found = []
        if len(set(self.auth)) < len(self.auth):
            found.append(("auth", "names a way to sign in twice"))
        found += [("alert_to", sentence) for one in self.alert_to if (sentence := _address_mistake(one))]
        if "entra" in self.auth and self.entra is None:
            found.append(("entra", "missing; auth names it, and it says whose tokens are taken (tenant)"))
        if found:
            raise Mistakes(found)
        if self.shadow:  # nothing will be confirmed, and Entra is not to be kept waiting for it
            msgspec.structs.force_setattr(self, "pending", "accept")

    def signs_in_without_secret(self) -> bool:
        """Whether Entra can sign in although neither a key nor a client secret was ever made."""
        return "entra" in self.auth or ("oauth" in self.auth and self.oauth.federation is not None)


class Configuration(Struct, frozen=True, kw_only=True):
    """The whole file."""

    gateway: GatewaySettings = GatewaySettings()
    store: StoreSettings = StoreSettings()
    nats: NatsSettings = NatsSettings()
    worker: WorkerSettings = WorkerSettings()
    mail: MailSettings | None = None
    targets: dict[Annotated[str, Meta(pattern=TARGET_NAME)], TargetSettings] = {}

    def __post_init__(self) -> None:
        if self.mail is None and (told := [name for name, settings in self.targets.items() if settings.alert_to]):
            sentence = "nobody would be told, because there is no [mail] with the server and the sender"
            raise Mistakes([(f"targets.{name}.alert_to", sentence) for name in told])


def load(path: Path) -> Configuration:
    """Read and check a configuration file; relative paths inside it are resolved by the caller against its folder.

    Raises:
        ConfigurationError: every mistake at once, path first.
    """
    try:
        raw = path.read_bytes()
    except OSError as exc:
        raise ConfigurationError(str(path), [f"cannot be read: {exc.strerror}"]) from exc
    return parse(raw.decode("utf-8", errors="replace"), source=path.name)


def parse(text: str, *, source: str = "provgate.toml") -> Configuration:
    """Check the text of a configuration file.

    Raises:
        ConfigurationError: every mistake at once, path first.
    """
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        raise ConfigurationError(source, [f"is not TOML: {exc}"]) from exc
    problems: list[str] = []
    configuration = decode(document, Configuration, problems=problems)
    if problems or configuration is None:
        raise ConfigurationError(source, problems)
    return configuration


T = typing.TypeVar("T")


def decode(value: Any, type_: type[T], *, path: str = "", problems: list[str], product: str = "") -> T | None:
    """Decode plain data to a struct and collect every mistake instead of stopping at the first.

    Args:
        value: what TOML gave.
        type_: a msgspec struct type.
        path: where `value` stands in the file, for the messages.
        problems: receives one sentence per mistake, path first.
        product: whose settings these are, for the sentence about unknown names.

    Returns:
        The struct, or None when this part had a mistake.
    """
    if not isinstance(value, dict):
        problems.append(f"{path or 'the file'}: must be a table")
        return None
    before = len(problems)
    fields = {field.encode_name: field for field in msgspec.structs.fields(type_)}  # type: ignore[arg-type]
    for name in value:
        if name not in fields:
            near = difflib.get_close_matches(name, fields, n=1, cutoff=0.6)
            owner = f" of {product}" if product else ""
            hint = f"; did you mean {near[0]}?" if near else ""
            problems.append(f"{_join(path, name)}: not a setting{owner}{hint}")
    decoded: dict[str, Any] = {}
    for name, field in fields.items():
        here = _join(path, name)
        if name not in value:
            if field.required:
                problems.append(f"{here}: missing{_described(field.type)}")
            continue
        decoded[field.name] = _decode_value(value[name], field.type, here, problems, product)
    if len(problems) > before:
        return None
    try:
        return type_(**decoded)
    except Mistakes as exc:
        problems += [f"{_join(path, name)}: {sentence}" for name, sentence in exc.found]
        return None
    except ValueError as exc:
        problems.append(f"{path or 'the file'}: {exc}")
        return None


def _decode_value(value: Any, type_: Any, path: str, problems: list[str], product: str) -> Any:
    struct = _struct_of(type_)
    if struct is Secret and not isinstance(value, dict):
        problems.append(f'{path}: a secret is a reference: {{env = "NAME"}} or {{file = "path"}}')
        return None
    if struct is not None and struct is not Secret:
        return decode(value, struct, path=path, problems=problems, product=product)
    key_pattern, values = _table_of(type_)
    if values is not None and isinstance(value, dict):
        table = {}
        for name, item in value.items():
            here = _join(path, name)
            try:
                msgspec.convert(name, key_pattern)
            except msgspec.ValidationError:
                problems.append(
                    f"{here}: a name is lower-case letters, digits, - and _, begins with a letter, at most 48"
                )
                continue
            table[name] = decode(item, values, path=here, problems=problems, product=product)
        return table
    rows = _rows_of(type_)
    if rows is not None and isinstance(value, list):
        return tuple(
            decode(item, rows, path=f"{path}[{number}]", problems=problems, product=product)
            for number, item in enumerate(value)
        )
    problem = _choice_problem(value, type_)
    if problem:
        problems.append(f"{path}: {problem}")
        return None
    try:
        return msgspec.convert(value, type_)
    except (msgspec.ValidationError, ValueError) as exc:
        problems.append(f"{path}: {_plain(str(exc))}")
        return None


def _struct_of(type_: Any) -> type[Struct] | None:
    """The struct inside a field's type, through Annotated and Optional."""
    for part in _parts(type_):
        if isinstance(part, type) and issubclass(part, Struct):
            return part
    return None


def _table_of(type_: Any) -> tuple[Any, type[Struct] | None]:
    """Key type and struct of a `dict[name, Struct]`."""
    while typing.get_origin(type_) is Annotated:
        type_ = typing.get_args(type_)[0]
    if typing.get_origin(type_) is dict:
        key, value = typing.get_args(type_)
        return key, _struct_of(value)
    return None, None


def _rows_of(type_: Any) -> type[Struct] | None:
    """Struct of a `tuple[Struct, ...]`: an array of tables."""
    while typing.get_origin(type_) is Annotated:
        type_ = typing.get_args(type_)[0]
    arguments = typing.get_args(type_)
    if typing.get_origin(type_) is tuple and len(arguments) == 2 and arguments[1] is Ellipsis:
        return _struct_of(arguments[0])
    return None


def _choice_problem(value: Any, type_: Any) -> str:
    """What is wrong with words that must be some of a few, the nearest one named; "" for everything else."""
    while typing.get_origin(type_) is Annotated:
        type_ = typing.get_args(type_)[0]
    if typing.get_origin(type_) is tuple and isinstance(value, list):
        said = (_choice_problem(item, typing.get_args(type_)[0]) for item in value)
        return next(filter(None, said), "")
    words = [word for part in _parts(type_) if typing.get_origin(part) is Literal for word in typing.get_args(part)]
    if not isinstance(value, str) or not words or value in words or str in _parts(type_):
        return ""
    near = difflib.get_close_matches(value, [str(word) for word in words], n=1, cutoff=0.6)
    return f"Invalid enum value '{value}'; " + (
        f"did you mean {near[0]}?" if near else f"must be one of {', '.join(map(str, words))}"
    )


def _parts(type_: Any) -> list[Any]:
    origin = typing.get_origin(type_)
    if origin is Annotated:
        return _parts(typing.get_args(type_)[0])
    if origin in (typing.Union, types.UnionType):
        return [part for arg in typing.get_args(type_) for part in _parts(arg)]
    return [type_]


def _described(type_: Any) -> str:
    if typing.get_origin(type_) is Annotated:
        for extra in typing.get_args(type_)[1:]:
            if isinstance(extra, Meta) and extra.description:
                return f"; {extra.description}"
    return ""


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _plain(message: str) -> str:
    plain = message.replace("`", "").replace("Expected", "must be").replace("must be must be", "must be")
    return plain.replace(f"str matching regex '{_GUID}'", "an id like 00000000-0000-0000-0000-000000000000")
