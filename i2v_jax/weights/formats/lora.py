"""Names of LoRA files and their kin (LyCORIS' methods), made from the names of the layers that they change.

kohya-ss (with LyCORIS' convolutions), the same with dots (OneTrainer, ComfyUI), PEFT, diffusers in the spellings of its
times, motion LoRA of AnimateDiff and of MotionDirector.
"""

import functools
import re
from collections.abc import Callable, Collection, Iterable, Mapping

from i2v_jax.models.adapters import ADAPTERS
from i2v_jax.weights.formats.clip import CLIP_TEXT, CLIP_TEXT_ROWS, without
from i2v_jax.weights.formats.diffusers import (
    DIFFUSERS_UNET,
    DIFFUSERS_UNET_LINEAR,
    PUBLISHED_UNET,
    PUBLISHED_UNET_LINEAR,
)
from i2v_jax.weights.formats.original import Blocks, unet_rows
from i2v_jax.weights.names import (
    CONVOLUTION,
    DENSE,
    DENSE_AS_CONV,
    MATRIX,
    SAME,
    TINY_CONVOLUTION,
    FamilyTable,
    GrowingTable,
    Kind,
    Layout,
    Row,
    Table,
)

Shapes = Mapping[str, tuple[int, ...]]
Spelling = dict[str, str]
"""Our leaf below `lora/` -> what follows the layer's name there."""

HADAMARD = tuple(f"hada_{factor}" for factor in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2"))
KRONECKER = tuple(f"lokr_{factor}" for factor in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2"))
OF_NORMS = ("w_norm", "b_norm")
DIFFERENCES = ("diff", "diff_b")
PRODUCTS: Spelling = {leaf: f".{leaf}" for leaf in (*HADAMARD, *KRONECKER)}
LYCORIS: Spelling = (
    PRODUCTS
    | {leaf: f".{leaf}" for leaf in (*OF_NORMS, *DIFFERENCES)}
    | {"dora_scale": ".dora_scale", "ia3": ".weight", "on_input": ".on_input"}
)
"""Beside LoRA's own: LoHa, LoKr, DoRA, (IA)^3, differences of weights and biases, of norms."""
OF_PEFT: Spelling = PRODUCTS | {"magnitude": ".lora_magnitude_vector", "ia3_l": ".ia3_l"}

UP_DOWN: Spelling = {"down": ".lora_down.weight", "up": ".lora_up.weight", "mid": ".lora_mid.weight", "alpha": ".alpha"}
A_B: Spelling = {"down": ".lora_A.weight", "up": ".lora_B.weight"}
KOHYA: Spelling = UP_DOWN | LYCORIS
PEFT: Spelling = A_B | OF_PEFT
LORA: Spelling = {"down": ".lora.down.weight", "up": ".lora.up.weight"} | OF_PEFT
LORA_LINEAR_LAYER: Spelling = {
    "down": ".lora_linear_layer.down.weight",
    "up": ".lora_linear_layer.up.weight",
} | OF_PEFT
PROCESSOR: Spelling = {"down": "_lora.down.weight", "up": "_lora.up.weight"}
CLONEOFSIMO: Spelling = {"down": ".lora_down.weight", "up": ".lora_up.weight"}

PLAIN = ("down", "up", "mid", "alpha")
"""The leaves of LoRA itself, which always have rows; those of its kin have some where a file or a tree holds such."""
PATHS = {"magnitude": "dora_scale"}
"""Leaves of spellings that are the same in our trees."""

MAGNITUDES = {
    MATRIX: Layout(lambda array: array.reshape(1, -1), lambda array: array.reshape(-1)),
    TINY_CONVOLUTION: Layout(lambda array: array.reshape(1, -1), lambda array: array[:, :, None, None]),
    CONVOLUTION: Layout(lambda array: array.reshape(1, 1, 1, -1), lambda array: array.reshape(1, -1, 1, 1)),
}
"""Layout of a layer -> how PEFT stores DoRA's magnitudes of it, one for each output; ours broadcast to the kernel."""

ATTENTION = re.compile(r"\.(to_[qkv]|to_out)(\.0)?")
TEXT_ATTENTION = re.compile(r"\.([qkv]|out)_proj")


def lora_rows(
    layers: Iterable[Row], spell: Callable[[str], tuple[str, Spelling]], leaves: Collection[str] = PLAIN
) -> list[Row]:
    """Returns the rows of the LoRA of every dense and convolutional layer, and of the differences of norms.

    Args:
        layers: rows of the model's own format.
        spell: a layer's name there -> its name in the LoRA file, and how the names of its tensors end.
        leaves: which of them are wanted.
    """
    rows = []
    for row in layers:
        ours, layout = row.kind.get("weight", ("", SAME))
        if ours not in ("kernel", "scale"):
            continue
        name, spelling = spell(row.theirs)
        own = {*leaves} & {*OF_NORMS, *DIFFERENCES} if ours == "scale" else {*leaves} - {*OF_NORMS}
        layouts = {
            **dict.fromkeys(("down", "mid", "dora_scale", "diff"), layout),
            "up": TINY_CONVOLUTION if layout is CONVOLUTION else layout,
            "magnitude": MAGNITUDES.get(layout, SAME),
        }
        rows += [
            Row(name + end, f"{row.ours}/lora/{PATHS.get(leaf, leaf)}", {"": ("", layouts.get(leaf, SAME))})
            for leaf, end in spelling.items()
            if leaf in own
        ]
    return rows


def kohya_rows(prefix: str, layers: Iterable[Row], leaves: Collection[str] = PLAIN) -> list[Row]:
    """Returns the rows of kohya-ss, which joins a layer's name with underscores."""
    return lora_rows(layers, lambda name: (prefix + name.replace(".", "_"), KOHYA), leaves)


def leaves_in_file(names: Iterable[str], prefix: str, *spellings: Spelling) -> set[str]:
    """Returns which leaves the names hold that have this prefix: those of LoRA itself, and others that are there.

    Empty where no name is so spelled.
    """
    ends = {end: leaf for spelling in spellings for leaf, end in spelling.items() if leaf != "alpha"}
    longest_first = sorted(ends, key=len, reverse=True)
    any_end = re.compile(f"(?:{'|'.join(map(re.escape, longest_first))})$")
    held = {ends[found[0]] for name in names if name.startswith(prefix) and (found := any_end.search(name))}
    held -= set() if "on_input" in held else {"ia3"}  # whose name is that of any weight
    return {*PLAIN, *held} if held - {"up", "mid"} else set()


def leaves_in_tree(paths: Iterable[str]) -> set[str]:
    """Returns which leaves a tree's paths hold, with those of LoRA itself."""
    held = {path.rpartition("/")[2] for path in paths if "/lora/" in path}
    return {*PLAIN, *held, *(leaf for leaf, ours in PATHS.items() if ours in held)}


class LoraTable(GrowingTable):
    """LoRA in one spelling: as it stands with LoRA's own leaves, for files and trees with all that these hold."""

    def __init__(self, name: str, prefix: str, rows: Callable[[Collection[str]], list[Row]], spelling: Spelling):
        """Takes what stands before all names, what makes the rows of some leaves, and how these are spelled."""
        super().__init__(name, lambda: rows(PLAIN), lambda: tuple(ADAPTERS))
        self._prefix, self._rows_of, self._spelling = prefix, rows, spelling

    def of_file(self, shapes: Shapes) -> Table:
        return self._with(leaves_in_file(shapes, self._prefix, self._spelling))

    def of_tree(self, shapes: Shapes) -> Table:
        return self._with(leaves_in_tree(shapes))

    def _with(self, leaves: Collection[str]) -> Table:
        return self if leaves <= set(PLAIN) else self._with_more(frozenset(leaves), tuple(ADAPTERS))

    @functools.lru_cache(maxsize=64)  # noqa: B019 (tables live as long as the program)
    def _with_more(self, leaves: frozenset[str], adapters: tuple[str, ...]) -> Table:
        return Table(self.name, self._rows_of(leaves))


def _spelled(
    name: str,
    layers: Callable[[Shapes], Iterable[Row]],
    prefix: str,
    spell: Callable[[str], tuple[str, Spelling]],
    *spellings: Spelling,
) -> FamilyTable:
    """LoRA whose rows are made for files that hold names so spelled behind this prefix, and for trees."""

    def of_file(shapes: Shapes) -> list[Row]:
        leaves = leaves_in_file(shapes, prefix, *spellings)
        return lora_rows(layers(shapes), spell, leaves) if leaves else []

    return FamilyTable(name, of_file, lambda shapes: lora_rows(layers(shapes), spell, leaves_in_tree(shapes)))


def _diffusers(
    name: str, layers: Callable[[], Iterable[Row]], prefix: str, attention: Spelling, others: Spelling
) -> FamilyTable:
    """LoRA by the layers' own names.

    Args:
        name: of the table.
        layers: makes the rows of the model's own format.
        prefix: what stands before their names.
        attention: how the projections of attentions are spelled.
        others: how other layers are.
    """

    def spell(layer: str) -> tuple[str, Spelling]:
        if not re.search(rf"({ATTENTION.pattern}|{TEXT_ATTENTION.pattern})$", layer):
            return prefix + layer, others
        if attention["down"] == PROCESSOR["down"]:
            layer = TEXT_ATTENTION.sub(r".to_\1", ATTENTION.sub(r".processor.\1", layer))
        return prefix + layer, attention

    return _spelled(name, lambda shapes: layers(), prefix, spell, attention, others)


def _all_spellings(
    name: str, layers: Callable[[], Iterable[Row]], component: str, older: Spelling
) -> tuple[FamilyTable, ...]:
    """The spellings of diffusers and PEFT, the current one first; alphas are in the metadata, or tensors.

    Args:
        name: of the current one; the others' names say how they differ.
        layers: makes the rows of the model's own format.
        component: what stands before their names.
        older: how a LoRA was spelled outside of attention processors.
    """
    spellings = {
        "": (PEFT, PEFT),
        ", attentions as in 0.22": (older, PEFT),
        ", as in 0.22": (older, older),
        ", in attention processors": (PROCESSOR, older),
        ", by MotionDirector": (PROCESSOR, PROCESSOR),  # what it calls spatial
    }
    prefixes = {f"{component}.": "", "base_model.model.": ", by PEFT", "": ", without component"}
    return tuple(
        _diffusers(name + how + where + alphas, layers, prefix, attention | alpha, others | alpha)
        for alphas, alpha in (("", {}), (", alphas as tensors", {"alpha": KOHYA["alpha"]}))
        for prefix, where in prefixes.items()
        for how, (attention, others) in spellings.items()
    )


def _dotted(
    name: str, layers: Callable[[Shapes], Iterable[Row]], prefixes: Iterable[str], joint: str = "."
) -> tuple[FamilyTable, ...]:
    """kohya-ss' and PEFT's endings, alphas as tensors, behind a prefix and a layer's name, which stays dotted.

    Args:
        name: of the tables; the prefix follows.
        layers: makes the rows of the model's own format, for a file's names or a tree's paths.
        prefixes: each of a table.
        joint: what stands in a layer's name in the place of dots.
    """
    spellings = {"": KOHYA, ", lora_A": A_B | LYCORIS | {"alpha": KOHYA["alpha"]}}
    return tuple(
        _spelled(
            f"{name} ({prefix}*{how})",
            layers,
            prefix,
            lambda layer, prefix=prefix, spelling=spelling: (prefix + layer.replace(".", joint), spelling),
            spelling,
        )
        for prefix in prefixes
        for how, spelling in spellings.items()
    )


def _motion_director(name: str, unet: Table) -> tuple[FamilyTable, ...]:
    """MotionDirector's temporal LoRA of all dense layers: `…/ff.net.0.proj` is `…/ff.net.0.processor.proj_lora` there.

    Its two forms: that of motion LoRA (`use_motion_lora_format`), and as it lies in memory.
    """

    def in_processor(layer: str) -> tuple[str, Spelling]:
        parent, _, last = layer.rpartition(".")
        return f"{parent}.processor.{last}", PROCESSOR

    return (
        _spelled(name, lambda shapes: unet.rows, "", in_processor, PROCESSOR),
        _spelled(
            f"{name}, as in memory", lambda shapes: unet.rows, "", lambda layer: (layer, CLONEOFSIMO), CLONEOFSIMO
        ),
    )


SD15_BLOCKS = Blocks(3, set(range(1, 12)), {number: number >= 3 for number in range(12)})
SDXL_BLOCKS = Blocks(3, set(range(1, 9)), dict.fromkeys(range(9), True))
ONETRAINER_BLOCKS = Blocks(3, set(range(1, 12)), dict.fromkeys(range(12), True))
"""What OneTrainer takes SD1.5 to have: a transformer in every output block, which an upsampler's number counts."""

DEEP = re.compile(r".*transformer_blocks[._][1-9].*|.*/attention/blocks_[1-9].*")
"""In transformers of several blocks, which no model of SD1.5's size has."""


def _of_sd15(blocks: Blocks, shapes: Shapes) -> list[Row]:
    return [] if any(map(DEEP.fullmatch, shapes)) else unet_rows(blocks, DENSE_AS_CONV)


def _kohya(name: str, prefix: str, layers: Callable[[], Iterable[Row]]) -> Table:
    return LoraTable(name, prefix, lambda leaves: kohya_rows(prefix, layers(), leaves), KOHYA)


def _kohya_unet(name: str, unet: Table) -> Table:
    return _kohya(name, "lora_unet_", lambda: unet.rows)


KOHYA_UNET = _kohya_unet("kohya-ss LoRA", DIFFUSERS_UNET)
KOHYA_UNET_LINEAR = _kohya_unet("kohya-ss LoRA, linear projections", DIFFUSERS_UNET_LINEAR)


def _kohya_original(name: str, blocks: Blocks, attends: Collection[str], projection: Kind) -> Table:
    """LoRA by the numbers of the original UNet's blocks, transformers only in those blocks that have some."""
    places = tuple(f"{block}.1." for block in attends)
    rows = [
        row
        for row in unet_rows(blocks, projection)
        if "/attention/" not in row.ours or row.theirs.startswith(("middle_block.", *places))
    ]
    return _kohya(name, "lora_unet_", lambda: rows)


KOHYA_SDXL = _kohya_original(
    "kohya-ss LoRA, SDXL",  # whose UNet it names as the original does
    Blocks(3, set(range(1, 9)), {number: number < 6 for number in range(9)}),
    [*(f"input_blocks.{i}" for i in (4, 5, 7, 8)), *(f"output_blocks.{i}" for i in range(6))],
    DENSE,
)
KOHYA_SD15_ORIGINAL = _kohya_original(
    "kohya-ss LoRA, original block numbers",  # of SD1.5 and SD2, by tools that name every UNet so
    Blocks(3, set(range(1, 12)), {number: number > 2 for number in range(12)}),
    [*(f"input_blocks.{i}" for i in (1, 2, 4, 5, 7, 8)), *(f"output_blocks.{i}" for i in range(3, 12))],
    DENSE_AS_CONV,
)
KOHYA_TEXT = _kohya("kohya-ss LoRA", "lora_te_", lambda: CLIP_TEXT.rows)
KOHYA_TEXT_1 = _kohya("kohya-ss LoRA, first of two", "lora_te1_", lambda: CLIP_TEXT.rows)
KOHYA_TEXT_2 = _kohya("kohya-ss LoRA", "lora_te2_", lambda: CLIP_TEXT.rows)

CLIP_TEXT_FLAT_ROWS = without("text_model.", CLIP_TEXT_ROWS)
KOHYA_FLAT_TEXTS, KOHYA_FLAT_TEXTS_2 = (
    tuple(
        _kohya(f"kohya-ss LoRA, without text_model ({prefix}*)", prefix, lambda: CLIP_TEXT_FLAT_ROWS)
        for prefix in prefixes
    )
    for prefixes in (("lora_te_", "lora_te1_"), ("lora_te2_",))
)

DOTTED_UNETS = tuple(
    table
    for name, layers in (
        ("dotted LoRA", lambda shapes: DIFFUSERS_UNET.rows),
        ("dotted LoRA, linear projections", lambda shapes: DIFFUSERS_UNET_LINEAR.rows),
        ("dotted LoRA, original blocks", lambda shapes: _of_sd15(SD15_BLOCKS, shapes)),
        ("dotted LoRA, original blocks by OneTrainer", lambda shapes: _of_sd15(ONETRAINER_BLOCKS, shapes)),
        ("dotted LoRA, original blocks, linear projections", lambda shapes: unet_rows(SDXL_BLOCKS, DENSE)),
    )
    for table in _dotted(name, layers, ("lora_unet.", "unet.", "diffusion_model.", "model.diffusion_model."))
)
"""OneTrainer's (`lora_unet.` with diffusers' names; `unet.` with the original ones, the Open Model Initiative's way),
and what ComfyUI writes (`diffusion_model.`)."""
LYCORIS_UNETS = tuple(
    table
    for name, unet in (("LyCORIS LoRA", DIFFUSERS_UNET), ("LyCORIS LoRA, linear projections", DIFFUSERS_UNET_LINEAR))
    for table in _dotted(name, lambda shapes, unet=unet: unet.rows, ("lycoris_",), "_")
)
DOTTED_TEXTS, DOTTED_TEXTS_2 = (
    tuple(
        table
        for name, rows in (("dotted LoRA", CLIP_TEXT_ROWS), ("dotted LoRA without text_model.", CLIP_TEXT_FLAT_ROWS))
        for table in _dotted(name, lambda shapes, rows=rows: rows, prefixes)
    )
    for prefixes in (
        ("lora_te.", "lora_te1.", "clip_l.", "text_encoders.clip_l.transformer."),
        ("lora_te2.", "clip_g.", "text_encoders.clip_g.transformer."),
    )
)

DIFFUSERS_LORAS = _all_spellings("diffusers LoRA", lambda: DIFFUSERS_UNET.rows, "unet", LORA)
DIFFUSERS_LORAS_LINEAR = _all_spellings(
    "diffusers LoRA, linear projections", lambda: DIFFUSERS_UNET_LINEAR.rows, "unet", LORA
)
DIFFUSERS_LORAS_TEXT, DIFFUSERS_LORAS_TEXT_2 = (
    _all_spellings("diffusers LoRA", lambda: CLIP_TEXT_ROWS, component, LORA_LINEAR_LAYER)
    + _all_spellings("diffusers LoRA without text_model", lambda: CLIP_TEXT_FLAT_ROWS, component, LORA_LINEAR_LAYER)
    for component in ("text_encoder", "text_encoder_2")
)
DIFFUSERS_LORA, DIFFUSERS_LORA_LINEAR, DIFFUSERS_LORA_TEXT, DIFFUSERS_LORA_TEXT_2 = (
    spellings[0]
    for spellings in (DIFFUSERS_LORAS, DIFFUSERS_LORAS_LINEAR, DIFFUSERS_LORAS_TEXT, DIFFUSERS_LORAS_TEXT_2)
)
MOTION_LORA = _diffusers("AnimateDiff motion LoRA", lambda: PUBLISHED_UNET.rows, "", PROCESSOR, LORA)
MOTION_LORA_LINEAR = _diffusers(
    "AnimateDiff motion LoRA, linear projections", lambda: PUBLISHED_UNET_LINEAR.rows, "", PROCESSOR, LORA
)
MOTION_DIRECTOR_LORAS = (
    *_motion_director("MotionDirector motion LoRA", PUBLISHED_UNET),
    *_motion_director("MotionDirector motion LoRA, linear projections", PUBLISHED_UNET_LINEAR),
)

LORA_TABLES: Mapping[str, tuple[Table, ...]] = {
    "unet": (
        KOHYA_UNET,
        KOHYA_UNET_LINEAR,
        KOHYA_SDXL,
        KOHYA_SD15_ORIGINAL,
        *DIFFUSERS_LORAS,
        *DIFFUSERS_LORAS_LINEAR,
        MOTION_LORA,
        MOTION_LORA_LINEAR,
        *MOTION_DIRECTOR_LORAS,
        *DOTTED_UNETS,
        *LYCORIS_UNETS,
    ),
    "text_encoder": (KOHYA_TEXT, KOHYA_TEXT_1, *KOHYA_FLAT_TEXTS, *DIFFUSERS_LORAS_TEXT, *DOTTED_TEXTS),
    "text_encoder_2": (KOHYA_TEXT_2, *KOHYA_FLAT_TEXTS_2, *DIFFUSERS_LORAS_TEXT_2, *DOTTED_TEXTS_2),
}
