"""Batches end in many ways; what was paid for is kept, and nothing is asked for twice."""

import json

import pytest

from tests.fault_server import Faults, FaultServer
from utils import params
from utils.answers import Answers, Request
from utils.batch import ask_batch, collect_ended
from utils.configs import AskConfig
from utils.endpoint import ask_endpoint
from utils.helpers import UserError
from utils.pricing import Budget, Price

CONFIG = AskConfig(engine="batch", poll=0.001, timeout=5, model="gpt-x")


@pytest.fixture
def server(monkeypatch):
    with FaultServer(Faults()) as server:
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        yield server


@pytest.fixture
def answers(tmp_path):
    return Answers(tmp_path / "out.csv.answers.jsonl", {})


def requests(count, marker="m4rk"):
    for n in range(count):
        messages = [
            {"role": "system", "content": marker},
            {"role": "user", "content": f"{marker}\nuseless {n}\n{marker}"},
        ]
        yield Request("gpt-x", messages, marker=marker)


def ask(answers, count=10, **budget):
    return ask_batch(
        requests(count),
        answers,
        Budget(budget.get("prices", {}), "gpt-x", "batch", budget.get("most"), answers),
        CONFIG,
    )


def sent(server):
    """Texts that were answered, so paid for."""
    return [entry["text"] for entry in server.log if "batch" in entry]


def test_a_batch_is_written_as_the_api_wants_it_and_its_answers_are_kept(server, answers):
    assert ask(answers) == {}
    assert len(answers) == 10 and answers.spent["gpt-x", "batch", "in"] == 10_000
    line = json.loads(server.files["file-1"].splitlines()[0])
    assert line["custom_id"] == next(requests(1)).key and line["url"] == "/v1/chat/completions"
    assert line["body"]["model"] == "gpt-x" and server.batches["batch_1"]["completion_window"] == "24h"
    assert not list(answers.path.parent.glob("*.partial*"))
    assert ask(answers) == {} and len(sent(server)) == 10  # all there: nothing is sent


@pytest.mark.parametrize("end", ["expired", "cancelled"])
def test_what_a_batch_answered_before_it_ended_is_kept_and_only_the_rest_goes_out_again(server, answers, end):
    server.faults.batch_end, server.faults.batch_answers = end, 0.7
    ask(answers)
    assert len(answers) == 10 and len(sent(server)) == 10 == len(set(sent(server)))
    assert len(server.batches) > 1


def test_what_never_gets_an_answer_is_given_up_with_the_reason(server, answers):
    server.faults.batch_end, server.faults.batch_answers = "expired", 0.0
    errors = ask(answers, 2)
    assert len(errors) == 2 and "not executed in time" in list(errors.values())[0]
    assert len(server.batches) == params.BATCH_ROUNDS and not list(answers.path.parent.glob("*.partial*"))


def test_shards_stay_within_the_limits_of_the_api(server, answers, monkeypatch):
    monkeypatch.setattr(params, "BATCH_REQUESTS", 4)
    ask(answers)
    sizes = [
        content.count(b"\n")
        for name, content in server.files.items()
        if b'"custom_id"' in content and b"POST" in content
    ]
    assert sizes == [4, 4, 2]
    monkeypatch.setattr(params, "BATCH_REQUESTS", 1000)
    monkeypatch.setattr(params, "BATCH_BYTES", 1000)
    before = set(server.files)
    ask(answers, 20)
    new = [server.files[name] for name in server.files if name not in before and b"POST" in server.files[name]]
    assert len(new) > 1 and all(len(content) <= 1000 for content in new) and len(answers) == 20


def test_too_much_at_once_is_sent_in_smaller_batches(server, answers):
    create = server.create_batch

    def limited(asked):
        server.faults.batch_end = "failed" if server.files[asked["input_file_id"]].count(b"\n") > 3 else "completed"
        return create(asked)

    server.create_batch = limited
    finish = server.finish_batch

    def by_size(batch):
        server.faults.batch_end = "failed" if server.files[batch["input_file_id"]].count(b"\n") > 3 else "completed"
        finish(batch)

    server.finish_batch = by_size
    ask(answers)
    assert len(answers) == 10 == len(sent(server))


def test_errors_stand_in_the_output_file_too(server, answers):
    """A line whose status is not 200 is no answer, wherever it stands."""
    chat = server.chat

    def sometimes(request, text):
        return (
            (500, {"error": {"message": "tired"}})
            if text == "useless 3" and len(server.batches) < 3
            else chat(request, text)
        )

    server.chat = sometimes
    ask(answers)
    assert len(answers) == 10 and len(server.batches) == 3


def test_a_killed_run_finds_its_batches_again(server, answers):
    server.faults.batch_polls = 10**6
    begin_and_be_killed(answers)
    with pytest.raises(UserError, match="under way"):
        collect_ended(answers, CONFIG)  # another engine would pay again
    server.faults.batch_polls = 1
    again = Answers(answers.path, {})
    assert ask_batch(requests(10, "another"), again, Budget({}, "gpt-x", "batch", None, again), CONFIG) == {}
    assert len(again) == 10 == len(sent(server)) and len(server.batches) == 1


def test_a_kill_between_creating_and_noting_a_batch_does_not_pay_twice(server, answers):
    server.faults.batch_polls = 1
    ask(answers, 3)
    notes = answers.path.with_name("out.csv.batches.jsonl")
    announced = next(line for line in notes.read_text().splitlines() if line)
    notes.write_text(announced + '\n{"event": "crea')
    answers.close()
    answers.path.unlink()
    again = Answers(answers.path, {})
    ask_batch(requests(3), again, Budget({}, "gpt-x", "batch", None, again), CONFIG)
    assert len(again) == 3 and len(server.batches) == 1


def begin_and_be_killed(answers, count=10):
    """A run that is stopped while its batch is under way."""

    def stop(_):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("utils.batch.time.sleep", stop)
        with pytest.raises(KeyboardInterrupt):
            ask(answers, count)
    answers.close()


def test_another_engine_collects_what_has_ended_and_asks_for_the_rest(server, answers):
    server.faults.batch_polls = 10**6
    begin_and_be_killed(answers)
    server.faults.batch_polls, server.faults.batch_end, server.faults.batch_answers = 1, "cancelled", 0.5
    collect_ended(answers, CONFIG)
    assert len(answers) == 5
    live = AskConfig(max_concurrency=2, model="gpt-x")
    ask_endpoint(requests(10), answers, Budget({}, "gpt-x", "live", None, answers), live)
    assert len(answers) == 10
    asked = [entry["text"] for entry in server.log if "text" in entry and "batch" not in entry]
    assert len(asked) == 5 and not set(asked) & set(sent(server))


def test_lines_that_cannot_be_read_are_asked_again_and_the_others_kept(server, answers):
    finish = server.finish_batch

    def spoil(batch):
        finish(batch)
        if len(server.batches) == 1:
            lines = server.files[batch["output_file_id"]].split(b"\n")
            lines[0] = lines[0][:40]
            lines[1] = b'{"response": {"status_code": 200, "body": {}}, "error": "text"}'
            lines[2] = lines[2].replace(b'"error": null', b'"error": "a text"').replace(b"200", b"500")
            server.files[batch["output_file_id"]] = b"\n".join(lines).replace(b"Negative", b"Nega\xe2\x80\xa8tive")

    server.finish_batch = spoil
    assert ask(answers) == {}
    assert len(answers) == 10 and len(server.batches) == 2 and len(sent(server)) == 13
    assert "Nega\u2028tive" in answers.path.read_text()


def test_a_batch_whose_creation_got_no_reply_is_found_by_the_next_run(server, answers):
    api, reset = server.batch_api, []

    def create_and_reset(method, path, headers, body):
        response = api(method, path, headers, body)
        if method == "POST" and path == "/v1/batches" and not reset:
            reset.append(True)
            return "reset"
        return response

    server.batch_api = create_and_reset
    with pytest.raises(UserError, match="cannot be reached: the same command goes on"):
        ask(answers)
    answers.close()
    assert ask(answers) == {}
    assert len(server.batches) == 1 and len(answers) == 10 == len(sent(server))


def test_collecting_twice_counts_once_and_torn_notes_are_passed_over(server, answers):
    ask(answers)
    notes = answers.path.with_name("out.csv.batches.jsonl")
    whole = notes.read_bytes()
    for torn in (b'\n{"event": "collected"', b'\n{"event": "announced", "shard": "x"'):
        notes.write_bytes(whole.split(b'\n{"event": "collected"')[0] + torn)
        answers.close()
        again = Answers(answers.path, {})
        assert ask_batch(requests(12), again, Budget({}, "gpt-x", "batch", None, again), CONFIG) == {}
        again.close()
    answers.close()
    again = Answers(answers.path, {})
    assert len(again) == 12 == len(sent(server)) and again.tokens("in") == 12_000


def test_the_budget_holds_for_batches_at_half_the_price(server, answers):
    prices = {"gpt-x": Price(1.0, 1.0, "2026-01")}
    with pytest.raises(UserError, match="--max_cost"):
        ask(answers, 50, prices=prices, most=0.01)
    assert 0 < len(answers) * 0.0011 / 2 <= 0.01


def test_a_batch_that_fails_as_a_whole_is_one_line(server, answers):
    server.faults.batch_end = "failed"
    create = server.finish_batch

    def broken(batch):
        create(batch)
        batch["errors"]["data"] = [{"code": "model_not_found", "message": "no gpt-x"}]

    server.finish_batch = broken
    with pytest.raises(UserError, match="model_not_found: no gpt-x"):
        ask(answers)


def test_a_server_without_batches_says_so(server, answers):
    server.faults.status = 404
    with pytest.raises(UserError, match="no Batch API"):
        ask(answers)
