"""Names of RAFT: princeton-vl's, which stores the norm of a shortened block twice, and torchvision's."""

from i2v_jax.weights.names import BUFFER, CONV, SAME, Kind, Row, Table, under

BATCH_NORM: Kind = {
    "weight": ("batch/scale", SAME),
    "bias": ("batch/bias", SAME),
    "running_mean": ("batch/mean", SAME),
    "running_var": ("batch/var", SAME),
}
COUNT = "num_batches_tracked"
DOUBLED = "doubled"
"""Where the second copy lies of what `downsample_1` is in princeton-vl's large context encoder, there `norm3`."""


def _norm(theirs: str, ours: str) -> list[Row]:
    return [Row(theirs, ours, BATCH_NORM), Row(f"{theirs}.{COUNT}", f"{ours}/{COUNT}", BUFFER)]


def _downsample() -> list[Row]:
    return [Row("downsample.0", "downsample_0", CONV), *_norm("downsample.1", "downsample_1")]


def _princeton_encoder() -> list[Row]:
    block = [*_downsample(), Row("conv{k}", "conv{k}", CONV)]
    for number in (1, 2):
        block += _norm(f"norm{number}", f"norm{number}")
    doubled = (*BATCH_NORM, COUNT)
    block += [Row(f"norm3.{leaf}", f"{DOUBLED}/{leaf}", BUFFER) for leaf in doubled]
    ends = [Row("conv1", "conv1", CONV), *_norm("norm1", "norm1"), Row("conv2", "conv2", CONV)]
    return [*ends, *under("layer{i}.{j}.", "layer{i}_{j}/", block)]


def _princeton(small: bool) -> list[Row]:
    number = "" if small else "{i}"
    gates = [Row(f"gru.conv{gate}{number}", f"gru{number or 1}_conv{gate}", CONV) for gate in "zrq"]
    layers = [Row(f"encoder.{name}", name, CONV) for name in ("convc{k}", "convf{k}", "conv")]
    return [
        *under("fnet.", "feature_encoder/", _princeton_encoder()),
        *under("cnet.", "context_encoder/", _princeton_encoder()),
        *under(
            "update_block.", "update_block/", [*layers, *gates, Row("flow_head.conv{k}", "flow_head_conv{k}", CONV)]
        ),
        Row("update_block.mask.0", "mask/conv1", CONV),
        Row("update_block.mask.2", "mask/conv2", CONV),
    ]


def _torchvision_encoder() -> list[Row]:
    block = [*_downsample(), Row("convnormrelu{k}.0", "conv{k}", CONV), *_norm("convnormrelu{k}.1", "norm{k}")]
    ends = [Row("convnormrelu.0", "conv1", CONV), *_norm("convnormrelu.1", "norm1"), Row("conv", "conv2", CONV)]
    return [*ends, *under("layer{i}.{j}.", "layer{i}_{j}/", block)]


def _torchvision() -> list[Row]:
    names = {"convcorr{k}.0": "convc{k}", "convflow{k}.0": "convf{k}", "conv.0": "conv"}
    update = [Row(f"motion_encoder.{theirs}", ours, CONV) for theirs, ours in names.items()]
    update += [Row(f"recurrent_block.convgru{{i}}.conv{gate}", f"gru{{i}}_conv{gate}", CONV) for gate in "zrq"]
    return [
        *under("feature_encoder.", "feature_encoder/", _torchvision_encoder()),
        *under("context_encoder.", "context_encoder/", _torchvision_encoder()),
        *under("update_block.", "update_block/", [*update, Row("flow_head.conv{k}", "flow_head_conv{k}", CONV)]),
        Row("mask_predictor.convrelu.0", "mask/conv1", CONV),
        Row("mask_predictor.conv", "mask/conv2", CONV),
    ]


PRINCETON_RAFT = Table("princeton-vl RAFT", _princeton(small=False))
PRINCETON_RAFT_SMALL = Table("princeton-vl RAFT, small", _princeton(small=True))
TORCHVISION_RAFT = Table("torchvision RAFT", _torchvision())
RAFT_TABLES = (PRINCETON_RAFT, PRINCETON_RAFT_SMALL, TORCHVISION_RAFT)
