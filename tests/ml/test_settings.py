"""The ML settings: nothing is ignored, nothing secret is shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from warrener.errors import SettingsError
from warrener.ml.payloads import (
    Embed,
    EmbedBatch,
    EmbedContent,
    Summarize,
    SummarizeContent,
    Transcribe,
    TranscribeContent,
)
from warrener.ml.producer import MLProducer
from warrener.ml.settings import MLSettings

SECRET = "s3cr3t-hunter2"
SUMMARIZE = Summarize(share_id="s", content=SummarizeContent(text="x"))
TRANSCRIBE = Transcribe(share_id="s", content=TranscribeContent(media_url="/a.mp3"))
EMBED = Embed(share_id="s", content=EmbedContent(text="x"))


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PREFERRED_LLM_BACKEND", "PREFERRED_STT", "PREFERRED_EMBEDDING_BACKEND", "ML_PRODUCER_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RABBITMQ_URL", f"amqp://ml:{SECRET}@localhost/")


@pytest.fixture
def write(tmp_path: Path):
    def write(text: str) -> Path:
        path = tmp_path / "warrener.toml"
        path.write_text(text)
        return path

    return write


@pytest.mark.parametrize(
    ("variable", "payload"),
    [
        ("PREFERRED_LLM_BACKEND", SUMMARIZE),
        ("PREFERRED_STT", TRANSCRIBE),
        ("PREFERRED_EMBEDDING_BACKEND", EMBED),
        ("PREFERRED_EMBEDDING_BACKEND", EmbedBatch(tasks=[EMBED])),
    ],
)
def test_each_backend_preference_is_obeyed(monkeypatch, variable, payload) -> None:
    """Original mistake: PREFERRED_LLM_BACKEND dead."""
    assert "api" == MLSettings.load().backend_for(payload, None)
    monkeypatch.setenv(variable, "local")
    assert "local" == MLSettings.load().backend_for(payload, None)
    assert "api" == MLSettings.load().backend_for(payload, "api"), "an explicit backend wins"


@pytest.mark.parametrize("variable", ["PREFERRED_LLM_BACKEND", "PREFERRED_STT", "PREFERRED_EMBEDDING_BACKEND"])
@pytest.mark.parametrize("value", ["API", "gpu", "local "])
def test_an_unknown_backend_is_refused_at_start_by_name(monkeypatch, variable, value) -> None:
    """Only api and local are valid."""
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError, match=rf"^\w+ must be 'api' or 'local', not .* \(from {variable}\)$"):
        MLSettings.load()


def test_there_is_no_default_url_and_so_no_default_password(monkeypatch) -> None:
    """Original mistake: a default password in code."""
    monkeypatch.delenv("RABBITMQ_URL")
    with pytest.raises(SettingsError, match="RABBITMQ_URL"):
        MLSettings.load()


def test_the_environment_wins_over_the_file_and_the_file_over_the_defaults(monkeypatch, write) -> None:
    """Precedence: explicit, environment, file, default."""
    path = write(
        '[warrener]\nexchange = "from-file"\nmax_body = 2048\nlog = "json"\n[warrener.producer]\nheartbeat = 7\n'
    )
    monkeypatch.setenv("ML_PRODUCER_EXCHANGE", "from-environment")
    monkeypatch.setenv("ML_PRODUCER_DEAD_LETTER", "true")
    loaded = MLSettings.load(path, log="human")
    assert ("from-environment", 2048, "human", 7.0, True, 25.0) == (
        loaded.exchange, loaded.max_body, loaded.log, loaded.broker.heartbeat, loaded.dead_letter, loaded.request_timeout,
    )  # fmt: skip


def test_the_file_may_name_the_broker_and_the_environment_wins(monkeypatch, write) -> None:
    """The URL is a row of [warrener.producer]; RABBITMQ_URL wins over it."""
    path = write(f'[warrener.producer]\nurl = "amqp://ml:{SECRET}@localhost:5999/"\n')
    assert 5672 == MLSettings.load(path).broker.endpoint.port
    monkeypatch.delenv("RABBITMQ_URL")
    monkeypatch.setenv("ML_PRODUCER_CONFIG", str(path))
    assert 5999 == MLSettings.load().broker.endpoint.port


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[warrener]\nexchnage = 'x'\n", "unknown setting exchnage in [warrener] of "),
        ("[warrener]\nbroker = 'x'\n", "unknown setting broker in [warrener] of "),
        ("[warrener.producer]\nhartbeat = 7\n", "unknown setting hartbeat in [warrener.producer] of "),
        ("[warrener.producer]\nhartbeat = 7\n", "did you mean heartbeat?"),
        ("[warener]\nlog = 'json'\n", "did you mean warrener?"),
        ("log = 'json'\n[warrener]\n", "unknown key or section log at the top of "),
        ("warrener = 7\n", "[warrener] of"),
        ("[warrener.producer]\nheartbeat = [7]\n", "must be text, a number, true or false"),
        ("[warrener]\nproducer = 7\n", "must be a table"),
        (
            "[warrener]\npreferred_stt = 'gpu'\n",
            "preferred_stt must be 'api' or 'local', not 'gpu' (from [warrener] of ",
        ),
        ("[warrener]\nmax_body = '4 MiB'\n", "max_body must be a whole number of bytes, at least 1024"),
        ("[warrener]\ndead_letter = 7\n", "dead_letter must be true or false"),
        ("[warrener]\nexchange = 'amq.topic'\n", "does not start with amq."),
        ("[warrener]\nbind = '3001'\n", "bind must be host:port"),
        ("[warrener]\nbind = 'localhost:70000'\n", "bind must be host:port"),
        ("[warrener]\nlog = 'xml'\n", "log must be 'human' or 'json'"),
        ("[warrener]\nrequest_timeout = 25000\n", "request_timeout must be a number of seconds, from"),
        (f"[warrener.producer]\nurl = 'amqp://ml:{SECRET}@h\n", "is not valid TOML"),
        (f"[warrener.producer]\nurl = 'amqp://ml:{SECRET}/x@h'\n", "holds an '@' behind its host"),
    ],
)
def test_what_the_file_gets_wrong_is_named_and_no_secret_is_shown(monkeypatch, write, text, complaint) -> None:
    """Unknown keys, wrong values and broken TOML end the start with one line."""
    monkeypatch.delenv("RABBITMQ_URL")
    if "url" not in text:
        monkeypatch.setenv("RABBITMQ_URL", "amqp://localhost/")
    with pytest.raises(SettingsError) as caught:
        MLSettings.load(write(text))
    assert complaint in str(caught.value)
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_the_environment_wins_over_a_row_of_the_file(monkeypatch, write) -> None:
    """Also under its older name, and for a switch; nothing is "both set"."""
    path = write("[warrener.producer]\nheartbeat = 20\nbreaker_probes = 3\nrequire_tls = false\n")
    monkeypatch.setenv("RABBITMQ_HEARTBEAT", "30")
    monkeypatch.setenv("WARRENER_BREAKER", "off")
    loaded = MLSettings.load(path)
    assert (30.0, None) == (loaded.broker.heartbeat, loaded.broker.breaker)


def test_the_service_gives_up_as_its_document_says(monkeypatch, write) -> None:
    """Cap 60 s and ten attempts, unless file or environment say otherwise."""
    assert (60.0, 10) == (MLSettings.load().broker.backoff.cap, MLSettings.load().broker.backoff.attempts)
    path = write("[warrener.producer]\nbackoff_attempts = 'forever'\n")
    assert MLSettings.load(path).broker.backoff.attempts is None
    monkeypatch.setenv("WARRENER_BACKOFF_ATTEMPTS", "3")
    assert 3 == MLSettings.load(path).broker.backoff.attempts


@pytest.mark.parametrize("variable", ["ML_PRODUCER_SERVICE_HOST", "ML_PRODUCER_PORT", "ML_PRODUCER_PORT_3001_TCP_ADDR"])
def test_variables_that_kubernetes_makes_are_ignored(monkeypatch, variable) -> None:
    """A Service that is called ml-producer does not end the start."""
    monkeypatch.setenv(variable, "tcp://10.0.0.1:3001")
    assert MLSettings.load() == MLSettings.load()


def test_a_producer_takes_its_options_over_those_of_the_settings(monkeypatch) -> None:
    """A shorter deadline shortens what follows from it; the service's own defaults stay, without a file too."""
    for settings in (None, MLSettings.load(), MLSettings()):
        options = MLProducer(settings, publish_timeout=5).producer.settings
        assert (5.0, 5.0, 10) == (options.publish_timeout, options.confirm_timeout, options.backoff.attempts)


def test_a_missing_file_is_named(tmp_path) -> None:
    """A file that was asked for must be there."""
    with pytest.raises(SettingsError, match=r"absent\.toml is not there"):
        MLSettings.load(tmp_path / "absent.toml")


def test_a_file_that_cannot_be_read_is_named(tmp_path) -> None:
    """A folder in its place is one line, no traceback."""
    with pytest.raises(SettingsError, match=r"cannot be read: Is a directory"):
        MLSettings.load(tmp_path)


def test_an_unknown_variable_is_refused_with_the_name_that_is_meant(monkeypatch) -> None:
    """A misspelt variable does not pass for a default."""
    monkeypatch.setenv("ML_PRODUCER_EXCHNAGE", "x")
    with pytest.raises(SettingsError, match=r"ML_PRODUCER_EXCHNAGE; did you mean ML_PRODUCER_EXCHANGE\?"):
        MLSettings.load()


def test_a_drain_that_outlasts_the_shutdown_is_a_contradiction(monkeypatch) -> None:
    """Both are named."""
    monkeypatch.setenv("WARRENER_DRAIN_TIMEOUT", "60")
    with pytest.raises(SettingsError, match=r"drain_timeout \(60 s\) is longer than shutdown_timeout \(20 s\)"):
        MLSettings.load()


def test_a_body_that_could_never_be_held_is_a_contradiction(monkeypatch) -> None:
    """Both are named."""
    monkeypatch.setenv("ML_PRODUCER_MAX_HELD", "4096")
    with pytest.raises(SettingsError, match=r"max_held \(4096 bytes\) is less than max_body \(4194304 bytes\)"):
        MLSettings.load()


def test_nothing_shows_the_password() -> None:
    """repr and str of the settings are safe to log."""
    settings = MLSettings.load()
    assert SECRET == settings.broker.endpoint.credentials.password
    assert SECRET not in repr(settings) + str(settings)
