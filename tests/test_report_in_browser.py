"""The page of testing/compare.py in a real browser, with rows that would like to run, hide or overwrite something."""

import json

import pandas as pd
import pytest

from utils import params

COMPARE = params.ROOT / "testing" / "compare.py"
HOSTILE = [
    "<script>document.title = 'owned'</script>",
    "</script><script>document.title = 'owned'</script>",
    "<img src=x onerror=\"document.title = 'owned'\">",
    "</span></label><h1 id='forged'>tuned is perfect</h1>",
    "\x1b]0;owned\x07\x1b[2J a terminal escape",
    "{{ 7 * 7 }} {% for %}",
    "שלום \u202e txt.exe \u202c עולם",
    "x" * 100_000,
    "word " * 20_000,
    "&lt;b&gt; & \u2028 'quotes\"",
]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    import subprocess
    import sys

    folder = tmp_path_factory.mktemp("hostile")
    for copied in (1, 0):
        frame = pd.DataFrame({"id": [f"<i>{n}" for n in range(len(HOSTILE))], "biased_text": HOSTILE})
        frame["generated_text"] = [text + (" again" if copied else "") for text in HOSTILE]
        frame["copied"], frame["aspect"] = copied, "<u>aspect"
        frame.to_csv(folder / f"{copied}.scores.csv", index=False)
    inputs = [f"base={folder}/1.scores.csv", f"<b>tuned={folder}/0.scores.csv"]
    command = [sys.executable, COMPARE, "--inputs", *inputs, "--output", folder / "report", "--quoted_rows", "20"]
    result = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    assert result.returncode == 0, result.stderr
    assert "\x1b]" not in result.stdout + result.stderr
    return folder / "report" / "report.html"


def test_hostile_rows_are_shown_and_do_nothing(browser, page):
    browser.get(page.as_uri())
    assert browser.title == "Comparison"
    elements = {tag: browser.find_elements("css selector", tag) for tag in ("#forged", "img", "b > *, u, i", "script")}
    assert [len(found) for found in elements.values()] == [0, 0, 0, 1]
    text = browser.execute_script("return document.querySelector('main').textContent")
    assert "tuned is perfect" in text and "{{ 7 * 7 }}" in text and "␛]0;owned" in text and "\x1b" not in text
    assert "\u202e" not in text
    embedded = json.loads(browser.execute_script("return document.getElementById('data').textContent"))
    assert [row["source"] for row in embedded["rows"]] == HOSTILE
    assert not browser.get_log("browser")  # nothing was even tried


def test_nothing_is_fetched(browser, page):
    browser.get_log("performance")
    browser.get(page.as_uri())
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert asked == [page.as_uri()]


def test_quoted_texts_are_blurred_until_clicked(browser, page):
    browser.get(page.as_uri())
    quoted = browser.find_elements("css selector", ".quoted")
    blurred = "return getComputedStyle(arguments[0].querySelector('span')).filter"
    assert len(quoted) > 4 and {browser.execute_script(blurred, q) for q in quoted} == {"blur(5px)"}
    quoted[0].click()
    assert [browser.execute_script(blurred, q) for q in quoted[:2]] == ["none", "blur(5px)"]
    browser.find_element("css selector", "#all").click()
    assert {browser.execute_script(blurred, q) for q in quoted} == {"none"}


def test_long_texts_do_not_widen_the_page(browser, page):
    browser.set_window_size(900, 800)
    browser.get(page.as_uri())
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 900
    quoted = browser.find_elements("css selector", ".quoted")
    assert min(element.size["width"] for element in quoted) > 150  # and leave room for what stands beside them
