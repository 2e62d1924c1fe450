"""Who answers requests: a server, its Batch API, or a model in process. One signature, one file of answers."""

import itertools
import math
from collections.abc import Callable, Iterator
from pathlib import Path

from utils import params
from utils.answers import IN_PROCESS, Answer, Answers, Request
from utils.configs import AskConfig, GenerationConfig, ServerConfig
from utils.helpers import set_seed
from utils.pricing import Budget, read_prices

# (requests, answers, budget, how many requests or None) -> what went wrong, by key; see ask_endpoint
Ask = Callable[[Iterator[Request], Answers, Budget, int | None], dict[str, str]]

CHUNK = 64  # requests that a model in process takes at a time
PROMPT_TOKENS = 8_192


def model_name(config: ServerConfig) -> str:
    """What the model is called in the answers: the same whether a folder is loaded in process or served."""
    in_process = config.adapter_model or config.base_model or params.BASE_MODEL
    name = in_process if config.engine == "transformers" else config.model
    return Path(name).name if Path(name).is_dir() else name


def open_budget(config: ServerConfig, answers: Answers) -> Budget:
    how = {"endpoint": "live", "batch": "batch", "transformers": IN_PROCESS}[config.engine]
    return Budget(read_prices(config.prices), config.model, how, config.max_cost, answers)


def open_engine(config: AskConfig) -> Ask:
    """The engine as a function. Key and address are checked now; a model is loaded when the first request comes.

    Raises:
        UserError: no key, or no such model.
    """
    if config.engine == "transformers":
        return _in_process(config)
    from utils.api import make_client
    from utils.batch import ask_batch, collect_ended
    from utils.endpoint import ask_endpoint

    make_client(config)

    def ask(requests, answers, budget, total) -> dict[str, str]:
        collect_ended(answers, config)
        return ask_endpoint(requests, answers, budget, config, total)

    if config.engine == "endpoint":
        return ask
    return lambda requests, answers, budget, total: ask_batch(requests, answers, budget, config)


def _in_process(config: AskConfig) -> Ask:
    from utils.generation import generate, seed_of
    from utils.loading import load_model, load_tokenizer
    from utils.models import resolve

    ref = resolve(config.base_model, config.adapter_model, config.revision)
    settings = GenerationConfig(
        max_new_tokens=config.max_tokens, max_prompt_tokens=PROMPT_TOKENS, temperature=config.temperature
    )
    loaded = []

    def ask(requests, answers, budget, total) -> dict[str, str]:
        errors: dict[str, str] = {}
        seen: set[str] = set()
        fresh = (r for r in requests if r.key not in answers and not (r.key in seen or seen.add(r.key)))
        while chunk := list(itertools.islice(fresh, CHUNK)):
            if not loaded:
                loaded.extend((load_tokenizer(ref), load_model(ref, config.quantization)))
            tokenizer, model = loaded
            seen.clear()  # their answers are kept from here on
            for request, likely in _label_likelihoods(model, tokenizer, chunk):
                if any(map(math.isnan, likely.values())):
                    errors[request.key] = "the prompt is longer than the model reads"
                    continue
                best = max(likely, key=likely.get)
                answers.add(request.key, Answer(best, "stop", 0, 1, request.model, IN_PROCESS, likely=[likely]))
            chunk = [request for request in chunk if not request.labels]
            set_seed(chunk[0].seed if chunk else 0)  # where the library draws
            chats, seeds = [request.messages for request in chunk], [seed_of(request.key) for request in chunk]
            for reply in generate(model, tokenizer, chats, settings, seeds=seeds):
                request = chunk[reply.index]
                if reply.status == "too_long":
                    errors[request.key] = f"the prompt has {reply.prompt_tokens} tokens, at most {PROMPT_TOKENS}"
                    continue
                end = "stop" if reply.status == "ok" else "length"
                answer = Answer(reply.text, end, reply.prompt_tokens, reply.tokens, request.model, IN_PROCESS)
                answers.add(request.key, answer, request.marker)
        return errors

    return ask


def _label_likelihoods(model, tokenizer, requests: list[Request]) -> Iterator[tuple[Request, dict[str, float]]]:
    """Requests with labels, and the log-likelihood of each label: nothing is generated."""
    from utils.options import option_likelihoods

    labelled = [request for request in requests if request.labels]
    chats = [tokenizer.apply_chat_template(r.messages, tokenize=False, add_generation_prompt=True) for r in labelled]
    questions = [(chat, request.labels) for chat, request in zip(chats, labelled, strict=True)]
    for number, found in option_likelihoods(model, tokenizer, questions, special=False):
        yield labelled[number], dict(zip(labelled[number].labels, found.nats.tolist(), strict=True))
