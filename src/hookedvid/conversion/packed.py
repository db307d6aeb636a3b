"""Quantised weights told by their tensors: named as what they are, and never read as if they were plain ones."""

from collections.abc import Iterable

from hookedvid.errors import ConversionError

# How the tensors beside a packed weight are named, by what wrote them; the first that fits is said.
BESIDE = {
    "quant_state.bitsandbytes__nf4": "4-bit weights (bitsandbytes, NF4)",
    "quant_state.bitsandbytes__fp4": "4-bit weights (bitsandbytes, FP4)",
    "absmax": "4-bit weights (bitsandbytes)",
    "SCB": "8-bit weights (bitsandbytes, LLM.int8)",
    "qweight": "4-bit weights (GPTQ or AWQ)",
    "qzeros": "4-bit weights (GPTQ or AWQ)",
    "weight_packed": "4-bit weights (compressed-tensors)",
    "weight_scale_inv": "FP8 weights",
    "weight_scale": "FP8 or 8-bit weights",
    "weight_blocks": "4-bit weights (MXFP4)",
    "weight_scales": "4-bit weights (MXFP4)",
}
# Codes of the safetensors format, and names of torch's types, for numbers of fewer than 16 bits.
TYPES = {
    "F8_E4M3": "FP8 weights", "F8_E5M2": "FP8 weights", "F8_E8M0": "FP8 scales", "F4": "4-bit weights",
    "F6_E2M3": "6-bit weights", "F6_E3M2": "6-bit weights",
    "float8_e4m3fn": "FP8 weights", "float8_e5m2": "FP8 weights", "float8_e4m3fnuz": "FP8 weights",
    "float8_e5m2fnuz": "FP8 weights", "float8_e8m0fnu": "FP8 scales", "float4_e2m1fn_x2": "4-bit weights",
    "int8": "8-bit or packed weights", "uint8": "8-bit or packed weights", "int32": "packed weights",
}  # fmt: skip
WAY_OUT = (
    "what they stand for depends on the code that packed them, so they are not read here. Convert the checkpoint in 16 "
    "bits that they were made from, or let transformers unpack them (model.dequantize()) and give that model to "
    "from_transformers, or save it and convert that"
)


def refuse_packed(names: Iterable[str]) -> None:
    """Raise ConversionError where tensors' names show quantised weights."""
    last = {name.rsplit(".", 1)[-1]: name for name in names} | {
        ".".join(name.rsplit(".", 2)[-2:]): name for name in names
    }
    for end, kind in BESIDE.items():
        if end in last:
            raise ConversionError(f"the checkpoint holds {kind}, as {last[end]!r} shows; {WAY_OUT}")


def refuse_type(name: str, kind: str) -> None:
    """Raise ConversionError where a weight is stored as a type of fewer than 16 bits, or as integers."""
    if kind in TYPES:
        raise ConversionError(f"tensor {name!r} is stored as {kind}: {TYPES[kind]}; {WAY_OUT}")
