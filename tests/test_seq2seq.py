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


@pytest.fixture(scope="module", params=["t5", "bart"])
def base(request, tmp_path_factory):
    from transformers import BartConfig, BartForConditionalGeneration, T5Config, T5ForConditionalGeneration

    folder = tmp_path_factory.mktemp("seq2seq") / request.param
    tokenizer = train_tokenizer(request.param)
    torch.manual_seed(0)
    if request.param == "t5":
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
        model.generation_config.update(forced_bos_token_id=0, no_repeat_ngram_size=3, num_beams=4, early_stopping=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


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


def test_models_and_settings_of_another_kind_are_refused(tiny_model, script, tmp_path):
    for flags, said in (
        (["--base_model", tiny_model], "is no encoder-decoder (llama)"),
        (["--base_model", tiny_model, "--prompt", "fill"], "an encoder-decoder writes whole answers"),
        (["--base_model", tiny_model, "--quantization", "nf4"], "all weights are trained, in float32"),
    ):
        result = script(TRAIN, *flags, "--output", tmp_path / "model")
        assert result.returncode == 2 and said in result.stderr.splitlines()[-1], result.stderr
