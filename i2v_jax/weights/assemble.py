"""Components from wherever their weights are: assembled and checked unread, then placed tensor by tensor.

The parts of a UNet (spatial layers, motion modules, adapters) may come from one file or each from its own, in any
format of `formats`.
"""

import contextlib
import ctypes
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from i2v_jax.errors import InputError
from i2v_jax.models.adapters import Adapter, adapter, adapters_in, by_site
from i2v_jax.models.adapters.image_tokens import IMAGE_TOKENS
from i2v_jax.models.clip import CLIPTextConfig, CLIPVisionConfig
from i2v_jax.models.image_projection import AnyConfig, FaceResamplerConfig, config_from_shapes
from i2v_jax.models.networks import Shapes
from i2v_jax.models.unet import UNetConfig
from i2v_jax.models.vae import VAEConfig
from i2v_jax.tree import unflatten
from i2v_jax.weights.configs import (
    config_of,
    expected_parameters,
    head_dim_of,
    infer,
    own_config_of,
    replaced,
    shortcut_of,
    warn_of_guesses,
    without_later_layers,
)
from i2v_jax.weights.fit import Pool, check_fit, in_their_names
from i2v_jax.weights.formats.ip_adapter import ip_adapter_table
from i2v_jax.weights.kinds.find import parts_held, refuse_unread
from i2v_jax.weights.kinds.table import READ
from i2v_jax.weights.low_rank import LORA, merge_lora
from i2v_jax.weights.names import Table
from i2v_jax.weights.storage.open import open_tensors
from i2v_jax.weights.tensors import Entry, Tensors
from i2v_jax.weights.translate import Imported, OwnTable, recognise, without_unknown
from i2v_jax.weights.unet_parts import (
    FOLDERS,
    buffers_of,
    check_branches,
    fill_adapters,
    motion_layout,
    parameters_of,
    part_of_path,
    parts_of,
    pools_frames,
    provider_of,
    title_of,
    without_copies,
)

Source = str | Path | Tensors | Imported
Place = Callable[[str, np.ndarray], Any]
TRIM_AFTER = 1 << 28  # bytes read


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
        dtype, placed, freed = self.config.param_dtype, {}, 0
        for path, entry in self.parameters.entries.items():
            placed[path] = place(path, np.asarray(entry.read(), dtype))
            freed += entry.nbytes
            if freed > TRIM_AFTER:
                return_freed_memory()
                freed = 0
        return_freed_memory()
        return self.config, unflatten(placed)


def return_freed_memory() -> None:
    """Gives freed blocks back to the system, of which glibc keeps those below 32 MB; elsewhere nothing is done."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


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
    adapters: Mapping[str, Source | None] = MappingProxyType({}),
    trained: Sequence[Source] = (),
    skip_unknown: bool = False,
    config: Mapping[str, Any] | None = None,
    motion_config: Mapping[str, Any] | None = None,
    dtype: Any = jnp.float32,
    **overrides: Any,
) -> Assembled:
    """Puts a UNet together whose parts may come from different files, without reading them.

    The base gives every part that it holds; `motion` and `adapters` each replace or add theirs, and give nothing else
    even where they hold more (the published merged file may serve as any of them).

    Args:
        base: file, folder or hub id of the spatial layers.
        motion: motion modules: AnimateDiff, diffusers' MotionAdapter, or a merged UNet.
        adapters: adapter's name (`models.adapters`) -> file of its weights, None for what the base holds. Where that
            lacks a layer which is a copy of the attention's own at first, it is so here. An adapter that
            `self_attention_branches` or `cross_attention_branches` asks for and no file holds starts untrained.
        trained: files that `train.py` wrote. Each of their weights replaces the one of the same path, of whatever part;
            the last file counts.
        skip_unknown: leave tensors out that nothing knows, with a warning, rather than refuse them.
        config: the base's diffusers config; by default what lies beside the base's weights. The keys of the published
            code (`motion_module_kwargs`, `use_inflated_groupnorm`) are understood too.
        motion_config: fields of `MotionConfig` to set by hand.
        dtype: of the parameters and of the activations.
        overrides: fields of `UNetConfig` to set by hand, such as `pooled_norms`.

    Raises:
        InputError: a source cannot be read, or tensors are missing, unexpected or misshapen.
    """
    whole = import_component(base, "unet", skip_unknown=skip_unknown)
    providers = {"base": whole} | _providers(motion, adapters, [ip_adapter_table(whole.parameters)], skip_unknown)
    faces = _lora_of_faces(providers.get(IMAGE_TOKENS.name, whole).parameters)
    pool = {path: tensor for path, tensor in parameters_of(providers).items() if path not in faces}
    for imported in _put_trained(pool, trained, "unet"):
        motion_file = providers.get("motion", whole)
        if "motion" in parts_of(imported.parameters) and "motion" not in parts_of(motion_file.parameters):
            providers["motion"] = imported
    settings = config or whole.parameters.config or {}
    layout = motion_layout(providers.get("motion", whole), settings, motion_config or {})
    names = [known.name for known in _known_adapters(pool)]
    derived = dict(
        motion=layout,
        miva=None,
        pooled_norms=pools_frames(layout, settings),
        **by_site(names),
        dtype=dtype,
        param_dtype=dtype,
    )
    unet = replaced(config_of(UNetConfig, config, whole), derived | overrides)
    wanted = {"base", "motion", *check_branches(unet, whole.parameters.source)}
    pool = {path: tensor for path, tensor in pool.items() if part_of_path(path) in wanted}
    expected = expected_parameters(unet, providers.values())
    fill_adapters(pool, expected)
    found = _assembled(
        "UNet", unet, expected, pool, lambda path: providers[provider_of(path, providers)], buffers_of(providers)
    )
    return dataclasses.replace(found, parameters=merge_lora(found.parameters, faces, 1.0)) if faces else found


def _lora_of_faces(parameters: Tensors) -> Tensors:
    """The LoRA that comes with a FaceID's attention weights: it changes the UNet that attends to its tokens."""
    has_tokens = IMAGE_TOKENS.name in parts_of(parameters)
    return parameters.select(LORA.pattern) if has_tokens else parameters.holding({})


def assemble_unet_parts(
    *,
    motion: Source | None = None,
    adapters: Mapping[str, Source | None] = MappingProxyType({}),
    config: Mapping[str, Any] | None = None,
    motion_config: Mapping[str, Any] | None = None,
) -> Assembled:
    """Puts parts of a UNet together that have no base beside them, without reading them.

    What the parts do not tell of their UNet stays at what published models have; a config that one of our own files
    holds is taken as it is. An adapter may lack layers that are copies at first, which then wait for their base.

    Args:
        motion, adapters, config, motion_config: as for `assemble_unet`.

    Raises:
        InputError: a source cannot be read, or tensors are missing, unexpected or misshapen.
    """
    providers = _providers(motion, adapters)
    files = list(providers.values())
    pool = parameters_of(providers)
    shapes = {path: entry.shape for path, (entry, _) in pool.items()}
    own = [found for imported in files if (found := own_config_of(UNetConfig, imported))]
    if config is not None:
        unet = config_of(UNetConfig, config, files[0])
    else:
        unet = own[0] if own else infer(UNetConfig, shapes, files)
        if not own:
            warn_of_guesses(unet, " + ".join(imported.parameters.source for imported in files))
    if motion:
        unet = dataclasses.replace(unet, motion=motion_layout(providers["motion"], config or {}, motion_config or {}))
    network = expected_parameters(unet, files)
    expected = {path: leaf for path, leaf in network.items() if part_of_path(path) in providers}
    expected = without_copies(expected, pool)
    return _assembled("UNet", unet, expected, pool, lambda path: providers[part_of_path(path)], buffers_of(providers))


def _providers(
    motion: Source | None,
    adapters: Mapping[str, Source | None],
    more_tables: Iterable[Table] = (),
    skip_unknown: bool = False,
) -> dict[str, Imported]:
    """Part -> the file that gives it, of those that are given; InputError where a file does not hold its part."""
    given = {"motion": motion, **{adapter(name).name: source for name, source in adapters.items()}}
    providers = {}
    for part, source in given.items():
        if source is None:
            continue
        imported = import_component(source, "unet", more_tables, FOLDERS.get(part, "unet"), skip_unknown)
        if part not in parts_of(imported.parameters):
            raise InputError(f"{imported.parameters.source} holds no {title_of(part)}. Give another file, or none.")
        providers[part] = imported
    return providers


def _known_adapters(pool: Pool) -> tuple[Adapter, ...]:
    try:
        return adapters_in(pool)
    except InputError as error:
        sources = dict.fromkeys(
            imported.parameters.source for path, (_, imported) in pool.items() if part_of_path(path) != "base"
        )
        raise InputError(f"{' + '.join(sources)}: {error}") from error


def load_vae(source: Source, *, place: Place = to_device, **options: Any) -> tuple[VAEConfig, dict[str, Any]]:
    """Loads an AutoencoderKL: a component's or a pipeline's folder, a file, a hub id; old and new attention names.

    Arguments, returns and errors are those of `load_unet`.
    """
    return assemble_vae(source, **options).load(place)


def assemble_vae(
    source: Source,
    *,
    trained: Sequence[Source] = (),
    skip_unknown: bool = False,
    config: Mapping[str, Any] | None = None,
    dtype: Any = jnp.float32,
    usual_scaling: float | None = None,
    **overrides: Any,
) -> Assembled:
    """Finds and checks an AutoencoderKL's tensors; see `load_vae` and `assemble_unet`.

    `usual_scaling` is the scaling factor where neither a config nor what else the file holds tells it: that of the
    base's family; None: SD1.5's, with a warning.
    """
    imported = import_component(source, "vae", skip_unknown=skip_unknown)
    vae = config_of(VAEConfig, config, imported, **({"scaling_factor": usual_scaling} if usual_scaling else {}))
    vae = replaced(vae, dict(dtype=dtype, param_dtype=dtype) | overrides)
    return assembled_whole("VAE", vae, imported, trained, "vae")


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
    skip_unknown: bool = False,
    config: Mapping[str, Any] | None = None,
    dtype: Any = jnp.float32,
    **overrides: Any,
) -> Assembled:
    """Finds and checks a CLIP text encoder's tensors; see `load_text_encoder` and `assemble_unet`."""
    imported = import_component(source, "text_encoder", folder=folder, skip_unknown=skip_unknown)
    derived = _projection_width(imported, "text_projection") | dict(dtype=dtype, param_dtype=dtype)
    clip = replaced(config_of(CLIPTextConfig, config, imported, "text_config"), derived | overrides)
    imported = without_later_layers(imported, clip.num_layers)
    return assembled_whole("CLIP text encoder", clip, imported, trained, folder)


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
    skip_unknown: bool = False,
    config: Mapping[str, Any] | None = None,
    dtype: Any = jnp.float32,
    **overrides: Any,
) -> Assembled:
    """Finds and checks a CLIP vision encoder's tensors; see `load_image_encoder` and `assemble_unet`."""
    imported = import_component(source, "image_encoder", skip_unknown=skip_unknown)
    derived = _projection_width(imported, "visual_projection") | dict(dtype=dtype, param_dtype=dtype)
    clip = replaced(config_of(CLIPVisionConfig, config, imported, "vision_config"), derived | overrides)
    imported = without_later_layers(imported, clip.num_layers)
    return assembled_whole("CLIP vision encoder", clip, imported, trained, "image_encoder")


def load_image_projection(
    source: Source, *, place: Place = to_device, **options: Any
) -> tuple[AnyConfig, dict[str, Any]]:
    """Loads the image projection of an IP-Adapter file, of any published kind; its attention weights are left.

    Args:
        source: as for `load_unet`.
        place: as for `load_unet`.
        options: `head_dim`, the width of the resampler's attention heads, which only our own files tell (64 in every
            published one); `dtype`; fields of the config to set by hand. The rest is read off the tensors' shapes.
    """
    return assemble_image_projection(source, **options).load(place)


def assemble_image_projection(
    source: Source,
    *,
    trained: Sequence[Source] = (),
    skip_unknown: bool = False,
    config: Mapping[str, Any] | None = None,
    head_dim: int | None = None,
    dtype: Any = jnp.float32,
    **overrides: Any,
) -> Assembled:
    """Finds and checks an image projection's tensors; see `load_image_projection`."""
    imported = import_component(source, "image_proj", skip_unknown=skip_unknown)
    head_dim = head_dim or head_dim_of(config, imported)
    shapes = {path: entry.shape for path, entry in imported.parameters.entries.items()}
    try:
        projection = config_from_shapes(shapes, head_dim)
    except (ValueError, IndexError, ArithmeticError) as error:  # InputError, or sizes that make no sense together
        raise InputError(f"{imported.parameters.source}: {in_their_names(error, [imported])}") from error
    derived = dict(dtype=dtype, param_dtype=dtype)
    if isinstance(projection, FaceResamplerConfig):
        derived["shortcut"] = shortcut_of(config, imported)
    projection = replaced(projection, derived | overrides)
    return assembled_whole("image projection", projection, imported, trained, "image_proj")


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


def _put_trained(pool: Pool, trained: Sequence[Source], component: str) -> list[Imported]:
    """Puts what files of `train.py` hold in the place of what is there; returns those that hold the component."""
    found = []
    for source in trained:
        components = recognise(open_tensors(source))
        if not all(isinstance(imported.table, OwnTable) for imported in components.values()):
            raise InputError(f"{source} is no file that train.py wrote. Name other files by what they are of a model.")
        if imported := components.get(component):
            pool |= {path: (entry, imported) for path, entry in imported.parameters.entries.items()}
            found.append(imported)
    return found


def _projection_width(imported: Imported, name: str) -> dict[str, int]:
    """Where the file has a projection, its width: configs do not always tell. Where not, what the config says holds."""
    entry = imported.parameters.entries.get(f"{name}/kernel")
    return {} if entry is None else {"projection_dim": entry.shape[1]}


def import_component(
    source: Source,
    component: str,
    more_tables: Iterable[Table] = (),
    folder: str = "",
    skip_unknown: bool = False,
) -> Imported:
    """Recognises a source as a component, unread.

    Args:
        source: a file, folder or hub id, or what is recognised already.
        component: a name of `formats.TABLES`.
        more_tables: to try before those.
        folder: where it lies in a pipeline's folder, and what it is called there, when not by the component's name.
        skip_unknown: leave tensors out that nothing knows, with a warning.

    Raises:
        InputError: the source cannot be read, or holds no such component.
    """
    if isinstance(source, Imported):
        return source
    tensors = open_tensors(source, folder or component)
    refuse_unread(tensors, tensors.source)
    found = recognise(tensors, {component: more_tables})
    imported = found.get(folder) or found.get(component)
    if imported is None:
        raise InputError(f"{tensors.source} holds no {component}. {_what_is_held(tensors.source, found)}")
    return without_unknown(imported) if skip_unknown else imported


def _what_is_held(source: str, found: Mapping[str, Imported]) -> str:
    """What a source holds in place of what was wanted, and where that belongs."""
    held = ", ".join(f"{name} ({imported.table.name})" for name, imported in found.items())
    parts = parts_held({name: imported.parameters for name, imported in found.items()})
    uses = dict.fromkeys(READ[part].use.format(source=source) for part in parts if part in READ and READ[part].slots)
    return " ".join([f"It holds: {held}.", *list(uses)[:1]])


def assembled_whole(
    title: str, config: Any, imported: Imported, trained: Sequence[Source] = (), component: str = ""
) -> Assembled:
    """Returns a component whose every parameter one file holds, or files of `train.py` in its place.

    Args:
        title: for messages.
        config: of its network.
        imported: the file.
        trained: files of `train.py`, of which those parameters are taken that they hold of `component`.
        component: what they call it.

    Raises:
        InputError: tensors are missing, unexpected or misshapen.
    """
    expected = expected_parameters(config, [imported])
    pool = {path: (entry, imported) for path, entry in imported.parameters.entries.items()}
    _put_trained(pool, trained, component)
    return _assembled(title, config, expected, pool, lambda path: imported, imported.buffers.entries)


def _assembled(
    title: str,
    config: Any,
    expected: Shapes,
    pool: Pool,
    provider: Callable[[str], Imported],
    buffers: dict[str, Entry],
) -> Assembled:
    """Picks the expected parameters, once all are known to be there and to fit; arguments as for `check_fit`."""
    named = check_fit(title, expected, pool, provider)
    first = provider(next(iter(expected))).parameters
    return Assembled(
        config,
        first.holding({path: pool[path][0] for path in expected}),
        first.holding(buffers),
        first.config,
        named,
    )
