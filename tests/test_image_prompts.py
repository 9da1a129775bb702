"""Image prompts: several pictures, faces, weights, against diffusers' `load_ip_adapter`; and what is refused."""

import dataclasses
import functools
import json
from pathlib import Path

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.numpy import save_file

from convert.__main__ import main as convert
from i2v_jax import commands
from i2v_jax.devices.mesh import make_mesh
from i2v_jax.errors import InputError
from i2v_jax.families.model import Model, assemble_config
from i2v_jax.families.weights import Weights
from i2v_jax.models.adapters import Shared
from i2v_jax.models.adapters.image_tokens import ImageTokens
from i2v_jax.models.attention import Projections
from i2v_jax.models.conditions import Conditions
from i2v_jax.sampling import face_embeddings, record, table
from i2v_jax.sampling.image_prompts import ImagePrompts
from i2v_jax.sampling.pipeline import Pipeline
from i2v_jax.sampling.settings import Settings, row_settings
from i2v_jax.weights.assemble import assemble_unet, load_image_projection, to_device
from tests import test_ip_adapter, tiny
from tests import test_weights as library
from tests.helpers import relative_error
from tests.tiny import SMALL
from tests.torch_models import randomise

KINDS = {
    "base": {},
    "plus": {},
    "full face": {},
    "FaceID": dict(face=2),
    "FaceID plus": dict(face=2),
    "FaceID plus v2": dict(face=1),
}
SETTINGS = Settings(height=64, width=64, frames=1, steps=5, sampler_options=(("set_alpha_to_one", True),))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An IP-Adapter of each kind, and two pictures, for the small model."""
    folder = tmp_path_factory.mktemp("adapters")
    unet = diffusers.UNet2DConditionModel.from_pretrained(SMALL / "unet")
    unet.save_pretrained(folder / "unet")  # in float32: a LoRA is rounded as the weights that it is merged into
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(test_ip_adapter, "TOKEN", 32)
        patch.setattr(test_ip_adapter, "PICTURE", 32)
        for kind in KINDS:
            nested = test_ip_adapter.adapter(unet, kind.removesuffix(" v2"))
            torch.save(nested, folder / f"{kind.replace(' ', '-').replace('plus-v2', 'plusv2')}.bin")
    encoder = transformers.CLIPVisionConfig.from_pretrained(SMALL / "image_encoder")
    randomise(transformers.CLIPVisionModelWithProjection(encoder)).save_pretrained(folder / "image_encoder")
    rng = np.random.default_rng(0)
    for name in "ab":
        Image.fromarray(rng.integers(0, 256, (70, 90, 3), np.uint8)).save(folder / f"{name}.png")
    return folder


def adapter_file(folder, kind):
    return folder / f"{kind.replace(' ', '-').replace('plus-v2', 'plusv2')}.bin"


@functools.cache
def pipeline(file, motion=False):
    weights = Weights(
        str(SMALL),
        unet=str(file.parent / "unet"),
        motion=str(SMALL / "motion.safetensors") if motion else None,
        image_adapter=str(file),
        image_encoder=str(file.parent / "image_encoder"),
    )
    mesh = make_mesh({}, jax.devices()[:1])
    return Pipeline(Model.load(weights, mesh=mesh), mesh)


def faces(count):
    vectors = np.random.default_rng(1).normal(size=(count, test_ip_adapter.FACE)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def prompts_of(folder, kind):
    """Two pictures, neither of them the animated one, and as many faces as the kind has."""
    face = faces(KINDS[kind]["face"]) if "FaceID" in kind else ""
    pictures = () if kind == "FaceID" else (folder / "a.png", folder / "b.png")
    return ImagePrompts(pictures, own_picture=False, face_embedding=face)


def diffusers_latents(folder, kind, noise):
    pipe = diffusers.StableDiffusionPipeline(
        **tiny.parts(),
        scheduler=diffusers.DDIMScheduler.from_pretrained(SMALL / "scheduler"),
        image_encoder=transformers.CLIPVisionModelWithProjection.from_pretrained(folder / "image_encoder"),
        feature_extractor=transformers.CLIPImageProcessor(),
        safety_checker=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    nested = torch.load(adapter_file(folder, kind), weights_only=True)
    pipe.load_ip_adapter(nested, subfolder="", weight_name="", low_cpu_mem_usage=False)
    pictures = [Image.open(folder / f"{name}.png") for name in "ab"]
    given = dict(ip_adapter_image=[pictures])
    if "FaceID" in kind:
        vectors = np.broadcast_to(faces(KINDS[kind]["face"]), (2, test_ip_adapter.FACE))
        vectors = torch.from_numpy(vectors.copy())[None]
        given = dict(ip_adapter_image_embeds=[torch.cat([torch.zeros_like(vectors), vectors])])
    if "plus" in kind and "FaceID" in kind:
        layer = pipe.unet.encoder_hid_proj.image_projection_layers[0]
        seen, unseen = pipe.encode_image(pictures, "cpu", 1, output_hidden_states=True)
        layer.clip_embeds, layer.shortcut = torch.stack([unseen, seen]), "v2" in kind
    latents = torch.from_numpy(noise[:, 0].transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        return pipe(
            "a cat", negative_prompt="waves", latents=latents, num_inference_steps=5, output_type="latent", **given
        )


@pytest.mark.parametrize("kind", KINDS)
def test_two_pictures_and_faces_equal_diffusers(folder, kind, measured):
    """FaceID's LoRA is merged; of FaceID plus v2, known by the file's name, one face is for both pictures."""
    noise = np.random.default_rng(2).normal(size=(1, 1, 8, 8, 4)).astype(np.float32)
    wanted = diffusers_latents(folder, kind, noise).images.numpy().transpose(0, 2, 3, 1)
    settings = dataclasses.replace(SETTINGS, image_prompts=prompts_of(folder, kind))
    ours = pipeline(adapter_file(folder, kind))
    settings.check(ours.model)
    animated = np.zeros((8, 8, 3), np.uint8)  # is not looked at
    conditions = ours.encode(["a cat"], ["waves"], pictures=[animated], settings=settings)
    latents = ours.denoise(noise, conditions, settings)[:, 0]
    measured(f"IP-Adapter {kind}, two: latents after 5 guided steps, diffusers'", relative_error(latents, wanted), 1e-4)


def test_pictures_matter_and_stand_side_by_side(folder):
    """The animated picture's tokens come first; pictures given alone take its place."""
    ours = pipeline(adapter_file(folder, "plus"))
    a, b = (np.asarray(Image.open(folder / f"{name}.png")) for name in "ab")

    def tokens(animated, **given):
        settings = dataclasses.replace(SETTINGS, image_prompts=ImagePrompts(**given))
        return np.asarray(ours.encode(["a cat"] * len(animated), pictures=animated, settings=settings).image_tokens)

    alone = {name: tokens([picture])[:, 0] for name, picture in (("a", a), ("b", b))}
    both = tokens([a], pictures=(folder / "b.png",))[:, 0]
    np.testing.assert_allclose(both, np.concatenate([alone["a"], alone["b"]], 1), atol=1e-6)
    np.testing.assert_array_equal(tokens([a], pictures=(b,), own_picture=False)[:, 0], alone["b"])
    two = tokens([a, b], pictures=(b,))  # of two videos, each has its own first
    np.testing.assert_allclose(two[2:, 0], np.stack([both[1], np.concatenate([alone["b"][1]] * 2)]), atol=1e-6)
    video = functools.partial(ours.latents, a, "a cat", 1, settings=dataclasses.replace(SETTINGS, steps=1, t0=1.0))
    np.testing.assert_array_equal(video(image_prompts=a), video())


def test_weights_scale_what_is_read_of_each_picture():
    """The branch is linear in them: of two pictures, each gives its share; all 1 is the same as none."""
    rng = np.random.default_rng(0)
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    heads = normal(1, 1, 5, 2, 8)
    base, tokens = Projections(normal(1, 1, 5, 16), heads, heads, heads), normal(1, 1, 6, 12)
    conditions = Conditions(text=tokens, image_tokens=tokens)

    def branch(weights, parameters):
        strengths = {} if weights is None else {"image_weights": jnp.asarray(weights, jnp.float32)}
        return ImageTokens().apply(parameters, base, Shared(normal(1, 4), conditions, strengths))[0]

    parameters = ImageTokens().init(jax.random.key(0), base, Shared(normal(1, 4), conditions))
    first, second = branch([1, 0], parameters), branch([0, 1], parameters)
    np.testing.assert_allclose(branch([0.3, 2], parameters), 0.3 * first + 2 * second, atol=1e-6)
    np.testing.assert_array_equal(branch([1, 1], parameters), branch(None, parameters))
    assert relative_error(first, second) > 0.1


def test_weights_of_a_run(folder):
    """Weights of 1 are none, bit for bit; the same one for all is the strength of the image tokens."""
    ours = pipeline(adapter_file(folder, "plus"))
    noise = np.random.default_rng(2).normal(size=(1, 1, 8, 8, 4)).astype(np.float32)

    def latents(*weights, **changes):
        prompts = ImagePrompts((folder / "b.png",), weights)
        settings = dataclasses.replace(SETTINGS, image_prompts=prompts, **changes)
        picture = np.asarray(Image.open(folder / "a.png"))
        return np.asarray(ours.denoise(noise, ours.encode(["a cat"], pictures=[picture], settings=settings), settings))

    np.testing.assert_array_equal(latents(1, 1.0), latents())
    assert relative_error(latents(0.25, 0.25), latents(image_token_scale=0.25)) < 1e-5
    assert relative_error(latents(1, 0), latents(0, 1)) > 1e-4


@pytest.mark.parametrize(
    "name", ["one.npy", "many.npy", "two.npz", "half.safetensors", "bare.pt", "listed.pt", "named.bin"]
)
def test_files_of_face_embeddings(name, tmp_path):
    path, vectors = tmp_path / name, faces(2)
    tensors = torch.from_numpy(vectors)
    write = {
        "one.npy": lambda: np.save(path, vectors[0]),
        "many.npy": lambda: np.save(path, vectors[None]),
        "two.npz": lambda: np.savez(path, a=vectors[0], b=vectors[1]),
        "half.safetensors": lambda: save_file({"face": vectors.astype(np.float16)}, path),
        "bare.pt": lambda: torch.save(tensors, path),
        "listed.pt": lambda: torch.save(list(tensors), path),
        "named.bin": lambda: torch.save({"a": tensors[:1], "b": tensors[1:]}, path),
    }
    write[name]()
    wanted = vectors[:1] if name == "one.npy" else vectors
    np.testing.assert_allclose(face_embeddings.read(path), wanted, atol=1e-3 if "half" in name else 0)


def test_files_that_are_no_face_embeddings(tmp_path):
    np.save(tmp_path / "text.npy", np.array(["a"]))
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    np.save(tmp_path / "nan.npy", np.array([np.nan, 1], np.float32))
    np.savez(tmp_path / "widths.npz", a=np.ones(3), b=np.ones(4))
    np.save(tmp_path / "long.npy", np.full(16, 5.0))
    (tmp_path / "broken.pt").write_bytes(b"\x80nothing")
    (tmp_path / "face.txt").write_text("0.1 0.2")
    for name, message in {
        "text.npy": "holds <U1 .1.; wanted face embeddings",
        "objects.npy": "cannot be read as a face embedding",
        "nan.npy": "NaN or infinite",
        "widths.npz": "one vector or several of one width",
        "broken.pt": "is damaged",
        "face.txt": r"no file of face embeddings; known: .npy",
        "nowhere.npy": "No face embedding at .*nowhere.npy",
    }.items():
        with pytest.raises(InputError, match=message):
            face_embeddings.read(tmp_path / name)
    with pytest.warns(UserWarning, match="has length 20; FaceIDs .* length 1"):
        face_embeddings.read(tmp_path / "long.npy")


@pytest.mark.parametrize(
    "kind, given, message",
    [
        ("plus", dict(weights=(1, 1)), "weights has 2 numbers for 1 pictures; wanted one each, the animated"),
        ("plus", dict(pictures=("nowhere.png",)), "No picture at 'nowhere.png'"),
        ("plus", dict(weights=(float("nan"),)), "nan is no finite number"),
        ("plus", dict(face_embedding=np.ones(16) / 4), "reads pictures, and no face embedding. Leave it out"),
        ("FaceID", {}, "is a FaceID, whose tokens are of a face embedding. Give a file of one: ArcFace's, 16 numbers"),
        ("FaceID", dict(face_embedding=np.ones(4) / 2), "vectors of 4 numbers; this FaceID reads 16"),
        ("FaceID", dict(face_embedding=np.ones(16) / 4, pictures=(np.zeros((4, 4, 3), np.uint8),)), "Leave them out"),
        ("FaceID plus", dict(face_embedding=np.ones((2, 16)) / 4), "2 faces for 1 pictures"),
    ],
)
def test_image_prompts_that_make_no_sense(folder, kind, given, message):
    settings = dataclasses.replace(SETTINGS, image_prompts=ImagePrompts(**given))
    model = pipeline(adapter_file(folder, kind)).model
    with pytest.raises(InputError, match=message):
        settings.image_prompts.check_values()
        settings.check(model)


def test_a_model_without_image_adapter_takes_no_image_prompts(folder):
    model = pipeline(adapter_file(folder, "plus")).model
    plain = dataclasses.replace(model.configs["unet"], cross_attention_branches=())
    still = dataclasses.replace(model, configs={**model.configs, "unet": plain})
    ImagePrompts().check(still)
    with pytest.raises(InputError, match="no image adapter. Give one"):
        ImagePrompts(("a.png",)).check(still)


def test_a_face_adapter_needs_no_image_encoder_and_is_not_trained(folder):
    model = pipeline(adapter_file(folder, "FaceID")).model
    assert "image_encoder" not in model.configs and model.wants_image_tokens
    assert "image_encoder" in pipeline(adapter_file(folder, "FaceID plus")).model.configs
    config = commands.load_config(commands.ROOT / "configs" / "train" / "tiny.py").copy_and_resolve_references()
    with config.unlocked():
        config.weights.update(base=str(SMALL), image_adapter=str(adapter_file(folder, "FaceID")), motion="", adapter="")
    with pytest.raises(InputError, match="is a FaceID: its tokens are of face embeddings, and clips have none"):
        assemble_config(config, jax.devices()[0])


def test_the_loras_of_a_face_adapter_change_the_unet(folder):
    plain, changed = (pipeline(adapter_file(folder, kind)).model.parameters["unet"] for kind in ("plus", "FaceID"))
    layers = [
        tree["down_blocks_1"]["layers_0"]["attention"]["blocks_0"][site]["to_out"]["kernel"]
        for tree in (plain, changed)
        for site in ("attn1", "attn2")
    ]
    assert relative_error(layers[2], layers[0]) > 0.01 and relative_error(layers[3], layers[1]) > 0.01
    np.testing.assert_array_equal(plain["conv_in"]["kernel"], changed["conv_in"]["kernel"])


def test_configs_records_and_tables_carry_them(folder, tmp_path):
    config = commands.load_config(commands.ROOT / "configs" / "sample" / "sd15.py").copy_and_resolve_references()
    config.image, config.image_prompts.pictures = str(folder / "a.png"), (str(folder / "b.png"),)
    settings = Settings.of_config(config)
    assert settings.image_prompts == ImagePrompts((str(folder / "b.png"),))
    hash(settings)
    made = record.about(config, {})
    assert list(made["further_files"]) == [str(folder / "b.png")]
    assert made["config"]["image_prompts"]["pictures"] == [str(folder / "b.png")]
    assert not [line for line in record.differences(made, config, {}) if "picture" in line]
    Image.new("RGB", (4, 4)).save(tmp_path / "b.png")
    config.image_prompts.pictures = (str(tmp_path / "b.png"),)
    assert any("no picture or face embedding" in line for line in record.differences(made, config, {}))
    config.image_prompts.pictures = ()
    assert "further_files" not in record.about(config, {})

    (tmp_path / "a.png").write_bytes((folder / "a.png").read_bytes())
    (tmp_path / "rows.csv").write_text(
        "picture,prompt,image_prompts.pictures,image_prompts.weights,image_prompts.own_picture\n"
        "a.png,a cat,'b.png',\"(0.5,)\",false\na.png,a dog,,,\n"
    )
    rows = table.read(tmp_path / "rows.csv", row_settings(config))
    assert dict(rows[0]["changes"]) == {
        "image_prompts.pictures": (str(tmp_path / "b.png"),),
        "image_prompts.weights": (0.5,),
        "image_prompts.own_picture": False,
    }
    assert rows[1]["changes"] == ()


def test_a_video_made_before_there_were_image_prompts_is_done(folder, tmp_path):
    """Of other image prompts, or of a picture that has changed since, it is not."""
    config = commands.load_config(commands.ROOT / "configs" / "sample" / "sd15.py").copy_and_resolve_references()
    config.image = str(folder / "a.png")
    earlier = record.about(config, {})
    del earlier["config"]["image_prompts"]
    stem = tmp_path / "video"
    Path(f"{stem}.json").write_text(json.dumps(earlier))
    assert record.is_done(stem, (".json",), config, dict)
    Image.new("RGB", (4, 4)).save(tmp_path / "b.png")
    config.image_prompts.pictures = (str(tmp_path / "b.png"),)
    assert not record.is_done(stem, (".json",), config, dict)
    Path(f"{stem}.json").write_text(json.dumps(record.about(config, {})))
    assert record.is_done(stem, (".json",), config, dict)
    Image.new("RGB", (5, 4)).save(tmp_path / "b.png")
    assert not record.is_done(stem, (".json",), config, dict)


@pytest.mark.parametrize("kind", ["FaceID", "FaceID plus v2"])
def test_face_adapters_are_converted_and_verified(folder, kind, tmp_path, capsys):
    """With their base, whose attentions the file numbers: the networks run as PyTorch's, and come out byte for byte."""
    source, own, back = adapter_file(folder, kind), tmp_path / "ours.safetensors", tmp_path / "back.bin"
    base = str(SMALL / "unet")
    assert convert(["import", base, str(source), str(own)]) == 0
    capsys.readouterr()
    assert convert(["verify", base, str(source), str(own), "--run"]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("image_proj")]
    assert any("image tokens" in row and "ok" in row for row in rows), rows
    assert convert(["export", str(own), str(back), "--to", "ip-adapter"]) == 0
    wanted, written = (torch.load(path, weights_only=True) for path in (source, back))
    assert library.bytes_of(test_ip_adapter.flat(written)) == library.bytes_of(test_ip_adapter.flat(wanted))

    whole = assemble_unet(str(own)).load(to_device)[1]
    parts = assemble_unet(base, adapters=dict(image_tokens=str(source))).load(to_device)[1]
    jax.tree.map(np.testing.assert_array_equal, whole, parts)
    config, _ = load_image_projection(own)
    assert getattr(config, "shortcut", False) == ("v2" in kind)
    assert convert(["inspect", str(source)]) == 0
    assert f"IP-Adapter {kind.removesuffix(' v2')}, of a face embedding" in capsys.readouterr().out
