"""What a toy face is made of, and what its attributes and its parameters mean."""

import colorsys
import math
from collections.abc import Callable
from dataclasses import dataclass

HAIR_COLOURS = {  # hue, saturation and value at hair_shade 0
    "black": (0.07, 0.30, 0.16),
    "brown": (0.07, 0.62, 0.42),
    "blond": (0.125, 0.55, 0.86),
    "gray": (0.60, 0.06, 0.74),
    "red": (0.045, 0.78, 0.70),
}
IRIS_COLOURS = ("brown", "blue", "green", "grey")
SCENES = ("plain", "discs", "stripes")

PARAMETERS = (
    *("shift_x", "shift_y", "tilt", "yaw", "head_width", "jaw_fullness", "skin_tone", "age"),
    *("hair_red", "hair_green", "hair_blue", "hair_length"),
    *("eye_size", "eye_spacing", "eye_openness", "brow_arch", "nose_length", "nose_width", "mouth_curve", "mouth_open"),
    *("background_cos", "background_sin"),
)


FACTORS: dict[str, tuple] = {  # drawn independently of all others, and visible: their values, none for real numbers
    **dict.fromkeys(("shift_x", "shift_y", "tilt", "yaw", "head_width", "jaw_fullness", "skin_tone", "age"), ()),
    **dict.fromkeys(("eye_spacing", "eye_openness", "mouth_curve", "garment_hue", "background_hue"), ()),
    **{"background_value": (), "male": (False, True), "scene": SCENES},
}


@dataclass(frozen=True)
class Face:
    """One drawn face. Lengths are in head units (half the head's height is 1); fields without a range lie in 0..1."""

    shift_x: float  # of the whole figure to the right, -0.1..0.1
    shift_y: float  # and downwards, -0.06..0.06
    tilt: float  # of the head about its middle, -8..8 degrees clockwise
    yaw: float  # sideways turn of the face, -0.12..0.12: how far its midline moves
    asymmetry: float  # of eyes, brows and mouth

    male: bool  # heavier jaw, neck and shoulders, no lashes
    age: float  # wrinkles deepen from 0.55 on
    skin_tone: float  # 0 the palest, 1 the darkest
    head_width: float  # half of it, 0.68..0.84
    jaw_fullness: float  # 0 a pointed chin, 1 a broad round jaw
    double_chin: bool
    cheekbones: bool
    rosy_cheeks: bool
    bags: bool

    bald: bool
    hair_colour: str  # a key of HAIR_COLOURS; the brows have it too
    hair_shade: float  # -1 darker .. 1 lighter
    hair_length: float  # 0 ends at the ears, 1 below the shoulders
    hair_volume: float
    hairline: float  # 0 a low hairline, 1 a high one with deep corners
    waviness: float
    bangs: bool

    stubble: bool
    mustache: bool
    goatee: bool
    sideburns: bool  # they join a goatee along the jaw to a full beard

    eye_size: float  # 0.85..1.2 times the usual
    eye_spacing: float  # half the distance of the pupils, 0.30..0.39
    eye_openness: float
    iris: str  # one of IRIS_COLOURS
    brow_arch: float
    brow_thickness: float
    nose_length: float
    nose_width: float
    nose_point: float
    lip_fullness: float
    mouth_curve: float  # -0.5 sad .. 1 a broad smile
    mouth_open: float

    makeup: bool
    lipstick: bool
    eyeglasses: bool
    earrings: bool
    necklace: bool
    necktie: bool
    hat: str  # "none", "beanie" or "brim"
    hat_hue: float
    garment_hue: float
    v_neck: bool

    background_hue: float
    background_value: float  # 0.55..0.95
    scene: str  # one of SCENES
    blurry: bool

    @property
    def hair_rgb(self) -> tuple[float, float, float]:
        """Colour of hair, brows and beard, each channel in 0..1."""
        hue, saturation, value = HAIR_COLOURS[self.hair_colour]
        return colorsys.hsv_to_rgb(hue, saturation, value * (1 + 0.15 * self.hair_shade))

    @property
    def attributes(self) -> dict[str, bool]:
        return {name: bool(rule(self)) for name, rule in RULES.items()}

    @property
    def parameters(self) -> dict[str, float]:
        angle = 2 * math.pi * self.background_hue
        derived = dict(zip(("hair_red", "hair_green", "hair_blue"), self.hair_rgb, strict=True))
        derived |= {"background_cos": math.cos(angle), "background_sin": math.sin(angle)}
        return {name: derived[name] if name in derived else getattr(self, name) for name in PARAMETERS}


RULES: dict[str, Callable[[Face], bool]] = {
    "5_o_Clock_Shadow": lambda face: face.stubble,
    "Arched_Eyebrows": lambda face: face.brow_arch > 0.6,
    "Attractive": lambda face: face.age < 0.7 and face.asymmetry < 0.6 and not (face.bags or face.double_chin),
    "Bags_Under_Eyes": lambda face: face.bags,
    "Bald": lambda face: face.bald,
    "Bangs": lambda face: face.bangs,
    "Big_Lips": lambda face: face.lip_fullness > 0.65,
    "Big_Nose": lambda face: face.nose_width > 0.65,
    "Black_Hair": lambda face: face.hair_colour == "black" and not face.bald,
    "Blond_Hair": lambda face: face.hair_colour == "blond" and not face.bald,
    "Blurry": lambda face: face.blurry,
    "Brown_Hair": lambda face: face.hair_colour == "brown" and not face.bald,
    "Bushy_Eyebrows": lambda face: face.brow_thickness > 0.65,
    "Chubby": lambda face: face.jaw_fullness > 0.7,
    "Double_Chin": lambda face: face.double_chin,
    "Eyeglasses": lambda face: face.eyeglasses,
    "Goatee": lambda face: face.goatee,
    "Gray_Hair": lambda face: face.hair_colour == "gray" and not face.bald,
    "Heavy_Makeup": lambda face: face.makeup,
    "High_Cheekbones": lambda face: face.cheekbones,
    "Male": lambda face: face.male,
    "Mouth_Slightly_Open": lambda face: face.mouth_open > 0.3,
    "Mustache": lambda face: face.mustache,
    "Narrow_Eyes": lambda face: face.eye_openness < 0.35,
    "No_Beard": lambda face: not (face.stubble or face.mustache or face.goatee or face.sideburns),
    "Oval_Face": lambda face: face.head_width < 0.75 and face.jaw_fullness < 0.5,
    "Pale_Skin": lambda face: face.skin_tone < 0.12,
    "Pointy_Nose": lambda face: face.nose_point > 0.6,
    "Receding_Hairline": lambda face: face.hairline > 0.7 and not face.bald,
    "Rosy_Cheeks": lambda face: face.rosy_cheeks,
    "Sideburns": lambda face: face.sideburns,
    "Smiling": lambda face: face.mouth_curve > 0.35,
    "Straight_Hair": lambda face: face.waviness < 0.35 and not face.bald,
    "Wavy_Hair": lambda face: face.waviness > 0.6 and not face.bald,
    "Wearing_Earrings": lambda face: face.earrings,
    "Wearing_Hat": lambda face: face.hat != "none",
    "Wearing_Lipstick": lambda face: face.lipstick,
    "Wearing_Necklace": lambda face: face.necklace,
    "Wearing_Necktie": lambda face: face.necktie,
    "Young": lambda face: face.age < 0.7,
}
"""What each attribute means: every label is decided here. A few are the toy's own reading of CelebA's words:

Attractive (young, even, without bags or a double chin), Blurry (the picture is painted out of focus), Heavy_Makeup (eye
shadow and thick lids), High_Cheekbones (lit cheekbones over hollow cheeks), Oval_Face (narrow, with a light jaw) and
Young (wrinkles absent or faint). Nobody bald has a hair colour, a hairline or a hair texture.
"""

ATTRIBUTES = tuple(RULES)
