"""Scenes as pixels: anti-aliased shapes on shaded, noisy backgrounds."""

import numpy as np
from jaxtyping import Float, UInt8

from hookedvid.data.shapes.scene import N_OBJECTS, RADIUS, SIDE, Scenes
from hookedvid.data.shapes.words import SHAPES

Frames = UInt8[np.ndarray, "batch frame height width 3"]

# RGB of COLORS: bright, and apart from each other after chroma subsampling.
_RGB = np.array(
    [
        [220, 40, 40],
        [40, 180, 60],
        [50, 80, 230],
        [235, 220, 50],
        [180, 50, 200],
        [60, 210, 220],
        [245, 140, 30],
        [240, 240, 240],
    ],
    np.float32,
)
_WIDTH = 2 * RADIUS + 1


def _sprites() -> Float[np.ndarray, "shape sprite sprite"]:
    """Coverage in 0..1 of every shape, averaged over 4 x 4 points a pixel."""
    fine = 4
    axis = (np.arange(_WIDTH * fine) + 0.5) / fine - _WIDTH / 2
    y, x = np.meshgrid(axis, axis, indexing="ij")
    r = RADIUS - 0.5
    disc = np.hypot(x, y)
    bar, across = np.minimum(abs(x), abs(y)), np.maximum(abs(x), abs(y))
    inside = {
        "circle": disc <= 0.96 * r,
        "square": across <= 0.84 * r,
        "triangle": (y <= 0.85 * r) & (2 * abs(x) <= 1.12 * (y + r)),
        "diamond": abs(x) + abs(y) <= r,
        "cross": (bar <= 0.33 * r) & (across <= r),
        "ring": (disc <= r) & (disc >= 0.55 * r),
    }
    full = np.stack([inside[name] for name in SHAPES])
    return full.reshape(len(SHAPES), _WIDTH, fine, _WIDTH, fine).mean((2, 4)).astype(np.float32)


_SPRITES = _sprites()


def render(rng: np.random.Generator, scenes: Scenes) -> Frames:
    """The pixels of each clip: tint, shading and noise vary by clip; later slots cover earlier ones."""
    n, _, n_frames = scenes.visible.shape
    canvas = np.repeat(_backgrounds(rng, n)[:, None], n_frames, axis=1)
    tint = rng.normal(0, 8, size=(n, N_OBJECTS, 1, 3)).astype(np.float32)
    row = np.arange(n)[:, None, None, None]
    frame = np.arange(n_frames)[None, :, None, None]
    reach = np.arange(-RADIUS, RADIUS + 1)
    for k in range(N_OBJECTS):
        x = scenes.center[:, k, :, 0, None, None] + reach
        y = scenes.center[:, k, :, 1, None, None] + reach[:, None]
        cover = _SPRITES[scenes.shape[:, k]][:, None] * scenes.visible[:, k, :, None, None]
        paint = (_RGB[scenes.color[:, k]] + tint[:, k])[:, :, None, None]
        behind = canvas[row, frame, y, x]
        canvas[row, frame, y, x] = behind + cover[..., None] * (paint - behind)
    # The noise of a frame is shared by the clips of a batch: drawing it costs as much as all the rest.
    noise = rng.standard_normal((1, *canvas.shape[1:]), dtype=np.float32)
    canvas += noise * rng.uniform(2, 8, size=(n, 1, 1, 1, 1)).astype(np.float32)
    return rounded(canvas)


def _backgrounds(rng: np.random.Generator, n: int) -> Float[np.ndarray, "batch height width 3"]:
    """Dark colours, each shaded along a direction of its own."""
    base = rng.uniform(10, 70, size=(n, 1, 1, 3))
    slope = rng.uniform(-20, 20, size=(n, 1, 1, 3))
    angle = rng.uniform(0, 2 * np.pi, size=(n, 1, 1, 1))
    y, x = np.meshgrid(*[np.linspace(-1, 1, SIDE)] * 2, indexing="ij")
    ramp = np.cos(angle) * x[..., None] + np.sin(angle) * y[..., None]
    return (base + slope * ramp).astype(np.float32)


def rounded(pixels: Float[np.ndarray, "batch frame height width 3"]) -> Frames:
    """Pixels as bytes."""
    return np.clip(pixels.round(), 0, 255).astype(np.uint8)
