"""Recipe gm: a grey-matter map in MNI space that another tool made, checked and brought to the grid."""

import re
from pathlib import Path

import numpy as np

from nilatent.errors import ScanError
from nilatent.preprocess import quality, resampling
from nilatent.preprocess.derivative import Prepared
from nilatent.preprocess.space import Scan
from nilatent.provenance import read_json
from nilatent.volumes import Grid, template_array

GM_NAME = re.compile(r"label-GM|(?:^|_)s?\d*m?0?w[pc]1")
SMOOTHED_NAME = re.compile(r"(?:^|_)s\d*m?0?w[pc]1|desc-\w*[sS]mooth")
# Values of a grey-matter map; modulation takes a few voxels above 1, interpolation a few below 0.
GM_LOWEST, GM_HIGHEST, GM_PERCENTILE = -0.1, 2.0, 99.9
MIN_BRAIN_COVERED, COVERAGE_SPACING_MM = 0.95, 4.0
# Well below any rightly placed map, well above one that lies somewhere else.
MIN_GM_CORRELATION = 0.35


def is_map(path: Path) -> bool:
    """Whether an image is a grey-matter map by its name (``label-GM``, CAT12's ``mwp1``, SPM's ``mwc1``)."""
    return bool(GM_NAME.search(path.name))


def prepare_map(scan: Scan, grid: Grid, *, path: Path) -> Prepared:
    """Check a grey-matter map and bring it to the grid in one interpolation.

    Parameters
    ----------
    scan : Scan
        The map, in MNI space.
    grid : Grid
        Output grid.
    path : Path
        File of the map: its name and its side-car may say that it was smoothed.

    Returns
    -------
    Prepared
        The map as it is, neither modulated nor smoothed here.

    Raises
    ------
    ScanError
        When its values, its field of view or its place cannot be those of such a map.
    """
    low, high = float(scan.data.min()), float(np.percentile(scan.data, GM_PERCENTILE))
    if low < GM_LOWEST or not 0 < high <= GM_HIGHEST:
        found = f"values run from {low:.3g} to {high:.3g} (percentile {GM_PERCENTILE:g}), expected 0 to {GM_HIGHEST:g}"
        step = "Give a grey-matter probability or modulated map (divide percentages by 100), or use the recipe t1."
        raise _broken(path, "range of a grey-matter map", found, step)
    step = "Give a map normalised to MNI space, or prepare the T1 scan with the recipe t1."
    grey = template_array("gm", COVERAGE_SPACING_MM) > 0.5
    covered = resampling.share_inside(scan.data.shape, scan.affine, grey, Grid.mni(COVERAGE_SPACING_MM))
    if covered < MIN_BRAIN_COVERED:
        found = f"its field of view covers {covered:.0%} of the template's grey matter, at least {MIN_BRAIN_COVERED:.0%} needed"
        raise _broken(path, "field of view covers the brain", found, step)
    same = np.eye(4)
    gm = resampling.resample(np.maximum(scan.data, 0), scan.affine, grid, to_grid=same, modulate=False)
    measures = quality.gm_measures(gm, grid) | {"gm_ml": float(gm.sum(dtype=np.float64)) * grid.voxel_ml}
    correlation = measures["template_correlation"]
    if correlation < MIN_GM_CORRELATION:
        found = f"its correlation with the template's grey matter is {correlation:.2f}, at least {MIN_GM_CORRELATION} needed"
        raise _broken(path, "lies in MNI space", found, step)
    notes = {"SmoothedBefore": before} if (before := _smoothed_before(path)) else {}
    return Prepared({"gm": gm}, same, measures, notes)


def _smoothed_before(path: Path) -> float | str:
    """FWHM in mm that the map's side-car states, ``"unknown"`` when only its name says so, 0 when nothing does."""
    side_car = path.with_name(path.name.split(".")[0] + ".json")
    try:
        stated = float(read_json(side_car)["SmoothingFWHM"]) if side_car.is_file() else 0.0
    except (ValueError, KeyError, TypeError):
        stated = 0.0
    if stated > 0:
        return stated
    return "unknown" if SMOOTHED_NAME.search(path.name) else 0.0


def _broken(path: Path, rule: str, value: str, next_step: str) -> ScanError:
    return ScanError(f"{path}: rule '{rule}' is broken: {value}. {next_step}", rule=rule)
