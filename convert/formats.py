"""The formats that `export --to` takes."""

FORMATS = {
    "diffusers": "folders that diffusers and transformers load with from_pretrained",
    "flax": "Flax checkpoints of diffusers 0.39 and transformers 4.57 and before, a folder or one .msgpack",
    "sd": "a single file of the original Stable Diffusion layout",
    "dynamicrafter": "a single file of DynamiCrafter's layout",
    "i2v-adapter": "the published I2V-Adapter: the merged UNet, or what --only chooses of it",
    "animatediff": "motion modules or a SparseCtrl in AnimateDiff's layout",
    "t2i-adapter": "a T2I-Adapter in TencentARC's layout",
    "raft": "RAFT in princeton-vl's layout (raft-things.pth)",
    "raft-torchvision": "RAFT in torchvision's layout (raft_large_C_T_V2.pth)",
    "dover": "DOVER, the network of video quality (DOVER.pth)",
    "real-esrgan": "an upscaler as Real-ESRGAN's files have it (RealESRGAN_x4plus.pth)",
    "esrgan": "an upscaler in the layout of ESRGAN's first files, which most programs read",
    "lpips": "the classifier of LPIPS with its heads, as the package lpips has them",
    "dino": "DINO's vision transformer (dino_vitbase16_pretrain.pth)",
    "i3d": "I3D in piergiaj's layout (rgb_imagenet.pt, i3d_pretrained_400.pt)",
    "i3d-hassony2": "I3D in hassony2's layout, names as in i3d_torchscript.pt",
    "ip-adapter": "an IP-Adapter: image projection and numbered attention weights",
    "kohya": "LoRA as kohya-ss's scripts write it",
    "peft": "LoRA as diffusers and PEFT write it",
    "motion-lora": "motion LoRA in AnimateDiff's layout",
    "embedding-a1111": "a textual inversion as AUTOMATIC1111 writes it (.pt)",
    "embedding-kohya": "a textual inversion as kohya-ss writes it; the only one with both text encoders of SDXL",
    "embedding-diffusers": "textual inversions as diffusers writes them (learned_embeds)",
}
"""Name -> what it is."""
