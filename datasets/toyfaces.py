"""Toy faces: procedurally drawn portraits with CelebA's 40 attributes and exact real-valued labels.

`describe(index, seed)` draws the numbers of one face, at random access; `render(face, size)` paints it. A `Face` holds
nothing but what is painted, and `RULES` derives every attribute from it, so that each label can be seen in the picture
or follows from things that can. Male, age, beards, makeup, hair and jewellery correlate roughly as they do in CelebA.
"""

import colorsys
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from datasets.toyfaces_draw import render

__all__ = ["ATTRIBUTES", "PARAMETERS", "RULES", "Face", "describe", "labels", "render", "targets"]

HAIR_COLOURS = {  # hue, saturation and value at hair_shade 0
    "black": (0.07, 0.30, 0.16),
    "brown": (0.07, 0.62, 0.42),
    "blond": (0.125, 0.55, 0.86),
    "gray": (0.60, 0.06, 0.74),
    "red": (0.045, 0.78, 0.70),
}
IRIS_COLOURS = ("brown", "blue", "green", "grey")
SCENES = ("plain", "discs", "stripes")
BEARDS = {  # what men wear, and how many in 100 of them
    (): 50,
    ("stubble",): 15,
    ("mustache",): 8,
    ("goatee",): 6,
    ("sideburns",): 6,
    ("mustache", "goatee"): 7,
    ("mustache", "goatee", "sideburns"): 8,
}

PARAMETERS = (
    *("shift_x", "shift_y", "tilt", "yaw", "head_width", "jaw_fullness", "skin_tone", "age"),
    *("hair_red", "hair_green", "hair_blue", "hair_length"),
    *("eye_size", "eye_spacing", "eye_openness", "brow_arch", "nose_length", "nose_width", "mouth_curve", "mouth_open"),
    *("background_cos", "background_sin"),
)


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


def describe(index: int, seed: int = 0) -> Face:
    """The face number `index` of the data set `seed` (both non-negative), independent of every other face."""
    rng = np.random.default_rng([seed, index])
    male, age, tone = _chance(rng, 0.45), _uniform(rng, 0, 1), _uniform(rng, 0, 1)
    dress = _dress(rng, male)
    hair = _hair(rng, male, age, tone, hatless=dress["hat"] == "none")
    return Face(
        male=male,
        age=age,
        skin_tone=tone,
        **_pose(rng),
        **_head(rng, age),
        **_features(rng, male),
        **_beard(rng, male),
        **_background(rng),
        **dress,
        **hair,
    )


def labels(indices: Iterable[int], seed: int = 0) -> np.ndarray:
    """Attributes of the faces, int8 of 0 and 1, [n, 40] in the order of ATTRIBUTES."""
    rows = [list(describe(index, seed).attributes.values()) for index in indices]
    return np.array(rows, dtype=np.int8).reshape(-1, len(ATTRIBUTES))


def targets(indices: Iterable[int], seed: int = 0) -> np.ndarray:
    """Drawing parameters of the faces, float32, [n, len(PARAMETERS)] in the order of PARAMETERS."""
    rows = [list(describe(index, seed).parameters.values()) for index in indices]
    return np.array(rows, dtype=np.float32).reshape(-1, len(PARAMETERS))


def _chance(rng: np.random.Generator, probability: float) -> bool:
    return bool(rng.random() < probability)


def _uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return low + (high - low) * float(rng.random())


def _bell(rng: np.random.Generator, low: float, high: float) -> float:
    """A number in low..high that prefers the middle (triangular distribution)."""
    return (_uniform(rng, low, high) + _uniform(rng, low, high)) / 2


def _choice(rng: np.random.Generator, weights: dict) -> Any:
    """A key, drawn in proportion to its weight."""
    edges = np.cumsum(list(weights.values()))
    return list(weights)[np.searchsorted(edges, _uniform(rng, 0, edges[-1]))]


def _pose(rng: np.random.Generator) -> dict:
    return {
        "shift_x": _bell(rng, -0.1, 0.1),
        "shift_y": _bell(rng, -0.06, 0.06),
        "tilt": _bell(rng, -8, 8),
        "yaw": _bell(rng, -0.12, 0.12),
        "asymmetry": _uniform(rng, 0, 1),
        "blurry": _chance(rng, 0.06),
    }


def _head(rng: np.random.Generator, age: float) -> dict:
    fullness = _bell(rng, 0, 1)
    return {
        "head_width": _bell(rng, 0.68, 0.84),
        "jaw_fullness": fullness,
        "double_chin": _chance(rng, 0.45 if fullness > 0.7 else 0.04),
        "cheekbones": _chance(rng, 0.35),
        "rosy_cheeks": _chance(rng, 0.15),
        "bags": _chance(rng, 0.12 + 0.25 * age),
    }


def _hair(rng: np.random.Generator, male: bool, age: float, tone: float, hatless: bool) -> dict:
    aged = age > 0.65
    bald = male and hatless and _chance(rng, 0.25 if aged else 0.06)
    receding = hatless and _chance(rng, (0.4 if aged else 0.15) if male else 0.04)
    fair = 1.0 if tone < 0.6 else 0.04
    weights = {"black": 0.28, "brown": 0.28, "blond": 0.24 * fair, "red": 0.09 * fair, "gray": 1.0 if aged else 0.02}
    return {
        "bald": bald,
        "hair_colour": _choice(rng, weights),
        "hair_shade": _uniform(rng, -1, 1),
        "hair_length": _uniform(rng, 0, 0.25) if _chance(rng, 0.93 if male else 0.2) else _uniform(rng, 0.35, 1),
        "hair_volume": _uniform(rng, 0, 1),
        "hairline": _uniform(rng, 0.72, 1) if receding else _uniform(rng, 0, 0.65),
        "waviness": _uniform(rng, 0, 1),
        "bangs": hatless and not bald and not receding and _chance(rng, 0.12 if male else 0.3),
    }


def _features(rng: np.random.Generator, male: bool) -> dict:
    return {
        "eye_size": _bell(rng, 0.85, 1.2),
        "eye_spacing": _bell(rng, 0.30, 0.39),
        "eye_openness": _uniform(rng, 0.15, 1),
        "iris": _choice(rng, dict.fromkeys(IRIS_COLOURS, 1)),
        "brow_arch": _uniform(rng, 0, 0.8) if male else _uniform(rng, 0.1, 1),
        "brow_thickness": _uniform(rng, 0.2, 1) if male else _uniform(rng, 0, 0.75),
        "nose_length": _bell(rng, 0, 1),
        "nose_width": _uniform(rng, 0.1, 1) if male else _uniform(rng, 0, 0.8),
        "nose_point": _uniform(rng, 0, 1),
        "lip_fullness": _uniform(rng, 0, 0.8) if male else _uniform(rng, 0.15, 1),
        "mouth_curve": _uniform(rng, -0.4, 1),
        "mouth_open": max(0.0, _uniform(rng, -0.6, 1)),
    }


def _beard(rng: np.random.Generator, male: bool) -> dict:
    worn = _choice(rng, BEARDS) if male else ()
    return {part: part in worn for part in ("stubble", "mustache", "goatee", "sideburns")}


def _dress(rng: np.random.Generator, male: bool) -> dict:
    makeup = not male and _chance(rng, 0.45)
    necktie = _chance(rng, 0.25 if male else 0.02)
    return {
        "makeup": makeup,
        "lipstick": _chance(rng, 0.85 if makeup else 0.01 if male else 0.4),
        "eyeglasses": _chance(rng, 0.16 if male else 0.1),
        "earrings": _chance(rng, 0.03 if male else 0.4),
        "necklace": not necktie and _chance(rng, 0.04 if male else 0.35),
        "necktie": necktie,
        "hat": _choice(rng, {"none": 0.9, "beanie": 0.05, "brim": 0.05}),
        "hat_hue": _uniform(rng, 0, 1),
        "garment_hue": _uniform(rng, 0, 1),
        "v_neck": _chance(rng, 0.5),
    }


def _background(rng: np.random.Generator) -> dict:
    return {
        "background_hue": _uniform(rng, 0, 1),
        "background_value": _uniform(rng, 0.55, 0.95),
        "scene": _choice(rng, dict.fromkeys(SCENES, 1)),
    }
