"""Recipe gm: a grey-matter map in MNI space that another tool made, checked and brought to the grid."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nilatent.errors import CohortError, ScanError
from nilatent.map_names import ENDING, MODULATIONS, MapName, read_map_name
from nilatent.preprocess import quality, resampling
from nilatent.preprocess.derivative import Prepared
from nilatent.preprocess.space import Scan
from nilatent.tables import read_described
from nilatent.volumes import Grid, template_array

# Values of a grey-matter map; modulation takes a few voxels above 1, interpolation a few below 0.
GM_LOWEST, GM_HIGHEST, GM_PERCENTILE = -0.1, 2.0, 99.9
# The brightest voxels of a map that was smoothed with 12 mm are still at 0.6.
GM_LEAST = 0.1
# A side-car that states more is damaged.
MAX_FWHM_MM = 50.0
MIN_BRAIN_COVERED, COVERAGE_SPACING_MM = 0.95, 4.0
# Well below any rightly placed map, well above one that lies somewhere else.
MIN_GM_CORRELATION = 0.35
GIVE_GREY = "Give the grey-matter map (mwp1*, mwc1*, label-GM)."
GIVE_NORMALISED = "Give a map normalised to MNI space, or prepare the T1 scan with the recipe t1."
# Tools that share the names of CAT12 are told apart by the folder that they, or their user, wrote into.
TOOL_FOLDER = re.compile(r"deepmriprep|T1Prep(?:-v[\w.]+)?|VBM8|CAT\d\d[\w.]*", re.IGNORECASE)
# What SPM writes into the header: "Jac. sc. warped tissue class 1", "... - conv(8,8,8)", "Smoothed (8x8x8 subopt) ...".
HEADER_TISSUE = re.compile(r"(?P<warped>warped )?tissue class (?P<tissue>\d)", re.IGNORECASE)
HEADER_FWHM = re.compile(r"(?:conv\(|Smoothed \()([\d.]+)[,x]([\d.]+)[,x]([\d.]+)", re.IGNORECASE)
MODULATED = {"all": True, "none": False, "nonlinear": "nonlinear", "unknown": "unknown"}


def is_map(path: Path) -> bool:
    """Whether an image is a tissue map by its name, as SPM, CAT12, deepmriprep, fMRIPrep and others name theirs."""
    return read_map_name(path.name) is not None


def modulation(path: Path) -> str:
    """What a map's side-car, else its name, says about modulation: a word of ``map_names.MODULATIONS``."""
    recorded: Any = _side_car(path)
    for key in ("nilatent", "Scan", "Modulated"):
        recorded = recorded.get(key) if isinstance(recorded, dict) else None
    for word, value in MODULATED.items():
        if recorded is value or (isinstance(recorded, str) and recorded == value):
            return word
    said = read_map_name(path.name)
    # Maps of nilatent's simulation are volumes and do not say so in their names.
    if said is None or ("_desc-" not in path.name and _tool(said, path).startswith("nilatent")):
        return "unknown"
    return said.modulation


def stated(path: Path) -> dict[str, Any]:
    """What is said of a map outside its image: by its name, its side-car and its folder. It decides how it is taken."""
    return {"name": path.name, "side_car": _side_car(path), "tool": _tool(read_map_name(path.name), path)}


def stated_fwhm(path: Path) -> float | str:
    """FWHM in mm that a map's side-car or name states, ``"unknown"`` when one says so without it, else 0."""
    value = _side_car(path).get("SmoothingFWHM")
    for side in value if isinstance(value, list) else [value]:
        if isinstance(side, int | float) and 0 < side <= MAX_FWHM_MM:
            return float(side)
    said = read_map_name(path.name)
    if said is not None and said.fwhm_mm:
        return said.fwhm_mm
    return "unknown" if value == "unknown" or (said is not None and said.fwhm_mm is None) else 0.0


def check_smoothing(smoothness: Mapping[str, float | str]) -> None:
    """Refuse a cohort whose maps were smoothed before in some scans and not, or otherwise, in others.

    Parameters
    ----------
    smoothness : Mapping[str, float or str]
        Scan to :func:`stated_fwhm`.

    Raises
    ------
    CohortError
        When there is more than one kind.
    """
    kinds: dict[float | str, list[str]] = {}
    for scan, fwhm_mm in smoothness.items():
        kinds.setdefault(fwhm_mm, []).append(scan)
    if len(kinds) > 1:
        words = {fwhm: f"{fwhm:g} mm" if isinstance(fwhm, float) else "unknown" for fwhm in kinds}
        listed = ", ".join(f"{words[fwhm]} in {len(scans)} (such as {scans[0]})" for fwhm, scans in kinds.items())
        raise CohortError(
            f"The maps of the cohort were smoothed differently before: FWHM {listed}. Smoothness would be read as anatomy. "
            "Give maps of one kind, unsmoothed where you can."
        )


def check_alike(modulations: Mapping[str, str]) -> None:
    """Refuse a cohort whose maps mean different things: volumes in some scans, probabilities in others.

    Parameters
    ----------
    modulations : Mapping[str, str]
        Scan to ``"all"``, ``"nonlinear"``, ``"none"`` or ``"unknown"``, which goes with any.

    Raises
    ------
    CohortError
        When two kinds stand side by side.
    """
    kinds = {kind: [scan for scan, found in modulations.items() if found == kind] for kind in MODULATIONS}
    present = {kind: scans for kind, scans in kinds.items() if scans and kind != "unknown"}
    if len(present) > 1:
        listed = ", ".join(f"'{kind}' in {len(scans)} (such as {scans[0]})" for kind, scans in present.items())
        raise CohortError(
            f"The maps of the cohort are modulated differently: {listed}. The values of modulated maps are volumes, those "
            "of others are probabilities, and a model would learn that difference. Give maps of one kind."
        )


def prepare_map(scan: Scan, grid: Grid, *, path: Path) -> Prepared:
    """Check a grey-matter map and bring it to the grid in one interpolation.

    A map that is mirrored cannot be told from one that is not: the template is left-right symmetric to the last digit.

    Parameters
    ----------
    scan : Scan
        The map, in MNI space.
    grid : Grid
        Output grid.
    path : Path
        File of the map: its name, its side-car and its folder say who made it and how.

    Returns
    -------
    Prepared
        The map as it is, neither modulated nor smoothed here. Notes: ``MapMadeBy``, ``Modulated`` (true, false,
        ``"nonlinear"`` or ``"unknown"``), ``SourceSpace``, ``SmoothedBefore`` (mm or ``"unknown"``, when it was smoothed).

    Raises
    ------
    ScanError
        When its name or header says that it is another tissue or lies in another space, or its values, its field of view
        or its place cannot be those of such a map.
    """
    said = read_map_name(path.name)
    _check_words(scan, said, path)
    _check_range(scan, path)
    grey = template_array("gm", COVERAGE_SPACING_MM) > 0.5
    covered = resampling.share_inside(scan.data.shape, scan.affine, grey, Grid.mni(COVERAGE_SPACING_MM))
    if covered < MIN_BRAIN_COVERED:
        found = f"its field of view covers {covered:.0%} of the template's grey matter, at least {MIN_BRAIN_COVERED:.0%} needed"
        raise _broken(path, "field of view covers the brain", found, GIVE_NORMALISED)
    same = np.eye(4)
    gm = resampling.resample(np.maximum(scan.data, 0), scan.affine, grid, to_grid=same, modulate=False)
    measures = quality.gm_measures(gm, grid) | {"gm_ml": float(gm.sum(dtype=np.float64)) * grid.voxel_ml}
    if measures["template_correlation"] < MIN_GM_CORRELATION:
        raise _misplaced(gm, grid, measures["template_correlation"], path)
    return Prepared({"gm": gm}, same, measures, _notes(scan, said, path))


def _check_words(scan: Scan, said: MapName | None, path: Path) -> None:
    """Refuse what the name, or the header that SPM wrote, calls another tissue or another space."""
    header = HEADER_TISSUE.search(scan.description)
    tissue = {"1": "GM", "2": "WM", "3": "CSF"}.get(header["tissue"], header.group()) if header else "GM"
    for place, named in (("name", said.tissue if said is not None else "GM"), ("header", tissue)):
        if named != "GM":
            raise _broken(path, "shows grey matter", f"its {place} says tissue {named}", GIVE_GREY)
    own = said is not None and not said.in_template
    if scan.aligned_to != "mni" and (own or (said is None and header is not None and not header["warped"])):
        given = said.space if said is not None else ""
        found = (
            f"the space '{given}'" if given else "the subject's own space, or a rigid move, which keeps the head's size"
        )
        step = (
            "Give the map that was normalised to the template (mwp1*, mwc1*, space-MNI152*_label-GM), or the T1 scan with the "
            "recipe t1. A raw scan that only has such a name needs recipe.name t1."
        )
        raise _broken(path, "lies in MNI space", f"its name or header says {found}", step)


def _check_range(scan: Scan, path: Path) -> None:
    low, high = float(scan.data.min()), float(np.percentile(scan.data, GM_PERCENTILE))
    if low >= GM_LOWEST and GM_LEAST <= high <= GM_HIGHEST:
        return
    found = (
        f"values run from {low:.3g} to {high:.3g} (percentile {GM_PERCENTILE:g}), expected are 0 to between {GM_LEAST:g} "
        f"and {GM_HIGHEST:g}"
    )
    step = "Give a grey-matter probability or modulated map, or the T1 scan with the recipe t1."
    if low >= GM_LOWEST and 20 < high <= 260:
        step = f"They look {'like percentages' if high <= 120 else 'scaled to 255'}: divide by {100 if high <= 120 else 255}."
    raise _broken(path, "range of a grey-matter map", found, step)


def _misplaced(gm: npt.NDArray[np.float32], grid: Grid, correlation: float, path: Path) -> ScanError:
    """Why a map does not look like the template's grey matter: it shows something else, or it lies elsewhere."""
    inside = template_array("mask", grid.spacing_mm) > 0.5
    for name, tissue in (("wm", "white matter or a T1 image"), ("csf", "fluid")):
        other = quality.correlation(gm, template_array(name, grid.spacing_mm), inside)
        if other >= MIN_GM_CORRELATION:
            found = f"it looks like {tissue}: correlation with the template's {other:.2f}, with its grey matter {correlation:.2f}"
            return _broken(path, "shows grey matter", found, GIVE_GREY)
    found = (
        f"its correlation with the template's grey matter is {correlation:.2f}, at least {MIN_GM_CORRELATION} needed"
    )
    return _broken(path, "lies in MNI space", found, GIVE_NORMALISED)


def _notes(scan: Scan, said: MapName | None, path: Path) -> dict[str, Any]:
    """Who made the map and how, for the side-car."""
    kind = modulation(path)
    if kind == "unknown" and re.search(r"\bjac", scan.description, re.IGNORECASE):
        kind = "all"
    space = said.space if said is not None else "unknown"
    if space in ("", "unknown"):
        space = "MNI152, by its header" if scan.aligned_to == "mni" else "unknown"
    notes: dict[str, Any] = {"MapMadeBy": _tool(said, path), "Modulated": MODULATED[kind], "SourceSpace": space}
    smoothed = _smoothed_before(scan, path)
    return notes | ({"SmoothedBefore": smoothed} if smoothed else {})


def _tool(said: MapName | None, path: Path) -> str:
    named = said.tool if said is not None else "unknown"
    if named == "CAT12":
        folders = (TOOL_FOLDER.search(part) for part in reversed(path.parts[:-1]))
        return next((found.group() for found in folders if found is not None), named)
    if named == "BIDS derivatives":
        for folder in list(path.parents)[:5]:
            made = _json_object(folder / "dataset_description.json").get("GeneratedBy")
            if isinstance(made, list) and made and isinstance(made[0], dict):
                return " ".join(str(made[0][key]) for key in ("Name", "Version") if key in made[0]) or named
    return named


def _smoothed_before(scan: Scan, path: Path) -> float | str:
    """FWHM in mm that the side-car, the name or the header states, ``"unknown"`` when one says so without it, else 0."""
    known = stated_fwhm(path)
    header = HEADER_FWHM.search(scan.description)
    if header is not None and known in (0.0, "unknown"):
        return max(float(side) for side in header.groups())
    return known


def _side_car(path: Path) -> dict[str, Any]:
    return _json_object(path.with_name(f"{ENDING.sub('', path.name)}.json"))


def _json_object(path: Path) -> dict[str, Any]:
    """What a JSON file of another tool says; nothing when it is absent or damaged, since only notes depend on it."""
    try:
        return read_described(path)
    except (OSError, ValueError):
        return {}


def _broken(path: Path, rule: str, value: str, next_step: str) -> ScanError:
    return ScanError(f"{path}: rule '{rule}' is broken: {value}. {next_step}", rule=rule)
