"""Settings say what is in force and refuse what they do not understand."""

from pathlib import Path

import pytest
from pydantic import SecretStr

from shared.settings import Settings, SettingsError, load, load_settings, mask_url, variable


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A braid.toml in the folder the tests are started from must not matter."""
    monkeypatch.chdir(tmp_path)


def test_an_option_beats_the_environment_beats_the_file_beats_the_default(tmp_path: Path) -> None:
    file = tmp_path / "some.toml"
    file.write_text("port = 1\nworkers = 2\nmergers = 3\n")
    environ = {"BRAID_CONFIG": str(file), "BRAID_PORT": "10", "BRAID_WORKERS": "20"}
    loaded = load({"port": 100, "edges": None}, environ)
    in_force = loaded.settings
    assert (in_force.port, in_force.workers, in_force.mergers, in_force.edges) == (100, 20, 3, 1)
    keys = ("port", "workers", "mergers", "edges")
    sources = [loaded.sources[key] for key in keys]
    assert sources == ["option", "BRAID_WORKERS", str(file), "default"]
    assert [loaded.is_given(key) for key in keys] == [True, True, True, False]


def test_a_braid_toml_in_the_current_folder_is_read_without_being_named(tmp_path: Path) -> None:
    (tmp_path / "braid.toml").write_text("default_model = 'm'\n")
    assert load_settings(environ={}).default_model == "m"


def test_what_openai_clients_read_is_enough_and_our_own_variable_beats_it() -> None:
    environ = {"OPENAI_BASE_URL": "http://a/v1", "OPENAI_API_KEY": "k"}
    settings = load_settings(environ=environ)
    assert settings.openai_base_url == "http://a/v1"
    assert settings.openai_api_key is not None
    assert settings.openai_api_key.get_secret_value() == "k"
    ours = load_settings(environ={"BRAID_OPENAI_BASE_URL": "http://b/v1", **environ})
    assert ours.openai_base_url == "http://b/v1"


def test_an_empty_variable_counts_as_not_set_because_compose_files_leave_them_empty() -> None:
    assert load_settings(environ={"BRAID_PORT": "", "OPENAI_API_KEY": ""}) == Settings()


def test_a_misspelt_variable_is_refused_with_the_likely_one() -> None:
    with pytest.raises(SettingsError, match=r"BRAID_WORKRS: .* did you mean BRAID_WORKERS\?"):
        load(environ={"BRAID_WORKRS": "2"})


def test_a_misspelt_key_in_the_file_is_refused_with_the_likely_one(tmp_path: Path) -> None:
    (tmp_path / "braid.toml").write_text("retention_seconds = 5\n")
    message = r"retention_seconds in braid\.toml: .* did you mean retention_s\?"
    with pytest.raises(SettingsError, match=message):
        load(environ={})


def test_an_unknown_option_is_refused() -> None:
    with pytest.raises(SettingsError, match="--speed: no such setting"):
        load({"speed": 3}, {})


def test_variables_of_other_programs_are_none_of_our_business() -> None:
    assert load_settings(environ={"PORT": "1", "BRAIDED": "x"}) == Settings()


def test_every_problem_is_named_in_one_go() -> None:
    with pytest.raises(SettingsError) as refused:
        load(environ={"BRAID_PRT": "1", "BRAID_WORKERS": "many", "BRAID_LOG_LEVEL": "loud"})
    lines = str(refused.value).splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "BRAID_PRT",
        "BRAID_WORKERS",
        "BRAID_LOG_LEVEL",
    ]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("port", "65536"),
        ("port", "http"),
        ("workers", "0"),
        ("retention_s", "0.5"),
        ("retention_s", "nan"),
        ("idle_timeout_s", "inf"),
        ("replicas", "2"),
        ("nats_nodes", "2"),
        ("prefix", "two.tokens"),
        ("prefix", "UPPER"),
        ("nats_url", "http://127.0.0.1:4222"),
        ("redis_url", "127.0.0.1:6379"),
        ("postgres_url", "mysql://127.0.0.1/x"),
        ("openai_base_url", "api.example.com/v1"),
        ("service_id", "a b"),
        ("mid_stream", "retry"),
        ("on_disconnect", "stop"),
        ("log_format", "xml"),
    ],
)
def test_a_bad_value_is_refused_by_the_name_of_its_variable(key: str, value: str) -> None:
    with pytest.raises(SettingsError, match=variable(key)):
        load(environ={variable(key): value})


def test_a_bad_option_is_named_as_the_option_that_was_typed() -> None:
    with pytest.raises(SettingsError, match=r"^--workers: 0 is refused"):
        load({"workers": 0}, {})


def test_a_cluster_keeps_everything_three_times_and_spreads_the_log_unless_told_otherwise() -> None:
    alone, cluster = load({}, {}), load({"nats_nodes": "3"}, {})
    shape = [(each.settings.replicas, each.settings.event_shards) for each in (alone, cluster)]
    assert shape == [(1, 1), (3, 6)]
    assert not cluster.is_given("replicas")
    told = load({}, {"BRAID_NATS_NODES": "3", "BRAID_REPLICAS": "1", "BRAID_EVENT_SHARDS": "12"})
    assert (told.settings.replicas, told.settings.event_shards) == (1, 12)
    assert load_settings(environ=cluster.settings.to_environ()) == cluster.settings


def test_a_refused_value_is_not_shown_when_it_may_hold_a_secret() -> None:
    with pytest.raises(SettingsError) as refused:
        load(environ={"BRAID_POSTGRES_URL": "mysql://me:hunter2@db/x"})
    assert "hunter2" not in str(refused.value)
    assert "mysql://me:***@db/x" in str(refused.value)


def test_a_file_that_is_named_must_be_there_and_be_toml(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"nowhere\.toml: cannot be read .*BRAID_CONFIG"):
        load(environ={"BRAID_CONFIG": "nowhere.toml"})
    (tmp_path / "braid.toml").write_text("port: 1")
    with pytest.raises(SettingsError, match=r"braid\.toml: is not TOML"):
        load(environ={})


def test_secrets_show_neither_in_a_repr_nor_in_what_is_printed() -> None:
    settings = load_settings(
        environ={
            "BRAID_REDIS_URL": "redis://:hunter2@r/0",
            "BRAID_NATS_URL": "nats://a:hunter2@one,nats://hunter2@two",
            "BRAID_POSTGRES_URL": "postgresql://db/x?user=me&password=hunter2&sslmode=require",
            "BRAID_OPENAI_API_KEY": "hunter2",
        }
    )
    assert "hunter2" not in repr(settings) + str(settings) + str(settings.masked())
    assert settings.masked()["nats_url"] == "nats://a:***@one,nats://***@two"
    assert settings.masked()["postgres_url"] == (
        "postgresql://db/x?user=me&password=***&sslmode=require"
    )


def test_a_url_that_cannot_be_read_is_masked_as_a_whole() -> None:
    assert mask_url("redis://[half:secret@x") == "***"


def test_a_child_process_gets_exactly_these_settings_from_its_environment() -> None:
    settings = Settings(
        port=9, openai_api_key=SecretStr("k"), providers_file=Path("p.toml"), resend_after_s=0.25
    )
    assert load_settings(environ=settings.to_environ()) == settings


def test_every_key_says_what_it_is_for() -> None:
    undescribed = [key for key, field in Settings.model_fields.items() if not field.description]
    assert undescribed == []
