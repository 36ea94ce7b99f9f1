"""The HTTP engine against a real socket that misbehaves in every way that was seen in the wild."""

import asyncio
import json
import socket
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pytest_httpserver import HTTPServer
from werkzeug import Request as WebRequest
from werkzeug import Response

from nlrl.engine import http_faults
from nlrl.engine.base import Completion, Constraint, Message, Request, Sampling
from nlrl.engine.check import check_engine
from nlrl.engine.http import HttpEngine
from nlrl.engine.http_pace import Pace
from nlrl.engine.http_server import HttpSettings
from nlrl.errors import ConfigError, ContextLengthError, EngineError, UnknownNameError

KEY = "sk-canary-0123456789"
Handler = Callable[[WebRequest], Response]


@pytest.fixture(autouse=True)
def no_key_and_no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NLRL_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(http_faults, "_guessed", lambda state: 0.001)


@pytest.fixture(scope="module")
def running() -> Iterator[HTTPServer]:
    with HTTPServer(threaded=True) as server:
        yield server


@pytest.fixture
def server(running: HTTPServer) -> HTTPServer:
    running.clear()
    return running


def reply(text: str = "fine", **changes: Any) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop", **changes}
    return {"id": "1", "choices": [choice], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}


def answer(content: Any, status: int = 200, **headers: str) -> Response:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    return Response(body, status, {"Content-Type": "application/json", **headers})


def script(server: HTTPServer, *responses: Response | Handler, owner: str = "someone") -> list[WebRequest]:
    """Serve the responses one after the other, the last one for ever; returns the list of requests as it grows."""
    seen: list[WebRequest] = []

    def handle(request: WebRequest) -> Response:
        seen.append(request)
        request.get_data()
        chosen = responses[min(len(seen), len(responses)) - 1]
        return chosen if isinstance(chosen, Response) else chosen(request)

    cards = {"object": "list", "data": [{"id": "tiny", "object": "model", "owned_by": owner}]}
    server.expect_request("/v1/models").respond_with_json(cards)
    server.expect_request("/v1/chat/completions").respond_with_handler(handle)
    return seen


def ask(server: HTTPServer, *requests: Request, **settings: Any) -> list[Completion]:
    async def go() -> list[Completion]:
        engine = HttpEngine(server.url_for("/"), settings=HttpSettings(**settings))
        try:
            return await engine.generate(requests or [question()])
        finally:
            await engine.close()

    return asyncio.run(go())


def question(text: str = "Where?", constraint: Constraint | None = None, **sampling: Any) -> Request:
    return Request((Message("system", "You walk."), Message("user", text)), Sampling(**sampling), constraint)


def test_an_answer_and_what_was_sent(server: HTTPServer) -> None:
    seen = script(server, answer(reply("north")))
    [got] = ask(server, question(temperature=0.5, top_p=0.9, max_tokens=7, seed=3))
    assert got == Completion("north", (), (), "stop", None, 3, 2)
    assert json.loads(seen[0].get_data()) == {
        "model": "tiny",
        "messages": [{"role": "system", "content": "You walk."}, {"role": "user", "content": "Where?"}],
        "temperature": 0.5,
        "top_p": 0.9,
        "max_tokens": 7,
        "seed": 3,
    }


@pytest.mark.parametrize(
    "bad",
    [
        answer({"error": {"message": "slow down"}}, 429),
        answer({"error": {"message": "oops"}}, 500),
        answer(b"bad gateway", 502),
        answer({}, 408),
        answer({}, 409),
        answer(b"<html>Welcome</html>"),
        answer(b""),
        answer(b'{"choices": [{"mess'),
        answer({"id": "1"}),
        answer({"choices": None}),
        answer({"choices": []}),
        answer({"choices": [{"message": {"content": 5}, "finish_reason": "stop"}]}),
        answer({"choices": [{"message": {"content": "x"}}]}),
        answer([1, 2]),
        answer(b"[" * 100_000),
    ],
    ids=lambda r: f"{r.status_code}-{r.get_data()[:20]!r}",
)
def test_passing_faults_are_asked_again(server: HTTPServer, bad: Response) -> None:
    seen = script(server, bad, answer(reply("at last")))
    assert ask(server)[0].text == "at last"
    assert len(seen) == 2


@pytest.mark.parametrize("status", [400, 422])
def test_a_refused_request_is_not_repeated_and_is_the_error_of_that_request_alone(
    server: HTTPServer, status: int
) -> None:
    def handle(request: WebRequest) -> Response:
        refused = b"bad one" in request.get_data()
        return answer({"error": {"message": "no such field"}}, status) if refused else answer(reply())

    seen = script(server, handle)
    bad, good = ask(server, question("bad one"), question("good one"))
    assert (bad.finish_reason, bad.error) == ("error", f"The server answered {status}: no such field.")
    assert good.text == "fine"
    assert len(seen) == 2


@pytest.mark.parametrize(("status", "says"), [(401, "refuses the key"), (403, "refuses model"), (404, "refuses model")])
def test_what_no_request_can_get_around_ends_the_run(server: HTTPServer, status: int, says: str) -> None:
    seen = script(server, answer({"error": {"message": "no"}}, status))
    with pytest.raises(EngineError, match=says):
        ask(server)
    assert len(seen) == 1


def test_attempts_are_bounded_and_the_failure_is_typed(server: HTTPServer) -> None:
    seen = script(server, answer({"error": {"message": "broken"}}, 503))
    [got] = ask(server, attempts=3)
    assert (got.finish_reason, got.error) == ("error", "The server answered 503: broken.")
    assert len(seen) == 3


def test_retry_after_is_honoured(server: HTTPServer) -> None:
    script(server, answer({}, 429, **{"Retry-After": "1"}), answer(reply()))
    began = time.monotonic()
    assert ask(server)[0].text == "fine"
    assert 1.0 <= time.monotonic() - began < 3.0


@pytest.mark.parametrize("header", ["-5", "nan", "inf", "soon", "Wed, 21 Oct 2015 07:28:00 GMT"])
def test_a_senseless_retry_after_is_ignored(server: HTTPServer, header: str) -> None:
    seen = script(server, answer({}, 429, **{"Retry-After": header}), answer(reply()))
    assert ask(server)[0].text == "fine"
    assert len(seen) == 2


def test_a_server_that_asks_for_hours_is_not_waited_for(server: HTTPServer) -> None:
    seen = script(server, answer({}, 429, **{"Retry-After": "7200"}), answer(reply()))
    assert ask(server)[0].finish_reason == "error"
    assert len(seen) == 1


@pytest.mark.parametrize(("reason", "finish"), [("length", "length"), ("content_filter", "error")])
def test_the_reason_a_reply_ended_is_kept(server: HTTPServer, reason: str, finish: str) -> None:
    script(server, answer(reply("half a", finish_reason=reason)))
    [got] = ask(server)
    assert got.finish_reason == finish
    assert (got.error is not None) == (finish == "error")


def test_order_is_kept_under_concurrency_and_the_limit_holds(server: HTTPServer) -> None:
    flying, most = [], []

    def handle(request: WebRequest) -> Response:
        flying.append(1)
        most.append(len(flying))
        text = json.loads(request.get_data())["messages"][-1]["content"]
        time.sleep(0.05 if int(text) % 3 == 0 else 0.01)
        flying.pop()
        return answer(reply(text))

    script(server, handle)
    got = ask(server, *(question(str(i)) for i in range(24)), concurrency=4)
    assert [completion.text for completion in got] == [str(i) for i in range(24)]
    assert 2 <= max(most) <= 4


def test_vllm_gets_its_constraints_and_gives_token_ids(server: HTTPServer) -> None:
    body = {**reply("up", token_ids=[5, 6]), "prompt_token_ids": [1, 2, 3]}
    seen = script(server, answer(body), owner="vllm")
    forms = (Constraint("choice", ("up", "down")), Constraint("regex", "u.*"), Constraint("json", '{"type":"string"}'))
    got = ask(server, *(question(constraint=form) for form in forms), concurrency=1)
    assert (got[0].token_ids, got[0].prompt_token_ids) == ((5, 6), (1, 2, 3))
    sent = [json.loads(request.get_data()) for request in seen]
    assert all(one["return_token_ids"] for one in sent)
    assert [one["structured_outputs"] for one in sent] == [
        {"choice": ["up", "down"]},
        {"regex": "u.*"},
        {"json": '{"type":"string"}', "disable_any_whitespace": True},
    ]


def test_other_servers_get_json_schemas_and_ignored_constraints_are_counted(server: HTTPServer) -> None:
    seen = script(server, answer(reply("I would go up")))

    async def go() -> tuple[str, ...]:
        engine = HttpEngine(server.url_for("/"), settings=HttpSettings(1))
        forms = (Constraint("choice", ("up", "down")), Constraint("json", '{"type":"string"}'))
        await engine.generate([question(constraint=form) for form in forms])
        await engine.close()
        return engine.describe().notes

    notes = asyncio.run(go())
    choice, schema = (json.loads(request.get_data()) for request in seen)
    assert "structured_outputs" not in choice
    assert schema["response_format"]["json_schema"]["schema"] == {"type": "string"}
    assert any(note.endswith("they were asked under: 1.") for note in notes)


def test_log_probabilities_are_asked_for_and_read(server: HTTPServer) -> None:
    drawn = {"content": [{"token": "a", "logprob": -0.5}, {"token": "b", "logprob": -1.25}]}
    seen = script(server, answer(reply("ab", logprobs=drawn)))
    assert ask(server, question(logprobs=True))[0].logprobs == (-0.5, -1.25)
    assert json.loads(seen[0].get_data())["logprobs"] is True


@pytest.mark.parametrize("url", ["http://h/v1?key=hunter2", "http://hunter2@h/v1"])
def test_a_key_in_a_url_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(ConfigError, match="NLRL_API_KEY") as caught:
        HttpEngine(url)
    assert "hunter2" not in str(caught.value)


def test_a_prompt_that_is_too_long_ends_the_run_in_the_servers_words(server: HTTPServer) -> None:
    words = "This model's maximum context length is 64 tokens. You asked for 99."
    script(server, answer({"error": {"message": words}}, 400))
    with pytest.raises(ContextLengthError, match="64 tokens"):
        ask(server)


def test_check_engine_accepts_a_server_that_obeys(server: HTTPServer) -> None:
    def handle(request: WebRequest) -> Response:
        body = json.loads(request.get_data())
        form = body.get("structured_outputs", {})
        text = form.get("choice", ["a story"])[0]
        text = "1 yes" if "regex" in form else '{"sure":true}' if "json" in form else text
        if body["max_tokens"] == 1:
            return answer({**reply("a", finish_reason="length"), "usage": {"completion_tokens": 1}})
        return answer(reply(text))

    script(server, handle, owner="vllm")

    async def go() -> None:
        await check_engine(HttpEngine(server.url_for("/")))

    asyncio.run(go())


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_an_unreachable_server_is_one_sentence_within_seconds() -> None:
    began = time.monotonic()
    with pytest.raises(EngineError, match=r"No server answers at http://127\.0\.0\.1:\d+/v1; start one"):
        HttpEngine(f"http://127.0.0.1:{free_port()}")
    assert time.monotonic() - began < 6


def test_a_server_that_goes_away_ends_the_run() -> None:
    with HTTPServer() as server:
        script(server, answer(reply()))
        engine = HttpEngine(server.url_for("/"), settings=HttpSettings(attempts=2, outage_s=0.6))

    async def go() -> None:
        with pytest.raises(EngineError, match=r"No server could be reached at .* resume the run"):
            await engine.generate([question(), question()])
        await engine.close()
        await engine.close()

    asyncio.run(go())


@pytest.mark.parametrize(
    ("response", "says"),
    [
        (answer(b"<html>It works!</html>"), "is no OpenAI-compatible server"),
        (answer({"data": "many"}), "is no OpenAI-compatible server"),
        (answer({"data": []}), "lists no models"),
        (answer({}, 404), "lists no models"),
        (answer({}, 401), "asks for a key"),
        (answer({}, 503), "is not ready"),
    ],
)
def test_start_up_faults_are_one_sentence(server: HTTPServer, response: Response, says: str) -> None:
    server.expect_request("/v1/models").respond_with_response(response)
    with pytest.raises(EngineError, match=says):
        HttpEngine(server.url_for("/"))


def test_the_model_is_the_named_one_or_the_first(server: HTTPServer) -> None:
    script(server, answer(reply()), owner="vllm")
    assert HttpEngine(server.url_for("/v1/")).describe().model == "tiny"
    with pytest.raises(UnknownNameError, match="known: tiny"):
        HttpEngine(server.url_for("/"), "tinny")


def test_a_hosted_model_need_not_be_listed_and_reads_the_default_prompts(server: HTTPServer) -> None:
    script(server, answer(reply()))
    engine = HttpEngine(server.url_for("/"), "another")
    assert (engine.describe().model, engine.prompt_set) == ("another", "full")


@pytest.mark.parametrize("url", ["", "localhost:8000", "ftp://x/v1", "http://", "http://[::1", "http://h:99999/v1"])
def test_a_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="base URL cannot be used"):
        HttpEngine(url)


def test_the_key_is_never_shown(server: HTTPServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NLRL_API_KEY", f" {KEY}\n")
    said: list[str] = []

    def echo(request: WebRequest) -> Response:
        return answer({"error": {"message": f"bad header {request.headers['Authorization']}"}}, 400)

    seen = script(server, echo, answer({"error": {"message": KEY}}, 403), answer({}, 401))

    async def go() -> None:
        engine = HttpEngine(server.url_for("/"))
        said.extend((repr(engine), repr(engine.describe()), repr(await engine.generate([question()]))))
        for _ in range(2):
            try:
                await engine.generate([question()])
            except EngineError:
                said.append(traceback.format_exc())
        await engine.close()

    asyncio.run(go())
    assert seen[0].headers["Authorization"] == f"Bearer {KEY}"
    assert len(said) == 5
    assert not any(KEY in text for text in said)


@pytest.mark.parametrize("key", ["sk-a\nb", "sk-ä", "sk a"])
def test_a_key_that_cannot_be_a_header_is_refused_without_showing_it(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(ConfigError, match="OPENAI_API_KEY") as caught:
        HttpEngine("http://127.0.0.1:1/v1")
    assert key not in str(caught.value)


def test_a_server_may_have_a_key_of_its_own(server: HTTPServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NLRL_API_KEY", KEY)
    monkeypatch.setenv("TEACHER_API_KEY", "sk-of-the-teacher")
    seen = script(server, answer({}, 401))
    with pytest.raises(EngineError, match="set TEACHER_API_KEY to a valid one"):
        ask(server, key_variable="TEACHER_API_KEY")
    assert {request.headers["Authorization"] for request in seen} == {"Bearer sk-of-the-teacher"}
    monkeypatch.delenv("TEACHER_API_KEY")
    with pytest.raises(ConfigError, match="variable TEACHER_API_KEY that api_key_env names is not set"):
        HttpEngine(server.url_for(""), settings=HttpSettings(key_variable="TEACHER_API_KEY"))


def test_a_password_in_the_url_is_refused_without_showing_it() -> None:
    with pytest.raises(ConfigError, match="NLRL_API_KEY") as caught:
        HttpEngine("http://me:hunter2@127.0.0.1:1/v1")
    assert "hunter2" not in str(caught.value)


def test_the_pace_falls_once_a_second_and_recovers_by_one_a_round() -> None:
    async def go() -> None:
        pace = Pace(10)
        for _ in range(5):
            pace.slow_down()
        assert pace.allowed == 8
        for _ in range(8):
            pace.speed_up()
        assert pace.allowed == 9
        for _ in range(100):
            pace.speed_up()
        assert pace.allowed == 10

    asyncio.run(go())
