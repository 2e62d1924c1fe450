"""Is annotate.py as fast as the provider allows, does it pay twice or lose a row, and what does it hold in memory?

    python benchmarks/bench_annotate.py                  # all parts, about 25 minutes
    python benchmarks/bench_annotate.py --parts speed    # speed, bucket, kill, memory

speed   against a server that answers after 200 ms: annotate.py as a user runs it, with 64 and with 32 connections,
        beside a bare loop over the client's chat.completions.create with 64, and beside one request at a time with a
        pause of 15 s after every 30, as the published script has it (measured on a slice, the rest is arithmetic).
        Rows per second are taken by the server's own clock, from the first request to the last answer.
bucket  against a server that lets 50 requests a second through, with a burst of 50.
kill    annotate.py is killed (SIGKILL) again and again, at random moments, and started again until it ends.
memory  a million rows whose answers are all there.

The server is tests/fault_server.py in a process of its own; nothing leaves this machine.
"""

import argparse
import asyncio
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: makes utils/ importable

from utils import params
from utils.annotation import Annotator, json_schema
from utils.answers import Answer, Answers
from utils.data import read_table
from utils.params import ROOT
from utils.prompts import Annotation, annotate_messages
from utils.records import file_sha256, read_json
from utils.report import markdown_table

PARTS = ("speed", "bucket", "kill", "memory")
GUIDELINE = params.GUIDELINE_FILE.read_text(encoding="utf-8")


@contextmanager
def server(*flags: str):
    """The fault server in a process of its own; gives its address."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.fault_server", *flags], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        yield process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait()


def seen(address: str) -> dict:
    """What the server counts: requests, refusals, the times of the first request and the last answer, and its log."""
    with urllib.request.urlopen(address.removesuffix("/v1") + "/log") as response:
        return json.load(response)


def write_texts(path: Path, count: int) -> Path:
    with open(path, "w", encoding="utf-8") as file:
        file.write("text\n")
        file.writelines(f"The useless clerk of office {n} kept us waiting again.\n" for n in range(count))
    return path


def annotate(address: str, source: Path, output: Path, *flags: str) -> subprocess.Popen:
    command = [sys.executable, "generate_data/annotate.py", "--input", str(source), "--output", str(output)]
    env = os.environ | {"OPENAI_BASE_URL": address, "OPENAI_API_KEY": "canary-key-123"}
    return subprocess.Popen(
        [*command, "--input_column", "text", *flags], cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def finish(process: subprocess.Popen) -> float:
    """Waits for a run that must end well; returns its peak memory in MB."""
    _, said = process.communicate()
    if process.returncode:
        sys.exit(said.decode()[-2000:])
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024


def rate(address: str, rows: int) -> float:
    counted = seen(address)
    return rows / (counted["last"] - counted["first"])


def bare_loop(address: str, rows: int, connections: int, pause_every: int | None = None) -> None:
    """What a user writes without us: the client, a semaphore, gather. With `pause_every`: 15 s pauses."""
    from openai import AsyncOpenAI

    client = AsyncOpenAI(base_url=address, api_key="none", max_retries=0)
    schema = {"name": "annotation", "strict": True, "schema": json_schema(Annotation)}
    allowed = asyncio.Semaphore(connections)
    labels = []

    async def one(n: int) -> None:
        async with allowed:
            text = f"The useless clerk of office {n} kept us waiting again."
            reply = await client.chat.completions.create(
                model=params.ANNOTATOR_MODEL,
                messages=annotate_messages(text, params.ANNOTATE_PROMPT, GUIDELINE, "0123456789abcdef"),
                temperature=0.0,
                max_tokens=params.ANNOTATE_MAX_TOKENS,
                seed=params.SEED,
                response_format={"type": "json_schema", "json_schema": schema},
            )
            labels.append(Annotation.model_validate_json(reply.choices[0].message.content))
            if pause_every and len(labels) % pause_every == 0:
                await asyncio.sleep(15)

    async def every() -> None:
        await asyncio.gather(*(one(n) for n in range(rows)))
        await client.close()

    asyncio.run(every())


def speed(work: Path, rows: int) -> None:
    source = write_texts(work / "speed.csv", rows)
    rates: dict[tuple[str, int], list[float]] = {}
    # in turns: the machine is not equally fast all the time
    turns = [("bare loop", 64), ("annotate.py", 64)] * 3 + [("annotate.py", 32), ("bare loop", 32)]
    for turn, (name, connections) in enumerate(turns):
        with server("--latency", "0.2", "--no_log") as address:
            if name == "bare loop":
                bare_loop(address, rows, connections)
            else:
                finish(annotate(address, source, work / f"{turn}.csv", "--max_concurrency", str(connections)))
            rates.setdefault((name, connections), []).append(rate(address, rows))
    with server("--latency", "0.2", "--no_log") as address:
        start = time.monotonic()
        bare_loop(address, 60, 1, pause_every=30)
        rates["one at a time, 15 s pause after 30 (60 rows)", 1] = [60 / (time.monotonic() - start)]
    mean = {what: sum(each) / len(each) for what, each in rates.items()}
    table = []
    for (name, connections), each in rates.items():
        bare = mean.get(("bare loop", connections))
        share = f"{mean[name, connections] / bare:.3f}" if bare else ""
        shown = f"{mean[name, connections]:.1f} ({', '.join(f'{one:.1f}' for one in each)})"
        table.append([name, str(connections), shown, share, f"{mean[name, connections] * 0.2 / connections:.3f}"])
    header = ["what", "connections", "rows/s", "of the bare loop", "of connections / latency"]
    print(f"\n## speed: {rows} rows, 200 ms\n" + markdown_table(header, table), flush=True)
    alone = mean["one at a time, 15 s pause after 30 (60 rows)", 1]
    print(f"20,000 rows: {20_000 / mean['annotate.py', 64] / 60:.1f} minutes with 64 connections; one at a time with "
          f"pauses {20_000 / alone / 3600:.1f} hours (extrapolated)", flush=True)  # fmt: skip


def bucket(work: Path, rows: int) -> None:
    source = write_texts(work / "bucket.csv", rows)
    table = []
    for latency, form in (("0.2", "ms"), ("0.2", ""), ("0", "whole")):
        with server("--latency", latency, "--bucket", "50", "--retry_after", form, "--no_log") as address:
            output = work / f"bucket{latency}{form}.csv"
            finish(annotate(address, source, output, "--max_concurrency", "64"))
            counted = seen(address)
            done = sum(status == "ok" for status in read_table(output)["status"])
        # the bucket is full at first, and lets its burst through beside the 50 a second
        allowed = (rows - 50) / 50
        taken = counted["last"] - counted["first"]
        share = counted["refused"] / counted["count"]
        row = [latency, form or "none", f"{done}/{rows}", f"{taken:.1f}", f"{allowed / taken:.3f}"]
        table.append([*row, str(counted["refused"]), f"{share:.4f}"])
        header = ["latency", "Retry-After", "rows done", "seconds", "of the limit", "refused", "share of calls"]
    print(f"\n## bucket: {rows} rows, 50 a second, burst 50\n" + markdown_table(header, table), flush=True)


def kill(work: Path, rows: int, kills: int) -> None:
    """Runs of `rows` rows, killed and started again until they end; then compared with an uninterrupted one."""
    source = write_texts(work / "kill.csv", rows)
    draw = random.Random(0)
    connections = 8
    output, whole = work / "killed.csv", work / "whole.csv"
    ledger = output.with_name(output.name + ".answers.jsonl")
    flags = ["--max_concurrency", str(connections)]
    start = time.monotonic()
    with server("--latency", "0.05", "--no_log") as address:
        finish(annotate(address, source, whole, *flags))
    seconds = time.monotonic() - start
    print(f"\n## kill: {rows} rows, {connections} connections, uninterrupted {seconds:.1f} s", flush=True)
    done = runs = again = most_lost = 0
    with server("--latency", "0.05", "--no_requests") as address:
        while done < kills:
            for path in (output, ledger, output.with_name(output.name + ".run.json")):
                path.unlink(missing_ok=True)
            runs += 1
            first, killed = seen(address)["count"], 0
            while not output.exists():
                recorded, before = keys(ledger), seen(address)["count"]
                process = annotate(address, source, output, *flags)
                try:
                    # from the first import to after the last row
                    process.communicate(timeout=draw.uniform(0.5, seconds) if done < kills else None)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.communicate()
                    done, killed = done + 1, killed + 1
                    time.sleep(0.1)  # what was under way reaches the server's log
                asked = [entry["text"] for entry in seen(address)["log"][before:]]
                again += sum(text in recorded for text in asked)
                most_lost = max(most_lost, len(set(asked) - keys(ledger)))
            log = [entry["text"] for entry in seen(address)["log"][first:]]
            same = file_sha256(output) == file_sha256(whole)
            print(f"run {runs}: {killed} kills, {len(set(log))} texts asked, {len(log) - len(set(log))} asked twice, "
                  f"final CSV {'identical' if same else 'DIFFERENT'}", flush=True)  # fmt: skip
            if not same:
                sys.exit(1)
    print(f"{done} kills in {runs} runs: {again} requests sent again whose answer was recorded; of one kill at most "
          f"{most_lost} were sent and their answers not recorded ({connections} connections)", flush=True)  # fmt: skip


def keys(ledger: Path) -> set[str]:
    """The texts whose answers a killed run has recorded: an answer repeats its text without the word useless."""
    if not ledger.exists():
        return set()
    texts = set()
    for line in ledger.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if "text" in entry:
            texts.add(json.loads(entry["text"])["debiased_text"].replace("The clerk", "The useless clerk"))
    return texts


def memory(work: Path, rows: int) -> None:
    source, output = write_texts(work / "memory.csv", rows), work / "memory.out.csv"
    annotator = Annotator(
        params.ANNOTATOR_MODEL, params.ANNOTATE_PROMPT, GUIDELINE, params.ANNOTATE_TEMPERATURE,
        params.ANNOTATE_MAX_TOKENS, params.SEED, params.ANNOTATE_RETRIES,
    )  # fmt: skip
    answers = Answers(output.with_name(output.name + ".answers.jsonl"), annotator.settings())
    labels = {"bias": "Yes", "toxicity": "Mild", "sentiment": "Negative", "harm": "Low", "target": "clerks"}
    for n in range(rows):
        text = f"The useless clerk of office {n} kept us waiting again."
        said = json.dumps(labels | {"biased_words": ["useless"], "debiased_text": text.replace("useless ", "")})
        answers.add(annotator.first_request(text).key, Answer(said, "stop", 1000, 100, annotator.model, "bench"))
    answers.close()
    del answers
    start = time.monotonic()
    with server() as address:
        peak = finish(annotate(address, source, output))
        asked = seen(address)["count"]
    seconds = time.monotonic() - start
    record = read_json(output.with_name(output.name + ".run.json"))
    print(f"\n## memory: {rows:,} rows whose answers are there: peak {peak:.0f} MB, {seconds:.0f} s, "
          f"{asked} requests sent, statuses {record['statuses']}", flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS), help="of speed, bucket, kill, memory")
    parser.add_argument("--rows", type=int, default=5_000, help="rows of speed and bucket")
    parser.add_argument("--kill_rows", type=int, default=500)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--memory_rows", type=int, default=1_000_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        for part in options.parts.split(","):
            if part == "speed":
                speed(work, options.rows)
            elif part == "bucket":
                bucket(work, options.rows)
            elif part == "kill":
                kill(work, options.kill_rows, options.kills)
            elif part == "memory":
                memory(work, options.memory_rows)
            else:
                parser.error(f"--parts {part}: there are {', '.join(PARTS)}")


if __name__ == "__main__":
    main()
