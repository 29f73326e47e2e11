"""Whatever the OpenAPI page allows, and what it forbids, gets an answer that is no fault of the server."""

from __future__ import annotations

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import Case
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import response_schema_conformance

import tiny_models as tm
from asyncthink import ForkJoinSampler
from asyncthink.serve.settings import Limits, Settings
from scripted import PROMPTS
from served import Served, served

QUIET = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.function_scoped_fixture]


@pytest.fixture(scope="module")
def server():
    limits = Limits(max_tokens=64, default_max_tokens=4, seconds=20)
    model, tok = tm.organizer()
    sampler = ForkJoinSampler(model, tok, prompts=PROMPTS, num_pages=512)
    with served(sampler, Settings("tiny", limits=limits)) as running:
        yield running


def check_all(server: Served, examples: int, *, fixed: bool) -> None:
    """So many requests of every route; 501 is an answer that some routes give by design."""
    schema = schemathesis.openapi.from_url(server.url + "/openapi.json")
    operations = [result.ok() for result in schema.get_all_operations()]
    assert len(operations) > 10
    for operation in operations:

        @settings(max_examples=examples, deadline=None, derandomize=fixed, database=None, suppress_health_check=QUIET)
        @given(case=operation.as_strategy())
        def check(case: Case) -> None:
            response = case.call(timeout=30)
            if response.status_code != 501:
                case.validate_response(response, checks=[not_a_server_error, response_schema_conformance])

        check()


def test_no_request_is_a_fault_of_the_server(server: Served) -> None:
    check_all(server, 6, fixed=True)


@pytest.mark.slow
def test_no_request_of_many_is_a_fault_of_the_server(server: Served) -> None:
    check_all(server, 300, fixed=False)
