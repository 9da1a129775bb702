"""Names of transformers' CLIP encoders, text and vision; a whole CLIPModel holds both.

From transformers 5.6 on, a model in memory names its weights without `text_model.` and `vision_model.`; what is saved
from there by anything but its own `save_pretrained` has those names.
"""

from collections.abc import Iterable

from i2v_jax.weights.names import BUFFER, CONV, DENSE, EMBEDDING, NORM, RAW, FamilyTable, Row, Table, alike, under

CLIP_LAYER = [
    *alike(layer_norm1=NORM),
    *under("self_attn.", "self_attn/", alike(q_proj=DENSE, k_proj=DENSE, v_proj=DENSE, out_proj=DENSE)),
    *alike(layer_norm2=NORM),
    *under("mlp.", "mlp/", alike(fc1=DENSE, fc2=DENSE)),
]
TEXT_TABLES = alike(token_embedding=EMBEDDING, position_embedding=EMBEDDING, position_ids=BUFFER)
CLIP_TEXT_ROWS = [
    *under("text_model.embeddings.", "", TEXT_TABLES),
    *under("text_model.encoder.layers.{i}.", "layers_{i}/", CLIP_LAYER),
    *under("text_model.", "", alike(final_layer_norm=NORM)),
    *alike(text_projection=DENSE, logit_scale=BUFFER),
]
CLIP_TEXT = Table("transformers CLIP text", CLIP_TEXT_ROWS)
PICTURE_TABLES = alike(class_embedding=RAW, patch_embedding=CONV, position_embedding=EMBEDDING, position_ids=BUFFER)
CLIP_VISION_ROWS = [
    *under("vision_model.embeddings.", "", PICTURE_TABLES),
    Row("vision_model.pre_layrnorm", "pre_layernorm", NORM),  # the spelling of transformers
    *under("vision_model.encoder.layers.{i}.", "layers_{i}/", CLIP_LAYER),
    *under("vision_model.", "", alike(post_layernorm=NORM)),
    *alike(visual_projection=DENSE, logit_scale=BUFFER),
]
CLIP_VISION = Table("transformers CLIP vision", CLIP_VISION_ROWS)


def without(part: str, rows: Iterable[Row]) -> list[Row]:
    """Returns rows whose names there lack a part that most of them begin with, such as `text_model.`."""
    return [row._replace(theirs=row.theirs.removeprefix(part)) for row in rows]


def _flat(name: str, rows: list[Row], first: str) -> FamilyTable:
    """Names without the inner model's; text and vision share most, so that a file is known by its `first`."""
    return FamilyTable(name, lambda shapes: rows if first in shapes else [], lambda shapes: rows)


CLIP_TEXT_FLAT = _flat(
    "transformers CLIP text without text_model.",
    without("text_model.", CLIP_TEXT_ROWS),
    "embeddings.token_embedding.weight",
)
CLIP_VISION_FLAT = _flat(
    "transformers CLIP vision without vision_model.",
    without("vision_model.", CLIP_VISION_ROWS),
    "embeddings.class_embedding",
)
