"""Parts that several families share: their vision towers at full size, and what a kind of decoder always has."""

from dataclasses import replace

from hookedvid.values.config import PixelBudget, VisionConfig

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# Full-size towers (facts: Hugging Face configs). CLIP's last block and SigLIP's 27th never run: features are
# the stream after 23 of 24 and 26 of 27 blocks.
CLIP_L_336 = VisionConfig(
    n_layers=23, d_model=1024, n_heads=16, d_mlp=4096, image_size=336, patch_size=14, act="quick_gelu", eps=1e-5,
    patch_bias=False, cls_token=True, pre_norm=True, resize="crop", mean=CLIP_MEAN, std=CLIP_STD,
)  # fmt: skip
SIGLIP_SO400M = VisionConfig(
    n_layers=26,
    d_model=1152,
    n_heads=16,
    d_mlp=4304,
    image_size=384,
    patch_size=14,
    act="gelu_tanh",
    eps=1e-6,
)
INTERNVIT_300M = VisionConfig(
    n_layers=24, d_model=1024, n_heads=16, d_mlp=4096, image_size=448, patch_size=14, act="gelu", eps=1e-6,
    cls_token=True, layer_scale=True, mean=IMAGENET_MEAN, std=IMAGENET_STD,
)  # fmt: skip
# V2.5, which has 45 blocks; transformers' class and the first release have 48.
INTERNVIT_6B = replace(
    INTERNVIT_300M, n_layers=45, d_model=3200, n_heads=25, d_mlp=12800, norm="rms", qk_norm=True, qkv_bias=False
)
# Video-LLaVA's, which hands class tokens on.
CLIP_L_224 = replace(CLIP_L_336, image_size=224, resample="bicubic", cls_kept=True)

# Towers that take frames of any shape. Budgets are those of the published preprocessor_config.json: transformers'
# classes have others. Without learned positions `image_size` is the side of no more than a usual frame.
QWEN2_VIT = VisionConfig(
    n_layers=32, d_model=1280, n_heads=16, d_mlp=5120, image_size=448, patch_size=14, act="quick_gelu", eps=1e-6,
    patch_bias=False, patch_frames=2, positions="none", rope_theta=1e4, mean=CLIP_MEAN, std=CLIP_STD,
    resize="fit", resample="bicubic", budget=PixelBudget(least=3136, most=12_845_056), multiple=28,
)  # fmt: skip
# Of the 3B and the 7B: d_mlp is 3456 in the 32B and the 72B. Windows are 112 pixels wide.
QWEN2_5_VIT = replace(
    QWEN2_VIT, d_mlp=3420, act="silu", norm="rms", gated=True, window=8, full_blocks=(7, 15, 23, 31)
)  # fmt: skip
# Of the 2B and the 4B; positions are learned for 48 x 48 patches.
QWEN3_VIT_300M = VisionConfig(
    n_layers=24, d_model=1024, n_heads=16, d_mlp=4096, image_size=768, patch_size=16, act="gelu_tanh", eps=1e-6,
    patch_frames=2, positions="interpolated", rope_theta=1e4, deepstack=(5, 11, 17),
    resize="fit", resample="bicubic", budget=PixelBudget(least=4096, most=25_165_824, per="clip"), multiple=32,
)  # fmt: skip
# Of the 8B and the 32B.
QWEN3_VIT_400M = replace(QWEN3_VIT_300M, n_layers=27, d_model=1152, d_mlp=4304, deepstack=(8, 16, 24))
# 16 to 16,384 / frames tokens a frame. transformers' port resizes by torch's `bicubic`, the authors' code by Pillow's.
VIDEOLLAMA3_VIT = replace(
    SIGLIP_SO400M, n_layers=27, final_norm=True, positions="none", rope_theta=1e4, drop_below=0.1,
    resize="fit", budget=PixelBudget(least=16 * 28**2, most=16_384 * 28**2, per="share"), multiple=28,
)  # fmt: skip
# LLaVA-OneVision-1.5's; class tokens are taken out as its published code does.
RICE = replace(
    QWEN2_VIT, n_layers=24, d_model=1024, d_mlp=4096, act="gelu", eps=1e-5, patch_frames=1, cls_token=True,
    cls_cut="released", pre_norm=True,
)  # fmt: skip
# SmolVLM2's: of the 256M and the 500M, and of the 2.2B. All blocks run, and the last norm.
SMOLVLM_SIGLIP_512 = VisionConfig(
    n_layers=12, d_model=768, n_heads=12, d_mlp=3072, image_size=512, patch_size=16, act="gelu_tanh", eps=1e-6,
    final_norm=True, resize="squash_twice", resample="lanczos",
)  # fmt: skip
SMOLVLM_SIGLIP_384 = replace(SIGLIP_SO400M, n_layers=27, final_norm=True, resize="squash_twice", resample="lanczos")

# Fields of a DecoderConfig.
QWEN2 = {"qkv_bias": True, "eps": 1e-6}
QWEN3 = {"qk_norm": True, "eps": 1e-6}
LLAMA = {"eps": 1e-5}
INTERNLM2 = {"eps": 1e-5}
