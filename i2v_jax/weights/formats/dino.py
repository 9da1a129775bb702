"""Names of DINO's vision transformer: facebookresearch's and transformers'."""

from i2v_jax.weights.names import BUFFER, CONV, DENSE, NORM, RAW, Row, Table, under

_LAYER = [
    Row("norm1", "layer_norm1", NORM),
    *(Row("attn.qkv", f"self_attn/{name}_proj", DENSE, (i, 3)) for i, name in enumerate("qkv")),
    Row("attn.proj", "self_attn/out_proj", DENSE),
    Row("norm2", "layer_norm2", NORM),
    Row("mlp.fc1", "mlp/fc1", DENSE),
    Row("mlp.fc2", "mlp/fc2", DENSE),
]
DINO = Table(
    "DINO",
    [
        Row("cls_token", "class_token", RAW),
        Row("pos_embed", "positions", RAW),
        Row("patch_embed.proj", "patch_embedding", CONV),
        *under("blocks.{i}.", "layers_{i}/", _LAYER),
        Row("norm", "norm", NORM),
    ],
)
_TRANSFORMERS_LAYER = [
    Row("layernorm_before", "layer_norm1", NORM),
    *(Row(f"attention.attention.{name}", f"self_attn/{name[0]}_proj", DENSE) for name in ("query", "key", "value")),
    Row("attention.output.dense", "self_attn/out_proj", DENSE),
    Row("layernorm_after", "layer_norm2", NORM),
    Row("intermediate.dense", "mlp/fc1", DENSE),
    Row("output.dense", "mlp/fc2", DENSE),
]
TRANSFORMERS_VIT = Table(
    "transformers ViT",
    [
        Row("embeddings.cls_token", "class_token", RAW),
        Row("embeddings.position_embeddings", "positions", RAW),
        Row("embeddings.patch_embeddings.projection", "patch_embedding", CONV),
        *under("encoder.layer.{i}.", "layers_{i}/", _TRANSFORMERS_LAYER),
        Row("layernorm", "norm", NORM),
        *(Row(f"pooler.dense.{leaf}", f"pooler/{leaf}", BUFFER) for leaf in ("weight", "bias")),
    ],
)
DINO_TABLES = (DINO, TRANSFORMERS_VIT)
