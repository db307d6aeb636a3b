"""Parts that several families share: their vision towers at full size, and what a kind of decoder always has."""

from hookedvid.values.config import VisionConfig

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

# Fields of a DecoderConfig.
QWEN2 = {"qkv_bias": True, "eps": 1e-6}
LLAMA = {"eps": 1e-5}
INTERNLM2 = {"eps": 1e-5}
