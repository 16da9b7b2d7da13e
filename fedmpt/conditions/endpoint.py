"""A language model behind HTTP: the chat completions that OpenAI's interface and most servers beside it speak.

The key goes into one header and nowhere else: no message, no record and no ``repr`` holds it, redirections are not
followed, and without encryption it is sent to this machine only.
"""

from __future__ import annotations

import http.client
import ipaddress
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

from fedmpt.conditions.language_model import Message, NoAnswer, Reply
from fedmpt.errors import UsageError

URL_VARIABLE: Final = "OPENAI_BASE_URL"  # the names that clients of this interface agree on
KEY_VARIABLE: Final = "OPENAI_API_KEY"
MODEL_VARIABLE: Final = "OPENAI_MODEL"

_FIRST_WAIT_S: Final = 1.0  # before the second attempt; doubled before every further one
_LONGEST_WAIT_S: Final = 60.0
_MOST_BYTES: Final = 4 * 2**20  # of a response
_CHUNK: Final = 2**16
_SHOWN: Final = 200  # letters of a server's own message
_RETRIED: Final = frozenset({408, 425, 429})  # and everything from 500


@dataclass(frozen=True, kw_only=True, slots=True)
class Endpoint:
    """A server's model.

    Attributes:
        url: base URL, to which ``/chat/completions`` is added.
        name: of the model.
        key: sent as bearer token; None sends none.
        timeout_s: longest wait for one response.
        attempts: most requests for one answer.
        temperature: of the sampling; None leaves it to the server.
        sleep: waits so many seconds.
        clock: seconds that pass.
    """

    url: str
    name: str
    key: str | None = field(default=None, repr=False)
    timeout_s: float = 120.0
    attempts: int = 5
    temperature: float | None = None
    sleep: Callable[[float], object] = time.sleep
    clock: Callable[[], float] = time.monotonic
    source: str = field(default="endpoint", init=False)

    def __post_init__(self) -> None:
        _require_url(self.url, with_key=self.key is not None)
        if self.key is not None and (not self.key.isascii() or not self.key.isprintable()):
            raise UsageError(f"{KEY_VARIABLE}: is no key (it holds odd characters); set it again")

    @classmethod
    def from_environment(
        cls,
        environment: Mapping[str, str],
        *,
        name: str | None,
        timeout_s: float,
        attempts: int,
        temperature: float | None,
    ) -> Endpoint:
        """Return the endpoint that the environment describes; ``name`` comes before its model.

        Raises:
            UsageError: a variable is missing or cannot be used; the message never holds the key.
        """
        url = environment.get(URL_VARIABLE, "").strip()
        model = name or environment.get(MODEL_VARIABLE, "").strip()
        if not url:
            raise UsageError(
                f"--endpoint: {URL_VARIABLE} is not set; give the server's base URL, such as https://HOST/v1"
            )
        if not model:
            raise UsageError(f"--endpoint: no model is named; use --model or {MODEL_VARIABLE}")
        return cls(
            url=url,
            name=model,
            key=environment.get(KEY_VARIABLE, "").strip() or None,
            timeout_s=timeout_s,
            attempts=attempts,
            temperature=temperature,
        )

    def answer(self, conversation: Sequence[Message], *, place: str) -> Reply:
        """Answer the last message; busy or broken servers and time-outs are tried again.

        Raises:
            NoAnswer: every attempt failed, or the response is not of the protocol.
            UsageError: the server refuses the request, for example because of the key.
        """
        del place
        body: dict[str, Any] = {
            "model": self.name,
            "messages": [{"role": one.role, "content": one.text} for one in conversation],
        }
        if self.temperature is not None:
            body["temperature"] = self.temperature
        reason, asked = "", 0
        for attempt in range(1, self.attempts + 1):
            try:
                return Reply(text=_content(self._post(body)), attempts=attempt)
            except urllib.error.HTTPError as error:
                with error:
                    reason, asked = (
                        f"HTTP {error.code}",
                        _asked_wait(error.headers.get("Retry-After", "")),
                    )
                    if error.code not in _RETRIED and error.code < 500:
                        raise self._refused(error) from None
            except TimeoutError:
                reason, asked = f"no response within {self.timeout_s:g} s", 0
            except urllib.error.URLError as error:
                if isinstance(error.reason, TimeoutError):
                    reason, asked = f"no response within {self.timeout_s:g} s", 0
                else:
                    reason, asked = f"cannot be reached ({error.reason})", 0
            except (OSError, http.client.HTTPException) as error:
                reason, asked = f"the connection broke ({type(error).__name__})", 0
            except _Foreign as error:
                raise NoAnswer(str(error), attempts=attempt) from error
            if attempt < self.attempts:
                self.sleep(min(max(_FIRST_WAIT_S * 2 ** (attempt - 1), asked), _LONGEST_WAIT_S))
        raise NoAnswer(f"{reason}, {self.attempts} times", attempts=self.attempts)

    def _post(self, body: dict[str, Any]) -> bytes:
        headers = {"Content-Type": "application/json", "User-Agent": "fedmpt"}
        if self.key is not None:
            headers["Authorization"] = f"Bearer {self.key}"
        request = urllib.request.Request(  # noqa: S310 -- `_require_url` lets http and https pass
            f"{self.url.rstrip('/')}/chat/completions",
            data=json.dumps(body).encode(),
            headers=headers,
            method="POST",
        )
        ends = self.clock() + self.timeout_s
        with _opener(urlsplit(self.url).hostname or "").open(
            request, timeout=self.timeout_s
        ) as response:
            data = b""
            while chunk := response.read1(_CHUNK):
                data += chunk
                if len(data) > _MOST_BYTES:
                    raise _Foreign(f"the response is longer than {_MOST_BYTES} bytes")
                if self.clock() > ends:  # a server that sends a byte now and then is not answering
                    raise TimeoutError
            if response.length:  # announced and not sent
                raise http.client.IncompleteRead(data, response.length)
            return data

    def _refused(self, error: urllib.error.HTTPError) -> UsageError:
        told = _told(error, self.key)
        remedies = {
            401: f"check {KEY_VARIABLE}",
            403: f"check {KEY_VARIABLE} and what it may use",
            404: f"check {URL_VARIABLE} and the model's name",
        }
        remedy = remedies.get(error.code, "check the model's name and --group-size")
        if 300 <= error.code < 400:
            remedy = f"it redirects, which is not followed; give the final URL in {URL_VARIABLE}"
        return UsageError(f"--endpoint: the server refuses with HTTP {error.code}{told}; {remedy}")


class _Foreign(Exception):  # noqa: N818
    """A response that is not of the protocol."""


class _NoRedirection(urllib.request.HTTPRedirectHandler):
    """Follows nothing: another server must not be told the key."""

    def redirect_request(self, *_: Any) -> None:
        """Return nothing to go to."""


def _opener(host: str) -> urllib.request.OpenerDirector:
    """Return what sends requests: through the environment's proxies, but not to this machine, for they read the key."""
    if _is_this_machine(host):
        return urllib.request.build_opener(_NoRedirection, urllib.request.ProxyHandler({}))
    return urllib.request.build_opener(_NoRedirection)


def _content(data: bytes) -> str:
    """Return the text of a chat completion.

    Raises:
        _Foreign: the response is something else.
    """
    try:
        text = json.loads(data)["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError, RecursionError) as error:
        raise _Foreign("the response is not a chat completion") from error
    if not isinstance(text, str):
        raise _Foreign("the response holds no text")
    return text


def _asked_wait(value: str) -> int:
    """Return the seconds that ``Retry-After`` asks for; 0 where it does not say so in seconds."""
    plain = value.strip()
    return int(plain) if plain.isascii() and plain.isdigit() and len(plain) < 7 else 0


def _told(error: urllib.error.HTTPError, key: str | None) -> str:
    """Return a server's own message on one line, in brackets, without the key."""
    try:
        message = json.loads(error.read(_CHUNK))["error"]["message"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError, http.client.HTTPException):
        return ""
    plain = "".join(letter for letter in str(message) if letter.isprintable())
    if key is not None:
        plain = plain.replace(key, "[key]")
    return f" ({plain[:_SHOWN]})" if plain else ""


def _require_url(url: str, *, with_key: bool) -> None:
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
    if not host or parts.scheme not in ("http", "https"):
        raise UsageError(f"{URL_VARIABLE}: must be http(s)://HOST[:PORT]/PATH")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise UsageError(
            f"{URL_VARIABLE}: holds more than host and path; put the key into {KEY_VARIABLE}"
        )
    if with_key and parts.scheme == "http" and not _is_this_machine(host):
        raise UsageError(
            f"{URL_VARIABLE}: a key must not be sent to {host} without encryption; use https, or unset {KEY_VARIABLE}"
        )


def _is_this_machine(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
