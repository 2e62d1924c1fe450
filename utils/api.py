"""What utils/endpoint.py and utils/batch.py share: the client, what servers differ in, and how their answers read."""

import json
import logging
import os
from typing import Any
from urllib.parse import urlparse

import openai
from dotenv import load_dotenv

from utils import params
from utils.answers import MODERATIONS, Answer
from utils.configs import ServerConfig
from utils.helpers import UserError

logger = logging.getLogger(__name__)

# what a server may not know, and what it is sent in its place
ADJUSTABLE = {"max_tokens": "max_completion_tokens", "temperature": None, "seed": None, "response_format": None,
              "top_logprobs": None, "logprobs": None}  # fmt: skip


def make_client(config: ServerConfig, kind: type = openai.AsyncOpenAI) -> openai.AsyncOpenAI | openai.OpenAI:
    """A client, with key and address from the environment or `.env`.

    Raises:
        UserError: neither a key nor an address is set, or the key cannot be one.
    """
    load_dotenv(params.ROOT / ".env")
    for old in ("OPEN_AI_TOKEN", "OPEN_AI_KEY"):
        if os.environ.get(old) and not os.environ.get("OPENAI_API_KEY"):
            logger.warning("%s is an old name: set OPENAI_API_KEY", old)
            os.environ["OPENAI_API_KEY"] = os.environ[old]
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    if not key and not os.environ.get("OPENAI_BASE_URL"):
        raise UserError(
            "nobody to ask: set OPENAI_API_KEY (or OPENAI_BASE_URL for a server of your own), "
            "or add --engine transformers for the embedded model"
        )
    if not os.environ.get("OPENAI_BASE_URL", "https://").startswith(("http://", "https://")):
        raise UserError("OPENAI_BASE_URL has to begin with http:// or https://")
    if not (key.isascii() and key.isprintable()):
        raise UserError("OPENAI_API_KEY holds a character that no key has: set it again")
    # a local server asks for no key, but the client does
    return kind(api_key=key or "none", timeout=config.timeout, max_retries=0 if kind is openai.AsyncOpenAI else 5)


def server_of(client: openai.AsyncOpenAI | openai.OpenAI) -> str:
    """Host and port; a user name or password in the address is not repeated."""
    return urlparse(str(client.base_url)).netloc.rpartition("@")[2]


def redact(text: str, client: openai.AsyncOpenAI | openai.OpenAI) -> str:
    """Text of a server, which may repeat the key. What is short ("none", "EMPTY") is no secret, and may be a word."""
    return text.replace(client.api_key, "[key]") if len(client.api_key) >= params.SECRET_CHARS else text


def plain(error: Exception | str, client: openai.AsyncOpenAI | openai.OpenAI) -> str:
    """What an error says, in one line, without the key that a server may repeat."""
    said = str(error)
    if isinstance(error, openai.APIStatusError):  # a body of another form than OpenAI's is not in its message
        known = isinstance(error.body, dict) and error.body.get("message")
        said = f"{error.status_code}: {known or error.response.text}"
    return redact(" ".join(said.split()), client)[:300]


def unsupported(param: str | None, message: str, dropped: set[str]) -> str | None:
    """The parameter that a server complains of, if it can be left out and was not yet."""
    for name in ADJUSTABLE:
        if name not in dropped and (param == name or f"'{name}'" in message):
            instead = ADJUSTABLE[name]
            logger.warning("the server does not take %s: %s", name, f"sent as {instead}" if instead else "left out")
            return name
    return None


def adjust(body: dict[str, Any], dropped: set[str]) -> dict[str, Any]:
    """A request without the parameters that the server does not take; the answer is checked here in any case."""
    for name in dropped & set(body):
        value = body.pop(name)
        if ADJUSTABLE[name]:
            body[ADJUSTABLE[name]] = value
    if "logprobs" not in body:
        body.pop("top_logprobs", None)  # means nothing without
    return body


def read_answer(path: str, data: Any, by: str, server: str, prompt_bytes: int, batch: bool = False) -> Answer:
    """The answer in the body of a reply: see `read_completion` and `read_moderation`."""
    read = read_moderation if path == MODERATIONS else read_completion
    return read(data, by, server, prompt_bytes, batch)


def read_moderation(data: Any, by: str, server: str, prompt_bytes: int, batch: bool = False) -> Answer:
    """The scores of all categories, as a JSON object.

    Raises:
        ValueError: the body is no moderation.
    """
    try:
        scores = dict(data["results"][0]["category_scores"])
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise ValueError(f"the server sent something else than a moderation: {str(data)[:200]}") from error
    return Answer(json.dumps(scores), "stop", 0, 0, by, server, batch, str(data.get("model") or ""))


def read_completion(data: Any, by: str, server: str, prompt_bytes: int, batch: bool = False) -> Answer:
    """The answer in the body of a chat completion.

    Args:
        by: the model as asked for.
        prompt_bytes: size of the prompt: where a server counts no tokens, the most there can be are taken.

    Raises:
        ValueError: the body is none, whatever its status was.
    """
    try:
        choice, message = data["choices"][0], data["choices"][0]["message"]
        refusal, content, finish = message.get("refusal"), message.get("content"), choice.get("finish_reason")
        usage = data.get("usage") or {}
        tokens = [usage.get(side) for side in ("prompt_tokens", "completion_tokens")]
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(f"the server sent something else than a chat completion: {str(data)[:200]}") from error
    text = content if isinstance(content, str) else ""
    end = {"length": "length", "content_filter": "filtered"}.get(finish, "stop")
    if refusal and end != "filtered":
        end, text = "refused", str(refusal)
    bounds = [prompt_bytes, len(text.encode("utf-8", "replace"))]
    tokens_in, tokens_out = (n if type(n) is int and n >= 0 else most for n, most in zip(tokens, bounds, strict=True))
    model = str(data.get("model") or "")
    return Answer(text, end, tokens_in, tokens_out, by, server, batch, model, likely=_likely(choice))


def _likely(choice: dict) -> list[dict[str, float]] | None:
    """The likeliest tokens at each place of an answer; None where the server tells none, or in another form."""
    try:
        places = choice["logprobs"]["content"]
        return [{each["token"]: float(each["logprob"]) for each in place["top_logprobs"]} for place in places] or None
    except (KeyError, TypeError, ValueError):
        return None
