"""What a pickle is that was refused, by the names of classes and the texts in it; it is looked through, never run."""

import io
import pickletools
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from i2v_jax.errors import InputError

MAX_OPCODES = 200_000  # a whole model's pickle has some 20,000
MAX_PICKLE = 64 << 20  # bytes; tensors lie beside it

SAFETENSORS = (
    "Fetch the model as .safetensors instead: model pages on the hub have one beside it, such as "
    "stable-diffusion-v1-5/stable-diffusion-v1-5/v1-5-pruned-emaonly.safetensors."
)


class Origin(NamedTuple):
    """What writes pickles that hold more than tensors.

    Attributes:
      title: what such a file is.
      modules: starts of the names of the modules whose classes it holds.
      texts: one of which it holds.
      instead: what to fetch instead.
    """

    title: str
    modules: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    instead: str = SAFETENSORS


LIGHTNING = Origin(
    "a whole training state of PyTorch Lightning (weights, optimizer and callbacks)",
    ("pytorch_lightning", "lightning"),
    ("pytorch-lightning_version",),
)
RUNNERS = ("eval", "exec", "compile", "open", "getattr", "__import__", "globals")
PROGRAMS = Origin(
    "no file of weights alone: it would run a program when loaded",
    (
        *("os", "posix", "nt", "subprocess", "sys", "runpy", "shutil", "socket", "webbrowser", "importlib"),
        *(f"{module}.{name}" for module in ("builtins", "__builtin__") for name in RUNNERS),
    ),
    instead="Do not load it elsewhere either. Fetch the model from its makers, as .safetensors.",
)
HYPERNETWORK = ("a hypernetwork, which is not read here", "Use a LoRA of the same subject.")
ORIGINS = (
    LIGHTNING,
    PROGRAMS,
    Origin(
        "a textual inversion",
        ("torch.nn.modules.container.ParameterDict",),
        ("string_to_param", "string_to_token"),
        "Fetch it as .safetensors, or save it again in a web UI: then weights.embeddings reads it.",
    ),
    Origin(
        "a detector of Ultralytics (YOLO)", ("ultralytics", "models.yolo"), (), "It is no part of a diffusion model."
    ),
    Origin("settings of a training by transformers", ("transformers.training_args",), (), SAFETENSORS),
    Origin("a training state with its settings", ("omegaconf", "argparse", "easydict", "ml_collections", "hydra")),
    Origin("a whole network, saved as a Python object", ("torch.nn", "diffusers", "transformers", "timm", "open_clip")),
    Origin("a training state with its optimizer", ("torch.optim", "bitsandbytes", "accelerate"), ("optimizer_states",)),
    Origin("an archive of NumPy or pandas objects", ("numpy", "pandas")),
)


def why_refused(path: Path, error: Exception) -> str:
    """Returns what to say of a pickle that PyTorch did not read as tensors alone.

    Args:
      path: the file.
      error: PyTorch's.
    """
    classes, texts = looked_through(path)
    strange = [name for name in classes if not _of_tensors(name)]
    refused = "it was refused, as of a pickle only tensors are read (nothing in it was run)"
    # the most telling first: a training state of Lightning may hold NumPy's numbers too
    for origin in ORIGINS:
        named = next((name for name in strange if name.startswith(tuple(f"{one}." for one in origin.modules))), None)
        named = named or next((name for name in strange if name in origin.modules), None)
        if named or (strange and any(text in texts for text in origin.texts)):
            told = f" It holds {named or strange[0]}:"
            return f"{path} is {origin.title}.{told} {refused}. {origin.instead}"
    if strange:
        return f"{path} holds more than tensors, {', '.join(strange[:3])}: {refused}. {SAFETENSORS}"
    return f"{path} is damaged, or no file of PyTorch ({type(error).__name__}; nothing in it was run). Fetch it again."


def no_tensors(loaded: Mapping) -> str:
    """Returns what to say, after its name, of a file of dictionaries that hold no tensors."""
    keys = [str(key) for key in loaded]
    if {"layer_structure", "activation_func"} & set(keys) or (keys and all(key.isdigit() for key in keys)):
        return f"is {HYPERNETWORK[0]}. {HYPERNETWORK[1]}"
    return f"holds no tensors, only {keys[:8]}."


def looked_through(path: Path) -> tuple[list[str], set[str]]:
    """Returns the classes and functions that a pickle names, and its short texts, as far as it can be parsed."""
    names: dict[str, None] = {}
    texts: list[str] = []
    try:
        for opcode, argument in _opcodes(path):
            if opcode == "GLOBAL":
                names[str(argument).replace(" ", ".")] = None
            elif opcode == "STACK_GLOBAL" and len(texts) > 1:
                names[".".join(texts[-2:])] = None
            elif isinstance(argument, str) and len(argument) < 200:
                texts.append(argument)
    except Exception:  # damaged and malicious pickles fail in more ways than can be listed; what was found stays
        pass
    return list(names), set(texts)


def _opcodes(path: Path) -> Iterator[tuple[str, object]]:
    """The opcodes of a file's pickles, of which PyTorch's older files have several, one after the other."""
    file, number = io.BytesIO(_pickle_in(path)), 0
    while True:
        for opcode, argument, _ in pickletools.genops(file):
            number += 1
            if number > MAX_OPCODES:
                return
            yield opcode.name, argument


def _pickle_in(path: Path) -> bytes:
    """The pickle of a file of PyTorch, without its tensors."""
    if not zipfile.is_zipfile(path):
        with open(path, "rb") as file:
            return file.read(MAX_PICKLE)
    with zipfile.ZipFile(path) as archive:
        member = next(one for one in archive.infolist() if one.filename.endswith("data.pkl"))
        if member.file_size > MAX_PICKLE:
            raise InputError(f"{path}: a pickle of {member.file_size} bytes.")
        return archive.read(member)


def _of_tensors(name: str) -> bool:
    """Whether PyTorch reads this name in a file of tensors."""
    return name in ("collections.OrderedDict", "torch.device", "torch.Size") or name.startswith(
        ("torch._utils._rebuild", "torch._tensor", "torch.nn.parameter", "torch.nn.Parameter")
        + tuple(
            f"torch.{kind}Storage"
            for kind in "Float Half BFloat16 Double Long Int Short Byte Char Bool Untyped".split()
        )
        + ("torch.storage", "torch.float", "torch.bfloat", "torch.int", "torch.serialization")
    )
