"""Names of transformers' CLIP encoders, text and vision; a whole CLIPModel holds both."""

from i2v_jax.weights.names import BUFFER, CONV, DENSE, EMBEDDING, NORM, RAW, Row, Table, under

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
CLIP_VISION = Table(
    "transformers CLIP vision",
    [
        Row("vision_model.embeddings.class_embedding", "class_embedding", RAW),
        Row("vision_model.embeddings.patch_embedding", "patch_embedding", CONV),
        Row("vision_model.embeddings.position_embedding", "position_embedding", EMBEDDING),
        Row("vision_model.embeddings.position_ids", "position_ids", BUFFER),
        Row("vision_model.pre_layrnorm", "pre_layernorm", NORM),  # the spelling of transformers
        *under("vision_model.encoder.layers.{i}.", "layers_{i}/", CLIP_LAYER),
        Row("vision_model.post_layernorm", "post_layernorm", NORM),
        Row("visual_projection", "visual_projection", DENSE),
        Row("logit_scale", "logit_scale", BUFFER),
    ],
)
