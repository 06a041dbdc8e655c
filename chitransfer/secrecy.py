"""Keeps passwords out of everything that is written or shown: text is masked before it leaves.

Used by the configuration, the study's storage, the log and the command line's last-resort handler.
"""

from __future__ import annotations

import logging
import re
from urllib.parse import unquote

MASK = "***"
_IN_ADDRESS = re.compile(r"(?P<before>[A-Za-z][\w+.\-]*://[^\s/:@]*:)(?P<secret>\S+)(?=@)")
_IN_OPTION = re.compile(
    r"(?P<before>\b(?:password|passwd|sslpassword)\s*=\s*)(?P<secret>'[^']*'|[^\s&;,'\"]+)", re.IGNORECASE
)


def mask_passwords(text: str) -> str:
    """Replace the password of every address and every ``password=…`` in a text.

    >>> mask_passwords("postgresql://ann:s3cret@db:5432/chi")
    'postgresql://ann:***@db:5432/chi'
    """
    return _IN_OPTION.sub(rf"\g<before>{MASK}", _IN_ADDRESS.sub(rf"\g<before>{MASK}", text))


def strip_password(address: str) -> str:
    """An address without its password, as it may be stored; a database client then consults its own sources.

    >>> strip_password("postgresql://ann:s3cret@db/chi?password=x&sslmode=require")
    'postgresql://ann@db/chi?sslmode=require'
    """
    if address.startswith("sqlite:"):
        return address
    place, parameters = _split_query(address)
    kept = [pair for pair in parameters if unquote(pair.partition("=")[0]).lower() != "password"]
    return _IN_ADDRESS.sub(lambda match: match["before"][:-1], place) + ("?" + "&".join(kept) if kept else "")


def _split_query(address: str) -> tuple[str, list[str]]:
    """The part before the query, and the query's parameters as written."""
    for mark in re.finditer(r"\?", address):
        place, parameters = address[: mark.start()], address[mark.end() :].split("&")
        # A question mark in a password not written as %3F does not start the query: an @ is still to come.
        is_in_password = "@" not in place and any("@" in pair for pair in parameters)
        if not is_in_password and not any("@" in pair.partition("=")[0] for pair in parameters):
            return place, parameters
    return address, []


class MaskingFormatter(logging.Formatter):
    """Formats a log record, including its traceback, and masks passwords in the result."""

    def format(self, record: logging.LogRecord) -> str:
        """The finished line or lines."""
        return mask_passwords(super().format(record))
