"""Any URL, environment and settings file: settings, or one `SettingsError` in one line that shows no secret."""

from __future__ import annotations

import tempfile
from pathlib import Path

from warrener import Settings, SettingsError
from warrener.ml import MLSettings

#: Stands for the password wherever the bytes have a P.
SECRET = "hunter2-hunter2"
#: A file in memory where there is one.
_FILE = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None)) / "warrener.toml"  # noqa: S108


def _parts(data: bytes) -> tuple[str, dict[str, str], str]:
    """A URL, variables by NUL, and behind two NULs the text of a file."""
    front, _, file = data.decode("utf-8", "replace").partition("\x00\x00")
    url, *variables = front.replace("P", SECRET).split("\x00")
    named = (text.partition("=") for text in variables)
    return url, {name: value for name, _, value in named if name}, file.replace("P", SECRET)


def _is_only_the_password(url: str, environ: dict[str, str]) -> bool:
    """Whether the secret stands in the URL once, as its password, and nowhere else."""
    authority = url.partition("://")[2].partition("/")[0]
    password = authority.rpartition("@")[0].partition(":")[2]
    return (url + "".join(environ.values()) + "".join(environ)).count(SECRET) == password.count(SECRET) == 1


def check(data: bytes) -> None:
    """Resolve what the bytes say, in code and as a service's file."""
    url, environ, file = _parts(data)
    try:
        settings = Settings.resolve(url, environ=environ)
    except SettingsError as error:
        shown = str(error)
        assert shown.isprintable(), "the error is no line of printable characters"
    else:
        shown = repr(settings)
        assert Settings.resolve(settings) == settings
    assert SECRET not in shown or not _is_only_the_password(url, environ), "the password is shown"
    if file:
        _FILE.write_text(file, encoding="utf-8")
        try:
            loaded = MLSettings.load(_FILE, environ={"RABBITMQ_URL": "amqp://localhost/"})
        except SettingsError as error:
            assert str(error).isprintable()
        else:
            assert isinstance(loaded, MLSettings)
