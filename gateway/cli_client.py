"""The way from a command to the gateway: where its operators' API is, one call, and how a command ends that gets no answer.

Exit codes: 0 fine; 1 the answer is "not fine"; 2 used or configured wrongly; 3 the gateway, or for plans and reports a worker
or the product, cannot be reached; 4 refused.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from gateway.access import ACCESS_FILE
from gateway.cli_app import AsJson

if TYPE_CHECKING:
    from http.client import HTTPConnection, HTTPResponse

FINE, NOT_FINE, WRONG_USE, UNREACHABLE, REFUSED = 0, 1, 2, 3, 4

URL_VARIABLE = "PROVGATE_OPERATOR_URL"
TOKEN_VARIABLE = "PROVGATE_OPERATOR_TOKEN"  # noqa: S105 the name of a variable
DATA_FOLDER = "provgate-data"
CONFIG_FILE = "provgate.toml"

CALL_WAIT_S = 30.0
STREAM_SILENCE_MAX_S = 60.0
"""The API sends a sign of life more often than this; a stream that is silent for longer is dead."""
ANSWER_BYTES_MAX = 32 * 1024 * 1024


class Failure(Exception):
    """The command ends here: a sentence for standard error, and an exit code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.message = message
        self.code = code


def code_of(result: Any) -> int:
    """The exit code of a command that may return none."""
    return result if isinstance(result, int) else FINE


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Access:
    """Where the gateway is and how answers are printed."""

    url: Annotated[str | None, Parameter(help=f"Address of the operators' API; also {URL_VARIABLE}.")] = None
    token: Annotated[str | None, Parameter(help=f"Operator token; better in {TOKEN_VARIABLE} or a file.")] = None
    data: Annotated[Path | None, Parameter(help=f"Folder of a running gateway that holds {ACCESS_FILE}.")] = None
    config: Annotated[Path | None, Parameter(help=f"Configuration file; {ACCESS_FILE} is looked for beside it.")] = None
    as_json: AsJson = False


HERE = Access()


def _read_access_file(path: Path) -> tuple[str, str] | None:
    try:
        if path.stat().st_mode & 0o077:
            raise Failure(f"{path} is accessible to others; chmod 600 it", WRONG_USE)
        held = json.loads(path.read_text(encoding="utf-8"))
        return str(held["url"]), str(held["token"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise Failure(
            f"{path} cannot be used: {type(exc).__name__}; start the gateway anew to get a fresh one", WRONG_USE
        ) from exc


def _resolve(access: Access) -> tuple[str, str]:
    """Address and token: from the options, the named folder or file, the environment, or what lies nearby."""
    url = access.url or os.environ.get(URL_VARIABLE)
    token = access.token or os.environ.get(TOKEN_VARIABLE)
    named = access.data is not None or access.config is not None
    if not named and url and token:
        return url, token
    for path in _access_files(access):
        held = _read_access_file(path)
        if held is not None and (access.url is None or access.url.rstrip("/") == held[0].rstrip("/")):
            return held[0], access.token or held[1]
    config = access.config or (Path(CONFIG_FILE) if Path(CONFIG_FILE).is_file() else None)
    if config is not None and not (url and token):
        from_file = _from_config(config)
        url, token = url or from_file[0], token or from_file[1]
    if not token and access.data is not None:
        raise Failure(
            f"{access.data} holds no {ACCESS_FILE}; name the folder in which `provgate up` or `provgate demo` left it",
            WRONG_USE,
        )
    if not token:
        raise Failure(
            f"no operator token: set {TOKEN_VARIABLE}, or name the gateway's folder with --data "
            f"(`provgate up` and `provgate demo` leave {ACCESS_FILE} there)",
            WRONG_USE,
        )
    return url or "http://127.0.0.1:8081", token


def _access_files(access: Access) -> list[Path]:
    if access.data is not None:
        return [access.data / ACCESS_FILE]
    if access.config is not None:
        return [access.config.parent / ACCESS_FILE, access.config.parent / DATA_FOLDER / ACCESS_FILE]
    return [Path(DATA_FOLDER) / ACCESS_FILE, Path(ACCESS_FILE)]


def _from_config(path: Path) -> tuple[str | None, str | None]:
    from gateway.checks import revealed
    from schemas.config import load

    settings = load(path).gateway
    token = revealed(settings.operator_token, path.resolve().parent) if settings.operator_token else None
    host = "127.0.0.1" if settings.operator_host in ("0.0.0.0", "::") else settings.operator_host  # noqa: S104 compared only
    return f"http://{host}:{settings.operator_port}", token


def segment(text: str) -> str:
    """An id as one part of an address, encoded whole. Raises Failure when it is empty."""
    from urllib.parse import quote

    if not text or text in (".", ".."):
        raise Failure("an id must not be empty", WRONG_USE)
    return quote(text, safe="")


class Api:
    """The operators' API of one gateway. Every method ends the command with a sentence when it cannot have its answer."""

    def __init__(self, access: Access) -> None:
        from urllib.parse import urlsplit

        self.access = access
        self.url, self._token = _resolve(access)
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise Failure(f"{self.url}: the address of the operators' API looks like http://127.0.0.1:8081", WRONG_USE)
        if not self._token.isascii() or not self._token.isprintable():
            raise Failure("the operator token holds characters that no token has", WRONG_USE)
        self._https = parts.scheme == "https"
        self._host, self._port = parts.hostname, parts.port
        self._prefix = parts.path.rstrip("/")

    def get(self, path: str, **params: Any) -> Any:
        """The answer to a question."""
        return self._call("GET", path, params, None)

    def post(self, path: str, body: Mapping[str, Any], *, wait_s: float = CALL_WAIT_S) -> Any:
        """The answer to an order."""
        return self._call("POST", path, {}, body, wait_s)

    def delete(self, path: str) -> None:
        """Have something forgotten."""
        connection, _ = self._open("DELETE", path, {}, None, CALL_WAIT_S)
        connection.close()

    def stream(self, path: str, **params: Any) -> Iterator[Any]:
        """The documents of a Server-Sent Events stream, until it ends."""
        connection, response = self._open("GET", path, params, None, STREAM_SILENCE_MAX_S)
        try:
            data: list[str] = []
            for raw in self._lines(response):
                line = raw.decode("utf-8", errors="replace").rstrip("\r\n")
                if line.startswith("data:"):
                    data.append(line[5:].lstrip())
                elif not line and data:
                    yield json.loads("\n".join(data))
                    data = []
        finally:
            connection.close()

    def _lines(self, response: HTTPResponse) -> Iterator[bytes]:
        from http.client import HTTPException

        try:
            while line := response.readline(ANSWER_BYTES_MAX):
                yield line
        except (OSError, HTTPException) as exc:
            raise self._away(exc) from exc

    def _call(
        self,
        method: str,
        path: str,
        params: Mapping[str, Any],
        body: Mapping[str, Any] | None,
        wait_s: float = CALL_WAIT_S,
    ) -> Any:
        from http.client import HTTPException

        connection, response = self._open(method, path, params, body, wait_s)
        try:
            return json.loads(response.read(ANSWER_BYTES_MAX))
        except (OSError, HTTPException) as exc:
            raise self._away(exc) from exc
        except ValueError as exc:
            raise Failure(f"{self.url} answers, but not as an operators' API does", UNREACHABLE) from exc
        finally:
            connection.close()

    def _open(
        self, method: str, path: str, params: Mapping[str, Any], body: Mapping[str, Any] | None, wait_s: float
    ) -> tuple[HTTPConnection, HTTPResponse]:
        from http.client import HTTPConnection, HTTPException, HTTPSConnection
        from urllib.parse import urlencode

        query = urlencode({name: value for name, value in params.items() if value is not None})
        kind = HTTPSConnection if self._https else HTTPConnection
        connection = kind(self._host, self._port, timeout=wait_s)
        headers = {"Authorization": f"Bearer {self._token}", "Accept": "application/json, text/event-stream"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        try:
            target = f"{self._prefix}/api/v1{path}" + (f"?{query}" if query else "")
            connection.request(method, target, None if body is None else json.dumps(body).encode(), headers)
            response = connection.getresponse()
        except (OSError, HTTPException) as exc:
            connection.close()
            raise self._away(exc) from exc
        if response.status >= 400:
            try:
                raise self._refused(response)
            finally:
                connection.close()
        return connection, response

    def _away(self, exc: Exception) -> Failure:
        why = getattr(exc, "strerror", None) or str(exc) or type(exc).__name__
        return Failure(
            f"the gateway at {self.url} cannot be reached ({why}); is it running? See: provgate up --help", UNREACHABLE
        )

    def _refused(self, response: HTTPResponse) -> Failure:
        try:
            said = str(json.loads(response.read(ANSWER_BYTES_MAX))["error"])
        except (OSError, ValueError, KeyError, TypeError):
            said = f"{self.url} answered {response.status}, and not as an operators' API does; {ACCESS_FILE} holds its address"
        if response.status in (401, 403):
            return Failure(said, REFUSED)
        return Failure(said, UNREACHABLE if response.status >= 500 else WRONG_USE)
