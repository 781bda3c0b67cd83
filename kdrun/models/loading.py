"""Checkpoints and tokenizers from folders, run directories and the hub; no pickle of a folder is ever opened."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdrun.errors import UserError
from kdrun.untrusted import check_model_config, check_model_folder, printable, refuse_links_out

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def locate(reference: str, *, key: str) -> str:
    """What `from_pretrained` should be given: a model folder, the model inside a run directory, or a hub name.

    Raises:
        UserError: naming `key`, when the reference is a path that is not there, or a folder without a model, with a
            pickle for its weights or with links that lead out of it.
    """
    path = Path(reference).expanduser()
    if path.is_dir():
        for folder in (path, path / "student", path / "teacher"):
            if (folder / "config.json").is_file():
                if folder != path:
                    refuse_links_out(path, key=f"{key}={reference}")
                check_model_folder(folder, key=f"{key}={reference}")
                return str(folder)
        raise UserError(
            f"{key}={reference}: no config.json there, nor in its student/ or teacher/: not a finished run or model"
        )
    if path.exists():
        raise UserError(f"{key}={reference}: is a file; give the model's folder")
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", reference) or reference.startswith(
        ("outputs/", "runs/")
    ):
        raise UserError(f"{key}={reference}: no such folder, and not a hub name (owner/name)")
    return reference


def local_folder(reference: str, *, key: str) -> Path:
    """The folder with a model's config.json: its own, or the hub's snapshot on this machine (fetched if need be).

    Raises:
        UserError: naming `key`, when there is none.
    """
    from transformers.utils import cached_file

    place = locate(reference, key=key)
    if Path(place).is_dir():
        return Path(place)
    try:
        return Path(str(cached_file(place, "config.json"))).parent
    except Exception as error:  # transformers and hub each raise their own
        raise UserError(f"{key}={reference}: has no config.json ({_first_line(error)})") from error


def model_sizes(reference: str, *, key: str, trust_remote_code: bool = False) -> tuple[int, int]:
    """(width of the hidden states, rows of the head) that a model's config names; no weight is read.

    Raises:
        UserError: naming `key`, when the config cannot be read.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(locate(reference, key=key), trust_remote_code=trust_remote_code)
    except Exception as error:
        raise UserError(f"{key}={reference}: its config cannot be read ({_first_line(error)})") from error
    text = config.get_text_config()
    return int(text.hidden_size), int(text.vocab_size)


def quiet_libraries() -> None:
    """Keep transformers' bars and advice off the terminal; kdrun shows its own progress and raises its own errors."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def load_model(
    reference: str,
    *,
    key: str,
    dtype: str = "fp32",
    trust_remote_code: bool = False,
    bits: int | None = None,
    products: str | None = None,
) -> Any:
    """A causal language model in the given dtype (fp32, bf16, fp16), on the CPU, in evaluation mode.

    With `bits`, 4 or 8, its matrices but the head's are quantised (4: NF4, scales quantised too, as QLoRA), it is on
    the GPU, and multiplies in the dtype `products` (None: its own).

    safetensors are read. A .bin of the hub goes through torch's weights-only unpickler, which executes nothing (the
    published teacher of pair=gpt2 is one); a folder's is refused.

    Raises:
        UserError: naming `key`, when there is nothing to load or a weight is missing from the checkpoint.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    place = locate(reference, key=key)
    quantised = {"quantization_config": _quantisation(bits, products or dtype)} if bits is not None else {}
    try:
        config = AutoConfig.from_pretrained(place, trust_remote_code=trust_remote_code)
        check_model_config(config, key=f"{key}={reference}")
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            place, config=config, dtype=getattr(torch, DTYPES[dtype]), trust_remote_code=trust_remote_code,
            use_safetensors=True if Path(place).is_dir() else None, output_loading_info=True, **quantised,
        )  # fmt: skip
    except UserError:
        raise
    except Exception as error:  # transformers, hub, safetensors and torch each raise their own
        raise UserError(f"{key}={reference}: cannot be loaded ({_first_line(error)})") from error
    model, report = loaded
    missing = sorted(report.get("missing_keys", ()))
    if missing:
        raise UserError(f"{key}={reference}: the checkpoint lacks {len(missing)} weights, {missing[0]} among them")
    for name, weight in model.named_parameters():
        if not torch.isfinite(weight).all():
            raise UserError(f"{key}={reference}: the weight {name} holds NaN or infinity; take an earlier checkpoint")
    if bits is not None:
        return model.eval()
    with torch.no_grad():  # safetensors maps float32 weights from their file: one that is cut short would end the run
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.data = tensor.data.clone()
    return model.eval()


def _quantisation(bits: int, products: str) -> Any:
    import torch
    from transformers import BitsAndBytesConfig

    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, DTYPES[products]),
    )  # fmt: skip


def load_tokenizer(reference: str, *, key: str, trust_remote_code: bool = False) -> Any:
    """The tokenizer beside a model, with a padding token (the end-of-text token when it has none of its own).

    Raises:
        UserError: naming `key`, when there is none or it has no end-of-text token.
    """
    from transformers import AutoTokenizer

    place = reference if (Path(reference) / "tokenizer.json").exists() else locate(reference, key=key)
    if Path(place).is_dir() and not any((Path(place) / name).exists() for name in TOKENIZER_FILES):
        # transformers 5 would make an empty tokenizer of the model's type and say nothing.
        raise UserError(f"{key}={reference}: {place} holds no tokenizer ({', '.join(TOKENIZER_FILES)})")
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise UserError(f"{key}={reference}: has no tokenizer that can be loaded ({_first_line(error)})") from error
    if tokenizer.eos_token_id is None:
        raise UserError(f"{key}={reference}: its tokenizer has no end-of-text token, so no response can end")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def save_model(model: Any, tokenizer: Any, folder: Path, *, weights: Mapping[str, Any] | None = None) -> None:
    """Write a model and its tokenizer in the Hugging Face format (safetensors), file by file: see `replace_folder`.

    Args:
        weights: in the place of the model's own.
    """
    model.save_pretrained(folder, **({"state_dict": weights} if weights is not None else {}))
    tokenizer.save_pretrained(folder)


def _first_line(error: Exception) -> str:
    text = printable(" ".join(str(error).split()))
    logging.getLogger(__name__).debug("loading failed", exc_info=error)
    if "trust_remote_code" in text:
        return "it brings code of its own, which runs only where trust_remote_code=true is typed (pair. of train)"
    return f"{type(error).__name__}: {text[:200]}"
