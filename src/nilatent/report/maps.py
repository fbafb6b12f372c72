"""Maps of findings inside the page: their values as compressed codes, as many as a printed budget holds.

A map without a known unit is not shown: colours that nobody can read are worse than a file. What is left out is listed
with its file.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

from nilatent.finding import Finding
from nilatent.plots import brain, style
from nilatent.report.viewer import MEGABYTE, REGIONS_MM, colours, header, packed, packed_template
from nilatent.viewed import SPACING_MM
from nilatent.volumes import Grid

__all__ = ["BUDGET_BYTES", "FindingMap", "MapShelf", "maps_of", "shelf"]

BUDGET_BYTES = 3_000_000
"""Of all maps together, compressed and written as base64."""
STEPS = 32767
N_COLOURS = 33
FAMILY_WISE = 1.301
"""Minus the logarithm of 0.05, no more exact than values kept in 16 bits: p = 0.05 itself is still shown."""
UNITS_ELSEWHERE: Mapping[tuple[str, str], str] = {
    ("lrcp", "score"): "ranking score (orders the table and decides nothing)",
    ("lrcp", "minus_log10_p_"): "−log10 p, family-wise (1.3 is p = 0.05): {rest}",
    ("lrcp", "a_"): "association |a| (correlation): {rest}",
    ("lrcp", "score_"): "ranking score (orders the table and decides nothing): {rest}",
    ("agnostic", "accuracy"): "balanced accuracy on held-out scans",
    ("agnostic", "accuracy_"): "balanced accuracy on held-out scans: {rest}",
    ("agnostic", "worst_case_accuracy_"): "balanced accuracy in the worst case (above 0.5 is validated): {rest}",
    ("normative", "mean_z_"): "mean z: {rest}",
    ("longitudinal", "change_"): f"drawn {brain.VOXEL_CHANGE} per unit of time of the table: {{rest}}",
    ("longitudinal", "difference_"): f"drawn {brain.VOXEL_CHANGE} per unit of time of the table, difference: {{rest}}",
    ("sensitivity", "effect_"): f"effect of {{rest}} per unit of its row in the table ({brain.VOXEL})",
    ("counterfactual", "difference_"): f"{brain.VOXEL_CHANGE}: {{rest}}",
}
"""Finding and map, or the beginning of its name, to what it shows, where the report draws no figure of it."""
THRESHOLDS: Mapping[tuple[str, str], tuple[float, str]] = {
    ("lrcp", "minus_log10_p"): (FAMILY_WISE, "p = 0.05, family-wise"),
    ("agnostic", "worst_case_accuracy"): (0.5, "guessing"),
}
"""Finding and map, of any contrast, to the value below which nothing is claimed, and what that value is."""

Limits = tuple[float, float] | None
Label = str | Callable[[Finding], str]


@dataclass(frozen=True, eq=False)
class FindingMap:
    """One map of a finding, as it can be looked into.

    Attributes
    ----------
    name, file
        Unique on the page, and the file in the run folder.
    image
        (x, y, z) values; zero and not-a-number mean that there is none.
    label
        What it shows, with its unit; empty where that is not known.
    limits
        Ends of the colour scale; None takes them from the map.
    drawn
        Whether the report has a figure of it: such maps are embedded first.
    """

    name: str
    file: str
    image: nib.Nifti1Image
    label: str
    limits: Limits
    drawn: bool


@dataclass(frozen=True)
class MapShelf:
    """The maps that the page holds.

    Attributes
    ----------
    settings
        Plain values for the script: of every map its name, label, scale, threshold and headers; colours; the template.
    blobs
        Name of a map to base64 of its compressed codes, 16 bits each.
    absent
        Files of the maps that are not in the page.
    template
        Base64 of the compressed template under the maps.
    """

    settings: Mapping[str, Any]
    blobs: Mapping[str, str]
    absent: tuple[str, ...]
    template: str

    @property
    def sentence(self) -> str:
        """How many maps are embedded, and how large they are."""
        size, n_maps = sum(map(len, self.blobs.values())) / MEGABYTE, len(self.blobs) + len(self.absent)
        return (
            f"Maps: {len(self.blobs)} of {n_maps} are embedded, {size:.1f} of at most {BUDGET_BYTES / MEGABYTE:.0f} MB."
        )


def maps_of(finding: Finding, drawn: Mapping[str, tuple[Label, Limits]]) -> tuple[FindingMap, ...]:
    """Maps of a finding, those with a figure first.

    Parameters
    ----------
    finding : Finding
        Its `maps` are taken as they are.
    drawn : Mapping[str, tuple[str | Callable, tuple[float, float] | None]]
        Maps with a figure, to the label of the colour bar, which the finding may say, and its limits.
    """
    names = [*(name for name in drawn if name in finding.maps), *(name for name in finding.maps if name not in drawn)]
    made = []
    for name in names:
        label, limits = drawn.get(name, (_unit(finding.name, name), None))
        words = label if isinstance(label, str) else label(finding)
        file = f"findings/{finding.name}/{name}.nii.gz"
        made.append(FindingMap(f"{finding.name}/{name}", file, finding.maps[name], words, limits, name in drawn))
    return tuple(made)


def _unit(finding: str, name: str) -> str:
    exact = UNITS_ELSEWHERE.get((finding, name))
    if exact is not None:
        return exact
    for (of, start), unit in UNITS_ELSEWHERE.items():
        if of == finding and start.endswith("_") and name.startswith(start):
            return unit.format(rest=name.removeprefix(start))
    return ""


def shelf(maps: Sequence[FindingMap], *, budget_bytes: int = BUDGET_BYTES) -> MapShelf | None:
    """As many maps as the budget holds: those with a figure first, then the others, in their order.

    Parameters
    ----------
    maps : Sequence[FindingMap]
        Of all sections.
    budget_bytes : int
        Of all maps together, as the page holds them.

    Returns
    -------
    MapShelf or None
        None where no map is left.
    """
    blobs: dict[str, str] = {}
    described: dict[str, dict[str, Any]] = {}
    spent = 0
    for one in sorted(maps, key=lambda one: not one.drawn):
        if not one.label or len(one.image.shape) != 3:
            continue
        values, affine = _small(one.image)
        largest = float(np.max(np.abs(values), initial=0.0))
        slope = largest / STEPS if largest else 1.0
        blob = packed(np.rint(values / slope).astype(np.int16))
        if not largest or spent + len(blob) > budget_bytes:
            continue
        spent += len(blob)
        blobs[one.name] = blob
        described[one.name] = _described(one, values.shape, affine, slope)
    if not blobs:
        return None
    grid = Grid.mni(REGIONS_MM)
    settings = {
        "maps": described,
        "template": header(grid.shape, grid.affine, np.uint8),
        "colours": {name: colours(name, n_steps=N_COLOURS) for name in (style.AMOUNT_MAP, style.SIGNED_MAP)},
    }
    absent = tuple(one.file for one in maps if one.name not in blobs)
    return MapShelf(settings, blobs, absent, packed_template())


def _small(image: nib.Nifti1Image) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float64]]:
    """Values at every n-th voxel, never means of them: a mean across the edge of a region is a value of neither side."""
    values = np.nan_to_num(np.asarray(image.dataobj, dtype=np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    affine = np.array(image.affine, dtype=np.float64)
    sides = np.linalg.norm(affine[:3, :3], axis=0)
    factors = [max(1, int(np.ceil(SPACING_MM / side - 1e-6))) for side in sides]
    affine[:3, :3] *= factors
    return values[tuple(slice(None, None, factor) for factor in factors)], affine


def _described(
    one: FindingMap, shape: tuple[int, ...], affine: npt.NDArray[np.float64], slope: float
) -> dict[str, Any]:
    """What the script has to know of a map."""
    values = np.asarray(one.image.dataobj, dtype=np.float32)
    norm, colour_map = brain.scale(np.where(values == 0, np.nan, values), limits=one.limits)
    low, high = map(float, norm.inverse(np.array([0.0, 1.0])))
    finding, _, name = one.name.partition("/")
    known = (told for (of, start), told in THRESHOLDS.items() if of == finding and f"{name}_".startswith(f"{start}_"))
    threshold, meaning = next(known, (0.0, ""))
    return {
        "label": one.label,
        "low": low,
        "high": high,
        "colours": colour_map,
        "threshold": threshold,
        "meaning": meaning,
        "shape": list(shape),
        "slope": slope,
        "to_voxel": np.linalg.inv(affine)[:3].ravel().tolist(),
        "to_mm": affine[:3].ravel().tolist(),
        "header": header(shape, affine, np.int16, slope=slope),
        "shown": header(shape, affine, np.uint8),
    }
