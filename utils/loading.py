"""Tokenizers and models in memory. Device, number type and quantisation are known here and nowhere else."""

import logging
from typing import Any

from utils.helpers import UserError
from utils.models import ModelRef, weight_shapes
from utils.prompt_styles import chat_template


def model_settings(ref: ModelRef):
    """The configuration of a model that is not loaded."""
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(ref.path, revision=ref.revision)


def load_tokenizer(ref: ModelRef, side: str = "left", chat: bool = True, style: str | None = None):
    """Tokenizer of the adapter or base.

    Args:
        side: the padding side: left to generate, right to train.
        chat: it must have a chat template with a system turn. An encoder-decoder gets one here: see
            `encoder_decoder_template`.
        style: prompts are written in this style (utils/prompt_styles.py), not by the model's own chat template.
    """
    from jinja2 import TemplateError
    from transformers import AutoTokenizer

    source = ref.adapter if ref.adapter and (ref.adapter / "tokenizer.json").is_file() else ref.path
    revision = ref.revision if source == ref.path else None
    tokenizer = AutoTokenizer.from_pretrained(source, revision=revision, padding_side=side)
    if model_settings(ref).is_encoder_decoder:
        tokenizer.padding_side = "right"  # BART counts positions from the first token, padding or not
        tokenizer.chat_template = encoder_decoder_template(tokenizer)
    if style:
        begins = tokenizer("x")["input_ids"][:1] == [tokenizer.bos_token_id]
        tokenizer.chat_template = chat_template(style, begins)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if not chat:
        return tokenizer
    if tokenizer.chat_template is None:
        raise UserError(
            f"{ref.name} has no chat template: take its instruct or chat version, or add --prompt_style alpaca"
        )
    try:
        tokenizer.apply_chat_template([{"role": role, "content": "x"} for role in ("system", "user")], tokenize=False)
    except TemplateError as error:
        raise UserError(f"{ref.name}: its chat template takes no system turn ({error}): take another model") from error
    return tokenizer


def begin_token(tokenizer) -> int:
    """The token before a text that nothing precedes, so that its first own token can be predicted too."""
    return tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id


def is_encoder(tokenizer) -> bool:
    """Of a model that reads a text, or two, as a whole, as BERT does: with a token for what is made of it."""
    return tokenizer.cls_token is not None


def encoder_decoder_template(tokenizer) -> str:
    """A chat template for a model that reads one text and writes another: what was said, then the last answer.

    Each side stands between the special tokens that the tokenizer puts around a text, so that prompt, completion, and
    what is read and written are told apart as for any other model. Earlier turns are joined by empty lines.
    """
    around = tokenizer("")["input_ids"]
    before, after = (tokenizer.decode(ids) for ids in (around[:-1], around[-1:]))
    said = "{{ (messages[:-1] if answered else messages) | map(attribute='content') | join('\n\n') }}"
    return (
        "{% set answered = messages[-1]['role'] == 'assistant' %}"
        f"{before}{said}{after}{{% if answered %}}{before}{{{{ messages[-1]['content'] }}}}{after}{{% endif %}}"
    )


def end_tokens(settings, tokenizer) -> set[int]:
    """The model's own end tokens and the tokenizer's: chat models often end a turn with another token than a text.

    Args:
        settings: the model's GenerationConfig.
    """
    ends = settings.eos_token_id
    return {*(ends if isinstance(ends, list) else [ends]), tokenizer.eos_token_id} - {None}


def check_kind(ref: ModelRef, encoder_decoder: bool) -> None:
    """Raises UserError for a model of the other kind."""
    settings = model_settings(ref)
    if settings.is_encoder_decoder != encoder_decoder:
        kind, other = "is an encoder-decoder", "training/train_seq2seq.py"
        if encoder_decoder:
            kind, other = "is no encoder-decoder", "training/train.py"
        raise UserError(f"--base_model {ref.name} {kind} ({settings.model_type}): {other} trains it")


def stored_dtype(ref: ModelRef) -> str | None:
    """The number type in which a base is stored, by its configuration, such as "float16"."""
    dtype = model_settings(ref).dtype
    return None if dtype is None else str(dtype).removeprefix("torch.")


def generation_settings(ref: ModelRef):
    """The GenerationConfig of a model that is not loaded."""
    from transformers import GenerationConfig

    try:
        return GenerationConfig.from_pretrained(ref.path, revision=ref.revision)
    except OSError:  # it comes without one
        return GenerationConfig.from_model_config(model_settings(ref))


def load_base(
    ref: ModelRef,
    quantization: str = "none",
    settings: dict[str, Any] | None = None,
    training: bool = False,
    labels: int | None = None,
):
    """Loads a base model.

    Args:
        quantization: "none" (16-bit), "nf4" (4-bit) or "int8".
        settings: 4-bit details `nf4_quant_type`, `nf4_double_quant`, `compute_dtype`; defaults as in QLoRA.
        training: the model will be trained, so its 4-bit weights must stay in the layout the backward pass reads.
        labels: in place of the output layer a head with so many numbers. The attribute `new_layers` of the model names
            the layers that the base does not have, whose weights are drawn at random.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoModelForSequenceClassification
    from transformers.integrations.fsdp import is_fsdp_enabled

    settings = settings or {}
    device = torch.cuda.current_device() if torch.cuda.is_available() else "cpu"  # of several, that of this process
    dtype = getattr(torch, settings.get("compute_dtype", "bfloat16"))
    if device == "cpu" and (dtype == torch.float16 or not cpu_has_bf16()):
        dtype = torch.float32  # half precision without hardware for it is slower than single, and float16 overflows
    kind = AutoModelForSeq2SeqLM if model_settings(ref).is_encoder_decoder else AutoModelForCausalLM
    on_device = (quantization != "none" or device != "cpu") and not is_fsdp_enabled()  # which places weights itself
    loading = logging.getLogger("transformers.modeling_utils")
    level = loading.level
    loading.setLevel(logging.ERROR if labels else level)  # that its head is new is known, and said at length otherwise
    model, found = (AutoModelForSequenceClassification if labels else kind).from_pretrained(
        ref.path,
        revision=ref.revision,
        dtype=dtype,
        device_map={"": device} if on_device else None,
        use_safetensors=True,
        quantization_config=_quantization_config(quantization, settings, dtype),
        # on CPU the backward pass of the fused kernel is slower than the plain one (benchmarks/RESULTS.md)
        attn_implementation="eager" if device == "cpu" and training else None,
        output_loading_info=True,
        **({"num_labels": labels} if labels else {}),
    )
    loading.setLevel(level)
    model.new_layers = sorted({name.rpartition(".")[0] for name in found["missing_keys"]})
    if labels and hasattr(model, "score"):
        model.score.float()
    if training and quantization == "nf4":
        keep_trainable_layout(model)
    return model


def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bfloat16 matrices in hardware."""
    import torch

    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _quantization_config(quantization: str, settings: dict[str, Any], dtype):
    from transformers import BitsAndBytesConfig

    if quantization == "nf4":
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=settings.get("nf4_quant_type", "nf4"),
            bnb_4bit_use_double_quant=settings.get("nf4_double_quant", True),
            bnb_4bit_compute_dtype=dtype,
            bnb_4bit_quant_storage=dtype,  # the storage type that FSDP can shard
        )
    return BitsAndBytesConfig(load_in_8bit=True) if quantization == "int8" else None


def keep_trainable_layout(model) -> None:
    """Keeps 4-bit weights in the layout that the backward pass reads, also across evaluation passes.

    On a CPU with AVX512-bf16, bitsandbytes repacks a 4-bit weight for inference in the first eval-mode forward. The
    backward pass of later training steps reads the repacked bytes as if they were not: every gradient is wrong and
    nothing is raised. Here repacking is switched off, and weights that are repacked already are put back.
    """
    from bitsandbytes.functional import _convert_weight_packed_for_cpu_inverse
    from bitsandbytes.nn import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            state = module.weight.quant_state
            if getattr(state, "packing_format_for_cpu", False):
                module.weight.data, module.weight.quant_state = _convert_weight_packed_for_cpu_inverse(
                    module.weight.data, state
                )
            module.support_avx512bf16_for_cpu = False


def load_model(
    ref: ModelRef, quantization: str | None = None, training: bool = False, compute_dtype: str | None = None
):
    """Loads a model to generate with: a base, or a base with its adapter on top, in eval mode.

    `quantization` None means: as the adapter was trained, and 16-bit without an adapter. On a CPU the 8-bit products
    of a model without an adapter are our own (utils/int8.py). `training`: see `load_base`. `compute_dtype` None: as
    the adapter was trained, else bfloat16.
    """
    import torch

    trained = ref.record.get("config", {}) | ({"compute_dtype": compute_dtype} if compute_dtype else {})
    if quantization is None:
        quantization = (trained.get("quantization") or "none") if ref.adapter else "none"
    if quantization == "int8" and not ref.adapter and not torch.cuda.is_available():
        from utils.int8 import quantise

        return quantise(load_base(ref)).eval()
    model = load_base(ref, quantization, trained, training)
    if ref.adapter:
        from peft import PeftModel

        make_room_for_tokens(ref, model)

        try:
            model = PeftModel.from_pretrained(model, ref.adapter)
        except (RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"{ref.adapter} does not fit {ref.name}, it was trained on another base ({reason})"
            ) from error
    return model.eval()


def make_room_for_tokens(ref: ModelRef, model) -> None:
    """Gives a base as many embeddings as its adapter's tokenizer has tokens.

    Raises:
        UserError: the adapter does not hold the new ones.
    """
    tokens, room = len(load_tokenizer(ref)), model.get_input_embeddings().num_embeddings
    if tokens <= room:
        return
    if not any("embed" in name or "lm_head" in name for name in weight_shapes(ref.adapter)):
        raise UserError(
            f"{ref.adapter}: its tokenizer has {tokens - room} tokens that {ref.name} does not know, and the adapter "
            "holds no embeddings for them: train it with these saved, or without new tokens"
        )
    model.resize_token_embeddings(tokens, mean_resizing=False)
