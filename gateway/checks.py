"""What `provgate check` looks at before anything is started: the file, the products, NATS, the store, the keys.

Nothing is changed by a check: no table is made, no key, no stream. What the connectors say comes from a worker's own check in a
process of its own, because the gateway knows no connector.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from msgspec import Struct

from schemas.config import Configuration, Secret, TargetSettings, load
from schemas.errors import ConfigurationError

TARGET_WAIT_S = 45.0
"""Longest check of one target, its process's start included."""
CHECKS_AT_ONCE = 2
NATS_WAIT_S = 3.0
INFO_BYTES_MAX = 64 * 1024
KEY_WARN_DAYS = 30
FINDING_CHARS_MAX = 1_000
LATEST_MAX = 200
"""Deliveries of a target that are looked at for what its mapping gets wrong."""
LATELY_S = 7 * 86_400.0
NAMES_MAX = 6
NATS_PORT = 4222

_LINE = re.compile(r"(ok|warning|error)\s+(\S+): (.*)")
_NO_SECRET = re.compile(r"^(\S.*): 1 problem\n  (.+)$", re.MULTILINE)
_UNSENT = "SELECT count(*) FROM mail WHERE state = 'failed' OR (state = 'waiting' AND error <> '')"
CLIENT_START = "pgs_"
"""How the prefix of a client secret begins in the store; a key's is another."""
_SECRETS = (("key", "key", "key"), ("oauth", "client", "client secret"))
_RANK = {"error": 0, "warning": 1, "ok": 2}

Level = Literal["ok", "warning", "error"]


class Finding(Struct, frozen=True):
    """One thing that was looked at. `where`: a setting's path or a part, e.g. `targets.sofa`, `nats`."""

    level: Level
    where: str
    message: str
    remedy: str = ""


def run_checks(path: Path) -> list[Finding]:
    """Everything that can be known before the start, worst first within each part. Never raises."""
    try:
        config = load(path)
    except ConfigurationError as exc:
        return [_of_problem(path.name, problem) for problem in exc.problems]
    base = path.resolve().parent
    targets = sorted(name for name, settings in config.targets.items() if settings.enabled)
    found = [Finding("ok", path.name, f"read; {len(targets)} of {len(config.targets)} targets are enabled")]
    if not config.targets:
        found.append(Finding("warning", "targets", "no target is configured", "Add a [targets.<name>] section."))
    found += [
        Finding(
            "warning", f"targets.{name}.shadow", "nothing is written at this product", "Set it to false to deliver."
        )
        for name in targets
        if config.targets[name].shadow
    ]
    found += _tenants(config, targets)
    found += _operator_token(config, base)
    found += _nats(config)
    found += _mail(config, base)
    with ThreadPoolExecutor(CHECKS_AT_ONCE) as pool:
        for findings in pool.map(lambda name: _target(path, name), targets):
            found += sorted(findings, key=lambda finding: _RANK[finding.level])
    return found + _store(config, base, targets)


def _of_problem(source: str, problem: str) -> Finding:
    where, colon, message = problem.partition(": ")
    is_place = colon and not where.startswith(("cannot be ", "is not "))  # those are about the file itself
    if is_place:
        return Finding("error", where, message)
    remedy = "Name the configuration file with --config." if problem.startswith("cannot be read") else ""
    return Finding("error", source, problem, remedy)


def revealed(secret: Secret, base: Path) -> str:
    """A secret, with a relative file found beside the configuration file.

    Raises:
        ConfigurationError: it cannot be read.
    """
    return secret.reveal(base)


def _tenants(config: Configuration, targets: Sequence[str]) -> Iterable[Finding]:
    """A product that has approved one tenant of Entra (M1) must not be written to by another."""
    for name in targets:
        target = config.targets[name]
        approved = target.settings.get("entra_tenant_id")
        if approved and target.entra is not None and str(approved).casefold() != target.entra.tenant.casefold():
            yield Finding(
                "error",
                f"targets.{name}.entra.tenant",
                "is another tenant than entra_tenant_id, the one that the product has approved",
                "Correct one of them; the product's account manager knows which is approved.",
            )


def _operator_token(config: Configuration, base: Path) -> Iterable[Finding]:
    if config.gateway.operator_token is None:
        return
    try:
        revealed(config.gateway.operator_token, base)
    except ConfigurationError as exc:
        yield Finding("error", "gateway.operator_token", f"{exc.source} {exc.problems[0]}")


# ---- NATS


def _nats(config: Configuration) -> list[Finding]:
    urls = [url.strip() for url in config.nats.url.split(",") if url.strip()]
    return [_nats_server(config, url) for url in urls] or [Finding("error", "nats.url", "is empty")]


def _nats_server(config: Configuration, url: str) -> Finding:
    try:
        parts = urlsplit(url if "://" in url else f"nats://{url}")
        host, port = parts.hostname or "", parts.port or NATS_PORT
    except ValueError:
        return Finding("error", "nats.url", "is no address; it looks like nats://127.0.0.1:4222")
    where = f"{host}:{port}"
    try:
        with socket.create_connection((host, port), timeout=NATS_WAIT_S) as talk, talk.makefile("rb") as lines:
            line = lines.readline(INFO_BYTES_MAX)
    except OSError as exc:
        if config.nats.manage:
            return Finding("ok", "nats", f"{where} is not running; `provgate up` starts it")
        why = exc.strerror or type(exc).__name__
        return Finding(
            "error", "nats", f"{where} cannot be reached ({why})", "Start nats-server, or set nats.manage = true."
        )
    try:
        said = json.loads(line.removeprefix(b"INFO "))
        version, jetstream, wants = str(said["version"]), bool(said.get("jetstream")), bool(said.get("auth_required"))
    except (ValueError, KeyError, TypeError, AttributeError):
        return Finding("error", "nats", f"what answers at {where} is no nats-server")
    if not jetstream:
        return Finding("error", "nats", f"{where} runs without JetStream", "Start nats-server with -js.")
    if wants and config.nats.credentials is None and not (parts.username or parts.password):
        return Finding("error", "nats", f"{where} wants credentials", "Set nats.credentials.")
    return Finding("ok", "nats", f"{where} runs nats-server {version} with JetStream")


# ---- mails to operators


def _mail(config: Configuration, base: Path) -> list[Finding]:
    """Talks to the mail server up to the sign-in; no mail is sent."""
    settings = config.mail
    if settings is None:
        return [Finding("ok", "mail", "nobody is told by mail; [mail] with host, sender and to would change that")]
    from gateway.smtp import MailProblem, knock  # only where there is something to ask it

    try:
        asyncio.run(knock(settings, base))
    except MailProblem as exc:
        return [Finding("error", "mail", str(exc), "Correct [mail], then: provgate mail test")]
    host, port = settings.place()
    signed_in = " and takes the sign-in" if settings.username is not None else ""
    return [Finding("ok", "mail", f"{host}:{port} answers{signed_in}")]


def _unsent(count: int) -> Iterable[Finding]:
    """What the running gateway could not send lately."""
    if count:
        text = f"{count} {'mail' if count == 1 else 'mails'} to operators did not get through"
        yield Finding("warning", "mail", text, "provgate mail status")


# ---- targets, by a worker's own check


def _target(config: Path, name: str) -> list[Finding]:
    where = f"targets.{name}"
    command = [sys.executable, "-m", "workers", "--config", str(config), "--check", name]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=TARGET_WAIT_S, check=False)  # noqa: S603
    except subprocess.TimeoutExpired:
        return [Finding("error", where, f"the check took longer than {TARGET_WAIT_S:.0f} s")]
    found = [
        Finding(_level(level), where, _cut(message) or code)
        for level, code, message in (match.groups() for match in map(_LINE.match, ended.stdout.splitlines()) if match)
    ]
    if found:
        return found
    problems = [line.strip() for line in ended.stderr.splitlines() if line.startswith("  ") and ": " in line]
    if problems:
        return [_of_problem(where, _cut(problem)) for problem in problems]
    if secret := _NO_SECRET.search(ended.stderr):  # a reference that leads nowhere: which one stands in the line before
        return [Finding("error", where, f"{_cut(secret[1])} {_cut(secret[2])}")]
    said = next((line for line in reversed(ended.stderr.splitlines()) if line.strip()), "it said nothing")
    return [Finding("ok" if ended.returncode == 0 else "error", where, f"the worker's check ended: {_cut(said)}")]


def _level(text: str) -> Level:
    return "error" if text == "error" else "warning" if text == "warning" else "ok"


def _cut(text: str) -> str:
    return text if len(text) <= FINDING_CHARS_MAX else text[: FINDING_CHARS_MAX - 1] + "…"


# ---- store and keys


def _store(config: Configuration, base: Path, targets: Sequence[str]) -> list[Finding]:
    if config.store.url is None:
        path = base / config.store.path
        if not path.exists():
            if path.parent.is_dir():
                return [Finding("ok", "store", f"{path.name} is made at the first start")]
            return [
                Finding("error", "store.path", f"there is no folder {path.parent}", "Make it, or correct the path.")
            ]
        location = str(path)
    else:
        try:
            location = revealed(config.store.url, base)
        except ConfigurationError as exc:
            return [Finding("error", "store.url", f"{exc.source} {exc.problems[0]}")]
    import sqlalchemy as sa  # half a second that only this part needs

    from gateway.databases import check_durability, engine_of
    from gateway.writer import StoreError

    since = time.time() - LATELY_S
    latest = sa.text(
        "SELECT result, code, remarks FROM attempt WHERE target = :target AND ended_at > :since "
        "ORDER BY ended_at DESC LIMIT :most"
    )
    try:
        engine = engine_of(location)
        try:
            check_durability(engine)
            with engine.connect() as connection:
                if not sa.inspect(connection).has_table("access_key"):
                    return [
                        Finding("ok", "store", f"{engine.dialect.name} answers; its tables are made at the first start")
                    ]
                held = connection.execute(
                    sa.text("SELECT target, prefix, expires_at FROM access_key WHERE revoked_at IS NULL")
                ).all()
                seen = {
                    target: connection.execute(latest, {"target": target, "since": since, "most": LATEST_MAX}).all()
                    for target in targets
                }
                unsent = 0
                if config.mail is not None and sa.inspect(connection).has_table("mail"):
                    unsent = int(connection.execute(sa.text(_UNSENT)).scalar() or 0)
        finally:
            engine.dispose()
    except StoreError as exc:
        return [Finding("error", "store", str(exc))]
    except sa.exc.SQLAlchemyError as exc:
        # the driver's own text may repeat the address with its password
        return [Finding("error", "store", f"the database cannot be used ({type(exc).__name__})")]
    ends: dict[tuple[str, str], float] = {}
    for target, prefix, at in held:
        name = (str(target), "client" if str(prefix).startswith(CLIENT_START) else "key")
        ends[name] = max(ends.get(name, 0.0), float(at))
    found = [Finding("ok", "store", f"{engine.dialect.name} answers"), *_unsent(unsent)]
    for target in targets:
        found += _secrets(target, config.targets[target], ends, time.time())
        found += _mapping(target, config.targets[target].connector, seen[target])
    return found


def _mapping(target: str, connector: str, latest: Sequence[tuple[str, str | None, str | None]]) -> Iterable[Finding]:
    """What the newest deliveries say about the mapping in Entra: attributes sent in vain, and values the product cannot take.

    Args:
        latest: result, code and remarks of each.
    """
    ignored: Counter[str] = Counter()
    refused: Counter[tuple[str, str]] = Counter()
    for result, code, remarks in latest:
        said = json.loads(remarks) if remarks else {}
        ignored.update(said.get("ignored", ()))
        if result == "rejected":
            refused[(str(said.get("attribute") or ""), str(code))] += 1
    page = f"connectors/setup/{connector}.md shows the mapping"
    if ignored:
        names = _names(name for name, _ in ignored.most_common())
        text = f"Entra sends attributes that the product does not take: {names}"
        yield Finding("warning", f"targets.{target}.mapping", text, f"Delete their rows in Entra; {page}.")
    if refused:
        names = _names(
            f"{count} for {f'{where}, ' if where else ''}{code}" for (where, code), count in refused.most_common()
        )
        text = f"of the newest {len(latest)} deliveries the product's rules refused {names}"
        yield Finding("warning", f"targets.{target}.mapping", text, f"provgate dead list --target {target}; {page}.")


def _names(names: Iterable[str]) -> str:
    listed = list(names)
    more = f" and {len(listed) - NAMES_MAX} more" if len(listed) > NAMES_MAX else ""
    return f"{', '.join(listed[:NAMES_MAX])}{more}"


def _secrets(target: str, settings: TargetSettings, ends: Mapping[tuple[str, str], float], now: float) -> list[Finding]:
    """The keys and client secrets of a target: which are missing, ended, or end soon."""
    found = []
    spare = settings.signs_in_without_secret()
    kinds = [(kind, noun) for way, kind, noun in _SECRETS if way in settings.auth]
    there = [kind for kind, _ in kinds if (target, kind) in ends]
    for kind, noun in kinds:
        at = ends.get((target, kind))
        remedy = f"provgate {kind} new {target}"
        where = f"targets.{target}"
        if at is None:
            if not spare and not there and kind == kinds[0][0]:
                found.append(Finding("warning", where, f"has no {noun}, so Entra cannot write", remedy))
        elif at <= now:
            alone = not spare and there == [kind]
            text = f"its last {noun} has ended" + (", so Entra cannot write" if alone else "")
            found.append(Finding("error" if alone else "warning", where, text, remedy))
        elif at - now < KEY_WARN_DAYS * 86_400:
            days = int((at - now) // 86_400)
            found.append(Finding("warning", where, f"its last {noun} ends in {days} days", remedy))
    if "entra" in settings.auth and settings.entra is not None and not settings.entra.object_ids:
        text = "takes Entra-signed tokens of every enterprise application of the tenant"
        found.append(Finding("warning", f"targets.{target}.entra", text, "Set object_ids to the one that may."))
    return found
