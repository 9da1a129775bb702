"""A source's components as PyTorch models of diffusers and transformers, for `verify --run`.

Their weights are the file's own tensors, or what the libraries' own conversions make of them; only of formats that
neither library reads, what this program's tables make.
"""

import re
from collections.abc import Mapping
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from diffusers.loaders import single_file_utils
from diffusers.loaders.unet import UNet2DConditionLoadersMixin

from convert.parts import part_of
from i2v_jax.errors import InputError
from i2v_jax.weights.assemble import Assembled
from i2v_jax.weights.formats import clip, controlnet, ip_adapter, sparse_control, t2i_adapter
from i2v_jax.weights.formats import diffusers as names
from i2v_jax.weights.names import Table
from i2v_jax.weights.tensors import Entry, Tensors
from i2v_jax.weights.translate import Imported, export_tensors

State = dict[str, torch.Tensor]

NO_WEIGHTS = re.compile(r".*(position_ids|logit_scale|pos_embed\.pe)")
"""Tensors that files and models hold, or do not, and that are no weights."""
OWN_NAMES = {
    table.name
    for table in (
        names.DIFFUSERS_UNET,
        names.DIFFUSERS_UNET_LINEAR,
        names.DIFFUSERS_IP_UNET,
        names.DIFFUSERS_IP_UNET_LINEAR,
        names.DIFFUSERS_VAE,
        names.OLD_VAE,
        controlnet.DIFFUSERS_CONTROLNET,
        controlnet.DIFFUSERS_CONTROLNET_LINEAR,
        sparse_control.DIFFUSERS_SPARSE,
        sparse_control.DIFFUSERS_SPARSE_LINEAR,
        t2i_adapter.DIFFUSERS_T2I,
        clip.CLIP_TEXT,
        clip.CLIP_TEXT_FLAT,
        clip.CLIP_VISION,
        clip.CLIP_VISION_FLAT,
        ip_adapter.IP_ADAPTER,
        ip_adapter.IMAGE_PROJECTION,
    )
}
INNER_MODEL = re.compile(r"^(text|vision)_model\.")
PUBLISHED = {
    names.PUBLISHED_UNET.name,
    names.PUBLISHED_UNET_LINEAR.name,
    sparse_control.ORIGINAL_SPARSE.name,
    sparse_control.ORIGINAL_SPARSE_LINEAR.name,
}
OUR_TABLES = "this program's tables"


def torch_model(
    component: str,
    config: Any,
    assembled: Assembled,
    pieces: list[tuple[Tensors, Imported]],
    parts: set[str],
    table: Table,
) -> tuple[torch.nn.Module, str]:
    """Builds a component's model in float32.

    Args:
        component: a name of `formats.TABLES`.
        config: of the network to build.
        assembled: the source's component.
        pieces: the files that hold the component, each with what it was recognised as, later ones replacing parts of
            earlier ones; none where the weights are not those of any file.
        parts: of the component (`convert.parts`) to put in.
        table: that has the names of the libraries' model.

    Returns:
        The model, and who read its weights.

    Raises:
        InputError: the libraries have no such model.
    """
    diffusers.utils.logging.set_verbosity_error()
    transformers.utils.logging.set_verbosity_error()
    has_model = hasattr(config, "to_diffusers")  # image projections are made of their weights
    settings = _settings(config, assembled.settings or {}) if has_model else {}
    model = _empty(settings) if has_model else None
    read = _read_by_libraries(component, model, settings, pieces, parts)
    filled, by = (_filled(model, read[0]), read[1]) if read else (None, "")
    if not filled:
        filled, by = _filled(model, _exported(component, table, assembled, parts)), OUR_TABLES
    if filled:
        if hasattr(filled, "shortcut"):  # of FaceID plus, which no weight tells
            filled.shortcut = config.shortcut
        return filled, by
    raise InputError(f"PyTorch's model of the {component} has other weights")


def _settings(config: Any, beside: Mapping[str, Any]) -> dict[str, Any]:
    """What lies beside the weights where it is of the same class, else what the config says."""
    written = config.to_diffusers()
    if any(beside.get(key) != written[key] for key in ("_class_name", "model_type") if key in written):
        return written
    projection = {key: value for key, value in written.items() if key in ("projection_dim", "architectures")}
    return {**beside, **projection}


def _empty(settings: dict[str, Any]) -> torch.nn.Module:
    if "_class_name" in settings:
        return getattr(diffusers, settings["_class_name"]).from_config(settings).eval()
    cls = getattr(transformers, settings["architectures"][0])
    return cls(cls.config_class(**settings)).eval()


def _filled(model: torch.nn.Module | None, state: State) -> torch.nn.Module | None:
    """The model with these weights; None where they are not just those that it has."""
    if model is None:
        return _image_projection(state)
    tokens = {name: state.pop(name) for name in list(state) if "_ip." in name}
    own = model.state_dict()
    state = _as_in_memory(state, own)
    differing = [name for name in own.keys() ^ state.keys() if not NO_WEIGHTS.fullmatch(name)]
    if differing or any(own[name].shape != state[name].shape for name in own.keys() & state.keys()):
        return None
    model.load_state_dict(state, strict=False)
    return _with_image_tokens(model, tokens) if tokens else model


def _as_in_memory(state: State, own: State) -> State:
    """Weights under a model's own names: from transformers 5.6 on without the inner model's."""
    names = {INNER_MODEL.sub("", name): name for name in own}
    return {names.get(INNER_MODEL.sub("", name), name): tensor for name, tensor in state.items()}


def _with_image_tokens(unet: torch.nn.Module, tokens: State) -> torch.nn.Module | None:
    """The UNet with an IP-Adapter's attention weights, loaded as diffusers does; it takes image tokens as they are."""
    layers = [
        name.removesuffix(".processor")
        for name in unet.attn_processors
        if name.endswith("attn2.processor") and "motion_modules" not in name
    ]
    numbered = {}
    for number, layer in zip(range(1, 2 * len(layers), 2), layers):
        for leaf in ("to_k_ip", "to_v_ip"):
            spellings = (f"ip_adapter.{number}.{leaf}", f"{layer}.{leaf}", f"{layer}.processor.{leaf}.0")
            found = [f"{name}.weight" for name in spellings if f"{name}.weight" in tokens]
            if not found:
                return None
            numbered[f"{number}.{leaf}.weight"] = tokens[found[0]]
    width = unet.config.cross_attention_dim
    unused = {"proj.weight": torch.zeros(4 * width, 1), "proj.bias": torch.zeros(4 * width)}
    unused |= {"norm.weight": torch.ones(width), "norm.bias": torch.zeros(width)}
    unet._load_ip_adapter_weights([{"image_proj": unused, "ip_adapter": numbered}], low_cpu_mem_usage=False)
    unet.encoder_hid_proj = torch.nn.Identity()
    return unet.eval()


def _image_projection(state: State) -> torch.nn.Module:
    convert = UNet2DConditionLoadersMixin._convert_ip_adapter_image_proj_to_diffusers
    plain = {name.removeprefix("image_proj."): tensor for name, tensor in state.items()}
    return convert(None, plain, low_cpu_mem_usage=False).eval()


def _read_by_libraries(
    component: str,
    model: torch.nn.Module | None,
    settings: dict[str, Any],
    pieces: list[tuple[Tensors, Imported]],
    parts: set[str],
) -> tuple[State, str] | None:
    """The pieces' tensors in the libraries' names, and who named them; None for a format that the libraries lack."""
    last = {part_of(component, path): imported for _, imported in pieces for path in imported.parameters}
    state: State = {}
    readers = []
    for tensors, imported in pieces:
        held = {
            imported.names[path]
            for path in (*imported.parameters, *imported.buffers)
            if (part := part_of(component, path)) in parts and last.get(part, imported) is imported
        }
        read = _converted(component, model, settings, imported.table, {name: tensors.entries[name] for name in held})
        if read is None:
            return None
        state |= read[0]
        if held:
            readers.append(read[1])
    if component == "vae" and state:
        model._fix_state_dict_keys_on_load(state)
    return (state, ", ".join(dict.fromkeys(readers))) if state else None


def _converted(
    component: str, model: torch.nn.Module | None, settings: dict[str, Any], table: Table, entries: dict[str, Entry]
) -> tuple[State, str] | None:
    raw = {name: _tensor(entry) for name, entry in entries.items()}
    if table.name in OWN_NAMES:
        return raw, "the file's own names"
    if table.name in PUBLISHED:
        return single_file_utils.convert_animatediff_checkpoint_to_diffusers(raw), "diffusers, as AnimateDiff"
    if not table.name.startswith("original"):
        return None
    by = "diffusers, as a single file"
    if component == "unet":
        prefix = _prefix(raw, "input_blocks.0.0.weight")
        raw = {single_file_utils.LDM_UNET_KEY + name.removeprefix(prefix): tensor for name, tensor in raw.items()}
        return single_file_utils.convert_ldm_unet_checkpoint(raw, settings), by
    if component == "controlnet":
        return single_file_utils.convert_controlnet_checkpoint(raw, settings), by
    if component == "vae":
        return single_file_utils.convert_ldm_vae_checkpoint(raw, settings), by
    if table.name.startswith("original OpenCLIP"):
        prefix = _prefix(raw, "token_embedding.weight")
        return single_file_utils.convert_open_clip_checkpoint(model, raw, prefix), by
    if table.name.startswith("original CLIP"):
        return single_file_utils.convert_ldm_clip_checkpoint(raw), by
    return None


def _prefix(raw: State, name: str) -> str:
    return next((key.removesuffix(name) for key in raw if key.endswith(name)), "")


def _exported(component: str, table: Table, assembled: Assembled, parts: set[str]) -> State:
    """The source's weights in the libraries' names by our own tables."""
    held = {path: entry for path, entry in assembled.parameters.entries.items() if part_of(component, path) in parts}
    exported = export_tensors(assembled.parameters.holding(held), table, assembled.buffers.holding({}))
    return {name: _tensor(entry) for name, entry in exported.entries.items()}


def _tensor(entry: Entry) -> torch.Tensor:
    return torch.from_numpy(np.array(entry.read(), np.float32, order="C"))
