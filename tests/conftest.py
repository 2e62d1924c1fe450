"""Shared by all tests: no network, a tiny model made in memory, and scripts run as a user runs them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
GUARD = str(Path(__file__).parent / "no_network")

sys.path.insert(0, GUARD)
import sitecustomize  # noqa: E402, F401  (already imported by Python where PYTHONPATH names it)

from tests.fault_server import Faults, FaultServer  # noqa: E402
from tests.tiny import make_tiny_model  # noqa: E402

os.environ["PYTHONPATH"] = GUARD + os.pathsep + os.environ.get("PYTHONPATH", "")
os.environ["HF_HUB_OFFLINE"] = "1"
if "PYTEST_XDIST_WORKER" in os.environ:  # tests run side by side: threads that wait for a core spin on it
    os.environ.setdefault("OMP_NUM_THREADS", "1")
for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPEN_AI_KEY", "OPEN_AI_TOKEN"):
    os.environ.pop(name, None)


def pytest_collection_modifyitems(items):
    """The one long test first: the other process does the short ones meanwhile."""
    items.sort(key=lambda item: "smoke" not in item.keywords)


def run_script(*arguments, env=None, stdin=None, cwd=ROOT) -> subprocess.CompletedProcess:
    """Runs `python script --flags` in a process of its own."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        input=stdin,
        cwd=cwd,
        env=os.environ | (env or {}),
        timeout=600,
    )


@pytest.fixture
def script():
    return run_script


@pytest.fixture
def server():
    """An OpenAI-compatible server on this machine that misbehaves on demand."""
    with FaultServer(Faults()) as server:
        yield server


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def other_tiny_model(tmp_path_factory) -> Path:
    """Another width, so that an adapter for `tiny_model` cannot fit."""
    return make_tiny_model(tmp_path_factory.mktemp("models") / "other", hidden=128)


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium, with JavaScript on: what a page could do, it would do."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("no chromium and chromedriver: apt-get install chromium chromium-driver")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with webdriver.Chrome(options=options, service=webdriver.ChromeService(driver)) as chrome:
        yield chrome


@pytest.fixture
def pairs_csv(tmp_path) -> Path:
    """Twelve pairs of one word each: enough to train a tiny model on."""
    lines = ["biased_text,debiased_text"] + [f"bad thing {i},thing {i}" for i in range(12)]
    path = tmp_path / "pairs.csv"
    path.write_text("\n".join(lines) + "\n")
    return path
