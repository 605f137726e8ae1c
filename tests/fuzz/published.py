"""Requests that schemathesis makes of the published OpenAPI document, right ones and wrong ones.

Answers are compared with the document, too: their status, media type and shape have to be described.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance

from tests.fuzz.generators import Known
from tests.gateway.wire import Heard, judge

WAIT_S = 10.0
CHECKED = [content_type_conformance, response_schema_conformance]
AT_ONCE = 50
"""Examples of one operation in a row; then the next operation has its turn."""

Told = Callable[[str, int, str, str], None]
"""Kind, status, what is wrong ("" nothing), and the request as a command."""


def operations_of(document: dict[str, Any]) -> list[Any]:
    """Every operation of the document."""
    schema = schemathesis.openapi.from_dict(document)
    return [found.ok() for found in schema.get_all_operations()]


def run(
    document: dict[str, Any], origin: str, token: str, known: Known, count: int, seed_of_all: int, told: Told
) -> None:
    """Send so many requests, spread over all operations."""
    operations = operations_of(document)
    with requests.Session() as session, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number, (operation, examples) in enumerate(_shares(operations, count)):
            mode = GenerationMode.NEGATIVE if number // len(operations) % 2 else GenerationMode.POSITIVE
            _operation(operation, mode, examples, seed_of_all + number, session, origin, token, known, told)


def _shares(operations: list[Any], count: int) -> Iterator[tuple[Any, int]]:
    """Operations in turn, with how many requests each makes now."""
    while count > 0:
        for operation in operations:
            examples = min(AT_ONCE, max(1, count // len(operations)), count)
            if examples <= 0:
                return
            count -= examples
            yield operation, examples


def _operation(
    operation: Any,
    mode: GenerationMode,
    examples: int,
    seed_here: int,
    session: requests.Session,
    origin: str,
    token: str,
    known: Known,
    told: Told,
) -> None:
    label = f"published {mode.value}"
    place = 0

    @seed(seed_here)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def one(case: Any) -> None:
        nonlocal place
        place += 1
        kept = operation.method.lower() != "delete"  # or nobody would be left to ask about
        if kept and "resource" in operation.path and place % 2 and isinstance(case.path_parameters, dict):
            held = known.groups if "/Groups" in operation.path else known.users
            case.path_parameters["resource"] = held[place % len(held)]
        signed = {"Authorization": f"Bearer {token}"}
        try:
            answer = case.call(base_url=origin, session=session, headers=signed, timeout=WAIT_S)
        except requests.exceptions.InvalidHeader:
            return  # the client library does not send it; our own generators do
        except requests.exceptions.RequestException as error:
            told(label, 0, f"no answer: {type(error).__name__}", case.as_curl_command())
            return
        heard = Heard(
            answer.status_code, {name.lower(): held[0] for name, held in answer.headers.items()}, answer.content or b""
        )
        wrong = judge(heard, head=case.method == "HEAD", token_endpoint=operation.path.startswith("/oauth2/"))
        if not wrong:
            wrong = _against(case, answer)
        told(label, answer.status_code, wrong, case.as_curl_command() if wrong else "")

    try:
        one()
    except Exception as error:
        if type(error).__name__ not in ("Unsatisfiable", "FailedHealthCheck"):
            raise  # an operation without parameters cannot be asked wrongly


def _against(case: Any, answer: Any) -> str:
    """What the document does not say of an answer."""
    try:
        case.validate_response(answer, checks=CHECKED)
    except BaseExceptionGroup as group:
        return "; ".join(f"{type(error).__name__}: {str(error)[:200]}" for error in group.exceptions)
    return ""
