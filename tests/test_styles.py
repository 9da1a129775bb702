"""Styles at run time: `weights.loras` merged as `convert import --lora` merges them, and how bad input ends."""

import dataclasses
import json
import types
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from ml_collections import ConfigDict
from safetensors import safe_open
from safetensors.numpy import save_file

from convert.__main__ import main as convert
from i2v_jax import commands
from i2v_jax.cli import train
from i2v_jax.devices.mesh import make_mesh
from i2v_jax.diffusion.noise_schedule import NoiseSchedule
from i2v_jax.errors import InputError
from i2v_jax.families import few_steps
from i2v_jax.families.arithmetic import Arithmetic
from i2v_jax.families.checks import check_schedule
from i2v_jax.families.model import Model, assemble, assemble_config
from i2v_jax.families.published import networks
from i2v_jax.families.weights import Weights
from i2v_jax.sampling import record
from i2v_jax.tree import flatten
from i2v_jax.weights.assemble import Assembled
from i2v_jax.weights.checkpoint import open_checkpoint
from i2v_jax.weights.low_rank import load_lora
from i2v_jax.weights.storage.open import open_tensors
from i2v_jax.weights.styles import embeddings_of, style
from i2v_jax.weights.trained_for import TrainedFor, told_by_source
from tests import sdxl_models
from tests.test_lora_kin import METHODS, lora, with_dora
from tests.tiny import SMALL

TEXT = "lora_te_text_model_encoder_layers_0_mlp_fc1"
Q = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
Q_PATH = "mid_block/attention/blocks_0/attn1/to_q/kernel"
CONV = "down_blocks.0.resnets.0.conv1"
MOTION = (
    "down_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0.attention_blocks.0.processor.to_q_lora"
)
ARITHMETIC = Arithmetic(jnp.dtype(jnp.float32), "xla", "xla")


def layers():
    """Weights of a few of the small model's layers, as PyTorch stores them."""
    unet, text = open_tensors(SMALL / "unet"), open_tensors(SMALL / "text_encoder")
    found = {f"lora_unet_{name.replace('.', '_')}": unet[f"{name}.weight"] for name in (Q, CONV)}
    return found | {TEXT: next(text[name] for name in text if name.endswith("layers.0.mlp.fc1.weight"))}


def write_style(path, method, only=("lora_",)):
    random, state = np.random.default_rng(0), {}
    for layer, weight in layers().items():
        if layer.startswith(only):
            for leaf, tensor in method(torch.tensor(weight), random)[0].items():
                state[f"{layer}.{leaf}"] = tensor.numpy()
    save_file(state, path)
    return path


def write_motion_lora(path):
    random = np.random.default_rng(1)
    width = next(
        it.shape[-1] for name, it in open_tensors(SMALL / "motion.safetensors").entries.items() if "to_q" in name
    )
    shapes = {"down": (2, width), "up": (width, 2)}
    state = {f"{MOTION}.{leaf}.weight": random.normal(size=shape).astype(np.float32) for leaf, shape in shapes.items()}
    save_file(state, path)
    return path


def read(found: dict[str, Assembled]):
    return {
        f"{name}/{path}": entry.read()
        for name, part in found.items()
        for path, entry in part.parameters.entries.items()
    }


def assembled(**options):
    return read(assemble(Weights(**dict(base=SMALL, motion=SMALL / "motion.safetensors") | options), ARITHMETIC))


def check_same(one, other):
    for path, array in one.items():
        assert other[path].dtype == array.dtype and np.array_equal(other[path], array), path


# The same as `convert import --lora`, bit for bit.


@pytest.mark.parametrize("method", ["LoRA", "DoRA", "LoHa, tucker", "LoKr, both whole"])
def test_styles_are_merged_as_convert_merges_them(method, tmp_path):
    made = METHODS | {"LoRA": lora, "DoRA": with_dora(lora, True)}
    first = write_style(tmp_path / "a.safetensors", made[method])
    second = write_motion_lora(tmp_path / "b.safetensors")
    merged = tmp_path / "merged.safetensors"
    sources = [str(SMALL), str(SMALL / "motion.safetensors"), str(merged)]
    assert convert(["import", *sources, "--lora", f"{first}=0.8", "--lora", f"{second}=-0.5"]) == 0
    plain, now = assembled(), assembled(loras=(f"{first}=0.8", f"{second}=-0.5"))
    stored = open_tensors(merged)
    check_same(now, {path: np.asarray(stored[path]) for path in now})
    changed = {path for path in plain if not np.array_equal(plain[path], now[path])}
    assert {path.split("/")[0] for path in changed} == {"unet", "text_encoder"}
    assert len(changed) == 4 and any("/motion/" in path for path in changed)


def test_a_half_precision_base_is_rounded_as_convert_rounds_it(tmp_path):
    one = write_style(tmp_path / "a.safetensors", lora)
    half, merged = tmp_path / "half.safetensors", tmp_path / "merged.safetensors"
    assert convert(["import", str(SMALL), str(half), "--dtype", "f16"]) == 0
    assert convert(["import", str(half), str(merged), "--lora", f"{one}=0.8", "--lora", f"{one}=0.3"]) == 0
    with pytest.warns(UserWarning, match="is given 2 times, at scales 0.8, 0.3"):
        now = assembled(base=half, loras=(f"{one}=0.8", f"{one}=0.3"))
    check_same(assembled(base=merged), now)


def test_every_command_comes_to_the_same_model(tmp_path):
    """Sampling, training, planning; a training's own file first, then the styles."""
    one = write_style(tmp_path / "a.safetensors", lora)
    given = Weights(SMALL, motion=SMALL / "motion.safetensors", loras=(f"{one}=0.8",))
    mesh = make_mesh({}, jax.devices()[:1])
    model = Model.load(given, mesh=mesh, attention="xla", convolution="xla")
    now = assembled(loras=(f"{one}=0.8",))
    loaded = {path: np.asarray(array) for path, array in flatten(model.parameters).items()}
    check_same({path: array.astype(np.float32) for path, array in now.items()}, loaded)

    argv = ["train.py", "--config=tests/configs/train.py", f"--config.weights.loras=('{one}=0.8',)"]
    config = commands.read_config(train.DEFAULT, argv)
    config.dtype = "float32"
    of_training = read(assemble_config(config, jax.devices()[0]))
    shared = now.keys() & of_training.keys()
    check_same({path: now[path] for path in shared}, of_training)
    assert f"unet/{Q_PATH}" in shared and not np.array_equal(
        of_training[f"unet/{Q_PATH}"], assembled()[f"unet/{Q_PATH}"]
    )
    planned = networks(dataclasses.replace(given, loras=("nowhere/style.safetensors=0.8",)), ARITHMETIC)
    assert planned["unet"].block_out_channels == model.configs["unet"].block_out_channels


def test_a_model_in_one_file_takes_styles_and_a_vae(tmp_path):
    one = write_style(tmp_path / "a.safetensors", lora)
    base = tmp_path / "community.safetensors"
    assert convert(["export", str(SMALL), str(base), "--to", "sd"]) == 0
    vae = open_tensors(SMALL / "vae")
    save_file({name: 2 * np.asarray(vae[name]) for name in vae}, tmp_path / "vae.safetensors")
    config = {"vae": SMALL / "vae" / "config.json"}
    now = assembled(base=base, vae=tmp_path / "vae.safetensors", configs=config, loras=(f"{one}=0.8",))
    wanted = assembled(loras=(f"{one}=0.8",))
    check_same({path: 2 * array if path.startswith("vae/") else array for path, array in wanted.items()}, now)


def test_sdxl_and_both_its_text_encoders(tmp_path):
    folder, random, state = sdxl_models.folder(), np.random.default_rng(0), {}
    prefixes = {"unet": "lora_unet_", "text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}
    for component, prefix in prefixes.items():
        tensors = open_tensors(folder, component)
        layer = next(name for name in tensors if name.endswith(("attn2.to_k.weight", "layers.0.mlp.fc1.weight")))
        name = prefix + layer.removesuffix(".weight").replace(".", "_")
        for leaf, tensor in METHODS["LoKr"](torch.tensor(tensors[layer]), random)[0].items():
            state[f"{name}.{leaf}"] = tensor.numpy()
    save_file(state, tmp_path / "xl.safetensors")
    merged = tmp_path / "merged.safetensors"
    assert convert(["import", str(folder), str(merged), "--lora", f"{tmp_path / 'xl.safetensors'}=0.7"]) == 0
    plain = read(assemble(Weights(folder), ARITHMETIC))
    now = read(assemble(Weights(folder, loras=(f"{tmp_path / 'xl.safetensors'}=0.7",)), ARITHMETIC))
    stored = open_tensors(merged)
    check_same(now, {path: np.asarray(stored[path]) for path in now})
    changed = [path.split("/")[0] for path in plain if not np.array_equal(plain[path], now[path])]
    assert sorted(changed) == sorted(prefixes)


# From the command line to records.


def test_flags_name_styles_and_records_keep_them(tmp_path, monkeypatch):
    one = write_style(tmp_path / "a=b.safetensors", lora)
    monkeypatch.chdir(tmp_path)
    default = commands.ROOT / "configs" / "sample" / "sd15.py"
    argv = ["sample.py", "--config=style", "--config.weights.loras=('a=b.safetensors=0.8', 'owner/name/b.safetensors')"]
    config = commands.read_config(default, argv)
    weights = Weights.of_config(config.weights)
    assert weights.styles() == [("a=b.safetensors", 0.8), ("owner/name/b.safetensors", 1.0)]
    assert [(part.name, str(part.source)) for part in weights.parts()][-2:] == [
        ("weights.loras", "a=b.safetensors"),
        ("weights.loras", "owner/name/b.safetensors"),
    ]
    travelled = record.travelling(config)["weights"]["loras"]
    assert travelled == [f"{one}=0.8", "owner/name/b.safetensors"]
    files = Weights(SMALL, loras=("a=b.safetensors=0.8",)).files()
    assert "a=b.safetensors" in [file.name for file in files]
    # a record from before has no such key
    old = json.loads(config.to_json())
    del old["weights"]["loras"]
    (tmp_path / "old.json").write_text(json.dumps({"config": old}))
    assert commands.read_config(default, ["sample.py", "--config=old.json"]).weights.loras == ()


def test_scales_and_names(tmp_path):
    for name in ("plain.safetensors", "a=b.safetensors", "odd=0.5"):
        (tmp_path / name).touch()
        assert style(str(tmp_path / name)) == (str(tmp_path / name), 1.0)
        assert style(f"{tmp_path / name}=-0.25") == (str(tmp_path / name), -0.25)
    for text in ("x.safetensors=nan", "x.safetensors=inf", "x.safetensors=much", "x.safetensors=", "=0.5"):
        with pytest.raises(InputError, match=f"weights.loras: '{text}': wanted FILE or FILE=SCALE.*finite"):
            Weights(SMALL, loras=(text,)).check()


def test_few_step_loras_are_told_by_their_names(tmp_path):
    one = write_style(tmp_path / "lcm-lora-sdv1-5.safetensors", lora)
    with pytest.warns(UserWarning, match="latent consistency model .LCM., made to sample in a few steps"):
        few_steps.warn(Weights(SMALL, loras=(f"{one}=1.0",)), [few_steps.Chosen("ddim", "leading", 8, 1.5)])
    with warnings.catch_warnings(action="error"):
        few_steps.warn(Weights(SMALL, loras=(f"{one}=1.0",)), [few_steps.Chosen("lcm", "leading", 8, 1.5)])


# Bad input.


def test_layers_that_the_model_lacks_are_counted_and_named(tmp_path):
    one = write_style(tmp_path / "a.safetensors", lora)
    state = {name: np.asarray(array) for name, array in open_tensors(one).items()}
    more = {}
    for layer in ("lora_unet_down_blocks_7_resnets_0_conv1", "lora_unet_no_such_layer"):
        more |= {
            f"{layer}.lora_{leaf}.weight": np.ones(shape, np.float32)
            for leaf, shape in (("down", (2, 4, 3, 3)), ("up", (4, 2, 1, 1)))
        }
    odd = tmp_path / "odd.safetensors"
    save_file(state | {name: it for name, it in more.items() if "down_blocks_7" in name}, odd)
    with pytest.raises(
        InputError,
        match="changes 4 layers, 1 of which .* does not have: "
        "'lora_unet_down_blocks_7_resnets_0_conv1'.*other 3 alone: weights.skip_unknown=True",
    ):
        assembled(loras=(str(odd),))
    save_file(state | more, odd)
    with pytest.raises(InputError, match="'lora_unet_no_such_layer.lora_\\w+.weight' is no LoRA weight known here"):
        assembled(loras=(str(odd),))
    with pytest.warns(UserWarning, match="changes 5 layers, 2 of which .*left out; the other 3 are used") as told:
        now = assembled(loras=(str(odd),), skip_unknown=True)
    assert len([one for one in told if "changes 5 layers" in str(one.message)]) == 1
    check_same(assembled(loras=(str(one),)), now)
    save_file(more, odd)
    with pytest.raises(InputError, match="changes 2 layers, 2 of which"):
        assembled(loras=(str(odd),), skip_unknown=True)


def test_files_in_each_others_places_are_told_where_they_belong(tmp_path):
    one = write_style(tmp_path / "a.safetensors", METHODS["LoHa"])
    with pytest.raises(InputError, match="weights.motion: .*holds no motion modules.*It is a LoHa.*weights.loras"):
        assembled(motion=one)
    with pytest.raises(InputError, match="weights.loras: .*holds no LoRA.*It is motion modules.*weights.motion="):
        assembled(loras=(str(SMALL / "motion.safetensors"),))
    with pytest.raises(InputError, match="weights.loras"):
        assembled(loras=(f"{SMALL / 'unet'}=0.5",))
    with pytest.raises(InputError, match=r"weights.loras='nowhere.safetensors'|nowhere.safetensors"):
        assembled(loras=("nowhere.safetensors=0.5",))


def test_a_style_of_another_family_is_named(tmp_path):
    layer = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    factors = dict.fromkeys(("hada_w1_a", "hada_w2_a"), (32, 2)) | dict.fromkeys(("hada_w1_b", "hada_w2_b"), (2, 2048))
    path = tmp_path / "xl.safetensors"
    save_file({f"{layer}.{leaf}": np.ones(shape, np.float32) for leaf, shape in factors.items()}, path)
    with pytest.raises(InputError, match="xl.safetensors .LoRA. is for Stable Diffusion XL"):
        assembled(loras=(f"{path}=0.5",))


# OneTrainer's bundles.


def test_bundled_embeddings_are_handed_on(tmp_path):
    one = write_style(tmp_path / "a.safetensors", lora)
    state = {name: np.asarray(array) for name, array in open_tensors(one).items()}
    vectors = {"bundle_emb.<cat>.clip_l": np.ones((2, 8)), "bundle_emb.<cat>.clip_g": np.ones((2, 16))}
    vectors |= {"bundle_emb.v1.0.string_to_param.*": np.zeros(8), "bundle_emb.<cat>.clip_l_out": np.ones((1, 8))}
    save_file(state | {name: it.astype(np.float32) for name, it in vectors.items()}, tmp_path / "bundle.safetensors")
    with pytest.warns(UserWarning, match="bundle_emb.<cat>.clip_l_out is left out"):
        found = embeddings_of(tmp_path / "bundle.safetensors")
    assert {token: {name: it.shape for name, it in held.items()} for token, held in found.items()} == {
        "<cat>": {"clip_l": (2, 8), "clip_g": (2, 16)},
        "v1.0": {"clip_l": (1, 8)},
    }
    assert embeddings_of(one) == {}
    save_file(state | {"bundle_emb.<cat>.clip_l": np.ones((2, 32), np.float32)}, tmp_path / "own.safetensors")
    with warnings.catch_warnings(action="error"):
        plain, bundle = assembled(loras=(str(one),)), assembled(loras=(str(tmp_path / "own.safetensors"),))
    check_same(plain, bundle)
    assert set(bundle) - set(plain) == {"text_encoder/added_embedding"}
    assert set(load_lora(tmp_path / "bundle.safetensors")) == {"unet", "text_encoder"}
    kept = open_checkpoint([tmp_path / "bundle.safetensors"])
    assert len(kept.components["leftovers"].buffers) == 4


# What a training's file tells of its schedule.


def test_a_trainings_file_tells_its_schedule_and_is_refused_with_another(tmp_path):
    config = ConfigDict(
        dict(
            folder=str(tmp_path),
            loss="denoising",
            noise_schedule=dict(prediction_type="v_prediction", zero_terminal_snr=True),
        )
    )
    state = types.SimpleNamespace(trained={"unet/a": jnp.ones(2)}, average={"unet/a": jnp.ones(2)})
    train.write_weights(state, config, {}, make_mesh({}, jax.devices()[:1]))
    for name in ("trained", "average"):
        file = tmp_path / f"{name}.safetensors"
        assert told_by_source(file)[:2] == ("v_prediction", True)
        slots = (dict(motion=file), dict(adapter=file), dict(image_adapter=file), dict(mivas=(f"{file}=1.0",)))
        for slot in (dict(trained=(file,)), *slots):
            with pytest.raises(InputError, match=f"prediction_type='epsilon'.*'v_prediction', says {file}"):
                check_schedule(Weights(SMALL / "unet", **slot), NoiseSchedule("linear", 0.00085, 0.012))
            with pytest.raises(InputError, match="zero_terminal_snr=False"):
                schedule = NoiseSchedule("linear", 0.00085, 0.012, prediction_type="v_prediction")
                check_schedule(Weights(SMALL / "unet", **slot), schedule)
    config.loss = "reconstruction"  # which has none
    train.write_weights(state, config, {}, make_mesh({}, jax.devices()[:1]))
    assert told_by_source(tmp_path / "trained.safetensors") == TrainedFor()


def test_a_lora_of_another_prediction_is_warned_of(tmp_path):
    one = write_style(tmp_path / "a.safetensors", lora)
    with safe_open(one, "np") as file:
        save_file({name: file.get_tensor(name) for name in file.keys()}, one, {"ss_v_parameterization": "True"})  # noqa: SIM118
    with pytest.warns(UserWarning, match="a.safetensors was trained on a model that predicts v_prediction"):
        check_schedule(Weights(SMALL / "unet", loras=(f"{one}=0.5",)), NoiseSchedule("linear", 0.00085, 0.012))
