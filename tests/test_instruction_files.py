"""The Alpaca prompt and the files of Safety-Tuned LLaMAs, as published: learned, answered, written."""

import json

import pytest

from utils.configs import TrainConfig
from utils.data import read_pairs, read_table
from utils.helpers import UserError
from utils.loading import load_tokenizer
from utils.models import resolve
from utils.params import ROOT, TEMPLATE_DIR
from utils.prompt_styles import Instruction, chat_template, style_record, user_turn

TRAIN, INFER = ROOT / "training" / "train.py", ROOT / "testing" / "infer.py"
PUBLIC = ROOT.parent / "shared" / "data" / "safety_tuned_llamas"
ALPACA = json.loads((TEMPLATE_DIR / "alpaca.json").read_text())


def written(tokenizer, *turns) -> str:
    return tokenizer.apply_chat_template(list(turns), tokenize=False, add_generation_prompt=True)


def test_prompts_are_those_of_the_published_template(tiny_model):
    tokenizer = load_tokenizer(resolve(str(tiny_model)), style="alpaca")
    with_input = ALPACA["prompt_input"].format(instruction='Add "{input}"', input="1 \\n 1")
    alone = ALPACA["prompt_no_input"].format(instruction="Hi")
    assert written(tokenizer, user_turn(Instruction('Add "{input}"', "1 \\n 1"))) == with_input
    assert written(tokenizer, user_turn(Instruction("Hi"))) == written(tokenizer, user_turn("Hi")) == alone
    system = {"role": "system", "content": 'Add "{input}"'}
    assert written(tokenizer, system, user_turn("1 \\n 1")) == with_input
    answered = written(tokenizer, user_turn("Hi"), {"role": "assistant", "content": "Ho"})
    assert answered == f"{alone}Ho<|im_end|>"
    again = written(tokenizer, user_turn("Hi"), {"role": "assistant", "content": "Ho"}, user_turn("Hi"))
    assert again == f"{alone}Ho<|im_end|>\n\n{alone}"


def test_a_text_begins_as_the_tokenizer_begins_it(tiny_model, tmp_path):
    tokenizer = load_tokenizer(resolve(str(tiny_model)))
    tokenizer.chat_template = chat_template("alpaca", begins=True)
    assert written(tokenizer, user_turn("Hi")).startswith("<|im_start|>Below")


def test_a_template_of_ones_own_is_read(tiny_model, tmp_path):
    own = tmp_path / "own.json"
    own.write_text(json.dumps({"prompt_input": "Q {instruction} | {input} A", "prompt_no_input": "Q {instruction} A"}))
    tokenizer = load_tokenizer(resolve(str(tiny_model)), style=str(own))
    assert written(tokenizer, user_turn(Instruction("why", "sky"))) == "Q why | sky A"
    assert written(tokenizer, user_turn(Instruction("", "sky"))) == "Q  | sky A"
    own.write_text(
        json.dumps({"prompt_input": "{instruction}\U0001f600{input}", "prompt_no_input": '"{instruction}"\\n'})
    )
    tokenizer = load_tokenizer(resolve(str(tiny_model)), style=str(own))
    assert written(tokenizer, user_turn(Instruction("why", "sky"))) == "why\U0001f600sky"
    assert written(tokenizer, user_turn("why")) == '"why"\\n'


@pytest.mark.parametrize(
    "content",
    [
        '{"prompt_input": "{input}{instruction}", "prompt_no_input": "{instruction}"}',
        "{}",
        "[]",
        '{"prompt_input": 5}',
    ],
)
def test_a_template_of_another_form_is_refused(content, tmp_path):
    (tmp_path / "bad.json").write_text(content)
    with pytest.raises(UserError, match="expected prompt_input"):
        chat_template(str(tmp_path / "bad.json"), begins=False)
    with pytest.raises(UserError, match="there are alpaca"):
        chat_template("vicuna", begins=False)


def test_the_chat_template_of_a_model_sees_instruction_and_input_as_one(tiny_model):
    tokenizer = load_tokenizer(resolve(str(tiny_model)))
    assert "user\nAdd\n\n1 1<" in written(tokenizer, user_turn(Instruction("Add", "1 1")))


@pytest.fixture(scope="module")
def alpaca_model(tmp_path_factory, tiny_model):
    """An adapter that was trained on Alpaca rows in the Alpaca prompt."""
    from tests.conftest import run_script

    folder = tmp_path_factory.mktemp("alpaca")
    rows = [{"instruction": f"say {n}", "input": "x" if n % 2 else "", "output": f"{n}"} for n in range(12)]
    (folder / "rows.json").write_text(json.dumps(rows))
    flags = ["--eval_steps", "2", "--lora_r", "4"]
    published = ["--data_path", folder / "rows.json", "--output_dir", folder / "adapter", "--num_epochs", "1",
                 "--prompt_template_name", "alpaca", "--batch_size", "4", "--micro_batch_size", "2", "--cutoff_len",
                 "512", "--lora_target_modules", "[q_proj,v_proj]", "--learning_rate", "3e-4"]  # fmt: skip
    result = run_script(TRAIN, "--base_model", tiny_model, *published, *flags)
    assert result.returncode == 0, result.stderr
    return folder / "adapter"


def test_a_model_keeps_the_style_that_it_was_trained_in(alpaca_model):
    record = json.loads((alpaca_model / "run.json").read_text())
    assert record["config"]["lora_targets"] == "q_proj,v_proj" and record["config"]["batch_size"] == 4
    assert record["prompt"] == "answer" and record["config"]["prompt_style"] == "alpaca"
    tokenizer = load_tokenizer(resolve(None, alpaca_model))
    assert written(tokenizer, user_turn("Hi")) == ALPACA["prompt_no_input"].format(instruction="Hi")


def test_lists_of_instructions_are_answered_and_results_have_the_published_form(alpaca_model, script, tmp_path):
    asked = {"instructions": ["Say a", "Say b"], "inputs": ["", "now"], "tags": ["x", "y"]}
    (tmp_path / "I-test.json").write_text(json.dumps(asked))
    flags = ["--lora_weights", alpaca_model, "--input_path", tmp_path / "I-test.json", "--max_new_tokens", "3"]
    chance = ["--temperature", "0.1", "--top_p", "0.75", "--top_k", "40", "--num_beams", "2"]
    published = script(INFER, *flags, "--output_path", tmp_path / "out.json", *chance,
                       "--prompt_template_path", "alpaca")  # fmt: skip
    assert published.returncode == 0, published.stderr
    found = json.loads((tmp_path / "out.json").read_text())
    assert list(found) == ["parameters", "inputs", "instructions", "outputs"]
    assert (found["instructions"], found["inputs"]) == (asked["instructions"], asked["inputs"])
    assert len(found["outputs"]) == 2 and found["parameters"]["top_k"] == 40
    assert list(read_table(tmp_path / "out.json").columns) == ["instruction", "input", "output"]
    again = script(INFER, *flags, "--output_path", tmp_path / "out.json")
    assert again.returncode == 2 and "already there" in again.stderr

    table = script(INFER, *flags, "--output", tmp_path / "out.csv")
    assert table.returncode == 0, table.stderr
    frame = read_table(tmp_path / "out.csv")
    assert list(frame["prompt"]) == ["Say a", "Say b\n\nnow"] and list(frame["tag"]) == ["x", "y"]
    record = json.loads((tmp_path / "out.csv.run.json").read_text())
    assert record["prompt"] == "answer"


def test_the_style_decides_what_a_model_answers(alpaca_model, script, tmp_path):
    """A model in its own chat template says something else."""
    flags = ["--adapter_model", alpaca_model, "--input_text", "say 3", "--prompt", "answer", "--max_new_tokens", "12"]
    (tmp_path / "bare.json").write_text('{"prompt_input": "{instruction}{input}", "prompt_no_input": "{instruction}"}')
    kept, same, other = (
        script(INFER, *flags, *style)
        for style in ((), ("--prompt_style", "alpaca"), ("--prompt_style", tmp_path / "bare.json"))
    )
    assert kept.returncode == other.returncode == 0, other.stderr
    assert kept.stdout == same.stdout != other.stdout
    wrong = script(INFER, *flags, "--prompt_style", "vicuna")
    assert wrong.returncode == 2 and "there are alpaca" in wrong.stderr


def test_an_edited_template_is_another_prompt(tmp_path):
    """Nothing goes on under the name of a file that says something else now."""
    style = tmp_path / "mine.json"
    style.write_text('{"prompt_input": "{instruction}{input}", "prompt_no_input": "{instruction}"}')
    before, read = style_record(str(style)), TrainConfig(prompt_style=str(style)).files()
    style.write_text(style.read_text().replace('{instruction}"', '{instruction}:"'))
    assert style in read and style_record(str(style)) != before


def test_the_style_survives_merging(alpaca_model, script, tmp_path):
    result = script(ROOT / "training" / "merge.py", "--adapter_model", alpaca_model, "--output", tmp_path / "merged")
    assert result.returncode == 0, result.stderr
    tokenizer = load_tokenizer(resolve(str(tmp_path / "merged")))
    assert written(tokenizer, user_turn("Hi")) == ALPACA["prompt_no_input"].format(instruction="Hi")


def test_a_server_is_told_role_and_content_only(server, script, tmp_path):
    (tmp_path / "ask.json").write_text(json.dumps({"instructions": ["Say [plain]"], "inputs": ["now"]}))
    result = script(INFER, "--engine", "endpoint", "--model", "m", "--input", tmp_path / "ask.json",
                    "--output", tmp_path / "out.csv", env=server.env)  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert server.log[0]["request"]["messages"] == [{"role": "user", "content": "Say [plain]\n\nnow"}]


def test_a_baseline_takes_instructions_too(script, tmp_path):
    (tmp_path / "ask.json").write_text(json.dumps({"instructions": ["Say a"], "inputs": []}))
    result = script(INFER, "--baseline", "copy", "--input", tmp_path / "ask.json", "--output", tmp_path / "out.csv")
    assert result.returncode == 0, result.stderr
    assert list(read_table(tmp_path / "out.csv")["generated_text"]) == ["Say a"]


def test_uneven_lists_are_refused(tmp_path):
    (tmp_path / "x.json").write_text(json.dumps({"instructions": ["a", "b"], "inputs": ["c"]}))
    with pytest.raises(UserError, match="inputs has 1 entries, instructions has 2"):
        read_table(tmp_path / "x.json")


@pytest.mark.skipif(not PUBLIC.is_dir(), reason="the published files are not here: see benchmarks/README.md")
@pytest.mark.parametrize("path", sorted(PUBLIC.glob("*.json")), ids=lambda path: path.stem)
def test_every_published_file_is_read(path):
    content, frame = json.loads(path.read_text()), read_table(path)
    if isinstance(content, list):
        rows = read_pairs(path, "x", "y")
        assert [row["completion"] for row in rows] == [row["output"] for row in content]
    else:
        assert list(frame["instruction"]) == content["instructions"] and set(frame["input"]) == {""}
        assert list(frame.get("tag", [])) == content.get("tags", [])
