"""What files are: every kind that people have is named, in `inspect` and in refusals, with what to give instead."""

import json
import shutil
import sys
import types
import warnings

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from convert.__main__ import main as convert
from i2v_jax.diffusion.noise_schedule import NoiseSchedule
from i2v_jax.errors import InputError
from i2v_jax.families.checks import check_schedule
from i2v_jax.families.family import SD15
from i2v_jax.families.slots import check_slot, check_slots
from i2v_jax.families.weights import Weights
from i2v_jax.models.clip import CLIPTextConfig
from i2v_jax.models.vae import VAEConfig
from i2v_jax.weights.assemble import assemble_text_encoder, assemble_vae
from i2v_jax.weights.checkpoint import open_checkpoint
from i2v_jax.weights.formats import TABLES
from i2v_jax.weights.formats.original import Blocks, _vae_rows, unet_rows
from i2v_jax.weights.kinds.find import parts_held, unread_kind, wrong_slot
from i2v_jax.weights.kinds.table import READ, SLOTS, UNREAD
from i2v_jax.weights.names import DENSE
from i2v_jax.weights.storage.open import open_tensors
from i2v_jax.weights.tensors import Tensors
from i2v_jax.weights.trained_for import told_by_source, told_by_tensors
from i2v_jax.weights.translate import export_tensors, recognise

SMALL = "tests/data/small"
MODULE = "down_blocks.0.motion_modules.0.temporal_transformer"
LAYER = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"

# What each kind of file holds, by names of published ones.
KINDS = {
    "GLoRA": [f"{LAYER}.a1.weight"],
    "OFT": ["unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.oft_r.default"],
    "BOFT": ["unet.down_blocks.0.attentions.0.to_q.boft_R.default"],
    "a LoRA for Flux": ["lora_unet_double_blocks_0_img_attn_proj.lora_down.weight"],
    "a LoRA for Wan video": ["diffusion_model.blocks.0.self_attn.q.lora_A.weight"],
    "a LoRA for HunyuanVideo": ["transformer.double_blocks.0.img_attn_qkv.lora_A.weight"],
    "a LoRA for a T5": ["lora_te3_encoder_block_0_layer_0_SelfAttention_q.lora_down.weight"],
    "a LoRA for a diffusion transformer (": ["diffusion_model.transformer_blocks.0.attn1.to_q.lora_A.weight"],
    "a LoRA for a diffusion transformer": ["transformer.transformer_blocks.0.attn.to_q.lora_A.weight"],
    "AnimateLCM-I2V": ["img_encoder.conv_in.weight", f"{MODULE}.norm.weight"],
    "CameraCtrl": ["pose_encoder_state_dict.encoder_conv_in.weight"],
    "MotionCtrl": [f"{MODULE}.transformer_blocks.0.cc_projection.weight"],
    "Stable Video Diffusion": ["model.diffusion_model.input_blocks.1.1.time_stack.0.norm1.weight"],
    "ModelScope": ["down_blocks.0.temp_convs.0.conv1.0.weight"],
    "VideoCrafter": ["model.diffusion_model.init_attn.0.norm.weight"],
    "Control-LoRA": ["lora_controlnet", "input_blocks.1.0.in_layers.2.up"],
    "LLLite": ["lllite_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q.down.0.weight"],
    "ControlNet Union": ["control_add_embedding.linear_1.bias", "conv_in.weight"],
    "a T2I-Adapter for style": ["transformer_layes.0.attn.in_proj_weight", "style_embedding"],
    "what joins several": ["task_embedding", "positional_embedding", "spatial_feat_mapping.0.1.weight", "seq_proj"],
    "BrushNet": ["brushnet_down_blocks.0.weight", "brushnet_mid_block.weight", "conv_in_condition.weight"],
    "ELLA": ["connector.time_aware.weight", "connector.perceiver_blocks.0.ln_1.weight", "time_embedding.linear_1.bias"],
    "CodeFormer": ["quantize.embedding.weight", "idx_pred_layer.1.weight", "fuse_convs_dict.32.scale.0.weight"],
    "GFPGAN": ["params_ema.conv_body_first.weight", "params_ema.stylegan_decoder.constant_input.weight"],
    "PuLID": ["pulid_encoder.id_embedding_mapping.0.weight", "pulid_ca.0.norm1.weight"],
    "Segment Anything": ["image_encoder.trunk.blocks.0.norm1.weight", "sam_mask_decoder.iou_token.weight"],
    "GLIGEN": ["position_net.linears.0.weight"],
    "PhotoMaker": ["id_encoder.visual_projection_2.weight"],
    "a hypernetwork": ["768.0.linear.0.weight"],
    "TAESD": ["decoder.layers.3.conv.0.weight"],
    "TAESD, ": ["3.conv.0.weight"],
    "a video autoencoder": ["decoder.upsamples.0.residual.2.weight", "decoder.upsamples.3.time_conv.weight"],
    "VQ": ["first_stage_model.quantize.embedding.weight"],
    "SwinIR": ["params.conv_first.weight", "params.layers.0.residual_group.blocks.0.norm1.weight"],
    "Flux": ["model.diffusion_model.double_blocks.0.img_attn.qkv.weight"],
    "Stable Diffusion 3": ["model.diffusion_model.joint_blocks.0.context_block.attn.qkv.weight"],
    "Wan video": ["blocks.0.self_attn.q.weight", "patch_embedding.weight"],
    "LTX": ["model.diffusion_model.patchify_proj.weight"],
    "CogVideoX": ["patch_embed.text_proj.weight"],
    "Kolors": ["encoder_hid_proj.weight", "conv_in.weight", "conv_out.weight"],
    "OpenCLIP's own names": ["visual.conv1.weight", "transformer.resblocks.0.attn.in_proj_weight"],
    "T5": ["encoder.block.0.layer.0.SelfAttention.q.weight"],
    "a safety checker": ["concept_embeds", "vision_model.vision_model.embeddings.class_embedding"],
    "quantised": ["conv_in.weight", "down_blocks.0.attentions.0.proj_in.scale_weight"],
    "LCM": ["time_embedding.cond_proj.weight", "conv_in.weight", "conv_out.weight"],
}


@pytest.mark.parametrize("title", KINDS)
def test_a_file_that_is_not_read_is_called_by_its_kinds_name(title, tmp_path, capsys):
    arrays = {name: np.zeros((4, 4), np.float32) for name in KINDS[title]}
    path = tmp_path / "file.safetensors"
    save_file(arrays, path)
    kind, name = unread_kind(arrays)
    assert kind.title.startswith(title.strip()) or title.strip() in kind.title
    assert name in arrays
    for given in (lambda: open_checkpoint([path]), lambda: assemble_vae(path), lambda: check_slot("motion", path)):
        with pytest.raises(InputError) as error:
            given()
        assert kind.title in str(error.value) and kind.instead in str(error.value) and str(path) in str(error.value)
    assert convert(["inspect", str(path)]) == 0
    first = capsys.readouterr().out.splitlines()
    assert first[0].startswith(f"{path}: {kind.title}, which is not read here") and first[1] == kind.instead


def test_every_kind_is_there_once_and_says_what_to_do():
    assert len({kind.title for kind in UNREAD}) == len(UNREAD)
    assert all(kind.instead.endswith(".") and kind.has for kind in UNREAD)


def test_no_format_that_is_read_is_called_by_another_kinds_name():
    names = {}
    for component, tables in TABLES.items():
        for table in tables:
            names[component, table.name] = _names(table.rows)
    sd15 = Blocks(3, set(range(1, 12)), {number: number > 2 for number in range(12)})
    names["whole", "sd"] = [
        *(f"model.diffusion_model.{name}" for name in _names(unet_rows(sd15, DENSE))),
        *(f"first_stage_model.{name}" for name in _names(_vae_rows({0, 1, 2, 3}))),
    ]
    assert {key: unread_kind(held) for key, held in names.items() if held and unread_kind(held)} == {}


def _names(rows):
    fields = dict.fromkeys("ijkn", 0)
    return [f"{row.theirs}.{leaf}".rstrip(".").format(**fields) for row in rows for leaf in row.kind]


def test_a_file_of_no_known_format_is_told_what_it_is_like():
    for name, words in (
        ("some.layer.lora_down.weight", "looks like a LoRA whose layers.*kohya-ss"),
        ("blocks.0.temporal_thing.weight", "looks like motion modules.*weights.motion"),
        ("colour", "It holds colour.$"),
    ):
        with pytest.raises(InputError, match=f"is of no format known here.*{words}"):
            recognise(Tensors.of({name: np.zeros(3)}))


# The right file in the wrong slot.


@pytest.mark.parametrize("slot", SLOTS)
@pytest.mark.parametrize("part", READ)
def test_every_slot_says_of_every_part_what_it_is_and_where_it_belongs(slot, part):
    message = wrong_slot(slot, "given.ckpt", [part])
    if ("unet" if slot == "base" else slot) in READ[part].slots:
        assert message is None
        return
    assert f"given.ckpt holds no {SLOTS[slot][0]}" in message and f"It is {READ[part].title}" in message
    assert message.startswith("--lora: " if slot == "lora" else f"weights.{slot}: ")
    assert any(word in message for word in ("weights.", "python -m ", "Give the model"))


def motion_lora(path):
    layer = f"{MODULE}.transformer_blocks.0.attention_blocks.0.processor.to_q_lora"
    shapes = {"down": (2, 320), "up": (320, 2)}
    save_file({f"{layer}.{leaf}.weight": np.zeros(shape, np.float32) for leaf, shape in shapes.items()}, path)
    return path


def test_files_given_for_another_slot_are_told_where_they_belong(tmp_path):
    lora = motion_lora(tmp_path / "zoom.safetensors")
    given = {
        "motion": (lora, f"motion LoRA.*convert import MOTION motion.safetensors --lora {lora}`, then weights.motion="),
        "vae": (f"{SMALL}/motion.safetensors", "It is motion modules. Give it as weights.motion="),
        "adapter": (f"{SMALL}/ip_adapter.safetensors", "an IP-Adapter.*weights.image_adapter=.*weights.image_encoder"),
        "image_adapter": (f"{SMALL}/i2v_adapter.safetensors", "first-frame adapter.*weights.adapter="),
        "image_encoder": (f"{SMALL}/vae", "autoencoder.*weights.vae="),
        "text_encoder": (f"{SMALL}/image_encoder", "CLIP image encoder. Give it as weights.image_encoder="),
        "trained": (f"{SMALL}/motion.safetensors", "no weights in the form that train.py writes.*weights.motion="),
        "lora": (f"{SMALL}/motion.safetensors", "^--lora.*holds no LoRA.*weights.motion="),
    }
    for slot, (source, message) in given.items():
        with pytest.raises(InputError, match=message):
            check_slot(slot, source)
    for slot, source in dict(base=SMALL, motion=f"{SMALL}/motion.safetensors", vae=SMALL, lora=lora).items():
        check_slot(slot, source)
    check_slot("motion", tmp_path / "nowhere")  # another error's business
    with pytest.raises(InputError, match="weights.tokenizer: .*zoom.safetensors is a file; wanted the folder"):
        Weights(base=SMALL, tokenizer=lora).tokenizer_of(SD15.text.encoders[0])
    check_slots(Weights(base=SMALL, motion=f"{SMALL}/motion.safetensors"))
    with pytest.raises(InputError, match="weights.motion: .*zoom"):
        check_slots(Weights(base=SMALL, motion=lora))


def test_a_base_without_other_networks_is_told_what_to_give():
    with pytest.raises(
        InputError, match="holds a UNet, and no autoencoder .VAE., no CLIP text encoder.*weights.vae=st"
    ):
        check_slots(Weights(base=f"{SMALL}/unet"))
    check_slots(Weights(base=f"{SMALL}/unet", vae=SMALL, text_encoder=SMALL))


# Leftovers, and what nothing knows.

TEXT = "cond_stage_model.transformer.text_model"
LEFT = (
    "embedding_manager.string_to_param_dict.*",
    "safety_checker.vision_model.visual_projection.weight",
    "n_averaged",
    "optimizer_states.0.state.0.exp_avg",
    "first_stage_model.model_ema.decay",
    "cond_stage_model.transformer.vision_model.post_layernorm.weight",
    "cond_stage_model.transformer.visual_projection.weight",
    "cond_stage_model.transformer.embeddings.position_ids",
    "cond_stage_model.model.logit_scale",
    "depth_model.model.scratch.layer1_rn.weight",
)


def test_leftovers_of_tools_are_kept_and_stand_in_nobodys_way():
    names = [f"{TEXT}.final_layer_norm.weight", f"{TEXT}.final_layer_norm.bias", "edm_mean", *LEFT]
    found = recognise(Tensors.of({name: np.ones(4, np.float32) for name in names}))
    assert found["text_encoder"].unknown == [] and not found["leftovers"].parameters
    assert sorted(found["leftovers"].buffers) == sorted(LEFT)
    empty = found["leftovers"].parameters
    back = export_tensors(empty, TABLES["leftovers"][0], found["leftovers"].buffers)
    assert sorted(back) == sorted(LEFT)
    assert unread_kind([*names, *LEFT, "model.diffusion_model.input_blocks.0.0.weight"]) is None


def test_what_nothing_knows_is_charged_to_the_component_whose_names_it_has():
    names = [f"{TEXT}.final_layer_norm.weight", *(f"first_stage_model.{half}.conv_in.weight" for half in ("encoder",))]
    names += ["first_stage_model.decoder.up.0.block.0.conv1.weight"]
    shapes = {name: np.zeros((4, 4, 3, 3) if "conv" in name else 4, np.float32) for name in names}
    strange = {"cond_stage_model.colour": np.zeros(3), "first_stage_model.smell": np.zeros(3), "taste": np.zeros(3)}
    found = recognise(Tensors.of(shapes | strange))
    assert found["text_encoder"].unknown == ["cond_stage_model.colour"]
    assert found["vae"].unknown == ["first_stage_model.smell", "taste"]  # the last is like nobody's: the largest's


def test_every_command_can_go_on_without_unknown_tensors(tmp_path):
    tensors = open_tensors(f"{SMALL}/vae")
    odd = tensors.holding(tensors.entries | Tensors.of({"decoder.odd": np.zeros(3, np.float32)}).entries)
    with pytest.raises(InputError, match=r"'decoder.odd'\n  To leave them out: weights.skip_unknown=True"):
        assemble_vae(odd)
    with pytest.warns(UserWarning, match="1 tensors are left out.*decoder.odd"):
        kept = assemble_vae(odd, skip_unknown=True)
    assert dict.fromkeys(kept.parameters) == dict.fromkeys(assemble_vae(tensors).parameters)
    assert Weights.of_config({"base": "x", "skip_unknown": True}).skip_unknown


def test_a_config_of_fewer_layers_is_clip_skip():
    tensors = open_tensors(f"{SMALL}/text_encoder")
    layers = CLIPTextConfig.from_diffusers(tensors.config).num_layers
    config = tensors.config | {"num_hidden_layers": layers - 1}
    with pytest.warns(UserWarning, match=f"num_hidden_layers={layers - 1}.*{layers} layers.*clip skip"):
        shorter = assemble_text_encoder(tensors, config=config)
    assert shorter.config.num_layers == layers - 1
    assert not any(path.startswith(f"layers_{layers - 1}/") for path in shorter.parameters)
    with warnings.catch_warnings(action="error"):
        assemble_text_encoder(tensors)


# Pickles that hold more than tensors.


class Program:
    def __reduce__(self):
        return (sys.setrecursionlimit, (1000,))


def test_refused_pickles_are_named_and_say_what_to_fetch(tmp_path, monkeypatch):
    name = "pytorch_lightning.callbacks.model_checkpoint"
    for part in ("pytorch_lightning", "pytorch_lightning.callbacks", name):
        monkeypatch.setitem(sys.modules, part, types.ModuleType(part))
    callback = type("ModelCheckpoint", (), {"__module__": name})
    monkeypatch.setattr(sys.modules[name], "ModelCheckpoint", callback, raising=False)
    weights = {"state_dict": {"a": torch.zeros(1)}}
    parameters = torch.nn.ParameterDict({"*": torch.nn.Parameter(torch.zeros(1, 768))})
    for content, words in (
        (weights | {"callbacks": {callback: {"monitor": None}}}, ("whole training state of PyTorch Lightning", name)),
        ({"string_to_token": {"*": 265}, "string_to_param": parameters}, ("textual inversion", "ParameterDict")),
        (weights | {"hook": Program()}, ("would run a program", "Do not load it elsewhere")),
        (torch.nn.Linear(2, 2), ("whole network, saved as a Python object", ".safetensors")),
        (weights | {"config": types.SimpleNamespace(a=1)}, ("types.SimpleNamespace", ".safetensors")),
    ):
        path = tmp_path / "file.ckpt"
        torch.save(content, path)
        with pytest.raises(InputError) as error:
            open_tensors(path)
        message = str(error.value)
        assert all(word in message for word in (str(path), "refused", *words)), message
        assert not any(word in message for word in ("weights_only", "add_safe_globals", "safe_globals", "trust"))
    torch.save({768: [{"linear.0.weight": 1}], 320: []}, path)
    with pytest.raises(InputError, match="is a hypernetwork"):
        open_tensors(path)


@pytest.mark.parametrize(
    "start, words", [(b"GGUF\3\0\0\0", "GGUF"), (b"<!DOCTYPE html>", "web page"), (b'{"a": 1}', "JSON")]
)
def test_files_that_are_no_weights_are_named(start, words, tmp_path):
    (tmp_path / "x.safetensors").write_bytes(start + bytes(80))
    with pytest.raises(InputError, match=words):
        open_tensors(tmp_path / "x.safetensors")


# What files tell of their training.

CONV = {"conv_in.weight": np.zeros((4, 4, 3, 3), np.float32)}
EMPTY = np.zeros(0, np.float32)


@pytest.mark.parametrize(
    "tensors, metadata, prediction, snr",
    [
        ({"v_pred": EMPTY}, {}, "v_prediction", None),
        ({"v_pred": EMPTY, "ztsnr": EMPTY}, {}, "v_prediction", True),
        ({"v_pred": EMPTY}, {"modelspec.prediction_type": "epsilon"}, "v_prediction", None),
        ({"ztsnr": EMPTY}, {}, None, True),
        ({"ztsnr": EMPTY}, {"modelspec.prediction_type": "v"}, "v_prediction", True),
        ({}, {"modelspec.prediction_type": "V_Prediction"}, "v_prediction", None),
        ({}, {"ss_v_parameterization": "True"}, "v_prediction", None),
        ({}, {"modelspec.prediction_type": "v"}, "v_prediction", None),
        ({}, {"modelspec.predict_key": "epsilon"}, "epsilon", None),
        ({}, {"ss_base_model_version": "sd_v2_v", "ss_zero_terminal_snr": "True"}, "v_prediction", True),
        ({}, {"ss_v2": "False", "ss_base_model_version": "sd_v1", "ss_zero_terminal_snr": "False"}, None, False),
        ({}, {"format": "pt"}, None, None),
    ],
)
def test_markers_and_metadata_tell_the_noise_schedule(tensors, metadata, prediction, snr, tmp_path, capsys):
    path = tmp_path / "model.safetensors"
    save_file(CONV | tensors, path, metadata)
    told = told_by_source(path)
    assert (told.prediction_type, told.zero_terminal_snr) == (prediction, snr)
    run = NoiseSchedule()
    if prediction in (None, "epsilon"):
        check_schedule(Weights(base=path), run)
        return
    with pytest.raises(
        InputError, match=f"prediction_type='epsilon', but .* '{prediction}', says .*Set --config.noise"
    ):
        check_schedule(Weights(base="owner/name", unet=path), run)
    with pytest.raises(InputError, match="trained for"):
        check_schedule(Weights(base=SMALL, trained=(path,)), run)
    run = NoiseSchedule(prediction_type=prediction)
    if snr:
        with pytest.raises(InputError, match="Set --config.noise_schedule.zero_terminal_snr=True"):
            check_schedule(Weights(base=path), run)
        run = NoiseSchedule(prediction_type=prediction, zero_terminal_snr=True)
    check_schedule(Weights(base=path), run)


@pytest.mark.parametrize("name", ["edm_mean", "edm_vpred.sigma_max"])
def test_models_of_other_noise_are_refused(name, tmp_path):
    save_file(CONV | {name: np.ones(1, np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=f"EDM.*{name}"):
        check_schedule(Weights(base=tmp_path / "model.safetensors"), NoiseSchedule())


@pytest.mark.parametrize(
    "told, words",
    [("edm", "EDM"), ("rectified_flow", "flow matching"), ("noise2x", "predicts 'noise2x', which nothing")],
)
def test_what_no_schedule_here_predicts_is_refused_wherever_that_is_told(told, words, tmp_path):
    path, scheduler = tmp_path / "model.safetensors", tmp_path / "scheduler" / "scheduler_config.json"
    save_file(CONV, path, {"modelspec.prediction_type": told})
    scheduler.parent.mkdir()
    for source in (path, tmp_path):
        scheduler.write_text(json.dumps({"prediction_type": told}))
        with pytest.raises(InputError, match=f"{words}.*Give another model"):
            check_schedule(Weights(base=source), NoiseSchedule())
    scheduler.write_text('{"_class_name": "DPMSolverMultistepScheduler", "use_flow_sigmas": true}')
    with pytest.raises(InputError, match="flow matching"):
        check_schedule(Weights(base=tmp_path), NoiseSchedule())


def test_folders_and_yaml_tell_the_noise_schedule(tmp_path):
    single = tmp_path / "768-v.safetensors"
    save_file(CONV, single)
    for text, encoding in (
        ('model:\n  params:\n    parameterization: "v"\n', "utf-8"),
        ("model: {params: {parameterization: v}}", "utf-16"),
    ):
        (tmp_path / "768-v.yaml").write_bytes(text.encode(encoding))
        assert told_by_source(single).prediction_type == "v_prediction"
    (tmp_path / "768-v.yaml").write_bytes("# café\n".encode("cp1252"))
    with pytest.raises(InputError, match="not UTF-8"):
        told_by_source(single)
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "unet").mkdir()
    file = tmp_path / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps({"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}))
    (tmp_path / "model_index.json").write_text("{}")
    save_file(CONV, tmp_path / "unet" / "diffusion_pytorch_model.safetensors")
    for source in (tmp_path, tmp_path / "unet", tmp_path / "unet" / "diffusion_pytorch_model.safetensors"):
        told = told_by_source(source)
        assert (told.prediction_type, told.zero_terminal_snr) == ("v_prediction", True)
    file.write_text('{"_class_name": "EDMEulerScheduler"}')
    with pytest.raises(InputError, match="EDM"):
        check_schedule(Weights(base=tmp_path), NoiseSchedule())


# Our own exports.


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A model of no published kind, which predicts v, as one file in the original layout."""
    folder = tmp_path_factory.mktemp("exported")
    model = folder / "model"

    shutil.copytree(SMALL, model)
    scheduler = json.loads((model / "scheduler" / "scheduler_config.json").read_text())
    told = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    (model / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler | told))
    for name, changes in (("vae", {"scaling_factor": 0.5}), ("text_encoder", {"hidden_act": "gelu"})):
        file = model / name / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    (model / "model_index.json").write_text("{}")
    path = folder / "one.safetensors"
    assert convert(["export", str(model), str(path), "--to", "sd"]) == 0
    return model, path


def test_one_file_of_an_unpublished_model_is_read_again_as_it_was(exported):
    model, path = exported
    with warnings.catch_warnings(action="error"):
        one = open_checkpoint([path])
    whole = open_checkpoint([model])
    for name in ("unet", "vae", "text_encoder"):
        assert one.components[name].config == whole.components[name].config
    assert one.components["vae"].config.scaling_factor == 0.5
    assert told_by_tensors(open_tensors(path))[:2] == ("v_prediction", True)


def test_what_a_model_predicts_goes_with_it_through_every_format(exported, tmp_path, capsys):
    _, path = exported
    own, again, folder = tmp_path / "own.safetensors", tmp_path / "again.safetensors", tmp_path / "folder"
    orbax = tmp_path / "orbax"
    assert convert(["import", str(path), str(own)]) == 0
    assert convert(["import", str(path), str(orbax)]) == 0
    assert convert(["export", str(own), str(again), "--to", "sd"]) == 0
    assert convert(["export", str(again), str(folder), "--to", "diffusers"]) == 0
    for source in (own, orbax, again, folder):
        assert told_by_source(source)[:2] == ("v_prediction", True)
    capsys.readouterr()
    assert convert(["inspect", str(own)]) == 0
    assert "predicts v_prediction, zero terminal SNR (says" in capsys.readouterr().out.splitlines()[0]


def test_formats_without_metadata_say_what_they_lose(exported, tmp_path):
    model, _ = exported
    with pytest.warns(UserWarning, match=r"\.ckpt has no place for the configs of networks.*\.safetensors"):
        convert(["export", str(model), str(tmp_path / "one.ckpt"), "--to", "sd"])


def test_nothing_is_guessed_silently():
    tensors = open_tensors(f"{SMALL}/vae")
    bare = Tensors(tensors.entries, "vae.safetensors")
    with pytest.warns(UserWarning, match="norms of .* groups and latents scaled by 0.18215.*weights.configs.vae=FILE"):
        assemble_vae(bare)
    given = VAEConfig.from_diffusers(tensors.config).to_diffusers() | {"scaling_factor": 0.25}
    with warnings.catch_warnings(action="error"):
        assert assemble_vae(bare, config=given).config.scaling_factor == 0.25
    text = Tensors(open_tensors(f"{SMALL}/text_encoder").entries, "text.safetensors")
    with pytest.warns(UserWarning, match="attention heads and the activation .*weights.configs.text_encoder=FILE"):
        assemble_text_encoder(text)


def test_configs_of_parts_are_read_by_their_names(tmp_path):
    (tmp_path / "c.json").write_text('{"scaling_factor": 0.25}')
    weights = Weights.of_config({"base": "x", "configs": {"vae": str(tmp_path / "c.json"), "unet": None}})
    assert weights.config_of("vae") == {"config": {"scaling_factor": 0.25}} and weights.config_of("unet") == {}
    with pytest.raises(InputError, match="no component is called 'vea'. Did you mean 'vae'"):
        Weights(base="x", configs={"vea": "c.json"}).config_of("vae")


# Inspect.


def test_inspect_calls_things_by_their_names(tmp_path, capsys):
    def first_line(path, *options):
        capsys.readouterr()
        assert convert(["inspect", str(path), *options]) == 0
        return capsys.readouterr().out

    out = first_line(f"{SMALL}/i2v_adapter.safetensors")
    assert "diffusers UNet" not in out and "I2V-Adapter" in out
    assert "motion LoRA of rank 2" in first_line(motion_lora(tmp_path / "zoom.safetensors"))
    attention = "lora_unet_{}_1_transformer_blocks_0_attn1_to_q"
    shapes = {"lora_down.weight": (4, 320), "lora_up.weight": (320, 4), "alpha": ()}
    blocks = ("input_blocks_1", "output_blocks_9", "output_blocks_11")
    save_file(
        {
            f"{attention.format(block)}.{leaf}": np.ones(shape, np.float32)
            for block in blocks
            for leaf, shape in shapes.items()
        },
        tmp_path / "original.safetensors",
        {"ss_v2": "False"},
    )
    out = first_line(tmp_path / "original.safetensors")
    assert "LoRA of rank 4 on 3 layers; as kohya-ss writes it" in out
    assert "SDXL" not in out and "original block numbers" in out and "not convertible" not in out
    for channels, model in ((9, "an inpainting model"), (8, "IC-Light)"), (12, "IC-Light, which")):
        unet = {"conv_in.weight": np.zeros((32, channels, 3, 3), np.float32)}
        save_file(unet | {"odd": np.zeros(1, np.float32)}, tmp_path / "lightning_4step.safetensors")
        out = first_line(tmp_path / "lightning_4step.safetensors", "--skip-unknown")
        assert model in out and f": its UNet takes {channels} channels" in out
        assert "by its name a Lightning model" in out


def test_inspect_says_what_is_convertible_without_unknown_tensors(tmp_path, capsys):
    path, tensors = tmp_path / "vae.safetensors", open_tensors(f"{SMALL}/vae")
    save_file({name: tensors[name] for name in tensors} | {"decoder.odd": np.zeros(3, np.float32)}, path)
    outputs = []
    for options in ([], ["--skip-unknown"]):
        with warnings.catch_warnings(action="ignore"):
            assert convert(["inspect", str(path), *options]) == 0
        outputs.append(capsys.readouterr().out)
    assert all("1 unknown, beside vae: decoder.odd" in output for output in outputs)
    assert ["not convertible as it is" in output for output in outputs] == [True, False]


def test_parts_are_told_by_their_paths():
    paths = ["down_blocks_0/layers_0/motion/norm/scale", "conv_in/kernel"]
    assert parts_held({"unet": paths, "vae": ["quant_conv/kernel"]}) == ["motion", "unet", "vae"]
    assert parts_held({"unet": ["x/motion/y/lora/down"]}) == ["motion_lora"]
