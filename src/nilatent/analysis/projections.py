"""Projections of the latents to a few components, and what these components know: age, sex, site, head size, group.

References
----------
Trustworthiness: Venna & Kaski 2001, doi:10.1007/3-540-44668-0_68.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import xarray as xr
from sklearn.manifold import trustworthiness

from nilatent.analysis import stats
from nilatent.analysis.contrast import confound_matrix, first_scans, level_words
from nilatent.errors import CohortError
from nilatent.finding import Finding, not_run
from nilatent.latents import check_latents

NAME = "projections"
QUESTION = "Along which few directions do these brains differ most, and do these follow age, sex, scanner or diagnosis?"
MIN_SUBJECTS = 20
MAX_NEIGHBOUR_SCANS = 1000
ALPHA = 0.05


def principal_components(
    latents: np.ndarray, train: np.ndarray, direction: np.ndarray, *, n_components: int
) -> tuple[np.ndarray, np.ndarray]:
    """Scores of all scans on principal components fitted on the training scans.

    Parameters
    ----------
    latents : ndarray
        (scan, latent) posterior means in units of the image: a latent that moves the image more counts for more.
    train : ndarray
        Positions of the scans the components are fitted on.
    direction : ndarray
        (scan,) value that decides the arbitrary sign: every component correlates positively with it in training.
    n_components : int
        Components wanted.

    Returns
    -------
    scores : ndarray
        (scan, component).
    distance : ndarray
        (scan,) squared distance of each scan to the training mean, all dimensions.
    """
    centred = latents - latents[train].mean(axis=0)
    components = np.linalg.svd(centred[train], full_matrices=False)[2][:n_components]
    scores = centred @ components.T
    sign = np.sign((direction[train] - direction[train].mean()) @ scores[train])
    return scores * np.where(sign == 0, 1, sign), np.square(centred).sum(axis=1)


def projections(
    latents: xr.Dataset,
    regions: pd.DataFrame,
    scans: pd.DataFrame,
    *,
    group: str = "",
    site: str = "",
    covariates: Sequence[str] = ("age", "sex", "head_size_factor"),
    n_components: int = 10,
    n_permutations: int = 2000,
    seed: int = 0,
) -> Finding:
    """Principal components of the latents, and what they are related to.

    Parameters
    ----------
    latents : Dataset
        Latents with the schema of :mod:`nilatent.latents`; components are fitted on part ``"train"``.
    regions : DataFrame
        Index scan_id: grey matter by region.
    scans : DataFrame
        Index scan_id; ``subject_id``, ``dataset`` and the columns named here.
    group, site : str
        Columns of group and site; empty for none. Without a site, several datasets stand in for it.
    covariates : Sequence[str]
        Further columns; those the cohort does not have are listed in the caveats.
    n_components : int
        Components, at most the rank of the training latents.
    n_permutations : int
        Permutations of every p-value.
    seed : int
        Of the permutations.

    Returns
    -------
    Finding
        Table by component; scores of every scan; correlation of every component with every region.

    Raises
    ------
    CohortError
        When latents, regions and scans do not hold the same scans.
    """
    check_latents(latents)
    for index in (regions.index, scans.index):
        apart = index.symmetric_difference(pd.Index(latents["scan"].values))
        if len(apart):
            raise CohortError(f"Scan {apart[0]} ({len(apart)} in all) is not in latents, regions and cohort alike.")
    scans, regions = scans.loc[latents["scan"].values], regions.loc[latents["scan"].values]
    part = latents["part"].values
    train, held_out = np.flatnonzero(part == "train"), np.flatnonzero(part == "test")
    # Latents that a label made come with unseen scans alone: they are then described by their own components.
    train = train if len(train) else np.arange(len(part))
    first = first_scans(scans)
    if len(first) < MIN_SUBJECTS or len(train) < 3:
        return not_run(NAME, QUESTION, f"too few: {len(first)} subjects, at least {MIN_SUBJECTS} are needed")
    # In units of the image: a latent's own units are arbitrary, and whitened latents have no principal components.
    z = (latents["mean"].values * latents["image_scale"].values).reshape(len(scans), -1).astype(np.float64)
    rank = int(np.linalg.matrix_rank(z[train] - z[train].mean(axis=0)))
    if rank == 0:
        return not_run(NAME, QUESTION, "the latents of all training scans are the same")
    direction = regions.to_numpy(dtype=np.float64).mean(axis=1)
    scores, distance = principal_components(z, train, direction, n_components=min(n_components, rank))
    table = pd.DataFrame({"component": [f"PC{index + 1}" for index in range(scores.shape[1])]})
    for column, rows in (("explained", train), ("explained_heldout", held_out)):
        total = distance[rows].sum()
        table[column] = np.square(scores[rows]).sum(axis=0) / total if total > 0 else np.nan
    site = site or ("dataset" if scans["dataset"].nunique() > 1 else "")
    wanted = list(dict.fromkeys([*covariates, *filter(None, [site, group])]))
    known = [name for name in wanted if name in scans]
    skipped = [name for name in wanted if name not in scans]
    for variable in known:
        found = _related(
            scores[first],
            scans.iloc[first],
            variable,
            site=site,
            levels=(site, group),
            seed=seed,
            n_permutations=n_permutations,
        )
        if found is None:
            skipped.append(variable)
        else:
            table[f"r2_{variable}"], table[f"p_{variable}"] = found
    kept = stats.varying(regions.to_numpy(dtype=np.float64)[first])
    orders = stats.permutations(len(first), n_permutations, seed=seed)
    by_region = stats.permuted_correlation(
        regions.to_numpy(dtype=np.float64)[np.ix_(first, np.flatnonzero(kept))], scores[first], orders
    )
    sample = np.random.default_rng(seed).permutation(len(scans))[:MAX_NEIGHBOUR_SCANS]
    trust = float(trustworthiness(z[sample], scores[sample, :2], n_neighbors=min(10, (len(sample) - 1) // 2)))
    clusters, n_seen = _site_clusters(table, site), int(latents["subject_in_training"].values.sum())
    return Finding(
        name=NAME,
        question=QUESTION,
        answer=_answer(table, trust, group=group, clusters=clusters),
        table=table,
        data=_data(latents, scans, scores, by_region, table, regions.columns[kept], known, levels=(site, group)),
        settings={"group": group, "site": site, "covariates": list(covariates), "n_components": n_components}
        | {"n_permutations": n_permutations, "seed": seed, "trustworthiness": trust},
        caveats=_caveats(clusters, site, skipped, n_scans=len(scans), n_first=len(first), n_seen=n_seen),
        n_scans=len(scans),
        n_subjects=len(first),
    )


def _related(
    scores: np.ndarray,
    scans: pd.DataFrame,
    variable: str,
    *,
    site: str,
    levels: Sequence[str],
    seed: int,
    n_permutations: int,
) -> tuple[np.ndarray, np.ndarray] | None:
    """R^2 and family-wise p of every component, or None where the variable does not vary or is mostly missing."""
    predictors = confound_matrix(scans, [variable], levels=levels)
    complete = np.isfinite(predictors).all(axis=1)
    if complete.sum() < MIN_SUBJECTS or not stats.varying(predictors[complete]).any():
        return None
    # Elsewhere scans are shuffled within site only, so that a scanner difference cannot pass for one of age or group.
    blocks = level_words(scans[site]).astype(str).to_numpy()[complete] if site and site != variable else None
    if blocks is not None and pd.Series(blocks).value_counts().max() < 2:
        return None
    orders = stats.permutations(int(complete.sum()), n_permutations, seed=seed, blocks=blocks)
    return stats.permuted_r2(scores[complete], predictors[complete], orders)


def _site_clusters(table: pd.DataFrame, site: str) -> list[str]:
    if f"p_{site}" not in table:
        return []
    rows = table[table[f"p_{site}"] <= ALPHA]
    return [f"{name} (R2 {r2:.2f})" for name, r2 in zip(rows["component"], rows[f"r2_{site}"], strict=True)]


def _answer(table: pd.DataFrame, trust: float, *, group: str, clusters: list[str]) -> str:
    share = table[["explained", "explained_heldout"]].head(2).sum(min_count=1)
    held = "" if np.isnan(share["explained_heldout"]) else f" ({share['explained_heldout']:.0%} in held-out scans)"
    text = f"The first two components hold {share['explained']:.0%} of the variance of the latents{held}; "
    text += f"neighbours on that plane are neighbours in the latents with trustworthiness {trust:.2f}. "
    found = []
    for column in [str(name) for name in table if str(name).startswith("r2_")]:
        variable = column.removeprefix("r2_")
        best = table.sort_values(f"p_{variable}", kind="stable").iloc[0]
        if best[f"p_{variable}"] <= ALPHA:
            found.append(
                f"{variable} with {best['component']} (R2 {best[column]:.2f}, p = {best[f'p_{variable}']:.2g})"
            )
        elif variable == group:
            found.append(f"{variable} with none (smallest p = {best[f'p_{variable}']:.2g})")
    text += f"Related, family-wise over components: {'; '.join(found) if found else 'nothing that was measured'}."
    return text + (f" Failure: scans cluster by site on {', '.join(clusters)}." if clusters else "")


def _caveats(
    clusters: list[str], site: str, skipped: list[str], *, n_scans: int, n_first: int, n_seen: int
) -> tuple[str, ...]:
    lines = [
        "Components are directions of largest variance, not biological factors; a visible cluster is not a disease entity.",
        f"{n_seen} of {n_scans} scans are of subjects the model was fitted on; neither model nor components knew the rest.",
    ]
    if clusters:
        lines.insert(
            0,
            f"Failure: the latents separate the levels of '{site}' on {', '.join(clusters)}. Any comparison across it mixes "
            "scanner with brain; name it with --site, and harmonise before pooling.",
        )
    if n_scans > n_first:
        lines.append(f"p-values use the first session of each subject ({n_first} of {n_scans} scans).")
    if skipped:
        lines.append(f"Not in the cohort, constant, or mostly missing, and so not related: {', '.join(skipped)}.")
    return tuple(lines)


def _data(
    latents: xr.Dataset,
    scans: pd.DataFrame,
    scores: np.ndarray,
    by_region: stats.CorrelationTest,
    table: pd.DataFrame,
    region_names: pd.Index,
    known: list[str],
    *,
    levels: Sequence[str],
) -> xr.Dataset:
    variables = {}
    for name in dict.fromkeys([*known, "dataset"]):
        values = scans[name]
        is_number = pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)
        text = level_words(values).fillna("n/a").to_numpy().astype(str)
        drawn = values.to_numpy(dtype=np.float64) if is_number and name not in levels else text
        # netCDF allows no slash in a name, and a column may be called M/F.
        variables[f"scan_{name}".replace("/", "_")] = ("scan", drawn)
    return xr.Dataset(
        {
            "scores": (("scan", "component"), scores),
            "region_r": (("component", "region"), by_region.observed.T),
            "region_p": (("component", "region"), by_region.p_fwe.T),
            **variables,
        },
        coords={
            "scan": ("scan", latents["scan"].values.astype(str)),
            "part": ("scan", latents["part"].values.astype(str)),
            "subject": ("scan", latents["subject"].values.astype(str)),
            "component": ("component", table["component"].to_numpy().astype(str)),
            "region": ("region", np.asarray(region_names, dtype=str)),
        },
    )
