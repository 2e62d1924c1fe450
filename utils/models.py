"""Models and adapters: where they come from and what they are. utils/loading.py loads them.

Everything that can be wrong with a model is found by `resolve`, which imports no torch, before anything is loaded.
"""

import hashlib
import logging
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from utils import embedded, params
from utils.helpers import UserError
from utils.records import RECORD_NAME, file_sha256, read_json, shareable

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelRef:
    """A model that exists and can be loaded: a base, alone or with an adapter on it."""

    name: str  # what the user calls the base
    path: str  # folder, or Hub id
    revision: str | None = None
    adapter: Path | None = None
    record: dict[str, Any] = field(default_factory=dict)  # of the adapter or merged model, if it has one

    @property
    def label(self) -> str:
        """Short name for output files."""
        return (self.adapter or Path(self.name)).name


def resolve(base_model: str | None, adapter_model: str | Path | None = None, revision: str | None = None) -> ModelRef:
    """Finds a base model, and the base of an adapter, and checks them without loading anything.

    `base_model` alone means that model and nothing on it. With neither, the embedded default.

    Raises:
        UserError: no such model, weights that are not safetensors, an adapter for another base, no network.
    """
    if adapter_model is None:
        return _resolve_base(base_model or params.BASE_MODEL, revision)
    adapter = Path(adapter_model)
    settings = _adapter_settings(adapter)
    record = read_json(adapter / RECORD_NAME) if (adapter / RECORD_NAME).is_file() else {}
    trained_on = record.get("model", {})
    name = base_model or trained_on.get("name") or settings.get("base_model_name_or_path")
    if not name:
        raise UserError(f"{adapter} does not say which base it was trained on: add --base_model")
    if trained_on and not base_model:
        base = resolve_recorded(trained_on, adapter)
    else:
        base = _resolve_base(name, revision)
        if trained_on:
            _check_identity(base, trained_on, adapter)
        else:
            _check_shapes(adapter, base)
    return ModelRef(base.name, base.path, base.revision, adapter, record)


def of_folder(given: str, flag: str) -> ModelRef:
    """A model or an adapter by its folder, whichever it is; or a Hub id. Raises UserError as `resolve` does."""
    path = Path(given)
    if not path.exists() and path.parent.is_dir() and path.parent != Path():  # no Hub id, then
        raise UserError(f"{flag} {given}: no such folder: training/train.py and training/merge.py make models")
    return resolve(None, given) if (Path(given) / "adapter_config.json").is_file() else resolve(given)


def latest(base_model: str | None, adapter_model: str | None, revision: str | None = None) -> ModelRef:
    """The model asked for; else the newest result of training (merged, or an adapter), else the embedded base."""
    if base_model or adapter_model:
        return resolve(base_model, adapter_model, revision)
    if params.MERGED_DIR.is_dir():
        merged = resolve(str(params.MERGED_DIR))
        adapter = params.ADAPTER_DIR / "adapter_model.safetensors"
        if adapter.is_file() and file_sha256(adapter) != merged.record.get("adapter_sha256"):
            logger.warning("%s was not made from the present %s: merge again", params.MERGED_DIR, params.ADAPTER_DIR)
        return merged
    return resolve(None, params.ADAPTER_DIR if params.ADAPTER_DIR.is_dir() else None)


def spotter_weights(folder: str) -> Path:
    """The weights of a spotter. Raises UserError where there are none."""
    weights = Path(folder) / "spotter.safetensors"
    if not weights.is_file():
        raise UserError(
            f"--spotter {folder}: no spotter there, and the model was trained to fill what a spotter marks: "
            "python training/train_spotter.py makes one"
        )
    return weights


def resolve_recorded(trained_on: dict[str, Any], folder: Path) -> ModelRef:
    """The base that what lies in `folder` was trained on, from its run record (see `model_record`)."""
    name = trained_on["name"]
    base = _resolve_base(name, trained_on.get("revision"))
    _check_identity(base, trained_on, folder)
    return base


def _check_identity(base: ModelRef, trained_on: dict[str, Any], folder: Path) -> None:
    if trained_on.get("identity") and trained_on["identity"] != identity(base):
        raise UserError(
            f"{folder} was trained on {trained_on['name']}, whose files differ from those of {base.name}: "
            "leave --base_model out, or name the same base"
        )


def _check_shapes(adapter: Path, base: ModelRef) -> None:
    """For an adapter without a run record: do its LoRA weights have the width of a local base?"""
    if not Path(base.path).is_dir():
        return
    width = read_json(Path(base.path) / "config.json").get("hidden_size")
    for name, shape in weight_shapes(adapter).items():
        if name.endswith("q_proj.lora_A.weight") and shape[1] != width:
            raise UserError(f"{adapter} was trained on another base: its width is not the {width} of {base.name}")


def weight_shapes(folder: Path) -> dict[str, list[int]]:
    """Shapes of all weights in a folder, by name, from the headers of the files."""
    from safetensors import safe_open

    shapes = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="numpy") as weights:
            shapes |= {name: weights.get_slice(name).get_shape() for name in weights.keys()}
    return shapes


def _adapter_settings(adapter: Path) -> dict[str, Any]:
    if not adapter.is_dir():
        raise UserError(f"--adapter_model {adapter}: no such folder: python training/train.py makes one")
    if not (adapter / "adapter_config.json").is_file():
        raise UserError(f"--adapter_model {adapter} holds no adapter_config.json: it is not an adapter")
    if not (adapter / "adapter_model.safetensors").is_file():
        raise UserError(f"--adapter_model {adapter} holds no adapter_model.safetensors (pickle weights are not read)")
    _check_weights(adapter / "adapter_model.safetensors")
    return read_json(adapter / "adapter_config.json")


def _resolve_base(name: str, revision: str | None) -> ModelRef:
    if name in params.EMBEDDED_MODELS:
        return ModelRef(name, str(embedded.fetch(name)))
    folder = Path(name)
    if not folder.is_dir() and (params.ROOT / name).is_dir():
        folder = params.ROOT / name  # models/merged and the like, from any folder
    if folder.is_dir():
        _check_model_folder(folder.resolve())
        record = read_json(folder / RECORD_NAME) if (folder / RECORD_NAME).is_file() else {}
        return ModelRef(shareable(str(folder.resolve())), str(folder), record=record)
    known = ", ".join(params.EMBEDDED_MODELS)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or folder.is_absolute() or name.startswith("models/"):
        raise UserError(f"--base_model {name}: no such folder, not a Hub id, and none of {known}")
    return ModelRef(name, name, _hub_commit(name, revision))


def _check_model_folder(folder: Path) -> None:
    if (folder / "adapter_config.json").is_file():
        raise UserError(f"--base_model {folder} is an adapter: give it as --adapter_model")
    if not (folder / "config.json").is_file():
        raise UserError(f"--base_model {folder} is not a model: it holds no config.json")
    if not list(folder.glob("*.safetensors")):
        if list(folder.glob("*.bin")) or list(folder.glob("*.pt")):
            raise UserError(f"--base_model {folder} holds pickle weights, which are not read: save it as safetensors")
        raise UserError(f"--base_model {folder} holds no .safetensors weights")
    if not list(folder.glob("tokenizer*")):
        raise UserError(f"--base_model {folder} holds no tokenizer: save it beside the weights")
    for weights in folder.glob("*.safetensors"):
        _check_weights(weights)


def _check_weights(path: Path) -> None:
    """Reads the header, which also tells whether the file was cut off."""
    from safetensors import SafetensorError, safe_open

    try:
        safe_open(path, framework="numpy")
    except SafetensorError as error:
        raise UserError(f"{path} is damaged ({error}): fetch or train it again") from error


def _hub_commit(name: str, revision: str | None) -> str:
    """Commit of a Hub model. Asks the Hub, or the local cache where there is no network."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        config = hf_hub_download(name, "config.json", revision=revision)
    except GatedRepoError as error:
        raise UserError(
            f"{name} is gated: accept its licence at https://huggingface.co/{name} and set HF_TOKEN"
        ) from error
    except RepositoryNotFoundError as error:
        raise UserError(f"--base_model {name}: no such folder or Hub model (private ones need HF_TOKEN)") from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise UserError(
            f"--base_model {name} is no folder here, not in the local cache, and the Hub is not reached: "
            "check the path, or connect once"
        ) from error
    return Path(config).parent.name  # the cache keeps a snapshot in a folder named by its commit


def identity(ref: ModelRef) -> dict[str, str]:
    """What tells one base from another: the commit of a Hub model, or a hash over a folder's weights.

    Of each weights file the size and the first and last MiB count, so that a 7B model takes milliseconds.
    """
    if ref.revision:
        return {"commit": ref.revision}
    digest = hashlib.sha256()
    for weights in sorted(Path(ref.path).glob("*.safetensors")):
        with open(weights, "rb") as file:
            digest.update(file.read(1 << 20))
            size = file.seek(0, 2)
            file.seek(max(0, size - (1 << 20)))
            digest.update(str(size).encode() + file.read())
    return {"files_sha256": digest.hexdigest()}


def model_record(ref: ModelRef) -> dict[str, Any]:
    """For a run record: enough to load the same model again, and to notice another one, or another adapter on it."""
    record = {"name": ref.name, "revision": ref.revision, "identity": identity(ref)}
    if ref.adapter:
        weights = file_sha256(ref.adapter / "adapter_model.safetensors")
        record |= {"adapter": shareable(str(ref.adapter)), "adapter_sha256": weights}
    return record
