# SPDX-License-Identifier: MIT
"""A connection to a BMC that may be busy, starting, or just have reset its machine.

Hides which refusals are temporary. Queries are repeated until the time is up. An order is
repeated only if it was certainly not accepted; otherwise :class:`MaybeDoneError` tells the
caller to look for its effect.
"""

from __future__ import annotations

import contextlib
import email.utils
import time
from collections.abc import Callable
from typing import Any

import sushy.connector
import sushy.exceptions as refusals

_CONNECT_S = 10.0
_LEAST_ANSWER_S = 1.0
_PAUSE_S = 0.5
_LOGIN_SHARE = 0.25
"""Share of the time for a login by session; after it, basic authentication may be used."""
_PASSING = frozenset({408, 423, 425, 429, 500, 502, 503, 504})
_NOT_TAKEN = frozenset({408, 412, 423, 425, 428, 429, 503})
"""After these the order was certainly not accepted (RFC 9110, RFC 6585)."""
_STALE = frozenset({412, 428})
_BUSY = ("SYS518", "InvalidOperationForSystemState", "ServiceTemporarilyUnavailable",
         "ResourceInStandby", "ServiceInUnknownState", "ServiceShuttingDown")  # fmt: skip
"""Message identifiers that mark a refusal as temporary."""
# The connection was never made, so nothing was sent. Anything that was sent may have arrived.
_NEVER_SENT = ("NewConnectionError", "ConnectTimeout", "Connection refused", "No route to host",
               "Network is unreachable", "Name or service", "name resolution", "SSLError",
               "SSLEOFError", "handshake")  # fmt: skip
# Permanent errors.
_FINAL = ("CERTIFICATE_VERIFY_FAILED", "WRONG_VERSION_NUMBER", "Name or service not known",
          "No address associated", "nodename nor servname", "InvalidURL", "Invalid URL",
          "Failed to parse", "TooManyRedirects", "Exceeded 30 redirects")  # fmt: skip


class MaybeDoneError(Exception):
    """An order was sent, and it is not known whether the BMC accepted it.

    ``refused``: the BMC reported a failure; otherwise it was silent, or a proxy answered.
    """

    def __init__(self, message: str, *, refused: bool) -> None:
        super().__init__(message)
        self.refused = refused


class TooLateError(Exception):
    """No usable answer came before the time was up."""


class _UnreadableError(ValueError):
    """An answer that is not a JSON object."""


class Patient(sushy.connector.Connector):  # type: ignore[misc]
    """sushy's connection; ``deadline`` is of :func:`time.monotonic`."""

    def __init__(self, url: str, *, verify: object, within_s: float, deadline: float) -> None:
        super().__init__(
            url,
            verify=verify,
            response_callback=self._look_at,
            # One try each; this class decides what is repeated.
            server_side_retries=1,
            server_side_retries_delay=1,
            default_request_timeout=within_s,
            connect_timeout=min(_CONNECT_S, max(_LEAST_ANSWER_S, within_s / 3)),
        )
        self._within_s = within_s
        self._deadline = deadline
        self._headers: dict[str, str] = {}
        self._etags: dict[str, str] = {}
        self._known = set[str]()
        """Paths that were readable before: if they are not now, that is temporary."""

    def get(self, path: str = "", *args: Any, **more: Any) -> Any:
        """The answer, a JSON object; repeats the query until it is one."""
        ask = super().get

        def asked() -> Any:
            answer = ask(path, *args, **{"timeout": self._timeout_s(), **_ONCE, **more})
            try:
                body = answer.json()
            except ValueError as error:
                raise _UnreadableError(f"no JSON: {answer.text[:80]!a}") from error
            if not isinstance(body, dict):
                raise _UnreadableError(f"no JSON object: {answer.text[:80]!a}")
            etag = self._headers.get("etag") or body.get("@odata.etag")
            if isinstance(etag, str) and etag.isascii() and etag.isprintable():
                self._etags[path] = etag
            return answer

        return self._patiently(path, asked, deadline=self._deadline)

    def post(self, path: str = "", *args: Any, **more: Any) -> Any:
        """The answer; repeats the order only if it was certainly not accepted.

        Raises:
            MaybeDoneError: it may have been accepted.
        """
        tell = super().post
        headers: dict[str, str] = dict(more.pop("headers", None) or {})
        logs_in = path.rstrip("/").endswith("/Sessions")

        def told() -> Any:
            timeout_s = self._timeout_s()
            return tell(path, *args, headers=headers, **{"timeout": timeout_s, **_ONCE, **more})

        if logs_in:  # a second session does no harm
            until = time.monotonic() + _LOGIN_SHARE * self._within_s
            return self._patiently(path, told, deadline=min(self._deadline, until))

        def order() -> Any:
            try:
                return told()
            except refusals.HTTPError as error:
                if error.status_code in _STALE:
                    headers.update(self._fresh_etag(path))
                if error.status_code in _NOT_TAKEN or _says_busy(error):
                    raise
                if error.status_code in _PASSING:
                    refused = error.status_code == 500
                    raise MaybeDoneError(
                        f"answered {error.status_code}", refused=refused
                    ) from error
                raise
            except refusals.ConnectionError as error:
                if any(word in str(error) for word in _NEVER_SENT):
                    raise
                raise MaybeDoneError(f"cannot be reached: {error}", refused=False) from error

        return self._patiently(path, order, deadline=self._deadline, also=_STALE)

    def delete(self, path: str = "", *args: Any, **more: Any) -> Any:
        """Close a session; a failure does not matter."""
        with contextlib.suppress(refusals.SushyError):
            return super().delete(path, *args, **{"timeout": _LEAST_ANSWER_S, **_ONCE, **more})
        return None

    def _patiently(
        self,
        path: str,
        ask: Callable[[], Any],
        *,
        deadline: float,
        also: frozenset[int] = frozenset(),
    ) -> Any:
        while True:
            self._headers = {}
            try:
                answer = ask()
            except (refusals.SushyError, _UnreadableError) as error:
                pause_s = self._pause_s()
                late = time.monotonic() + pause_s >= deadline
                if not late and self._passes(path, error, also):
                    time.sleep(pause_s)
                    continue
                if "timed out" in str(error) and late:
                    raise TooLateError("the connection timed out") from error
                raise
            self._known.add(path)
            return answer

    def _passes(self, path: str, error: Exception, also: frozenset[int]) -> bool:
        """Whether the error may be temporary."""
        if isinstance(error, refusals.HTTPError):
            status = error.status_code
            if status == 401:
                return bool(self._known - self._open())
            if status in {403, 404}:
                return path in self._known
            return status in _PASSING or status in also or _says_busy(error)
        if isinstance(error, refusals.ConnectionError):
            return not any(word in str(error) for word in _FINAL)
        return isinstance(error, _UnreadableError)

    def _open(self) -> set[str]:
        """Known paths that need no login, so that having read them proves no permission."""
        return {
            path for path in self._known if path.rstrip("/").count("/") <= 2 or "Session" in path
        }

    def _fresh_etag(self, action: str) -> dict[str, str]:
        """The If-Match header with the present state of the system."""
        path = action.partition("/Actions/")[0]
        with contextlib.suppress(refusals.SushyError, ValueError):
            self.get(path)
        return {"If-Match": self._etags.get(path, "*")}

    def _timeout_s(self) -> float:
        """For one answer: half the time, so that a lost request can be repeated."""
        left_s = self._deadline - time.monotonic()
        return max(_LEAST_ANSWER_S, min(left_s, self._within_s / 2))

    def _pause_s(self) -> float:
        """The pause before a retry: as long as the BMC asks for, within limits."""
        said = self._headers.get("retry-after", "")
        if said.isascii() and said.isdigit():
            asked_s = float(said[:6])
        else:
            try:
                asked_s = email.utils.parsedate_to_datetime(said).timestamp() - time.time()
            except (ValueError, TypeError, OverflowError, IndexError):
                return _PAUSE_S
        return max(_PAUSE_S, min(self._within_s / 3, asked_s))

    def _look_at(self, response: Any) -> None:
        self._headers = {name.lower(): str(value) for name, value in response.headers.items()}


_ONCE = {"server_side_retries_left": 0}


def _says_busy(error: refusals.HTTPError) -> bool:
    return any(word in f"{error.extended_info}{error.detail}{error.code}" for word in _BUSY)
