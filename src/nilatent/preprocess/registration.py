"""Registration: the affine from a brain to the template, and its form in files."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.spatial.transform import Rotation

from nilatent.extras import require
from nilatent.volumes import Grid, average_to_grid

SPACING_MM = 2.0
COPY_SIDE = 112
FLIP = np.diag([-1.0, -1.0, 1.0, 1.0])
# A second start is tried when the first fit is worse than any good fit seen on real brains.
GOOD_CORRELATION = 0.45
START_TURNS_DEGREES = (-30.0, 30.0)
# Transform, iterations, shrink factors and smoothing in voxels of the 2 mm copies.
STAGES = (("Rigid", "200", "4", "2vox"), ("Affine", "200x100x20", "4x2x1", "2x1x0vox"))


def register_affine(
    data: npt.NDArray[np.float32],
    affine: npt.NDArray[np.float64],
    fixed: npt.NDArray[np.float32],
    weight: npt.NDArray[np.float32],
    *,
    grid: Grid,
    work: Path,
) -> tuple[npt.NDArray[np.float64], float]:
    """Affine from the subject to the template, brain to brain: rigid (6), then affine (12).

    Parameters
    ----------
    data : ndarray
        (x, y, z) brain, skull-stripped and bias-corrected; background 0.
    affine : ndarray
        (4, 4) of the brain.
    fixed : ndarray
        (x, y, z) template T1, brain only, on the grid.
    weight : ndarray
        (x, y, z) template brain mask on the grid, in [0, 1], for the correlation.
    grid : Grid
        Of the template, about 2 mm.
    work : Path
        Folder for the engine's temporary files; the caller removes it.

    Returns
    -------
    ndarray
        (4, 4) RAS millimetres of the subject to RAS millimetres of the template.
    float
        Correlation with the template inside its mask, in [-1, 1].

    Notes
    -----
    Mutual information, pyramid 8/4/2 mm on copies at 2 mm: the affine has twelve numbers, and more iterations at the
    finest level move no point of the brain by more than a few hundredths of a millimetre. When the first fit is poor,
    starts turned by 30 degrees about each axis are tried and the best is kept.
    """
    # The copy's axes follow the world, so that the engine never sees an oblique header.
    copy_grid = _grid_around(data, affine)
    copy = average_to_grid(data, affine, copy_grid)
    found = []
    for start in _starts(_centre(copy, copy_grid.affine), _centre(fixed, grid.affine)):
        to_template = _engine((fixed, grid), (copy, copy_grid), start=start, work=work)
        moved = average_to_grid(copy, to_template @ copy_grid.affine, grid)
        found.append((_correlation(moved, fixed, weight), to_template))
        if found[-1][0] >= GOOD_CORRELATION:
            break
    correlation, best = max(found, key=lambda fit: fit[0])
    return best, correlation


def _centre(data: npt.NDArray[np.float32], affine: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.asarray(affine[:3, :3] @ np.argwhere(data > 0).mean(axis=0) + affine[:3, 3])


def _grid_around(data: npt.NDArray[np.float32], affine: npt.NDArray[np.float64]) -> Grid:
    placed = np.diag([SPACING_MM] * 3 + [1.0])
    placed[:3, 3] = _centre(data, affine) - SPACING_MM * (COPY_SIDE - 1) / 2
    return Grid((COPY_SIDE,) * 3, placed)


def _starts(of_scan: npt.NDArray[np.float64], of_template: npt.NDArray[np.float64]) -> list[npt.NDArray[np.float64]]:
    """Scan-to-template starts: the centres together, then the same turned about each axis."""
    turns = [np.eye(3)]
    turns += [
        Rotation.from_euler(axis, turn, degrees=True).as_matrix() for axis in "xyz" for turn in START_TURNS_DEGREES
    ]
    starts = []
    for turn in turns:
        start = np.eye(4)
        start[:3, :3] = turn
        start[:3, 3] = of_template - turn @ of_scan
        starts.append(start)
    return starts


def _engine(
    fixed: tuple[npt.NDArray[np.float32], Grid],
    moving: tuple[npt.NDArray[np.float32], Grid],
    *,
    start: npt.NDArray[np.float64],
    work: Path,
) -> npt.NDArray[np.float64]:
    ants = require("ants", extra="prepare")
    images = [_to_ants(*fixed), _to_ants(*moving)]
    names = [ants.internal.get_pointer_string(image) for image in images]
    metric = ["--metric", f"MI[{names[0]},{names[1]},1,32,Regular,0.25]"]
    with tempfile.TemporaryDirectory(dir=work) as folder:
        initial = Path(folder) / "start.txt"
        initial.write_text(itk_text(start), encoding="ascii")
        command = ["--dimensionality", "3", "--initial-moving-transform", str(initial)]
        for kind, steps, factors, sigmas in STAGES:
            command += [*metric, "--transform", f"{kind}[0.1]", "--convergence", f"[{steps},1e-5,10]"]
            command += ["--shrink-factors", factors, "--smoothing-sigmas", sigmas]
        command += ["--output", f"{folder}/found_", "--collapse-output-transforms", "1", "--float", "1"]
        command += ["--random-seed", "1", "--write-composite-transform", "0"]
        # Given a list, antspyx hands it to antsRegistration as it is; both stages then run in one call, and seeded.
        ants.registration(command, None)
        matrix = _from_ants(ants.read_transform(f"{folder}/found_0GenericAffine.mat"))
    return np.asarray(np.linalg.inv(matrix))


def _to_ants(data: npt.NDArray[np.float32], grid: Grid) -> Any:
    # The engine counts millimetres towards left and posterior (LPS), a grid towards right and anterior (RAS).
    ants = require("ants", extra="prepare")
    origin = [float(value) for value in (FLIP @ grid.affine)[:3, 3]]
    return ants.from_numpy(data, origin=origin, spacing=[grid.spacing_mm] * 3, direction=FLIP[:3, :3])


def _from_ants(transform: Any) -> npt.NDArray[np.float64]:
    parameters = np.asarray(transform.parameters, dtype=np.float64)
    centre = np.asarray(transform.fixed_parameters, dtype=np.float64)
    matrix = np.eye(4)
    matrix[:3, :3] = parameters[:9].reshape(3, 3)
    matrix[:3, 3] = parameters[9:] + centre - matrix[:3, :3] @ centre
    return _lps(matrix)


def _lps(matrix: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.asarray(FLIP @ matrix @ FLIP)


def itk_text(to_template: npt.NDArray[np.float64]) -> str:
    """The transform that moves the subject's image to the template, in ITK's text format.

    Parameters
    ----------
    to_template : ndarray
        (4, 4) RAS millimetres of the subject to those of the template. ITK writes the inverse, since moving an image
        needs, for each point of the template, the point of the subject to look at.

    Returns
    -------
    str
        Content of a ``.txt`` transform for ANTs, ITK-SNAP and 3D Slicer.
    """
    matrix = _lps(np.linalg.inv(np.asarray(to_template, dtype=np.float64)))
    numbers = " ".join(f"{value:.12g}" for value in (*matrix[:3, :3].ravel(), *matrix[:3, 3]))
    return (
        "#Insight Transform File V1.0\n#Transform 0\nTransform: AffineTransform_double_3_3\n"
        f"Parameters: {numbers}\nFixedParameters: 0 0 0\n"
    )


def _correlation(one: npt.NDArray[np.float32], two: npt.NDArray[np.float32], weight: npt.NDArray[np.float32]) -> float:
    inside = weight > 0.5
    return float(np.corrcoef(one[inside], two[inside])[0, 1])
