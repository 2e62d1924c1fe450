"""8-bit products for inference on a CPU: close to the real ones, and the same whatever else is in the batch."""

import pytest
import torch

from utils.configs import GenerationConfig
from utils.generation import generate
from utils.int8 import Int8Linear
from utils.loading import load_model, load_tokenizer
from utils.models import resolve


@pytest.mark.parametrize("bias", [True, False])
def test_products_are_close_and_rows_are_on_their_own(bias):
    torch.manual_seed(0)
    linear = torch.nn.Linear(96, 50, bias=bias)
    quantised = Int8Linear(linear)
    x = torch.randn(2, 9, 96) * torch.logspace(-3, 3, 9)[:, None]  # rows of very different size
    with torch.no_grad():
        wanted, found = linear(x), quantised(x)
        assert found.shape == wanted.shape
        off = (found - wanted).norm(dim=-1) / (wanted - (linear.bias if bias else 0)).norm(dim=-1)
        assert off.max() < 0.02
        assert torch.equal(quantised(x[1, 4]), found[1, 4])
        assert quantised(torch.zeros(1, 96)).equal(linear.bias[None] if bias else torch.zeros(1, 50))


def test_a_model_in_8_bits_answers_as_its_own_forward_pass_would(tiny_model):
    ref = resolve(str(tiny_model))
    model, tokenizer = load_model(ref, "int8"), load_tokenizer(ref)
    assert isinstance(model.lm_head, Int8Linear) and model.lm_head.weight.dtype == torch.int8
    chats = [[{"role": "user", "content": text}] for text in ("a", "two words", "some more words " * 3)]
    for answer in generate(model, tokenizer, chats, GenerationConfig(max_new_tokens=6)):
        prompt = tokenizer.apply_chat_template(chats[answer.index], add_generation_prompt=True, return_dict=True)
        ids = list(prompt["input_ids"])
        for _ in range(6):
            with torch.no_grad():
                ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        assert tokenizer.decode(ids[-6:], skip_special_tokens=True).strip() == answer.text
