"""Names of LoRA files, made from the names of the layers that they change.

kohya-ss (with LyCORIS' convolutions), PEFT, diffusers in the spellings of its times, AnimateDiff's motion LoRA.
"""

import re
from collections.abc import Callable, Iterable, Mapping

from i2v_jax.errors import InputError
from i2v_jax.weights.formats.clip import CLIP_TEXT
from i2v_jax.weights.formats.diffusers import (
    DIFFUSERS_UNET,
    DIFFUSERS_UNET_LINEAR,
    PUBLISHED_UNET,
    PUBLISHED_UNET_LINEAR,
    with_adapters,
)
from i2v_jax.weights.formats.original import Blocks, unet_rows
from i2v_jax.weights.names import CONVOLUTION, DENSE, SAME, TINY_CONVOLUTION, FamilyTable, Row, Table

Shapes = Mapping[str, tuple[int, ...]]
Spelling = dict[str, str]
"""Our leaf below `lora/` -> what follows the layer's name there."""

KOHYA: Spelling = {"down": ".lora_down.weight", "up": ".lora_up.weight", "mid": ".lora_mid.weight", "alpha": ".alpha"}
PEFT: Spelling = {"down": ".lora_A.weight", "up": ".lora_B.weight"}
LORA: Spelling = {"down": ".lora.down.weight", "up": ".lora.up.weight"}
LORA_LINEAR_LAYER: Spelling = {"down": ".lora_linear_layer.down.weight", "up": ".lora_linear_layer.up.weight"}
PROCESSOR: Spelling = {"down": "_lora.down.weight", "up": "_lora.up.weight"}

ATTENTION = re.compile(r"\.(to_[qkv]|to_out)(\.0)?")
TEXT_ATTENTION = re.compile(r"\.([qkv]|out)_proj")

OTHER_METHODS = {
    r"(.*\.)?(dora_scale|lora_magnitude_vector.*)": "DoRA, which scales whole columns",
    r".*\.hada_[wt]\d.*": "LoHa, a Hadamard product",
    r".*\.lokr_[wt]\d.*": "LoKr, a Kronecker product",
    r".*\.(on_input|ia3_l(\..*)?)": "(IA)^3, which scales activations",
    r".*\.(a1|a2|b1|b2|bm1|bm2)\.weight": "GLoRA",
    r".*\.(oft_blocks|oft_diag|oft_r(\..*)?|boft_.*)": "OFT, an orthogonal transformation",
    r".*\.lora_B\.bias|.*\.(lora_up|lora\.up)\.bias": "a LoRA with biases of its own",
    r"string_to_param\..*|emb_params|clip_[lg]|<.*>": "a textual inversion",
}
"""What is shared beside LoRA, by the names that tell it."""


def refuse_other_methods(names: Iterable[str], source: str) -> None:
    """Raises InputError for weights that no product of two matrices stands for, naming the tensor and the method."""
    patterns = [(re.compile(pattern), method) for pattern, method in OTHER_METHODS.items()]
    for name in names:
        for pattern, method in patterns:
            if pattern.fullmatch(name):
                raise InputError(
                    f"{source}: {name!r} belongs to {method}. Only LoRA (and LoCon) is read here; merge such weights "
                    "into the model with the program that made them, and convert that."
                )


def lora_rows(layers: Iterable[Row], spell: Callable[[str], tuple[str, Spelling]]) -> list[Row]:
    """Returns the rows of the LoRA of every dense and convolutional layer.

    Args:
        layers: rows of the model's own format.
        spell: a layer's name there -> its name in the LoRA file, and how the names of its tensors end.
    """
    rows = []
    for row in layers:
        ours, layout = row.kind.get("weight", ("", SAME))
        if ours == "kernel":
            name, spelling = spell(row.theirs)
            layouts = {"up": TINY_CONVOLUTION if layout is CONVOLUTION else layout, "alpha": SAME}
            rows += [
                Row(name + end, f"{row.ours}/lora/{leaf}", {"": ("", layouts.get(leaf, layout))})
                for leaf, end in spelling.items()
            ]
    return rows


def kohya_rows(prefix: str, layers: Iterable[Row]) -> list[Row]:
    """Returns the rows of kohya-ss, which joins a layer's name with underscores."""
    return lora_rows(layers, lambda name: (prefix + name.replace(".", "_"), KOHYA))


def _diffusers(name: str, base: Table, prefix: str, attention: Spelling, others: Spelling) -> FamilyTable:
    """LoRA by the layers' own names; its rows are made for files that hold some so spelled, and for trees.

    Args:
        name: of the table.
        base: the layers' names.
        prefix: what stands before them.
        attention: how the projections of attentions are spelled.
        others: how other layers are.
    """
    down = tuple({attention["down"], others["down"]})

    def spell(layer: str) -> tuple[str, Spelling]:
        if not re.search(rf"({ATTENTION.pattern}|{TEXT_ATTENTION.pattern})$", layer):
            return prefix + layer, others
        if attention["down"] == PROCESSOR["down"]:
            layer = TEXT_ATTENTION.sub(r".to_\1", ATTENTION.sub(r".processor.\1", layer))
        return prefix + layer, attention

    def of_file(shapes: Shapes) -> list[Row]:
        is_so_spelled = any(name.startswith(prefix) and name.endswith(down) for name in shapes)
        return lora_rows(base.rows, spell) if is_so_spelled else []

    return FamilyTable(name, of_file, lambda shapes: lora_rows(base.rows, spell))


def _all_spellings(name: str, base: Table, component: str, older: Spelling) -> tuple[FamilyTable, ...]:
    """The spellings of diffusers and PEFT, the current one first; alphas are in the metadata, or tensors.

    Args:
        name: of the current one; the others' names say how they differ.
        base: the layers' names.
        component: what stands before them.
        older: how a LoRA was spelled outside of attention processors.
    """
    spellings = {
        "": (PEFT, PEFT),
        ", attentions as in 0.22": (older, PEFT),
        ", as in 0.22": (older, older),
        ", in attention processors": (PROCESSOR, older),
    }
    prefixes = {f"{component}.": "", "base_model.model.": ", by PEFT", "": ", without component"}
    return tuple(
        _diffusers(name + how + where + alphas, base, prefix, attention | alpha, others | alpha)
        for alphas, alpha in (("", {}), (", alphas as tensors", {"alpha": KOHYA["alpha"]}))
        for prefix, where in prefixes.items()
        for how, (attention, others) in spellings.items()
    )


def _kohya_unet(name: str, unet: Table) -> Table:
    return with_adapters(name, lambda: kohya_rows("lora_unet_", unet.rows))


KOHYA_UNET = _kohya_unet("kohya-ss LoRA", DIFFUSERS_UNET)
KOHYA_UNET_LINEAR = _kohya_unet("kohya-ss LoRA, linear projections", DIFFUSERS_UNET_LINEAR)
KOHYA_SDXL = Table(
    "kohya-ss LoRA, SDXL",  # whose UNet it names as the original does
    kohya_rows("lora_unet_", unet_rows(Blocks(3, set(range(1, 9)), dict.fromkeys(range(9), True)), DENSE)),
)
KOHYA_TEXT = Table("kohya-ss LoRA", kohya_rows("lora_te_", CLIP_TEXT.rows))
KOHYA_TEXT_1 = Table("kohya-ss LoRA, first of two", kohya_rows("lora_te1_", CLIP_TEXT.rows))
KOHYA_TEXT_2 = Table("kohya-ss LoRA", kohya_rows("lora_te2_", CLIP_TEXT.rows))

DIFFUSERS_LORAS = _all_spellings("diffusers LoRA", DIFFUSERS_UNET, "unet", LORA)
DIFFUSERS_LORAS_LINEAR = _all_spellings("diffusers LoRA, linear projections", DIFFUSERS_UNET_LINEAR, "unet", LORA)
DIFFUSERS_LORAS_TEXT = _all_spellings("diffusers LoRA", CLIP_TEXT, "text_encoder", LORA_LINEAR_LAYER)
DIFFUSERS_LORAS_TEXT_2 = _all_spellings("diffusers LoRA", CLIP_TEXT, "text_encoder_2", LORA_LINEAR_LAYER)
DIFFUSERS_LORA, DIFFUSERS_LORA_LINEAR, DIFFUSERS_LORA_TEXT, DIFFUSERS_LORA_TEXT_2 = (
    spellings[0]
    for spellings in (DIFFUSERS_LORAS, DIFFUSERS_LORAS_LINEAR, DIFFUSERS_LORAS_TEXT, DIFFUSERS_LORAS_TEXT_2)
)
MOTION_LORA = _diffusers("AnimateDiff motion LoRA", PUBLISHED_UNET, "", PROCESSOR, LORA)
MOTION_LORA_LINEAR = _diffusers(
    "AnimateDiff motion LoRA, linear projections", PUBLISHED_UNET_LINEAR, "", PROCESSOR, LORA
)

LORA_TABLES: Mapping[str, tuple[Table, ...]] = {
    "unet": (
        KOHYA_UNET,
        KOHYA_UNET_LINEAR,
        KOHYA_SDXL,
        *DIFFUSERS_LORAS,
        *DIFFUSERS_LORAS_LINEAR,
        MOTION_LORA,
        MOTION_LORA_LINEAR,
    ),
    "text_encoder": (KOHYA_TEXT, KOHYA_TEXT_1, *DIFFUSERS_LORAS_TEXT),
    "text_encoder_2": (KOHYA_TEXT_2, *DIFFUSERS_LORAS_TEXT_2),
}
