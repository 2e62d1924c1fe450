"""The file of answers: nothing that was written is lost, nothing half-written is believed."""

import json
import os

import pytest

from utils.answers import MARKER, Answer, Answers, Request
from utils.helpers import UserError

SETTINGS = {"model": "m", "temperature": 0.0}


def request(text="a text", **changes):
    messages = [{"role": "system", "content": "guideline m4rk"}, {"role": "user", "content": f"m4rk\n{text}\nm4rk"}]
    given = {"model": "m", "messages": messages, "schema": {"type": "object"}, "marker": "m4rk"}
    return Request(**given | changes)


def answer(text="yes", **changes):
    return Answer(text, "stop", 10, 5, "m", "a.server")._replace(**changes)


def test_the_key_is_made_of_all_that_shapes_the_answer_and_of_nothing_else():
    ours = request()
    other = [
        request("another text"), request(model="n"), request(schema={"type": "array"}), request(schema=None),
        request(temperature=0.5), request(max_tokens=7), request(seed=1),
    ]  # fmt: skip
    assert len({r.key for r in [ours, *other]}) == len(other) + 1
    later = json.loads(json.dumps(ours.messages).replace("m4rk", "n3w"))
    assert Request("m", later, {"type": "object"}, marker="n3w").key == ours.key


def test_answers_are_there_after_reopening_and_counted(tmp_path):
    path = tmp_path / "out.csv.answers.jsonl"
    answers = Answers(path, SETTINGS)
    assert answers.get(request().key) is None and not path.exists()
    answers.add(request("one").key, answer("the m4rk says ä\ud800"), "m4rk")
    answers.add(request("two").key, answer(batch=True))
    answers.close()
    again = Answers(path, SETTINGS)
    assert again.get(request("one").key).text == f"the {MARKER} says ä?"  # free of the marker, and writable
    assert request("two").key in again and request("three").key not in again
    assert again.tokens("in") == 20 and again.spent["m", "batch", "out"] == 5 and again.servers == {"a.server"}


def test_other_settings_are_refused_and_overwrite_keeps_what_was_paid_for(tmp_path):
    path = tmp_path / "a.jsonl"
    answers = Answers(path, SETTINGS)
    answers.add(request().key, answer())
    with pytest.raises(UserError, match="temperature was 0.0, is 0.7"):
        Answers(path, SETTINGS | {"temperature": 0.7})
    answers.close()
    other = Answers(path, SETTINGS | {"temperature": 0.7}, overwrite=True)
    assert request().key in other
    other.add(request(temperature=0.7).key, answer("warm"))
    other.close()
    with pytest.raises(UserError, match="temperature was 0.7, is 0.0"):
        Answers(path, SETTINGS)
    back = Answers(path, SETTINGS, overwrite=True)
    assert back.get(request().key).text == "yes" and len(back) == 2


def test_a_file_cut_at_any_byte_of_its_last_two_records_goes_on(tmp_path):
    path = tmp_path / "a.jsonl"
    answers = Answers(path, SETTINGS)
    for text in ("one", "two", "three", "four ü \n x"):
        answers.add(request(text).key, answer(f"answer to {text}"))
    answers.close()
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    sizes = [len(b"".join(lines[: n + 1])) for n in range(len(lines))]  # the first line holds the settings
    for cut in range(sizes[2], len(whole) + 1):
        path.write_bytes(whole[:cut])
        resumed = Answers(path, SETTINGS)
        kept = sum(size <= cut for size in sizes) - 1
        found = [request(text).key in resumed for text in ("one", "two", "three", "four ü \n x")]
        assert found == [n < kept for n in range(4)], cut
        resumed.add(request("new").key, answer("new"))
        resumed.close()
        after = Answers(path, SETTINGS)
        whole_but_for_its_end = cut + 1 in sizes  # a record that lacked its line end only is whole again now
        assert after.get(request("new").key).text == "new" and len(after) == kept + 1 + whole_but_for_its_end, cut
        after.close()


def test_a_file_that_is_none_of_answers_is_left_alone(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("[1, 2]\n")
    with pytest.raises(UserError, match="no file of answers"):
        Answers(path, SETTINGS)
    assert path.read_text() == "[1, 2]\n"


def test_a_full_disk_is_one_line_and_keeps_what_came_before_and_comes_after(tmp_path, monkeypatch):
    answers = Answers(tmp_path / "a.jsonl", SETTINGS)
    answers.add(request("one").key, answer())
    write, calls = os.write, []

    def full(file, data):
        calls.append(data)
        if len(calls) > 1:
            raise OSError(28, "No space left on device")
        return write(file, data[:20])  # a part of the line fits

    with monkeypatch.context() as patched:
        patched.setattr("os.write", full)
        with pytest.raises(UserError, match="No space left on device; the answers so far are kept"):
            answers.add(request("two").key, answer())
    answers.add(request("three").key, answer("under way meanwhile"))
    answers.close()
    again = Answers(tmp_path / "a.jsonl", SETTINGS)
    assert len(again) == 2 and again.get(request("three").key).text == "under way meanwhile"


def test_a_second_run_on_the_same_file_is_refused_until_the_first_has_ended(tmp_path):
    first = Answers(tmp_path / "a.jsonl", SETTINGS)
    first.add(request("one").key, answer())
    second = Answers(tmp_path / "a.jsonl", SETTINGS)
    with pytest.raises(UserError, match="another run is writing to it"):
        second.add(request("two").key, answer())
    first.close()
    second.add(request("two").key, answer())
