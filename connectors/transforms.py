"""Named steps from Entra's value to the product's, for products that are described in configuration (vendor page, 0.6).

The rules are those the connectors with code use; here they can be named for any attribute. All are pure.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping
from typing import Any, Literal

from connectors.babelforce import normalize_login
from connectors.sofa import derive_identifier
from connectors.telemessage import Extension, normalize_mobile
from schemas.errors import NormalizationError

Transform = Literal[
    "lower", "upper", "nfc", "ascii", "digits", "email", "mobile", "mobile_plus", "identifier", "integer", "boolean"
]
INTEGER_DIGITS_MAX = 18

_TRUE = frozenset({"true", "yes", "1", "on"})
_FALSE = frozenset({"false", "no", "0", "off"})
_SAID: Mapping[str, str] = {
    "missing": "is blank",
    "bad_email": "is not an e-mail address",
    "not_a_number": "is not a telephone number",
    "extension": "has an extension",
    "no_country": "has no country code, and no region is set",
    "impossible": "has too few or too many digits for its country, or no country code",
    "bad_integer": "is not a whole number",
    "bad_boolean": "is neither true nor false",
}


def transformed(name: Transform, value: Any, *, region: str | None = None, extension: Extension = "reject") -> Any:
    """One value after one named step.

    Args:
        value: a text, or what an earlier step made of it.
        region: mobile: the country whose national numbers are understood.
        extension: mobile: what to do with an extension such as `ext. 45`.

    Raises:
        NormalizationError: the codes of vendor page 0.6, and `bad_integer`, `bad_boolean`; the sentence never shows the value.
    """
    text = value if isinstance(value, str) else str(value)
    try:
        if name == "mobile":
            return normalize_mobile(text, region, extension)
        if name == "mobile_plus":
            return f"+{normalize_mobile(text, region, extension)}"
        return _PLAIN[name](text)
    except NormalizationError as exc:
        raise NormalizationError(said(exc.code), code=exc.code) from None


def said(code: str) -> str:
    """What a refusal means, as the end of a sentence."""
    return _SAID.get(code, "cannot be sent to this product")


def _integer(text: str) -> int:
    if re.fullmatch(rf"[+-]?[0-9]{{1,{INTEGER_DIGITS_MAX}}}", text.strip(), re.ASCII) is None:
        raise NormalizationError("", code="bad_integer")
    return int(text)


def _boolean(text: str) -> bool:
    folded = text.strip().casefold()
    if folded not in _TRUE | _FALSE:
        raise NormalizationError("", code="bad_boolean")
    return folded in _TRUE


def _ascii(text: str) -> str:
    """Accents dropped; letters without a plain form stay as they are."""
    spread = unicodedata.normalize("NFKD", text)
    return "".join(char for char in spread if not unicodedata.combining(char))


_PLAIN: Mapping[str, Callable[[str], Any]] = {
    "lower": str.lower,
    "upper": str.upper,
    "nfc": lambda text: unicodedata.normalize("NFC", text),
    "ascii": _ascii,
    "digits": lambda text: re.sub(r"[^0-9]", "", text),
    "email": normalize_login,
    "identifier": derive_identifier,
    "integer": _integer,
    "boolean": _boolean,
}
