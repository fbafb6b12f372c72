"""What the option within_subject does for visits of one person: false change between them, and what is left of true change.

Each scan becomes a subject of three visits: twice the same brain, and once a brain whose grey matter shrank into its fluid by a
known deformation. Every visit is turned, shifted, shaded and given noise of its own, in one interpolation. All are prepared
with and without the option, and compared inside each subject.

    python benchmarks/within.py WORK SCAN.nii.gz [MORE...] --out within.tsv
"""

import argparse
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
from scipy import fft, ndimage
from scipy.spatial.transform import Rotation

from nilatent.cohort import read_cohort
from nilatent.preprocess import resampling, space, t1
from nilatent.preprocess.config import RecipeConfig
from nilatent.preprocess.recipe import prepare
from nilatent.provenance import read_json
from nilatent.volumes import Grid, template_array

SPACING_MM, FWHM_MM, CUBE_MM, MIN_CUBE_ML = 2.0, 8.0, 20.0, 2.0
TURN_DEGREES, SHIFT_MM, NOISE, SHADING, LOSS = 4.0, 5.0, 0.02, 0.1, 0.1
VISITS = ("ses-1", "ses-2", "ses-3")  # the scan, the scan again, the scan with less grey matter


def movement(rng: np.random.Generator, centre: np.ndarray) -> np.ndarray:
    """A rigid (4, 4) about the centre of the head."""
    matrix = np.eye(4)
    turn = Rotation.from_euler("xyz", rng.uniform(-TURN_DEGREES, TURN_DEGREES, 3), degrees=True).as_matrix()
    matrix[:3, :3] = turn
    matrix[:3, 3] = centre - turn @ centre + rng.uniform(-SHIFT_MM, SHIFT_MM, 3)
    return matrix


def shrinking(labels: np.ndarray, voxel_mm: np.ndarray) -> np.ndarray:
    """(3, x, y, z) voxels: where the shrunk brain looks up the whole one, so that grey matter loses a share of its volume.

    The field is the gradient of a potential whose Laplacian is positive in grey matter and as negative in fluid as makes the
    sum zero, so that the head keeps its size.
    """
    grey, fluid = (ndimage.gaussian_filter((labels == value).astype(np.float64), 0.8) for value in (1, 3))
    source = LOSS * (grey - fluid * grey.sum() / fluid.sum())
    frequencies = np.meshgrid(
        *(2 * np.pi * fft.fftfreq(side, by) for side, by in zip(labels.shape, voxel_mm, strict=True)), indexing="ij"
    )
    square = sum(part**2 for part in frequencies)
    square[0, 0, 0] = 1
    potential = -fft.fftn(source) / square
    potential[0, 0, 0] = 0
    gradient_mm = np.stack([fft.ifftn(1j * part * potential).real for part in frequencies])
    return gradient_mm / voxel_mm[:, None, None, None]


def visit(
    scan: space.Scan, moved: np.ndarray, field: np.ndarray | None, rng: np.random.Generator, *, stripped: bool
) -> np.ndarray:
    """The scan as another visit shows it, on its own grid."""
    there = np.linalg.inv(moved @ scan.affine) @ scan.affine
    points = np.einsum("ij,j...->i...", there[:3, :3], np.indices(scan.data.shape)) + there[:3, 3, None, None, None]
    if field is not None:
        points += np.stack([ndimage.map_coordinates(part, points, order=1) for part in field])
    seen = ndimage.map_coordinates(scan.data, points, order=3, mode="nearest")
    along = [
        np.linspace(-1, 1, side).reshape([-1 if at == axis else 1 for at in range(3)])
        for axis, side in enumerate(seen.shape)
    ]
    a, b, c, d = rng.uniform(-1, 1, 4)
    shade = np.exp(SHADING * (a * along[0] + b * along[1] + c * along[2] + d * (along[0] ** 2 - along[2] ** 2)))
    seen = seen * shade + rng.normal(0, NOISE * np.percentile(scan.data, 98), seen.shape)
    seen = np.clip(seen, 1e-3, None)
    if stripped:
        inside = ndimage.map_coordinates((scan.data > scan.data.min()).astype(np.float32), points, order=1) > 0.5
        seen = np.where(inside, seen, 0)
    return seen.astype(np.float32)


def write_subject(path: Path, number: int, folder: Path) -> dict[str, np.ndarray]:
    """Three visits of a scan as BIDS; returns the deformation and the movement of the first."""
    rng = np.random.default_rng(number)
    scan = space.load_scan(path)
    grid = Grid.mni(SPACING_MM)
    made = t1.prepare_t1(scan, grid, path=path, work=folder)
    field = shrinking(made.tissues, scan.voxel_mm)
    centre = (scan.affine @ np.append(np.array(scan.data.shape) / 2, 1))[:3]
    movements = {}
    for session in VISITS:
        movements[session] = movement(rng, centre)
        shrunk = field if session == VISITS[2] else None
        data = visit(scan, movements[session], shrunk, rng, stripped=made.notes["StrippedBefore"])
        anat = folder / f"sub-{number:02d}" / session / "anat"
        anat.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(data, scan.affine), anat / f"sub-{number:02d}_{session}_T1w.nii.gz")
    (folder / "dataset_description.json").write_text(json.dumps({"Name": "visits", "BIDSVersion": "1.9.0"}))
    return {
        "field": field,
        "affine": scan.affine,
        "moved": movements[VISITS[0]],
        "stripped": made.notes["StrippedBefore"],
    }


def truth(grey: np.ndarray, to_template: np.ndarray, known: dict[str, np.ndarray]) -> np.ndarray:
    """The first visit's grey-matter map after the true deformation, on the grid."""
    grid = Grid.mni(SPACING_MM)
    to_voxel = np.linalg.inv(to_template @ known["moved"] @ known["affine"]) @ grid.affine
    voxels = np.einsum("ij,j...->i...", to_voxel[:3, :3], np.indices(grid.shape)) + to_voxel[:3, 3, None, None, None]
    voxels += np.stack([ndimage.map_coordinates(part, voxels, order=1) for part in known["field"]])
    back = np.linalg.inv(to_voxel)
    there = np.einsum("ij,j...->i...", back[:3, :3], voxels) + back[:3, 3, None, None, None]
    return ndimage.map_coordinates(grey, there, order=1)


def cubes(values: np.ndarray) -> np.ndarray:
    """Sum over each cube of the grid, ml."""
    side = int(CUBE_MM / SPACING_MM)
    numbers = np.ravel_multi_index(np.indices(values.shape) // side, [-(-n // side) for n in values.shape])
    return np.bincount(numbers.ravel(), weights=values.ravel()) * Grid.mni(SPACING_MM).voxel_ml


def compare(prepared: pd.DataFrame, known: dict[str, np.ndarray]) -> dict[str, float]:
    """Differences inside one subject: between the twin visits, and against the true change."""
    rows = [prepared.loc[prepared["session_id"] == session].iloc[0] for session in VISITS]
    maps = [np.asarray(nib.load(row["path"]).dataobj, dtype=np.float32) for row in rows]
    first, again, less = map(cubes, maps)
    large = first > MIN_CUBE_ML
    smooth = [resampling.smooth(values, fwhm_mm=FWHM_MM, spacing_mm=SPACING_MM) for values in maps[:2]]
    inside = template_array("mask", SPACING_MM) > 0.5
    to_template = read_json(Path(str(rows[0]["path"]).replace(".nii.gz", ".json")))["nilatent"]["ToTemplate"]
    true = cubes(truth(maps[0], np.asarray(to_template), known)) - first
    measured = less - first
    return {
        "gm_difference_ml": rows[1]["gm_ml"] - rows[0]["gm_ml"],
        "gm_difference_percent": 100 * (rows[1]["gm_ml"] / rows[0]["gm_ml"] - 1),
        "tiv_difference_percent": 100 * (rows[1]["tiv_ml"] / rows[0]["tiv_ml"] - 1),
        "head_size_difference_percent": 100 * (rows[1]["head_size_factor"] / rows[0]["head_size_factor"] - 1),
        "cube_rms_percent": 100 * float(np.sqrt(np.mean((again[large] / first[large] - 1) ** 2))),
        "cube_median_percent": 100 * float(np.median(np.abs(again[large] / first[large] - 1))),
        "voxel_rms": float(np.sqrt(np.mean((smooth[1] - smooth[0])[inside] ** 2))),
        "true_change_percent": 100 * float(true.sum() / first.sum()),
        "gm_change_percent": 100 * (rows[2]["gm_ml"] / rows[0]["gm_ml"] - 1),
        "cube_change_slope": float(np.polyfit(true[large], measured[large], 1)[0]),
        "cube_change_correlation": float(np.corrcoef(true[large], measured[large])[0, 1]),
        "cube_change_error_ml": float(np.sqrt(np.mean((measured - true)[large] ** 2))),
    }


def main() -> None:
    """Write a row per scan and setting."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("scans", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    settings = parser.parse_args()
    rows = []
    for number, path in enumerate(settings.scans):
        source = settings.work / f"source-{number:02d}"
        source.mkdir(parents=True, exist_ok=True)
        known = write_subject(path, number, source)
        cohort = read_cohort([source])
        for within in (False, True):
            out = settings.work / f"prepared-{number:02d}-{'with' if within else 'without'}"
            config = RecipeConfig(name="t1", spacing_mm=SPACING_MM, fwhm_mm=0.0, within_subject=within)
            done = prepare(cohort, out, config, n_procs=1)
            named = {"scan": number, "stripped": bool(known["stripped"]), "within_subject": within}
            rows.append(named | compare(done.scans, known))
            pd.DataFrame(rows).to_csv(settings.out, sep="\t", index=False)
    print(pd.DataFrame(rows).to_string())


if __name__ == "__main__":
    main()
