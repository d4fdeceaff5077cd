"""The service does what its OpenAPI document says, whatever it is sent."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from openapi_spec_validator import OpenAPIV31SpecValidator
from schemathesis import GenerationMode, checks

from loadtests.rig.service import Service
from pythonricing.web import openapi, routes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from loadtests.rig.redis import RedisServer

TOKEN = "s3cret"
COUNTERS = {"default": 100, "halted": 0, "open": 10**6}
ADMIN: dict[str, Any] = {"Authorization": f"Bearer {TOKEN}"}

checks.load_all_checks()
#: Valid requests are refused where a counter is halted or unknown.
EXCLUDED: list[Any] = checks.CHECKS.get_by_names(["positive_data_acceptance"])

#: What no valid request gets; 414 is not among Schemathesis' own.
REJECTED = ["400", "401", "403", "404", "405", "413", "414", "422", "429", "5xx"]
CONFIG = schemathesis.Config.from_dict({"checks": {"negative_data_rejection": {"expected-statuses": REJECTED}}})


@pytest.fixture(scope="module", params=["granian", "uvicorn"])
def running(
    request: pytest.FixtureRequest, valkey: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    valkey.command("FLUSHALL")
    folder = tmp_path_factory.mktemp("openapi")
    each = Service(folder, valkey.url, command=request.param, admin_token=TOKEN, halt_cache=0, log_level="WARNING")
    each.start("/readyz")
    yield each
    each.stop()


def described(authorized: bool) -> Any:
    """The document, for someone who has the token without what it says of that."""
    document = openapi.document(routes.OPERATIONS)
    for path in ("/counters", "/counters/{name}"):
        for operation in document["paths"][path].values():
            if authorized and "security" in operation:
                del operation["security"]
    return schemathesis.openapi.from_dict(document, config=CONFIG)


DESCRIBED = {authorized: described(authorized) for authorized in (True, False)}
#: /watch/events is left out: an endless answer; tests/web/test_watch.py is about it.
OPERATIONS = [
    (path, method, authorized)
    for path, operations in openapi.document(routes.OPERATIONS)["paths"].items()
    for method in operations
    for authorized in ([True, False] if method in ("put", "delete") or path == "/counters" else [True])
    if method != "parameters" and path != "/watch/events"
]


def test_the_document_is_openapi_3_1() -> None:
    document = openapi.document(routes.OPERATIONS)
    assert document["openapi"].startswith("3.1.")
    assert not list(OpenAPIV31SpecValidator(document).iter_errors())
    for operation in (each for path in document["paths"].values() for each in path.values() if "responses" in each):
        assert operation["summary"]
        assert {"414", "500"} <= set(operation["responses"])
        assert operation["security"] in ([], [{"admin": []}])
    assert document["servers"] == [{"url": "/", "description": "The service that tells this document"}]
    for schema in document["components"]["schemas"].values():
        for of in schema["properties"].values():
            assert of.get("type") != "integer" or of["format"] == "int64"


def test_the_document_without_the_page_and_without_claims_by_get_is_openapi_too() -> None:
    document = openapi.document(routes.operations(watch=False, get_claims=False))
    assert not list(OpenAPIV31SpecValidator(document).iter_errors())
    assert document["paths"]["/"]["get"]["operationId"] == "readDefault"
    assert not [path for path in document["paths"] if "watch" in path]


def test_a_problem_with_the_document_would_be_found() -> None:
    document = openapi.document(routes.OPERATIONS)
    document["paths"]["/"]["get"]["responses"] = {"200": {"content": {}}}
    assert list(OpenAPIV31SpecValidator(document).iter_errors())


def counts(running: Service) -> dict[str, Any]:
    """The count of the counters that the generated requests are sent to."""
    return {name: running.get(f"/counters/{name}")[1].get("count") for name in COUNTERS}


@pytest.mark.parametrize(("path", "method", "authorized"), OPERATIONS)
@pytest.mark.parametrize("mode", list(GenerationMode))
def test_every_answer_is_as_documented_and_a_rejected_request_changes_no_count(
    path: str, method: str, authorized: bool, mode: GenerationMode, running: Service
) -> None:
    strategy = DESCRIBED[authorized][path][method].as_strategy(generation_mode=mode)
    existing = st.sampled_from(["", *COUNTERS] if mode is GenerationMode.POSITIVE else [""])

    @given(case=strategy, name=existing)
    @settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    def run(case: schemathesis.Case[Any], name: str) -> None:
        for each, limit in COUNTERS.items():
            running.get(f"/counters/{each}", "PUT", json.dumps({"limit": limit}).encode(), **ADMIN)
        if case.path_parameters and name:
            case.path_parameters["name"] = name
        before = counts(running)
        response = case.call(base_url=running.url, headers=ADMIN if authorized else None)
        if response.status_code >= 400 or (method in ("get", "head") and path != "/"):
            assert counts(running) == before
        case.validate_response(response, excluded_checks=EXCLUDED)

    try:
        run()
    except Unsatisfiable:
        assert mode is GenerationMode.NEGATIVE  # there is nothing to get wrong


def test_every_error_says_whether_it_may_be_tried_again() -> None:
    for status, description, _ in openapi.ANSWERS.values():
        assert status < 400 or (openapi.AGAIN in description) != (openapi.NOT_AGAIN in description), description


@pytest.mark.parametrize(
    ("path", "method", "means"),
    [
        ("/", "get", "Never an admission"),
        ("/counters/{name}", "post", "Never an admission"),
        ("/counters/{name}", "get", "The store didn't answer in time"),
        ("/counters/{name}", "put", "will not any more"),
        ("/counters/{name}", "delete", "will not any more"),
    ],
)
def test_a_503_says_what_it_means_for_the_method(path: str, method: str, means: str) -> None:
    document = openapi.document(routes.OPERATIONS)
    answer = document["paths"][path][method]["responses"]["503"]["$ref"].rpartition("/")[2]
    assert means in document["components"]["responses"][answer]["description"]


def test_a_key_repeats_an_answer_and_not_a_claim(running: Service) -> None:
    """What the description says of Idempotency-Key."""
    running.get("/counters/open", "PUT", b'{"limit": 1000000}', **ADMIN)
    first = running.get("/counters/open?n=3", "POST", Idempotency_Key="documented")
    assert running.get("/counters/open?n=3", "POST", Idempotency_Key="documented") == first


def test_a_refusal_may_say_when_to_come_again() -> None:
    headers = openapi.document(routes.OPERATIONS)["components"]["responses"]["429"]["headers"]
    assert headers["Retry-After"]["required"] is False
    assert headers["RateLimit"]["required"] is True


def test_it_says_what_a_key_does_and_how_large_n_may_be() -> None:
    key: dict[str, Any] = openapi.IDEMPOTENCY_KEY
    number: dict[str, Any] = openapi.NUMBER
    said = key["description"]
    assert "While the first request is in progress, a second one with its key waits" in said
    assert "In quotes or without, it is the same key" in said
    assert number["schema"]["format"] == "int64"
