"""The kinds of files of weights that people have: how each is known, whether it is read here, what to do with it.

Patterns are of whole tensor names, as they stand in the files of the tools that write them.
"""

from typing import NamedTuple


class Kind(NamedTuple):
    """A kind of file that is not read here.

    Attributes:
      title: what the field calls it, with an article where a sentence wants one.
      has: patterns, each of which some name of the file matches.
      instead: what to use in its place, a sentence.
      lacks: patterns that no name of the file matches.
      why: what is the matter with it where a part of a model is wanted.
    """

    title: str
    has: tuple[str, ...]
    instead: str
    lacks: tuple[str, ...] = ()
    why: str = "is not read here"


class Part(NamedTuple):
    """A part of a model that is read here.

    Attributes:
      title: what messages call it.
      slots: keys of `config.weights` that take it.
      use: what to do with a file of it, a sentence; `{source}` is the file.
    """

    title: str
    slots: tuple[str, ...]
    use: str


_MERGE = (
    "Read are LoRA, LoHa, LoKr, DoRA, (IA)^3, trained norms and full differences; merge such weights into the model "
    "with the program that made them, and convert that."
)
_LVDM = (r"(.*\.)?init_attn\..*",)
_VIDEO = "Read is DynamiCrafter, such as Doubiiu/DynamiCrafter_512/model.ckpt (weights.base)."
_MODELS = "Read are Stable Diffusion 1.x, 2.x and XL, such as stable-diffusion-v1-5/stable-diffusion-v1-5."
_MOTION = "Read are AnimateDiff's motion modules, such as guoyww/animatediff/v3_sd15_mm.ckpt (weights.motion)."
_CONTROL = (
    "Of control networks, ControlNets, SparseCtrl and T2I-Adapters are read, such as "
    "lllyasviel/control_v11p_sd15_openpose (weights.controls); the first frame is given by an I2V-Adapter "
    "(weights.adapter)."
)
_IMAGES = (
    "Read are IP-Adapters, such as h94/IP-Adapter/models/ip-adapter-plus-face_sd15.safetensors or "
    "h94/IP-Adapter-FaceID/ip-adapter-faceid_sd15.bin (weights.image_adapter)."
)
_VAE = "Wanted is a whole AutoencoderKL, such as stabilityai/sd-vae-ft-mse (weights.vae)."
_RIFE = (
    "Read are RIFE 4.5 to 4.26, such as rife47.pth or a flownet.pkl: `python -m i2v_jax.finishing.finish` takes them."
)
_CLIP = (
    "Read are CLIP encoders as transformers names them, such as openai/clip-vit-large-patch14 (text) or "
    "h94/IP-Adapter/models/image_encoder (pictures)."
)
_NOT_OF_A_MODEL = "It is no part of a diffusion model: leave it out."

_LORA = (
    r"(lora_down|lora_up|lora_A|lora_B|lora\.down|lora\.up|lokr_\w+|hada_\w+|dora_scale|alpha|diff(_b)?|[wb]_norm"
    r"|on_input|ia3_l)(\.\w+)*"
)

LORA_METHODS = (
    Kind("GLoRA", (r".*\.(a1|a2|b1|b2|bm1|bm2)\.weight",), _MERGE),
    Kind("OFT, an orthogonal transformation", (r".*\.(oft_blocks|oft_diag|oft_r(\..*)?)",), _MERGE),
    Kind("BOFT, an orthogonal transformation", (r".*\.boft_.*",), _MERGE),
    Kind("VeRA, of shared random matrices", (r".*\.vera_(lambda_[bd]|[AB])(\..*)?|vera_[AB](\..*)?",), _MERGE),
    Kind("a LoRA with biases of its own", (r".*\.lora_B\.bias|.*\.(lora_up|lora\.up)\.bias",), _MERGE),
)
"""What is shared beside LoRA, by the names that tell it."""

LORAS_OF_OTHERS = tuple(
    Kind(f"a LoRA for {title}", (rf"(?:{pattern}).*[._]{_LORA}",), f"Take one that was trained on your base. {_MODELS}")
    for title, pattern in (
        (
            "HunyuanVideo",
            r"(diffusion_model\.|transformer\.)?double_blocks\.\d+\.(img|txt)_attn_(qkv|proj)|.*individual_token_refiner",
        ),
        ("Flux", r"(lora_unet_|lycoris_|diffusion_model\.|transformer\.)?(double|single)_(blocks|transformer_blocks)"),
        ("Stable Diffusion 3", r"(lora_unet_|lycoris_|diffusion_model\.)?joint_blocks"),
        ("a T5 text encoder", r"lora_te\d?_encoder_block_|(lora_te\d?|t5|t5xxl)\.encoder\.block\."),
        (
            "Wan video",
            r"(lora_unet_|diffusion_model\.|transformer\.|lora_wan_)?(__)?blocks[._]\d+[._](self|cross)_attn",
        ),
        (
            "a diffusion transformer (Flux, Stable Diffusion 3, a video model)",
            r"(lora_)?transformer[._]|diffusion_model\.(transformer_blocks|noise_refiner|context_refiner|layers)\.",
        ),
        ("Stable Cascade", r"lora_prior_"),
    )
)

MOTION = (
    Kind("AnimateLCM-I2V, motion modules with an image encoder", (r"(.*\.)?img_encoder\..*",), _MOTION),
    Kind(
        "FancyVideo, motion modules with conditions of their own",
        (r".*\.motion_modules\..*", r"(.*\.)?(FPS_embedding|fps_embedding|motion_embedding)\..*"),
        _MOTION,
    ),
    Kind(
        "CameraCtrl, control by the camera's path",
        (
            r".*\.(qkv_merge|merge_net)\..*|(.*\.)?pose_encoder(_state_dict)?\..*|.*encoder_down_(conv|attention)_blocks\..*",
        ),
        f"{_MOTION} A camera's motion is also learnt by motion LoRA, which weights.loras takes.",
    ),
    Kind("MotionCtrl, control by the camera's path", (r".*\.cc_projection\..*",), _MOTION, lacks=_LVDM),
    Kind("Stable Video Diffusion", (r".*\.(time_stack|time_mixer|temporal_transformer_blocks)\..*",), _MODELS),
    Kind(
        "ModelScope's text-to-video (ZeroScope)",
        (r".*\.(temopral_conv|temp_convs|temp_attentions)\..*",),
        _MODELS,
        lacks=_LVDM,
    ),
    Kind(
        "VideoCrafter, which makes videos of a prompt",
        (r"(.*\.)?(init_attn|framestride_embed|fps_embedding)\..*",),
        _VIDEO,
        lacks=(r".*\.attn2\.to_k_ip\.weight",),
    ),
)

CONTROLS = (
    Kind("a Control-LoRA, a ControlNet as low-rank changes", (r"lora_controlnet",), _CONTROL),
    Kind("ControlNet-LLLite", (r"lllite_.*",), _CONTROL),
    Kind(
        "a T2I-Adapter for style, or what joins several",  # before ControlNet Union, whose task_embedding it has
        (r"(.*\.)?(transformer_layes\..*|style_embedding|spatial_feat_mapping\.\d+\..*|seq_proj)",),
        _CONTROL,
    ),
    Kind(
        "a ControlNet Union, of several controls", (r"(.*\.)?(control_add_embedding|task_embedding)(\..*)?",), _CONTROL
    ),
    Kind("ControlNet-XS", (r"(.*\.)?(ctrl_to_base|base_to_ctrl|enc_zero_convs_(in|out))\..*",), _CONTROL),
    Kind("BrushNet, inpainting by a second UNet", (r"(.*\.)?brushnet_(down|up)_blocks\..*",), _CONTROL),
    Kind(
        "ELLA, prompts read by a language model",
        (r"(connector\.)?time_aware\..*", r"(connector\.)?perceiver_blocks\..*"),
        "Prompts are read by the model's own CLIP here: leave it out.",
    ),
    Kind("GLIGEN", (r"(.*\.)?(position_net|fuser)\..*",), _CONTROL),
    Kind("PhotoMaker", (r"(.*\.)?(id_encoder|lora_weights)\..*",), _IMAGES),
    Kind("PuLID", (r"(.*\.)?(pulid_\w+|id_adapter\w*)\..*",), _IMAGES),
)

EMBEDDINGS = (
    Kind(
        "a textual inversion",
        (r"string_to_param(\..*)?|emb_params|clip_[lg]|<.*>",),
        "Give it as weights.embeddings=FILE: its token then stands for it in prompts.",
        why="is no part of a network",
    ),
    Kind(
        "a hypernetwork",
        (r"(320|640|768|1024|1280|2048)\.\d+\.linear\..*",),
        "Hypernetworks are not read here: use a LoRA of the same subject.",
    ),
)

CODECS = (
    Kind(
        "TAESD, a small autoencoder for previews",
        (r"((taesd_)?(encoder|decoder)\.)?(layers\.)?\d+\.conv\.0\.(weight|bias)",),
        _VAE,
    ),
    Kind("a consistency decoder", (r"(.*\.)?embed_(image|time)\.(f|emb)\..*",), _VAE),
    Kind(
        "a video autoencoder",
        (
            r"(.*\.)?(decoder|encoder)\..*(time_conv|temporal_res_block|causal_conv|\.conv\.conv|upsamples\.\d+\.residual)\b.*",
        ),
        _VAE,
    ),
    Kind(
        "a restorer of faces (GFPGAN, CodeFormer)",  # the latter has a codebook too
        (r"(params(_ema)?\.)?(stylegan_decoder|idx_pred_layer|fuse_convs_dict)\..*",),
        _NOT_OF_A_MODEL,
    ),
    Kind("an autoencoder with a codebook (VQ)", (r"(.*\.)?quantize\.embedding\..*",), _VAE),
    Kind(
        "part of Stable Cascade",
        (r"(.*\.)?(clip_txt_mapper|clip_txt_pooled_mapper|effnet_mapper|effnet)\..*",),
        _MODELS,
    ),
    Kind(
        "an upscaler of a kind that is not read (SwinIR and its kin)",
        (r"(.*\.)?(upsampler|upsample)(\.\d)?\.weight|(.*\.)?residual_group\..*",),
        "Read are RRDBNet and SRVGGNet (ESRGAN, Real-ESRGAN): `python -m i2v_jax.finishing.finish` takes them.",
    ),
    Kind(
        "RIFE 4.0 to 4.4, which refines frames otherwise",
        (r"(module\.)?block3\.convblock\.\d+\.0\.weight",),
        _RIFE,
    ),
    Kind(
        "RIFE before 4.0, of research or HD",
        (r"(module\.)?block\d\.(convblock\d?\.\d+\.0\.(0\.)?weight|res\d\..*|convblock\d\..*)",),
        _RIFE,
    ),
    Kind("IFRNet or AMT, which make frames between frames", (r"(module\.)?encoder\.pyramid1\..*",), _RIFE),
)

TRANSFORMERS = tuple(
    Kind(title, (pattern,), _MODELS)
    for title, pattern in (
        ("Flux", r"(.*\.)?double_blocks\.\d+\.img_attn\.(qkv|norm)\..*|(.*\.)?single_transformer_blocks\..*"),
        ("Chroma, a kin of Flux", r"(.*\.)?distilled_guidance_layer\..*"),
        ("Qwen-Image", r"(.*\.)?transformer_blocks\.\d+\.img_(mlp|mod)\..*"),
        ("Stable Diffusion 3", r"(.*\.)?joint_blocks\.\d+\..*|(.*\.)?transformer_blocks\.\d+\.attn\.add_q_proj\..*"),
        ("Wan video", r"(.*\.)?blocks\.\d+\.(self|cross)_attn\.(q|k|v|norm_q)\..*"),
        ("HunyuanVideo", r"(.*\.)?(txt_in\.individual_token_refiner|double_blocks\.\d+\.img_attn_qkv)\..*"),
        ("LTX-Video", r"(.*\.)?(patchify_proj|adaln_single\.emb\.timestep_embedder)\..*"),
        ("CogVideoX", r"(.*\.)?patch_embed\.text_proj\..*"),
        ("Mochi", r"(.*\.)?(t5_yproj|t5_y_embedder)\..*"),
        ("PixArt", r"(.*\.)?(y_embedder\.y_proj|caption_projection\.y_proj)\..*"),
        ("AuraFlow", r"(.*\.)?double_layers\.\d+\..*"),
        ("Lumina", r"(.*\.)?(cap_embedder|noise_refiner)\..*"),
        ("HiDream", r"(.*\.)?double_stream_blocks\..*"),
        (
            "Kandinsky, Kolors or DeepFloyd IF",
            r"(unet\.)?(encoder_hid_proj|add_embedding)\.(weight|(norm\d?|image_(proj|norm|embeds)|pool)\..*)",
        ),
    )
)

ENCODERS = (
    Kind(
        "CLIP in OpenAI's and OpenCLIP's own names",
        (r"(visual\.)?(transformer\.resblocks\.\d+\.attn\.in_proj_weight)|visual\.conv1\.weight",),
        _CLIP,
        lacks=(r"cond_stage_model\..*", r"conditioner\..*", r".*diffusion_model.*"),
    ),
    Kind("SigLIP", (r"(.*\.)?vision_model\.head\.probe",), _CLIP),
    Kind("DINOv2", (r"(.*\.)?(blocks\.\d+\.ls1\.gamma|encoder\.layer\.\d+\.layer_scale1\.lambda1)",), _CLIP),
    Kind("a T5 text encoder", (r"(.*\.)?encoder\.block\.\d+\.layer\.\d+\.(SelfAttention|DenseReluDense)\..*",), _CLIP),
    Kind(
        "a language model",
        (r"(.*\.)?layers\.\d+\.self_attn\.(q|k)_proj\.weight", r"(.*\.)?layers\.\d+\.mlp\.gate_proj\.weight"),
        _CLIP,
    ),
    Kind("Segment Anything", (r"(.*\.)?(mask_decoder|prompt_encoder|sam_mask_decoder)\..*",), _NOT_OF_A_MODEL),
    Kind(
        "a depth estimator",
        (r"(.*\.)?(depth_head|scratch)\..*",),
        _NOT_OF_A_MODEL,
        lacks=(r".*diffusion_model.*",),  # a whole depth-to-image model
    ),
    Kind(
        "a safety checker",
        (r"(safety_checker\.)?(concept_embeds|special_care_embeds)(_weights)?",),
        _NOT_OF_A_MODEL,
        lacks=(r".*diffusion_model.*", r"(unet/|unet\.)?conv_in\..*"),
    ),
)

STATES = (
    Kind(
        "quantised weights (fp8 with scales, bitsandbytes, SVDQuant)",
        (
            r"scaled_fp8|.*\.(scale_weight|scale_input|weight_scale(_\d)?|absmax|quant_map|quant_state(\..*)?|comfy_quant"
            r"|SCB|qweight|wscales|proj_down)",
        ),
        "Take the same model in float16, bfloat16 or float32.",
    ),
    Kind(
        "an optimizer's state",
        (r"(optimizer_state\.|optimizer\.)?state\.\d+\.(exp_avg|exp_avg_sq|momentum_buffer)",),
        "Give the weights that were saved beside it, such as a .safetensors file.",
    ),
    Kind(
        "a UNet distilled for latent consistency (LCM), with the guidance scale as an input",
        (r"(.*\.)?time_(embedding\.cond_proj|embed\.cond_proj|embed_condition)\.weight",),
        "Take the model that it was distilled from, and merge the LoRA instead: `python -m convert import MODEL "
        "lcm.safetensors --lora latent-consistency/lcm-lora-sdv1-5`.",
    ),
)

UNREAD = (
    *LORA_METHODS,
    *LORAS_OF_OTHERS,
    *MOTION,
    *CONTROLS,
    *EMBEDDINGS,
    *TRANSFORMERS,
    *CODECS,
    *ENCODERS,
    *STATES,
)
"""The kinds that are not read, in the order in which they are tried."""

ALIKE = (
    Kind(
        "a LoRA whose layers have names that are not known here",
        (rf".*[._]{_LORA}",),
        "Read is LoRA as kohya-ss, PEFT, diffusers and AnimateDiff name it, of Stable Diffusion 1.x, 2.x and XL.",
    ),
    Kind("motion modules in names that are not known here", (r".*(motion|temporal).*",), _MOTION),
    Kind("an autoencoder in names that are not known here", (r"(.*\.)?decoder\..*",), _VAE),
    Kind("a transformer in names that are not known here", (r".*(attn|attention).*",), _MODELS),
)
"""What a file is like that is of no known format, in the order in which they are tried."""

_LORA_USE = (
    "Give it as weights.loras=\"('{source}=1.0',)\"; or merge it into the model: `python -m convert import BASE "
    "model.safetensors --lora {source}`, then weights.base=model.safetensors."
)

READ = {
    "unet": Part(
        "a UNet",
        ("unet", "base"),
        "Give it as weights.unet={source}, or, with the rest of the model, as weights.base={source}.",
    ),
    "motion": Part("motion modules", ("motion",), "Give it as weights.motion={source}."),
    "first_frame": Part("a first-frame adapter (I2V-Adapter)", ("adapter",), "Give it as weights.adapter={source}."),
    "image_tokens": Part(
        "an IP-Adapter",
        ("image_adapter",),
        "Give it as weights.image_adapter={source}, and as weights.image_encoder the image encoder that it was "
        "trained with (a plain FaceID has none: it wants image_prompts.face_embedding).",
    ),
    "miva": Part(
        "a MIVA, of one motion",
        ("mivas",),
        "Give it as --config.mivas=\"('{source}=1.0',)\", with the model that it was trained on as weights.base.",
    ),
    "image_proj": Part(
        "an IP-Adapter's image projection", ("image_adapter",), "Give the whole IP-Adapter as weights.image_adapter."
    ),
    "motion_lora": Part(
        "a motion LoRA",
        ("lora", "loras"),
        "Give it as weights.loras=\"('{source}=1.0',)\"; or merge it into motion modules: `python -m convert import "
        "MOTION motion.safetensors --lora {source}`, then weights.motion=motion.safetensors.",
    ),
    "lora": Part("a LoRA", ("lora", "loras"), _LORA_USE),
    "dora": Part("a DoRA", ("lora", "loras"), _LORA_USE),
    "loha": Part("a LoHa", ("lora", "loras"), _LORA_USE),
    "lokr": Part("a LoKr", ("lora", "loras"), _LORA_USE),
    "ia3": Part("an (IA)^3", ("lora", "loras"), _LORA_USE),
    "norm": Part("trained norms (LyCORIS)", ("lora", "loras"), _LORA_USE),
    "full": Part("full differences of weights (LyCORIS)", ("lora", "loras"), _LORA_USE),
    "vae": Part("an autoencoder (VAE)", ("vae",), "Give it as weights.vae={source}."),
    "text_encoder": Part(
        "a CLIP text encoder",
        ("text_encoder", "text_encoder_2"),
        "Give it as weights.text_encoder={source} (SDXL's second one as weights.text_encoder_2).",
    ),
    "text_encoder_2": Part(
        "SDXL's second text encoder", ("text_encoder_2",), "Give it as weights.text_encoder_2={source}."
    ),
    "image_encoder": Part("a CLIP image encoder", ("image_encoder",), "Give it as weights.image_encoder={source}."),
    "controlnet": Part(
        "a ControlNet",
        ("controls", "controlnet"),
        "Give it as weights.controls={source}, with --control=PICTURES of `python sample.py`.",
    ),
    "sparse_controlnet": Part(
        "a SparseCtrl, control by a few frames",
        ("controls",),
        "Give it as weights.controls={source}, its pictures as controls.pictures, and as controls.frames where they "
        "stand.",
    ),
    "t2i_adapter": Part(
        "a T2I-Adapter",
        ("controls",),
        "Give it as weights.controls={source}, its pictures as controls.pictures.",
    ),
    "raft": Part(
        "RAFT, an optical-flow estimator",
        (),
        "It measures videos: give it to `python evaluate.py` as --config.metric_weights.raft={source}.",
    ),
    "dover": Part(
        "DOVER, which tells the quality of videos",
        (),
        "It measures videos: give it to `python evaluate.py` as --config.metric_weights.dover={source}.",
    ),
    "upscaler": Part(
        "an upscaler",
        (),
        "It enlarges videos: give it to `python -m i2v_jax.finishing.finish` as --config.upscale.by={source}.",
    ),
    "ifnet": Part(
        "an IFNet (RIFE), which makes frames between frames",
        (),
        "It smooths videos: give it to `python -m i2v_jax.finishing.finish` as --config.interpolate.by={source}.",
    ),
    "lpips": Part(
        "the classifier of LPIPS, which tells how alike pictures look",
        (),
        "It measures videos: give it to `python evaluate.py` as --config.metric_weights.lpips={source}.",
    ),
    "dino": Part(
        "DINO, which tells whether pictures are of one subject",
        (),
        "It measures videos: give it to `python evaluate.py` as --config.metric_weights.dino={source}.",
    ),
    "i3d": Part(
        "I3D, which tells actions in videos",
        (),
        "It measures videos: give it to `python evaluate.py` as --config.metric_weights.i3d={source}.",
    ),
    "unet_ema": Part(
        "averaged weights of a UNet",
        (),
        "`python -m convert` converts them; give a file that holds the UNet itself too.",
    ),
    "noise_schedule": Part("a noise schedule", (), "Give the model that it is of."),
    "leftovers": Part("leftovers of a tool", (), "Give the model that they are of."),
}
"""The parts that are read, by what `find.parts_held` calls them."""

SLOTS = {
    "base": ("UNet", "stable-diffusion-v1-5/stable-diffusion-v1-5"),
    "unet": ("UNet", "stable-diffusion-v1-5/stable-diffusion-v1-5"),
    "motion": ("motion modules", "guoyww/animatediff/mm_sd_v15.ckpt"),
    "adapter": ("first-frame adapter", "space-xun/i2v_adapter/i2v_module.pth"),
    "image_adapter": ("IP-Adapter", "h94/IP-Adapter/models/ip-adapter-plus_sd15.safetensors"),
    "image_encoder": ("CLIP image encoder", "h94/IP-Adapter/models/image_encoder"),
    "vae": ("autoencoder (VAE)", "stabilityai/sd-vae-ft-mse"),
    "text_encoder": ("CLIP text encoder", "openai/clip-vit-large-patch14"),
    "text_encoder_2": ("second text encoder", "stabilityai/stable-diffusion-xl-base-1.0/text_encoder_2"),
    "lora": ("LoRA", "latent-consistency/lcm-lora-sdv1-5"),
    "controls": ("control network", "lllyasviel/control_v11p_sd15_openpose"),
    "loras": ("LoRA", "latent-consistency/lcm-lora-sdv1-5"),
    "trained": ("weights in the form that train.py writes", "trained.safetensors"),
}
"""Key of `config.weights` -> what it takes, and an example; "lora" is `--lora` of `python -m convert`."""
