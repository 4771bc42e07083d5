"""Sheets of toybox pictures to look at: many scenes, every truth over its picture, one scene from all around.

B pictures of H x W pixels, N slots. Sheets are Pillow images, RGB, on white paper. Truth is drawn ``FINE`` times larger
than it is shown, so that outlines are smooth.
"""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ldm.toybox import captions
from ldm.toybox.camera import FIELD_OF_VIEW, Camera
from ldm.toybox.captions import PLAIN
from ldm.toybox.dataset import Dataset, Example, example, pictures
from ldm.toybox.hints import HINTS, hint
from ldm.toybox.sampling import random_scene
from ldm.toybox.scene import HEAD, RADIUS, SLOTS, Scene, stack, take
from ldm.toybox.truth import Truth
from ldm.toybox.world import render, to_uint8, truths

PAPER, INK, SOFT = (255, 255, 255), (34, 38, 46), (112, 118, 128)
MARGIN, GAP, LINE = 20, 6, 20  # pixels: around a sheet, between pictures, of a line of text
SMALLEST, READABLE, LARGEST = 16, 160, 512  # pixels along a picture; READABLE: with words on it
SAMPLES = 3  # sheets are drawn well
FINE = 3
SLOT_INKS = np.array([[0, 114, 178], [213, 94, 0], [0, 145, 110]])  # blue, vermilion, green: apart for every eye
POINT_INKS = ((0, 114, 178), (86, 180, 233), (240, 228, 66), (213, 94, 0), (230, 159, 0))
RAMP = np.array(  # near to far: light to dark in even steps
    [[252, 245, 196], [250, 200, 120], [232, 138, 96], [186, 82, 104], [120, 52, 110], [60, 36, 88], [22, 20, 46]]
)


def font(size: int) -> Any:
    """The typeface of all text."""
    return ImageFont.load_default(size=size)


def grid(tiles: Any, columns: int, gap: int = GAP, margin: int = MARGIN) -> Image.Image:
    """Pictures [B, H, W, 3], float in [0, 1] or uint8, in rows of ``columns``. Raises ValueError."""
    tiles = np.asarray(tiles)
    if tiles.ndim != 4 or tiles.shape[-1] != 3 or not tiles.shape[0]:
        raise ValueError(f"a grid is made of pictures [B, H, W, 3], at least one, got shape {tiles.shape}")
    if columns < 1:
        raise ValueError(f"a grid has at least one column, got {columns}")
    pixels = tiles if tiles.dtype == np.uint8 else to_uint8(np.clip(tiles, 0, 1))
    b, h, w, _ = pixels.shape
    rows, columns = -(-b // columns), min(b, columns)
    sheet = paper(columns * (w + gap) - gap + 2 * margin, rows * (h + gap) - gap + 2 * margin)
    for i, one in enumerate(pixels):
        sheet.paste(Image.fromarray(one), (margin + i % columns * (w + gap), margin + i // columns * (h + gap)))
    return sheet


def paper(width: int, height: int) -> Image.Image:
    """An empty sheet."""
    return Image.new("RGB", (width, height), PAPER)


def scenes_sheet(data: Dataset, rows: int = 8, columns: int = 8) -> Image.Image:
    """The first scenes of a dataset, drawn well: ``data.samples`` is not asked. Raises ValueError."""
    check_size(data.size)
    return grid(pictures(range(rows * columns), replace(data, samples=SAMPLES))["picture"], columns)


def truths_of(data: Dataset) -> Image.Image:
    """:func:`truth_sheet` of three scenes of a dataset: of 1, 2 and 3 toys, or of ``data.toys``. Raises ValueError."""
    chosen = [(n, 0) for n in range(1, SLOTS + 1)] if data.toys is None else [(data.toys, nth) for nth in range(3)]
    return truth_sheet([showcase(toys, data, nth) for toys, nth in chosen], data.size)


def hints_of(data: Dataset) -> Image.Image:
    """A scene of a dataset, of 3 toys or of ``data.toys``, and its hints for ControlNets. Raises ValueError."""
    check_size(data.size, READABLE)
    scenes = stack([showcase(SLOTS if data.toys is None else data.toys, data).scene])
    found = truths(scenes, data.size)
    drawn = {"picture": render(scenes, data.size, SAMPLES)} | {name: hint(name, found) for name in HINTS}
    return grid(np.stack([_under(to_uint8(one[0]), name) for name, one in drawn.items()]), len(drawn))


def turntable_of(data: Dataset) -> Image.Image:
    """:func:`turntable` of a scene of a dataset: of 3 toys, or of ``data.toys``. Raises ValueError."""
    return turntable(showcase(SLOTS if data.toys is None else data.toys, data).scene, size=data.size)


def check_size(size: int, least: int = SMALLEST) -> None:
    """Raises ValueError for pictures too small or too large for a sheet."""
    if not least <= size <= LARGEST:
        raise ValueError(f"the pictures of such a sheet are {least} to {LARGEST} pixels wide, got {size}")


def showcase(toys: int, data: Dataset, nth: int = 0) -> Example:
    """The ``nth`` example of ``toys`` toys that shows much: large ones of different kinds, a head that looks at us.

    Scenes are counted among those of that many toys. Raises ValueError.
    """
    data = replace(data, toys=toys)
    scenes = ((i, random_scene(i, data.seed, data.split, toys)) for i in itertools.count())
    good = (i for i, one in scenes if _shows_much(one))
    return example(next(itertools.islice(good, nth, None)), data)


def _shows_much(one: Scene) -> bool:
    there = one.kind >= 0
    turn = np.degrees(one.yaw - one.camera.azimuth)[one.kind == HEAD]
    return len(set(one.kind[there])) == there.sum() and one.size[there].all() and (np.abs(turn) < 25).any()


# ---------------------------------------------------------------------------------------------------------------------
# One scene from all around.


def turntable(scene: Scene, views: int = 12, size: int = 160, columns: int = 6) -> Image.Image:
    """A scene from ``views`` azimuths, beginning at its own; toys and lamp stand still.

    The camera looks at the middle of the toys, from where all of them are in the frame all around. Raises ValueError.
    """
    check_size(size)
    if views < 1:
        raise ValueError(f"a turntable has at least one view, got {views}")
    angles = np.degrees(scene.camera.azimuth) + 360.0 * np.arange(views) / views
    orbit = _orbit(scene)
    cameras = [replace(orbit, azimuth=np.float32(np.radians(angle))) for angle in angles]
    drawn = to_uint8(render(stack([replace(scene, camera=camera) for camera in cameras]), size, SAMPLES))
    tiles = [_under(one, f"{angle % 360:.0f}°") for one, angle in zip(drawn, angles, strict=True)]
    return grid(np.stack(tiles), columns)


def _orbit(scene: Scene) -> Camera:
    """The scene's camera, turned to the middle of the toys and as far away as they need."""
    there = scene.kind >= 0
    x, z = middle = scene.position[there].mean(0)
    reach = (np.hypot(*(scene.position[there] - middle).T) + RADIUS[scene.size[there]]).max()
    far = reach * np.hypot(1, 1 / np.tan(FIELD_OF_VIEW / 2))  # a circle of this radius fills the frame
    distance = np.maximum(scene.camera.distance, np.float32(far))
    return replace(scene.camera, target=np.array([x, scene.camera.target[1], z], np.float32), distance=distance)


def _under(picture: np.ndarray, text: str) -> np.ndarray:
    """A picture with a word below it, in the middle."""
    h, w, _ = picture.shape
    tile = paper(w, h + LINE)
    tile.paste(Image.fromarray(picture))
    ImageDraw.Draw(tile).text((w / 2, h + LINE / 2), text, fill=SOFT, font=font(13), anchor="mm")
    return np.asarray(tile)


# ---------------------------------------------------------------------------------------------------------------------
# Every truth over its picture. A painter takes (picture [H, W, 3] uint8, truth, scene) and gives an image.


def truth_sheet(examples: Sequence[Example], size: int = 224) -> Image.Image:
    """One row for each example: its picture and every truth, its caption and its camera below. Raises ValueError."""
    check_size(size, READABLE)
    scenes = stack([one.scene for one in examples])
    drawn = to_uint8(render(scenes, size * FINE, samples=1))
    found = Truth(*(np.asarray(values) for values in truths(scenes, size * FINE)))
    wide, tall = size + GAP, size + 2 * LINE + GAP
    sheet = paper(len(PAINTERS) * wide - GAP + 2 * MARGIN, len(examples) * tall + 2 * MARGIN - GAP)
    draw = ImageDraw.Draw(sheet)
    for column, name in enumerate(PAINTERS):
        place = (MARGIN + column * wide + size / 2, MARGIN + LINE / 2 - 3)
        draw.text(place, name, fill=INK, font=font(15), anchor="mm")
    for r, one in enumerate(examples):
        top = MARGIN + LINE + r * tall
        own = Truth(*(values[r] for values in found))
        for column, paint in enumerate(PAINTERS.values()):
            sheet.paste(paint(drawn[r], own, take(scenes, r)).reduce(FINE), (MARGIN + column * wide, top))
        below = top + size + LINE / 2 + 3
        draw.text((MARGIN, below), f"“{one.caption}”", fill=INK, font=font(15), anchor="lm")
        draw.text((sheet.width - MARGIN, below), pose(one.scene), fill=SOFT, font=font(14), anchor="rm")
    return sheet


def pose(scene: Scene) -> str:
    """The camera in words."""
    azimuth, elevation = (float(np.degrees(a)) for a in (scene.camera.azimuth, scene.camera.elevation))
    return (
        f"camera: azimuth {azimuth % 360:.0f}°, elevation {elevation:.0f}°, distance {float(scene.camera.distance):.1f}"
    )


def paint_picture(picture: np.ndarray, true: Truth, scene: Scene) -> Image.Image:
    """The picture itself."""
    return Image.fromarray(picture)


def paint_boxes(picture: np.ndarray, true: Truth, scene: Scene) -> Image.Image:
    """Boxes of what is seen of each toy, with its words."""
    image, boxes = Image.fromarray(picture), true.boxes * picture.shape[0]
    seen = [i for i in range(SLOTS) if true.area[i] > 0]
    draw = ImageDraw.Draw(image)
    for i in seen:
        x0, y0, x1, y1 = boxes[i]
        draw.rectangle((x0, y0, x1 - 1, y1 - 1), outline=tuple(SLOT_INKS[i]), width=2 * FINE)
    taken: list[Any] = []
    for i in seen:
        others = [boxes[j] for j in seen if j != i]
        taken.append(_label(image, _words(scene, i), boxes[i], tuple(SLOT_INKS[i]), taken + others))
    return image


def _words(scene: Scene, i: int) -> str:
    """A toy in two lines: "small shiny" over "red cube"."""
    words = captions.describe(scene, i, np.random.default_rng(0), PLAIN).split()[1:]
    return " ".join(words[:-2]) + "\n" + " ".join(words[-2:])


def _label(image: Image.Image, text: str, box: np.ndarray, ink: tuple, taken: list) -> tuple:
    """Writes ``text`` above, below or in a box, inside the picture and clear of what is taken; returns where."""
    draw, size = ImageDraw.Draw(image), image.width
    style = {"font": font(size // 19), "spacing": FINE, "align": "center"}
    _, _, right, bottom = draw.multiline_textbbox((0, 0), text, **style)
    wide, tall = int(right) + 8 * FINE, int(bottom) + 5 * FINE
    x = int(np.clip((box[0] + box[2] - wide) / 2, FINE, size - wide - FINE))
    heights = [box[1] - tall - 2 * FINE, box[3] + 2 * FINE, box[1] + 3 * FINE]
    heights = [int(np.clip(y, FINE, size - tall - FINE)) for y in heights]
    clashes = [sum(x < b[2] and b[0] < x + wide and y < b[3] and b[1] < y + tall for b in taken) for y in heights]
    y = heights[int(np.argmin(clashes))]
    draw.rounded_rectangle((x, y, x + wide, y + tall), 3 * FINE, fill=ink)
    draw.multiline_text((x + wide / 2, y + 2 * FINE), text, fill=PAPER, anchor="ma", **style)
    return x, y, x + wide, y + tall


def paint_masks(picture: np.ndarray, true: Truth, scene: Scene) -> Image.Image:
    """Each toy tinted; the rest in gray."""
    gray = picture @ np.array([0.299, 0.587, 0.114])
    inks = np.concatenate([[[255, 255, 255]], SLOT_INKS])[true.segmentation]
    toy = (true.segmentation > 0)[..., None]
    return Image.fromarray(
        np.where(toy, 0.35 * gray[..., None] + 0.65 * inks, pale(gray[..., None], 0.4)).astype(np.uint8)
    )


def paint_depth(picture: np.ndarray, true: Truth, scene: Scene) -> Image.Image:
    """Depth along a ramp from the nearest point to a little behind the toys."""
    near = true.depth.min()
    far = true.depth[true.segmentation > 0].max(initial=near) + 2.5
    share = np.clip((true.depth - near) / (far - near), 0, 1) * (len(RAMP) - 1)
    colours = np.stack([np.interp(share, np.arange(len(RAMP)), RAMP[:, c]) for c in range(3)], -1)
    return Image.fromarray(colours.astype(np.uint8))


def paint_normals(picture: np.ndarray, true: Truth, scene: Scene) -> Image.Image:
    """Normals as colours: right is red, up is green, towards the camera is blue."""
    return Image.fromarray(to_uint8(true.normals * 0.5 + 0.5))


def paint_edges(picture: np.ndarray, true: Truth, scene: Scene) -> Image.Image:
    """Outlines and creases over the paled picture, as wide as a pixel of the sheet."""
    wide = np.pad(true.edges, FINE // 2)
    wide = np.lib.stride_tricks.sliding_window_view(wide, (FINE, FINE)).any((2, 3))
    return Image.fromarray(np.where(wide[..., None], INK, pale(picture, 0.65)).astype(np.uint8))


def paint_keypoints(picture: np.ndarray, true: Truth, scene: Scene) -> Image.Image:
    """The keypoints of heads: a dot in a ring, hollow where something hides it."""
    size = picture.shape[0]
    image = Image.fromarray(pale(picture, 0.4))
    for i in np.flatnonzero(scene.kind == HEAD):
        for (x, y), seen, ink in zip(true.keypoints[i] * size, true.keypoints_seen[i], POINT_INKS, strict=True):
            _dot(ImageDraw.Draw(image), x, y, max(2 * FINE, size // 72), ink if seen else PAPER)
    return image


def _dot(draw: ImageDraw.ImageDraw, x: float, y: float, r: float, ink: tuple) -> None:
    """A dot of radius ``r`` in a white ring with a dark border."""
    for radius, colour in ((1.9 * r, INK), (1.5 * r, PAPER), (r, ink)):
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)


def pale(picture: np.ndarray, share: float) -> np.ndarray:
    """A picture with a share of white."""
    return ((1 - share) * picture + share * 255).astype(np.uint8)


PAINTERS = {
    "picture": paint_picture,
    "boxes": paint_boxes,
    "masks": paint_masks,
    "depth": paint_depth,
    "normals": paint_normals,
    "edges": paint_edges,
    "keypoints": paint_keypoints,
}

SHEETS = {
    "grid": (scenes_sheet, 96),
    "truths": (truths_of, 224),
    "hints": (hints_of, 224),
    "turntable": (turntable_of, 160),
}
"""Sheets by name: a function of a `Dataset`, and the size that it looks well at."""
