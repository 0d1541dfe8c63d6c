"""Every model has a provider, and a wrong providers file says where it is wrong."""

from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import SecretStr

from shared.errors import BraidError
from shared.providers import Providers
from shared.settings import Settings, SettingsError

Load = Callable[..., Providers]

TWO = """
[[providers]]
name = "house"
base_url = "http://house/v1"
models = ["llama-*", "shared"]

[[providers]]
name = "cloud"
base_url = "https://cloud/v1"
api_key_env = "CLOUD_KEY"
models = ["llama-4", "shared"]
headers = { x-team = "hunter2" }
capabilities = { continue_partial = true }

[routes]
fast = "cloud"
"""


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def load_text(text: str, **environ: str) -> Providers:
        path = tmp_path / "providers.toml"
        path.write_text(text)
        return Providers.load(Settings(providers_file=path), {"CLOUD_KEY": "hunter2", **environ})

    return load_text


def test_a_base_url_is_enough() -> None:
    providers = Providers.load(Settings(openai_base_url="http://x/v1"))
    assert providers.route("anything").base_url == "http://x/v1"
    assert providers.route("anything").api_key is None


def test_a_key_alone_means_openai_itself() -> None:
    provider = Providers.load(Settings(openai_api_key=SecretStr("k"))).route("gpt")
    assert provider.base_url == "https://api.openai.com/v1"
    assert provider.api_key is not None


def test_with_nothing_configured_there_is_none_and_asking_for_one_says_what_to_set() -> None:
    providers = Providers.load(Settings())
    assert not providers
    with pytest.raises(BraidError, match="OPENAI_BASE_URL") as refused:
        providers.route("m")
    assert refused.value.code == "no_provider"


@pytest.mark.parametrize(
    ("model", "provider"),
    [
        ("fast", "cloud"),  # a route
        ("llama-4", "cloud"),  # an exact name beats an earlier glob
        ("llama-3", "house"),  # a glob
        ("shared", "house"),  # the first of two
        ("unheard-of", "house"),  # the default: the first provider
    ],
)
def test_a_model_goes_by_route_then_name_then_glob_then_default(
    load: Load, model: str, provider: str
) -> None:
    assert load(TWO).route(model).name == provider


def test_the_provider_marked_default_gets_what_nobody_claims(load: Load) -> None:
    text = TWO.replace('name = "cloud"', 'name = "cloud"\ndefault = true')
    assert load(text).route("unheard-of").name == "cloud"


def test_keys_come_from_the_named_variable_and_show_in_no_repr(load: Load) -> None:
    provider = load(TWO).route("fast")
    assert provider.api_key is not None
    assert provider.api_key.get_secret_value() == "hunter2"
    assert provider.headers["x-team"].get_secret_value() == "hunter2"
    assert "hunter2" not in repr(provider)
    assert provider.capabilities.continue_partial
    assert not provider.capabilities.relaxed_end


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (("https://cloud/v1", "cloud"), "provider 'cloud': base_url:"),
        (('models = ["llama-4"', 'modles = ["llama-4"'), "provider 'cloud': modles:"),
        (("continue_partial", "continue_all"), "provider 'cloud': capabilities.continue_all:"),
        (('name = "house"', ""), "provider number 1: name:"),
        (('name = "cloud"', 'name = "house"'), "provider 'house': name: is used twice"),
        (("CLOUD_KEY", "OTHER_KEY"), "the variable OTHER_KEY is not set"),
        (("api_key_env", 'api_key = "k"\napi_key_env'), "either api_key or api_key_env"),
        (('fast = "cloud"', 'fast = "cluod"'), "'fast' goes to 'cluod'"),
        (("[routes]", "[rotues]"), "rotues:"),
        (("[[providers]]", "[[provider]]"), "providers: Field required"),
        (("[routes]", "[routes"), "is not TOML"),
    ],
)
def test_a_wrong_file_is_refused_by_file_provider_and_key(
    load: Load, change: tuple[str, str], complaint: str
) -> None:
    with pytest.raises(SettingsError) as refused:
        load(TWO.replace(*change))
    assert complaint in str(refused.value)
    assert "providers.toml" in str(refused.value)


def test_two_defaults_are_refused(load: Load) -> None:
    text = TWO.replace('base_url = "http', 'default = true\nbase_url = "http')
    with pytest.raises(SettingsError, match="only one provider"):
        load(text)


def test_a_refused_file_never_shows_a_key(load: Load) -> None:
    with pytest.raises(SettingsError) as refused:
        load(TWO.replace("api_key_env", 'api_key = ["hunter2"]\napi_key_env'))
    assert "hunter2" not in str(refused.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="BRAID_PROVIDERS_FILE"):
        Providers.load(Settings(providers_file=tmp_path / "none.toml"))
