"""The environment is read once; a bad value is one line that says which, what and what is allowed."""

from __future__ import annotations

import pytest

from pythonricing.settings import MAX_COUNT, Settings, SettingsError, without_password


def test_the_defaults_need_no_environment() -> None:
    settings = Settings.from_environ({"PYTHONRICING_UNKNOWN": "ignored"})
    assert settings == Settings()
    assert (settings.store, settings.limit, settings.store_timeout) == ("redis://127.0.0.1:6379/0", None, 2.0)


def test_every_variable_is_read() -> None:
    settings = Settings.from_environ(
        {
            "PYTHONRICING_STORE": "redis+sentinel://a:26379,b:26379/tickets/1",
            "PYTHONRICING_STORE_REPLICAS": "1",
            "PYTHONRICING_ON_LOSS": "raise",
            "PYTHONRICING_LIMIT": "0",
            "PYTHONRICING_STORE_TIMEOUT": "0.5",
            "PYTHONRICING_HALT_CACHE": "0",
            "PYTHONRICING_REQUEST_LOG": "off",
            "PYTHONRICING_LOG_LEVEL": "WARNING",
            "PYTHONRICING_ADMIN_TOKEN": "s3cret",
        }
    )
    assert settings == Settings(
        store="redis+sentinel://a:26379,b:26379/tickets/1",
        store_replicas=1,
        on_loss="raise",
        limit=0,
        store_timeout=0.5,
        halt_cache=0.0,
        request_log="off",
        log_level="WARNING",
        admin_token="s3cret",
    )


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("LIMIT", "-1"),
        ("LIMIT", "abc"),
        ("LIMIT", ""),
        ("LIMIT", "1.5"),
        ("LIMIT", "null"),
        ("LIMIT", str(MAX_COUNT + 1)),
        ("STORE", "mysql://db/x"),
        ("STORE", "127.0.0.1:6379"),
        ("STORE", "redis+sentry://db/x"),
        ("STORE", "unix+cluster:///run/x"),
        ("STORE_REPLICAS", "-1"),
        ("STORE_REPLICAS", "101"),
        ("STORE_REPLICAS", "all"),
        ("ON_LOSS", "shrug"),
        ("STORE_TIMEOUT", "soon"),
        ("STORE_TIMEOUT", "0"),
        ("STORE_TIMEOUT", "nan"),
        ("STORE_TIMEOUT", "inf"),
        ("HALT_CACHE", "-0.1"),
        ("REQUEST_LOG", "yes"),
        ("LOG_LEVEL", "chatty"),
    ],
)
def test_a_bad_value_is_one_line_with_variable_value_and_what_is_allowed(variable: str, value: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.from_environ({f"PYTHONRICING_{variable}": value})
    line = str(caught.value)
    assert line.startswith(f"PYTHONRICING_{variable}: {value!r} is not ")
    assert "\n" not in line


@pytest.mark.parametrize(
    "store",
    [
        *("redis://db", "rediss://db", "unix:///run/db", "redis+sentinel://db/s", "rediss+sentinel://db/s"),
        *("redis+cluster://db", "rediss+cluster://db"),
    ],
)
def test_replicas_of_any_redis_may_confirm(store: str) -> None:
    environ = {"PYTHONRICING_STORE": store, "PYTHONRICING_STORE_REPLICAS": "2"}
    assert Settings.from_environ(environ).store_replicas == 2


@pytest.mark.parametrize(
    ("store", "reason"),
    [
        ("memory://", "memory:// has no replicas that confirm"),
        ("postgresql://user:s3cret@db/x", "PostgreSQL itself waits for its standbys (synchronous_commit)"),
    ],
)
def test_replicas_where_there_are_none_are_one_clear_line(store: str, reason: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.from_environ({"PYTHONRICING_STORE": store, "PYTHONRICING_STORE_REPLICAS": "1"})
    line = str(caught.value)
    assert line.startswith("PYTHONRICING_STORE_REPLICAS: ")
    assert reason in line
    assert "s3cret" not in line


@pytest.mark.parametrize("token", ["", "two words", "naïve"])
def test_a_bad_token_is_not_shown(token: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.from_environ({"PYTHONRICING_ADMIN_TOKEN": token})
    assert str(caught.value).startswith("PYTHONRICING_ADMIN_TOKEN: its value is not visible ASCII")


def test_passwords_are_not_shown() -> None:
    with pytest.raises(SettingsError, match=r"'mysql://\*\*\*@db/x'"):
        Settings.from_environ({"PYTHONRICING_STORE": "mysql://user:s3cret@db/x"})
    assert without_password("redis://:p@ss@host/0") == "redis://***@host/0"
    assert without_password("unix:///run/valkey.sock") == "unix:///run/valkey.sock"
    assert (
        without_password("rediss+sentinel://me:s3cret@a:1,b:2/s/0?sentinel_username=it&sentinel_password=s3cret")
        == "rediss+sentinel://***@a:1,b:2/s/0?sentinel_username=it&sentinel_password=***"
    )
    assert without_password("redis+cluster://:s3cret@a,b?password=s3cret") == "redis+cluster://***@a,b?password=***"
    shown = "postgresql:///db?user=me&password=***&host=/run&sslpassword=***"
    assert without_password(shown.replace("***", "s3cret")) == shown
