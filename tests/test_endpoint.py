"""The engine against a real HTTP server on this machine that misbehaves as servers do."""

import pytest

from tests.fault_server import Faults, FaultServer
from utils import params
from utils.answers import IN_PROCESS, Answer, Answers, Request
from utils.configs import AskConfig
from utils.endpoint import ask_endpoint
from utils.helpers import UserError
from utils.pace import Pace
from utils.pricing import Budget, Price, find_price, read_prices

KEY = "canary-key-123"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(params, "ASK_WAIT", 0.001)


@pytest.fixture
def ask(monkeypatch, tmp_path, caplog):
    """Starts a server with faults and asks it; returns the server, the answers, the errors."""

    def run(faults, texts, prices=None, most=None, **settings):
        answers = Answers(tmp_path / "a.jsonl", {})
        with FaultServer(faults) as server:
            for name, value in server.env.items():
                monkeypatch.setenv(name, value)
            config = AskConfig(**{"max_concurrency": 8, "timeout": 5} | settings)
            requests = (
                Request("m", [{"role": "system", "content": "s"}, {"role": "user", "content": f"-\n{t}\n-"}])
                for t in texts
            )
            run.server = server
            run.answers = answers
            try:
                errors = ask_endpoint(requests, answers, Budget(prices or {}, "m", "live", most, answers), config)
            except UserError as error:
                assert KEY not in str(error)
                raise
            finally:
                answers.close()
        assert KEY not in caplog.text + str(errors) + (answers.path.read_text() if answers.path.exists() else "")
        return server, answers, errors

    return run


def texts(count):
    return [f"useless row {n}" for n in range(count)]


def test_every_text_is_asked_once_and_its_answer_kept(ask):
    server, answers, errors = ask(Faults(), [*texts(40), *texts(5)])
    assert sorted(server.texts()) == sorted(texts(40)) and len(answers) == 40 and not errors
    assert server.log[0]["auth"] == f"Bearer {KEY}" and answers.servers == {f"127.0.0.1:{server.port}"}


def test_faults_of_the_server_are_tried_again_and_slow_nothing_down(ask, monkeypatch):
    paces = []
    monkeypatch.setattr("utils.endpoint.Pace", lambda most: paces.append(Pace(most)) or paces[-1])
    server, answers, errors = ask(Faults(fail_every=3), texts(60))
    assert len(answers) == 60 and not errors
    assert paces[-1].limit == 8 and paces[-1].refusals == 0
    kinds = {entry["status"] for entry in server.log}
    assert kinds == {200, "500", "503", "reset", "half"}


@pytest.mark.parametrize("form", ["", "s", "ms", "date"])
def test_refusals_for_speed_count_against_no_request(ask, form, monkeypatch):
    monkeypatch.setattr("utils.pace.PAUSE", 0.01)
    server, answers, errors = ask(Faults(refuse_first=7, retry_after=form, wait=0.02), texts(20))
    assert len(answers) == 20 and not errors and server.refused == 7
    assert params.ASK_TRIES < 7  # the first text alone met them all


def test_an_empty_account_ends_the_run_at_once(ask):
    with pytest.raises(UserError, match="no quota left"):
        ask(Faults(quota=True), texts(20))
    assert ask.server.count == 1


@pytest.mark.parametrize(("status", "said"), [(401, "check key"), (403, "check key"), (404, "/v1"), (400, "rejects")])
def test_what_will_never_work_costs_one_request(ask, status, said):
    with pytest.raises(UserError, match=said):
        ask(Faults(status=status), texts(20))
    assert ask.server.count == 1


def test_a_server_that_is_out_of_order_is_left_alone_after_a_while(ask):
    with pytest.raises(UserError, match="out of order, 10 requests in a row failed 6 times each.*500: no"):
        ask(Faults(status=500), texts(50))
    assert ask.server.count <= 6 * (10 + 8)


def test_one_text_that_the_server_cannot_take_leaves_the_others_alone(ask):
    server, answers, errors = ask(Faults(fail_every=6, fail_kinds=["500"]), texts(5))
    assert len(answers) == 5 and not errors  # five texts never reach a sixth request
    server, answers, errors = ask(Faults(fail_every=1, fail_kinds=["500"]), ["a new text"])
    assert list(errors.values()) == ["500: the server is tired"] and len(answers) == 5


@pytest.mark.parametrize("names", [["max_tokens"], ["temperature", "seed"], ["response_format"]])
def test_a_parameter_that_the_server_does_not_take_is_left_out(ask, names):
    server, answers, errors = ask(Faults(rejects=names), texts(10))
    assert len(answers) == 10 and not errors
    sent = server.log[-1]["request"]
    assert not set(names) & set(sent) and ("max_completion_tokens" in sent) == ("max_tokens" in names)
    assert server.count <= 10 + len(names)


def test_a_slow_body_is_waited_for_and_a_too_slow_one_is_tried_again(ask):
    _, answers, errors = ask(Faults(slow_body=0.05), texts(8))
    assert len(answers) == 8 and not errors
    _, answers, errors = ask(Faults(slow_body=5), ["another"], timeout=0.05)
    assert "timed out" in list(errors.values())[0]


def test_a_filtered_prompt_is_an_answer(ask):
    _, answers, errors = ask(Faults(), ["[filter400]"])
    assert len(answers) == 1 and not errors and answers.tokens("in") == 0


def test_the_budget_is_not_overrun_and_the_rest_is_kept(ask):
    price = {"m": Price(1.0, 1.0, "2026-01")}  # an answer of the server costs 1100 tokens: 0.0011 dollars
    with pytest.raises(UserError, match="--max_cost 0.02 is reached"):
        ask(Faults(latency=0.01), texts(60), price, 0.02, max_tokens=200)
    assert 0.01 < len(ask.answers) * 0.0011 <= 0.02


def test_prices_are_found_by_release_and_by_the_users_own_table(tmp_path):
    ours = read_prices(params.PRICE_FILE)
    assert find_price("gpt-4o-mini", ours) == find_price("gpt-4o-mini-2024-07-18", ours) == ours["gpt-4o-mini"]
    assert find_price("gpt-4o-mini-mine", ours) is None
    own = tmp_path / "prices.csv"
    own.write_text("model,input_usd_per_mtok,output_usd_per_mtok,as_of\nmine,2,4,2026-11\n")
    price = read_prices(own)["mine"]
    assert price.cost(1e6, 5e5) == 4.0 and price.cost(1e6, 5e5, batch=True) == 2.0
    own.write_text("model,input_usd_per_mtok,output_usd_per_mtok,as_of\nmine,cheap,4,2026-11\n")
    with pytest.raises(UserError, match="not a number"):
        read_prices(own)
    with pytest.raises(UserError, match="--max_cost needs the price"):
        Budget({}, "m", "live", 1.0, Answers(tmp_path / "a.jsonl", {}))


def test_every_answer_is_priced_by_the_model_that_gave_it(tmp_path):
    answers = Answers(tmp_path / "a.jsonl", {})
    given = [("big", "x.com", False), ("big", "x.com", True), ("small", "x.com", False), ("big", IN_PROCESS, False)]
    for n, (by, server, batch) in enumerate(given):
        answers.add(f"{n:032x}", Answer("", "stop", 10**6, 0, by, server, batch))
    prices = {"big": Price(2.0, 8.0, "2026-01"), "small": Price(0.5, 1.0, "2026-01")}
    assert Budget(prices, "small", "live", None, answers).spent() == 2.0 + 1.0 + 0.5 + 0.0
    assert Budget({}, "other", "live", None, answers).spent() == 0.0  # only what ran in process has a known price


def test_a_server_that_counts_no_tokens_is_taken_at_the_most_there_can_be(ask):
    chat = FaultServer.chat

    def uncounted(self, request, text):
        status, body = chat(self, request, text)
        return status, body | {"usage": {"prompt_tokens": "12", "completion_tokens": None}}

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(FaultServer, "chat", uncounted)
        _, answers, errors = ask(Faults(), ["useless"])
    assert not errors and answers.tokens("in") == len("s-\nuseless\n-") and answers.tokens("out") > 50


@pytest.mark.parametrize("status", [400, 403, 413, 422])
def test_a_single_text_that_is_rejected_ends_nothing(ask, status):
    refuse = FaultServer.refuse

    def selective(self, number, request):
        if "row 7" in request["messages"][1]["content"]:
            return status, {}, b'{"error": {"message": "\'max_tokens\' is too large", "param": "max_tokens"}}'
        return refuse(self, number, request)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(FaultServer, "refuse", selective)
        server, answers, errors = ask(Faults(), texts(20))
    assert len(answers) == 19 and list(errors.values()) == [f"{status}: 'max_tokens' is too large"]
    assert all("max_tokens" in entry["request"] for entry in server.log)


def test_a_wait_that_a_fault_names_is_kept(ask, monkeypatch):
    waits = []
    original = Pace.sleep

    async def sleep(self, seconds):
        waits.append(seconds)
        await original(self, 0.0)

    monkeypatch.setattr(Pace, "sleep", sleep)
    refuse = FaultServer.refuse

    def tired(self, number, request):
        return (503, {"Retry-After": "7"}, b"{}") if number == 1 else refuse(self, number, request)

    monkeypatch.setattr(FaultServer, "refuse", tired)
    _, answers, _ = ask(Faults(), ["useless"])
    assert len(answers) == 1 and max(waits) == 7.0


def test_an_error_of_our_own_waits_for_the_answers_under_way(ask):
    def broken():
        yield from texts(9)
        raise KeyError("of the caller")

    with pytest.raises(KeyError):
        ask(Faults(latency=0.05), broken())
    assert len(ask.answers) == ask.server.count == 9


def test_two_runs_on_one_output_do_not_pay_twice(ask, tmp_path):
    first = Answers(tmp_path / "a.jsonl", {})
    first.add("0" * 32, Answer("", "stop", 1, 1, "m", "s"))
    with pytest.raises(UserError, match="another run is writing to it"):
        ask(Faults(), texts(3))
    assert ask.server.count <= 1
    first.close()


def test_a_key_that_is_repeated_is_hidden_and_a_placeholder_is_no_secret(ask, monkeypatch):
    chat = FaultServer.chat

    def repeats(self, request, text):
        status, body = chat(self, request, text)
        body["choices"][0]["message"]["content"] = f"none of {KEY}"
        return status, body

    monkeypatch.setattr(FaultServer, "chat", repeats)
    _, answers, _ = ask(Faults(), ["useless"])
    assert "none of [key]" in answers.path.read_text()
    monkeypatch.setattr(FaultServer, "env", property(lambda self: {
        "OPENAI_BASE_URL": f"http://127.0.0.1:{self.port}/v1", "OPENAI_API_KEY": "none"}))  # fmt: skip
    monkeypatch.setattr(FaultServer, "chat", chat)
    _, answers, _ = ask(Faults(), ["useless and [mumble]"])
    assert "[key]" not in answers.path.read_text().splitlines()[-1]


@pytest.mark.parametrize("key", ["canary-key-123\n", " canary-key-123\r\n"])
def test_a_key_with_a_line_end_is_used_without_it(ask, monkeypatch, key):
    monkeypatch.setattr(FaultServer, "env", property(lambda self: {
        "OPENAI_BASE_URL": f"http://user:s3cret@127.0.0.1:{self.port}/v1", "OPENAI_API_KEY": key}))  # fmt: skip
    server, answers, errors = ask(Faults(), ["useless"])
    assert len(answers) == 1 and not errors
    assert "s3cret" not in answers.path.read_text() and answers.servers == {f"127.0.0.1:{server.port}"}
