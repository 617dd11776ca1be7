from __future__ import annotations

from pathlib import Path

import pytest

from bareku import config, settings
from bareku.app import AppSettings
from bareku.errors import BarekuError
from bareku.paths import Root
from bareku.settings import Settings


def load(tmp_path: Path, text: str) -> AppSettings:
    path = tmp_path / "hello.yml"
    path.write_text(text)
    return config.load(path, AppSettings)


def test_empty_file_means_the_defaults(tmp_path: Path) -> None:
    assert load(tmp_path, "# nothing\n") == AppSettings()


def test_unknown_key_names_the_nearest_known_one(tmp_path: Path) -> None:
    with pytest.raises(BarekuError, match="unknown field `formtion`") as caught:
        load(tmp_path, "formtion: {web: 2}\n")
    assert caught.value.hint == "did you mean 'formation'?"


def test_unknown_key_inside_another_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(BarekuError) as caught:
        load(tmp_path, "checks: {timeout: 2}\n")
    assert caught.value.hint == "did you mean 'timeout_s'?"


@pytest.mark.parametrize(
    "text",
    ["formation: {web: -1}", "branch: 3", "- a", "a: [", "branch: !!python/object:os.system x"],
)
def test_bad_document_is_refused_with_the_file_name(tmp_path: Path, text: str) -> None:
    with pytest.raises(BarekuError, match=r"cannot read .*hello\.yml"):
        load(tmp_path, text)


def test_settings_sample_is_read_back_as_written(tmp_path: Path) -> None:
    root = Root(tmp_path)
    written = Settings(http="127.0.0.1:9000", app_ports=(10000, 10500))
    settings.create(root, written)
    assert settings.load(root) == written


def test_folder_without_settings_is_no_bareku(tmp_path: Path) -> None:
    with pytest.raises(BarekuError, match="cannot find a Bareku"):
        settings.load(Root(tmp_path))


@pytest.mark.parametrize("text", ["8080", "localhost:", "h:0", "h:65536", "h:x"])
def test_bad_address_is_refused(text: str) -> None:
    with pytest.raises(BarekuError, match="must be host:port"):
        settings.address(text)


def test_url_leaves_the_default_port_out() -> None:
    assert Settings(http="0.0.0.0:80").url("hello") == "http://hello.localhost/"
    assert Settings().url("hello") == "http://hello.localhost:8080/"
