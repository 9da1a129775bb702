"""Components from wherever their weights are: assembled and checked unread, then placed tensor by tensor.

The parts of a UNet (spatial layers, motion modules, first-frame branch, image-token branch) may come from one file or
from four, in any format of `formats`.
"""

import dataclasses
import json
import math
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from i2v_jax.errors import InputError, nearest
from i2v_jax.hub import local
from i2v_jax.models.adapters import ADAPTERS
from i2v_jax.models.clip import CLIPTextConfig, CLIPVisionConfig
from i2v_jax.models.controlnet import ControlNetConfig
from i2v_jax.models.image_projection import ImageProjectionConfig, ResamplerConfig, config_from_shapes
from i2v_jax.models.motion import MotionConfig
from i2v_jax.models.unet import UNetConfig
from i2v_jax.models.vae import SDXL_VAE, VAEConfig
from i2v_jax.tree import unflatten
from i2v_jax.weights.formats.ip_adapter import ip_adapter_table
from i2v_jax.weights.infer import infer_config
from i2v_jax.weights.limits import check_config
from i2v_jax.weights.names import Table
from i2v_jax.weights.save import config_from_json, own_config
from i2v_jax.weights.shapes import (
    Shapes,
    controlnet_shapes,
    image_encoder_shapes,
    image_projection_shapes,
    text_encoder_shapes,
    unet_shapes,
    vae_shapes,
)
from i2v_jax.weights.storage.open import open_tensors
from i2v_jax.weights.tensors import Entry, Tensors
from i2v_jax.weights.translate import POSITIONS, Imported, OwnTable, check_positions, recognise

Source = str | Path | Tensors | Imported
Place = Callable[[str, np.ndarray], Any]

FOLDERS = {"motion": "motion_adapter"}
"""Where a part lies in a pipeline's folder, when not with the base."""

PARTS = {"motion": "motion modules", "adapter": "first-frame branch", "image_tokens": "image-token branch"}
"""What may come from another file than the base, for messages."""

BRANCH = re.compile(r".*/attention/blocks_\d+/(?P<side>attn[12])/(?P<name>(?!to_)\w+)/.*")
_COMPONENTS = {
    UNetConfig: "unet",
    ControlNetConfig: "controlnet",
    VAEConfig: "vae",
    CLIPTextConfig: "text_encoder",
    CLIPVisionConfig: "image_encoder",
}
PUBLISHED_CONTEXTS = (768, 1024, 1280, 2048)  # widths of the prompts of SD1.x, SD2, SDXL's refiner, SDXL
SHOWN = 3  # names of each sort in an error


def to_device(path: str, array: np.ndarray) -> jax.Array:
    """The default placement: JAX's default device."""
    return jnp.asarray(array)


@dataclasses.dataclass(frozen=True)
class Assembled:
    """A component whose every tensor is known to be there and to fit, unread.

    Attributes:
        config: of the network.
        parameters: path -> array, just those that the network wants, in its order.
        buffers: path -> what the sources carry beside the parameters.
        settings: the diffusers or transformers config of the base, where it has one.
        names: path -> the name in the file that it comes from.
    """

    config: Any
    parameters: Tensors
    buffers: Tensors
    settings: Mapping[str, Any] | None = None
    names: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def load(self, place: Place) -> tuple[Any, dict[str, Any]]:
        """Reads and places the parameters one by one; returns the config and the nested dictionaries."""
        dtype = self.config.param_dtype
        entries = self.parameters.entries.items()
        return self.config, unflatten({path: place(path, np.asarray(entry.read(), dtype)) for path, entry in entries})


def load_unet(base: Source, *, place: Place = to_device, **options: Any) -> tuple[UNetConfig, dict[str, Any]]:
    """Loads a UNet whose parts may come from different files.

    Args:
        base, options: those of `assemble_unet`.
        place: `place(path, array)` puts one array (which may be a transposed view) where it should be and returns it;
            called once per parameter, the next one is read only then.

    Returns:
        The config, and the parameters as nested dictionaries.

    Raises:
        InputError: a source cannot be read, or tensors are missing, unexpected or misshapen.
    """
    return assemble_unet(base, **options).load(place)


def assemble_unet(
    base: Source,
    *,
    motion: Source | None = None,
    adapter: Source | None = None,
    image_tokens: Source | None = None,
    trained: Sequence[Source] = (),
    config: Mapping[str, Any] | None = None,
    motion_config: Mapping[str, Any] | None = None,
    dtype: Any = jnp.float32,
    **overrides: Any,
) -> Assembled:
    """Puts a UNet together whose parts may come from different files, without reading them.

    The base gives every part that it holds; `motion`, `adapter` and `image_tokens` each replace or add theirs, and
    give nothing else even where they hold more (the published merged file may serve as any of them).

    Args:
        base: file, folder or hub id of the spatial layers.
        motion: motion modules: AnimateDiff, diffusers' MotionAdapter, or a merged UNet.
        adapter: first-frame branch. Where its `to_q` is missing it is the layer's own; a branch that
            `self_attention_branches` asks for and no file holds starts untrained, its output zero.
        image_tokens: keys and values for image tokens: an IP-Adapter, or a merged UNet.
        trained: files that `train.py` wrote. Each of their weights replaces the one of the same path, of whatever part;
            the last file counts.
        config: the base's diffusers config; by default what lies beside the base's weights. The keys of the published
            code (`motion_module_kwargs`, `use_inflated_groupnorm`) are understood too.
        motion_config: fields of `MotionConfig` to set by hand.
        dtype: of the parameters and of the activations.
        overrides: fields of `UNetConfig` to set by hand, such as `pooled_norms`.

    Raises:
        InputError: a source cannot be read, or tensors are missing, unexpected or misshapen.
    """
    whole = _import(base, "unet")
    given = {"motion": motion, "adapter": adapter, "image_tokens": image_tokens}
    numbered = ip_adapter_table(whole.parameters)
    providers = {
        part: whole if source is None else _import(source, "unet", [numbered], FOLDERS.get(part, "unet"))
        for part, source in {"base": None, **given}.items()
    }
    for part, source in given.items():
        if source is not None and not any(_part(path) == part for path in providers[part].parameters):
            raise InputError(f"{providers[part].parameters.source} holds no {PARTS[part]}. Give another file, or none.")
    pool = _pool(providers)
    for imported in _replaced(pool, trained, "unet"):
        if "motion" in parts_of(imported) and "motion" not in parts_of(providers["motion"]):
            providers["motion"] = imported
    settings = config or whole.parameters.config or {}
    layout = motion_layout(providers["motion"], settings, motion_config or {})
    held = {(match["side"], match["name"]) for path in pool if (match := BRANCH.fullmatch(path))}
    derived = dict(
        motion=layout,
        pooled_norms=_pools_frames(layout, settings),
        self_attention_branches=tuple(name for name in ADAPTERS if ("attn1", name) in held),
        cross_attention_branches=tuple(name for name in ADAPTERS if ("attn2", name) in held),
        dtype=dtype,
        param_dtype=dtype,
    )
    unet = _replace(_config(UNetConfig, config, whole), derived | overrides)
    wanted = unet.self_attention_branches + unet.cross_attention_branches
    pool = {path: it for path, it in pool.items() if not (branch := BRANCH.fullmatch(path)) or branch["name"] in wanted}
    expected = _expected(unet_shapes, unet, providers.values())
    _fill_first_frame(pool, expected)
    return _assembled("UNet", unet, expected, pool, lambda path: providers[_part(path)], _buffers(providers))


def assemble_unet_parts(
    *,
    motion: Source | None = None,
    adapter: Source | None = None,
    image_tokens: Source | None = None,
    config: Mapping[str, Any] | None = None,
    motion_config: Mapping[str, Any] | None = None,
) -> Assembled:
    """Puts parts of a UNet together that have no base beside them, without reading them.

    What the parts do not tell of their UNet stays at what published models have; a config that one of our own files
    holds is taken as it is. A first-frame branch may lack `to_q`, which then waits for its base.

    Args:
        motion, adapter, image_tokens, config, motion_config: as for `assemble_unet`.

    Raises:
        InputError: a source cannot be read, or tensors are missing, unexpected or misshapen.
    """
    given = {"motion": motion, "adapter": adapter, "image_tokens": image_tokens}
    providers = {part: _import(it, "unet", (), FOLDERS.get(part, "unet")) for part, it in given.items() if it}
    pool = _pool(providers)
    shapes = {path: entry.shape for path, (entry, _) in pool.items()}
    own = [it for imported in providers.values() if (it := _own_config(UNetConfig, imported))]
    if config is not None:
        unet = _config(UNetConfig, config, next(iter(providers.values())))
    else:
        unet = own[0] if own else _infer(UNetConfig, shapes, list(providers.values()))
    if motion:
        layout = motion_layout(providers["motion"], config or {}, motion_config or {})
        unet = dataclasses.replace(unet, motion=layout)
    network = _expected(unet_shapes, unet, providers.values())
    expected = {path: leaf for path, leaf in network.items() if _part(path) in providers}
    if not any("/first_frame/to_q/" in path for path in pool):
        expected = {path: leaf for path, leaf in expected.items() if "/first_frame/to_q/" not in path}
    return _assembled("UNet", unet, expected, pool, lambda path: providers[_part(path)], _buffers(providers))


def load_controlnet(
    source: Source, *, place: Place = to_device, **options: Any
) -> tuple[ControlNetConfig, dict[str, Any]]:
    """Loads a ControlNet: a component's or a pipeline's folder, a file, a hub id.

    Arguments, returns and errors are those of `load_unet`.
    """
    return assemble_controlnet(source, **options).load(place)


def assemble_controlnet(
    source: Source, *, config: Mapping[str, Any] | None = None, dtype: Any = jnp.float32, **overrides: Any
) -> Assembled:
    """Finds and checks a ControlNet's tensors; see `load_controlnet` and `assemble_unet`."""
    imported = _import(source, "controlnet")
    controlnet = _replace(_config(ControlNetConfig, config, imported), dict(dtype=dtype, param_dtype=dtype) | overrides)
    return _assembled_whole("ControlNet", controlnet, controlnet_shapes, imported)


def load_vae(source: Source, *, place: Place = to_device, **options: Any) -> tuple[VAEConfig, dict[str, Any]]:
    """Loads an AutoencoderKL: a component's or a pipeline's folder, a file, a hub id; old and new attention names.

    Arguments, returns and errors are those of `load_unet`.
    """
    return assemble_vae(source, **options).load(place)


def assemble_vae(
    source: Source,
    *,
    trained: Sequence[Source] = (),
    config: Mapping[str, Any] | None = None,
    dtype: Any = jnp.float32,
    **overrides: Any,
) -> Assembled:
    """Finds and checks an AutoencoderKL's tensors; see `load_vae` and `assemble_unet`."""
    imported = _import(source, "vae")
    vae = _replace(_config(VAEConfig, config, imported), dict(dtype=dtype, param_dtype=dtype) | overrides)
    return _assembled_whole("VAE", vae, vae_shapes, imported, trained, "vae")


def load_text_encoder(
    source: Source, *, place: Place = to_device, **options: Any
) -> tuple[CLIPTextConfig, dict[str, Any]]:
    """Loads a CLIP text encoder, with its projection where the file has one; the vision half of a CLIPModel is left.

    Args:
        source, place: as for `load_unet`.
        options: `folder`, where it lies in a pipeline's folder (`text_encoder_2` is SDXL's second); those of
            `assemble_unet`.
    """
    return assemble_text_encoder(source, **options).load(place)


def assemble_text_encoder(
    source: Source,
    *,
    folder: str = "text_encoder",
    trained: Sequence[Source] = (),
    config: Mapping[str, Any] | None = None,
    dtype: Any = jnp.float32,
    **overrides: Any,
) -> Assembled:
    """Finds and checks a CLIP text encoder's tensors; see `load_text_encoder` and `assemble_unet`."""
    imported = _import(source, "text_encoder", folder=folder)
    derived = _projection(imported, "text_projection") | dict(dtype=dtype, param_dtype=dtype)
    clip = _replace(_config(CLIPTextConfig, config, imported, "text_config"), derived | overrides)
    return _assembled_whole("CLIP text encoder", clip, text_encoder_shapes, imported, trained, folder)


def load_image_encoder(
    source: Source, *, place: Place = to_device, **options: Any
) -> tuple[CLIPVisionConfig, dict[str, Any]]:
    """Loads a CLIP vision encoder, with its projection where the file has one; the text half of a CLIPModel is left.

    Arguments, returns and errors are those of `load_unet`.
    """
    return assemble_image_encoder(source, **options).load(place)


def assemble_image_encoder(
    source: Source,
    *,
    trained: Sequence[Source] = (),
    config: Mapping[str, Any] | None = None,
    dtype: Any = jnp.float32,
    **overrides: Any,
) -> Assembled:
    """Finds and checks a CLIP vision encoder's tensors; see `load_image_encoder` and `assemble_unet`."""
    imported = _import(source, "image_encoder")
    derived = _projection(imported, "visual_projection") | dict(dtype=dtype, param_dtype=dtype)
    clip = _replace(_config(CLIPVisionConfig, config, imported, "vision_config"), derived | overrides)
    return _assembled_whole("CLIP vision encoder", clip, image_encoder_shapes, imported, trained, "image_encoder")


def load_image_projection(
    source: Source, *, place: Place = to_device, **options: Any
) -> tuple[ImageProjectionConfig | ResamplerConfig, dict[str, Any]]:
    """Loads the image projection of an IP-Adapter file, linear or resampler; its attention weights are left.

    Args:
        source: as for `load_unet`.
        place: as for `load_unet`.
        options: `head_dim`, the width of the resampler's attention heads, which no file tells (64 in every published
            one); `dtype`; fields of the config to set by hand. The rest of the config is read off the tensors' shapes.
    """
    return assemble_image_projection(source, **options).load(place)


def assemble_image_projection(
    source: Source,
    *,
    trained: Sequence[Source] = (),
    head_dim: int = 64,
    dtype: Any = jnp.float32,
    **overrides: Any,
) -> Assembled:
    """Finds and checks an image projection's tensors; see `load_image_projection`."""
    imported = _import(source, "image_proj")
    shapes = {path: entry.shape for path, entry in imported.parameters.entries.items()}
    try:
        projection = config_from_shapes(shapes, head_dim)
    except (ValueError, IndexError, ArithmeticError) as error:  # InputError, or sizes that make no sense together
        raise InputError(f"{imported.parameters.source}: {_in_their_names(error, [imported])}") from error
    projection = _replace(projection, dict(dtype=dtype, param_dtype=dtype) | overrides)
    return _assembled_whole("image projection", projection, image_projection_shapes, imported, trained, "image_proj")


def _projection(imported: Imported, name: str) -> dict[str, int]:
    """Where the file has a projection, its width: configs do not always tell. Where not, what the config says holds."""
    entry = imported.parameters.entries.get(f"{name}/kernel")
    return {} if entry is None else {"projection_dim": entry.shape[1]}


def _part(path: str) -> str:
    if "/motion/" in path:
        return "motion"
    branch = BRANCH.fullmatch(path)
    return {"attn1": "adapter", "attn2": "image_tokens"}[branch["side"]] if branch else "base"


def parts_of(held: Imported | Assembled) -> set[str]:
    """Returns which parts of a UNet are held: "base", "motion", "adapter", "image_tokens"."""
    return {_part(path) for path in held.parameters}


def _pool(providers: Mapping[str, Imported]) -> dict[str, tuple[Entry, Imported]]:
    return {
        path: (entry, imported)
        for part, imported in providers.items()
        for path, entry in imported.parameters.entries.items()
        if _part(path) == part
    }


def check_trained(trained: Sequence[Source], components: Iterable[str]) -> None:
    """Raises InputError where files of `train.py` hold a component that a model has not."""
    components = list(components)
    for source in trained:
        for component in recognise(open_tensors(source)):
            if component not in components:
                raise InputError(
                    f"{source} holds weights of the {component}, which this model has not. It has: "
                    f"{', '.join(components)}."
                )


def check_prediction_type(source: Source, prediction_type: str) -> None:
    """Raises InputError where a model's own scheduler says that its UNet predicts something else.

    Args:
      source: that gives the UNet; only folders have a scheduler.
      prediction_type: "epsilon", "v_prediction" or "sample".
    """
    folder = local(source)
    file = folder and folder / "scheduler" / "scheduler_config.json"
    if not (file and file.is_file()):
        return
    try:
        theirs = json.loads(file.read_text(encoding="utf-8")).get("prediction_type", "epsilon")  # diffusers' default
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"{file} cannot be read as a JSON object: {error}.") from error
    if theirs != prediction_type:
        raise InputError(
            f"noise_schedule.prediction_type={prediction_type!r}, but the model was trained for {theirs!r}, says "
            f"{file}. Set --config.noise_schedule.prediction_type={theirs}."
        )


def _replaced(pool: dict[str, tuple[Entry, Imported]], trained: Sequence[Source], component: str) -> list[Imported]:
    """Puts what files of `train.py` hold in the place of what is there; returns those that hold the component."""
    found = []
    for source in trained:
        components = recognise(open_tensors(source))
        if not all(isinstance(it.table, OwnTable) for it in components.values()):
            raise InputError(f"{source} is no file that train.py wrote. Name other files by what they are of a model.")
        if imported := components.get(component):
            pool |= {path: (entry, imported) for path, entry in imported.parameters.entries.items()}
            found.append(imported)
    return found


def _buffers(providers: Mapping[str, Imported]) -> dict[str, Entry]:
    return {
        path: entry
        for part, imported in providers.items()
        for path, entry in imported.buffers.entries.items()
        if _part(path) == part
    }


def tells_motion(imported: Imported) -> bool:
    """Whether a file tells of its motion modules what their weights do not show; a training's checkpoint does not."""
    held = imported.parameters.config or _own_config(UNetConfig, imported)
    return bool(held) or any(POSITIONS.fullmatch(path) for path in imported.buffers)


def motion_layout(imported: Imported, settings: Mapping[str, Any], by_hand: Mapping[str, Any]) -> MotionConfig | None:
    """Returns what a file's motion modules look like, None where it has none.

    Args:
        imported: the file.
        settings: the base's diffusers config, for what neither tensors nor the file's own config tell.
        by_hand: fields of `MotionConfig` to set.

    Raises:
        InputError: nothing tells how many positions they know.
    """
    blocks = [path for path in imported.parameters if _part(path) == "motion"]
    if not blocks:
        return None
    norms = (imported.parameters.entries[path] for path in blocks if path.endswith("/motion/norm/scale"))
    widths = {width for norm in norms for width in norm.shape[-1:]}
    config = {**settings, **(imported.parameters.config or {})}
    own = _own_config(UNetConfig, imported)
    if own and isinstance(own.motion, MotionConfig):
        known = dataclasses.asdict(own.motion)
    else:
        heads = config.get("motion_num_attention_heads") or config.get("motion_module_kwargs", {}).get(
            "num_attention_heads", MotionConfig.num_heads
        )
        known = dict(
            max_positions=config.get("motion_max_seq_length"),
            num_heads=heads if isinstance(heads, int) else heads[0],
            # in diffusers' UNetMotionModel the one setting serves both sorts of norm
            norm_groups=config.get("motion_norm_num_groups")
            or ("motion_max_seq_length" in config and config.get("norm_num_groups"))
            or math.gcd(MotionConfig.norm_groups, *widths),
        )
    known |= dict(
        max_positions=check_positions(imported) or known["max_positions"],
        mid_block=any(path.startswith("mid_block/") for path in blocks),
        num_layers=len({number for path in blocks for number in re.findall(r"/blocks_(\d+)/", path)}),
    )
    layout = _replace(MotionConfig(), known | by_hand)
    if layout.max_positions is None:
        raise InputError(
            f"{imported.parameters.source} has no position tables and no config that tells how many frames its motion "
            "modules know. Give the file that they were trained from as a source before it; or "
            "motion_config=dict(max_positions=...): 24 for AnimateDiff v1, 32 for later ones."
        )
    return layout


def _pools_frames(layout: MotionConfig | None, settings: Mapping[str, Any]) -> bool:
    """Whether resnet norms pool over frames, as AnimateDiff v1 was trained: 24 positions, none in the middle block."""
    if layout is None:
        return False
    return not settings.get("use_inflated_groupnorm", layout.max_positions != 24 or layout.mid_block)


def _fill_first_frame(pool: dict[str, tuple[Entry, Imported]], expected: Shapes) -> None:
    """Gives a branch without `to_q` the layer's own, as the published loader does; to one without any, zero output."""
    is_new = not any("/first_frame/" in path for path in pool)
    for path, leaf in expected.items():
        if "/first_frame/" not in path or path in pool:
            continue
        layers_own = path.replace("/first_frame/", "/")
        if path.endswith("/to_q/kernel") and layers_own in pool:
            pool[path] = pool[layers_own]
        elif is_new and layers_own in pool:
            zeros = Entry(leaf.shape, np.dtype(leaf.dtype), lambda leaf=leaf: np.zeros(leaf.shape, leaf.dtype))
            pool[path] = (zeros, pool[layers_own][1])


def _import(source: Source, component: str, more_tables: Iterable[Table] = (), folder: str = "") -> Imported:
    if isinstance(source, Imported):
        return source
    tensors = open_tensors(source, folder or component)
    found = recognise(tensors, {component: more_tables})
    imported = found.get(folder) or found.get(component)
    if imported is None:
        held = ", ".join(f"{name} ({it.table.name})" for name, it in found.items())
        raise InputError(f"{tensors.source} holds no {component}. It holds: {held}.")
    return imported


def _config(cls: type, given: Mapping[str, Any] | None, imported: Imported, section: str = "") -> Any:
    if given is None and (own := _own_config(cls, imported)):
        return own
    settings = imported.parameters.config if given is None else given
    if settings is None:
        return _inferred(cls, imported)
    try:
        return cls.from_diffusers(settings.get(section, settings))
    except KeyError as error:
        if given is None:  # some other model's, that lies beside by chance
            return _inferred(cls, imported)
        raise InputError(f"The config of {imported.parameters.source} does not set {error}.") from error
    except (TypeError, ValueError, AttributeError, IndexError) as error:  # InputError, or values of other types
        raise InputError(f"The config of {imported.parameters.source}: {str(error)[:300]}") from error


def _inferred(cls: type, imported: Imported) -> Any:
    """The config that a file without any must have; what else the file holds tells which published model it is of."""
    known = {}
    if issubclass(cls, UNetConfig) and not isinstance(imported.table, OwnTable):
        known["linear_projection"] = "linear projections" in imported.table.name
    if cls is VAEConfig and "text_encoder_2" in imported.beside:
        known["scaling_factor"] = SDXL_VAE.scaling_factor
    shapes = {path: entry.shape for path, entry in imported.parameters.entries.items()}
    config = _infer(cls, shapes, [imported], **known)
    if cls is UNetConfig and config.cross_attention_dim not in PUBLISHED_CONTEXTS:
        warnings.warn(
            f"{imported.parameters.source} has no config.json and is no published model; it is taken to have "
            f"{config.num_heads} attention heads and norms of {config.norm_groups} groups. Give its config.json "
            "otherwise: `config`, or --config unet=FILE.",
            stacklevel=2,
        )
    return config


def _infer(cls: type, shapes: Mapping[str, tuple[int, ...]], sources: Sequence[Imported], **known: Any) -> Any:
    try:
        return infer_config(_COMPONENTS[cls], shapes, **known)
    except InputError as error:
        where = " + ".join(it.parameters.source for it in sources)
        reason = _in_their_names(error, sources)
        raise InputError(f"{where} has no config.json, and its tensors tell none: {reason}") from error


def _in_their_names(error: Exception, sources: Sequence[Imported]) -> str:
    """A message that speaks of our paths, in the names of the files."""
    names = {path: name for it in sources for path, name in it.names.items()}
    return re.sub(r"'([^']*)'", lambda path: repr(names.get(path[1]) or _name_there(sources[0], path[1])), str(error))


def _own_config(cls: type, imported: Imported) -> Any:
    """The config that one of our own files holds, None for other files."""
    try:
        return (text := own_config(imported)) and config_from_json(cls, text)
    except InputError as error:
        raise InputError(f"{imported.parameters.source}: {error}") from error


def _replace(config: Any, values: Mapping[str, Any]) -> Any:
    fields = [field.name for field in dataclasses.fields(config)]
    for name in values:
        if name not in fields:
            raise InputError(f"{type(config).__name__} has no field {name!r}.{nearest(name, fields)}")
    return dataclasses.replace(config, **values)


def _expected(shapes: Callable[[Any], Shapes], config: Any, sources: Iterable[Imported]) -> Shapes:
    """The parameters of a config's network; InputError where no network can have that config."""
    sources = list(sources)
    try:
        check_config(config, sum(len(it.parameters) for it in sources))
        return shapes(config)
    except Exception as error:  # sizes that make no sense together fail in more ways than can be listed
        where = " + ".join(dict.fromkeys(it.parameters.source for it in sources))
        raise InputError(f"{where} is of no network known here: {str(error)[:300] or type(error).__name__}") from error


def _assembled_whole(
    name: str,
    config: Any,
    shapes: Callable[[Any], Shapes],
    imported: Imported,
    trained: Sequence[Source] = (),
    component: str = "",
) -> Assembled:
    expected = _expected(shapes, config, [imported])
    pool = {path: (entry, imported) for path, entry in imported.parameters.entries.items()}
    _replaced(pool, trained, component)
    return _assembled(name, config, expected, pool, lambda path: imported, imported.buffers.entries)


def _assembled(
    component: str,
    config: Any,
    expected: Shapes,
    pool: Mapping[str, tuple[Entry, Imported]],
    provider: Callable[[str], Imported],
    buffers: dict[str, Entry],
) -> Assembled:
    """Picks the expected parameters, once all of them are known to be there and to fit.

    Args:
        component: for messages.
        config: of the network.
        expected: what the network wants.
        pool: path -> what the sources hold, and which of them.
        provider: the source that should hold a path.
        buffers: path -> what is no parameter.
    """
    sources = list({id(it): it for it in (*(it for _, it in pool.values()), *map(provider, expected))}.values())
    named = {path: it.names.get(path, path) for path, (_, it) in pool.items()}
    missing = {path: _name_there(provider(path), path) for path in expected if path not in pool}
    unexpected = [name for path, name in named.items() if path not in expected]
    unexpected += [name for it in sources for name in it.unknown]
    known = [*missing.values(), *(named[path] for path in expected if path in named)]
    complaints = [f"missing {name!r}{nearest(name, unexpected)}" for name in [*missing.values()][:SHOWN]]
    complaints += [f"unexpected {name!r}{nearest(name, known)}" for name in unexpected[:SHOWN]]
    misshapen = [
        f"{named[path]!r} has shape {list(_shape_there(it, path, entry.shape))}, "
        f"wanted {list(_shape_there(it, path, expected[path].shape))}"
        for path, (entry, it) in pool.items()
        if path in expected and entry.shape != expected[path].shape
    ]
    misshapen += [f"{name!r} has no shape that such a tensor can have" for it in sources for name in it.misshapen]
    misshapen += [
        f"{named[path]!r} holds {entry.dtype.name}; wanted floating-point numbers"
        for path, (entry, _) in pool.items()
        if path in expected and "float" not in entry.dtype.name
    ]
    complaints += misshapen[:SHOWN]
    if complaints:
        where = " + ".join(dict.fromkeys(f"{it.parameters.source} ({it.table.name})" for it in sources))
        counts = f"{len(missing)} missing, {len(unexpected)} unexpected, {len(misshapen)} misshapen"
        raise InputError(
            f"{where} does not hold this {component}: {counts} tensors of {len(expected)}.\n  "
            + "\n  ".join(complaints)
        )
    first = provider(next(iter(expected))).parameters
    return Assembled(
        config,
        first.holding({path: pool[path][0] for path in expected}),
        first.holding(buffers),
        first.config,
        named,
    )


def _name_there(imported: Imported, path: str) -> str:
    match = imported.table.to_theirs(path)
    return match.name if match else path


def _shape_there(imported: Imported, path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    match = imported.table.to_theirs(path)
    return (match and match.theirs_shape(shape)) or shape
