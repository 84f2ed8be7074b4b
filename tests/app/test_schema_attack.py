"""Requests drawn from the service's own OpenAPI document: no reply is a fault, and each is as the document says.

Few of each route here; `ALIGNET_SCHEMA_EXAMPLES=1000 python -m pytest tests/app/test_schema_attack.py` for more.
"""

import os
from collections.abc import Callable
from typing import Any

import pytest
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance

Serve = Callable[..., TestClient]
EXAMPLES = int(os.environ.get("ALIGNET_SCHEMA_EXAMPLES", "3"))
CHECKS = [not_a_server_error, content_type_conformance, response_schema_conformance]


@pytest.mark.filterwarnings("ignore")  # as in production, where a decoder's warning is no error
def test_requests_of_the_document_are_answered_as_it_says(serve: Serve) -> None:
    client = serve(admin_keys="boss", raise_bugs=False)
    schema = schemathesis.openapi.from_asgi("/openapi.json", client.app)
    faults: dict[str, str] = {}
    asked: set[str] = set()
    for operation in (result.ok() for result in schema.get_all_operations()):

        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            derandomize=True,
            database=None,
            phases=(Phase.generate,),
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy())
        def ask(case: Any) -> None:
            reply = case.call(headers={"Authorization": "Bearer boss"} if case.path.startswith("/admin") else {})
            asked.add(f"{case.method} {case.path}")
            if reply.status_code != 503:
                case.validate_response(reply, checks=CHECKS)

        try:
            ask()
        except Exception as fault:  # the next operation is asked all the same
            faults[operation.label] = "\n".join([str(fault), *map(str, getattr(fault, "exceptions", ()))])
    assert faults == {}, "\n\n".join(f"{label}\n{text}" for label, text in faults.items())
    assert len(asked) >= sum(len(path) for path in client.get("/openapi.json").json()["paths"].values())
