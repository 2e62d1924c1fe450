"""Files that appear whole or not at all, progress that survives a kill, and the record of a run."""

import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from utils.disk import alone, disk_errors
from utils.helpers import UserError
from utils.params import ROOT

RECORD_NAME = "run.json"
_LIBRARIES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "accelerate", "datasets", "openai", "pandas")


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Gives a path beside `path` to write to; it is synced to disk and renamed to `path` when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        yield partial
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_folder(
    path: Path, overwrite: bool = False, resume: bool = False, once_there_is_room: str = "run it again"
) -> Iterator[Path]:
    """Gives an empty folder beside `path`; it is renamed to `path` when the block ends well.

    A folder left by a killed run is deleted first, as it never had the final name; or with `resume` it is given as it
    is. With `overwrite`, what stands at `path` is moved aside, and goes only once the new folder has its name.

    Raises:
        UserError: something stands at `path`, another process writes there, or the disk is full;
            `once_there_is_room` says what to do then.
    """
    partial, old = unfinished(path), path.with_name(path.name + ".old")
    if old.exists() and not path.exists():  # killed between the two renames
        os.replace(old, path)
    check_output_folder(path, overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(old, ignore_errors=True)
    partial.mkdir(exist_ok=True)
    with alone(partial), disk_errors(partial, once_there_is_room):
        for leftover in () if resume else list(partial.iterdir()):
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        yield partial
        for file in partial.rglob("*"):
            if file.is_file():
                with open(file, "rb") as handle:
                    os.fsync(handle.fileno())
    if path.exists():
        os.replace(path, old)
    os.replace(partial, path)
    shutil.rmtree(old, ignore_errors=True)


def unfinished(path: Path) -> Path:
    """Where an output folder is made, until it is complete."""
    return path.with_name(path.name + ".partial")


def check_output_folder(path: Path, overwrite: bool, inputs: Iterable[Path] = ()) -> None:
    """Refuses to write over a folder that holds something, before any work is done.

    With `overwrite` the folder is replaced as a whole, so it must be what a stage has written (it has a run record),
    and hold no input.
    """
    if not path.name:
        raise UserError(f"--output {path}: name a folder")
    if path.exists() and not path.is_dir():
        raise UserError(f"--output {path} is a file: name a folder")
    if not path.is_dir() or not any(path.iterdir()):
        return
    if not overwrite:
        raise UserError(f"--output {path} is not empty: name another folder, or add --overwrite")
    if not (path / RECORD_NAME).is_file():
        raise UserError(f"--output {path} was not written by this script, and would be deleted: name another folder")
    for given in inputs:
        if given.resolve().is_relative_to(path.resolve()):
            raise UserError(f"--output {path} holds the input {given}, and would be deleted: name another folder")


def check_output_file(path: Path, inputs: list[str | Path], overwrite: bool = False, hint: str = "") -> None:
    """Refuses to write over an input, and over an earlier output unless told to; before any work is done.

    Args:
        hint: what `--overwrite` would do, where that is more than to replace the file.
    """
    for given in inputs:
        if path.resolve() == Path(given).resolve():
            raise UserError(f"--output {path} is an input: name another file")
    if path.exists() and not overwrite:
        raise UserError(f"--output {path} is already there: name another file, or add --overwrite{hint}")


def write_json(path: Path, value: Any) -> None:
    with whole_file(path) as partial:
        partial.write_text(json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from error


def changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What is another value now, in words."""
    return [
        f"{name} was {before.get(name)!r}, is {value!r}" for name, value in now.items() if before.get(name) != value
    ]


class Progress:
    """Finished rows of an unfinished output, one JSON line each, in `<output>.progress.jsonl`.

    A killed run loses at most the line it was writing. The first line fingerprints what shapes the answers, so that
    a run with other settings does not continue with the wrong rows.
    """

    def __init__(self, output: Path, fingerprint: dict[str, Any], overwrite: bool = False):
        """Reads what an earlier run finished.

        Raises:
            UserError: `output` is already complete, or was begun with other settings.
        """
        self.path = output.with_name(output.name + ".progress.jsonl")
        self.done: dict[str, dict] = {}
        if overwrite:
            self.path.unlink(missing_ok=True)
        elif output.exists():
            self.path.unlink(missing_ok=True)  # killed when all was done
            check_output_file(output, [])
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.fingerprint = json.loads(json.dumps(fingerprint, default=str))
        lines = self._read() if self.path.exists() else []
        if len(lines) < 2:  # nothing was finished, so nothing binds this run
            self.path.unlink(missing_ok=True)
            return
        begun = lines[0]
        if changed := changes(begun, self.fingerprint):
            raise UserError(f"{self.path} was begun with other settings ({', '.join(changed)}): add --overwrite")
        self.done = {line["id"]: line for line in lines[1:]}

    def _read(self) -> list[dict]:
        """The complete lines; a last line that was cut by a kill is removed from the file."""
        raw = self.path.read_bytes()
        lines, kept = [], 0
        for line in raw.splitlines(keepends=True):
            if not line.endswith(b"\n"):
                break
            try:
                lines.append(json.loads(line))
            except ValueError:
                break
            kept += len(line)
        if kept < len(raw):
            with open(self.path, "r+b") as file:
                file.truncate(kept)
        return lines

    def _append(self, line: dict) -> None:
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def add(self, row_id: str, **values: Any) -> None:
        """Keeps the result of one row."""
        if not self.path.exists():
            self._append(self.fingerprint)
        self.done[row_id] = {"id": row_id, **values}
        self._append(self.done[row_id])

    def finish(self) -> None:
        """The output has its final name: the progress file is no longer needed."""
        self.path.unlink(missing_ok=True)


def file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def start_record(config: Any, inputs: list[Path]) -> dict[str, Any]:
    """Everything known about a run before it starts: settings, command, code, libraries, data."""
    return {
        "command": [Path(sys.argv[0]).name, *map(shareable, sys.argv[1:])],
        "config": {k: shareable(v) for k, v in asdict(config).items()},
        "git_commit": _git_commit(),
        "python": platform.python_version(),
        "libraries": {name: _version(name) for name in _LIBRARIES},
        "machine": {"platform": platform.platform(), "cpus": os.cpu_count(), "gpus": _gpus()},
        "inputs": {shareable(str(path.resolve())): file_sha256(path) for path in inputs if path.is_file()},
        "started": _now(),
    }


def finish_record(record: dict[str, Any], path: Path, **results: Any) -> None:
    """Adds what came out and writes the record: `path` is an output folder, or an output file to write beside."""
    record |= {"finished": _now(), **results}
    write_json(record_path(path), record)


def record_path(path: Path) -> Path:
    """`<folder>/run.json`, or `<file>.run.json`."""
    return path / RECORD_NAME if path.is_dir() else path.with_name(path.name + ".run.json")


def shareable(value: Any) -> Any:
    """Paths relative to the repo where they lie in it: a record is meant to be shared, a home folder is not."""
    if isinstance(value, list):
        return [shareable(item) for item in value]
    return value.replace(f"{ROOT}/", "") if isinstance(value, str) else value


def _gpus() -> list[str]:
    """Names of the CUDA devices; none are looked for where torch was not needed."""
    torch = sys.modules.get("torch")
    return [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())] if torch else []


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    """Commit of the checkout, with "+changes" where the tree differs from it; None outside a checkout."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", ROOT, *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
