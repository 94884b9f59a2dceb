"""Toy faces: procedurally drawn portraits with CelebA's 40 attributes and exact real-valued labels.

`describe(index, seed)` draws the numbers of one face, at random access; `render(face, size)` paints it. A `Face` holds
nothing but what is painted, and `RULES` derives every attribute from it, so that each label can be seen in the picture
or follows from things that can. Male, age, beards, makeup, hair and jewellery correlate roughly as they do in CelebA.
"""

from datasets.toyfaces.face import ATTRIBUTES, FACTORS, PARAMETERS, RULES, Face
from datasets.toyfaces.painting import render
from datasets.toyfaces.sampling import describe, factors, labels, targets

__all__ = ["ATTRIBUTES", "FACTORS", "PARAMETERS", "RULES", "Face", "describe", "factors", "labels", "render", "targets"]
