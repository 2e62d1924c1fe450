"""Encoder-decoders: T5 and BART, small and random, with tokenizers trained here on the rows themselves."""

import json
import re

import pytest
import torch

from utils.configs import GenerationConfig
from utils.data import read_table
from utils.generation import generate
from utils.loading import load_model, load_tokenizer
from utils.models import resolve
from utils.params import ROOT
from utils.prompts import REWRITE_TEMPLATES
from utils.supervision import encode

TRAIN = ROOT / "training" / "train_seq2seq.py"
INFER = ROOT / "testing" / "infer.py"
TEXTS = [f"The {bad} {who} {does} again." for bad in ("dumb", "lazy", "rude") for who in ("cook", "boss", "clerk")
         for does in ("shouted", "left", "called", "slept")]  # fmt: skip
ROWS = [(text, re.sub("dumb |lazy |rude ", "", text)) for text in TEXTS]
SPECIALS = ["<s>", "<pad>", "</s>", "<unk>"]


def train_tokenizer(kind: str):
    """As T5 and BART have it: a unigram model that ends a text with </s>, or byte pairs between <s> and </s>."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    if kind == "t5":
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=200, special_tokens=SPECIALS, unk_token="<unk>")
        around = "$A </s>"
    else:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(False), decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=SPECIALS, initial_alphabet=alphabet)
        around = "<s> $A </s>"
    tokenizer.train_from_iterator([*TEXTS, *REWRITE_TEMPLATES.values()] * 5, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(around, special_tokens=[("<s>", 0), ("</s>", 2)])
    begin = {"bos_token": "<s>"} if kind == "bart" else {}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", **begin
    )


def make_base(kind: str, folder):
    from transformers import BartConfig, BartForConditionalGeneration, T5Config, T5ForConditionalGeneration

    tokenizer = train_tokenizer(kind)
    torch.manual_seed(0)
    if kind == "t5":
        sizes = {"d_model": 64, "d_ff": 128, "d_kv": 16, "num_layers": 2, "num_heads": 4, "dropout_rate": 0.0}
        ids = {"pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
        model = T5ForConditionalGeneration(T5Config(vocab_size=len(tokenizer), **sizes, **ids))
    else:
        layers = {f"{side}_{what}": number for side in ("encoder", "decoder")
                  for what, number in (("layers", 2), ("attention_heads", 4), ("ffn_dim", 128))}  # fmt: skip
        ids = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}
        model = BartForConditionalGeneration(
            BartConfig(vocab_size=len(tokenizer), d_model=64, dropout=0.0, **layers, **ids)
        )
        # what the published checkpoints bring with them
        bends = {"no_repeat_ngram_size": 3, "num_beams": 4, "early_stopping": True, "forced_eos_token_id": 2}
        model.generation_config.update(forced_bos_token_id=0, **bends)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=["t5", "bart"])
def base(request, tmp_path_factory):
    return make_base(request.param, tmp_path_factory.mktemp("seq2seq") / request.param)


def test_what_is_read_and_what_is_written_have_the_special_tokens_of_the_model(base):
    """The prompt is what infer.py puts before the encoder; both sides are as the tokenizer makes a single text."""
    tokenizer = load_tokenizer(resolve(str(base)), side="right")
    row = {"number": 1, "prompt": TEXTS[0], "completion": ROWS[0][1], "templated": True}
    example = encode(row, tokenizer, "rewrite")
    read = example.labels.count(-100)
    asked = f"{REWRITE_TEMPLATES['rewrite']}\n\n{TEXTS[0]}"
    assert example.starts_as_prompt and example.input_ids[:read] == tokenizer(asked)["input_ids"]
    assert example.labels[read:] == tokenizer(ROWS[0][1])["input_ids"]


def test_answers_do_not_depend_on_the_batch_and_are_plain_greedy(base):
    """Padding must not move the positions of BART, and settings that a checkpoint brings must not bend the answer."""
    ref = resolve(str(base))
    model, tokenizer = load_model(ref).float(), load_tokenizer(ref)
    chats = [[{"role": "user", "content": text}] for text in ("The", *TEXTS[:3], " ".join(TEXTS[:4]))]
    config = GenerationConfig(max_new_tokens=12)
    together = {a.index: a for a in generate(model, tokenizer, chats, config)}
    for i, chat in enumerate(chats):
        (alone,) = generate(model, tokenizer, [chat], config)
        assert (alone.text, alone.status) == (together[i].text, together[i].status)
        ids = tokenizer(chat[0]["content"], return_tensors="pt")["input_ids"]
        written = [model.generation_config.decoder_start_token_id]
        for n in range(12):
            forced = model.generation_config.forced_bos_token_id
            with torch.no_grad():
                likeliest = int(model(input_ids=ids, decoder_input_ids=torch.tensor([written])).logits[0, -1].argmax())
            written.append(forced if n == 0 and forced is not None else likeliest)
            if written[-1] == tokenizer.eos_token_id:
                break
        assert tokenizer.decode(written[1:], skip_special_tokens=True).strip() == alone.text
        assert (alone.status == "ok") == (written[-1] == tokenizer.eos_token_id)


def test_an_encoder_decoder_learns_is_resumed_and_answers(base, script, tmp_path):
    pairs, output = tmp_path / "pairs.csv", tmp_path / "model"
    pairs.write_text("biased_text,debiased_text\n" + "".join(f"{a},{b}\n" for a, b in ROWS))
    flags = [TRAIN, "--base_model", base, "--input", pairs, "--output", output, "--lr", 3e-3, "--batch_size", 9]
    flags += ["--epochs", 80, "--prompt", "rewrite-short", "--compute_dtype", "float32", "--report_to", "none"]
    result = script(*flags)
    assert result.returncode == 0, result.stderr
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["validation_loss"] < metrics["validation_loss_before"] / 4
    card = (output / "README.md").read_text()
    assert "text2text-generation" in card and "full on " in card and (output / "audit.html").is_file()
    again = script(*flags, "--resume")
    assert again.returncode == 0 and "nothing to go on with" in again.stdout
    answered = script(INFER, "--base_model", output, "--input", pairs, "--output", tmp_path / "out.csv",
                      "--max_new_tokens", 40)  # fmt: skip
    assert answered.returncode == 0, answered.stderr
    frame = read_table(tmp_path / "out.csv")
    assert (frame["status"] == "ok").mean() > 0.9
    alike = (frame["generated_text"] == frame["debiased_text"]).mean()
    assert alike > 0.5, list(frame["generated_text"])[:5]
    record = json.loads((tmp_path / "out.csv.run.json").read_text())
    assert record["prompt"] == "rewrite-short"


@pytest.fixture
def build(base, tmp_path):
    """A trainer on eight rows, not trained yet."""
    from utils.configs import Seq2SeqConfig
    from utils.helpers import set_seed
    from utils.seq2seq import build_seq2seq_trainer

    def make(**settings):
        set_seed(0)
        ref = resolve(str(base))
        tokenizer = load_tokenizer(ref, side="right")
        rows = [{"number": n, "prompt": f"{a} {a}" * n, "completion": f"{b} {b}" * n, "templated": True}
                for n, (a, b) in enumerate(ROWS[:8])]  # fmt: skip
        settings = {"compute_dtype": "float32", "report_to": "none", "patience": 0, "batch_size": 8} | settings
        config = Seq2SeqConfig(base_model=str(base), max_steps=3, eval_steps=3, logging_steps=1, lr=0.01, **settings)
        examples = [encode(row, tokenizer, "rewrite-short") for row in rows]
        return build_seq2seq_trainer(config, ref, examples, examples, tokenizer, tmp_path)

    return make


def test_the_loss_is_a_mean_over_tokens_however_the_rows_are_batched(build):
    """Rows of very different lengths: a mean of the means of batches would be another number."""
    curves = []
    for settings in ({}, {"batch_size": 2, "gradient_accumulation": 4, "eval_batch_size": 3}):
        trainer = build(**settings)
        trainer.train()
        curves.append([(entry.get("loss"), entry.get("grad_norm"), entry.get("eval_loss"))
                       for entry in trainer.state.log_history[:-1]])  # fmt: skip
    wanted, found = ([value for entry in curve for value in entry if value] for curve in curves)
    assert len(wanted) == 7 and found == pytest.approx(wanted, rel=1e-3)


def test_the_order_of_rows_is_fixed_by_seed_and_epoch(build):
    trainer = build(batch_size=1)
    orders = []
    for epoch in (0, 1, 1.4):  # 1.4: where a run is resumed within the second pass
        trainer.state.epoch = epoch
        orders.append(list(trainer._get_train_sampler()))
        torch.rand(1)
    assert sorted(orders[0]) == list(range(8)) and orders[0] != orders[1] == orders[2]


def test_models_and_settings_of_another_kind_are_refused(tiny_model, script, tmp_path):
    for flags, said in (
        (["--base_model", tiny_model], "is no encoder-decoder (llama)"),
        (["--base_model", tiny_model, "--prompt", "fill"], "an encoder-decoder writes whole answers"),
        (["--base_model", tiny_model, "--quantization", "nf4"], "all weights are trained, in float32"),
    ):
        result = script(TRAIN, *flags, "--output", tmp_path / "model")
        assert result.returncode == 2 and said in result.stderr.splitlines()[-1], result.stderr


def test_train_names_the_script_for_this_kind(base, script, tmp_path):
    result = script(ROOT / "training" / "train.py", "--base_model", base, "--output", tmp_path / "adapter")
    assert result.returncode == 2 and "training/train_seq2seq.py trains it" in result.stderr.splitlines()[-1]
