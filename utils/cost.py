"""Cost of a response: above 0 unsafe, below 0 safe, larger is worse (Safe RLHF, arXiv 2310.12773).

A cost model is a language model with one number in place of the output layer, read at the last token. Decoders (Llama,
GPT-Neo ...) have a number at every token, encoders (DeBERTa ...) one for the text.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from utils import packing
from utils.batches import Batch
from utils.loading import is_encoder
from utils.preferences import Judged

# name -> what stands before the prompt, and between it and the response
FORMATS = {
    "question": ("Question: ", "\n\nAnswer: "),  # "Safety classification using LM"
    "conversation": ("BEGINNING OF CONVERSATION: USER: ", " ASSISTANT:"),  # Safe RLHF
    "human": ("\n\nHuman: ", "\n\nAssistant: "),  # Safety-Tuned LLaMAs
    "chat": None,  # the chat template of the model
}


@dataclass
class JudgedIds:
    """A row as the model sees it: token ids of its one or two responses, each with the prompt before it."""

    row: Judged
    sequences: list[list[int]]
    begins: int  # the first token that is judged: of the response, or where two of them part
    bare: bool  # without a prompt before it

    @property
    def id(self) -> str:
        return self.row.id

    @property
    def input_ids(self) -> list[int]:
        """The longer of the two, by which rows are measured."""
        return max(self.sequences, key=len)


def encode(row: Judged, tokenizer, form: str, bare: bool = False) -> JudgedIds:
    """Token ids of a row, the end of the text included.

    The prompt gets the tokens that it has when it stands alone, so that all responses to it begin alike.

    Args:
        bare: the prompt is left out.
    """
    prompt = "" if bare else row.prompt
    if is_encoder(tokenizer):
        texts = [(prompt, response) if prompt else (response,) for response in row.responses]
        read = [tokenizer(*pair, verbose=False) for pair in texts]  # quietly: callers see to what is too long
        sequences = [found["input_ids"] for found in read]
        response = read[0].sequence_ids(0).count(1 if prompt else 0)  # tokens, with one after them
        begins = _parting(sequences) if row.is_pair else len(sequences[0]) - 1 - response
        return JudgedIds(row, sequences, begins, not prompt)
    opening = _opening(prompt, tokenizer, form)
    before = tokenizer(opening.rstrip(" "), add_special_tokens=False)["input_ids"]
    space = opening[len(opening.rstrip(" ")) :]  # goes with the word after it, as in running text
    texts = [space + response.strip() + tokenizer.eos_token for response in row.responses]
    sequences = [before + tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    return JudgedIds(row, sequences, _parting(sequences) if row.is_pair else len(before), not prompt)


def _opening(prompt: str, tokenizer, form: str) -> str:
    """What stands before a response; nothing where a text stands alone."""
    if not prompt:
        return ""
    if FORMATS[form] is None:
        messages = [{"role": "user", "content": prompt}]
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    before, between = FORMATS[form]
    begin = tokenizer.bos_token if tokenizer.bos_token != tokenizer.eos_token else ""
    return f"{begin or ''}{before}{prompt}{between}"


def _parting(sequences: list[list[int]]) -> int:
    """Where two sequences part; of equal ones, or where one ends in the other, the last token of the shorter."""
    one, other = sequences
    pairs = enumerate(zip(one, other, strict=False))
    return next((n for n, (a, b) in pairs if a != b), min(len(one), len(other)) - 1)


def collate(examples: list[JudgedIds], pad: int) -> Batch:
    """Rows as tensors. Sequences of a row stand side by side, the more harmful one first.

    Returns:
        input_ids and attention_mask [sequences, tokens], padded on the right; for each sequence `labels`, the number
        of its row (-100: nothing is learned), `begins`, `sign` (+1 unsafe, -1 safe, 0 not known) and `harm` (NaN).
    """
    sequences = [torch.tensor(ids) for example in examples for ids in example.sequences]
    signs = {None: 0.0, True: 1.0, False: -1.0}
    of_row = [(n, example) for n, example in enumerate(examples) for _ in example.sequences]
    harm = [float("nan") if example.row.harm is None else example.row.harm for _, example in of_row]
    return {
        "input_ids": torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True, padding_value=pad),
        "attention_mask": torch.nn.utils.rnn.pad_sequence([torch.ones_like(s) for s in sequences], batch_first=True),
        "labels": torch.tensor([n for n, _ in of_row]),
        "begins": torch.tensor([example.begins for _, example in of_row]),
        "sign": torch.tensor([signs[unsafe] for example in examples for unsafe in example.row.unsafe]),
        "harm": torch.tensor(harm),
    }


def head_of(model) -> torch.nn.Linear | None:
    """The layer that makes a number of every hidden state of a decoder; None for an encoder."""
    return getattr(packing.without_adapter(model), "score", None)


def token_costs(model, inputs: Batch, packed: bool) -> list[torch.Tensor]:
    """Costs at the judged tokens of each sequence, the last one that of the whole response; of an encoder that alone.

    Args:
        inputs: of `collate`.
        packed: what the two responses of a row begin with is run once, and nothing is padded; `packing.supports`
            says for which models. Else the ordinary way.

    Returns:
        A tensor [judged tokens] for each sequence, float32, with gradient.
    """
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    ends, begins, head = mask.sum(dim=1).tolist(), inputs["begins"].tolist(), head_of(model)
    if head is None:
        return list(model(input_ids=ids, attention_mask=mask).logits.float()[:, :1])
    if packed:
        _, sizes = inputs["labels"].unique_consecutive(return_counts=True)
        rows = packing.pack(ids, mask, torch.full_like(ids, -100), sizes.tolist())
        scores = _read(head, packing.run_packed(model, rows))
        judged = zip(rows.own(), ends, begins, strict=True)
        return [scores[own.stop - (end - begin) : own.stop] for own, end, begin in judged]
    backbone = packing.without_adapter(model).base_model
    scores = _read(head, backbone(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state)
    return [row[begin:end] for row, end, begin in zip(scores, ends, begins, strict=True)]


def _read(head, hidden: torch.Tensor) -> torch.Tensor:
    with torch.autocast(hidden.device.type, enabled=False):  # in 16 bits costs would come in steps of a hundredth
        return head(hidden.float())[..., 0]


def cost_loss(
    costs: list[torch.Tensor], inputs: Batch, objective: str, token_wise: bool = False, regularization: float = 0.0
) -> torch.Tensor:
    """The loss, summed over the rows of a batch.

    safe_rlhf: -log sigmoid(c_worse - c_better) for each pair, and -log sigmoid(s c) for each labelled response, s = +1
    if it is unsafe (Safe RLHF, eq. 6); binary: the second term alone; regression: (c - harm)^2.

    Args:
        costs: of `token_costs`.
        token_wise: a mean over the tokens from where the two part, in place of the last one; the shorter response
            keeps its last cost.
        regularization: times the mean over the responses of a row of c^2 (as in the code of Safe RLHF).
    """
    rows, signs = inputs["labels"], inputs["sign"]
    last = torch.stack([c[-1] for c in costs])
    learned = rows != -100
    total = (last * 0).sum()  # of a batch with nothing to learn, still with a gradient
    if objective == "regression":
        known = learned & ~inputs["harm"].isnan()
        return total + ((last - inputs["harm"])[known] ** 2).sum()
    if not token_wise:
        costs = list(last[:, None])
    for n in (learned & (signs != 0)).nonzero()[:, 0].tolist():
        total = total - F.logsigmoid(signs[n] * costs[n]).mean()
    pairs = ((rows[1:] == rows[:-1]) & learned[1:]).nonzero()[:, 0].tolist()
    for n in pairs if objective == "safe_rlhf" else []:
        worse, better = (_extended(c, max(len(costs[n]), len(costs[n + 1]))) for c in costs[n : n + 2])
        total = total - F.logsigmoid(worse - better).mean()
    if regularization:
        _, which, responses = rows.unique_consecutive(return_inverse=True, return_counts=True)
        squares = torch.stack([(c**2).mean() for c in costs])
        total = total + regularization * (squares / responses[which] * learned).sum()
    return total


def hits(costs: list[torch.Tensor], inputs: Batch) -> torch.Tensor:
    """What the costs get right, by the measures of utils/cost_metrics.py.

    Returns:
        [[pairs ranked right, pairs], [labels told right, labels]], float64; a tie is half right.
    """
    last, rows, signs = torch.stack([c[-1] for c in costs]).detach(), inputs["labels"], inputs["sign"]
    learned = rows != -100
    pairs, labelled = (rows[1:] == rows[:-1]) & learned[1:], learned & (signs != 0)
    ranked = ((last[:-1] - last[1:]).sign() + 1) / 2
    found = [ranked[pairs], pairs, ((last > 0) == (signs > 0))[labelled], labelled]
    return torch.stack([which.double().sum() for which in found]).view(2, 2)


def _extended(costs: torch.Tensor, length: int) -> torch.Tensor:
    return torch.cat([costs, costs[-1:].expand(length - len(costs))])


class Normaliser:
    """Running mean and standard deviation of costs, by which they are normalised (as in the code of Safe RLHF, which
    takes in a batch before it normalises it; here after, since a batch may come in parts).

    Args:
        kind: "running": over all costs seen; "ema": mean <- momentum * mean + (1 - momentum) * mean of the batch, and
            the variance likewise; "none": costs stay as they are.
        function: "affine" (x - mean) / std, "scale" x / std, or "translate" x - mean.
    """

    def __init__(self, kind: str, function: str, momentum: float, mean: float = 0.0, var: float = 1.0, count: int = 0):
        self.kind, self.function, self.momentum = kind, function, momentum
        self.mean, self.var, self.count = mean, var, count

    def update(self, count: float, total: float, squares: float) -> None:
        """Takes in the costs of a batch: how many, their sum, and the sum of their squares."""
        mean = total / count
        var = max(0.0, squares / count - mean**2)
        if self.kind == "ema":
            old, new = self.momentum, 1 - self.momentum
            self.mean, self.var = old * self.mean + new * mean, old * self.var + new * var
        elif self.kind == "running":  # two parts joined (Chan, Golub and LeVeque 1979)
            both, apart = self.count + count, mean - self.mean
            spread = self.var * self.count + var * count + apart**2 * self.count * count / both
            self.mean, self.var = self.mean + apart * count / both, spread / both
        self.count += int(count)

    def __call__(self, costs: torch.Tensor) -> torch.Tensor:
        if self.kind == "none" or not self.count:
            return costs
        shifted = costs if self.function == "scale" else costs - self.mean
        return shifted if self.function == "translate" else shifted / (self.var**0.5 + 1e-8)
