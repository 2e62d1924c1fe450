"""The annotation stage against a real HTTP server on this machine that misbehaves on demand."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from utils.data import read_table
from utils.params import ROOT

SCRIPT = ROOT / "generate_data" / "annotate.py"


def annotation(text, **changes):
    labels = {"bias": "Yes", "toxicity": "Mild", "sentiment": "Negative", "harm": "Low", "target": "nurses"}
    return json.dumps(labels | {"biased_words": ["useless"], "debiased_text": text.replace("useless ", "")} | changes)


class Server:
    """Answers by what stands in the text. Keeps every request it saw."""

    def __init__(self):
        self.requests, self.status = [], 200
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.requests.append(request | {"auth": self.headers["Authorization"]})
                status, body = outer.answer(request)
                payload = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(payload)))
                self.end_headers()
                self.wfile.write(payload)

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    @property
    def env(self):
        return {"OPENAI_BASE_URL": f"http://127.0.0.1:{self.http.server_port}/v1", "OPENAI_API_KEY": "canary-key-123"}

    def answer(self, request):
        if self.status != 200:
            return self.status, {"error": {"message": "no", "code": "invalid_api_key"}}
        turns = request["messages"]
        text = turns[1]["content"].split("\n")[1]
        finish, message = "stop", {"role": "assistant", "content": annotation(text)}
        if "bus is late" in text:
            message["content"] = annotation(text, bias="No", toxicity="No", biased_words=[], debiased_text="changed!")
        elif "mumble" in text:
            message["content"] = "I would say it is biased."
        elif "second try" in text and len(turns) == 2:
            message["content"] = annotation(text, bias="maybe")
        elif "refuse" in text:
            message |= {"content": None, "refusal": "I can't help with that."}
        elif "endless" in text:
            finish, message["content"] = "length", '{"bias": "Ye'
        return 200, {
            "id": "1",
            "object": "chat.completion",
            "created": 1,
            "model": request["model"],
            "choices": [{"index": 0, "finish_reason": finish, "message": message}],
            "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
        }


@pytest.fixture
def server():
    server = Server()
    yield server
    server.http.shutdown()


def write_input(tmp_path, texts):
    path = tmp_path / "in.csv"
    path.write_text("text,note\n" + "".join(f"{text},keep\n" for text in texts))
    return path


def test_statuses_labels_and_columns(server, script, tmp_path):
    texts = ["useless nurses", "the bus is late", "mumble", "a second try", "refuse me", "endless"]
    source, output = write_input(tmp_path, texts), tmp_path / "out.csv"
    result = script(
        SCRIPT, "--input", source, "--output", output, "--input_column", "text", "--retries", 1, env=server.env
    )
    assert result.returncode == 1, result.stderr  # half of the rows have no usable answer
    frame = read_table(output)
    assert list(frame["status"]) == ["ok", "neutral", "unparsable", "ok", "refused", "truncated"]
    assert list(frame["text"]) == texts and set(frame["note"]) == {"keep"}
    assert frame["debiased_text"][0] == "nurses" and frame["biased_words"][0] == '["useless"]'
    assert frame["debiased_text"][1] == "the bus is late"  # a neutral text is copied, whatever the answer says
    unusable = frame[frame["status"].isin(["unparsable", "refused", "truncated"])]
    assert set(unusable["bias"]) == {""} and set(unusable["debiased_text"]) == {""}  # nothing is invented
    assert frame["raw"][2] == "I would say it is biased."
    first = server.requests[0]
    assert first["response_format"]["json_schema"]["strict"] is True
    retry = next(r for r in server.requests if "second try" in r["messages"][1]["content"] and len(r["messages"]) == 4)
    assert "bias" in retry["messages"][3]["content"]  # asked again with the validator's message
    record = json.loads((tmp_path / "out.csv.run.json").read_text())
    assert record["counts"] == {"ok": 2, "neutral": 1, "unparsable": 1, "refused": 1, "truncated": 1}
    everything = result.stdout + result.stderr + "".join(p.read_text() for p in tmp_path.iterdir())
    assert "canary-key-123" not in everything


def test_an_interrupted_run_goes_on_where_it_was_and_asks_nothing_twice(server, script, tmp_path):
    source, output = write_input(tmp_path, [f"useless row {n}" for n in range(6)]), tmp_path / "out.csv"
    flags = [SCRIPT, "--input", source, "--output", output, "--input_column", "text"]
    progress = tmp_path / "out.csv.progress.jsonl"
    original = server.answer

    def answer_then_break(request):
        return (401, {"error": {"message": "key revoked"}}) if len(server.requests) > 3 else original(request)

    server.answer = answer_then_break
    broken = script(*flags, env=server.env)
    assert broken.returncode == 2 and "check key" in broken.stderr and not output.exists()
    with open(progress, "a") as file:
        file.write('{"id": "cut by a ki')
    server.answer = original
    result = script(*flags, env=server.env)
    assert result.returncode == 0, result.stderr
    texts = [r["messages"][1]["content"].split("\n")[1] for r in server.requests]
    assert len(texts) == 7 and len(set(texts)) == 6  # only the row that met the 401 was asked for again
    assert list(read_table(output)["status"]) == ["ok"] * 6 and not progress.exists()


def test_a_request_that_the_server_will_never_take_ends_at_once(server, script, tmp_path):
    source = tmp_path / "in.csv"
    source.write_text("biased_text\none\ntwo\n")
    server.status = 400
    result = script(SCRIPT, "--input", source, "--output", tmp_path / "out.csv", env=server.env)
    assert result.returncode == 2 and len(server.requests) == 1
    assert "the server rejects the request (Error code: 400" in result.stderr.splitlines()[-1]


def test_without_a_key_it_says_what_to_set(script, tmp_path):
    result = script(SCRIPT, "--input", write_input(tmp_path, ["x"]), "--input_column", "text",
                    "--output", tmp_path / "o.csv", cwd=tmp_path)  # fmt: skip
    assert result.returncode == 2
    assert "OPENAI_API_KEY" in result.stderr and "--engine transformers" in result.stderr
    assert "Traceback" not in result.stderr and [p.name for p in tmp_path.iterdir()] == ["in.csv"]


def test_the_old_name_of_the_key_works_with_a_warning(server, script, tmp_path):
    env = {"OPENAI_BASE_URL": server.env["OPENAI_BASE_URL"], "OPEN_AI_KEY": "canary-key-456"}
    source = write_input(tmp_path, ["useless"])
    result = script(SCRIPT, "--input_file_path", source, "--output_file_path", tmp_path / "o.csv",
                    "--input_column", "text", env=env)  # fmt: skip
    assert result.returncode == 0 and "set OPENAI_API_KEY" in result.stderr
    assert server.requests[0]["auth"] == "Bearer canary-key-456" and "canary" not in result.stderr


def test_a_server_that_is_not_there_is_one_line(script, tmp_path):
    env = {"OPENAI_BASE_URL": "http://127.0.0.1:9/v1"}
    result = script(SCRIPT, "--input", write_input(tmp_path, ["x"]), "--input_column", "text",
                    "--output", tmp_path / "o.csv", env=env)  # fmt: skip
    assert result.returncode == 2 and "no server at http://127.0.0.1:9/v1" in result.stderr
