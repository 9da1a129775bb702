"""The command line: what each command takes, with examples; the work is in the module of the command's name.

Exit codes: 0; 1 where `verify` or `diff` finds a difference; 2 on bad input, with a message; 130 when interrupted.
"""

import argparse
import importlib
import os
import re
import sys
from collections.abc import Sequence

from convert import early
from convert.arguments import (
    DTYPES,
    PRECISIONS,
    UNMATCHED,
    ArgumentParser,
    component_config,
    frames,
    lora,
    number,
    size,
)
from convert.formats import FORMATS
from i2v_jax import commands
from i2v_jax.commands.wording import as_called

EXAMPLES = """\
examples:
  what is this file?
    python -m convert inspect dreamshaper_8.safetensors
  a community model as one JAX file, and as an orbax tree in bfloat16
    python -m convert import dreamshaper_8.safetensors dreamshaper.safetensors
    python -m convert import dreamshaper_8.safetensors dreamshaper --dtype bf16
  base, motion modules, adapter and image tokens together, a LoRA merged in
    python -m convert import stable-diffusion-v1-5/stable-diffusion-v1-5 mm_sd_v15.ckpt i2v_module.pth \\
        ip-adapter-plus_sd15.safetensors model.safetensors --lora ghibli.safetensors=0.8
  a trained adapter for the published PyTorch code
    python -m convert export trained.safetensors i2v_module.safetensors --to i2v-adapter --only 'unet/.*/first_frame/.*'
  the same model as a diffusers folder
    python -m convert export dreamshaper.safetensors dreamshaper-diffusers --to diffusers
  is the conversion right? tensors, then outputs against PyTorch
    python -m convert verify dreamshaper_8.safetensors dreamshaper.safetensors --run
  what did the training change?
    python -m convert diff before.safetensors after.safetensors
  two models merged by a recipe, and by an expression (docs/merging.md)
    python -m convert merge edg pre=dynamicrafter.ckpt tuned=tuned.ckpt dyn=dyn.safetensors con=con.safetensors
    python -m convert merge "a + 0.5 * (b - c)" a=a.safetensors b=b.safetensors c=c.safetensors result=new.safetensors
  the networks of a run as ONNX and StableHLO, with a runner for ONNX Runtime (docs/devices.md)
    python -m convert device exported --config=configs/sample/sd15.py --config.image=cat.jpg --config.frames=16
"""
DEVICE = "The run is that of sample.py, by the same --config flags; OUTPUT becomes a folder."


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code. `InputError` is left to the caller."""
    parser = _parser()
    arguments, arguments.rest = parser.parse_known_args(argv)
    if strange := [word for word in arguments.rest if not takes(arguments, word)]:
        parser.error(f"unrecognized arguments: {' '.join(strange)}")
    if arguments.module in early.COMMANDS:
        early.read_early(sys.argv[1:] if argv is None else map(str, argv))
    if arguments.adapter_module:
        from i2v_jax.models.adapters import import_modules  # takes seconds, and `--help` needs none of them

        import_modules(arguments.adapter_module)
    command = importlib.import_module(f"convert.{arguments.module}")
    return command.run(arguments)


def takes(arguments: argparse.Namespace, word: str) -> bool:
    """Whether a word that the parser does not know is for the command itself: `device` takes `sample.py`'s flags."""
    return arguments.module == "device" and re.match(r"--(no)?config[.=]", word) is not None


def _parser() -> argparse.ArgumentParser:
    parser = ArgumentParser(
        prog=as_called("python -m convert"),
        description="Moves weights between PyTorch and JAX. Formats are detected. SOURCE: a file, a folder, a hub id.",
        epilog=as_called(EXAMPLES),
    )
    commands_ = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, module: str, summary: str, description: str = "") -> argparse.ArgumentParser:
        about = dict(description=f"{summary}. {description}", epilog=as_called(_epilog(name)))
        added = commands_.add_parser(name, help=summary, **about)
        added.set_defaults(module=module)
        added.add_argument(
            "--adapter-module",
            action="append",
            default=[],
            metavar="MODULE",
            help="a module of your own that registers adapters (i2v_jax.models.adapters); may repeat",
        )
        return added

    for name, module, summary, description in (
        (
            "import",
            "importing",
            "writes our own format from any other",
            "OUTPUT is one safetensors file where its name ends so, otherwise an orbax folder.",
        ),
        (
            "export",
            "exporting",
            "writes a format of the PyTorch or Flax world from any other",
            "OUTPUT is a file (.safetensors, .msgpack, or a pickle: .ckpt, .pt, .pth, .bin), or else a folder.",
        ),
    ):
        sub = command(name, module, summary, description)
        sub.add_argument(
            "sources", nargs="+", metavar="SOURCE", help="what to convert; of several, each adds its parts"
        )
        sub.add_argument("output", metavar="OUTPUT", help="what to write")
        if name == "export":
            sub.add_argument("--to", metavar="FORMAT", help="the format wanted (listed below); default: as it came")
            sub.add_argument(
                "--shard-size", type=size, metavar="SIZE", default="10GB", help="of a folder's files, such as 5GB"
            )
            sub.add_argument(
                "--write-variant", metavar="NAME", help="a folder's files are called ….NAME.safetensors: fp16"
            )
        sub.add_argument("--dtype", choices=DTYPES, help="of floating-point tensors; default: unchanged")
        sub.add_argument(
            "--only", action="append", metavar="PATTERN", help="regular expression of paths to keep; may repeat"
        )
        sub.add_argument("--lora", action="append", type=lora, default=[], metavar="FILE[=SCALE]", help="merge a LoRA")
        _add_source_options(sub)
        sub.add_argument("--overwrite", action="store_true", help="replace OUTPUT if it is there")

    sub = command("inspect", "inspecting", "says what a file is: components, family, motion version, dtypes, sizes")
    sub.add_argument("sources", nargs="+", metavar="SOURCE")
    sub.add_argument("--keys", action="store_true", help="list every tensor with its path here, shape and dtype")
    sub.add_argument("--skip-unknown", action="store_true", help="judge it without the tensors that nothing knows")
    sub.add_argument("--variant", metavar="NAME", help="which precision of several, such as fp16")

    sub = command("verify", "verifying", "compares a conversion with what it was made from, tensor by tensor")
    sub.add_argument("sources", nargs="+", metavar="SOURCE", help="what was converted")
    sub.add_argument("converted", metavar="CONVERTED", help="what it was converted to")
    sub.add_argument("--run", action="store_true", help="also outputs on random input, ours against PyTorch's")
    sub.add_argument("--lora", action="append", type=lora, default=[], metavar="FILE[=SCALE]", help="a LoRA merged in")
    _add_source_options(sub)

    sub = command("diff", "diffing", "compares two checkpoints: keys, shapes, dtypes, largest differences")
    sub.add_argument("first", metavar="FIRST")
    sub.add_argument("second", metavar="SECOND")
    sub.add_argument("--show", type=int, default=20, metavar="N", help="rows of each table (20)")

    _add_merge_options(command("merge", "merging", "merges models: task vectors, EDG, DARE, TIES, averages"))
    _add_device_options(command("device", "device", "exports a run's networks for devices: ONNX, StableHLO", DEVICE))
    return parser


def _add_device_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("output", metavar="OUTPUT", help="the folder to write")
    sub.add_argument(
        "--weights", action="append", choices=PRECISIONS, help="kind of weights; may repeat; default: all three"
    )
    sub.add_argument(
        "--noise", action="append", type=int, default=[], metavar="SEED", help="also JAX's noise of a seed; may repeat"
    )
    sub.add_argument("--no-measuring", dest="measure", action="store_false", help="write sizes alone, and run nothing")
    sub.add_argument("--overwrite", action="store_true", help="replace OUTPUT if it is there")


def _add_merge_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("recipe", metavar="RECIPE", help="a config, such as edg or dare:ties, or an expression")
    sub.add_argument("files", nargs="+", metavar="NAME=FILE", help="the recipe's models, and results to write")
    sub.add_argument("--number", action="append", type=number, default=[], metavar="NAME=VALUE", help="of the recipe")
    sub.add_argument("--seed", type=int, metavar="N", help="of the masks; the same seed draws the same ones")
    sub.add_argument("--unmatched", choices=UNMATCHED, help="tensors that not all models have; default: the recipe's")
    sub.add_argument("--to", metavar="FORMAT", help="the format wanted (see export --help); default: the first model's")
    sub.add_argument(
        "--sparse", action="store_true", help="write only what differs from the first model, as LoRA is used"
    )
    sub.add_argument("--dtype", choices=DTYPES, help="of floating-point tensors; default: the first model's")
    sub.add_argument("--variant", metavar="NAME", help="which precision of several to read, such as fp16")
    sub.add_argument("--motion-frames", type=frames, metavar="N", help="frames that motion modules know, if untold")
    sub.add_argument("--overwrite", action="store_true", help="replace results that are there")


def _add_source_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--config",
        action="append",
        type=component_config,
        default=[],
        metavar="COMPONENT=FILE",
        help="the component's config.json, where none lies beside the weights and their shapes do not suffice",
    )
    sub.add_argument("--variant", metavar="NAME", help="which precision of several to read, such as fp16")
    sub.add_argument("--skip-unknown", action="store_true", help="leave out tensors that nothing knows")
    sub.add_argument(
        "--motion-frames",
        type=frames,
        metavar="N",
        help="frames that motion modules know, where the file does not tell (AnimateDiff v1: 24, later: 32)",
    )


def _epilog(name: str) -> str:
    """The examples of one command, and the formats that `export` writes."""
    lines, kept, title = EXAMPLES.splitlines()[1:], [], ""
    for line in lines:
        if not line.startswith("    "):
            title = line
        elif f"-m convert {name} " in line:
            kept += [title, line] if title else [line]
            title = ""
        elif kept and kept[-1].endswith("\\"):
            kept.append(line)
    formats = [f"  {key:12} {summary}" for key, summary in FORMATS.items()]
    return "\n".join([*(["formats:", *formats, ""] if name == "export" else []), "examples:", *kept])


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # nothing here wants an accelerator, which others may be using
    commands.run(lambda: sys.exit(main()))
