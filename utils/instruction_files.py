"""Files of instructions as Safety-Tuned LLaMAs published them: an object of lists, one entry for each instruction.

Evaluation sets hold `instructions` and `inputs` (empty, or as long), one of them also `tags`; results hold
`parameters`, `inputs`, `instructions` and `outputs`.
"""

from pathlib import Path
from typing import Any

import pandas as pd

from utils.prompt_styles import Instruction
from utils.records import write_json


def is_lists(content: Any) -> bool:
    return isinstance(content, dict) and isinstance(content.get("instructions"), list)


def rows_of_lists(lists: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows: instruction, input, and what else there is, each by the singular of its list's name.

    Raises:
        ValueError: a list is neither empty nor as long as the instructions.
    """
    count = len(lists["instructions"])
    lists = {"instructions": lists["instructions"], "inputs": [], **lists}
    columns = {name: given for name, given in lists.items() if isinstance(given, list)}
    if wrong := [name for name, values in columns.items() if len(values) not in (0, count)]:
        raise ValueError(f"{wrong[0]} has {len(columns[wrong[0]])} entries, instructions has {count}")
    filled = {name.removesuffix("s"): values for name, values in columns.items() if values or name == "inputs"}
    return [{name: values[n] if values else "" for name, values in filled.items()} for n in range(count)]


def instructions_of(frame: pd.DataFrame) -> list[Instruction]:
    """The prompts of rows with an instruction, and an input where there is one."""
    inputs = frame["input"] if "input" in frame else [""] * len(frame)
    return [Instruction(*both) for both in zip(frame["instruction"], inputs, strict=True)]


def write_lists(path: Path, prompts: list[str], answers: list[str], parameters: dict[str, Any]) -> None:
    """Writes results in the published form; a prompt that is no instruction has no input."""
    write_json(
        path,
        {
            "parameters": parameters,
            "inputs": [getattr(prompt, "input", "") for prompt in prompts],
            "instructions": [getattr(prompt, "instruction", prompt) for prompt in prompts],
            "outputs": answers,
        },
    )
