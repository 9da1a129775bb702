"""LoRA's kin (LyCORIS' methods, DoRA, (IA)^3): read in every spelling, merged as LyCORIS defines them and PEFT does."""

import re

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import save_file

from convert.__main__ import main as convert
from i2v_jax.errors import InputError
from i2v_jax.weights.formats.lora import DIFFUSERS_LORA
from i2v_jax.weights.low_rank import export_lora, load_lora, merge_lora
from i2v_jax.weights.tensors import Tensors
from tests.helpers import relative_error
from tests.test_lora import (
    OF_PROGRAMS,
    bytes_of,
    components,
    diffusers_copy,
    merged_here,
    nested,
    original_name,
    original_sd15,
    pipeline,
    save,
    there_and_back,
    weights,
    worst,
)

# What each method's tensors are, and the weight that they make, as LyCORIS' code defines them in PyTorch.


def tensor(random, *shape):
    return torch.tensor(random.normal(size=shape) / shape[-1] ** 0.5, dtype=torch.float32)


def factor(size):
    """Two factors of a width, the smaller first."""
    return max((i, size // i) for i in range(1, size + 1) if size % i == 0 and i * i <= size)


def lora(weight, random):
    out, inside, *window = weight.shape
    down, up = tensor(random, 4, inside, *window), tensor(random, out, 4, *(1 for _ in window))
    change = (up.reshape(out, 4) @ down.reshape(4, -1)).reshape(weight.shape)
    return {"lora_down.weight": down, "lora_up.weight": up, "alpha": torch.tensor(3.0)}, change * 3 / 4


def loha(weight, random):
    """Products of two products, flat where the kernel is a window."""
    out, columns = weight.shape[0], weight[0].numel()
    w1_a, w1_b, w2_a, w2_b = (tensor(random, *shape) for shape in [(out, 4), (4, columns)] * 2)
    leaves = {"hada_w1_a": w1_a, "hada_w1_b": w1_b, "hada_w2_a": w2_a, "hada_w2_b": w2_b, "alpha": torch.tensor(3.0)}
    return leaves, ((w1_a @ w1_b) * (w2_a @ w2_b)).reshape(weight.shape) * 3 / 4


def loha_tucker(weight, random):
    """With a core for each product, where the kernel is a window."""
    out, inside, *window = weight.shape
    if not window or window == [1, 1]:
        return loha(weight, random)
    halves, change = {}, 1
    for i in (1, 2):
        core, a, b = tensor(random, 4, 4, *window), tensor(random, 4, out), tensor(random, 4, inside)
        halves |= {f"hada_t{i}": core, f"hada_w{i}_a": a, f"hada_w{i}_b": b}
        change = change * torch.einsum("ijkl,jr,ip->prkl", core, b, a)
    return halves | {"alpha": torch.tensor(3.0)}, change * 3 / 4


def lokr(weight, random, whole=(), tucker=False):
    """The Kronecker product of two matrices, each whole or a product; the second takes the kernel's window."""
    out, inside, *window = weight.shape
    (out_1, out_2), (in_1, in_2) = factor(out), factor(inside)
    leaves = {"alpha": torch.tensor(3.0)}
    if 1 in whole:
        one = leaves["lokr_w1"] = tensor(random, out_1, in_1)
    else:
        a, b = leaves["lokr_w1_a"], leaves["lokr_w1_b"] = tensor(random, out_1, 2), tensor(random, 2, in_1)
        one = a @ b
    if 2 in whole:
        two = leaves["lokr_w2"] = tensor(random, out_2, in_2, *window)
    elif tucker and window and window != [1, 1]:
        core, a, b = tensor(random, 2, 2, *window), tensor(random, 2, out_2), tensor(random, 2, in_2)
        leaves |= {"lokr_t2": core, "lokr_w2_a": a, "lokr_w2_b": b}
        two = torch.einsum("ijkl,ip,jr->prkl", core, a, b)
    else:
        a, b = tensor(random, out_2, 2), tensor(random, 2, in_2 * int(np.prod(window)))
        leaves |= {"lokr_w2_a": a, "lokr_w2_b": b}
        two = (a @ b).reshape(out_2, in_2, *window)
    change = torch.kron(one.reshape(*one.shape, *(1 for _ in window)), two.contiguous())
    return leaves, change * (1 if whole == (1, 2) else 3 / 2)


METHODS = {
    "LoHa": loha,
    "LoHa, tucker": loha_tucker,
    "LoKr": lokr,
    "LoKr, tucker": lambda weight, random: lokr(weight, random, tucker=True),
    "LoKr, w1 whole": lambda weight, random: lokr(weight, random, (1,)),
    "LoKr, w2 whole": lambda weight, random: lokr(weight, random, (2,)),
    "LoKr, both whole": lambda weight, random: lokr(weight, random, (1, 2)),
}


def decomposed(weight, change, magnitude, scale=1.0):
    """DoRA: the sum's columns at the magnitudes, whose shape tells the axis; by a share of it at other scales."""
    whole = weight + change
    axes = [i for i, size in enumerate(magnitude.shape) if size == 1]
    norms = whole.square().sum(axes, keepdim=True).sqrt()
    return weight + scale * (whole / norms * magnitude - weight)


def with_dora(method, on_output):
    def made(weight, random):
        leaves, change = method(weight, random)
        axis = 0 if on_output else 1
        shape = [size if i == axis else 1 for i, size in enumerate(weight.shape)]
        return leaves | {"dora_scale": torch.tensor(1 + random.random(shape), dtype=torch.float32)}, change

    return made


DORA = {
    f"DoRA of {name}, norms of {'outputs' if on_output else 'inputs'}": with_dora(method, on_output)
    for name, method in {"LoRA": lora, "LoHa": loha, "LoKr": lokr}.items()
    for on_output in (True, False)
}


def file_of(pipe, method, name_of, every=1):
    """A file's tensors for every (second, ...) layer of a pipeline; component -> name -> weight, change, magnitude."""
    random, state, wanted = np.random.default_rng(0), {}, {}
    for component, model in components(pipe).items():
        wanted[component] = {}
        for name, weight in list(weights(model).items())[::every]:
            if name.startswith("add_embedding"):
                continue
            leaves, change = method(weight, random)
            state |= {f"{name_of(component, name)}.{leaf}": tensor for leaf, tensor in leaves.items()}
            wanted[component][f"{name}.weight"] = weight, change, leaves.get("dora_scale")
    return state, wanted


def kohyas(pipe):
    texts = {
        "text_encoder": "lora_te1_" if hasattr(pipe, "text_encoder_2") else "lora_te_",
        "text_encoder_2": "lora_te2_",
    }
    return lambda component, name: texts.get(component, "lora_unet_") + nested(component, name).replace(".", "_")


def worst_error(pipe, found, wanted, scale):
    errors = []
    for component, model in components(pipe).items():
        ours = merged_here(component, model, found[component].parameters, scale)
        for name, (weight, change, magnitude) in wanted[component].items():
            right = weight + scale * change if magnitude is None else decomposed(weight, change, magnitude, scale)
            assert relative_error(right, weight) > 1e-2
            errors.append(relative_error(ours[name], right))
    return max(errors)


CASES = [(method, "sd15") for method in METHODS | DORA]
CASES += [(method, "sdxl") for method in ("LoHa", "LoKr, tucker", "DoRA of LoRA, norms of outputs")]


@pytest.mark.parametrize("method, kind", CASES)
def test_every_layer_is_merged_as_lycoris_defines_it(method, kind, tmp_path, measured):
    pipe = pipeline(kind == "sdxl")
    state, wanted = file_of(pipe, (METHODS | DORA)[method], kohyas(pipe))
    found = load_lora(save(tmp_path / "style.safetensors", state))
    assert found.keys() == components(pipe).keys()
    for scale in (1.0, -0.6):
        error = worst_error(pipe, found, wanted, scale)
        measured(f"{method} merged, against LyCORIS' formula: {kind}, scale {scale}", error, 1e-5)
    assert bytes_of(there_and_back(found)) == bytes_of({name: tensor.numpy() for name, tensor in state.items()})


@pytest.mark.parametrize(
    "spelling, family",
    [*((spelling, "sd15") for spelling in OF_PROGRAMS), ("ComfyUI", "sdxl"), ("kohya, flat", "sdxl")],
)
def test_programs_names_mean_the_same(spelling, family, tmp_path):
    """LoHa and DoRA in the spellings that LoRA is known in, of convolutions and matrices."""
    pipe = pipeline(family == "sdxl")
    (prefix, unet), texts, text, _ = OF_PROGRAMS[spelling]
    unet = original_name if family == "sdxl" and unet is original_sd15 else unet
    prefixes = {"unet": prefix, "text_encoder": texts[family == "sdxl"], "text_encoder_2": texts[2]}

    def named(component, name):
        own = unet(name) if component == "unet" else text(nested(component, name))
        return prefixes[component] + (own if "." in prefixes[component] else own.replace(".", "_"))

    for method in (loha, with_dora(lora, True)):
        state, wanted = file_of(pipe, method, named, every=5)
        found = load_lora(save(tmp_path / "style.safetensors", state))
        assert worst_error(pipe, found, wanted, 1.0) < 1e-5
        assert bytes_of(there_and_back(found)) == bytes_of({name: tensor.numpy() for name, tensor in state.items()})


@pytest.mark.parametrize("on_input", [False, True])
def test_ia3_scales_outputs_or_inputs(on_input, tmp_path, measured):
    """LyCORIS: W (1 + s l); biases stay as they are."""
    pipe, random, state = pipeline(), np.random.default_rng(0), {}
    names = kohyas(pipe)
    for component, model in components(pipe).items():
        for name, weight in weights(model).items():
            size = weight.shape[1 if on_input else 0]
            shape = (size,) if weight.ndim == 2 else (1, size, 1, 1)
            state[f"{names(component, name)}.weight"] = tensor(random, *shape)
            state[f"{names(component, name)}.on_input"] = torch.tensor(int(on_input))
    found = load_lora(save(tmp_path / "ia3.safetensors", state))
    for component, model in components(pipe).items():
        ours = merged_here(component, model, found[component].parameters, 0.7)
        for name, weight in weights(model).items():
            vector = state[f"{names(component, name)}.weight"].reshape(-1)
            shape = [-1 if i == on_input else 1 for i in range(weight.ndim)]
            error = relative_error(ours[f"{name}.weight"], weight * (1 + 0.7 * vector.reshape(shape)))
            measured(f"(IA)^3 merged, against LyCORIS' formula, on {'in' if on_input else 'out'}puts", error, 1e-6)
            if f"{name}.bias" in model.state_dict():
                assert np.array_equal(ours[f"{name}.bias"], model.state_dict()[f"{name}.bias"])
    assert bytes_of(there_and_back(found)) == bytes_of({name: tensor.numpy() for name, tensor in state.items()})


@pytest.mark.parametrize("prefix, joint", [("lora_unet_", "_"), ("diffusion_model.", "."), ("lora_unet.", ".")])
def test_full_differences_and_norms_are_added(prefix, joint, tmp_path, measured):
    """`.diff` and `.diff_b` of layers, `w_norm` and `b_norm` (or `.diff`, as ComfyUI writes) of norms."""
    unet, random, state = pipeline().unet, np.random.default_rng(0), {}
    wanted = {name: array.clone() for name, array in unet.state_dict().items()}
    for i, (name, array) in enumerate(unet.state_dict().items()):
        layer, _, leaf = name.rpartition(".")
        is_norm = "norm" in layer.rpartition(".")[2]
        ends = ("w_norm", "b_norm") if is_norm and (joint == "_" or i % 3) else ("diff", "diff_b")
        own = original_name_of_any(layer) if prefix == "diffusion_model." else layer
        if own is None:
            continue
        change = tensor(random, *array.shape)
        wanted[name] += 0.3 * change
        state[f"{prefix}{own.replace('.', joint)}.{ends[leaf == 'bias']}"] = change
    found = load_lora(save(tmp_path / "full.safetensors", state))
    ours = merged_here("unet", unet, found["unet"].parameters, 0.3)
    assert len(state) > 100
    error = max(relative_error(ours[name], right) for name, right in wanted.items())
    measured(f"full differences and norms merged: {prefix}", error, 1e-6)
    assert bytes_of(there_and_back(found)) == bytes_of({name: it.numpy() for name, it in state.items()})


def original_name_of_any(layer):
    """As `original_sd15`, of norms too; None where nothing is renamed."""
    layer = re.sub(r"(resnets\.\d)\.norm1$", r"\1.in_layers.0", layer)
    layer = re.sub(r"(resnets\.\d)\.norm2$", r"\1.out_layers.0", layer)
    own = original_sd15(layer)
    return own if own != layer else None


# PEFT itself.

TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.2", "conv1", "conv_shortcut", "conv_in"]
OF_PEFT = {
    "LoHa": peft.LoHaConfig(r=4, alpha=7, target_modules=TARGETS, init_weights=False),
    "LoHa, windows": peft.LoHaConfig(
        r=4, alpha=7, target_modules=TARGETS, init_weights=False, use_effective_conv2d=True
    ),
    "LoHa, patterns": peft.LoHaConfig(
        r=4, alpha=7, rank_pattern={"to_q": 2}, alpha_pattern={"conv1": 3}, target_modules=TARGETS, init_weights=False
    ),
    "LoKr": peft.LoKrConfig(r=2, alpha=7, target_modules=TARGETS, init_weights=False),
    "LoKr, both": peft.LoKrConfig(
        r=1, alpha=7, target_modules=TARGETS, init_weights=False, decompose_both=True, use_effective_conv2d=True
    ),
    "LoKr, whole": peft.LoKrConfig(r=64, alpha=7, target_modules=TARGETS, init_weights=False),
    "DoRA": peft.LoraConfig(r=4, lora_alpha=7, target_modules=TARGETS, init_lora_weights=False, use_dora=True),
    "(IA)^3": peft.IA3Config(
        target_modules=TARGETS, feedforward_modules=["ff.net.2", "conv1", "to_k"], init_ia3_weights=False
    ),
}


@pytest.mark.parametrize("method", OF_PEFT)
def test_a_folder_of_peft_merges_as_peft_does(method, tmp_path, measured):
    unet = pipeline().unet
    before = weights(unet)
    torch.manual_seed(0)
    wrapped = peft.get_peft_model(unet, OF_PEFT[method])
    with torch.no_grad():  # magnitudes begin as the norms
        for name, parameter in wrapped.named_parameters():
            if "magnitude" in name:
                parameter.mul_(1 + torch.rand_like(parameter))
    wrapped.save_pretrained(tmp_path)
    found = load_lora(tmp_path)
    assert list(found) == ["unet"]
    ours = merged_here("unet", diffusers_copy(before), found["unet"].parameters)
    fused = wrapped.merge_and_unload().state_dict()
    changed = [name for name in before if not torch.equal(before[name], fused[f"{name}.weight"])]
    assert set(changed) == {name for name in before if re.search(rf"({'|'.join(TARGETS)})$", name)}
    measured(f"{method} merged, against PEFT's merge_and_unload", worst(ours, fused), 1e-5)


def test_dora_goes_from_kohya_to_diffusers_and_back(tmp_path, measured):
    """Written in diffusers' names it is fused by diffusers as merged here."""
    pipe = pipeline()
    state, _ = file_of(pipe, with_dora(lora, True), kohyas(pipe))
    unet = {name: it for name, it in state.items() if name.startswith("lora_unet")}
    found = load_lora(save(tmp_path / "kohya.safetensors", unet))
    written = export_lora({"unet": found["unet"].parameters}, {"unet": DIFFUSERS_LORA})
    assert written["unet.conv_in.lora_magnitude_vector"].shape == (1, 16, 1, 1)
    again = load_lora(written)["unet"].parameters
    assert bytes_of(again) == bytes_of(found["unet"].parameters)
    save_file({name: torch.tensor(written[name]) for name in written}, tmp_path / "lora.safetensors", written.metadata)
    ours = merged_here("unet", pipe.unet, again)
    pipe.load_lora_weights(tmp_path / "lora.safetensors")
    pipe.fuse_lora()
    measured("DoRA written here, fused by diffusers", worst(ours, without_magnitudes(pipe.unet.state_dict())), 1e-5)


def without_magnitudes(state):
    return {name: it for name, it in state.items() if "magnitude" not in name}


# What is refused, and how it is put.

LAYER = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
BAD = {
    "half a LoHa": ({"hada_w1_a": (32, 4), "hada_w1_b": (4, 32), "hada_w2_a": (32, 4)}, "without lora/hada_w2_b"),
    "ranks": (
        {"hada_w1_a": (32, 4), "hada_w1_b": (3, 32), "hada_w2_a": (32, 4), "hada_w2_b": (4, 32)},
        "do not fit together: hada_w1_a \\[32, 4\\], hada_w1_b \\[3, 32\\]",
    ),
    "half a LoKr": ({"lokr_w1": (4, 4), "lokr_w2_a": (8, 2)}, "without lora/lokr_w2"),
    "another width": ({"lokr_w1": (4, 4), "lokr_w2": (8, 7)}, "shape \\[28, 32\\].*it has shape \\[32, 32\\]"),
    "magnitudes": (
        {"lora_down.weight": (4, 32), "lora_up.weight": (32, 4), "dora_scale": (31, 1)},
        "changes .* of shape .* Is the LoRA for another model",
    ),
    "magnitudes alone": ({"diff": (32, 32), "dora_scale": (32, 1)}, "dora_scale beside no LoRA, LoHa or LoKr"),
    "two at once": (
        {"lora_down.weight": (4, 32), "lora_up.weight": (32, 4), "diff": (32, 32)},
        "in several ways at once: LoRA, full differences",
    ),
    "a bias that is not there": ({"diff": (32, 32), "diff_b": (32,)}, "to_q/bias', which .* does not have"),
    "vector": ({"weight": (31,), "on_input": ()}, "by an array of shape \\[31\\]"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_named(case):
    shapes, message = BAD[case]
    state = {f"{LAYER}.{leaf}": np.ones(shape, np.float32) for leaf, shape in shapes.items()}
    base = {LAYER_PATH: np.ones((32, 32), np.float32)}
    with pytest.raises(InputError, match=message):
        merge_lora(Tensors.of(base, "base"), load_lora(Tensors.of(state, "style"))["unet"].parameters, 1.0)


LAYER_PATH = "mid_block/attention/blocks_0/attn1/to_q/kernel"


def test_inspect_calls_each_by_its_name(tmp_path, capsys):
    def out_of(state):
        save(tmp_path / "style.safetensors", state)
        capsys.readouterr()
        assert convert(["inspect", str(tmp_path / "style.safetensors")]) == 0
        return capsys.readouterr().out

    random, weight = np.random.default_rng(0), torch.zeros(320, 320)
    for method, words in (
        (lora, "LoRA of rank 4 on 1 layers"),
        (loha, "LoHa of rank 4 on 1 layers"),
        (lokr, "LoKr of rank 2 on 1 layers"),
        (with_dora(lora, True), "DoRA (LoRA) of rank 4 on 1 layers"),
        (with_dora(loha, True), "DoRA (LoHa) of rank 4 on 1 layers"),
    ):
        layer = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
        out = out_of({f"{layer}.{leaf}": it for leaf, it in method(weight, random)[0].items()})
        assert words in out and "not convertible" not in out, out
    layer = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    leaves = {f"{layer}.{leaf}": it for leaf, it in loha(torch.zeros(320, 768), random)[0].items()}
    assert "Stable Diffusion 1.x" in out_of(leaves)
    assert "(IA)^3 on 1 layers" in out_of({f"{LAYER}.weight": weight[0], f"{LAYER}.on_input": torch.tensor(0)})
    assert "full differences of weights on 1 layers" in out_of({f"{LAYER}.diff": weight})
    norm = {"lora_unet_down_blocks_0_resnets_0_norm1.w_norm": weight[0]}
    assert "trained norms on 1 layers" in out_of(norm)
    bundle = {"bundle_emb.my token.clip_l": torch.ones(2, 768), "bundle_emb.v1.0.clip_l": torch.ones(1, 768)}
    assert "with embeddings of 'my token', 'v1.0'" in out_of(leaves | bundle)
