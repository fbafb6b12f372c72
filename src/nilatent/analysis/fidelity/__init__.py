"""Fidelity: whether brains drawn from a latent space look like held-out brains, are copies of others, and are of use.

Everything is judged on scans of subjects that the encoder has not seen, one scan per subject, and stands beside yardsticks:
two halves of the unseen scans (what chance does), their reconstructions (what the decoder costs), voxel PCA with as many
components and a Gaussian density (what a linear model does), and the mean image. There is no Frechet distance: below
thousands of volumes its bias is larger than any difference.

References
----------
Gretton et al. 2012, https://jmlr.org/papers/v13/gretton12a.html. Binkowski et al. 2018, arXiv:1801.01401. Naeem et al. 2020,
arXiv:2002.09797. Meehan, Chaudhuri & Dasgupta 2020, arXiv:2004.05675.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd
import xarray as xr

from nilatent.analysis import utility as use
from nilatent.analysis.contrast import NotComparableError
from nilatent.analysis.copies import MIN_SUBJECTS, CopyCheck, Images, are_copies, check_copies, fit_copy_rule
from nilatent.analysis.fidelity import draws as draws
from nilatent.analysis.fidelity.draws import FeatureFunction
from nilatent.analysis.fidelity.regions import regions_apart
from nilatent.analysis.fidelity.table import COLUMNS, UNSEEN, Drawn, comparisons
from nilatent.analysis.fidelity.words import answer, caveats
from nilatent.analysis.latent_space import LatentSpace
from nilatent.atlas import RegionWeights
from nilatent.errors import LatentsError, SettingError
from nilatent.finding import Finding, not_run
from nilatent.progress import track
from nilatent.volumes import Volumes

__all__ = ["COLUMNS", "NAME", "QUESTION", "FidelityConfig", "fidelity"]

NAME = "fidelity"
QUESTION = "Do brains drawn from the latent space look like held-out brains, are they copies, and are they of use?"
MIN_UNSEEN, MIN_UNSEEN_OF_SPACE = 10, 4
MAX_COMPARED = 300
"""Unseen, and training, subjects of a space that are compared, by a kernel between every two: of more, so many."""
N_SHOWN = 5
AXIAL_MM, CORONAL_MM = 4.0, -16.0
"""Planes of the figure: through the basal ganglia and the lateral ventricles, and through the hippocampi."""


@dataclass(frozen=True)
class FidelityConfig:
    """Settings of :func:`fidelity`.

    Parameters
    ----------
    group, contrast : str
        Column of the groups, and two of them as ``"A:B"``: which groups synthetic scans must help to tell apart. Of several
        contrasts the first counts. Without such groups usefulness is not judged.
    conditions : tuple[str, ...]
        Columns on which synthetic scans are conditioned beside the group, where the cohort has them.
    n_samples : int
        Images drawn from each latent space, at least 20.
    n_permutations : int
        Of every test, at least 99.
    n_repeats : int
        Synthetic cohorts from which classifiers learn, at least 1.
    alpha : float
        Share of images that are no copies and are flagged nevertheless, in (0, 0.5).
    seed : int
        Of all draws.
    """

    group: str = "group"
    contrast: str = ""
    conditions: tuple[str, ...] = ("sex",)
    n_samples: int = 100
    n_permutations: int = 1999
    n_repeats: int = 5
    alpha: float = 0.01
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse values that mean nothing."""
        for name, least in (("n_samples", 20), ("n_permutations", 99), ("n_repeats", 1)):
            if getattr(self, name) < least:
                raise SettingError(f"fidelity.{name} is {getattr(self, name)}; it must be at least {least}.")
        if not 0 < self.alpha < 0.5:
            raise SettingError(f"fidelity.alpha is {self.alpha}; it must be above 0 and below 0.5.")


def fidelity(
    spaces: Sequence[LatentSpace],
    volumes: Volumes,
    scans: pd.DataFrame,
    weights: RegionWeights,
    config: FidelityConfig,
    *,
    features: FeatureFunction,
    features_note: str,
    label: str = "",
) -> Finding:
    """Judge images drawn from latent spaces against scans that they have not seen.

    Parameters
    ----------
    spaces : Sequence[LatentSpace]
        One per cross-fitted model, so that every scan is unseen once; or the study's own alone.
    volumes : Volumes
        All scans of the spaces.
    scans : DataFrame
        Index scan_id: the cohort, with ``subject_id``, the group and what a decoder is told.
    weights : RegionWeights
        The atlas inside the mask of the volumes.
    config : FidelityConfig
        Settings.
    features : callable
        (image, voxel) to (image, feature): deep features of a network that was not trained with the model.
    features_note : str
        What network it is.
    label : str
        What to call this work when its progress is shown; empty shows none.

    Returns
    -------
    Finding
        Table of comparisons; regions, nearest neighbours, slices and usefulness as arrays. "Not run" with the reason when
        there are too few unseen or training subjects.
    """
    asked = [space for space in spaces if len(draws.first_of(space, space.unseen)) >= MIN_UNSEEN_OF_SPACE]
    rows = [draws.first_of(space, space.unseen) for space in asked]
    n_unseen = sum(map(len, rows))
    if n_unseen < MIN_UNSEEN:
        return not_run(
            NAME,
            QUESTION,
            f"{n_unseen} unseen subjects, and at least {MIN_UNSEEN} are needed; with folds every subject is unseen once",
        )
    found, slices, linear, words = [], None, [], ""
    numbered = list(enumerate(asked))
    try:
        for number, space in track(numbered, total=len(numbered), label=label) if label else numbered:
            made, pca, shown, words = _of_space(
                space, volumes, scans, weights, config, features=features, seed=config.seed + 7919 * number
            )
            found.append(made)
            linear.append(pca)
            slices = shown if slices is None else slices
    except LatentsError as error:
        return not_run(NAME, QUESTION, str(error))
    table, gains = comparisons(found, n_permutations=config.n_permutations, seed=config.seed)
    useful, reason = _useful(asked, linear, volumes, scans, weights, config)
    data = _arrays(found, useful, slices, volumes, names=weights.names)
    verdict = _verdict(found)
    settings = asdict(config) | verdict | {"gain_over_pca": gains, "density": words, "n_models": len(asked)}
    settings |= {"features": features_note, "utility_not_run": reason, "max_compared": MAX_COMPARED}
    return Finding(
        name=NAME,
        question=QUESTION,
        answer=answer(table, gains, data, verdict, useful, reason),
        table=table,
        data=data,
        settings=settings,
        caveats=caveats(table, settings, asked, useful),
        n_scans=n_unseen,
        n_subjects=n_unseen,
    )


def _of_space(
    space: LatentSpace,
    volumes: Volumes,
    scans: pd.DataFrame,
    weights: RegionWeights,
    config: FidelityConfig,
    *,
    features: FeatureFunction,
    seed: int,
) -> tuple[Drawn, LatentSpace, dict[str, Images], str]:
    """Everything of one latent space, its yardstick, the images that are shown, and its density in words."""
    unseen, training = (_spread(draws.first_of(space, chosen)) for chosen in (space.unseen, space.training))
    linear, pca = draws.pca_space(space, volumes, seed=config.seed)
    # Seeds of their own: a decoder that is as good as linear would draw the same brains as PCA from the same numbers.
    images = {UNSEEN: draws.scans_of(volumes, space, unseen), draws.TRAINING: draws.scans_of(volumes, space, training)}
    images[draws.DENSITY], words = draws.sampled(space, scans, config.n_samples, kind="auto", seed=seed)
    if space.has_prior:
        images[draws.PRIOR] = draws.sampled(space, scans, config.n_samples, kind="prior", seed=seed + 1)[0]
    images[draws.PCA] = draws.sampled(linear, scans, config.n_samples, kind="gaussian", seed=seed + 2)[0]
    images[draws.RECONSTRUCTIONS] = draws.reconstructed(space, scans, unseen)
    images[draws.PCA_RECONSTRUCTIONS] = draws.reconstructed(linear, scans, unseen)
    images[draws.MEAN] = np.broadcast_to(pca.mean, (len(unseen), len(pca.mean)))
    around = _variance(images[UNSEEN])
    made = Drawn(
        sets={name: draws.describe([some], weights, features) for name, some in images.items()},
        spread={name: _variance(some) / around for name, some in images.items()},
        checks=_checks(space, linear, volumes, scans, images, alpha=config.alpha),
    )
    shown = (UNSEEN, draws.RECONSTRUCTIONS, draws.DENSITY, draws.PCA)
    return made, linear, {name: images[name][:N_SHOWN] for name in shown}, words


def _checks(
    space: LatentSpace,
    linear: LatentSpace,
    volumes: Volumes,
    scans: pd.DataFrame,
    images: Mapping[str, Images],
    *,
    alpha: float,
) -> dict[str, CopyCheck]:
    if len(draws.first_of(space, space.training)) < MIN_SUBJECTS:
        return {}
    told, found = scans.loc[space.scans] if space.told else None, {}
    pairs = ((space, draws.DENSITY, draws.RECONSTRUCTIONS), (linear, draws.PCA, draws.PCA_RECONSTRUCTIONS))
    for of_kind, samples, reconstructions in pairs:
        rule = fit_copy_rule(
            of_kind, lambda rows: draws.scans_of(volumes, space, rows), told=told if of_kind.told else None, alpha=alpha
        )
        found[samples] = check_copies(rule, images[samples], images[UNSEEN], images[reconstructions])
    return found


def _spread(rows: np.ndarray) -> np.ndarray:
    """All rows, or as many as are compared, evenly spread over them."""
    if len(rows) <= MAX_COMPARED:
        return rows
    return np.asarray(rows[np.linspace(0, len(rows) - 1, MAX_COMPARED).round().astype(int)])


def _variance(images: Images) -> float:
    """Total over voxels, with the mean taken in double precision."""
    return float(images.var(axis=0, ddof=1, dtype=np.float64).sum())


def _verdict(found: Sequence[Drawn]) -> dict[str, object]:
    """What the copy checks of all latent spaces say together; empty where there were too few training subjects."""
    checks = [one.checks[draws.DENSITY] for one in found if one.checks]
    if not checks:
        return {}
    linear = [one.checks[draws.PCA] for one in found if one.checks]
    n = [len(check.unseen.p) for check in checks]
    return {
        "copies": are_copies([one.samples for one in checks], [one.flagged for one in checks]),
        "learnt_by_heart": are_copies([one.unseen for one in checks], [one.unseen_flagged for one in checks]),
        "flagged": float(np.mean(np.concatenate([one.flagged for one in checks]))),
        "unseen_flagged": float(np.mean(np.concatenate([one.unseen_flagged for one in checks]))),
        "elsewhere": float(np.average([one.elsewhere for one in checks], weights=n)),
        "elsewhere_pca": float(np.average([one.elsewhere for one in linear], weights=n)),
        "membership": float(np.average([one.membership for one in checks], weights=n)),
        "membership_pca": float(np.average([one.membership for one in linear], weights=n)),
    }


def _useful(
    spaces: Sequence[LatentSpace],
    linear: Sequence[LatentSpace],
    volumes: Volumes,
    scans: pd.DataFrame,
    weights: RegionWeights,
    config: FidelityConfig,
) -> tuple[pd.DataFrame, str]:
    """Table of usefulness, or why there is none."""
    ids = list(spaces[0].scans)
    rows = volumes.rows(ids)
    means = [
        (weights.matrix @ volumes.masked(rows[start : start + draws.BATCH]).T).T
        for start in range(0, len(rows), draws.BATCH)
    ]
    regions = pd.DataFrame(np.concatenate(means) / weights.n_voxels, index=ids)
    try:
        found = use.utility(
            {use.SYNTHETIC: spaces, use.PCA: linear},
            regions,
            scans.loc[ids],
            weights,
            group=config.group,
            contrast=config.contrast.split(",")[0].strip(),
            columns=[name for name in config.conditions if name in scans and name != config.group],
            n_repeats=config.n_repeats,
            seed=config.seed,
        )
    except (NotComparableError, LatentsError) as error:
        return pd.DataFrame(columns=list(use.COLUMNS)), str(error)
    return found, ""


def _arrays(
    found: Sequence[Drawn],
    useful: pd.DataFrame,
    slices: Mapping[str, Images] | None,
    volumes: Volumes,
    *,
    names: Sequence[str],
) -> xr.Dataset:
    """What the figures need."""
    real, samples = ([one.sets[name].regions for one in found] for name in (UNSEEN, draws.DENSITY))
    by_region = regions_apart(real, samples)
    data = xr.Dataset(
        {f"region_{name}": ("region", value) for name, value in vars(by_region).items()},
        coords={"region": np.asarray(names, dtype=str)},
    )
    checks = [one.checks[draws.DENSITY] for one in found if one.checks]
    if checks:
        for name in ("samples", "unseen"):
            for part in ("distance", "ratio", "p"):
                values = np.concatenate([getattr(getattr(check, name), part) for check in checks])
                data[f"{name}_{part}"] = (name, values)
        for part in ("distance", "ratio"):
            data[f"training_{part}"] = (
                "training",
                np.concatenate([getattr(check, f"training_{part}") for check in checks]),
            )
    if len(useful):
        data = data.assign_coords(trained_on=useful["trained_on"].to_numpy(dtype=str))
        for column in useful.columns.drop("trained_on"):
            data[f"use_{column}"] = ("trained_on", useful[column].to_numpy(dtype=np.float64))
    return data.merge(_slices(slices, volumes)) if slices is not None else data


def _slices(images: Mapping[str, Images], volumes: Volumes) -> xr.Dataset:
    """Two planes of the first images of each kind."""
    cut = {}
    inverse = np.linalg.inv(volumes.grid.affine)
    for plane, axis, position in (("axial", 2, AXIAL_MM), ("coronal", 1, CORONAL_MM)):
        place = np.zeros(4)
        place[axis], place[3] = position, 1
        index = int(np.clip(np.round((inverse @ place)[axis]), 0, volumes.mask.shape[axis] - 1))
        taken = []
        for some in images.values():
            whole = np.zeros((len(some), *volumes.mask.shape), dtype=np.float32)
            whole[:, volumes.mask] = some
            taken.append(whole.take(index, axis=axis + 1))
        dims = ("kind", "shown", *(name for number, name in enumerate("xyz") if number != axis))
        cut[plane] = (dims, np.stack([np.resize(one, (N_SHOWN, *one.shape[1:])) for one in taken]))
    return xr.Dataset(cut, coords={"kind": np.array(list(images), dtype=str)})
