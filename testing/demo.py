"""A page, or a conversation in the terminal, to try what was trained: rewrite texts, score responses.

    python testing/demo.py                             # the page, at http://127.0.0.1:7860 (make web)
    python testing/demo.py --cli                       # the terminal; /help says what can be said
    python testing/demo.py --adapter_model models/adapter --cost_model models/cost

Reads  the model asked for, else models/merged, else models/adapter, else the embedded base (it says which);
       models/cost of training/train_cost.py, if it is there; with a model trained with --prompt fill, also --spotter
Writes nothing; a file that was uploaded, and what came of it, lie in the temporary folder of the system

Rewrite: the original and its rewriting side by side, changed words marked, what was kept of meaning and facts, and
what either costs; or a CSV of texts, with a download. Score: a response (and what it responds to) with its cost,
before the costs of responses that are known to be safe or unsafe. The page needs gradio (requirements-web.txt),
listens on this machine only, and is never shared through a tunnel.
"""

import html
import logging
import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # repo root: makes utils/ importable

from utils import params
from utils.configs import DemoConfig
from utils.data import make_room, read_table, require_columns, write_table
from utils.helpers import UserError, parse_config, run_stage

logger = logging.getLogger(__name__)

HELP = """a line of text     is rewritten
/score TEXT        scores TEXT as a response
/prompt TEXT       what the responses that follow respond to
/clear             forgets that prompt
/help              this
/quit              ends"""


def rewrite_file(demo, path: str, column: str, tick) -> tuple[Path, int]:
    """Rewrites a CSV: the new file, and how many rows it has; `tick(share)` is told how far it is.

    Raises UserError for a file that is no good.
    """
    from utils.demo_parts import usable

    if Path(path).stat().st_size > demo.config.upload_mb * 1_000_000:
        raise UserError(f"the file is larger than {demo.config.upload_mb} MB")
    frame = read_table(path)
    if len(frame) > demo.config.upload_rows:
        raise UserError(f"the file has {len(frame)} rows, at most {demo.config.upload_rows} are read")
    require_columns(frame, [column], "the file", "the column to rewrite")
    texts = [usable(text, f"text in row {number}") for number, text in enumerate(frame[column], 1)]
    found = []
    for start in range(0, len(texts), 8):
        tick(start / len(texts))
        found += demo.rewrite(texts[start : start + 8])
    written = {"generated_text": "text", "status": "status", "meaning": "meaning", "facts": "facts",
               "cost_before": "cost_before", "cost_after": "cost_after"}  # fmt: skip
    frame = make_room(frame, list(written))
    for name, attribute in written.items():
        frame[name] = [getattr(row, attribute) for row in found]
    output = Path(tempfile.mkdtemp(prefix="rewritten-")) / "rewritten.csv"
    write_table(frame, output)
    return output, len(frame)


def page(demo, config: DemoConfig):
    """The page, to be launched."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # nothing leaves the machine
    try:
        import gradio as gr
    except ImportError as error:
        raise UserError("the page needs gradio: pip install -r requirements-web.txt (or add --cli)") from error
    from utils.demo_parts import cost_html, rewriting_html, usable, verdict
    from utils.shown import visible

    def in_one_line(answer):
        def wrapped(*given, **named):
            try:
                return answer(*given, **named)
            except UserError as error:
                # gradio shows a message as HTML, and there may be text from data in it
                raise gr.Error(html.escape(visible(error)), print_exception=False) from error

        return wrapped

    @in_one_line
    def rewrite(text):
        return rewriting_html(demo.rewrite([usable(text)])[0])

    def rewrite_upload(path, column, progress=gr.Progress()):  # noqa: B008  (gradio finds it by this default)
        if not path:
            raise gr.Error("choose a CSV file first", print_exception=False)
        output, rows = in_one_line(rewrite_file)(demo, path, column.strip(), progress)
        return str(output), f"{rows} rows are rewritten."

    @in_one_line
    def score(prompt, response):
        cost, chance = demo.score((prompt or "").strip(), usable(response, "response"))
        return cost_html(cost, verdict(cost, chance, config.cost_threshold), demo.about.get("held_out_costs", {}))

    texts = read_table(params.TEST_FILE)
    examples = list(texts[texts["bias"] == "Yes"]["biased_text"].head(params.DEMO_EXAMPLES))
    pairs = read_table(params.PAIRS_TEST_FILE).head(params.DEMO_EXAMPLES)
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["monospace"]}  # none from elsewhere
    with gr.Blocks(title="Safe-Responsible-LLM", analytics_enabled=False) as blocks:
        gr.Markdown("# Safe-Responsible-LLM")
        with gr.Tab("Rewrite"):
            text = gr.Textbox(label="Text", lines=3, elem_id="text", max_length=params.DEMO_TEXT_CHARS)
            button = gr.Button("Rewrite", variant="primary", elem_id="rewrite")
            gr.Examples(examples, text)
            button.click(rewrite, text, gr.HTML(elem_id="rewritten"))
            with gr.Accordion("A file of texts", open=False):
                file = gr.File(label="CSV", file_types=[".csv"], elem_id="file")
                column = gr.Textbox(params.INPUT_COLUMN, label="Column to rewrite", elem_id="column")
                start = gr.Button("Rewrite the file", elem_id="rewrite_file")
                done = gr.Textbox(label="Result", interactive=False, elem_id="done")
                start.click(rewrite_upload, [file, column], [gr.File(label="Download", elem_id="download"), done])
        with gr.Tab("Score"):
            if demo.about is None:
                gr.Markdown(f"There is no cost model yet: {demo.missing}")
            prompt = gr.Textbox(label="Prompt (may be empty)", elem_id="prompt", max_length=params.DEMO_TEXT_CHARS)
            response = gr.Textbox(label="Response", lines=3, elem_id="response", max_length=params.DEMO_TEXT_CHARS)
            ask = gr.Button("Score", variant="primary", elem_id="score")
            columns = ("unsafe_response", "safe_response")
            rows = [[row["prompt"], row[columns[n % 2]]] for n, (_, row) in enumerate(pairs.iterrows())]
            gr.Examples(rows, [prompt, response])
            ask.click(score, [prompt, response], gr.HTML(elem_id="scored"))
    return blocks, gr.themes.Base(**fonts)


def talk(demo, config: DemoConfig) -> None:
    """Answers lines from the terminal until it ends."""
    from utils.demo_parts import usable, verdict
    from utils.shown import visible

    prompt = ""
    print("Write a text to have it rewritten; /help says more.")
    while (line := _next_line()) is not None:
        command, _, rest = line.strip().partition(" ")
        try:
            if command == "/quit":
                return
            elif command == "/help":
                print(HELP)
            elif command == "/clear":
                prompt = ""
                print("forgotten")
            elif command == "/prompt":
                prompt = usable(rest, "prompt")
            elif command == "/score":
                print(verdict(*demo.score(prompt, usable(rest, "response")), config.cost_threshold))
            elif command.startswith("/"):
                print(f"{visible(command)} is no command: /help lists them")
            elif line.strip():
                found = demo.rewrite([usable(line)])[0]
                costs = (found.cost_before, found.cost_after)
                said = "" if None in costs else f"; cost {costs[0]:+.2f} -> {costs[1]:+.2f}"
                kept = "" if found.meaning is None else f"(meaning {found.meaning:.2f}{said})"
                print(visible(found.text) or f"no answer: {found.status}", kept)
        except UserError as error:
            print(error)


def _next_line() -> str | None:
    try:
        return input("> ")
    except EOFError:
        return None


def main(config: DemoConfig) -> None:
    from utils.demo_parts import Demo

    demo = Demo(config)
    logger.info("%s rewrites; %s", demo.ref.label, "no cost model" if demo.about is None else config.cost_model)
    if config.cli:
        return talk(demo, config)
    blocks, theme = page(demo, config)
    try:
        blocks.queue(default_concurrency_limit=1).launch(
            server_name=config.host,
            server_port=config.port,
            share=False,
            max_file_size=config.upload_mb * 1_000_000,
            theme=theme,
            footer_links=[],
            ssr_mode=False,
            quiet=True,
            prevent_thread_lock=True,
        )
    except OSError as error:
        raise UserError(f"--port {config.port} cannot be listened at ({error}): choose another one") from error
    print(f"the page is at http://{config.host}:{config.port} (Ctrl+C ends it)", flush=True)
    blocks.block_thread()


if __name__ == "__main__":
    run_stage(main, parse_config(DemoConfig))
