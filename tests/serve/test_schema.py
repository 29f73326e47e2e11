"""Whatever the OpenAPI page allows, and what it forbids, gets an answer that is no fault of the server."""

from __future__ import annotations

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis import Case
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import response_schema_conformance

from asyncthink.serve.settings import Limits, Settings
from scripted import sampler
from served import Served, served

QUIET = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.function_scoped_fixture]


@pytest.fixture(scope="module")
def server():
    limits = Limits(max_tokens=64, default_max_tokens=4, seconds=20)
    with served(sampler(["q" + "x" * 90], num_pages=512), Settings("tiny", limits=limits)) as running:
        yield running


@pytest.fixture(scope="module")
def document(server: Served):
    return schemathesis.openapi.from_url(server.url + "/openapi.json")


schema = schemathesis.pytest.from_fixture("document")


def check(case: Case) -> None:
    """No route is expected to answer 500 and more, but those that say 501."""
    response = case.call(timeout=30)
    if response.status_code != 501:
        case.validate_response(response, checks=[not_a_server_error, response_schema_conformance])


@schema.parametrize()
@settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=QUIET)
def test_no_request_is_a_fault_of_the_server(case: Case) -> None:
    check(case)


@pytest.mark.slow
@schema.parametrize()
@settings(max_examples=300, deadline=None, suppress_health_check=QUIET)
def test_no_request_of_many_is_a_fault_of_the_server(case: Case) -> None:
    check(case)
