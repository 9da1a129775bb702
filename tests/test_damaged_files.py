"""2,000 damaged files of every format through the commands: a clear error or a sound output, and never anything else.

Each example is a sound file with one damage. What comes of it must be an InputError that names the file (for a damaged
tensor, the tensor too), with nothing written; or, where the damage is harmless, an output that `verify` calls equal.
"""

import builtins
import contextlib
import dataclasses
import io
import json
import os
import pickle
import re
import resource
import shutil
import signal
import struct
import warnings
import zipfile
from collections import Counter
from pathlib import Path
from random import Random

import diffusers
import ml_dtypes
import numpy as np
import pytest
import torch
import transformers

from convert.__main__ import main
from i2v_jax.errors import InputError
from i2v_jax.weights.formats.flax import FLAX_TABLES
from i2v_jax.weights.storage.msgpack import save_msgpack
from i2v_jax.weights.storage.open import open_tensors
from i2v_jax.weights.storage.safetensors import save_tensors
from i2v_jax.weights.tensors import Tensors
from i2v_jax.weights.translate import export_tensors, recognise
from tests import test_formats_original as original
from tests import tiny
from tests.test_ip_adapter import PROJECTIONS
from tests.torch_models import randomise

FILES = 1000
FIRST = int(os.environ.get("I2V_FIRST_DAMAGE", 0))  # other files than those of the suite: 1000, 2000, ...
SECONDS = 20  # for one file
MEGABYTES = 500  # that all of them may add to this process

WIDTHS = dict(block_out_channels=(8, 8), norm_num_groups=4)
UNET = tiny.UNET | WIDTHS | dict(cross_attention_dim=8)
CLIP = dict(hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, projection_dim=4)


# Sound files, a folder each.


def unet():
    return randomise(diffusers.UNet2DConditionModel(**UNET))


def vae():
    return randomise(diffusers.AutoencoderKL(**WIDTHS, **tiny.autoencoder_levels(2)))


def text():
    config = transformers.CLIPTextConfig(vocab_size=20, max_position_embeddings=9, eos_token_id=2, **CLIP)
    return randomise(transformers.CLIPTextModel(config))


def vision():
    config = transformers.CLIPVisionConfig(image_size=28, patch_size=14, **CLIP)
    return randomise(transformers.CLIPVisionModelWithProjection(config))


def motion():
    return randomise(diffusers.MotionAdapter(**tiny.motion((8, 8), groups=4, heads=2, positions=5)))


def arrays_of(state):
    return {name: np.ascontiguousarray(tensor.detach().numpy()) for name, tensor in state.items()}


def single_file():
    clip = original.original_clip(text(), original.CLIP_PREFIX["SD1.5"])
    return arrays_of(original.original_unet(unet()) | original.original_vae(vae()) | clip)


def first_frame_adapter():
    """The published file that adds a branch to every self-attention."""
    generator, state = np.random.default_rng(0), {}
    for name in unet().state_dict():
        if name.endswith("attn1.to_q.weight"):
            layer = name.removesuffix("to_q.weight")
            for leaf, shape in {"to_q_ff.weight": (8, 8), "to_out_ff.weight": (8, 8), "to_out_ff.bias": (8,)}.items():
                state[layer + leaf] = generator.normal(size=shape).astype(np.float32)
    return state


def ip_adapter():
    generator = torch.Generator().manual_seed(0)
    normal = lambda *shape: torch.randn(*shape, generator=generator) / 4  # noqa: E731
    attention = {f"{n}.to_{it}_ip.weight": normal(8, 24) for n in range(1, 32, 2) for it in "kv"}
    projection = PROJECTIONS["base"](normal)
    return {"image_proj": projection, "ip_adapter": attention}


def kohya():
    generator, state = np.random.default_rng(0), {}
    for layer, (inside, out) in {
        "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q": (8, 8),
        "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_v": (8, 8),
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_ff_net_2": (32, 8),
        "lora_te_text_model_encoder_layers_0_mlp_fc1": (8, 16),
    }.items():
        state[f"{layer}.lora_down.weight"] = generator.normal(size=(4, inside)).astype(np.float32)
        state[f"{layer}.lora_up.weight"] = generator.normal(size=(out, 4)).astype(np.float32)
        state[f"{layer}.alpha"] = np.float32(3)
    return state


def to_flax(folder, component):
    held = recognise(open_tensors(folder))[component]
    return export_tensors(held.parameters, FLAX_TABLES[component][0], held.buffers)


def flat(nested):
    return {f"{part}.{name}": tensor for part, tensors in nested.items() for name, tensor in tensors.items()}


def write_sound(place):
    """Writes every sound source below a folder, each within a folder of its own; returns name -> the source."""
    where = {}

    def folder(name):
        where[name] = place / name / "model"
        where[name].mkdir(parents=True)
        return where[name]

    def file(name, suffix):
        where[name] = place / name / f"model{suffix}"
        where[name].parent.mkdir(parents=True)
        return where[name]

    unet().save_pretrained(folder("unet"))
    unet().save_pretrained(folder("sharded"), max_shard_size="60KB")
    vae().save_pretrained(folder("vae"))
    vae().save_pretrained(folder("vae-bin"), safe_serialization=False)
    text().save_pretrained(folder("text"))
    vision().save_pretrained(folder("vision"))
    motion().save_pretrained(folder("motion"))
    text().save_pretrained(folder("pipeline") / "text_encoder")
    vae().save_pretrained(where["pipeline"] / "vae")

    save(file("sd", ".safetensors"), single_file())
    save(file("sd-pickle", ".ckpt"), single_file(), "state_dict")
    save(file("animatediff", ".ckpt"), {f"module.{name}": it for name, it in arrays_of(motion().state_dict()).items()})
    save(file("adapter", ".safetensors"), first_frame_adapter())
    save(file("ip", ".safetensors"), arrays_of(flat(ip_adapter())))
    torch.save(ip_adapter(), file("ip-pickle", ".bin"))
    save(file("lora", ".safetensors"), kohya())
    save(file("lora-pickle", ".pt"), kohya())
    for name, component in (("text", "text_encoder"), ("vae", "vae")):
        flax = folder(f"{name}-flax")
        shutil.copy(where[name] / "config.json", flax)
        save_msgpack(flax / "flax_model.msgpack", to_flax(where[name], component))
    (place / "own-orbax").mkdir()
    where["own-orbax"] = place / "own-orbax" / "model"
    assert run("import", where["text"], where["own-orbax"]) == 0
    for name, source in (("own", "text"), ("own-motion", "motion"), ("own-ip", "ip"), ("own-lora", "lora")):
        assert run("import", where[source], file(name, ".safetensors")) == 0
    return where


# Containers: what holds tensors, apart and together again.


def save(path, tensors, nesting=None):
    """Writes arrays in the container that the suffix names, a pickle below one name if wanted."""
    path = Path(path)
    if path.suffix == ".safetensors":
        metadata = open_tensors(path).metadata if path.exists() else {}
        save_tensors(path, Tensors.of(tensors), metadata)
    elif path.suffix == ".msgpack":
        save_msgpack(path, Tensors.of(tensors))
    else:
        state = {name: torch_of(array) for name, array in tensors.items()}
        torch.save({nesting: state} if nesting else state, path)


def torch_of(array):
    flat = torch.from_numpy(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
    return flat.view(getattr(torch, array.dtype.name)).reshape(array.shape)


def header_of(path):
    data = path.read_bytes()
    end = 8 + struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8:end]), data[end:]


def write_header(path, header, data):
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)


# Damages. Each takes a file and a generator, and returns the names of the tensors that an error should tell, if any.


def cut(path, random):
    data = path.read_bytes()
    path.write_bytes(data[: random.randrange(0, len(data))])


def _flip(path, random, begin, end):
    data = bytearray(path.read_bytes())
    for _ in range(random.randrange(1, 4)):
        data[random.randrange(max(0, begin), min(end, len(data)))] ^= 1 << random.randrange(0, 8)
    path.write_bytes(data)


def flip_anywhere(path, random):
    _flip(path, random, 0, 10**9)


def flip_at_the_start(path, random):
    _flip(path, random, 0, random.choice([16, 300, 3000]))


def flip_at_the_end(path, random):
    _flip(path, random, path.stat().st_size - random.choice([30, 300, 3000]), 10**9)


def overwrite(path, random):
    data = bytearray(path.read_bytes())
    begin, length = random.randrange(0, len(data)), random.randrange(1, 200)
    data[begin : begin + length] = random.choice([bytes(length), b"\xff" * length, random.randbytes(length)])
    path.write_bytes(data)


def insert(path, random):
    data = path.read_bytes()
    at = random.randrange(0, len(data) + 1)
    path.write_bytes(data[:at] + random.randbytes(random.randrange(1, 100)) + data[at:])


def take_out(path, random):
    data = path.read_bytes()
    at = random.randrange(0, len(data))
    path.write_bytes(data[:at] + data[at + random.randrange(1, 100) :])


def replace_all(path, random):
    contents = [b"", b"{}", b"\0" * 100, b"\x80", b"PK\x03\x04", b"<!DOCTYPE html><html></html>", random.randbytes(500)]
    path.write_bytes(random.choice(contents))


BYTES = (cut, flip_anywhere, flip_at_the_start, overwrite, insert, take_out, replace_all)

# In the header of safetensors.

HUGE = [2**40, 2**63, 10**30, -1, 1.5, "8", None, True, [8], {}]


def header_length(path, random):
    data = bytearray(path.read_bytes())
    length = struct.unpack("<Q", data[:8])[0]
    wrong = [0, 1, length - 1, length + 1, length + 8, len(data), 10**8, 2**40, 2**63, 2**64 - 1]
    data[:8] = struct.pack("<Q", random.choice(wrong))
    path.write_bytes(data)


def _change_tensor(path, random, change):
    header, data = header_of(path)
    name = random.choice(sorted(header.keys() - {"__metadata__"}))
    change(header, name, header[name])
    write_header(path, header, data)
    return [name]


def declared_dtype(path, random):
    wrong = ["F16", "F64", "BF16", "I32", "U8", "BOOL", "F8_E4M3", "F31", "float32", "", None, 3, ["F32"], {}]
    value = random.choice(wrong)
    return _change_tensor(path, random, lambda header, name, fields: fields.update(dtype=value))


def declared_shape(path, random):
    def change(header, name, fields):
        shape = fields["shape"]
        wrong = [[it] for it in HUGE] + [[*shape, it] for it in HUGE] + [[0, 2**40], shape + [1] * 40, "88", None, {}]
        wrong += [shape[::-1] + [2], [*shape, 0], [it * 2 for it in shape] or [2]]
        fields["shape"] = random.choice(wrong)

    return _change_tensor(path, random, change)


def declared_offsets(path, random):
    def change(header, name, fields):
        begin, end = fields["data_offsets"]
        shift = int(random.randrange(1, 64)) * 4
        wrong = [[begin + shift, end + shift], [begin - shift, end - shift], [end, begin], [begin, end + shift]]
        wrong += [[2**40, 2**40 + end - begin], [-8, -8 + end - begin], [begin], [begin, end, end], None, "0", 8]
        wrong += [[float(begin), float(end)], [begin, None], [begin, 2**64], [True, end]]
        fields["data_offsets"] = random.choice(wrong)
        header[name] = fields

    header, _ = header_of(path)
    _change_tensor(path, random, change)  # the error may as well name the tensor that it overlaps
    return sorted(header.keys() - {"__metadata__"})


def declared_otherwise(path, random):
    values = [None, 3, "F32", [], {}, {"dtype": "F32"}, {"shape": [1]}, [["F32", [1], [0, 4]]]]
    value = random.choice(values)
    return _change_tensor(path, random, lambda header, name, fields: header.update({name: value}))


def metadata(path, random):
    header, data = header_of(path)
    own = header.get("__metadata__") or {"format": "pt"}
    key = random.choice(sorted(own))
    bombs = ["[" * 5000, "{}", "[]", "null", "9" * 5000, '{"unet": 3, "text_encoder": 3}', "\ud800", "99", "i2v_jax"]
    values = [3, None, [], {}, {"a": 1}, *bombs]
    choices = [None, [], 3, "x", *(own | {key: value} for value in values)]
    header["__metadata__"] = random.choice(choices)
    write_header(path, header, data)


def json_bomb(path, random):
    header, data = header_of(path)
    text = json.dumps(header).encode()
    name = json.dumps(random.choice(sorted(header.keys() - {"__metadata__"}))).encode()
    bombs = [
        b'{"a":' * 20_000,
        b"[" * 20_000,
        b'{"a":' + b"[" * 20_000 + b"]" * 20_000 + b"}",
        text.replace(b"[0", b"[" + b"9" * 5000, 1),
        text[:-1] + b"," + name + b":" + b'{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        text.replace(b'"F32"', b'"\xff\xfe"', 1),
        text.replace(b'"F32"', b"NaN", 1),
        text + b"x",
        text + b"  ",
        b"[" + text + b"]",
        json.dumps({"\ud800" + key: value for key, value in header.items()}).encode(),
        json.dumps({"x" * 100_000: next(iter(header.values()))}).encode(),
    ]
    write_header(path, random.choice(bombs), data)


HEADER = (header_length, declared_dtype, declared_shape, declared_offsets, declared_otherwise, metadata, json_bomb)

# Of a tensor.


NO_PARAMETERS = ("position_ids", ".pe", "/positions", ".alpha", "/alpha")


def _change_arrays(path, random, change):
    opened = open_tensors(path)
    arrays = {opened.prefix + name: opened[name] for name in opened}
    name = random.choice(sorted(it for it in arrays if not it.endswith(NO_PARAMETERS)))
    changed = change(arrays, name)
    nested = path.suffix == ".ckpt" and "module." not in name
    save(path, arrays, "state_dict" if nested else None)
    return [it.removeprefix(opened.prefix) for it in (name, *(changed or ()))]


def tensor_renamed(path, random):
    def change(arrays, name):
        place = int(random.randrange(len(name)))
        new = random.choice(
            [name[:place] + "x" + name[place:], name[:place] + name[place + 1 :], name + ".", name.replace("0", "7", 1)]
        )
        arrays[new] = arrays.pop(name)
        return [new]

    return _change_arrays(path, random, change)


def tensor_missing(path, random):
    def change(arrays, name):
        del arrays[name]

    return _change_arrays(path, random, change)


def tensor_added(path, random):
    def change(arrays, name):
        arrays[f"{name}_twin"] = arrays[name]
        return [f"{name}_twin"]

    return _change_arrays(path, random, change)


def tensors_swapped(path, random):
    def change(arrays, name):
        other = random.choice(sorted(arrays))
        arrays[name], arrays[other] = arrays[other], arrays[name]
        return [other]

    return _change_arrays(path, random, change)


def tensor_of_another_shape(path, random):
    def change(arrays, name):
        array = arrays[name]
        shapes = [array.T, array[None], array.reshape(-1), array[..., None], array[..., :0], array[:0]]
        shapes += [np.concatenate([array, array]), array[..., :-1]]
        arrays[name] = random.choice(shapes)
        other = {"k": "v", "v": "k"}
        return [re.sub(r"(?<=\.to_)[kv](?=_ip)", lambda it: other[it[0]], name)]  # of two that differ, either is wrong

    def of_a_number(arrays, name):
        arrays[name] = np.zeros((2, 3), np.float32)

    return _change_arrays(
        path, random, lambda arrays, name: (change if arrays[name].ndim else of_a_number)(arrays, name)
    )


def tensor_of_another_dtype(path, random):
    dtype = np.dtype(random.choice([np.float16, np.float64, ml_dtypes.bfloat16]))
    return _change_arrays(path, random, lambda arrays, name: arrays.update({name: arrays[name].astype(dtype)}))


def tensor_of_integers(path, random):
    dtype = np.dtype(random.choice([np.int32, np.uint8, np.bool_, np.int64]))
    return _change_arrays(path, random, lambda arrays, name: arrays.update({name: arrays[name].astype(dtype)}))


def tensor_not_finite(path, random):
    def change(arrays, name):
        array = np.array(arrays[name])
        array.reshape(-1)[random.randrange(max(array.size, 1))] = random.choice([np.nan, np.inf, -np.inf])
        arrays[name] = array

    return _change_arrays(path, random, change)


TENSORS = (
    tensor_renamed,
    tensor_missing,
    tensor_added,
    tensors_swapped,
    tensor_of_another_shape,
    tensor_of_another_dtype,
    tensor_of_integers,
    tensor_not_finite,
)
# Of config.json and the index of shards.


def config_value(path, random):
    config = json.loads(path.read_text())
    keys = [key for key, value in config.items() if isinstance(value, int | float | list) and key[0] != "_"]
    key = random.choice(sorted(keys))
    values = [0, -1, 3, 7, 2**20, 2**40, 10**30, 1.5, "8", None, True, [], [0, 0], [8] * 30, [[8], [8]], ["x"], {}]
    values += [[2**40] * 2, float("nan"), [8], [8, "8"], [None, None], {"a": [8]}, "x" * 10_000]
    config[key] = random.choice(values)
    path.write_text(json.dumps(config))


def config_otherwise(path, random):
    text = path.read_text()
    texts = ["{}", "[]", "null", "3", "", "{", "[" * 50_000, '{"a":' * 50_000, "9" * 5000, '{"a": NaN}', '"\\ud800"']
    texts += [text.replace("8", "9" * 5000), text.replace("8", "8e400"), text[: len(text) // 2], text + text]
    path.write_text(random.choice(texts))


def config_bytes(path, random):
    path.write_bytes(random.choice([b"\xff\xfe", b"\x80abc", b"\0" * 50]) + path.read_bytes())


def index_lies(path, random):
    index = json.loads(path.read_text())
    places = index["weight_map"]
    name = random.choice(sorted(places))
    other = random.choice(sorted(set(places.values()) - {places[name]}))
    values = [other, "../secret.safetensors", "/etc/passwd", "missing.safetensors", "", ".", "..", path.name]
    values += ["config.json", None, 3, [], {}, "\0", "x" * 5000]
    choices = [{name: value} for value in values] + [{"stranger.weight": other}, {"": other}]
    indices = [index | {"weight_map": places | it} for it in choices]
    indices += [{"weight_map": it} for it in ({}, [], None, "x", {name: places[name]})] + [{}, []]
    indices += [index | {"weight_map": {key: it for key, it in places.items() if key != name}}]
    path.write_text(json.dumps(random.choice(indices)))


# Of a pickle's program: each an object or raw instructions, in place of the archive's data.pkl.


class Call:
    """Pickles as a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class Storage:
    """Pickles as a storage in the archive."""

    def __init__(self, *described):
        self.described = described


def pickled(value):
    class Pickler(pickle.Pickler):
        def persistent_id(self, it):
            return it.described if isinstance(it, Storage) else None

    stream = io.BytesIO()
    Pickler(stream, 2).dump(value)
    return stream.getvalue()


def malicious_values(ran):
    """What runs something, where a pickle may: each would make the file `ran`."""
    code = f"open({str(ran)!r}, 'w')"
    state = torch.nn.Linear(1, 1)
    state.__dict__["hook"] = Call(exec, code)
    return [
        Call(os.system, f"touch {ran}"),
        Call(eval, code),
        Call(exec, code),
        Call(open, str(ran), "w"),
        Call(os.mkdir, str(ran)),
        Call(getattr, Call(__import__, "os"), "system"),
        Call(builtins.map, Call(getattr, Call(__import__, "os"), "mkdir"), [str(ran)]),
        Call(torch.load, str(ran)),
        Call(torch.hub.load, str(ran.parent), "model"),
        Call(torch._utils._rebuild_parameter, Call(exec, code), False, {}),
        Call(np.load, str(ran), None, True),
        state,
    ]


def malicious_programs(ran):
    touch = f"touch {ran}".encode()
    return [
        b"cos\nsystem\n(S'" + touch + b"'\ntR.",
        b"cposix\nsystem\n(S'" + touch + b"'\ntR.",
        b"(S'" + touch + b"'\nios\nsystem\n.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c" + bytes([len(touch)]) + touch + b"\x85R.",
        b"c__builtin__\neval\n(S'open(\"" + str(ran).encode() + b'", "w")\'\ntR.',
        b"ctorch.serialization\nos.system\n(S'" + touch + b"'\ntR.",
        b"ctorch\nload\n(S'" + str(ran).encode() + b"'\ntR.",
    ]


def strange_tensors():
    """Tensors that are not what their storage holds."""
    rebuild, plain = torch._utils._rebuild_tensor_v2, ("storage", torch.FloatStorage, "0", "cpu", 4)
    layouts = [
        (0, (2**40,), (1,)),
        (0, (2**40,), (0,)),
        (0, (2**20, 2**20, 2**20), (0, 0, 0)),
        (0, (2**62, 4), (1, 1)),
        (0, (2**40, 0), (1, 1)),
        (0, (-4,), (1,)),
        (0, (4,), (-1,)),
        (0, (4,), (2**40,)),
        (2**40, (4,), (1,)),
        (-1, (4,), (1,)),
        (3, (4,), (1,)),
        (0, (4,), (1, 1)),
        (0, (1,) * 100, (1,) * 100),
        (0, ("4",), (1,)),
        (0, None, None),
    ]
    storages = [
        ("storage", torch.FloatStorage, "0", "cpu", 2**40),
        ("storage", torch.FloatStorage, "0", "cpu", -4),
        ("storage", torch.FloatStorage, "0", "cuda:0", 4),
        ("storage", torch.FloatStorage, "0", "meta", 4),
        ("storage", torch.FloatStorage, "../data.pkl", "cpu", 4),
        ("storage", torch.FloatStorage, "missing", "cpu", 4),
        ("storage", torch.FloatStorage, None, "cpu", 4),
        ("storage", torch.ComplexFloatStorage, "0", "cpu", 2),
        ("storage", "FloatStorage", "0", "cpu", 4),
        ("module", torch.nn.Linear, "source.py", "import os"),
        ("storage",),
        (),
    ]
    return [Call(rebuild, Storage(*plain), *it, False, {}) for it in layouts] + [
        Call(rebuild, Storage(*it), 0, (4,), (1,), False, {}) for it in storages
    ]


def strange_states():
    """Dictionaries that are no state of a model."""
    cyclic, list_of_itself, shared = {}, [], {"a": {}}
    cyclic["again"] = cyclic
    list_of_itself.append(list_of_itself)
    deep = {}
    for _ in range(300):
        deep = {"a": deep}
    wide = {}
    for _ in range(50):
        wide = {"a": wide, "b": wide}  # 2**50 ways through
    return [
        cyclic,
        {"state_dict": cyclic},
        {"state_dict": list_of_itself, "x": list_of_itself},
        {"x": shared, "y": shared},
        deep,
        wide,
        {3: {None: {(1, 2): 4}}},
        {b"bytes": 3, 4.5: None},
        list_of_itself,
        {"state_dict": {}},
        {"state_dict": None},
        {},
        [],
        None,
        "text",
        {"x" * 100_000: {"y" * 100_000: {}}},
        {"\ud800": {}},
    ]


BOMBS = [
    b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
    b"\x80\x02" + b"}" * 100_000 + b".",
    b"\x80\x02X\xff\xff\xff\x7fx.",  # a text of 2 GB
    b"\x80\x04\x8e" + b"\xff" * 8 + b".",  # bytes beyond any memory
    b"\x80\x02r\xff\xff\xff\x7f.",  # a far place in the memo
    b"\x80\x02j\xff\xff\xff\x7f.",
    b"\x80\x02I" + b"9" * 10_000 + b"\n.",
    b"\x80\x02\x8b\xff\xff\xff\x7f\x01.",  # an integer of 2 GB
    b"\x80\xff.",
    b"\x80\x02.",
    b"\x80\x02(((((.",
    b"",
]


def rewrite_archive(path, program):
    """The same archive with another data.pkl."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, program if name.endswith("data.pkl") else content)


def malicious_pickle(path, random):
    ran = path.parent / "ran"
    programs = [*malicious_programs(ran), *(pickled({"conv_in.weight": it}) for it in malicious_values(ran))]
    program = random.choice(programs)
    if random.random() < 0.3:
        path.write_bytes(program)  # bare, as before PyTorch 1.6
    else:
        rewrite_archive(path, program)


def strange_pickle(path, random):
    tensor = pickled({"conv_in.weight": random.choice(strange_tensors())})
    rewrite_archive(
        path, random.choice([tensor, tensor, pickled(random.choice(strange_states())), random.choice(BOMBS)])
    )


def archive_bomb(path, random):
    kind = random.choice(["deflated", "twice", "names", "comment"])
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        warnings.simplefilter("ignore")  # of a name that stands twice
        for name, content in members.items():
            name = name.replace("archive", "../archive") if kind == "names" else name
            archive.writestr(name, content + bytes(10**6) if kind == "deflated" else content)
            if kind == "twice":
                archive.writestr(name, content[::-1])
        if kind == "comment":
            archive.comment = random.randbytes(500)


PICKLE = (flip_at_the_end, malicious_pickle, malicious_pickle, strange_pickle, strange_pickle, archive_bomb)
NEVER_SOUND = {
    header_length,
    declared_offsets,
    tensor_missing,
    tensor_of_integers,
    tensor_not_finite,
    malicious_pickle,
    strange_pickle,
}

CONFIG = (config_value, config_value, config_value, config_otherwise, config_bytes)


# The property.


def run(*arguments):
    """Runs a command quietly; returns its exit code."""
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        return main([str(argument) for argument in arguments])


@dataclasses.dataclass
class Sound:
    """Sound sources, and which damages each of their files can have."""

    sources: dict
    damages: list

    @classmethod
    def below(cls, place):
        sources, damages = write_sound(place), []
        for name, source in sources.items():
            for file in sorted(it for it in source.parent.rglob("*") if it.is_file()):
                relative = file.relative_to(source.parent)
                kinds = {
                    ".safetensors": (BYTES, HEADER, TENSORS),
                    ".msgpack": (BYTES, BYTES, TENSORS),
                    ".json": (CONFIG,) if "index" not in file.name else ((index_lies,) * 3,),
                }.get(file.suffix, (BYTES, PICKLE, TENSORS))
                if name == "own-orbax":
                    kinds = ((cut, flip_anywhere),)
                damages += [(name, relative, damage) for kind in kinds for damage in kind]
        return cls(sources, damages)


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return Sound.below(tmp_path_factory.mktemp("sound"))


@contextlib.contextmanager
def time_limit(seconds):
    def stop(*_):
        pytest.fail(f"more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def outcome(command, place, source, intact, names=None, may_be_sound=True):
    """Runs a command on a damaged source and checks what comes of it; returns "refused" or "harmless".

    Args:
        command: which.
        place: a folder of this example's own.
        source: the damaged source, within `place`.
        intact: what it was before.
        names: of tensors; an error must tell one of them.
        may_be_sound: whether the damage may be harmless.
    """
    written = place / "written"
    written.mkdir()
    files = {path.name for path in source.parent.rglob("*")}
    output = written / ("model.safetensors" if command == "import" else f"model{source.suffix or '.safetensors'}")
    others = {"inspect": (source,), "diff": (source, intact), "verify": (intact, source)}
    arguments = others.get(command, (source, output))
    try:
        code = run(command, *arguments)
    except InputError as error:
        message = str(error)
        assert any(name in message for name in files), f"names no file: {message}"
        assert not names or any(name in message for name in names), f"names none of {names}: {message}"
        assert not message.startswith("Traceback") and len(message) < 5000
        assert os.listdir(written) == []
        return "refused"
    finally:
        assert not (source.parent / "ran").exists(), "a pickle was run"
    assert code in ((0, 1) if command in ("diff", "verify") else (0,))
    if command in ("import", "export"):
        assert may_be_sound, "was converted"
        assert os.listdir(written) == [output.name]
        assert run("verify", source, output) == 0
    return "harmless"


def test_sound_files_are_sound(sound, tmp_path):
    """Else damages would prove nothing."""
    for name, source in sound.sources.items():
        (tmp_path / name).mkdir()
        assert outcome("import", tmp_path / name, source, source) == "harmless"


def test_damaged_files(sound, tmp_path):
    outcomes, peak = Counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def check(number):
        random = Random(number)
        name, relative, damage = random.choice(sound.damages)
        command = random.choice(["export", "inspect", "diff", "verify", *["import"] * 12])
        place = tmp_path / "example"
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(sound.sources[name].parent, place)
        names = damage(place / relative, random)
        source, may_be_sound = sound.sources[name], damage not in NEVER_SOUND
        try:
            with time_limit(SECONDS):
                outcomes[outcome(command, place, place / source.name, source, names, may_be_sound)] += 1
        except BaseException as error:  # a failed test too
            error.add_note(f"file {number}: {command} of {name}, {relative} damaged by {damage.__name__}")
            raise

    for number in range(FIRST, FIRST + FILES):
        check(number)
    assert sum(outcomes.values()) >= FILES and outcomes["refused"] > FILES / 2, outcomes
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < MEGABYTES * 1000  # kilobytes


# Each of those that must not be left to chance.


@pytest.mark.parametrize("bare", [False, True])
def test_nothing_in_a_pickle_runs(bare, sound, tmp_path):
    intact, ran = sound.sources["lora-pickle"], tmp_path / "ran"
    values = [pickled({"conv_in.weight": value}) for value in malicious_values(ran)]
    for i, program in enumerate([*malicious_programs(ran), *values]):
        place = tmp_path / str(i)
        place.mkdir()
        source = Path(shutil.copy(intact, place))
        if bare:
            source.write_bytes(program)
        else:
            rewrite_archive(source, program)
        assert outcome("import", place, source, intact, may_be_sound=False) == "refused"
        assert not ran.exists(), program


def test_the_programs_would_run(tmp_path):
    """The pickles of the test above do what they threaten where nothing stops them."""
    worked = 0
    for program in malicious_programs(tmp_path / "ran")[:5]:
        pickle.loads(program)
        worked += (tmp_path / "ran").exists()
        (tmp_path / "ran").unlink(missing_ok=True)
    assert worked == 5


def test_every_tensor_that_lies_is_refused(sound, tmp_path):
    programs = [*(pickled({"conv_in.weight": it}) for it in strange_tensors()), *map(pickled, strange_states()), *BOMBS]
    for i, program in enumerate(programs):
        place = tmp_path / str(i)
        place.mkdir()
        source = Path(shutil.copy(sound.sources["lora-pickle"], place))
        rewrite_archive(source, program)
        with time_limit(SECONDS):
            result = outcome("import", place, source, sound.sources["lora-pickle"], may_be_sound=False)
        assert result == "refused", program[:100]


@pytest.mark.parametrize(
    "changes",
    [
        {"block_out_channels": [2**40, 2**40]},
        {"block_out_channels": [8] * 1000},
        {"block_out_channels": [8, 10**30]},
        {"block_out_channels": 8},
        {"block_out_channels": ["8", "8"]},
        {"block_out_channels": [-8, -8]},
        {"layers_per_block": 10**9},
        {"layers_per_block": -1},
        {"layers_per_block": [1, 1]},
        {"transformer_layers_per_block": 10**9},
        {"transformer_layers_per_block": [1, 10**9]},
        {"attention_head_dim": 0},
        {"attention_head_dim": 3},
        {"attention_head_dim": 2**40},
        {"cross_attention_dim": 2**40},
        {"cross_attention_dim": "8"},
        {"in_channels": 2**40},
        {"norm_num_groups": 0},
        {"norm_num_groups": 5},
        {"down_block_types": None},
        {"down_block_types": [3, 4]},
        {"motion_max_seq_length": 2**40},
    ],
)
def test_a_config_that_lies_costs_nothing(changes, sound, tmp_path):
    shutil.copytree(sound.sources["unet"], tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with time_limit(5):
        result = outcome("import", tmp_path, tmp_path / "model", sound.sources["unet"])
    assert result == ("refused" if changes.keys() != {"motion_max_seq_length"} else "harmless")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 100_000  # kilobytes


def test_what_is_no_file(sound, tmp_path):
    (tmp_path / "folder.safetensors").mkdir()
    (tmp_path / "loop.safetensors").symlink_to("loop.safetensors")
    (tmp_path / "nowhere.safetensors").symlink_to("missing")
    os.mkfifo(tmp_path / "pipe.safetensors")
    for name in ("folder", "loop", "nowhere", "pipe", "missing"):
        source = tmp_path / f"{name}.safetensors"
        with time_limit(SECONDS), pytest.raises(InputError, match=source.name):
            run("import", source, tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_that_may_not_be_read(sound, tmp_path):
    source = Path(shutil.copy(sound.sources["lora"], tmp_path))
    source.chmod(0)
    with pytest.raises(InputError, match=source.name):
        run("import", source, tmp_path / "out.safetensors")


@pytest.mark.parametrize("suffix", ["", ".safetensors"])
def test_a_failed_import_leaves_the_output_that_was_there(suffix, sound, tmp_path):
    output = tmp_path / "out" / f"model{suffix}"
    output.parent.mkdir()
    assert run("import", sound.sources["own"], output) == 0
    before = {path: path.read_bytes() for path in output.parent.rglob("*") if path.is_file()}
    source = Path(shutil.copy(sound.sources["own"], tmp_path))
    tensor_not_finite(source, Random(0))
    with pytest.raises(InputError, match="NaN or infinite"):
        run("import", source, output, "--overwrite")
    assert {path: path.read_bytes() for path in output.parent.rglob("*") if path.is_file()} == before
