"""The language model as judge, over an OpenAI-compatible endpoint on loopback that says what each test wants."""

import hashlib
import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.resources import files
from typing import Any

import pytest

from vita_mctp.errors import ConfigError, EndpointError
from vita_mctp.evaluation.answer_scores import answer_rule

pytest.importorskip("openai")
Asked = list[dict[str, Any]]


@contextmanager
def endpoint(replies: Sequence[str | int]) -> Iterator[tuple[str, Asked]]:
    """Serves a reply to each request in turn; a number is an HTTP status. Yields the judge's name and the requests."""
    asked: Asked = []
    waiting = iter(replies)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(json.loads(self.rfile.read(int(self.headers["content-length"]))) | {"path": self.path})
            reply = next(waiting)
            choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": reply}}
            body = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
            self.send_response(reply if isinstance(reply, int) else 200)
            self.send_header("content-type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, format: str, *args: object) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"llm:http://127.0.0.1:{server.server_port}/v1#some/model", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize(
    ("replies", "correct", "votes"),
    [
        (["Yes", "Yes", "Yes"], True, 3),
        (["No", "no.", "NO"], False, 0),
        (["Yes", "No", " yes \n"], True, 2),
        (["No", "Yes", "No"], False, 1),
    ],
)
def test_most_of_three_votes_decide(replies: list[str], correct: bool, votes: int) -> None:
    with endpoint(replies) as (name, asked):
        verdict = answer_rule(name).judge("Who?", ["Ann"], "It is Ann.")
    assert verdict.correct is correct and verdict.reason == f"{votes} of 3 votes of some/model say Yes"
    assert len(asked) == 3


@pytest.mark.parametrize("reply", ["Yes, because it is.", "maybe", "", "Yes No", "**Yes**", "是"])
def test_any_other_reply_is_a_failure_that_quotes_it(reply: str) -> None:
    with endpoint(["Yes", reply]) as (name, _):
        verdict = answer_rule(name).judge("Who?", ["Ann"], "It is Ann.")
    assert verdict.correct is None and repr(reply) in verdict.reason


def test_a_judge_that_fails_for_good_ends_the_run() -> None:
    with endpoint([401]) as (name, _), pytest.raises(EndpointError, match=r"did not reply.*401.*run again"):
        answer_rule(name).judge("Who?", ["Ann"], "It is Ann.")


def test_a_judge_that_refuses_an_answer_is_a_failure_with_its_reason() -> None:
    with endpoint([400]) as (name, _):
        verdict = answer_rule(name).judge("Who?", ["Ann"], "It is Ann.")
    assert verdict.correct is None and "did not reply" in verdict.reason and "400" in verdict.reason


def test_a_judge_that_is_busy_is_asked_again() -> None:
    with endpoint([503, "Yes", "Yes", "Yes"]) as (name, asked):
        assert answer_rule(name).judge("Who?", ["Ann"], "It is Ann.").correct is True
    assert len(asked) == 4


def test_the_model_reads_all_of_it_and_braces_stay_braces() -> None:
    with endpoint(["Yes"] * 3) as (name, asked):
        answer_rule(name).judge("Who is {x}?", ["Ann", "Annie"], "It is {answer}.")
    request = asked[0]
    assert request["path"] == "/v1/chat/completions" and request["model"] == "some/model"
    assert (request["temperature"], request["top_p"]) == (0.5, 0.95)
    assert [one["seed"] for one in asked] == [0, 1, 2]
    (message,) = request["messages"]
    for text in ("Who is {x}?", "Ann or Annie", "It is {answer}."):
        assert text in message["content"]


def test_the_version_names_the_prompt_and_the_prompt_all_three_texts() -> None:
    prompt = (files("vita_mctp.evaluation") / "prompts" / "answer_judge.txt").read_text(encoding="utf-8")
    digest = hashlib.sha256(prompt.encode()).hexdigest()[:8]
    assert answer_rule("llm:http://127.0.0.1:1/v1#m").version.startswith(f"llm/1 (m, prompt {digest}, 3 votes")
    assert all(field in prompt for field in ("{question}", "{reference}", "{answer}"))


@pytest.mark.parametrize("name", ["llm:", "llm:http://localhost:8000/v1", "llm:localhost:8000#m", "llm:http://a#"])
def test_a_judge_without_address_or_model_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="URL#MODEL"):
        answer_rule(name)
