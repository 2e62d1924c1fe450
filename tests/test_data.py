"""Text is read as text, and a broken file ends with one line."""

import json

import pandas as pd
import pytest

from utils import params
from utils.data import make_room, read_pairs, read_table, with_ids, write_table
from utils.helpers import UserError

AWKWARD = [
    "nan",
    "NA",
    "",
    "null",
    "1.0",
    "007",
    'says "no"',
    "two\nlines",
    "a,b;c\td",
    " padded ",
    "żółć 🙂",
    "\ufeffmark",
]


def test_awkward_cells_survive_a_round_trip(tmp_path):
    frame = pd.DataFrame({"biased_text": AWKWARD, "other": AWKWARD[::-1]})
    write_table(frame, tmp_path / "a.csv")
    once = read_table(tmp_path / "a.csv")
    write_table(once, tmp_path / "b.csv")
    assert read_table(tmp_path / "b.csv").equals(once)
    assert list(once["biased_text"]) == AWKWARD


def test_byte_order_mark_tabs_and_windows_line_ends(tmp_path):
    (tmp_path / "a.csv").write_bytes('\ufeffid,text\r\n1,"x\r\ny"\r\n'.encode())
    assert list(read_table(tmp_path / "a.csv").columns) == ["id", "text"]
    (tmp_path / "a.tsv").write_text("id\ttext\n1\ta, b\n")
    assert read_table(tmp_path / "a.tsv")["text"][0] == "a, b"


def test_json_and_jsonl_keep_lists_as_json(tmp_path):
    rows = [{"text": "a", "biased_words": ["x"]}, {"text": "b", "n": None}]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for name in ("a.json", "a.jsonl"):
        frame = read_table(tmp_path / name)
        assert list(frame["biased_words"]) == ['["x"]', ""] and list(frame["n"]) == ["", ""]


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.csv", b"", "has no rows"),
        ("a.csv", b"id,text\n", "has no rows"),
        ("a.csv", "text\ncaf\xe9\n".encode("latin-1"), "not UTF-8"),
        ("a.csv", b"a,b\n1,2,3\n", "row 1 has 3 cells"),
        ("a.csv", b"a,b\n1\n", "row 1 has 1 cells"),
        ("a.csv", b"a,a\n1,2\n", "same name"),
        ("a.csv", b'a\n"open\n', "cannot be read"),
        ("a.csv", b'text\n"' + b"x" * 100_000 + b'"\n', "100,000 characters"),
        ("a.json", b"{}", "list of objects"),
        ("a.jsonl", b'{"a": 1}\n{"a"', "cannot be read"),
        ("a.xlsx", b"PK", "unknown format"),
    ],
)
def test_a_broken_file_says_what_is_wrong(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        read_table(tmp_path / name)
    assert "\n" not in str(error.value)


def test_a_missing_file_names_the_script_that_makes_it():
    with pytest.raises(UserError, match="testing/infer.py makes it"):
        read_table(params.RESULTS_DIR / "nothing.csv")


def test_pairs_from_every_known_format(tmp_path):
    (tmp_path / "annotated.csv").write_text(
        "biased_text,debiased_text,status\nbad,good,ok\nfine,fine,neutral\nlost,,unparsable\nodd,text,refused\n"
    )
    rows = read_pairs(tmp_path / "annotated.csv", "biased_text", "debiased_text")
    assert [(r["prompt"], r["completion"], r["templated"]) for r in rows] == [
        ("bad", "good", True),
        ("fine", "fine", True),
    ]
    (tmp_path / "alpaca.json").write_text(json.dumps([{"instruction": "Add", "input": "1 1", "output": "2"}]))
    assert read_pairs(tmp_path / "alpaca.json", "x", "y")[0]["prompt"] == "Add\n\n1 1"
    (tmp_path / "pc.jsonl").write_text('{"prompt": "p", "completion": "c"}\n')
    assert read_pairs(tmp_path / "pc.jsonl", "x", "y")[0]["templated"] is False
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="--input_column"):
        read_pairs(tmp_path / "other.csv", "x", "y")


def test_ids_are_stable_and_unique():
    frame = with_ids(pd.DataFrame({"text": ["same", "same", "other"]}), "text")
    assert frame["id"].is_unique
    assert list(with_ids(pd.DataFrame({"id": ["a", "a", "a-1"], "t": ["", "", ""]}), "t")["id"]) == [
        "a",
        "a-1",
        "a-1-1",
    ]
    assert list(make_room(frame.assign(status="x"), ["status"]).columns) == ["id", "text", "input_status"]
    assert frame["id"][0] == with_ids(pd.DataFrame({"text": ["same"]}), "text")["id"][0]


def test_a_broken_line_a_folder_and_another_separator_are_named(tmp_path):
    lines = tmp_path / "rows.jsonl"
    lines.write_text('{"a": "b"}\n\n{"a": }\n')
    with pytest.raises(UserError, match="line 3 is not JSON"):
        read_table(lines)
    with pytest.raises(UserError, match="is a folder"):
        read_table(tmp_path)
    (tmp_path / "wide.csv").write_bytes("text\nä".encode("utf-16"))
    with pytest.raises(UserError, match="iconv -f utf-16 -t utf-8"):
        read_table(tmp_path / "wide.csv")
    (tmp_path / "semi.csv").write_text("biased_text;debiased_text\na;b\n")
    with pytest.raises(UserError, match="separated by ';': save it with commas"):
        read_pairs(tmp_path / "semi.csv", "biased_text", "debiased_text")
