"""The trainer: batches in parts, a loss that is checked once, evaluation by tokens, and a stop at NaN."""

import logging

import pytest
import torch

from utils import packing
from utils.batches import split_batch
from utils.configs import TrainConfig
from utils.helpers import UserError, set_seed
from utils.loading import load_tokenizer
from utils.models import resolve
from utils.supervision import Example
from utils.trainer import build_trainer

FP32 = {"quantization": "none", "compute_dtype": "float32", "lora_r": 4, "report_to": "none"}


def rows():
    generator = torch.Generator().manual_seed(3)
    data = []
    for length in (12, 30, 7, 19, 25, 9):
        ids = [5, 6, 7, 8, *torch.randint(9, 200, (length,), generator=generator).tolist()]
        data.append(Example({}, ids, [-100] * 6 + ids[6:], True))
    return data


@pytest.fixture
def build(tiny_model, tmp_path):
    def make(**settings):
        set_seed(0)
        ref = resolve(str(tiny_model))
        config = TrainConfig(**FP32 | {"batch_size": 6} | settings)
        return build_trainer(config, ref, rows(), rows(), load_tokenizer(ref, side="right"), tmp_path)

    return make


def step_gradient(trainer, counted=True):
    batch = trainer.data_collator(list(trainer.train_dataset))
    tokens = (batch["labels"][:, 1:] != -100).sum() if counted else None
    trainer.optimizer = None
    loss = trainer.training_step(trainer.model, batch, tokens)
    return loss.item(), torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None])


@pytest.mark.parametrize("more", [{}, {"method": "full"}, {"gradient_checkpointing": True}])
def test_a_batch_in_parts_has_the_gradient_of_the_whole_batch(build, more):
    loss, gradient = step_gradient(build(**more))
    parts_loss, parts_gradient = step_gradient(build(micro_batch_tokens=40, **more))
    assert parts_loss == pytest.approx(loss, rel=1e-5)
    assert (parts_gradient - gradient).norm() / gradient.norm() < 1e-5


def test_a_batch_in_parts_without_a_count_of_tokens(build):
    """The library gives none for models that do not say that they take it."""
    loss, gradient = step_gradient(build())
    small = build(micro_batch_tokens=40)
    small.model_accepts_loss_kwargs, small.current_gradient_accumulation_steps = False, 1
    parts_loss, parts_gradient = step_gradient(small, counted=False)
    assert parts_loss == pytest.approx(loss, rel=1e-5)
    assert (parts_gradient - gradient).norm() / gradient.norm() < 1e-5


def test_gradient_checkpointing_trains_by_the_ordinary_loss(build):
    """The same weights as without, after whole steps: the library switches it on as training begins."""
    weights = []
    for more in ({}, {"gradient_checkpointing": True}):
        trainer = build(max_steps=2, eval_steps=2, patience=0, group_by_length=False, **more)
        trainer.args.eval_on_start = True
        trainer.train()
        assert (trainer.ordinary_because is not None) == bool(more)
        assert trainer.model.get_base_model().is_gradient_checkpointing == bool(more)
        weights.append(torch.cat([p.flatten() for p in trainer.model.parameters() if p.requires_grad]))
    assert (weights[0] - weights[1]).norm() / weights[0].norm() < 1e-4


def test_our_loss_trains_like_the_ordinary_one(build, monkeypatch):
    ours = build()
    assert ours.ordinary_because is None
    monkeypatch.setattr(packing, "supports", lambda model: "the test says so")
    ordinary = build()
    assert ordinary.ordinary_because == "the test says so"
    (loss, gradient), (wanted, wanted_gradient) = step_gradient(ours), step_gradient(ordinary)
    assert loss == pytest.approx(wanted, rel=1e-5)
    assert (gradient - wanted_gradient).norm() / wanted_gradient.norm() < 1e-5


@pytest.mark.parametrize("fault", ["wrong numbers", "not possible"])
def test_a_loss_that_does_not_fit_the_model_is_noticed_and_not_used(build, monkeypatch, caplog, fault):
    """As if attention let a token see the rows before it, or the model wanted more than our attention can do."""

    def wrong(length, before, window, dtype, device):
        if fault == "not possible":
            raise NotImplementedError("attention with softcap")
        return torch.zeros(length, before + length, dtype=dtype)

    monkeypatch.setattr(packing, "_causal_mask", wrong)
    ours = build()
    with caplog.at_level(logging.WARNING):
        loss, gradient = step_gradient(ours)
    assert "the ordinary loss of the library is used" in caplog.text
    assert "does not fit this model" in ours.ordinary_because
    monkeypatch.undo()
    wanted, wanted_gradient = step_gradient(build())
    assert loss == pytest.approx(wanted, rel=1e-5)
    assert (gradient - wanted_gradient).norm() / wanted_gradient.norm() < 1e-5


def test_the_check_leaves_no_trace(build):
    """Neither gradients nor draws from the random generator, so that a resumed run is the same."""
    ours = build(lora_dropout=0.3)
    batch = ours.data_collator(list(ours.train_dataset))
    before = torch.get_rng_state()
    ours._check_loss(batch)
    assert torch.equal(before, torch.get_rng_state()) and ours.ordinary_because is None and ours.model.training
    assert not any(p.grad is not None and p.grad.any() for p in ours.model.parameters())


@pytest.mark.parametrize("more", [{}, {"gradient_checkpointing": True}])
def test_validation_loss_is_a_mean_over_tokens_whatever_the_batches(build, more):
    ours = build(eval_batch_size=4, micro_batch_tokens=60, **more)
    total, tokens = 0.0, 0
    with torch.no_grad():
        for row in ours.eval_dataset:
            one = {name: torch.tensor([row[name]]) for name in ("input_ids", "labels")}
            n = int((one["labels"][:, 1:] != -100).sum())
            total += ours.model(**one).loss.item() * n
            tokens += n
    assert ours.evaluate()["eval_loss"] == pytest.approx(total / tokens, rel=1e-5)


def test_a_batch_is_split_by_tokens_and_cut_to_its_rows():
    batch = {
        "input_ids": torch.arange(40).view(4, 10),
        "attention_mask": (torch.arange(10) < torch.tensor([3, 10, 4, 9])[:, None]).long(),
        "labels": torch.arange(40).view(4, 10),
    }
    parts = list(split_batch(batch, 20))
    assert [part["input_ids"].shape for part in parts] == [(2, 10), (2, 4)]
    assert parts[0]["input_ids"][:, 0].tolist() == [10, 30] and parts[1]["input_ids"][:, 0].tolist() == [20, 0]
    assert [len(part["labels"]) for part in split_batch(batch, 1)] == [1, 1, 1, 1]  # a row is never cut
    alike = {name: value.clone() for name, value in batch.items()}
    alike["input_ids"][:, :3] = 1
    alike["labels"][:, :3] = -100
    # two of the three tokens that begin all rows are run once, and there is no padding: 2 + 8 + 7 + 2 + 1
    assert len(list(split_batch(alike, 20, padded=False))) == 1
    assert len(list(split_batch(alike, 19, padded=False))) == 2


def test_a_loss_that_is_no_number_stops_with_a_diagnosis(build):
    ours = build()
    batch = ours.data_collator(list(ours.train_dataset))
    ours.checked = True
    ours.create_optimizer_and_scheduler(3)
    with torch.no_grad():
        next(p for p in ours.model.parameters() if p.requires_grad).fill_(float("inf"))
    with pytest.raises(UserError, match="loss is nan in step 1, because .* lower --lr"):
        ours.training_step(ours.model, batch, torch.tensor(10))
    ours = build()
    ours.checked = True
    with torch.no_grad():
        ours.model.get_base_model().model.norm.weight.fill_(float("inf"))
    with pytest.raises(UserError, match="all weights are finite .longest row: 34 tokens.*compute_dtype"):
        ours.training_step(ours.model, batch, torch.tensor(10))


def test_the_adapter_is_kept_in_single_precision(build):
    """A step of 1e-4 on a weight of 1 is lost in bfloat16, in which the library keeps adapters of 4-bit weights."""
    ours = build(quantization="nf4", compute_dtype="bfloat16")
    assert {p.dtype for p in ours.model.parameters() if p.requires_grad} == {torch.float32}
    assert packing.TOLERANCE[torch.float32] < packing.TOLERANCE[torch.bfloat16]
