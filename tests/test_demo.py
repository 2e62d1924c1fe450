"""The page of testing/demo.py in a real browser, with the models of a stage; and the same in the terminal."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from utils import params
from utils.cost_model import COST_FILE
from utils.records import read_json, write_json

DEMO, TRAIN = params.ROOT / "testing" / "demo.py", params.ROOT / "training" / "train_cost.py"
SCRIPT = "<script>document.title = 'owned'</script><img src=x onerror=\"document.title = 'owned'\">"


@pytest.fixture(scope="module")
def cost_model(tiny_model, tmp_path_factory):
    """Trained for a single step: whatever it says, the page has to show it."""
    from tests.conftest import run_script

    folder = tmp_path_factory.mktemp("demo")
    rows = [{"prompt": f"say {n}", "safe_response": f"good {n}", "unsafe_response": f"bad {n}"} for n in range(20)]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    settings = ("--max_steps", 1, "--lora_r", 2, "--quantization", "none", "--report_to", "none")
    files = ("--input", folder / "pairs.jsonl", "--output", folder / "cost")
    result = run_script(TRAIN, "--base_model", tiny_model, *files, *settings)
    assert result.returncode == 0, result.stderr
    return folder / "cost"


def test_in_the_terminal(cost_model, tiny_model, script):
    said = "/help\n/prompt say 1\n/score bad 1\n/clear\n/score\n/forget\n\nhello\x1b[2J\n/quit\nnot read\n"
    result = script(DEMO, "--cli", "--base_model", tiny_model, "--cost_model", cost_model, stdin=said)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.replace("> ", "").splitlines()
    assert "/clear             forgets that prompt" in lines and "forgotten" in lines
    assert any("safe: cost" in line and "likely to be unsafe" in line for line in lines)
    assert "write a response first" in lines and "/forget is no command: /help lists them" in lines
    assert "(meaning" in lines[-1] and "; cost " in lines[-1] and "\x1b" not in result.stdout


def test_without_a_cost_model_it_is_said_how_to_make_one(tiny_model, tmp_path, script, monkeypatch):
    result = script(DEMO, "--cli", "--base_model", tiny_model, "--cost_model", tmp_path, stdin="/score x\n")
    assert result.returncode == 2 and "is no cost model: python training/train_cost.py makes one" in result.stderr
    if (params.COST_DIR / COST_FILE).is_file():
        pytest.skip("models/cost is there")
    result = script(DEMO, "--cli", "--base_model", tiny_model, stdin="/score x\nhello\n")
    assert result.returncode == 0 and "is no cost model: python training/train_cost.py makes one" in result.stdout


def test_the_histogram_has_a_needle_at_the_cost(cost_model):
    from utils.demo_parts import cost_html

    page = cost_html(1.0, "<b>unsafe", {"safe": [-1.0, -1.0], "unsafe": [3.0]}, bins=4)
    assert 'x1="240.0"' in page and "&lt;b&gt;unsafe" in page and "<b>unsafe" not in page
    assert page.count("<rect") == 8 and 'height="140.0"' in page and 'height="70.0"' in page


@pytest.fixture(scope="module")
def page(cost_model, tiny_model, tmp_path_factory):
    pytest.importorskip("gradio", reason="the page needs gradio: pip install -r requirements-web.txt")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("log") / "log"
    command = [sys.executable, DEMO, "--base_model", tiny_model, "--cost_model", cost_model, "--port", str(port)]
    command += ["--upload_rows", "5"]
    with open(log, "w") as file, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=file, text=True) as demo:
        assert "the page is at" in demo.stdout.readline(), log.read_text()
        yield f"http://127.0.0.1:{port}"
        demo.terminate()


@pytest.fixture
def shown(browser, page):
    """The page, and a way to wait for what it does."""
    from selenium.webdriver.support.ui import WebDriverWait

    browser.get(page)

    def until(what):
        return WebDriverWait(browser, 60, poll_frequency=0.1).until(what)

    until(lambda b: b.find_elements("css selector", "#text textarea"))
    return browser, until


def write(browser, field, text):
    element = browser.find_element("css selector", f"#{field} textarea, #{field} input")
    element.clear()
    element.send_keys(text)


@pytest.mark.slow
def test_a_text_is_rewritten_and_shown_beside_the_original(shown):
    browser, until = shown
    write(browser, "text", "My neighbour is loud." + SCRIPT)
    browser.find_element("css selector", "#rewrite").click()
    found = until(lambda b: b.find_elements("css selector", "#rewritten #rewriting"))[0]
    assert "My neighbour is loud." + SCRIPT in found.get_attribute("textContent")
    assert browser.title == "Safe-Responsible-LLM" and not found.find_elements("css selector", "img, script")
    gauges = browser.find_element("css selector", "#rewritten .gauges").text
    assert "meaning kept" in gauges and "cost before" in gauges and "cost after" in gauges


@pytest.mark.slow
def test_an_empty_text_is_a_message_and_no_answer(shown):
    browser, until = shown
    browser.find_element("css selector", "#rewrite").click()
    assert until(lambda b: "write a text first" in b.find_element("css selector", "body").text)
    assert not browser.find_elements("css selector", "#rewriting")


@pytest.mark.slow
def test_a_response_is_scored_before_the_costs_that_are_known(shown):
    browser, until = shown
    next(tab for tab in browser.find_elements("css selector", "[role=tab]") if tab.text == "Score").click()
    until(lambda b: b.find_element("css selector", "#response textarea").is_displayed())
    write(browser, "response", "bad 1")
    browser.find_element("css selector", "#score").click()
    said = until(lambda b: b.find_elements("css selector", "#scored #verdict"))[0].text
    assert "safe: cost" in said and browser.find_elements("css selector", "#scored #needle")
    assert "known to be unsafe" in browser.find_element("css selector", "#scored svg").get_attribute("textContent")


def upload(browser, until, path: Path):
    for heading in browser.find_elements("css selector", "button"):
        if heading.text.startswith("A file of texts"):
            heading.click()
    field = until(lambda b: b.find_elements("css selector", "#file input[type=file]"))[0]
    field.send_keys(str(path))
    until(lambda b: path.stem in b.find_element("css selector", "#file").text)
    browser.find_element("css selector", "#rewrite_file").click()


@pytest.mark.slow
def test_a_file_comes_back_rewritten(shown, tmp_path):
    browser, until = shown
    pd.DataFrame({"biased_text": ['one, "quoted"', SCRIPT], "status": ["kept", "kept"]}).to_csv(tmp_path / "a.csv")
    upload(browser, until, tmp_path / "a.csv")
    until(lambda b: "2 rows are rewritten" in b.find_element("css selector", "#done textarea").get_property("value"))
    link = until(lambda b: b.find_elements("css selector", "#download a"))[0].get_attribute("href")
    found = pd.read_csv(link, keep_default_na=False)
    assert list(found["biased_text"]) == ['one, "quoted"', SCRIPT] and list(found["input_status"]) == ["kept"] * 2
    assert {"generated_text", "status", "meaning", "facts", "cost_before", "cost_after"} <= set(found)
    assert browser.title == "Safe-Responsible-LLM"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('biased_text\n"never closed\n', "cannot be read"),
        (f'"{SCRIPT.replace(chr(34), chr(39))}"\nx\n', "no column biased_text"),
        ("biased_text\n" + "x\n" * 6, "6 rows, at most 5"),
        ("biased_text,b\n ,1\n", "text in row 1"),
    ],
)
def test_a_broken_file_is_a_message(shown, tmp_path, content, message):
    browser, until = shown
    (tmp_path / "broken.csv").write_text(content)
    upload(browser, until, tmp_path / "broken.csv")
    assert until(lambda b: message in b.find_element("css selector", "body").text)
    assert browser.title == "Safe-Responsible-LLM"


@pytest.mark.slow
def test_nothing_is_fetched_from_elsewhere(browser, page):
    browser.get_log("performance")
    browser.get(page)
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert asked and all(url.startswith((page, "data:", "blob:")) for url in asked), asked


def test_a_port_that_is_taken_is_said_in_one_line(cost_model, tiny_model, script):
    pytest.importorskip("gradio")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = script(DEMO, "--base_model", tiny_model, "--cost_model", cost_model, "--port", port)
    assert result.returncode == 2 and f"--port {port} cannot be listened at" in result.stderr.splitlines()[-1]


def test_a_model_without_calibration_still_has_a_verdict(cost_model, tmp_path):
    import shutil

    from utils.configs import DemoConfig
    from utils.demo_parts import Demo, verdict

    folder = tmp_path / "cost"
    shutil.copytree(cost_model, folder)
    about = read_json(folder / COST_FILE)
    about.pop("calibration_bare")
    write_json(folder / COST_FILE, about)
    cost, chance = Demo(DemoConfig(base_model="smollm2", cost_model=str(folder))).score("", "bad")
    assert chance is None and verdict(1.5, None, 0.0) == "unsafe: cost +1.50"
