"""Settings: one name as flag and variable, wrong values refused, nothing secret shown."""

import json
from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

from app.settings import Settings


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("max_images", "7", 7),
        ("bundle", "/models/one", Path("/models/one")),
        ("request_timeout", "2.5", 2.5),
        ("allow_cpu_fallback", "true", True),
        ("device", "cuda", "cuda"),
        ("log_level", "debug", "debug"),
        ("api_keys", "a,b", (SecretStr("a"), SecretStr("b"))),
    ],
)
def test_a_variable_and_a_flag_of_the_same_name_set_the_same(
    monkeypatch: pytest.MonkeyPatch, name: str, text: str, value: object
) -> None:
    flag = ["--" + name.replace("_", "-"), *([] if text == "true" else [text])]
    assert getattr(Settings(_cli_parse_args=flag), name) == value
    monkeypatch.setenv(f"ALIGNET_{name.upper()}", text)
    assert getattr(Settings(), name) == value


def test_a_flag_wins_over_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGNET_PORT", "1111")
    assert Settings(_cli_parse_args=["--port", "2222"]).port == 2222


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", -1),
        ("port", 65536),
        ("device", "tpu"),
        ("max_batch", -1),
        ("max_images", 0),
        ("max_vectors", 0),
        ("max_triplets", 0),
        ("max_admitted_images", 0),
        ("max_body_bytes", 1),
        ("max_image_pixels", 10**9),
        ("request_timeout", 0),
        ("request_timeout", float("nan")),
        ("body_timeout", 0),
        ("body_timeout", -1),
        ("drain_seconds", -1),
        ("log_level", "loud"),
        ("decode_threads", 65),
        ("surprise", 1),
    ],
)
def test_a_wrong_setting_is_refused(name: str, value: object) -> None:
    with pytest.raises(ValidationError, match=name):
        Settings(**{name: value})


def test_every_setting_says_what_it_does() -> None:
    assert all((field.description or "").endswith((".", ").")) for field in Settings.model_fields.values())


def test_settings_do_not_change_after_the_start() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Settings().max_images = 5


def test_an_empty_variable_means_no_key() -> None:
    assert Settings(api_keys="").api_keys == Settings(api_keys=" ").api_keys == ()


@pytest.mark.parametrize("text", [",", " , ", "schlüssel", "two words", "good,b\x00d"])
def test_keys_that_would_leave_the_service_open_or_never_match_are_refused(text: str) -> None:
    with pytest.raises(ValidationError, match="api_keys"):
        Settings(api_keys=text)


def test_the_limits_are_plain_json_numbers() -> None:
    limits = Settings().limits
    assert json.loads(json.dumps(limits)) == limits
    assert all(getattr(Settings(), name) == value for name, value in limits.items())


def test_the_default_deadline_is_one_that_a_client_may_ask_for() -> None:
    assert Settings().request_timeout <= Settings().max_request_timeout
