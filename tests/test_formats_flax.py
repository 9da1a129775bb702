"""Flax checkpoints as diffusers and transformers write them: read, compared, written back; damaged ones refused."""

import diffusers
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers
from flax.traverse_util import flatten_dict

from i2v_jax import tree
from i2v_jax.errors import InputError
from i2v_jax.weights.assemble import load_image_encoder, load_text_encoder, load_unet, load_vae
from i2v_jax.weights.controls import load_controlnet
from i2v_jax.weights.storage import msgpack
from i2v_jax.weights.storage.msgpack import open_msgpack, save_msgpack
from i2v_jax.weights.storage.open import open_tensors
from i2v_jax.weights.translate import export_tensors, recognise
from tests import tiny

UNET = dict(
    sample_size=8,
    block_out_channels=(32, 64),
    layers_per_block=1,
    cross_attention_dim=24,
    attention_head_dim=4,
    **tiny.levels(True, False),
)
SDXL = UNET | tiny.levels(False, True) | tiny.of_xl(1, 2)
VAE = dict(block_out_channels=(16, 32), norm_num_groups=8, **tiny.autoencoder_levels(2))
TEXT = transformers.CLIPTextConfig(vocab_size=99, **tiny.CLIP)
VISION = transformers.CLIPVisionConfig(image_size=28, patch_size=14, **tiny.CLIP)
BOTH = transformers.CLIPConfig.from_text_vision_configs(TEXT, VISION, projection_dim=24)


MODELS = {
    "unet": (lambda: diffusers.FlaxUNet2DConditionModel(**UNET), load_unet),
    "unet-sdxl": (lambda: diffusers.FlaxUNet2DConditionModel(**SDXL), load_unet),
    "vae": (lambda: diffusers.FlaxAutoencoderKL(**VAE), load_vae),
    "controlnet": (lambda: diffusers.FlaxControlNetModel(**tiny.of_controlnet(UNET)), load_controlnet),
    "text_encoder": (lambda: transformers.FlaxCLIPTextModel(TEXT), load_text_encoder),
    "text_encoder-projected": (lambda: transformers.FlaxCLIPTextModelWithProjection(TEXT), load_text_encoder),
    "text_encoder-both": (lambda: transformers.FlaxCLIPModel(BOTH), load_text_encoder),
    "image_encoder": (lambda: transformers.FlaxCLIPVisionModel(VISION), load_image_encoder),
    "image_encoder-both": (lambda: transformers.FlaxCLIPModel(BOTH), load_image_encoder),
}


def random_weights(model, dtype=np.float32):
    """Nested dictionaries with an own value in every place."""
    shapes = getattr(model, "params", None) or jax.eval_shape(model.init_weights, jax.random.key(0))
    random = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: np.asarray(random.normal(size=leaf.shape), dtype), shapes)


def save(model, folder, dtype=np.float32):
    """Saves random weights by the library's own hand; returns them by name, and the file."""
    weights = random_weights(model, dtype)
    model.save_pretrained(folder, params=weights)
    (file,) = folder.glob("*.msgpack")
    return flatten_dict(weights, sep="."), file


def bytes_of(tensors) -> dict[str, tuple]:
    return {name: (str(tensors[name].dtype), tensors[name].shape, tensors[name].tobytes()) for name in tensors}


def exported(source):
    """Every component of a source, there and back, under its names."""
    together = {}
    for imported in recognise(open_tensors(source)).values():
        assert not imported.unknown and not imported.misshapen
        together |= export_tensors(imported.parameters, imported.table, imported.buffers).entries
    return open_tensors(source).holding(together)


@pytest.mark.parametrize("name", MODELS)
def test_library_models_load_and_export_unchanged(name, tmp_path):
    make, load = MODELS[name]
    model = make()
    expected, file = save(model, tmp_path)
    back = exported(tmp_path)
    assert bytes_of(back) == bytes_of(expected)

    config, params = load(tmp_path)
    params = tree.flatten(params)
    assert sorted(leaf.size for leaf in params.values()) == sorted(
        array.size for key, array in expected.items() if belongs(key, name)
    )
    for path, key in SAME[name.split("-")[0]].items():
        np.testing.assert_array_equal(params[path], expected[key].reshape(params[path].shape))

    save_msgpack(tmp_path / "again.msgpack", back)
    restored = flax.serialization.msgpack_restore((tmp_path / "again.msgpack").read_bytes())
    assert bytes_of(flatten_dict(restored, sep=".")) == bytes_of(expected)
    (tmp_path / "again.msgpack").replace(file)
    again = type(model).from_pretrained(tmp_path)
    weights = again[1] if isinstance(again, tuple) else again.params
    assert bytes_of(flatten_dict(jax.tree.map(np.asarray, weights), sep=".")) == bytes_of(expected)


def belongs(key: str, name: str) -> bool:
    """Whether a tensor is the component's: a whole CLIPModel holds two, and a temperature."""
    other = {"text_encoder": ("vision", "visual", "logit_scale"), "image_encoder": ("text", "logit_scale")}
    return not key.startswith(other.get(name.split("-")[0], "?"))


# Where a few layers are here and there: a table whose rows are swapped survives a round trip.
OURS, THEIRS = "mid_block/attention/blocks_0", "mid_block.attentions_0.transformer_blocks_0"
SAME = {
    "unet": {
        "conv_in/kernel": "conv_in.kernel",
        "mid_block/attention/proj_in/kernel": "mid_block.attentions_0.proj_in.kernel",
        f"{OURS}/attn2/to_out/bias": f"{THEIRS}.attn2.to_out_0.bias",
        f"{OURS}/ff/proj_in/kernel": f"{THEIRS}.ff.net_0.proj.kernel",
        f"{OURS}/ff/proj_out/kernel": f"{THEIRS}.ff.net_2.kernel",
        "mid_block/resnet_1/norm2/scale": "mid_block.resnets_1.norm2.scale",
        "up_blocks_1/layers_1/resnet/conv_shortcut/kernel": "up_blocks_1.resnets_1.conv_shortcut.kernel",
        "down_blocks_0/downsample/bias": "down_blocks_0.downsamplers_0.conv.bias",
        "time_embedding/linear_2/kernel": "time_embedding.linear_2.kernel",
    },
    "vae": {
        "encoder/mid_block/attention/to_q/kernel": "encoder.mid_block.attentions_0.query.kernel",
        "decoder/mid_block/attention/to_out/kernel": "decoder.mid_block.attentions_0.proj_attn.kernel",
        "decoder/up_blocks_0/upsample/kernel": "decoder.up_blocks_0.upsamplers_0.conv.kernel",
        "post_quant_conv/kernel": "post_quant_conv.kernel",
    },
    "controlnet": {
        "controlnet_cond_embedding/blocks_3/kernel": "controlnet_cond_embedding.blocks_3.kernel",
        "controlnet_down_blocks_2/kernel": "controlnet_down_blocks_2.kernel",
        "controlnet_mid_block/bias": "controlnet_mid_block.bias",
        "down_blocks_0/layers_0/attention/norm/scale": "down_blocks_0.attentions_0.norm.scale",
    },
    "text_encoder": {
        "layers_1/self_attn/q_proj/kernel": "text_model.encoder.layers.1.self_attn.q_proj.kernel",
        "token_embedding/embedding": "text_model.embeddings.token_embedding.embedding",
        "final_layer_norm/scale": "text_model.final_layer_norm.scale",
    },
    "image_encoder": {
        "class_embedding": "vision_model.embeddings.class_embedding",
        "patch_embedding/kernel": "vision_model.embeddings.patch_embedding.kernel",
        "pre_layernorm/bias": "vision_model.pre_layrnorm.bias",
    },
}


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float16])
def test_half_precision(dtype, tmp_path):
    expected, _ = save(transformers.FlaxCLIPTextModel(TEXT), tmp_path, dtype)
    assert bytes_of(exported(tmp_path)) == bytes_of(expected)


def test_shards(tmp_path):
    """As transformers cuts large models."""
    model = transformers.FlaxCLIPTextModel(TEXT)
    weights = random_weights(model)
    model.save_pretrained(tmp_path, params=weights, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.msgpack"))) > 1
    assert bytes_of(exported(tmp_path)) == bytes_of(flatten_dict(weights, sep="."))


def test_found_last_and_named(tmp_path):
    """Beside PyTorch's weights the Flax ones are not looked at; a file is known by what it starts with."""
    save(transformers.FlaxCLIPTextModel(TEXT), tmp_path / "text_encoder")
    assert len(open_tensors(tmp_path, "text_encoder")) == 36
    torch_model = transformers.CLIPTextModel(TEXT)
    torch_model.save_pretrained(tmp_path / "text_encoder")
    assert open_tensors(tmp_path, "text_encoder").keys() == torch_model.state_dict().keys()
    (file,) = (tmp_path / "text_encoder").glob("*.msgpack")
    renamed = file.rename(tmp_path / "weights")
    assert len(open_tensors(renamed)) == 36


TREE = {
    "params": {
        "a": {"kernel": np.arange(24, dtype=np.float32).reshape(2, 3, 4), "bias": np.float16([1, 2, 3])},
        "b" * 40: {"scale": np.arange(300, dtype=np.int64), "empty": np.zeros((0, 3), np.float32)},
        "half": jnp.arange(70_000, dtype=jnp.bfloat16).reshape(7, -1),
        "step": np.array(7, np.int32),
        **{f"layer_{i}": {"w": np.full(i, i, np.uint8)} for i in range(20)},
    }
}


@pytest.mark.parametrize("chunk", [2**30, 100])
def test_files_equal_flax_s_own(chunk, tmp_path, monkeypatch):
    """Byte for byte, arrays of over a gigabyte (here: over 100 bytes) in chunks."""
    monkeypatch.setattr(flax.serialization, "MAX_CHUNK_SIZE", chunk)
    monkeypatch.setattr(msgpack, "MAX_CHUNK", chunk)
    written = flax.serialization.to_bytes(TREE)
    assert (b"__msgpack_chunked_array__" in written) == (chunk == 100)
    (tmp_path / "flax.msgpack").write_bytes(written)
    tensors = open_tensors(tmp_path / "flax.msgpack")
    assert tensors.prefix == "params."
    assert bytes_of(tensors) == bytes_of({k: np.asarray(v) for k, v in flatten_dict(TREE["params"], sep=".").items()})
    save_msgpack(tmp_path / "ours.msgpack", tensors)
    assert (tmp_path / "ours.msgpack").read_bytes() == written


def test_what_is_no_array_is_passed_over(tmp_path):
    """A training state: counts and settings beside the weights, Python's and NumPy's own scalars."""
    state = {"step": 70_000, "rate": 1e-4, "name": "x" * 300, "none": None, "minus": -7, "raw": b"12", "on": True}
    state |= {"scalar": np.float32(3), "w": np.ones((2, 2))}
    (tmp_path / "state.msgpack").write_bytes(flax.serialization.msgpack_serialize(state))
    tensors = open_msgpack(tmp_path / "state.msgpack")
    assert bytes_of(tensors) == bytes_of({name: np.asarray(state[name]) for name in ("scalar", "w")})


def test_nothing_is_read_before_it_is_asked_for(tmp_path, monkeypatch):
    (tmp_path / "a.msgpack").write_bytes(flax.serialization.to_bytes({"w": np.zeros(1_000_000), "v": np.ones(3)}))
    taken = []
    take = msgpack._Walk.take
    monkeypatch.setattr(msgpack._Walk, "take", lambda self, count: taken.append(count) or take(self, count))
    tensors = open_tensors(tmp_path / "a.msgpack")
    assert sum(taken) < 100
    np.testing.assert_array_equal(tensors["v"], np.ones(3))


# Damage and malice: built by hand, since no library writes it.


def text(value: str) -> bytes:
    return bytes([0xA0 + len(value)]) + value.encode()


def array(shape: bytes = b"\x91\x02", dtype: str = "float32", data: bytes = b"\xc4\x08" + b"\0" * 8, kind=1) -> bytes:
    payload = b"\x93" + shape + text(dtype) + data
    return b"\xc7" + bytes([len(payload), kind]) + payload


HUGE = b"\xce\xff\xff\xff\xff"
CHUNKS = text("__msgpack_chunked_array__") + b"\xc3" + text("shape") + b"\x81" + text("0")
HOSTILE = {
    "longer than the file": b"\xc9\xff\xff\xff\xff\x01\x93",
    "huge shape": array(shape=b"\x92" + HUGE * 2),
    "huge empty shape": array(shape=b"\x92\xcf" + b"\xff" * 8 + b"\x00", data=b"\xc4\x00"),
    "huge rank": array(shape=b"\xdd\xff\xff\xff\xff\x02"),
    "rank 40": array(shape=b"\xdc\x00\x28" + b"\x01" * 39 + b"\x02"),
    "huge data": array(data=b"\xc6\xff\xff\xff\xff"),
    "less data than its shape": array(data=b"\xc4\x04" + b"\0" * 4),
    "more in its extension": array(data=b"\xc4\x08" + b"\0" * 9),
    "object dtype": array(dtype="object"),
    "complex dtype": array(dtype="complex64"),
    "negative shape": array(shape=b"\x91\xff"),
    "shape that is text": array(shape=b"\x91\xa1x"),
    "complex scalar": array(kind=2),
    "unknown extension": array(kind=77),
    "list": b"\x92\x01\x02",
    "text that goes on": b"\xdb\xff\xff\xff\xff",
    "huge in many small sizes": b"\xc9\x10\x00\x00\x13\x01\x93\x97" + b"\x10" * 7 + text("uint8") + b"\xc6\x10\0\0\0",
    "map that goes on": b"\xdf\xff\xff\xff\xff",
    "byte that means nothing": b"\xc1",
    "deep nesting": b"\x81\xa0" * 100_000,
    "long names": (b"\x81\xd9\xff" + b"x" * 255) * 5 + array(),
    "too many values": b"\xde\xff\xff" + b"".join(text(f"{i:x}") + b"\x81\xa1y\xc0" for i in range(65_535)),
    "key that is no text": b"\x81\x01" + array(),
    "key that is no UTF-8": b"\x81\xa1\xff" + array(),
    "chunks that are missing": b"\x83" + CHUNKS + b"\x02" + text("chunks") + b"\x80",
    "chunks of another size": b"\x83" + CHUNKS + b"\x03" + text("chunks") + b"\x81" + text("0") + array(),
    "huge chunked shape": b"\x83" + CHUNKS + HUGE + text("chunks") + b"\x81" + text("0") + array(),
    "no shape of chunks": b"\x81" + text("__msgpack_chunked_array__") + b"\xc3",
    "chunks of two dtypes": b"\x83"
    + CHUNKS
    + b"\x04"
    + text("chunks")
    + b"\x82"
    + text("0")
    + array()
    + text("1")
    + array(dtype="int32"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_files_are_refused(what, tmp_path):
    """Each names the file and the place; none takes memory or time for what it claims."""
    file = tmp_path / "weights.msgpack"
    file.write_bytes(b"\x81" + text("layer") + HOSTILE[what])
    with pytest.raises(InputError, match=r"weights\.msgpack is (cut short or )?damaged: 'layer"):
        open_tensors(file)


def test_same_name_twice(tmp_path):
    file = tmp_path / "weights.msgpack"
    for content in (
        b"\x82" + (text("w") + array()) * 2,
        b"\x82" + text("a.w") + array() + text("a") + b"\x81" + text("w") + array(),
    ):
        file.write_bytes(content)
        with pytest.raises(InputError, match=r"weights\.msgpack.*(twice|same name)"):
            open_tensors(file)


def test_files_cut_short_or_long_anywhere_are_refused(tmp_path):
    file = tmp_path / "weights.msgpack"
    whole = flax.serialization.to_bytes(
        {"a": {"w": np.ones(2, np.float32)}, "b": np.ones((2, 2), np.float16), "n": 300}
    )
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        with pytest.raises(InputError, match=rf"weights\.msgpack.*{'ends after 50' if length == 50 else ''}"):
            open_tensors(file)
    file.write_bytes(whole + b"\0")
    with pytest.raises(InputError, match=r"weights\.msgpack.*1 bytes follow"):
        open_tensors(file)
    file.write_bytes(flax.serialization.msgpack_serialize({"step": 3}))
    with pytest.raises(InputError, match=r"weights\.msgpack holds no arrays, only \['step'\]"):
        open_tensors(file)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_any_changed_byte_is_refused_or_read(tmp_path):
    """Whatever the byte, never anything but the tensors or an error of ours."""
    file = tmp_path / "weights.msgpack"
    whole = flax.serialization.to_bytes({"a": {"w": np.ones(2, np.float32)}, "b": np.ones((1, 2), np.float16)})
    refused = 0
    for place in range(len(whole)):
        for value in (0x00, 0x7F, 0x80, 0x9F, 0xC1, 0xC9, 0xDD, 0xDF, 0xFF):
            file.write_bytes(whole[:place] + bytes([value]) + whole[place + 1 :])
            try:
                {name: array.sum() for name, array in open_tensors(file).items()}
            except InputError as error:
                assert str(file) in str(error)
                refused += 1
    assert refused > len(whole)


def test_nothing_is_left_of_a_file_that_cannot_be_written(tmp_path):
    (tmp_path / "a.msgpack").write_bytes(flax.serialization.to_bytes({"w": np.ones(9), "v": np.ones(9)}))
    tensors = open_tensors(tmp_path / "a.msgpack")
    (tmp_path / "a.msgpack").write_bytes((tmp_path / "a.msgpack").read_bytes()[:-1])  # cut while it is open
    with pytest.raises(InputError, match="a.msgpack was cut short while 'v' was read"):
        save_msgpack(tmp_path / "b.msgpack", tensors)
    assert [it.name for it in tmp_path.iterdir()] == ["a.msgpack"]
    with pytest.raises(InputError, match="Cannot write"):
        save_msgpack(tmp_path / "nowhere" / "b.msgpack", tensors)
