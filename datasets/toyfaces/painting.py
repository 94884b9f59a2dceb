"""Painting of toy faces: `render(face, size)`."""

from PIL import Image, ImageDraw, ImageFilter

from datasets.toyfaces.dress import draw_adornments, draw_body
from datasets.toyfaces.face import Face
from datasets.toyfaces.hair import draw_hair_behind, draw_hair_in_front
from datasets.toyfaces.head import draw_features, draw_head
from datasets.toyfaces.pen import FRAME, WHITE, Pen, hsv, mix, palette_of


def render(face: Face, size: int) -> Image.Image:
    """The RGB picture of a face, size x size pixels (32 and more look right)."""
    reduction = max(4, 256 // size)
    image = _background(face, size * reduction)
    palette = palette_of(face)
    body, head = Pen(image, face, turned=False), Pen(image, face, turned=True)
    draw_hair_behind(head, face, palette)
    draw_body(body, face, palette)
    draw_head(head, face, palette)
    draw_features(head, face, palette)
    draw_hair_in_front(head, face, palette)
    draw_adornments(head, face, palette)
    image = image.reduce(reduction)
    return image.filter(ImageFilter.GaussianBlur(0.03 * size)) if face.blurry else image


def _background(face: Face, size: int) -> Image.Image:
    """A wall lit from the upper left, plain or with a soft pattern."""
    light = hsv(face.background_hue, 0.22, min(1.0, face.background_value + 0.05))
    dark = hsv(face.background_hue, 0.42, face.background_value - 0.2)
    corners = Image.new("RGB", (2, 2))
    corners.putdata([light, mix(light, dark, 0.4), mix(light, dark, 0.6), dark])
    image = corners.resize((size, size), Image.Resampling.BILINEAR, box=(0.5, 0.5, 1.5, 1.5))
    draw, unit = ImageDraw.Draw(image, "RGBA"), size / FRAME
    if face.scene == "discs":
        for x, y, radius in ((0.2, 0.4, 0.45), (2.5, 0.2, 0.6), (2.7, 1.4, 0.4), (0.0, 1.8, 0.5)):
            box = [unit * edge for edge in (x - radius, y - radius, x + radius, y + radius)]
            draw.ellipse(box, (*WHITE, 44))
    elif face.scene == "stripes":
        for left in (0.1, 0.85, 1.6, 2.35):
            draw.rectangle([unit * left, 0, unit * (left + 0.4), size], (*WHITE, 36))
    return image
