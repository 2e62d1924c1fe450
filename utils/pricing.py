"""What requests cost: a dated table of prices, and a budget that is not overrun."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from utils import params
from utils.answers import IN_PROCESS, Answers, Request
from utils.data import read_table, require_columns
from utils.helpers import UserError

CHARACTERS_PER_TOKEN = 4  # of English; used only before the first answer says how many tokens there were


@dataclass(frozen=True)
class Price:
    """US dollars per million tokens, and the month in which the price was read."""

    input: float
    output: float
    as_of: str

    def cost(self, tokens_in: float, tokens_out: float, batch: bool = False) -> float:
        """US dollars. The Batch API asks for half."""
        dollars = (tokens_in * self.input + tokens_out * self.output) / 1e6
        return dollars * params.BATCH_PRICE if batch else dollars


FREE = Price(0.0, 0.0, "")


def read_prices(path: str | Path) -> dict[str, Price]:
    """Reads a table of prices.

    Raises:
        UserError: the table cannot be read, or holds something that is no price.
    """
    table = read_table(path)
    columns = ["model", "input_usd_per_mtok", "output_usd_per_mtok", "as_of"]
    require_columns(table, columns, path, "--prices")
    prices = {}
    for name, into, out, as_of in table[columns].itertuples(index=False):
        try:
            prices[name] = Price(float(into), float(out), as_of)
        except ValueError as error:
            raise UserError(f"{path}: the price of {name} is not a number: {into}, {out}") from error
    return prices


def find_price(model: str, prices: dict[str, Price]) -> Price | None:
    """The price of `model`, or of the model whose dated release it is (`gpt-4o-mini-2024-07-18`); None if unlisted."""
    return prices.get(model) or prices.get(re.sub(r"-\d{4}-\d{2}-\d{2}$", "", model))


class Budget:
    """Money spent on the answers of one output, earlier runs included, and the most that may be spent.

    A request is admitted only if the most it can cost still fits: its bytes bound its tokens from above, and
    `max_tokens` those of the answer.
    """

    def __init__(self, prices: dict[str, Price], model: str, how: str, most: float | None, answers: Answers):
        """
        Args:
            prices: by model.
            model: which one is asked.
            how: live, batch (half the price) or in process (free).
            most: US dollars, `--max_cost`; None: no limit.
            answers: kept answers, which say what was spent so far.

        Raises:
            UserError: a limit without a price.
        """
        self.prices, self.how, self.most, self.answers = prices, how, most, answers
        self.price = FREE if how == IN_PROCESS else find_price(model, prices)
        if most is not None and self.price is None:
            raise UserError("--max_cost needs the price of the model: add it to a table and name that with --prices")
        self.reserved, self.under_way = 0.0, 0
        self.lost = 0.0  # at most this much went into answers that never arrived
        self.full = ""  # what to tell the user, once the next request does not fit

    def spent(self) -> float | None:
        """US dollars for all kept answers; None where no price of theirs is known."""
        known = [self._cost(key, tokens) for key, tokens in self.answers.spent.items()]
        known = [cost for cost in known if cost is not None]
        return sum(known) if known or self.price else None

    def _cost(self, key: tuple[str, str, str], tokens: int) -> float | None:
        model, how, side = key
        price = FREE if how == IN_PROCESS else find_price(model, self.prices)
        return price and price.cost(tokens * (side == "in"), tokens * (side == "out"), how == "batch")

    def bound(self, request: Request) -> float:
        """The most that a request can cost: no token is less than a byte."""
        if self.most is None:
            return 0.0
        bytes_in = len(json.dumps(request.body()).encode())
        return self.price.cost(bytes_in, request.max_tokens, self.how == "batch")

    def reserve(self, request: Request) -> float | None:
        """Sets aside the most that `request` can cost; None where that does not fit."""
        bound = self.bound(request)
        if self.most is not None and self.spent() + self.lost + self.reserved + bound > self.most:
            return None
        self.reserved += bound
        self.under_way += 1
        return bound

    def release(self, bound: float) -> None:
        """The request has ended: what it cost stands in the answers now."""
        self.under_way -= 1
        self.reserved = self.reserved - bound if self.under_way else 0.0

    def release_all(self) -> None:
        self.reserved, self.under_way = 0.0, 0

    def say_full(self) -> str:
        lost = f", up to {self.lost:.4f} on answers that never arrived" if self.lost else ""
        return (
            f"--max_cost {self.most:g} is reached: {self.spent():.4f} US dollars are spent on this output{lost}, and "
            "the next request might not fit; the same command with a higher one goes on"
        )


def say_estimate(requests: int, prompt_chars: int, answer_chars: int, budget: Budget) -> str:
    """What so many more requests may take, as a sentence: as much each as kept answers took, where there are any.

    Args:
        prompt_chars: characters of all prompts together.
        answer_chars: characters that the answers may have together.
    """
    answers, price = budget.answers, budget.price
    tokens_in, tokens_out = prompt_chars / CHARACTERS_PER_TOKEN, answer_chars / CHARACTERS_PER_TOKEN
    if len(answers):
        tokens_in, tokens_out = (requests * answers.tokens(side) / len(answers) for side in ("in", "out"))
    basis = "by the answers so far" if len(answers) else f"at {CHARACTERS_PER_TOKEN} characters a token"
    sentence = f"{requests} requests to ask, about {tokens_in:,.0f} tokens in and {tokens_out:,.0f} out ({basis})"
    if price is None:
        listed = ", ".join(budget.prices)
        return f"{sentence}; no price for this model: give --prices, a table like datasets/prices.csv ({listed})"
    if not price.as_of:  # in process
        return sentence
    dollars = price.cost(tokens_in, tokens_out, budget.how == "batch")
    return f"{sentence}, {dollars:.4f} US dollars at the prices of {price.as_of}"


def say_spent(budget: Budget) -> str:
    """What all kept answers took, as a sentence."""
    answers, price = budget.answers, budget.price
    tokens = f"{len(answers)} answers, {answers.tokens('in'):,} tokens in, {answers.tokens('out'):,} out"
    return tokens + (
        f", {budget.spent():.4f} US dollars at the prices of {price.as_of}" if price and price.as_of else ""
    )
