"""How what is said becomes the text that a model reads, where that is not the model's own chat template.

A style is a file of the form that Alpaca-LoRA published: `prompt_input` with {instruction} and {input},
`prompt_no_input` with {instruction}. It is made into a chat template, so that training, answering and every measure
need to know nothing of it; the tokenizer of a trained model keeps it. `response_split`, which tells an answer from its
prompt, is not needed.
"""

import json
from pathlib import Path

from utils.helpers import UserError
from utils.params import TEMPLATE_DIR
from utils.records import file_sha256, read_json


class Instruction(str):
    """An instruction and the text it is about, "" for none: as one text, joined by an empty line, and apart."""

    instruction: str
    input: str

    def __new__(cls, instruction: str, about: str = ""):
        joined = super().__new__(cls, f"{instruction}\n\n{about}" if about else instruction)
        joined.instruction, joined.input = instruction, about
        return joined


def user_turn(text: str) -> dict[str, str]:
    """A user's turn. A template that keeps instruction and input apart finds both beside the content."""
    turn = {"role": "user", "content": str(text)}
    return turn | {"instruction": text.instruction, "input": text.input} if isinstance(text, Instruction) else turn


def template_file(style: str) -> Path:
    """The file of a style, by its name or its path.

    Raises:
        UserError: there is none.
    """
    path = Path(style) if style.endswith(".json") else TEMPLATE_DIR / f"{style}.json"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in TEMPLATE_DIR.glob("*.json")))
        raise UserError(f"--prompt_style {style}: there are {known}, and any template file (JSON)")
    return path


def check_style(style: str | None) -> None:
    """Raises UserError for a style that does not exist, or a template file of another form."""
    if style:
        chat_template(style, begins=False)


def style_record(style: str | None) -> str | None:
    """What tells a style from another one of the same name; None for a model's own chat template.

    Raises:
        UserError: no such style.
    """
    return file_sha256(template_file(style)) if style else None


def chat_template(style: str, begins: bool) -> str:
    """A Jinja chat template that writes the prompts of a style.

    A system turn is the instruction, and the user's turn after it the input; a user's turn alone is an instruction.
    After an answer stands the end token.

    Args:
        begins: whether the tokenizer puts its begin token before a text.

    Raises:
        UserError: no such style, or a file of another form.
    """
    path = template_file(style)
    published = read_json(path)
    try:
        before, between, after = _split(published["prompt_input"], "{instruction}", "{input}")
        before_alone, after_alone = _split(published["prompt_no_input"], "{instruction}")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"--prompt_style {path}: expected prompt_input with {{instruction}} and then {{input}}, and "
            f"prompt_no_input with {{instruction}} ({error})"
        ) from error
    return (
        ("{{ bos_token }}" if begins else "") + "{% set said = namespace(system='') %}"
        "{% for m in messages %}"
        "{% if m.role == 'system' %}{% set said.system = m.content %}"
        "{% elif m.role == 'user' %}"
        "{% set instruction = said.system or (m.content if m.instruction is undefined else m.instruction) %}"
        "{% set about = m.content if said.system else (m.input or '') %}"
        f"{{% if about %}}{before}{{{{ instruction }}}}{between}{{{{ about }}}}{after}"
        f"{{% else %}}{before_alone}{{{{ instruction }}}}{after_alone}{{% endif %}}"
        "{% else %}{{ m.content }}{{ eos_token }}{% if not loop.last %}{{ '\\n\\n' }}{% endif %}"
        "{% endif %}{% endfor %}"
    )


def _split(text: str, *places: str) -> list[str]:
    """What stands around the places, each of which occurs once, in this order; as Jinja prints it."""
    pieces = []
    for place in places:
        if text.count(place) != 1:
            raise ValueError(f"{place} has to stand there once")
        before, _, text = text.partition(place)
        pieces.append(before)
    return [f"{{{{ {json.dumps(piece, ensure_ascii=False)} }}}}" for piece in (*pieces, text)]
