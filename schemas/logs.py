"""One log shape for every process: an event name and facts, one JSON object a line, no prose, no person's attributes.

Redaction works by name and by registered value. Of an exception that is logged, types and places are written down and never
its text, which may hold anything: a person's values, or a secret that nobody registered.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import Any, TextIO

import msgspec
import structlog

_SECRET_NAMES = re.compile(
    r"authorization|token|secret|password|credential|api_?key|access_?key|cookie|client_assertion", re.IGNORECASE
)
_PERSONAL_NAMES = re.compile(
    r"^(user_?name|mail|emails?|phone.*|mobile.*|display_?name|given_?name|family_?name|document|body|value)$",
    re.IGNORECASE,
)
_SHORTEST_SECRET = 6
_NAMES_MAX = 1_000
REDACTED = "[redacted]"

_secrets: set[str] = set()
_steps: list[Any] = []
"""What every line goes through; always this one list, because a logger keeps the list it was first used with."""

LEVELS = {"warning": logging.WARNING, "information": logging.INFO, "debug": logging.DEBUG}
"""The three there are (vendor requirement S13)."""
_lowest: ContextVar[int] = ContextVar("log_level", default=logging.NOTSET)


@contextmanager
def at_level(level: str) -> Iterator[None]:
    """What is done inside, for one target, logs nothing below this level, whatever else the process is to say.

    Args:
        level: one of LEVELS.
    """
    token = _lowest.set(LEVELS[level])
    try:
        yield
    finally:
        _lowest.reset(token)


def _above_lowest(_: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    if getattr(logging, method.upper(), logging.CRITICAL) < _lowest.get():
        raise structlog.DropEvent
    return event


def register_secret(value: str) -> None:
    """Make sure this value never appears in a log line of this process, wherever it turns up."""
    if len(value) >= _SHORTEST_SECRET:
        _secrets.add(value)


def redact_text(text: str) -> str:
    """The text without any registered secret."""
    for secret in _secrets:
        if secret in text:
            text = text.replace(secret, REDACTED)
    return text


@lru_cache(_NAMES_MAX)
def _is_withheld(name: str) -> bool:
    return bool(_SECRET_NAMES.search(name) or _PERSONAL_NAMES.match(name))


def _redact(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for key, value in event.items():
        if _is_withheld(key):
            event[key] = REDACTED
        elif isinstance(value, str) and _secrets:
            event[key] = redact_text(value)
    return event


_traced = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)


def _without_texts(exc_info: Any) -> list[dict[str, Any]]:
    """Types and places of exceptions, causes and members of groups included."""
    return [_type_and_places(one) for one in _traced(exc_info)]


def _type_and_places(trace: dict[str, Any]) -> dict[str, Any]:
    shown = {"exc_type": trace["exc_type"], "is_cause": trace["is_cause"], "frames": trace["frames"]}
    if trace["exceptions"]:
        shown["exceptions"] = [[_type_and_places(one) for one in inner] for inner in trace["exceptions"]]
    return shown


def _for_a_person(exc_info: Any) -> str:
    """The same in lines; what was raised last comes first."""
    lines = []
    for trace in _traced(exc_info):
        lines.append(f"{trace['exc_type']}, raised by" if trace["frames"] else trace["exc_type"])
        lines += [f"  {frame['filename']}:{frame['lineno']} in {frame['name']}" for frame in reversed(trace["frames"])]
    return "\n".join(lines)


def _as_json(event: MutableMapping[str, Any], *, default: Callable[[Any], Any]) -> str:
    try:
        return msgspec.json.encode(event, enc_hook=default).decode()
    except (UnicodeEncodeError, TypeError, ValueError):  # e.g. half a surrogate pair: the slower encoder escapes it
        return json.dumps(event, default=default)


def configure(process: str, *, level: str = "information", stream: TextIO | None = None, pretty: bool = False) -> None:
    """Set up logging for one process.

    Args:
        process: `gateway`, `worker`, `up`, …; in every line.
        level: `warning`, `information` or `debug` (vendor requirement S13 has exactly these three).
        stream: where lines go; standard error unless set.
        pretty: for a person at a terminal instead of JSON.
    """
    number = LEVELS[level]
    _steps[:] = (
        _above_lowest,
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.ExceptionRenderer(_for_a_person if pretty else _without_texts),
        _redact,
        structlog.dev.ConsoleRenderer() if pretty else structlog.processors.JSONRenderer(_as_json),
    )
    structlog.configure(
        processors=_steps,
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(file=stream or sys.stderr),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(process=process)


def logger() -> Any:
    """A structured logger: `logger().warning("delivery.retrying", target=…, attempt=3)`."""
    return structlog.get_logger()
