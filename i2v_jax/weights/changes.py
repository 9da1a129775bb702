"""What LoRA and its kin change of a layer: methods told apart by their tensors, checked, merged in float32.

Beside a layer's `kernel` (or `scale`), `bias` stand `lora/LEAF`. LyCORIS' factors are as in their files, kernels there
[out, in, height, width]; all others as ours. Formulas: LyCORIS (arXiv:2309.14859), DoRA (arXiv:2402.09353), (IA)^3
(arXiv:2205.05638).
"""

import itertools
import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from i2v_jax.errors import InputError
from i2v_jax.weights.sparse import BITS, VALUES, unpack
from i2v_jax.weights.tensors import Entry

Leaves = Mapping[str, Entry]
Arrays = Mapping[str, np.ndarray]
Shape = tuple[int, ...]


class Method(NamedTuple):
    """A way to change layers.

    Attributes:
      title: what the field calls it.
      leaves: its tensors below `lora/`.
      any_of: sets of leaves, one of which must be there whole.
    """

    title: str
    leaves: frozenset[str]
    any_of: tuple[frozenset[str], ...]


def _method(title: str, leaves: str, *any_of: str) -> Method:
    return Method(title, frozenset(leaves.split()), tuple(frozenset(each.split()) for each in any_of))


_HALVES = [("lokr_w1", "lokr_w1_a lokr_w1_b"), ("lokr_w2", "lokr_w2_a lokr_w2_b")]
LORA = _method("LoRA", "down up mid", "down up")
LOHA = _method(
    "LoHa", "hada_w1_a hada_w1_b hada_w2_a hada_w2_b hada_t1 hada_t2", "hada_w1_a hada_w1_b hada_w2_a hada_w2_b"
)
LOKR = _method(
    "LoKr",
    "lokr_w1 lokr_w1_a lokr_w1_b lokr_w2 lokr_w2_a lokr_w2_b lokr_t2",
    *map(" ".join, itertools.product(*_HALVES)),
)
IA3 = _method("(IA)^3", "ia3 on_input", "ia3 on_input")
IA3_OF_PEFT = _method("(IA)^3", "ia3_l on_input", "ia3_l")
NORM = _method("trained norms", "w_norm b_norm", "w_norm", "b_norm")
FULL = _method("full differences of weights", "diff diff_b", "diff", "diff_b")
SPARSE = _method("sparse differences of weights", f"{BITS} {VALUES}", f"{BITS} {VALUES}")
METHODS = (LORA, LOHA, LOKR, IA3_OF_PEFT, IA3, NORM, FULL, SPARSE)
COMMON = frozenset(("alpha", "dora_scale"))
LEAVES = COMMON.union(*(method.leaves for method in METHODS))
WITH_PRODUCT = (LORA, LOHA, LOKR)
OF_BIASES = ("diff_b", "b_norm")
"""Differences of biases. PEFT's (IA)^3 on outputs is of weights and biases."""


def methods_of(leaves: Iterable[str]) -> list[Method]:
    """Returns the methods that a layer's leaves are of; a layer may have a LoRA and a difference of its bias."""
    held = set(leaves)
    found = [method for method in METHODS if held & method.leaves - {"on_input"}]
    return found or ([LORA] if held & COMMON else [IA3])


def is_of_weight(leaf: str) -> bool:
    """Whether a leaf changes a layer's kernel or scale, rather than its bias, or says how."""
    return leaf not in (*COMMON, *OF_BIASES, "on_input")


def is_of_bias(leaves: Leaves, weight: Shape | None) -> bool:
    """Whether a layer's bias is changed; `weight` is the shape of its kernel or scale, where it has one."""
    return any(leaf in OF_BIASES for leaf in leaves) or ("ia3_l" in leaves and not _is_on_input(leaves, weight))


def check_layer(source: str, layer: str, leaves: Leaves) -> None:
    """Checks that a layer's tensors are all there and fit together.

    Args:
      source, layer: for messages.
      leaves: leaf -> tensor, unread.

    Raises:
      InputError: a tensor is missing, or shapes do not fit together.
    """
    for method in methods_of(leaves):
        held = leaves.keys() & method.leaves
        if not any(wanted <= held for wanted in method.any_of):
            wanted = min(method.any_of, key=lambda leaves: len(leaves - held))
            there = min(held, default="alpha")
            lacking = min(wanted - held) if held else "down"
            raise InputError(f"{source}: {layer!r} has lora/{there} without lora/{lacking}. Is the file cut short?")
    of_weight = [method.title for method in methods_of(leaves) if any(map(is_of_weight, leaves.keys() & method.leaves))]
    if len(of_weight) > 1:
        raise InputError(f"{source} changes {layer!r} in several ways at once: {', '.join(of_weight)}.")
    for leaf in ("alpha", "on_input"):
        if leaf in leaves and math.prod(leaves[leaf].shape) != 1:
            raise InputError(f"{source}: {layer}/lora/{leaf} has shape {list(leaves[leaf].shape)}; wanted one number.")
    if "dora_scale" in leaves and not any(method in WITH_PRODUCT for method in methods_of(leaves)):
        raise InputError(f"{source}: {layer!r} has lora/dora_scale beside no LoRA, LoHa or LoKr.")
    if found := [method for method in methods_of(leaves) if method in WITH_PRODUCT]:
        _product_shape(source, layer, leaves, found[0])


def kernel_shape(leaves: Leaves) -> Shape | None:
    """Returns the shape of the kernel that a layer's tensors change, where they tell; None where they do not."""
    found = next((method for method in methods_of(leaves) if method in WITH_PRODUCT), None)
    if found:
        try:
            return _product_shape("", "", leaves, found)
        except InputError:
            return None
    return leaves["diff"].shape if "diff" in leaves else None


def fits(leaves: Leaves, weight: Shape) -> bool:
    """Whether a layer's tensors are of a kernel or scale of this shape; `check_layer` has passed."""
    if "ia3" in leaves or "ia3_l" in leaves:
        leaf = leaves["ia3"] if "ia3" in leaves else leaves["ia3_l"]
        axis = -2 if _is_on_input(leaves, weight) else -1
        return len(weight) >= 2 and leaf.size == weight[axis]
    if "w_norm" in leaves:
        return leaves["w_norm"].shape == weight
    if BITS in leaves:
        return leaves[BITS].shape == (-(-math.prod(weight) // 8),)
    given = kernel_shape(leaves)
    if given is None:
        return True
    if "down" in leaves or "diff" in leaves:
        exact = given == weight
    else:  # products that files may hold flat
        exact = len(weight) in (2, 4) and (math.prod(given[:-1]), given[-1]) == (math.prod(weight[:-1]), weight[-1])
        exact &= len(given) == 2 or given[-2] == weight[-2]
    return exact and ("dora_scale" not in leaves or _dora_axis(leaves["dora_scale"].shape, weight) is not None)


def merged_weight(base: np.ndarray, arrays: Arrays, scale: float) -> np.ndarray:
    """Returns a kernel or scale with a change added.

    LoRA, LoHa, LoKr, differences: W + s D. DoRA: W + s (m (W + D) / |W + D| - W), the norm over all axes but that of m,
    so that no scale leaves W, and 1 is as LyCORIS, PEFT and OneTrainer compute it. (IA)^3: W (1 + s l).

    Args:
      base: ours, float32.
      arrays: leaf -> float32, of a layer that `check_layer` and `fits` have passed.
      scale: how much of the change.
    """
    if "ia3" in arrays or "ia3_l" in arrays:
        axis = -2 if _is_on_input(arrays, base.shape) else -1
        return base * (1 + np.float32(scale) * _on_axis(_ia3_change(arrays), base.ndim, axis))
    if "w_norm" in arrays:
        return base + np.float32(scale) * arrays["w_norm"]
    if "diff" in arrays:
        return base + np.float32(scale) * arrays["diff"]
    if BITS in arrays:
        return base + np.float32(scale) * unpack(arrays[BITS], arrays[VALUES], base.shape)
    if "dora_scale" in arrays:
        whole = base + _product(arrays, base.shape, 1.0)
        axis = _dora_axis(arrays["dora_scale"].shape, base.shape) % base.ndim
        others = tuple(i for i in range(base.ndim) if i != axis)
        norms = np.sqrt(np.square(whole).sum(others, keepdims=True))
        whole *= arrays["dora_scale"] / np.maximum(norms, np.finfo(np.float32).eps)
        return base + np.float32(scale) * (whole - base)
    return base + _product(arrays, base.shape, scale)


def merged_bias(base: np.ndarray, arrays: Arrays, scale: float) -> np.ndarray:
    """Returns a bias with a change added; arguments as of `merged_weight`."""
    if "ia3_l" in arrays:
        return base * (1 + np.float32(scale) * _ia3_change(arrays))
    return base + np.float32(scale) * next(arrays[leaf] for leaf in OF_BIASES if leaf in arrays)


def rank_of(shapes: Mapping[str, Shape]) -> int | None:
    """Returns the rank of a product, which alpha is divided by; None of two whole factors of LoKr, which has none.

    Args:
      shapes: leaf -> its shape.
    """
    if "down" in shapes:
        return shapes["down"][-1]
    return next((shapes[leaf][0] for leaf in ("hada_w1_b", "lokr_w2_b", "lokr_w1_b") if leaf in shapes), None)


def _product(arrays: Arrays, weight: Shape, scale: float) -> np.ndarray:
    """The change that a product of factors is, alpha over rank and the scale in it, in our layout."""
    rank = rank_of({leaf: array.shape for leaf, array in arrays.items()})
    factor = np.float32(scale * (arrays["alpha"].item() / rank if rank and "alpha" in arrays else 1))
    if "down" in arrays:
        up = arrays["up"] * np.float32(scale * (arrays["alpha"].item() if "alpha" in arrays else rank) / rank)
        return (arrays["down"] @ arrays["mid"] if "mid" in arrays else arrays["down"]) @ up
    theirs = (weight[-1], weight[-2], *weight[:-2])
    change = (_hadamard(arrays) if "hada_w1_a" in arrays else _kronecker(arrays)).reshape(theirs) * factor
    return np.moveaxis(change, (0, 1), (-1, -2))


def _hadamard(arrays: Arrays) -> np.ndarray:
    halves = []
    for half in ("1", "2"):
        a, b, core = (arrays.get(f"hada_{leaf}") for leaf in (f"w{half}_a", f"w{half}_b", f"t{half}"))
        halves.append(a @ b if core is None else _tucker(core, a, b))
    return halves[0] * halves[1]


def _kronecker(arrays: Arrays) -> np.ndarray:
    one = arrays["lokr_w1"] if "lokr_w1" in arrays else arrays["lokr_w1_a"] @ arrays["lokr_w1_b"]
    if "lokr_w2" in arrays:
        two = arrays["lokr_w2"]
    elif "lokr_t2" in arrays:
        two = _tucker(arrays["lokr_t2"], arrays["lokr_w2_a"], arrays["lokr_w2_b"])
    else:
        b = arrays["lokr_w2_b"]
        two = (arrays["lokr_w2_a"] @ b.reshape(len(b), -1)).reshape(-1, *b.shape[1:])
    return np.kron(one.reshape(*one.shape, *(1 for _ in two.shape[2:])), two)


def _tucker(core: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """core [r, r, height, width], a [r, out], b [r, in] -> [out, in, height, width]."""
    return np.einsum("ij...,jr,ip->pr...", core, b, a, optimize=True)


def _ia3_change(arrays: Arrays) -> np.ndarray:
    """What (IA)^3 adds to 1, by channel: LyCORIS keeps that, PEFT the factor itself."""
    return arrays["ia3"].reshape(-1) if "ia3" in arrays else arrays["ia3_l"].reshape(-1) - 1


def _is_on_input(leaves: Mapping[str, Entry | np.ndarray], weight: Shape | None) -> bool:
    """Whether (IA)^3 scales what goes into a layer: LyCORIS tells, and PEFT's settings, or the vector's shape."""
    if "on_input" in leaves:
        told = leaves["on_input"]
        return bool(told.read().item() if isinstance(told, Entry) else told.item())
    shape = leaves["ia3_l"].shape
    if len(shape) == 2 or weight is None:
        return len(shape) == 2 and shape[0] == 1 and shape[1] != 1
    return math.prod(shape) != weight[-1]


def _on_axis(vector: np.ndarray, ndim: int, axis: int) -> np.ndarray:
    return vector.reshape([-1 if i == axis % ndim else 1 for i in range(ndim)])


def _dora_axis(scale: Shape, weight: Shape) -> int | None:
    """The axis that DoRA's magnitudes are along, of outputs (LyCORIS by default, PEFT) or of inputs (the older way)."""
    if len(scale) != len(weight):
        return None
    for axis in (-1, -2):
        if scale[axis] == weight[axis] == math.prod(scale):
            return axis
    return None


def _product_shape(source: str, layer: str, leaves: Leaves, method: Method) -> Shape:
    """The shape of a product in our layout, flat where the factors are; InputError where they do not fit together."""
    shapes = {leaf: entry.shape for leaf, entry in leaves.items() if leaf in method.leaves}
    try:
        found = {LORA: _lora_shape, LOHA: _loha_shape, LOKR: _lokr_shape}[method](shapes)
        if found and all(map(math.prod, shapes.values())):
            return found
    except (ValueError, IndexError, KeyError):
        pass  # the message is the same
    order = [leaf for leaf in ("down", "mid", "up") if leaf in shapes] or sorted(shapes)
    there = ", ".join(f"{leaf} {list(shapes[leaf])}" for leaf in order)
    how = " (rank last in down, first in up)" if method is LORA else ""
    raise InputError(f"{source}: the factors of {layer!r} do not fit together: {there}{how}.")


def _lora_shape(shapes: Mapping[str, Shape]) -> Shape | None:
    factors = [shapes[leaf] for leaf in ("down", "mid", "up") if leaf in shapes]
    if not all(left[-1] == right[-2] for left, right in itertools.pairwise(factors)):
        return None
    window = np.broadcast_shapes(*(shape[:-2] for shape in factors))
    return (*window, shapes["down"][-2], shapes["up"][-1])


def _loha_shape(shapes: Mapping[str, Shape]) -> Shape | None:
    halves = [
        _factor_shape(*(shapes.get(f"hada_{leaf}") for leaf in (f"w{half}_a", f"w{half}_b", f"t{half}")))
        for half in ("1", "2")
    ]
    return None if halves[0] != halves[1] else halves[0] and _ours(halves[0])


def _lokr_shape(shapes: Mapping[str, Shape]) -> Shape | None:
    one = shapes.get("lokr_w1") or _factor_shape(shapes["lokr_w1_a"], shapes["lokr_w1_b"], None)
    two = shapes.get("lokr_w2") or _factor_shape(*(shapes.get(f"lokr_{leaf}") for leaf in ("w2_a", "w2_b", "t2")))
    if one is None or two is None or len(one) != 2:
        return None
    return _ours((one[0] * two[0], one[1] * two[1], *two[2:]))


def _factor_shape(a: Shape, b: Shape, core: Shape | None) -> Shape | None:
    """The shape of a @ b [out, in, ...], or of `_tucker`; None where they do not fit together."""
    if core is None:
        return (a[0], *b[1:]) if len(a) == 2 and a[1] == b[0] and len(b) > 1 else None
    fits_core = len(a) == len(b) == 2 and core[:2] == (a[0], b[0]) and len(core) == 4
    return (a[1], b[1], *core[2:]) if fits_core else None


def _ours(shape: Shape) -> Shape:
    """[out, in, height, width] as ours; windows of one are none."""
    window = shape[2:] if math.prod(shape[2:]) > 1 else ()
    return (*window, shape[1], shape[0])
