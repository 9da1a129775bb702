"""`inspect`: what a file is. Only headers are read, and a damaged or partial file is described as far as it goes."""

import argparse
import contextlib
import re
from collections.abc import Collection, Iterator, Mapping

from convert import embeddings
from convert.parts import adapter_part, part_of
from convert.tables import megabytes, table
from i2v_jax.errors import InputError
from i2v_jax.families.downloads import Part, telling_all
from i2v_jax.families.few_steps import sort_of
from i2v_jax.families.identify import IMAGE_ENCODERS, TEXT_ENCODERS
from i2v_jax.models.adapters import ADAPTER_PATH, ADAPTERS
from i2v_jax.models.adapters.text_in_time import NAME as TEXT_IN_TIME
from i2v_jax.models.dynamicrafter import DYNAMICRAFTER
from i2v_jax.models.ifnet import version_of
from i2v_jax.models.motion import PICTURE_INPUT
from i2v_jax.weights.changes import WITH_PRODUCT, methods_of, rank_of
from i2v_jax.weights.checkpoint import open_checkpoint, open_files, recognise_in
from i2v_jax.weights.formats.dynamicrafter import is_dynamicrafter
from i2v_jax.weights.infer import infer_config
from i2v_jax.weights.kinds.find import unread_kind
from i2v_jax.weights.low_rank import LORA, kernel_shapes
from i2v_jax.weights.mivas import KEY, about_of, sentence
from i2v_jax.weights.save import EXPORTED_CONFIGS
from i2v_jax.weights.styles import BUNDLED, ENCODERS
from i2v_jax.weights.tensors import Entry, Tensors
from i2v_jax.weights.trained_for import first_told, told_by_source
from i2v_jax.weights.translate import Imported, OwnTable

FAMILIES = {
    768: "Stable Diffusion 1.x",
    1024: "Stable Diffusion 2.x",
    2048: "Stable Diffusion XL",
    1280: "SDXL refiner",
}
"""By the width of the prompt's tokens."""

INPUTS = {
    9: "an inpainting model",
    12: "IC-Light, which lights a picture as a background is",
    8: "a model that edits pictures (instruct-pix2pix) or lights them (IC-Light)",
    7: "an upscaler of latents or pictures",
    5: "a depth-to-image model",
}
"""By the channels that a UNet takes."""

TOOLS = {"ss_": "kohya-ss", "ot_": "OneTrainer", "lora_adapter_metadata": "diffusers with PEFT"}
"""Start of a key in the metadata -> the tool that writes it."""

PLUS_V2 = "v2 where its name says so, or the image projection's config: shortcut"

FORMATS_OF_TOOLS = {
    "kohya-ss": "kohya-ss (or a tool that writes its names: LyCORIS, OneTrainer)",
    "diffusers LoRA": "diffusers and PEFT",
    "AnimateDiff": "AnimateDiff",
}
"""Start of a format's name -> who writes it."""


def run(arguments: argparse.Namespace) -> int:
    """Prints a description of every source; InputError for those that are not here, all at once."""
    with telling_all(lambda: [Part("SOURCE", source, variant=arguments.variant) for source in arguments.sources]):
        for source in arguments.sources:
            if not embeddings.inspect(source):
                _inspect(source, arguments)
    return 0


def _inspect(source: str, arguments: argparse.Namespace) -> None:
    opened = open_files(source, arguments.variant)
    tensors = [tensors for tensors, _ in opened]
    unread = next((kind for held in tensors if (kind := unread_kind(held))), None)
    found = _recognised(opened, unread is not None)
    told = first_told([told_by_source(source, held) for held in tensors])
    about = [f"{unread[0].title}, which {unread[0].why}"] if unread else describe(found)
    about += [*_bundled(tensors), *_distilled(source, unread is not None), *filter(None, [told.sentence()])]
    print(f"{source}: {'; '.join(about)}")
    if unread:
        print(unread[0].instead)
        print(table(("tensors", "parameters", "size"), [_totals(tensors)]))
    else:
        print(table(("part", "format", "tensors", "parameters", "dtype", "size"), _rows(found)))
    _print_notes(found, tensors, arguments.skip_unknown)
    if arguments.keys:
        print(table(("name", "path", "shape", "dtype"), _keys(found) if found else _raw_keys(tensors)))


def _recognised(opened: list[tuple[Tensors, str]], may_fail: bool) -> list[tuple[str, Imported]]:
    """What the parts of a source are; of a kind that is not read perhaps nothing."""
    found = []
    for tensors, folder in opened:
        try:
            found += recognise_in(tensors, folder).items()
        except InputError:
            if not may_fail:
                raise
    return [] if may_fail else found


def _totals(opened: list[Tensors]) -> tuple:
    entries = [entry for tensors in opened for entry in tensors.entries.values()]
    return len(entries), f"{sum(entry.size for entry in entries):,}", megabytes(sum(entry.nbytes for entry in entries))


def _distilled(source: str, is_unread: bool) -> Iterator[str]:
    """What only names tell: models that were distilled to sample in a few steps."""
    sort = sort_of(source)
    if sort and not is_unread:
        yield f"by its name a {sort.title}: {sort.advice}"


def describe(found: list[tuple[str, Imported]]) -> list[str]:
    """Returns what is known of the model: its family, version of the motion modules, adapters, LoRA."""
    paths = {
        f"{component}/{path}": entry.shape
        for component, imported in found
        for path, entry in (imported.parameters.entries | imported.buffers.entries).items()
    }
    formats = {component: imported.table.name for component, imported in found}
    metadata = {key: value for _, imported in found for key, value in imported.parameters.metadata.items()}
    unet = {path.removeprefix("unet/"): shape for path, shape in paths.items() if path.startswith("unet/")}
    if is_dynamicrafter(unet):
        return list(_dynamicrafter(unet))
    return [
        *_family(paths | _kernels(found)),
        *_input(paths),
        *(["ControlNet"] if any(path.startswith("controlnet/") for path in paths) else []),
        *_sparse(paths),
        *_t2i(paths),
        *_measuring(paths),
        *_motion(paths),
        *_mivas(found),
        *_adapters(paths),
        *_image_tokens(paths),
        *_encoders(paths),
        *_lora(paths, formats, metadata),
    ] or [f"{' and '.join(component for component, _ in found)} alone, of any family"]


def _dynamicrafter(unet: Mapping[str, tuple[int, ...]]) -> Iterator[str]:
    """Which of DynamiCrafter's models a UNet is of, as far as shapes tell."""
    try:
        config = infer_config("unet", unet)
    except InputError:  # what does not fit is said below
        yield "DynamiCrafter"
        return
    size = "256" if config.image_scale else "512, 1024 or interpolation (which only names and pictures tell)"
    published = config.block_out_channels == DYNAMICRAFTER.block_out_channels
    yield f"DynamiCrafter {size}" if published else "DynamiCrafter, no published size"
    if config.image_scale:
        yield "learned strengths of image tokens"
    if config.text_in_time:
        yield "vectors for each frame in its temporal layers (EDG, stage 1)"


def _kernels(found: list[tuple[str, Imported]]) -> dict[str, tuple[int, ...]]:
    """The kernels that LoRA weights change, with their shapes, where these tell them."""
    return {
        f"{component}/{path}": shape
        for component, imported in found
        for path, shape in kernel_shapes(imported.parameters.select(LORA.pattern)).items()
    }


def _family(paths: Mapping[str, tuple[int, ...]]) -> Iterator[str]:
    for path, shape in paths.items():
        if re.fullmatch(r"(unet|controlnet|sparse_controlnet)/.*/attn2/(\w+/)?to_k/(kernel|lora/down)", path):
            if "/motion/" not in path:
                yield FAMILIES.get(shape[0], f"prompt tokens {shape[0]} wide, no published family")
                return
        if path.endswith("/attn2/miva/states"):
            yield FAMILIES.get(shape[-1], f"prompt tokens {shape[-1]} wide, no published family")
            return
    for path, shape in paths.items():  # an adapter of motion modules that stands alone
        if re.fullmatch(rf"unet/.*/motion/{TEXT_IN_TIME}/to_k/kernel", path):
            yield FAMILIES.get(shape[0], f"prompt tokens {shape[0]} wide, no published family")
            return
    widths = {shape[-1] for path, shape in paths.items() if path.endswith("/motion/norm/scale")}
    if widths == {320, 640, 1280}:
        yield "for Stable Diffusion XL" if _levels(paths) == 3 else "for Stable Diffusion 1.5"


def _levels(paths: Mapping[str, tuple[int, ...]]) -> int:
    return 1 + max(
        (int(found[1]) for path in paths if (found := re.match(r"unet/down_blocks_(\d+)/", path))), default=-1
    )


def _motion(paths: Mapping[str, tuple[int, ...]]) -> Iterator[str]:
    modules = [path for path in paths if re.match(r"unet/(?!.*/(lora|miva)/).*/motion/", path)]
    modules = [path for path in modules if not ADAPTER_PATH.fullmatch(path)]
    if not modules:
        return
    positions = {shape[1] for path, shape in paths.items() if path.endswith("/positions") and len(shape) == 3}
    mid = any(path.startswith("unet/mid_block/") for path in modules)
    frames = f"{min(positions)} frames at most" if positions else "no position tables"
    version = "v2" if mid else "SDXL-beta" if _levels(paths) == 3 else "v1" if positions == {24} else "v3"
    if not positions and not mid and version == "v3":
        version = "v1 or v3"
    if version == "SDXL-beta" and positions == {24}:
        version = "of Hotshot-XL"
    if f"unet/{PICTURE_INPUT}/motion/kernel" in paths:
        version = "of PIA, with a first layer for a mask and the picture's latents,"
    yield f"motion modules {version} ({frames})"


def _sparse(paths: Mapping[str, tuple[int, ...]]) -> Iterator[str]:
    if "sparse_controlnet/controlnet_cond_embedding/kernel" in paths:
        yield "SparseCtrl, control by pictures of a few frames (RGB), read as latents"
    elif any(path.startswith("sparse_controlnet/") for path in paths):
        yield "SparseCtrl, control by drawings of a few frames (scribble)"


def _measuring(paths: Mapping[str, tuple[int, ...]]) -> Iterator[str]:
    if any(path.startswith("raft/") for path in paths):
        large = any(path.startswith("raft/update_block/gru2_") for path in paths)
        yield f"RAFT, {'large' if large else 'small'}: optical flow, to measure videos with"
    if any(path.startswith("dover/") for path in paths):
        yield "DOVER, technical and aesthetic quality of videos"
    shapes = {path.partition("/")[2]: shape for path, shape in paths.items() if path.startswith("upscaler/")}
    if shapes:
        found = infer_config("upscaler", shapes)
        yield f"{'SRVGGNet' if found.compact else 'RRDBNet'}, an upscaler by {found.scale}"
    shapes = {path.partition("/")[2]: shape for path, shape in paths.items() if path.startswith("ifnet/")}
    if shapes:
        yield f"IFNet of {version_of(infer_config('ifnet', shapes))}: frames between frames"
    if any(path.startswith("lpips/") for path in paths):
        backbone = "VGG16" if "lpips/features_2/kernel" in paths else "AlexNet"
        yield f"{backbone}, the classifier of LPIPS: how alike pictures look"
    if any(path.startswith("dino/") for path in paths):
        yield "DINO, whether pictures are of one subject"
    if any(path.startswith("i3d/") for path in paths):
        yield "I3D, actions in videos: what FVD compares them by"


def _t2i(paths: Mapping[str, tuple[int, ...]]) -> Iterator[str]:
    shapes = {path.partition("/")[2]: shape for path, shape in paths.items() if path.startswith("t2i_adapter/")}
    if not shapes:
        return
    with contextlib.suppress(InputError):  # what does not fit is said below
        config = infer_config("t2i_adapter", shapes)
        is_xl = config.kind == "full_adapter_xl"
        yield f"for Stable Diffusion {'XL' if is_xl else '1.x'}"
        light = ", light" if config.is_light else ""
        yield f"T2I-Adapter{light}, of pictures of {config.in_channels} channel{'s' * (config.in_channels > 1)}"
        return
    yield "T2I-Adapter"


def _mivas(found: list[tuple[str, Imported]]) -> Iterator[str]:
    """What a MIVA's file says of it."""
    for component, imported in found:
        if component == "unet" and KEY in imported.parameters.metadata:
            yield sentence(about_of(imported.parameters))


def _adapters(paths: Mapping[str, tuple[int, ...]]) -> Iterator[str]:
    for adapter in ADAPTERS.values():
        own = [path for path in paths if f"/{adapter.site}/{adapter.name}/" in path]
        lacking = [layer for layer in adapter.copies if not any(f"/{adapter.name}/{layer}/" in path for path in own)]
        product = adapter.title if adapter.product is None else adapter.product
        if own and product:
            left = f" without {', '.join(lacking)}, which is then the layers' own" if lacking else ""
            yield f"{product}{left}"


def _image_tokens(paths: Mapping[str, tuple[int, ...]]) -> Iterator[str]:
    if latents := paths.get("image_proj/latents"):
        if paths.get("image_proj/proj_in/kernel", (0,))[0] == 512:
            yield f"InstantID's IP-Adapter, of a face model's states, {latents[0]} image tokens"
        else:
            yield f"IP-Adapter plus, {latents[0]} image tokens (or plus-face, which only names tell)"
    elif "image_proj/face/proj_in/kernel" in paths:
        yield f"IP-Adapter FaceID plus, of a face embedding and a picture of the face ({PLUS_V2})"
    elif "image_proj/proj_in/kernel" in paths and "image_proj/norm/scale" in paths:
        yield "IP-Adapter FaceID, of a face embedding"
    elif "image_proj/proj_in/kernel" in paths:
        yield "IP-Adapter full-face, an image token for each state"
    elif "image_proj/norm/scale" in paths and "image_proj/proj/kernel" in paths:
        yield f"IP-Adapter, {paths['image_proj/proj/kernel'][1] // paths['image_proj/norm/scale'][0]} image tokens"


def _input(paths: Mapping[str, tuple[int, ...]]) -> Iterator[str]:
    """What a UNet takes beside latents."""
    shape = paths.get("unet/conv_in/kernel")
    if shape and shape[-2] in INPUTS:
        yield f"{INPUTS[shape[-2]]}: its UNet takes {shape[-2]} channels, which no command here gives"


def _encoders(paths: Mapping[str, tuple[int, ...]]) -> Iterator[str]:
    """Which CLIP encoders, and of what latents the autoencoder, where they stand without a UNet."""
    if any(path.startswith("unet/") for path in paths):
        return
    for component in ("text_encoder", "text_encoder_2"):
        width = paths.get(f"{component}/token_embedding/embedding", (0,))[-1]
        if width:
            yield f"text encoder: {TEXT_ENCODERS.get(width, f'{width} wide')}"
    if width := paths.get("image_encoder/class_embedding", (0,))[-1]:
        names = {widths[0]: name for widths, (name, _) in IMAGE_ENCODERS.items()}
        yield f"image encoder: {names.get(width, f'{width} wide')}"
    latents = paths.get("vae/decoder/conv_in/kernel", (0, 0, 0, 0))[-2]
    if latents and latents != 4:
        yield f"autoencoder of latents of {latents} channels (Stable Diffusion 3 and Flux have 16), for no family here"


def _lora(
    paths: Mapping[str, tuple[int, ...]], formats: Mapping[str, str], metadata: Mapping[str, str]
) -> Iterator[str]:
    layers: dict[str, dict[str, tuple[int, ...]]] = {}
    for path, shape in paths.items():
        if match := LORA.fullmatch(path):
            layers.setdefault(match["layer"], {})[match["leaf"]] = shape
    if not layers:
        return
    has_windows = any("mid" in leaves or len(leaves.get("down", ())) == 4 for leaves in layers.values())
    by_kind: dict[str, list[int]] = {}
    for layer, leaves in layers.items():
        for kind, rank in _kinds(leaves):
            by_kind.setdefault(f"motion {kind}" if "/motion/" in layer else kind, []).append(rank)
    for kind, found in by_kind.items():
        ranks = ", ".join(map(str, sorted({rank for rank in found if rank})))
        window = " (with convolutions: LoCon)" if kind.endswith("LoRA") and has_windows else ""
        yield f"{kind}{window}{f' of rank {ranks}' if ranks else ''} on {len(found)} layers"
    tools = [tool for key, tool in TOOLS.items() if any(name.startswith(key) for name in metadata)]
    tools += [
        tool for start, tool in FORMATS_OF_TOOLS.items() if any(name.startswith(start) for name in formats.values())
    ]
    if tools:
        yield f"as {tools[0]} writes it"


def _kinds(leaves: Mapping[str, tuple[int, ...]]) -> Iterator[tuple[str, int]]:
    """What a layer's LoRA weights are, with its rank; 0 where it has none."""
    for method in methods_of(leaves):
        has_rank = method in WITH_PRODUCT
        title = f"DoRA ({method.title})" if has_rank and "dora_scale" in leaves else method.title
        yield title, (rank_of(leaves) or 0) if has_rank else 0


def _bundled(opened: list[Tensors]) -> Iterator[str]:
    """Embeddings that lie beside a LoRA, by their tokens."""
    names = [name.removeprefix(BUNDLED) for tensors in opened for name in tensors if name.startswith(BUNDLED)]
    if names:
        tokens = sorted({re.sub(rf"\.({'|'.join(map(re.escape, ENCODERS))}|\w+)$", "", name) for name in names})
        yield f"with embeddings of {', '.join(map(repr, tokens))} (textual inversions, OneTrainer's bundle)"


def _rows(found: list[tuple[str, Imported]]) -> Iterator[tuple]:
    for component, imported in found:
        parts: dict[str, list[Entry]] = {}
        for path, entry in imported.parameters.entries.items():
            parts.setdefault(part_of(component, path), []).append(entry)
        if imported.buffers:
            parts[f"{component}: no parameters"] = list(imported.buffers.entries.values())
        for part, entries in parts.items():
            dtypes = ", ".join(sorted({entry.dtype.name for entry in entries}))
            yield (
                part,
                _format_of(part, parts, imported),
                len(entries),
                f"{sum(entry.size for entry in entries):,}",
                dtypes,
                megabytes(sum(entry.nbytes for entry in entries)),
            )


def _format_of(part: str, parts: Collection[str], imported: Imported) -> str:
    """The name of a part's format: adapters that stand alone are in their own, though a whole UNet's table reads it."""
    own = next((one for one in ADAPTERS.values() if part == adapter_part("unet", one.name)), None)
    alone = not any(other == "unet" for other in parts)
    if own and alone and not isinstance(imported.table, OwnTable) and imported.table.name.startswith("diffusers UNet"):
        return own.product or own.layout or own.title
    return imported.table.name


def _print_notes(found: list[tuple[str, Imported]], opened: list[Tensors], skip_unknown: bool) -> None:
    for component, imported in found:
        for kind, names in (("unknown", imported.unknown), ("of impossible shape", imported.misshapen)):
            if names:
                print(f"{len(names)} {kind}, beside {component}: {', '.join(names[:5])}{', ...' if names[5:] else ''}")
    for tensors in opened:
        texts = {
            key: value
            for key, value in tensors.metadata.items()
            if key not in ("configs", "settings", EXPORTED_CONFIGS) and value not in ("", "pt")
        }
        for key, value in texts.items():
            print(f"metadata {key}: {value[:120]}{'...' if value[120:] else ''}")
    if not found:
        return
    try:
        open_checkpoint(opened, skip_unknown=skip_unknown)
    except InputError as error:
        print(f"not convertible as it is: {error}")


def _keys(found: list[tuple[str, Imported]]) -> Iterator[tuple]:
    for component, imported in found:
        for path, entry in (imported.parameters.entries | imported.buffers.entries).items():
            yield imported.names[path], f"{component}/{path}", "x".join(map(str, entry.shape)), entry.dtype.name


def _raw_keys(opened: list[Tensors]) -> Iterator[tuple]:
    for tensors in opened:
        for name, entry in tensors.entries.items():
            yield name, "-", "x".join(map(str, entry.shape)), entry.dtype.name
