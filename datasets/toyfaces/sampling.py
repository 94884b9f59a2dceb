"""Distributions of toy faces: `describe` draws one, `labels` and `targets` tabulate many."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from datasets.toyfaces.face import ATTRIBUTES, FACTORS, IRIS_COLOURS, PARAMETERS, SCENES, Face

BEARDS = {  # what men wear, and how many in 100 of them
    (): 50,
    ("stubble",): 15,
    ("mustache",): 8,
    ("goatee",): 6,
    ("sideburns",): 6,
    ("mustache", "goatee"): 7,
    ("mustache", "goatee", "sideburns"): 8,
}


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


def factors(indices: Iterable[int], seed: int = 0) -> np.ndarray:
    """Factors of the faces, int64 [n, len(FACTORS)] in the order of FACTORS.

    A factor with a list of values is the position in it; a real number is 0 to 4, by its quintile among these faces.
    """
    faces = [describe(index, seed) for index in indices]
    columns = []
    for name, values in FACTORS.items():
        drawn = [getattr(face, name) for face in faces]
        quintiles = np.quantile(drawn, [0.2, 0.4, 0.6, 0.8]) if not values else ()
        columns.append([values.index(v) for v in drawn] if values else np.searchsorted(quintiles, drawn))
    return np.array(columns, np.int64).T


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
