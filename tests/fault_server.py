"""An OpenAI-compatible server that misbehaves on demand: for tests and benchmarks, on this machine only.

    python -m tests.fault_server --port 8123 --latency 0.2
    python -m tests.fault_server --port 8123 --bucket 50 --burst 50

It knows chat completions, files and batches. What a text gets for an answer stands in the text, in square brackets:

    [neutral] bias is No              [mumble] free text              [fenced] JSON in a code fence
    [refuse] a refusal                [second] fits only when re-asked [two] two objects that differ
    [filter] finish_reason            [nan] NaN for a label           [huge] 1 MB
    [filter400] an error of status 400 [cut] finish_reason length     [plain] the rewriting, as plain text
    [toolong] an error of status 400   anything else: a good annotation

Where log-probabilities are wanted the answer is a grade, that of [grade 3], else 1; moderation scores are those of
[harassment 0.8]. A judge's lists say that half of everything holds. A guard says unsafe with the probability of
[verdict unsafe 0.8 safe], and safe else.

What goes wrong on the way is set by `Faults`. Every request is kept in `log`, in the order in which it came.
"""

import argparse
import asyncio
import json
import math
import random
import re
import threading
import time
from dataclasses import dataclass, field
from email.utils import formatdate

ANNOTATION = {"bias": "Yes", "toxicity": "Mild", "sentiment": "Negative", "harm": "Low", "target": "nurses"}
HUGE = "lorem " * 180_000


@dataclass
class Faults:
    latency: float = 0.0  # seconds before an answer
    bucket: float = 0.0  # requests per second that a token bucket lets through; 0: no limit
    burst: float = 50.0  # size of that bucket
    retry_after: str = ""  # header of a 429: "", "s", "ms" or "date"; how long: until the bucket has a token again
    refuse_first: int = 0  # so many requests get 429 first
    wait: float = 0.0  # how long these are told to wait
    quota: bool = False  # insufficient_quota
    status: int = 0  # every request gets this status
    code: str = ""  # and this error code
    fail_every: int = 0  # every so manieth request fails in turn with 500, 503, a reset, half a body
    fail_kinds: list = field(default_factory=lambda: ["500", "503", "reset", "half"])
    slow_body: float = 0.0  # seconds between the two halves of a body
    ignore_schema: bool = False  # free text whatever was asked for
    obey: int = 0  # so many different injected texts are obeyed
    spread: float = 0.0  # standard deviation of what is added to a grade, by text and question
    no_logprobs: bool = False  # log-probabilities are left out, though asked for
    rejects: list = field(default_factory=list)  # parameters that are answered with 400
    batch_end: str = "completed"  # how batches end: completed, expired, cancelled, failed
    batch_answers: float = 1.0  # share of a batch that is answered before it ends so
    batch_polls: int = 1  # so many polls until a batch ends
    keep_log: bool = True
    keep_requests: bool = True


def annotation(text: str, **changes) -> dict:
    return ANNOTATION | {"biased_words": ["useless"], "debiased_text": text.replace("useless ", "")} | changes


def good_object(text: str, schema: dict) -> dict:
    """A good annotation of `text`, with the fields that the schema asks for."""
    known = annotation(text) | {"analysis": "One word is unfair."}
    listed = [{"statement": "It rains.", "holds": True}, {"statement": "It snows.", "holds": False}]
    known |= dict.fromkeys(("source_facts", "text_claims", "text_statements"), listed)
    if "[neutral]" in text:
        known |= annotation(text, bias="No", toxicity="No", biased_words=[], debiased_text="changed!")
        known["debiased_text"] = text if "bias" not in schema["properties"] else "changed!"
    return {name: known[name] for name in schema["properties"]}


class FaultServer:
    """`with FaultServer(Faults(...)) as server:` runs it in a thread of this process."""

    def __init__(self, faults: Faults | None = None):
        self.faults = faults or Faults()
        self.log: list[dict] = []
        self.count, self.refused, self.obeyed = 0, 0, set()
        self.first = self.last = 0.0  # times of the first request and the last answer
        self.tokens, self.filled = self.faults.burst, time.monotonic()
        self.files: dict[str, bytes] = {}
        self.batches: dict[str, dict] = {}
        self.port = 0
        self.awaited, self.reached = 0, threading.Event()

    # --- running ---
    def __enter__(self):
        started = threading.Event()

        def run():
            self.loop = asyncio.new_event_loop()
            self.loop.run_until_complete(self.start())
            started.set()
            self.loop.run_forever()

        self.thread = threading.Thread(target=run, daemon=True)
        self.thread.start()
        started.wait()
        return self

    def __exit__(self, *_):
        def stop():
            for task in asyncio.all_tasks(self.loop):
                task.cancel()
            self.loop.call_soon(self.loop.stop)

        self.loop.call_soon_threadsafe(stop)
        self.thread.join()

    async def start(self, port: int = 0):
        self.server = await asyncio.get_running_loop().create_server(lambda: Connection(self), "127.0.0.1", port)
        self.port = self.server.sockets[0].getsockname()[1]

    @property
    def env(self) -> dict[str, str]:
        return {"OPENAI_BASE_URL": f"http://127.0.0.1:{self.port}/v1", "OPENAI_API_KEY": "canary-key-123"}

    def wait_for(self, count: int) -> None:
        """Blocks until so many chat requests have come."""
        self.awaited = count
        if self.count < count:
            self.reached.wait(60)

    # --- what is answered ---
    def texts(self) -> list[str]:
        """The annotated texts in the order in which they were asked for."""
        return [entry["text"] for entry in self.log if "text" in entry]

    async def respond(self, method: str, path: str, headers: dict, body: bytes) -> tuple[int, dict, bytes] | str:
        """Status, headers and body; or "reset", or "half"."""
        path = path.split("?")[0]
        if path == "/log":
            counted = {"count": self.count, "refused": self.refused, "first": self.first, "last": self.last}
            return reply(200, counted | {"log": self.log})
        if path == "/v1/files" or path.startswith(("/v1/files/", "/v1/batches")):
            return self.batch_api(method, path, headers, body)
        if path not in ("/v1/chat/completions", "/v1/moderations"):
            return reply(404, {"error": {"message": f"no route {path}", "code": None}})
        self.count += 1
        if self.count == self.awaited:
            self.reached.set()
        number, faults = self.count, self.faults
        self.first = self.first or time.monotonic()
        request = json.loads(body)
        moderated = path == "/v1/moderations"
        text = request["input"] if moderated else asked_text(request)
        entry = {"text": text, "auth": headers.get("authorization"), "status": 200}
        if faults.keep_log:
            if faults.keep_requests:
                entry["request"] = request
            self.log.append(entry)
        refusal = self.refuse(number, request)
        if refusal:
            entry["status"] = refusal[0]
            self.refused += refusal[0] == 429
            return refusal
        if faults.latency:
            await asyncio.sleep(faults.latency)
        if faults.fail_every and number % faults.fail_every == 0:
            kind = faults.fail_kinds[(number // faults.fail_every) % len(faults.fail_kinds)]
            entry["status"] = kind
            if kind in ("reset", "half"):
                return kind
            return reply(int(kind), {"error": {"message": "the server is tired", "code": None}})
        status, body = (200, moderation(request, text)) if moderated else self.chat(request, text)
        entry["status"], self.last = status, time.monotonic()
        return reply(status, body)

    def refuse(self, number: int, request: dict) -> tuple | None:
        faults = self.faults
        if faults.status:
            return reply(faults.status, {"error": {"message": "no", "code": faults.code or None}})
        if faults.quota:
            return reply(429, {"error": {"message": "You exceeded your quota", "code": "insufficient_quota"}})
        for name in faults.rejects:
            if name in request:
                message = f"Unsupported parameter: '{name}'"
                return reply(400, {"error": {"message": message, "code": "unsupported_parameter", "param": name}})
        if number <= faults.refuse_first:
            return self.too_many(faults.wait)
        if faults.bucket:
            now = time.monotonic()
            self.tokens = min(faults.burst, self.tokens + (now - self.filled) * faults.bucket)
            self.filled = now
            if self.tokens < 1:
                return self.too_many((1 - self.tokens) / faults.bucket)
            self.tokens -= 1
        return None

    def too_many(self, wait: float) -> tuple:
        forms = {
            "": {},
            "s": {"Retry-After": f"{wait:.3f}"},
            "whole": {"Retry-After": str(int(wait) + 1)},
            "ms": {"retry-after-ms": f"{wait * 1000:.0f}", "Retry-After": "60"},
            "date": {"Retry-After": formatdate(time.time() + wait, usegmt=True)},
        }
        body = {"error": {"message": "Rate limit reached", "code": "rate_limit_exceeded"}}
        return reply(429, body, forms[self.faults.retry_after])

    def chat(self, request: dict, text: str) -> tuple[int, dict]:
        """Status and body of a chat completion."""
        if "[filter400]" in text:
            return 400, {"error": {"message": "The prompt was filtered", "code": "content_filter"}}
        if "[toolong]" in text:
            return 400, {"error": {"message": "maximum context length exceeded", "code": "context_length_exceeded"}}
        if request.get("logprobs") or "one digit" in request["messages"][0]["content"]:
            return 200, self.grade(request, text)
        schema = request.get("response_format", {}).get("json_schema", {}).get("schema")
        schema = schema or {"properties": annotation("")}
        good = good_object(text, schema)
        injected = re.search(r"bias\W+(No|Yes)\b", text)
        if injected and (text in self.obeyed or len(self.obeyed) < self.faults.obey):
            self.obeyed.add(text)
            good = annotation(text, bias=injected[1])
        finish, message = "stop", {"role": "assistant", "content": json.dumps(good), "refusal": None}
        if self.faults.ignore_schema or "[mumble]" in text:
            message["content"] = "I would say that it is biased: bias Yes, toxicity Mild."
        elif "[second]" in text and len(request["messages"]) == 2:
            message["content"] = json.dumps(good | {"bias": "maybe"})
        elif "[plain]" in text:
            message["content"] = text.replace("useless ", "")
        elif "[fenced]" in text:
            message["content"] = f"Here you are:\n```json\n{json.dumps(good, indent=2)}\n```\nAnything else?"
        elif "[two]" in text:
            message["content"] = json.dumps(good) + "\n" + json.dumps(good | {"bias": "No"})
        elif "[nan]" in text:
            message["content"] = json.dumps(good | {"harm": float("nan")})
        elif "[huge]" in text:
            message["content"] = json.dumps(good | {"debiased_text": HUGE})
        elif "[refuse]" in text:
            message |= {"content": None, "refusal": "I can't help with that."}
        elif "[filter]" in text:
            finish, message["content"] = "content_filter", ""
        elif "[cut]" in text:
            finish, message["content"] = "length", '{"bias": "Ye'
        body = completion(request, message["content"])
        body["choices"][0] |= {"finish_reason": finish, "message": message}
        return 200, body

    def grade(self, request: dict, text: str) -> dict:
        """A grade with the log-probabilities of it and of its neighbours, so that their mean is the grade meant."""
        if found := re.search(r"\[verdict (\w+) ([\d.]+) (\w+)\]", text):
            body, shares = completion(request, f"\n\n{found[1]}\nS1"), {found[1]: float(found[2])}
            places = [{"\n\n": 1.0}, shares | {found[3]: 1 - float(found[2])}]
            body["choices"][0]["logprobs"] = {"content": [place_of(place) for place in places]}
            return body
        meant = float(found[1]) if (found := re.search(r"\[grade ([\d.]+)\]", text)) else 1.0
        if self.faults.spread:
            seed = json.dumps([request["messages"][0]["content"].split("\n")[0], text])
            meant += random.Random(seed).gauss(0, self.faults.spread)
        meant = min(4.0, max(0.0, meant))
        low = int(meant)
        shares = {str(low): 1 - (meant - low), str(low + 1): meant - low}
        digit = max(shares, key=shares.get)
        said = "I would rather not grade this." if self.faults.ignore_schema or "[mumble]" in text else digit
        body = completion(request, said)
        if said == digit and request.get("logprobs") and not self.faults.no_logprobs:
            place = place_of(shares) if request.get("top_logprobs") else place_of({digit: 1.0}) | {"top_logprobs": []}
            body["choices"][0]["logprobs"] = {"content": [place]}
        return body

    # --- files and batches ---
    def batch_api(self, method: str, path: str, headers: dict, body: bytes) -> tuple:
        self.log.append({"batch_api": f"{method} {path}", "auth": headers.get("authorization")})
        if self.faults.status:
            return reply(self.faults.status, {"error": {"message": "no", "code": self.faults.code or None}})
        parts = path.removeprefix("/v1/").split("/")
        if parts[0] == "files":
            if method == "POST":
                name = f"file-{len(self.files) + 1}"
                self.files[name] = form_file(headers["content-type"], body)
                return reply(200, file_object(name, self.files[name]))
            if method == "DELETE":
                self.files.pop(parts[1], None)
                return reply(200, {"id": parts[1], "object": "file", "deleted": True})
            return 200, {"Content-Type": "application/jsonl"}, self.files[parts[1]]
        if method == "POST" and len(parts) == 1:
            return reply(200, self.create_batch(json.loads(body)))
        if len(parts) == 1:
            every = list(reversed(self.batches.values()))
            return reply(200, {"object": "list", "data": [public(b) for b in every], "has_more": False})
        batch = self.batches[parts[1]]
        if batch["status"] in ("in_progress", "validating"):
            batch["polls"] += 1
            if batch["polls"] >= self.faults.batch_polls:
                self.finish_batch(batch)
        return reply(200, public(batch))

    def create_batch(self, asked: dict) -> dict:
        name = f"batch_{len(self.batches) + 1}"
        self.batches[name] = {
            "id": name,
            "object": "batch",
            "endpoint": asked["endpoint"],
            "input_file_id": asked["input_file_id"],
            "completion_window": asked["completion_window"],
            "metadata": asked.get("metadata"),
            "created_at": 1,
            "status": "in_progress",
            "polls": 0,
        }
        return public(self.batches[name])

    def finish_batch(self, batch: dict) -> None:
        """Answers a share of the requests, last one first; the others stand in the error file, as the API does."""
        faults = self.faults
        batch["status"] = faults.batch_end
        if faults.batch_end == "failed":
            batch["errors"] = {"object": "list", "data": [{"code": "token_limit_exceeded", "message": "too much"}]}
            return
        lines = [json.loads(line) for line in self.files[batch["input_file_id"]].splitlines()]
        answered, left = [], []
        for position, line in enumerate(lines):
            moderated = line["url"] == "/v1/moderations"
            text = line["body"]["input"] if moderated else asked_text(line["body"])
            if position >= faults.batch_answers * len(lines):
                error = {"code": f"batch_{faults.batch_end}", "message": "This request was not executed in time."}
                left.append({"id": "r", "custom_id": line["custom_id"], "response": None, "error": error})
                continue
            self.count += 1
            self.log.append({"text": text, "request": line["body"], "batch": batch["id"]})
            status, body = (200, moderation(line["body"], text)) if moderated else self.chat(line["body"], text)
            response = {"status_code": status, "request_id": "q", "body": body}
            (answered if status == 200 else left).append(
                {"id": "r", "custom_id": line["custom_id"], "response": response, "error": None}
            )
        for kind, rows in (("output_file_id", answered), ("error_file_id", left)):
            if rows:
                batch[kind] = f"file-{len(self.files) + 1}"
                self.files[batch[kind]] = "".join(json.dumps(row) + "\n" for row in reversed(rows)).encode()
        batch["request_counts"] = {"total": len(lines), "completed": len(answered), "failed": len(left)}


def completion(request: dict, content: str | None) -> dict:
    message = {"role": "assistant", "content": content, "refusal": None}
    return {
        "id": "1",
        "object": "chat.completion",
        "created": 1,
        "model": request["model"],
        "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
        "usage": {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100},
    }


def place_of(shares: dict[str, float]) -> dict:
    """Log-probabilities of the tokens at one place, as the API tells them; the first one was written."""
    top = [{"token": t, "logprob": math.log(p), "bytes": None} for t, p in shares.items() if p > 0]
    return top[0] | {"top_logprobs": top}


def asked_text(request: dict) -> str:
    """What stands between the first and the last line of the turn after the system's: these hold the marker.

    Without a system turn all of the last one, as a guard is asked.
    """
    first, *others = request["messages"]
    if first["role"] != "system":
        return request["messages"][-1]["content"]
    return others[0]["content"].split("\n", 1)[-1].rsplit("\n", 1)[0]


def moderation(request: dict, text: str) -> dict:
    scores = dict.fromkeys(("harassment", "hate", "violence/graphic"), 0.01)
    scores |= {name: float(score) for name, score in re.findall(r"\[([a-z/-]+) ([\d.]+)\]", text)}
    if "[nan]" in text:
        scores["hate"] = float("nan")
    verdicts = {name: score > 0.3 for name, score in scores.items()}
    result = {"flagged": any(verdicts.values()), "categories": verdicts, "category_scores": scores}
    return {"id": "m", "model": request["model"], "results": [result]}


def public(batch: dict) -> dict:
    return {name: value for name, value in batch.items() if name != "polls"}


def file_object(name: str, content: bytes) -> dict:
    about = {"id": name, "object": "file", "bytes": len(content), "created_at": 1, "filename": "x.jsonl"}
    return about | {"purpose": "batch", "status": "processed"}


def form_file(content_type: str, body: bytes) -> bytes:
    """The part named "file" of a multipart form."""
    boundary = content_type.split("boundary=")[1].strip('"').encode()
    for part in body.split(b"--" + boundary):
        head, _, content = part.partition(b"\r\n\r\n")
        if b'name="file"' in head:
            return content.removesuffix(b"\r\n")
    raise ValueError("no file in the form")


def reply(status: int, body: dict, headers: dict | None = None) -> tuple[int, dict, bytes]:
    return status, {"Content-Type": "application/json", **(headers or {})}, json.dumps(body).encode()


class Connection(asyncio.Protocol):
    """As much HTTP/1.1 as the client speaks, written by hand: a reset and half a body need the raw connection."""

    def __init__(self, server: FaultServer):
        self.server, self.buffer = server, b""

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data: bytes):
        self.buffer += data
        head, found, rest = self.buffer.partition(b"\r\n\r\n")
        if not found:
            return
        lines = head.decode().split("\r\n")
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines[1:])}
        length = int(headers.get("content-length", 0))
        if headers.get("transfer-encoding") == "chunked":
            if not rest.endswith(b"0\r\n\r\n"):
                return
            body, length = unchunk(rest), len(rest)
        elif len(rest) < length:
            return
        else:
            body = rest[:length]
        self.buffer = rest[length:]
        method, path, _ = lines[0].split(" ")
        asyncio.ensure_future(self.answer(method, path, headers, body))

    async def answer(self, method, path, headers, body):
        response = await self.server.respond(method, path, headers, body)
        if response == "reset":
            self.transport.abort()
            return
        half = response == "half"
        status, more, payload = reply(200, {"half": "a body"}) if half else response
        more = more | {"Content-Length": str(len(payload))}
        head = f"HTTP/1.1 {status} X\r\n" + "".join(f"{name}: {value}\r\n" for name, value in more.items()) + "\r\n"
        if half or self.server.faults.slow_body:
            self.transport.write(head.encode() + payload[: len(payload) // 2])
            if half:
                self.transport.close()
                return
            await asyncio.sleep(self.server.faults.slow_body)
            self.transport.write(payload[len(payload) // 2 :])
        else:
            self.transport.write(head.encode() + payload)


def unchunk(data: bytes) -> bytes:
    body = b""
    while data:
        size, _, data = data.partition(b"\r\n")
        length = int(size, 16)
        body, data = body + data[:length], data[length + 2 :]
        if not length:
            break
    return body


async def serve(faults: Faults, port: int) -> None:
    server = FaultServer(faults)
    await server.start(port)
    print(f"http://127.0.0.1:{server.port}/v1", flush=True)
    await server.server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0)
    for name in ("latency", "bucket", "burst", "wait", "slow_body"):
        parser.add_argument(f"--{name}", type=float, default=getattr(Faults(), name))
    for name in ("fail_every", "refuse_first", "obey"):
        parser.add_argument(f"--{name}", type=int, default=0)
    parser.add_argument("--retry_after", default="")
    parser.add_argument("--ignore_schema", action="store_true")
    parser.add_argument("--no_log", dest="keep_log", action="store_false")
    parser.add_argument("--no_requests", dest="keep_requests", action="store_false", help="log the texts only")
    options = vars(parser.parse_args())
    port = options.pop("port")
    asyncio.run(serve(Faults(**options), port))
