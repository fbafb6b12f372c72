"""Within: one template per subject, from all of its visits, so that no visit is registered or masked unlike the others."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
from scipy import ndimage

from nilatent.errors import ScanError
from nilatent.preprocess import derivative, intensity, registration, resampling, rigid, t1, warping
from nilatent.preprocess.derivative import SPACE, Prepared
from nilatent.preprocess.space import Scan, load_scan
from nilatent.provenance import hash_file, read_json
from nilatent.volumes import Grid

Floats = npt.NDArray[np.float64]

MIN_VISITS = 2
# Two people, laid on one another without a stretch, reach .44 to .50 (four pairs); twice the same brain over .95.
MIN_CORRELATION = 0.65
RIM_MM = 6.0
SUBJECT_SPACE = "within"


@dataclass(frozen=True)
class Visit:
    """One scan of a subject: its row of the cohort, the image, the image's hash, and its name in a side-car."""

    scan_id: str
    path: Path
    sha256: str
    source: str


@dataclass(frozen=True)
class SubjectJob:
    """One subject whose template is to be made.

    Parameters
    ----------
    folder : Path
        Where the template's files go.
    subject : str
        ``"sub-01"``.
    visits : tuple[Visit, ...]
        Two or more; their order does not matter.
    normalisation : {"affine", "syn"}
        How the average is moved to the MNI template.
    key : str
        Hash of all visits' images, settings and versions.
    scratch : Path or None
        As of a scan's job.
    """

    folder: Path
    subject: str
    visits: tuple[Visit, ...]
    normalisation: str
    key: str
    scratch: Path | None

    @property
    def mean(self) -> Path:
        """Average of the visits in the space midway between them; its side-car is written last."""
        return self.folder / f"{self.subject}_space-{SUBJECT_SPACE}_desc-mean_T1w.nii.gz"

    @property
    def mask(self) -> Path:
        """The subject's one brain mask."""
        return self.folder / f"{self.subject}_space-{SUBJECT_SPACE}_desc-brain_mask.nii.gz"

    @property
    def side_car(self) -> Path:
        """Says how each visit was moved, and carries the key."""
        return derivative.side_car_of(self.mean)


@dataclass(frozen=True, eq=False)
class Shared:
    """What one visit takes from its subject's template.

    Parameters
    ----------
    mean, mask : Path
        The average of the subject's visits, and their one brain mask.
    fields : tuple[Path, Path] or None
        The warp after the affine, both directions, with the normalisation ``"syn"``.
    to_subject : ndarray
        (4, 4) rigid, millimetres of the visit to those of the subject's template.
    to_template : ndarray
        (4, 4) affine from there to the MNI template, the same for all visits.
    correlation : float
        Of the visit with the average of the others, inside the mask.
    n_visits : int
        Visits that the template was made of.
    digest : str
        Hash of the template's side-car.
    """

    mean: Path
    mask: Path
    fields: tuple[Path, Path] | None
    to_subject: Floats
    to_template: Floats
    correlation: float
    n_visits: int
    digest: str


def make_template(job: SubjectJob) -> None:
    """Make the template of one subject and write it; with fewer than two visits that have a brain, write none.

    Parameters
    ----------
    job : SubjectJob
        The subject. What an earlier run made of it is replaced.

    Raises
    ------
    ScanError
        When the average does not align with the MNI template, or fewer than two visits look like one brain.

    Notes
    -----
    Every visit is stripped, corrected for shading, moved rigidly to the space midway between all, and resampled once.
    No visit is the reference: the first round starts at one of them (the one whose image has the smallest hash), the
    next are fitted to the average, and the space is brought back to the middle each time. Whatever is found from the
    average (affine, warp, brain mask) holds for all visits, so that it cannot differ between them.

    References
    ----------
    Reuter, Schmansky, Rosas & Fischl (2012). https://doi.org/10.1016/j.neuroimage.2012.02.084
    """
    brains, failed = _brains(sorted(job.visits, key=lambda visit: (visit.sha256, visit.scan_id)))
    derivative.remove_outputs(job.side_car, keep=set())
    if len(brains) < MIN_VISITS:
        return
    brains, to_subject, correlations = _aligned(brains, failed)
    shape, affine = rigid.space_around(_images(brains), to_subject)
    mean = rigid.average(rigid.resampled(_images(brains), to_subject, shape, affine))
    mask = _agreed_mask(list(brains.values()), to_subject, shape, affine)
    brain = np.where(mask, mean, 0).astype(np.float32)
    start, _ = registration.register_affine(brain, affine)
    if not all(found.stripped for found in brains.values()):
        mask = t1.refined_mask(mask, affine, start)
        brain = np.where(mask, mean, 0).astype(np.float32)
    to_template, t1_correlation = registration.refine_affine(brain, affine, start)
    t1.check_aligned(job.mean, t1_correlation)
    transforms = _transforms(job, brain, affine, to_template)
    sources = {visit.scan_id: visit.source for visit in job.visits}
    fields = {
        "Sources": [sources[scan_id] for scan_id in brains],
        "SpatialReference": f"bids::{job.subject}/anat/{job.mean.name}",
        "SkullStripped": True,
    }
    images = {
        job.mask: (
            nib.Nifti1Image(mask.astype(np.uint8), affine),
            fields | {"Type": "Brain", "Description": "Mean outline of the visits"},
        ),
        job.mean: (nib.Nifti1Image(brain, affine), fields | {"Description": "Average of a subject's visits"}),
    }
    record = {
        "ToTemplate": to_template,
        "T1Correlation": t1_correlation,
        "Normalisation": job.normalisation,
        "Visits": {
            scan_id: {"ToSubject": matrix, "Correlation": correlation}
            for scan_id, matrix, correlation in zip(brains, to_subject, correlations, strict=True)
        },
        "Failed": failed,
    }
    job.folder.mkdir(parents=True, exist_ok=True)
    derivative.write_files(job.mean, images, transforms, key=job.key, record=record)


def is_made(job: SubjectJob) -> bool:
    """Whether the template is there, of these visits and settings; one that lacks a visit is tried again."""
    return derivative.is_whole(job.side_car, job.key) and not failed_visits(job)


def failed_visits(job: SubjectJob) -> dict[str, tuple[str, str]]:
    """Visits that the template could not be made of: scan id to rule and reason; empty without a template."""
    if not derivative.is_whole(job.side_car, job.key):
        return {}
    failed: Mapping[str, Mapping[str, str]] = read_json(job.side_car)["nilatent"]["Failed"]
    return {scan_id: (why["rule"], why["reason"]) for scan_id, why in failed.items()}


def shared(job: SubjectJob) -> dict[str, Shared]:
    """What each visit takes from the template, by scan id; empty without a template."""
    if not derivative.is_whole(job.side_car, job.key):
        return {}
    record = read_json(job.side_car)["nilatent"]
    fields = _field_paths(job) if record["Normalisation"] == "syn" else None
    digest, to_template = hash_file(job.side_car), np.asarray(record["ToTemplate"], dtype=np.float64)
    return {
        scan_id: Shared(
            job.mean,
            job.mask,
            fields,
            np.asarray(visit["ToSubject"], dtype=np.float64),
            to_template,
            float(visit["Correlation"]),
            len(record["Visits"]),
            digest,
        )
        for scan_id, visit in record["Visits"].items()
    }


def prepare_visit(scan: Scan, grid: Grid, common: Shared, *, path: Path, modulation: bool = True) -> Prepared:
    """Segment one visit with its subject's mask and affine, and bring its tissues to the grid in one interpolation.

    Parameters
    ----------
    scan : Scan
        Whole head or stripped brain. A mask that came with the scan stays: what was cut off cannot be brought back.
    grid : Grid
        Output grid.
    common : Shared
        From the subject's template.
    path : Path
        File of the scan, for messages.
    modulation : bool
        Multiply the tissue maps by the volume change.

    Returns
    -------
    Prepared
        As ``t1.prepare_t1``; the bias field and the tissues are the visit's own.

    Raises
    ------
    ScanError
        When the mask holds no brain of a plausible size in this scan.
    """
    image = nib.load(common.mask)
    mask = np.asarray(image.dataobj, dtype=np.float32)
    in_scan = resampling.look_up(mask, image.affine, scan.data.shape, common.to_subject @ scan.affine, order=1) > 0.5
    brain = _shaded_alike(t1.find_brain(scan, path=path, mask=in_scan), common, scan.voxel_mm)
    to_template = common.to_template @ common.to_subject
    correlation = registration.correlation(brain.values, brain.affine, to_template)
    made = t1.on_template(
        scan, brain, t1.Placed(to_template, _warp(common.fields), correlation), grid, modulation=modulation
    )
    notes = {
        "WithinSubject": common.n_visits,
        "SubjectTemplate": common.digest,
        "ToSubject": common.to_subject,
        "BrainExtraction": "none" if brain.stripped else "deepbet, the mean outline of the subject's visits",
    }
    measures = {"subject_correlation": common.correlation}
    return replace(made, notes=made.notes | notes, measures=made.measures | measures)


def _shaded_alike(brain: t1.Brain, common: Shared, voxel_mm: Floats) -> t1.Brain:
    """The brain divided by what is left of shading between it and the average of the visits."""
    image = nib.load(common.mean)
    mean = resampling.look_up(
        np.asarray(image.dataobj, dtype=np.float32),
        image.affine,
        brain.values.shape,
        common.to_subject @ brain.affine,
        order=1,
    )
    field = intensity.relative_field(brain.values, mean, brain.mask, voxel_mm)
    return replace(brain, values=np.asarray(brain.values / field), field=np.asarray(brain.field * field))


def _brains(visits: Sequence[Visit]) -> tuple[dict[str, t1.Brain], dict[str, dict[str, str]]]:
    brains, failed = {}, {}
    for visit in visits:
        try:
            found = t1.find_brain(load_scan(visit.path), path=visit.path)
            derivative.check_unchanged(visit.path, visit.sha256)
            brains[visit.scan_id] = found
        except ScanError as error:
            failed[visit.scan_id] = {"rule": error.rule, "reason": str(error).replace(str(visit.path), visit.source)}
    return brains, failed


def _aligned(
    brains: dict[str, t1.Brain], failed: dict[str, dict[str, str]]
) -> tuple[dict[str, t1.Brain], list[Floats], list[float]]:
    """The visits that lie on one another, how each is moved to the middle, and how it correlates with the others.

    The visit that fits worst is left out (and said so in `failed`) until all fit.
    """
    to_subject = rigid.align(_images(brains))
    correlations = _correlations(_images(brains), to_subject)
    worst = int(np.argmin(correlations))
    if correlations[worst] >= MIN_CORRELATION:
        return brains, to_subject, correlations
    rule = "lies on the subject's other visits"
    reason = (
        f"rule '{rule}' is broken: moved rigidly, it correlates {correlations[worst]:.2f} with their average, at least "
        f"{MIN_CORRELATION} is needed. Check that all visits show one person, the whole brain, and one contrast."
    )
    if len(brains) == MIN_VISITS:
        raise ScanError(f"{' and '.join(brains)}: {reason}", rule=rule)
    left_out = list(brains)[worst]
    failed[left_out] = {"rule": rule, "reason": f"{left_out}: {reason}"}
    return _aligned({scan_id: brain for scan_id, brain in brains.items() if scan_id != left_out}, failed)


def _images(brains: Mapping[str, t1.Brain]) -> list[rigid.Brain]:
    return [(brain.values, brain.affine) for brain in brains.values()]


def _correlations(images: Sequence[rigid.Brain], to_subject: Sequence[Floats]) -> list[float]:
    """Correlation of each visit with the mean of the others well inside both brains, in [-1, 1].

    At their rim any two brains are alike: it is darker than the inside.
    """
    n_steps = max(1, round(RIM_MM / rigid.AVERAGE_MM))
    moved = rigid.resampled(images, to_subject, *rigid.space_around(images, to_subject))
    found = []
    for number, own in enumerate(moved):
        others = rigid.average([other for place, other in enumerate(moved) if place != number])
        both = ndimage.binary_erosion((own > 0) & (others > 0), iterations=n_steps)
        found.append(float(np.corrcoef(own[both], others[both])[0, 1]) if both.sum() > 1 else 0.0)
    return found


def _agreed_mask(
    brains: Sequence[t1.Brain], to_subject: Sequence[Floats], shape: tuple[int, ...], affine: Floats
) -> npt.NDArray[np.bool_]:
    """The mask whose outline lies midway between those of the visits: where the mean signed distance says inside.

    Masks that came with the scans count only when there is no other: they stay with their own visit, and nobody knows
    how they were drawn.
    """
    raw = [number for number, brain in enumerate(brains) if not brain.stripped]
    depth_mm = np.zeros(shape)
    for number in raw or range(len(brains)):
        placed = to_subject[number] @ brains[number].affine
        mask = resampling.look_up(brains[number].mask.astype(np.float32), placed, shape, affine, order=1) > 0.5
        inside, outside = (ndimage.distance_transform_edt(part, sampling=rigid.AVERAGE_MM) for part in (mask, ~mask))
        depth_mm += inside - outside
    return np.asarray(depth_mm > 0)


def _field_paths(job: SubjectJob) -> tuple[Path, Path]:
    """The warp from the affinely aligned average to the MNI template, and the way back."""
    stem = job.folder / job.subject
    return (
        stem.with_name(f"{stem.name}_from-aligned_to-{SPACE}_mode-image_xfm.nii.gz"),
        stem.with_name(f"{stem.name}_from-{SPACE}_to-aligned_mode-image_xfm.nii.gz"),
    )


def _transforms(
    job: SubjectJob, brain: npt.NDArray[np.float32], affine: Floats, to_template: Floats
) -> dict[Path, str | nib.Nifti1Image]:
    to = SPACE if job.normalisation == "affine" else "aligned"
    text = job.folder / f"{job.subject}_from-{SUBJECT_SPACE}_to-{to}_mode-image_xfm.txt"
    found: dict[Path, str | nib.Nifti1Image] = {text: registration.itk_text(to_template)}
    if job.normalisation == "syn":
        with tempfile.TemporaryDirectory(prefix="within-", dir=job.scratch) as work:
            warp = t1.warp_of(brain, affine, to_template, work=Path(work))
        fields = (warping.itk_field(field, warp.grid.affine) for field in (warp.forward, warp.inverse))
        found |= dict(zip(_field_paths(job), fields, strict=True))
    return found


def _warp(fields: tuple[Path, Path] | None) -> resampling.Warp | None:
    if fields is None:
        return None
    forward, inverse = (warping.displacement_of(nib.load(path)) for path in fields)
    return resampling.Warp(forward, inverse, Grid.mni(warping.SPACING_MM))
