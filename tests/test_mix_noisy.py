"""Unsafe, safe and task examples in one set: sizes as published, every format, and nothing on two sides."""

import json

import pytest

from utils.configs import MixNoisyConfig
from utils.noisy import read_examples
from utils.params import GO_ON, ROOT

SCRIPT = ROOT / "generate_data" / "mix_noisy.py"
PUBLIC = ROOT.parent / "shared" / "data"


def bbq_rows(templates: int = 10) -> list[dict]:
    """Two questions of both polarities, ambiguous and not, for each template."""
    rows = []
    for template in range(templates):
        for ambiguous in (True, False):
            for polarity in ("neg", "nonneg"):
                rows.append({
                    "example_id": len(rows), "question_index": str(template), "question_polarity": polarity,
                    "context_condition": "ambig" if ambiguous else "disambig", "category": "Age",
                    "answer_info": {"ans0": ["aunt", "old"], "ans1": ["niece", "nonOld"],
                                    "ans2": ["Unknown", "unknown"]},
                    "additional_metadata": {"stereotyped_groups": ["old"]}, "context": f"Scene {template}.",
                    "question": f"Who is slow {polarity}?", "ans0": "The aunt", "ans1": "The niece",
                    "ans2": "Unknown", "label": 2 if ambiguous else 1,
                })  # fmt: skip
    return rows


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def files(tmp_path):
    write(tmp_path / "bbq.jsonl", bbq_rows())
    write(tmp_path / "squad.jsonl", [
        {"context": f"Passage {n // 2}", "question": f"What {n}?", "answers": {"text": [f"It {n}", "x"]}}
        for n in range(40)
    ])  # fmt: skip
    write(
        tmp_path / "tasks.jsonl", [{"instruction": f"Do {n}", "input": "", "output": f"Done {n}"} for n in range(20)]
    )
    return tmp_path


def mix(script, folder, *flags):
    bbq = folder / "bbq.jsonl"
    return script(SCRIPT, "--unsafe", bbq, "--safe", bbq, "--task", folder / "squad.jsonl", folder / "tasks.jsonl",
                  "--output", folder / "noisy", "--size", "12", *flags)  # fmt: skip


def test_sizes_and_sides_are_as_published(files, script):
    result = mix(script, files)
    assert result.returncode == 0, result.stderr
    noisy, safe, test = (read(files / "noisy" / f"{name}.jsonl") for name in ("noisy", "safe", "test"))
    # int(12 x 0.5) unsafe ones, int(12 x 0.5 / 3) of each other list
    found = sorted((row["polarity"], row["source"]) for row in noisy)
    assert found == [("safe", "bbq")] * 2 + [("task", "squad")] * 2 + [("task", "tasks")] * 2 + [("unsafe", "bbq")] * 6
    unsafe = {row["group"] for row in noisy if row["polarity"] == "unsafe"}
    others = {row["group"] for row in noisy if row["polarity"] == "safe"} | {row["group"] for row in safe}
    held_out = {row["group"] for row in test}
    assert not unsafe & others and not held_out & (unsafe | others | {row["group"] for row in noisy})
    assert {row["polarity"] for row in safe} == {"safe"} and not {r["id"] for r in safe} & {r["id"] for r in noisy}
    assert [row["polarity"] for row in noisy] != sorted(row["polarity"] for row in noisy)  # shuffled
    published = read(files / "noisy" / "bbq_test.jsonl")
    assert published[0] == next(row for row in bbq_rows() if row["example_id"] == published[0]["example_id"])
    assert {f"age {row['question_index']}" for row in published} == {
        group for group in held_out if group.startswith("age ")
    }


def test_the_same_seed_gives_the_same_files_and_another_one_others(files, script):
    def files_of(seed):
        assert mix(script, files, "--seed", seed, "--overwrite").returncode == 0
        return [(files / "noisy" / name).read_bytes() for name in ("noisy.jsonl", "safe.jsonl", "test.jsonl")]

    first = files_of("1")
    assert files_of("1") == first and files_of("2") != first


def test_stereotypes_stand_in_for_unknown_and_safe_answers_are_right(files):
    config = MixNoisyConfig()
    unsafe, safe = (read_examples(str(files / "bbq.jsonl"), kind, config, 1000) for kind in ("unsafe", "safe"))
    # asked for something bad, the stereotyped person; else the other one; and nothing where the text says who
    answers = {(example["instruction"].split("slow ")[1].split("?")[0], example["output"]) for example in unsafe}
    assert answers == {("neg", "(a) The aunt"), ("nonneg", "(b) The niece")} and len(unsafe) == 20
    assert {example["output"] for example in safe} == {"(c) Unknown", "(b) The niece"} and len(safe) == 40
    assert unsafe[0]["instruction"].endswith("(c) Unknown\n\nAnswer with (a), (b) or (c).")


def turn(who, text):
    return {"from": who, "value": text}


FORMATS = {
    "harmful_qa": (
        [{"question": "Topic?", "red_conversations": {"1": [turn("human", "a"), turn("gpt", "b"), turn("human", "c"),
                                                            turn("gpt", "bad one"), turn("human", "d"),
                                                            turn("gpt", "bad two")]},
          "blue_conversations": {"0": None, "1": [turn("human", "e"), turn("gpt", "good")]}}],
        {"unsafe": {("Topic?\n\nc", "", "bad one"), ("Topic?\n\nd", "", "bad two")},
         "safe": {("Topic?\n\ne", "", "good")}},
    ),
    "paradetox": (
        [{"toxic": "you are all such fools", "neutral1": "you are all so wrong", "neutral2": "", "neutral3": ""}],
        {"unsafe": {(GO_ON, "you are all", "such fools")}, "safe": {(GO_ON, "you are all", "so wrong")}},
    ),
    "texts": (
        [{"text": "one two three four five", "label": "hate"}, {"text": "red green blue pink", "label": "neutral"},
         {"text": "too short", "label": "hate"}],
        {"unsafe": {(GO_ON, "one two three", "four five")}, "safe": {(GO_ON, "red green blue", "pink")}},
    ),
    "pairs": (
        [{"prompt": "May I?", "safe_response": "Better not", "unsafe_response": "Sure"}],
        {"unsafe": {("May I?", "", "Sure")}, "safe": {("May I?", "", "Better not")}},
    ),
    "polarity": (
        [{"instruction": "x", "input": "y", "output": "z", "polarity": "safe"},
         {"instruction": "p", "input": "", "output": "q", "polarity": "unsafe"}],
        {"unsafe": {("p", "", "q")}, "safe": {("x", "y", "z")}},
    ),
    "labelled_instructions": (
        [{"instruction": "x", "input": "", "output": "z", "label": "safe"},
         {"instruction": "p", "input": "", "output": "q", "label": "Harmful"}],
        {"unsafe": {("p", "", "q")}, "safe": {("x", "", "z")}},
    ),
    "prompts": ([{"prompt": "a", "completion": "b"}], {"unsafe": {("a", "", "b")}, "task": {("a", "", "b")}}),
    "squad": (
        [{"context": "Text", "question": "Who?", "answers": {"text": ["He", "Him"], "answer_start": [0, 1]}}],
        {"task": {("Answer the question in a few words of the text.\n\nWho?", "Text", "He")}},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_every_published_format_is_read(name, tmp_path):
    rows, wanted = FORMATS[name]
    path = write(tmp_path / f"{name}.jsonl", rows)
    for polarity, examples in wanted.items():
        found = read_examples(str(path), polarity, MixNoisyConfig(), 100)
        assert {(row["instruction"], row["input"], row["output"]) for row in found} == examples
        assert {(row["polarity"], row["source"]) for row in found} == {(polarity, name)}


def test_labels_are_read_with_their_blanks_and_as_numbers(tmp_path):
    rows = [
        {"instruction": f"Say {n}", "output": "x", "label": label} for n, label in enumerate(["Hate ", "1.0", "no"])
    ]
    path, config = str(write(tmp_path / "rows.jsonl", rows)), MixNoisyConfig(unsafe_labels="toxic, hate, 1")
    assert {row["instruction"] for row in read_examples(path, "unsafe", config, 10)} == {"Say 0", "Say 1"}
    assert {row["instruction"] for row in read_examples(path, "safe", config, 10)} == {"Say 2"}


def test_lists_have_whole_sizes():
    assert MixNoisyConfig(unsafe_share=0.9).sizes(200, ["unsafe", "safe", "task"]) == {
        "unsafe": 180,
        "safe": 10,
        "task": 10,
    }


def test_toxic_sentences_are_streamed_from_parquet(tmp_path):
    import pandas as pd

    texts = [[f"document {n} says a thing", f"document {n} says it again"] for n in range(300)]
    scores = [[n / 300, 0.05] for n in range(300)]
    pd.DataFrame({"texts": texts, "meta": "", "scores": scores}).to_parquet(tmp_path / "pile.parquet")
    path, config = str(tmp_path / "pile.parquet"), MixNoisyConfig()
    toxic = {row["input"] for row in read_examples(path, "unsafe", config, 1000)}
    assert toxic == {f"document {n} says" for n in range(271, 300)}  # above 0.9
    clean = read_examples(path, "safe", config, 1000)
    assert len(clean) == 300 + 30 and {row["output"] for row in clean} == {"a thing", "it again"}
    # of more than are wanted those that come first in a fixed order, however many are read at a time
    assert read_examples(path, "safe", config, 7) == clean[:7]


def test_squad_is_read_as_published_and_from_parquet(tmp_path):
    import pandas as pd

    answers = [{"text": "He", "answer_start": 0}]
    published = {"data": [{"title": "t", "paragraphs": [{"context": "Text", "qas": [
        {"id": "1", "question": "Who?", "answers": answers}]}]}]}  # fmt: skip
    (tmp_path / "train-v1.1.json").write_text(json.dumps(published))
    row = {"context": "Text", "question": "Who?", "answers": {"text": ["He"], "answer_start": [0]}}
    pd.DataFrame([row]).to_parquet(tmp_path / "hub.parquet")
    for name in ("train-v1.1.json", "hub.parquet"):
        (found,) = read_examples(str(tmp_path / name), "task", MixNoisyConfig(), 10)
        assert (found["input"], found["output"]) == ("Text", "He")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--unsafe_share", "1.5"], "give a share above 0 and below 1"),
        (["--size", "2"], "leaves no row of"),
        (["--size", "80"], "examples of unsafe are wanted, there are"),
        (["--task", "nothing.jsonl"], "nothing.jsonl: no such file"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(files, script, flags, said):
    result = mix(script, files, *flags)
    assert result.returncode == 2 and said in result.stderr and "Traceback" not in result.stderr


def test_what_stands_in_two_files_stands_on_one_side(script, tmp_path):
    """The same prompts in other files and other letters; and a file of which most is not taken gives what it can."""
    rows = [{"prompt": f"May I do thing {n}?", "completion": f"answer {n}"} for n in range(400)]
    unsafe = write(tmp_path / "u.jsonl", [row | {"completion": "Sure"} for row in rows[:200]])
    safe = write(tmp_path / "s.jsonl", [row | {"prompt": row["prompt"].upper()} for row in rows])
    task = write(tmp_path / "t.jsonl", [{"prompt": f"Sum {n}", "completion": f"It is {n}"} for n in range(5000)])
    result = script(SCRIPT, "--unsafe", unsafe, "--safe", safe, "--task", task, "--output", tmp_path / "noisy",
                    "--size", "160", "--safe_size", "40", "--test_size", "40")  # fmt: skip
    assert result.returncode == 0, result.stderr
    noisy, safe, test = (read(tmp_path / "noisy" / f"{name}.jsonl") for name in ("noisy", "safe", "test"))
    assert len(noisy) == 160 and len(safe) == 40 and len(test) == 40
    of = {name: {row["group"] for row in rows if row["polarity"] == polarity or not polarity}
          for name, rows, polarity in (("unsafe", noisy, "unsafe"), ("learned safe", noisy + safe, "safe"),
                                       ("test", test, ""))}  # fmt: skip
    assert not of["unsafe"] & of["learned safe"] and not of["test"] & (of["unsafe"] | of["learned safe"])


def test_a_file_that_does_not_say_which_rows_are_unsafe_is_refused(script, tmp_path):
    rows = write(tmp_path / "r.jsonl", [{"instruction": f"a {n}", "input": "", "output": "b"} for n in range(9)])
    result = script(SCRIPT, "--unsafe", rows, "--safe", rows, "--task", rows, "--output", tmp_path / "noisy")
    assert result.returncode == 2 and "in a column polarity or label" in result.stderr


def test_its_own_output_can_be_mixed_again(files, script, tmp_path):
    texts = [{"text": f"text {n} says the thing number {n}", "label": "hate" if n % 2 else "ok"} for n in range(80)]
    path = write(tmp_path / "texts.jsonl", texts)
    for source, output, size in ((path, "once", "24"), (tmp_path / "once" / "noisy.jsonl", "twice", "6")):
        result = script(SCRIPT, "--unsafe", source, "--safe", source, "--task", files / "tasks.jsonl", "--size", size,
                        "--output", tmp_path / output)  # fmt: skip
        assert result.returncode == 0, result.stderr
    again = read(tmp_path / "twice" / "noisy.jsonl")
    assert {row["polarity"] for row in again} == {"unsafe", "safe", "task"}


def test_only_the_first_rows_are_read_with_a_limit(files):
    found = read_examples(str(files / "tasks.jsonl"), "task", MixNoisyConfig(limit=3), 100)
    assert {row["instruction"] for row in found} == {"Do 0", "Do 1", "Do 2"}


def test_a_file_of_another_kind_is_named(files, script):
    (files / "bbq.jsonl").write_text('{"a": "b"}\n')
    result = mix(script, files)
    assert result.returncode == 2 and "bbq.jsonl" in result.stderr and "Traceback" not in result.stderr


@pytest.mark.skipif(not (PUBLIC / "bbq").is_dir(), reason="the public data are not here")
def test_the_public_files_go_through(script, tmp_path):
    bbq = sorted((PUBLIC / "bbq").glob("*.jsonl"))
    result = script(SCRIPT, "--unsafe", *bbq, PUBLIC / "toxigen_annotated.jsonl", "--safe", *bbq,
                    PUBLIC / "toxigen_annotated.jsonl", "--task", PUBLIC / "squad_xquad_en.jsonl",
                    PUBLIC / "alpaca_en_demo.json", "--size", "600", "--output", tmp_path / "noisy")  # fmt: skip
    assert result.returncode == 0, result.stderr
    noisy = read(tmp_path / "noisy" / "noisy.jsonl")
    assert len(noisy) == 600 and sum(row["polarity"] == "unsafe" for row in noisy) == 300
    assert {row["source"] for row in noisy if row["polarity"] == "unsafe"} > {"Age", "toxigen_annotated"}
