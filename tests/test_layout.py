"""The house keeps its shape: names that hide nothing, one bootstrap line, manuals that tell the truth."""

import ast
import importlib.util
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from utils import configs

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = sorted(
    path
    for folder in ("generate_data", "training", "testing")
    for path in (ROOT / folder).glob("*.py")
    if path.name != "__init__.py"
)
BOOTSTRAP = "sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: makes utils/ importable"


def test_our_data_folder_does_not_hide_the_library():
    assert not (ROOT / "datasets" / "__init__.py").exists()
    origin = importlib.util.find_spec("datasets").origin
    assert origin and not Path(origin).is_relative_to(ROOT / "datasets")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_script_hides_no_module_and_has_the_bootstrap_line(script):
    assert script.stem not in sys.stdlib_module_names
    assert script.stem not in {"evaluate", "openai", "datasets", "trl", "peft", "torch", "transformers"}
    assert BOOTSTRAP in script.read_text()


@pytest.mark.parametrize("path", sorted((ROOT / "utils").glob("*.py")), ids=lambda path: path.name)
def test_utils_leave_the_path_alone_and_stay_short(path):
    assert "sys.path" not in path.read_text()
    if path.name not in ("params.py", "configs.py"):  # lists of declarations, one per stage, in the place users know
        assert len(path.read_text().splitlines()) <= 300


STAGES = [path for path in SCRIPTS if "__main__" in path.read_text()]  # the others are there to be imported


@pytest.mark.parametrize("script", STAGES, ids=lambda path: path.name)
def test_help_needs_no_torch_and_knows_the_flags_of_its_manual(script):
    code = (
        "import runpy, sys\n"
        f"sys.argv = [{str(script)!r}, '--help']\n"
        "try:\n    runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as end:\n    assert not end.code, end.code\n"
        "heavy = {'torch', 'trl', 'peft', 'sentence_transformers'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    manual = ast.get_docstring(ast.parse(script.read_text()))
    manual_flags = {
        flag
        for line in manual.splitlines()
        if f"{script.parent.name}/{script.name}" in line or "python" not in line
        for flag in re.findall(r"--[a-z_]+", line)
    }
    options = result.stdout.split("options:")[1]
    assert not {flag for flag in manual_flags if flag not in options}


def test_defaults_of_configs_come_from_params():
    """A number written in configs.py is a number in two places."""
    tree = ast.parse((ROOT / "utils" / "configs.py").read_text())
    literals = [
        ast.unparse(call)
        for call in ast.walk(tree)
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "setting"
        if isinstance(call.args[0], ast.Constant) and type(call.args[0].value) in (int, float)
    ]
    assert not literals


def test_every_setting_has_a_help_text():
    for config in (c for c in vars(configs).values() if isinstance(c, type) and c.__name__.endswith("Config")):
        for field in fields(config):
            assert field.metadata.get("help"), f"{config.__name__}.{field.name}"


def test_the_readmes_print_the_tree():
    readme = (ROOT / "README.md").read_text() + (ROOT / "utils" / "README.md").read_text()
    tracked = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=ROOT).stdout.split()
    shown = [p for p in tracked if re.fullmatch(r"(generate_data|training|testing|utils|recipes)/[^_][^/]*", p)]
    missing = [path for path in shown if Path(path).name not in readme]
    assert not missing
