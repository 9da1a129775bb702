"""Names of transformers' CLIP encoders, text and vision; a whole CLIPModel holds both.

From transformers 5.6 on, a model in memory names its weights without `text_model.` and `vision_model.`; what is saved
from there by anything but its own `save_pretrained` has those names.
"""

from collections.abc import Iterable

from i2v_jax.weights.names import BUFFER, CONV, DENSE, EMBEDDING, NORM, RAW, FamilyTable, Row, Table, under

CLIP_LAYER = [
    Row("layer_norm1", "layer_norm1", NORM),
    *(Row(f"self_attn.{name}_proj", f"self_attn/{name}_proj", DENSE) for name in ("q", "k", "v", "out")),
    Row("layer_norm2", "layer_norm2", NORM),
    Row("mlp.fc1", "mlp/fc1", DENSE),
    Row("mlp.fc2", "mlp/fc2", DENSE),
]
CLIP_TEXT_ROWS = [
    Row("text_model.embeddings.token_embedding", "token_embedding", EMBEDDING),
    Row("text_model.embeddings.position_embedding", "position_embedding", EMBEDDING),
    Row("text_model.embeddings.position_ids", "position_ids", BUFFER),
    *under("text_model.encoder.layers.{i}.", "layers_{i}/", CLIP_LAYER),
    Row("text_model.final_layer_norm", "final_layer_norm", NORM),
    Row("text_projection", "text_projection", DENSE),
    Row("logit_scale", "logit_scale", BUFFER),
]
CLIP_TEXT = Table("transformers CLIP text", CLIP_TEXT_ROWS)
CLIP_VISION_ROWS = [
    Row("vision_model.embeddings.class_embedding", "class_embedding", RAW),
    Row("vision_model.embeddings.patch_embedding", "patch_embedding", CONV),
    Row("vision_model.embeddings.position_embedding", "position_embedding", EMBEDDING),
    Row("vision_model.embeddings.position_ids", "position_ids", BUFFER),
    Row("vision_model.pre_layrnorm", "pre_layernorm", NORM),  # the spelling of transformers
    *under("vision_model.encoder.layers.{i}.", "layers_{i}/", CLIP_LAYER),
    Row("vision_model.post_layernorm", "post_layernorm", NORM),
    Row("visual_projection", "visual_projection", DENSE),
    Row("logit_scale", "logit_scale", BUFFER),
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
