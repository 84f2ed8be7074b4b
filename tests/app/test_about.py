"""What the service says of itself: models, card, health."""

from collections.abc import Callable
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from app.schemas import Health, ModelCard, ModelList
from app.settings import Settings
from contract.bundle import read_bundle

Serve = Callable[..., TestClient]


def test_models_lists_the_one_served(client: TestClient, toy_bundle: Path) -> None:
    manifest = read_bundle(toy_bundle).manifest
    (model,) = client.get("/models").json()["models"]
    assert model == {
        "name": "toy",
        "description": manifest.description,
        "alignment": manifest.alignment,
        "fingerprint": manifest.spaces["aligned"].fingerprint,
    }


def test_the_card_repeats_what_the_manifest_states(client: TestClient, toy_bundle: Path) -> None:
    stated = read_bundle(toy_bundle).manifest.to_json()
    card = client.get("/models/toy").json()
    same = ["created", "license", "base_model", "training", "precision", "tie_rule", "pixels", "figures", "parity"]
    assert {name: card[name] for name in same} == {name: stated[name] for name in same}
    for name, space in card["spaces"].items():
        assert space.items() - {("fingerprint_normalized", space["fingerprint_normalized"])} <= set(
            stated["spaces"][name].items()
        )
    assert card["providers"] == ["CPUExecutionProvider"]


def test_the_card_shows_the_limits_in_force(serve: Serve) -> None:
    client = serve(max_images=3, max_body_bytes=5000, request_timeout=7)
    limits = client.get("/models/toy").json()["limits"]
    assert (limits["max_images"], limits["max_body_bytes"], limits["request_timeout"]) == (3, 5000, 7)
    assert limits == client.app.state.service.settings.limits | {"max_wait": 1.0}


def test_every_limit_of_the_settings_is_on_the_card(client: TestClient) -> None:
    limiting = {name for name in Settings.model_fields if name.startswith(("max_", "min_")) or "timeout" in name}
    limiting |= {"key_images_per_second", "explain_concurrency"}
    limits = client.get("/models/toy").json()["limits"]
    assert set(limits) == limiting - {"max_batch"}
    assert limits["max_wait"] == 1.0  # what 0 takes on a CPU


@pytest.mark.parametrize("name", ["other", "TOY", "toy%00", "%2e%2e", "x" * 5000])
def test_the_card_of_another_name_is_404(client: TestClient, name: str) -> None:
    assert client.get(f"/models/{name}").status_code == 404


def test_what_about_answers_is_what_the_schemas_declare(client: TestClient) -> None:
    for path, schema in (("/models", ModelList), ("/models/toy", ModelCard), ("/health/live", Health)):
        reply = client.get(path)
        assert schema.model_validate_json(reply.content).model_dump(mode="json") == reply.json()


def test_health_says_live_and_ready(client: TestClient) -> None:
    assert client.get("/health/live").json() == {"status": "live"}
    assert client.get("/health/ready").json() == {"status": "ready"}
