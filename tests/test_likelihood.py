"""Our loss is the ordinary one: packed rows, the shared beginning run once, LoRA in one product, logits in pieces."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import GemmaConfig, GemmaForCausalLM, MistralConfig, MistralForCausalLM

from tests.fourbit import with_lora
from utils import likelihood
from utils.likelihood import completion_loss
from utils.loading import load_base
from utils.models import resolve
from utils.packing import pack, pack_tree, shared_prefix, supports


def a_batch(vocabulary=200):
    """Four rows of different length that begin alike; in each some tokens are learned, in the last a gap is not."""
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(3, vocabulary, (4, 20), generator=generator)
    ids[:, :6] = ids[0, :6]
    lengths = torch.tensor([20, 13, 17, 9])
    mask = (torch.arange(20) < lengths[:, None]).long()
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, :8] = -100
    labels[0, 12:15] = -100
    return {"input_ids": ids * mask, "attention_mask": mask, "labels": labels}


def loss_and_gradient(model, loss_of, parts):
    model.zero_grad()
    total = 0.0
    for part in parts:
        loss = loss_of(part)
        loss.backward()
        total += loss.item()
    return total, torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def assert_equal_to_the_ordinary_loss(model):
    batch = a_batch()
    wanted, wanted_gradient = loss_and_gradient(model, lambda b: model(**b, use_cache=False).loss, [batch])
    found, gradient = loss_and_gradient(model, lambda b: completion_loss(model, b), [batch])
    assert found == pytest.approx(wanted, rel=1e-5)
    assert (gradient - wanted_gradient).norm() / wanted_gradient.norm() < 1e-5
    # in parts, as under gradient accumulation, with the mean over all tokens
    tokens = int((batch["labels"][:, 1:] != -100).sum())
    parts = [{name: value[rows] for name, value in batch.items()} for rows in ([1, 0], [3], [2])]
    found, gradient = loss_and_gradient(model, lambda b: completion_loss(model, b, tokens), parts)
    assert found == pytest.approx(wanted, rel=1e-5)
    assert (gradient - wanted_gradient).norm() / wanted_gradient.norm() < 1e-5


@pytest.mark.parametrize("method", ["lora", "full", "nf4"])
def test_loss_and_gradients_are_the_ordinary_ones(tiny_model, method):
    quantization = "nf4" if method == "nf4" else "none"
    model = load_base(resolve(str(tiny_model)), quantization, {"compute_dtype": "float32"}, training=True)
    if method != "full":
        model = with_lora(model)
    assert supports(model) is None
    assert_equal_to_the_ordinary_loss(model.train())


def small(config_class, model_class, **more):
    torch.manual_seed(0)
    config = config_class(
        vocab_size=256, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, pad_token_id=0, attn_implementation="eager", **more,
    )  # fmt: skip
    return model_class(config)


def test_fewer_key_heads_and_a_sliding_window_shorter_than_a_row():
    assert_equal_to_the_ordinary_loss(small(MistralConfig, MistralForCausalLM, sliding_window=5))


def test_tied_embeddings_and_scaled_inputs():
    assert_equal_to_the_ordinary_loss(small(GemmaConfig, GemmaForCausalLM, tie_word_embeddings=True))


@pytest.mark.parametrize("more", [{"lora_dropout": 0.0}, {"use_dora": True}, {"lora_bias": True}])
def test_lora_layers_of_other_kinds_are_left_to_peft(tiny_model, more):
    base = load_base(resolve(str(tiny_model)), "none", {"compute_dtype": "float32"}, training=True)
    model = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", **more))
    assert_equal_to_the_ordinary_loss(model)


def test_dropout_on_the_adapter_still_drops(tiny_model):
    base = load_base(resolve(str(tiny_model)), "none", {"compute_dtype": "float32"}, training=True)
    model = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.5, task_type="CAUSAL_LM"))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    model.train()
    assert completion_loss(model, a_batch()).item() != completion_loss(model, a_batch()).item()
    assert_equal_to_the_ordinary_loss(model.eval())


def test_all_positions_are_learned_where_the_prompt_is_too(tiny_model):
    """--train_on_inputs: nothing is shared, since the first tokens are learned."""
    model = with_lora(load_base(resolve(str(tiny_model)), "none", {"compute_dtype": "float32"}, training=True))
    batch = a_batch()
    batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    assert [piece.rows for piece in pack(**batch).pieces] == [(0,), (1,), (2,), (3,)]
    assert completion_loss(model, batch).item() == pytest.approx(model(**batch).loss.item(), rel=1e-5)


def test_packing_runs_the_shared_tokens_once():
    batch = a_batch()
    assert shared_prefix(batch["input_ids"], batch["attention_mask"], batch["labels"]) == 5
    packed = pack(**batch)
    shared, *rows = packed.pieces
    assert shared == (slice(0, 5), (), (0, 1, 2, 3)) and all(piece.before == (slice(0, 5),) for piece in rows)
    assert [piece.tokens.stop - piece.tokens.start for piece in rows] == [15, 8, 12, 4]
    assert [piece.rows for piece in rows] == [(0,), (1,), (2,), (3,)] and len(packed.ids) == 5 + 15 + 8 + 12 + 4
    assert packed.positions[:20].tolist() == list(range(20)) and packed.positions[20].item() == 5
    learned = packed.targets[packed.targets != -100].tolist()
    assert learned == batch["labels"][batch["labels"] != -100].tolist()
    one = {name: value[:1] for name, value in batch.items()}
    assert pack(**one).pieces == [(slice(0, 20), (), (0,))]


def test_a_tree_runs_what_any_rows_share_once_and_keeps_their_order():
    """Two texts that go on in two ways each, and answers of one or two tokens."""
    text, further = list(range(10, 20)), list(range(30, 42))
    rows = [[*text, 1], [*text, *further, 3, 4], [*text, 2, 5], [*text, *further, 6]]
    packed = pack_tree(rows, [10, 22, 10, 22])
    beginnings = [piece for piece in packed.pieces if len(piece.rows) > 1]
    assert [piece.tokens.stop - piece.tokens.start for piece in beginnings] == [9, 12]
    assert [piece.rows for piece in beginnings] == [(0, 1, 2, 3), (1, 3)]
    assert beginnings[1].before == (beginnings[0].tokens,)
    assert_rows_of(packed, rows, [10, 22, 10, 22])
    assert len(pack_tree([[1, 2, 3], [7, 8, 9]], [2, 2]).pieces) == 2  # nothing in common
    assert len(pack_tree([[1, 2, 3], [1, 2, 9]], [2, 2]).pieces) == 2  # too little to be worth a piece


def test_a_tree_shares_what_is_learned_too():
    """Sentences that differ in their last word but one, and one that stands there twice."""
    said = list(range(10, 30))
    rows = [[1, *said, 3, 7], [1, *said, 4, 7], [1, *said, 3, 7]]
    packed = pack_tree(rows, [1, 1, 1])
    assert len(packed.ids) == 20 + 3 * 2  # two tokens of the double one are not worth a piece
    assert_rows_of(packed, rows, [1, 1, 1])


def assert_rows_of(packed, rows: list[list[int]], starts: list[int]) -> None:
    """The pieces of each row are the row, and its targets what it learns."""
    for number, (row, start) in enumerate(zip(rows, starts, strict=True)):
        mine = [piece for piece in packed.pieces if number in piece.rows]
        assert [piece.before for piece in mine] == [tuple(p.tokens for p in mine[:n]) for n in range(len(mine))]
        ids, positions, targets = (
            sum((values[piece.tokens].tolist() for piece in mine), [])
            for values in (packed.ids, packed.positions, packed.targets)
        )
        assert ids == row[:-1] and positions == list(range(len(row) - 1))  # nothing follows the last token
        assert targets == [-100] * (start - 1) + row[start:]


def test_logits_are_never_all_in_memory(tiny_model, monkeypatch):
    model = with_lora(load_base(resolve(str(tiny_model)), "none", {"compute_dtype": "float32"}, training=True))
    monkeypatch.setattr(likelihood, "OUTPUT_ROWS", 3)
    sizes = []
    plain = torch.log_softmax
    monkeypatch.setattr(torch, "log_softmax", lambda x, *a, **k: sizes.append(len(x)) or plain(x, *a, **k))
    assert_equal_to_the_ordinary_loss(model)
    assert max(sizes) <= 3


def test_what_cannot_be_packed_says_why(tiny_model):
    ref = resolve(str(tiny_model))
    assert "8-bit" in supports(load_base(ref, "int8", training=True))
    from peft import PrefixTuningConfig

    prefix = get_peft_model(load_base(ref), PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4))
    assert "prefix" in supports(prefix)
    capped = load_base(ref)
    capped.config.final_logit_softcapping = 30.0
    assert "scaled" in supports(capped)
