"""Synthetic cohorts: samples of a latent space, streamed to disk as a BIDS derivative that says of itself what it is.

Sixteen samples at a time are drawn, decoded and written, each block from a generator of its own: memory does not depend on how
many are asked for, sample 7 is the same among ten and among ten thousand, and an export that was killed goes on.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pandas as pd

from nilatent.analysis.copies import fit_copy_rule
from nilatent.analysis.density.columns import common
from nilatent.analysis.latent_space import LatentSpace
from nilatent.cohort import EXCLUDED_COLUMNS
from nilatent.errors import LatentsError, SettingError
from nilatent.lock import LOCK_NAME, locked
from nilatent.map_names import read_map_name
from nilatent.pools import Pools, open_pools
from nilatent.preprocess.derivative import SPATIAL_REFERENCE
from nilatent.progress import track
from nilatent.provenance import atomic, hash_file, read_json, seal, sweep, write_json
from nilatent.spaces import fold_spaces, study_space
from nilatent.synthetic.plan import BLOCK, Form, Plan, SamplesConfig, drawn, form_of, plan_samples
from nilatent.synthetic.words import MARK, PERSONAL, describe, dictionary

__all__ = ["Form", "IsCopy", "SamplesConfig", "export_samples", "write_synthetic"]

IsCopy = Callable[[npt.NDArray[np.float32]], npt.NDArray[np.bool_]]


def export_samples(
    folder: Path, out: Path, config: SamplesConfig, *, like_cohort: bool = False, fold: int | None = None
) -> pd.DataFrame:
    """Draw samples from the model of a run folder and write them as a BIDS derivative.

    Parameters
    ----------
    folder : Path
        That ``nilatent run`` filled.
    out : Path
        Receives the data set.
    config : SamplesConfig
        Which samples; what is taken for a copy of a training scan is left out, unless it allows copies.
    like_cohort : bool
        Draw age, sex and group, as far as the cohort has them and no condition says otherwise, together from the
        training subjects.
    fold : int, optional
        Number of the cross-fitted model to draw from, counted from 0; left out: the model of the study.

    Returns
    -------
    DataFrame
        As of :func:`write_synthetic`.

    Raises
    ------
    SettingError
        As there; when there is no such fold, or when too few training subjects say what a copy is and no copies are allowed.
    """
    pools = open_pools(folder)
    if fold is not None and not 0 <= fold < pools.config.folds:
        raise SettingError(f"The run has {pools.config.folds} cross-fitted models, counted from 0; there is no {fold}.")
    space = study_space(pools) if fold is None else fold_spaces(pools)[fold]
    form = form_of(pools, pools.out if fold is None else pools.out / "folds" / str(fold))
    scans = pools.prepared.scans
    if like_cohort:
        named = dict.fromkeys((*PERSONAL, pools.config.study.group))
        training = scans.loc[space.scans[space.training]]
        asked = {name for name, _ in config.conditions}
        # What is the same for all training subjects can be no condition.
        people = space.subjects[space.training]
        varying = [
            name for name in named if name in scans and training[name][common(training[[name]], people)].nunique() > 1
        ]
        config = replace(config, like=tuple(name for name in varying if name not in asked))
    is_copy = _copy_rule(space, pools, allow_copies=config.allow_copies)
    return write_synthetic(out, space, scans, form, config, is_copy=is_copy)


def _copy_rule(space: LatentSpace, pools: Pools, *, allow_copies: bool) -> IsCopy | None:
    told = pools.prepared.scans.loc[space.scans, list(space.told)] if space.told else None
    try:
        rule = fit_copy_rule(
            space, lambda rows: pools.volumes.masked(pools.volumes.rows(list(space.scans[rows]))), told=told
        )
    except LatentsError as error:
        if not allow_copies:
            raise SettingError(f"{error} Or write samples that nobody checked: --allow-copies.") from error
        return None
    return rule.flag


def write_synthetic(
    out: Path,
    space: LatentSpace,
    scans: pd.DataFrame,
    form: Form,
    config: SamplesConfig,
    *,
    is_copy: IsCopy | None,
) -> pd.DataFrame:
    """Draw samples and write them as a BIDS derivative that :func:`nilatent.cohort.read_cohort` reads.

    Parameters
    ----------
    out : Path
        Folder of the data set; an export of the same settings that was interrupted, or had fewer samples, goes on.
    space : LatentSpace
        Of the model; the density is fitted on its training scans.
    scans : DataFrame
        Index ``scan_id``: the cohort, for the columns that are conditioned on.
    form : Form
        How images are written.
    config : SamplesConfig
        Which samples.
    is_copy : Callable or None
        Images (n, voxel), as the decoder draws them, to (n,) bool: taken for a copy of a training scan. None where nothing
        can be said, which is written into the data set.

    Returns
    -------
    DataFrame
        The table of participants: one row per image. Samples taken for copies are in ``excluded.tsv`` instead.

    Raises
    ------
    SettingError
        When the model has no prior and one is asked for, a condition is unknown, or the folder holds something else.
    """
    plan = plan_samples(space, scans, form, config, checks_copies=is_copy is not None)
    _check_folder(out, plan)
    with locked(out):
        sweep(out)
        describe(out, form.target, plan.said)
        refused: list[dict[str, str]] = []
        starts = range(0, config.n, BLOCK)
        for start in track(starts, total=len(starts), label=f"draw (blocks of {BLOCK})"):
            refused += _write_block(out, space, form, plan, start, is_copy)
        return _finish(out, form, plan, refused)


def _check_folder(out: Path, plan: Plan) -> None:
    """Refuse a folder of another export, of a longer one, or of something else."""
    record = out / f"{MARK}.json"
    if not out.exists() or (out.is_dir() and all(path.name == LOCK_NAME for path in out.iterdir())):
        return
    if not record.is_file():
        raise SettingError(f"{out} holds something else. Name a new folder for the synthetic data set.")
    if read_json(record).get("key") != plan.key:
        raise SettingError(
            f"{out} holds samples of another model, density, condition or seed. Name another folder, or repeat the settings "
            f"that {record.name} tells."
        )
    beyond = sorted(path.name for path in out.glob(f"sub-{MARK}*") if _number(path.name) > plan.config.n)
    if beyond:
        raise SettingError(
            f"{out} holds {beyond[-1]}, and {plan.config.n} samples were asked for. Ask for as many as it has or more, or name "
            "another folder."
        )


def _number(subject: str) -> int:
    return int(subject.removeprefix(f"sub-{MARK}"))


def _subject(index: int) -> str:
    return f"sub-{MARK}{index + 1:05d}"


def _write_block(
    out: Path, space: LatentSpace, form: Form, plan: Plan, start: int, is_copy: IsCopy | None
) -> list[dict[str, str]]:
    """Write sixteen samples, or as many as were asked for, unless they are there; those that were refused."""
    wanted = range(min(BLOCK, plan.config.n - start))
    paths = [form.image(out, _subject(start + i)) for i in wanted]
    if all(_is_done(path) for path in paths):
        return []
    latents, coordinates, told = drawn(space, plan, start)
    # All sixteen, whatever was asked for: the last bits of an image depend on the size of its batch.
    images = np.concatenate(list(space.draw_latents(latents, told[list(space.told)] if space.told else None)))
    copies = np.zeros(BLOCK, dtype=bool) if is_copy is None else is_copy(images)
    facts = pd.DataFrame(
        {
            "distance": plan.density.distance(coordinates, told).round(4),
            "beyond_training": plan.density.beyond(told),
            "copy": np.full(BLOCK, "unknown") if is_copy is None else copies,
        }
    )
    refused = []
    for i, path in enumerate(paths):
        if copies[i] and not plan.config.allow_copies:
            refused.append(_refused(_subject(start + i), path.relative_to(out)))
        else:
            _write_sample(path, form, plan, images[i], _plain_row(told, i), _plain_row(facts, i))
    return refused


def _plain_row(table: pd.DataFrame, i: int) -> dict[str, Any]:
    return {str(name): value for name, value in table.iloc[i].to_dict().items()}


def _refused(subject: str, path: Path) -> dict[str, str]:
    return {
        "scan_id": subject,
        "path": path.as_posix(),
        "stage": "generate",
        "rule": "is no copy",
        "reason": "Taken for a copy of a training scan. Train with fewer latents or on more scans; --allow-copies writes it.",
    }


def _write_sample(
    path: Path, form: Form, plan: Plan, values: npt.NDArray[np.float32], told: dict[str, Any], facts: dict[str, Any]
) -> None:
    """Write an image and its side-car, which comes last: where it knows the image, the sample is done."""
    below = np.minimum(values, 0.0)
    volume = np.zeros(form.grid.shape, dtype=np.float32)
    volume[form.mask] = values - below
    image = form.grid.to_image(volume)
    image.header["descrip"] = f"{MARK} (nilatent)".encode()
    with atomic(path) as temporary:
        nib.save(image, temporary)
    above = float(volume.sum(dtype=np.float64))
    facts = facts | {"clipped_share": round(abs(float(below.sum(dtype=np.float64))) / above, 6) if above > 0 else 1.0}
    what, said = ("Grey-matter map", read_map_name(path.name)) if form.target == "gm" else ("T1 intensities", None)
    described = {
        "Synthetic": True,
        "Description": f"{what} drawn by a model; it shows nobody, and values below 0 were set to 0",
        "SpatialReference": SPATIAL_REFERENCE,
        "Resolution": f"{form.grid.spacing_mm:g} mm isotropic",
        "SkullStripped": True,
        "nilatent": {
            "Model": form.inputs["model"],
            "Density": plan.config.density,
            "Seed": plan.config.seed,
            "Conditions": told,
            "Facts": facts,
            "Sha256": hash_file(path),
        },
    }
    smoothing = {"SmoothingFWHM": said.fwhm_mm} if said is not None and said.fwhm_mm is not None else {}
    write_json(_side_car(path), described | smoothing)


def _side_car(image: Path) -> Path:
    return image.with_name(image.name.replace(".nii.gz", ".json"))


def _is_done(image: Path) -> bool:
    try:
        return bool(hash_file(image) == read_json(_side_car(image))["nilatent"]["Sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        # Whatever is damaged is drawn again.
        return False


def _finish(out: Path, form: Form, plan: Plan, refused: Sequence[Mapping[str, str]]) -> pd.DataFrame:
    """Write the tables of what was drawn and of what was refused, and the record of all files."""
    left_out = {row["scan_id"] for row in refused}
    subjects = [name for name in map(_subject, range(plan.config.n)) if name not in left_out]
    images = {subject: form.image(out, subject) for subject in subjects}
    table = pd.DataFrame([_row(subject, image) for subject, image in images.items()], columns=_columns(plan))
    tables = {
        "participants.tsv": table,
        "excluded.tsv": pd.DataFrame([dict(row) for row in refused], columns=list(EXCLUDED_COLUMNS)),
    }
    if form.target != "gm":
        tables["images.tsv"] = table.assign(path=[path.relative_to(out).as_posix() for path in images.values()])
    for name, rows in tables.items():
        with atomic(out / name) as temporary:
            rows.to_csv(temporary, sep="\t", index=False, na_rep="n/a", lineterminator="\n")
    write_json(out / "participants.json", dictionary(_columns(plan)))
    named = [*tables, "participants.json", "dataset_description.json", f"{MARK}.json", "README", ".bidsignore"]
    files = [path for image in images.values() for path in (image, _side_car(image))]
    seal(
        out / "provenance.json",
        stage=MARK,
        settings=plan.said | {"n": plan.config.n},
        inputs=form.inputs,
        outputs=[*files, *(out / name for name in named)],
        seed=plan.config.seed,
    )
    return table.set_index("participant_id")


def _columns(plan: Plan) -> list[str]:
    asked = [name for name in plan.pool.columns if name not in PERSONAL]
    facts = [MARK, "density", "seed", "distance", "beyond_training", "copy", "clipped_share"]
    return ["participant_id", *PERSONAL, *asked, *facts]


def _row(subject: str, image: Path) -> dict[str, Any]:
    """A row of the table of participants, from the side-car: what an earlier run wrote is in no memory."""
    record: dict[str, dict[str, Any]] = read_json(_side_car(image))["nilatent"]
    facts = {name: str(value).lower() if isinstance(value, bool) else value for name, value in record["Facts"].items()}
    drawn_from = {MARK: "true", "density": record["Density"], "seed": record["Seed"]}
    return {"participant_id": subject} | record["Conditions"] | drawn_from | facts
