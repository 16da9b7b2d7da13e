"""An endpoint is asked as the protocol says, patiently; its key goes into one header and nowhere else."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from fedmpt.conditions.endpoint import Endpoint
from fedmpt.conditions.language_model import Message, NoAnswer
from fedmpt.errors import UsageError

KEY = "sk-not-a-real-key-0123456789"
HELLO = [Message(role="user", text="hello")]


def completion(text: object) -> bytes:
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode()


@dataclass
class Step:
    """One response of the server."""

    body: bytes = completion("hi")
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    late: bool = False  # not before the client has gone for good
    drip_s: float = 0.0  # between bytes
    cut: bool = False  # close before the body is whole


@dataclass
class Server:
    """A server that speaks the protocol, one step a request; the last step is repeated."""

    steps: list[Step]
    url: str = ""
    requests: list[tuple[str, dict[str, str], Any]] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)

    def endpoint(self, **settings: Any) -> Endpoint:
        return Endpoint(
            **{"url": self.url, "name": "model-1", "key": KEY, "sleep": self.waits.append}
            | settings
        )


@contextmanager
def serve(*steps: Step) -> Iterator[Server]:
    server = Server(list(steps))
    over = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            server.requests.append((self.path, dict(self.headers), body))
            step = server.steps.pop(0) if len(server.steps) > 1 else server.steps[0]
            if step.late:
                over.wait()
            try:
                self.send_response(step.status)
                for name, value in step.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(step.body) + step.cut))
                self.end_headers()
                for start in range(len(step.body)) if step.drip_s else [None]:
                    self.wfile.write(step.body if start is None else step.body[start : start + 1])
                    self.wfile.flush()
                    if step.drip_s and over.wait(step.drip_s):
                        break
            except OSError:
                pass  # the client has given up
            self.close_connection = True

        def log_message(self, *_: object) -> None:
            pass

    listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.url = f"http://127.0.0.1:{listener.server_port}/v1/"
    thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        over.set()
        listener.shutdown()
        thread.join()
        listener.server_close()


def test_a_conversation_is_sent_as_the_protocol_says() -> None:
    with serve(Step()) as server:
        talk = [*HELLO, Message(role="assistant", text="hi"), Message(role="user", text="again")]
        assert server.endpoint(temperature=0.5).answer(talk, place="").text == "hi"
    ((path, headers, body),) = server.requests
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == f"Bearer {KEY}"
    assert headers["Content-Type"] == "application/json"
    assert body == {
        "model": "model-1",
        "temperature": 0.5,
        "messages": [
            {"role": "user", "content": "hello"},
            {"role": "assistant", "content": "hi"},
            {"role": "user", "content": "again"},
        ],
    }


def test_without_a_key_none_is_sent_and_the_server_chooses_the_temperature() -> None:
    with serve(Step()) as server:
        server.endpoint(key=None).answer(HELLO, place="")
    ((_, headers, body),) = server.requests
    assert "Authorization" not in headers
    assert "temperature" not in body


def test_busy_and_broken_servers_are_asked_again_after_longer_and_longer_waits() -> None:
    steps = [Step(status=429), Step(status=503), Step(status=500), Step()]
    with serve(*steps) as server:
        reply = server.endpoint().answer(HELLO, place="")
    assert (reply.text, reply.attempts) == ("hi", 4)
    assert server.waits == [1, 2, 4]


def test_a_server_may_ask_for_a_longer_wait_but_not_for_any_wait() -> None:
    asked = [{"Retry-After": value} for value in ("7", "100000", "Wed, 21 Oct 2026 07:28:00 GMT")]
    with serve(*(Step(status=429, headers=one) for one in asked), Step()) as server:
        server.endpoint().answer(HELLO, place="")
    assert server.waits == [7, 60, 4]


def test_a_server_that_stays_broken_leaves_a_prompt_without_answer() -> None:
    with (
        serve(Step(status=502)) as server,
        pytest.raises(NoAnswer, match="HTTP 502, 3 times") as told,
    ):
        server.endpoint(attempts=3).answer(HELLO, place="")
    assert told.value.attempts == 3
    assert len(server.requests) == 3
    assert server.waits == [1, 2]


SLOW = completion("slow" * 100)


@pytest.mark.parametrize("step", [Step(body=SLOW, late=True), Step(body=SLOW, drip_s=0.1)])
def test_slow_answers_are_asked_for_again(step: Step) -> None:
    with serve(step, Step()) as server:
        # A machine that stalls may miss a quick answer as well, but hardly every one of so many.
        reply = server.endpoint(timeout_s=0.5, attempts=100).answer(HELLO, place="")
    assert reply.text == "hi"
    assert reply.attempts == len(server.waits) + 1 >= 2


def test_a_connection_that_breaks_is_made_again() -> None:
    with serve(Step(cut=True), Step()) as server:
        assert server.endpoint().answer(HELLO, place="").attempts == 2


def test_a_server_that_is_not_there_is_said_to_be_out_of_reach() -> None:
    with serve(Step()) as server:
        pass
    with pytest.raises(NoAnswer, match="cannot be reached"):
        server.endpoint(attempts=2).answer(HELLO, place="")


@pytest.mark.parametrize(
    "body",
    [b"<html>", b"{}", b"[]", b"\xff\xfe", b'{"choices": []}', completion(None), completion([1])],
)
def test_a_response_of_another_protocol_is_no_answer(body: bytes) -> None:
    with serve(Step(body=body)) as server, pytest.raises(NoAnswer, match="the response"):
        server.endpoint().answer(HELLO, place="")
    assert len(server.requests) == 1


def test_a_response_without_end_is_not_read_to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedmpt.conditions.endpoint._MOST_BYTES", 1000)
    with serve(Step(body=b"x" * 5000)) as server, pytest.raises(NoAnswer, match="longer than"):
        server.endpoint().answer(HELLO, place="")


@pytest.mark.parametrize("status", [400, 401, 403, 404])
def test_a_refusal_ends_the_command_with_the_servers_words_but_without_the_key(status: int) -> None:
    body = json.dumps({"error": {"message": f"Incorrect API key provided: {KEY}\x1b[2J"}}).encode()
    with serve(Step(status=status, body=body)) as server, pytest.raises(UsageError) as told:
        server.endpoint().answer(HELLO, place="")
    assert f"HTTP {status}" in str(told.value)
    assert "Incorrect API key provided: [key]" in str(told.value)
    assert KEY not in str(told.value)
    assert "\x1b" not in str(told.value)
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_no_redirection_is_followed_so_no_other_server_is_told_the_key(status: int) -> None:
    with (
        serve(Step()) as other,
        serve(Step(status=status, headers={"Location": other.url})) as server,
        pytest.raises(UsageError, match="redirects"),
    ):
        server.endpoint().answer(HELLO, place="")
    assert other.requests == []


def test_a_key_at_the_end_of_what_is_shown_is_not_cut_but_struck_out() -> None:
    body = json.dumps({"error": {"message": "x" * 190 + KEY}}).encode()
    with serve(Step(status=400, body=body)) as server, pytest.raises(UsageError) as told:
        server.endpoint().answer(HELLO, place="")
    assert KEY[:5] not in str(told.value)


def test_no_proxy_reads_what_is_meant_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(Step()) as proxy, serve(Step()) as server:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy.url)
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        server.endpoint().answer(HELLO, place="")
    assert len(server.requests) == 1
    assert proxy.requests == []


def test_nothing_shows_the_key() -> None:
    assert KEY not in repr(Endpoint(url="https://host/v1", name="m", key=KEY))
    assert KEY not in str(Endpoint(url="https://host/v1", name="m", key=KEY))
    odd = "sk-\r\nHost: elsewhere"
    with pytest.raises(UsageError, match="is no key") as told:
        Endpoint(url="https://host/v1", name="m", key=odd)
    assert "elsewhere" not in str(told.value)


@pytest.mark.parametrize(
    "url", ["http://example.org/v1", "http://10.0.0.1/v1", "http://localhost.example.org"]
)
def test_a_key_is_not_sent_without_encryption_except_to_this_machine(url: str) -> None:
    with pytest.raises(UsageError, match="without encryption"):
        Endpoint(url=url, name="m", key=KEY)
    assert Endpoint(url=url, name="m").key is None
    assert Endpoint(url="http://[::1]:8000/v1", name="m", key=KEY).key == KEY


@pytest.mark.parametrize(
    "url",
    [
        "",
        "host/v1",
        "file:///etc/passwd",
        "https://",
        "https://user:word@host/v1",
        "https://host/v1?key=1",
        "http://[",
        "https://host:port",
    ],
)
def test_a_url_that_is_none_or_holds_secrets_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(UsageError, match="OPENAI_BASE_URL") as told:
        Endpoint(url=url, name="m")
    assert "word" not in str(told.value)


def test_the_environment_names_server_model_and_key() -> None:
    environment = {
        "OPENAI_BASE_URL": " https://host/v1 ",
        "OPENAI_API_KEY": f"{KEY}\n",
        "OPENAI_MODEL": "m",
    }

    def made(environment: dict[str, str], name: str | None = None) -> Endpoint:
        return Endpoint.from_environment(
            environment, name=name, timeout_s=1, attempts=1, temperature=None
        )

    endpoint = made(environment)
    assert (endpoint.url, endpoint.name, endpoint.key) == ("https://host/v1", "m", KEY)
    assert made(environment, name="n").name == "n"
    for missing in ("OPENAI_BASE_URL", "OPENAI_MODEL"):
        rest = {name: value for name, value in environment.items() if name != missing}
        with pytest.raises(UsageError, match=missing):
            made(rest)
