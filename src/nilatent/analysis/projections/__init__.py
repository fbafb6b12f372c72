"""Projections of the latents to a few components, and what these know: age, sex, site, head size, group, regions.

Four methods, each fitted on training scans, and the same four on two baselines: regional means, and principal components of
the voxels. PLS is told the group, so it is shown and judged on scans outside the training part only.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd
import xarray as xr

from nilatent.analysis import stats
from nilatent.analysis.contrast import first_scans, level_words
from nilatent.analysis.projections.made import LATENTS, REGIONS, VOXELS, Part, ShownMap, make_maps, target_columns
from nilatent.analysis.projections.maps import METHODS, N_AXES, NAMES, Method, to_arrays
from nilatent.analysis.projections.quality import Shuffling, are_levels, known, quality
from nilatent.analysis.projections.related import MIN_SUBJECTS, Relations, relate
from nilatent.analysis.projections.words import answer, caveats, site_clusters
from nilatent.errors import CohortError, SettingError
from nilatent.finding import Finding, not_run
from nilatent.latents import check_latents

NAME = "projections"
COHORT = "cohort"
QUESTION = "Along which few directions do these brains differ most, and do these follow age, sex, scanner or diagnosis?"


@dataclass(frozen=True)
class ProjectionsConfig:
    """Settings of :func:`projections`.

    Parameters
    ----------
    methods : tuple[str, ...]
        Which of ``"pca"``, ``"pls"``, ``"tsne"`` and ``"umap"``.
    target : str
        Column that PLS is told; empty for the group.
    n_components : int
        Principal components; the other methods have two.
    n_refits : int
        How often each map is fitted again, to see whether it repeats.
    n_permutations : int
        Permutations of every p-value.
    """

    methods: tuple[Method, ...] = METHODS
    target: str = ""
    n_components: int = 10
    n_refits: int = 5
    n_permutations: int = 2000

    def __post_init__(self) -> None:
        """Refuse what no map can be made of.

        Raises
        ------
        SettingError
            Names the setting and its range.
        """
        unknown = [name for name in self.methods if name not in METHODS]
        if unknown or not self.methods or len(set(self.methods)) < len(self.methods):
            raise SettingError(
                f"projections.methods is {list(self.methods)}; name at least one of {', '.join(METHODS)}, each once."
            )
        for name, lowest in (("n_components", 1), ("n_refits", 0), ("n_permutations", 1)):
            if getattr(self, name) < lowest:
                raise SettingError(f"projections.{name} is {getattr(self, name)}; it must be at least {lowest}.")


DEFAULT = ProjectionsConfig()


def projections(
    latents: xr.Dataset,
    regions: pd.DataFrame,
    scans: pd.DataFrame,
    config: ProjectionsConfig = DEFAULT,
    *,
    voxel_scores: pd.DataFrame | None = None,
    group: str = "",
    site: str = "",
    covariates: Sequence[str] = ("age", "sex", "head_size_factor"),
    seed: int = 0,
) -> Finding:
    """Maps of the latents by PCA, PLS, t-SNE and UMAP, what they are related to, and the same maps of regions and voxels.

    Parameters
    ----------
    latents : Dataset
        Latents with the schema of :mod:`nilatent.latents`; maps are fitted on part ``"train"``.
    regions : DataFrame
        Index scan_id: grey matter by region. Also the first baseline, each region in units of its SD over training scans.
    scans : DataFrame
        Index scan_id; ``subject_id``, ``dataset`` and the columns named here.
    config : ProjectionsConfig
        Settings.
    voxel_scores : DataFrame or None
        Index scan_id: as many principal components of the voxels as there are latents, fitted on the same training scans.
        The second baseline; None leaves it out.
    group, site : str
        Columns of group and site; empty for none. Without a site, several datasets stand in for it.
    covariates : Sequence[str]
        Further columns; those the cohort does not have are listed in the caveats.
    seed : int
        Of permutations, draws and layouts.

    Returns
    -------
    Finding
        Table by component of each map; places of every scan; correlation of every component with every region; quality of
        every map; and the maps of the latents themselves, in which
        :func:`nilatent.analysis.projections.place.place_scans` places new scans.

    Raises
    ------
    CohortError
        When latents, regions, voxels and scans do not hold the same scans.
    SettingError
        When a region or a voxel score is missing, or the site is not a column of the cohort.
    """
    check_latents(latents)
    joined = {REGIONS: regions, COHORT: scans} | ({} if voxel_scores is None else {VOXELS: voxel_scores})
    joined = _joined(joined, pd.Index(latents["scan"].values))
    regions, scans = joined[REGIONS], joined[COHORT]
    part = _part(latents, regions, scans)
    if len(part.first) < MIN_SUBJECTS or len(part.train) < 3:
        return not_run(NAME, QUESTION, f"too few: {len(part.first)} subjects, at least {MIN_SUBJECTS} are needed")
    spaces = _spaces(latents, {name: frame for name, frame in joined.items() if name != COHORT}, part.train)
    if LATENTS not in spaces:
        return not_run(NAME, QUESTION, "the latents of all training scans are the same")
    site = site or ("dataset" if scans["dataset"].nunique() > 1 else "")
    if site and site not in scans:
        raise SettingError(f"Column '{site}', named as the site, is not in the cohort. Name one that is, or none.")
    shuffling = Shuffling(group, site, config.n_permutations, seed)
    return _mapped(latents, regions, scans, spaces, part, config, shuffling, covariates)


def _mapped(
    latents: xr.Dataset,
    regions: pd.DataFrame,
    scans: pd.DataFrame,
    spaces: Mapping[str, np.ndarray],
    part: Part,
    config: ProjectionsConfig,
    shuffling: Shuffling,
    covariates: Sequence[str],
) -> Finding:
    """The finding, from tables whose rows are those of the latents."""
    group, site, told = shuffling.group, shuffling.site, config.target or shuffling.group
    maps, not_made = make_maps(
        spaces,
        part,
        _target(scans, part, told, shuffling),
        methods=config.methods,
        n_components=config.n_components,
        n_refits=config.n_refits,
        seed=shuffling.seed,
    )
    if not maps:
        return not_run(NAME, QUESTION, "; ".join(dict.fromkeys(not_made.values())))
    wanted = list(dict.fromkeys([*covariates, *filter(None, [site, group, config.target])]))
    related = relate(maps, regions, scans, wanted, part, shuffling)
    variables = [known(scans, name, shuffling) for name in wanted if name not in related.unrelated]
    judged = quality(maps, spaces, variables, part, shuffling)
    clusters, n_seen = site_clusters(related.table, judged, site), int(latents["subject_in_training"].values.sum())
    counts = {"scans": len(scans), "first": len(part.first), "outside": len(part.outside), "seen": n_seen}
    settings = asdict(config) | {"group": group, "site": site, "covariates": list(covariates), "seed": shuffling.seed}
    return Finding(
        name=NAME,
        question=QUESTION,
        answer=answer(related.table, judged, group=group, target=told, clusters=clusters),
        table=related.table,
        data=_data(latents, scans, maps, related, judged, shuffling),
        settings=settings
        | {"not_run": {f"{NAMES[method]} of {space}": reason for (space, method), reason in not_made.items()}},
        caveats=caveats(
            clusters,
            not_made,
            site=site,
            target=told,
            unrelated=related.unrelated,
            methods=[made.method for made in maps],
            counts=counts,
        ),
        n_scans=len(scans),
        n_subjects=len(part.first),
    )


def _joined(frames: Mapping[str, pd.DataFrame], wanted: pd.Index) -> dict[str, pd.DataFrame]:
    """The tables in the order of the latents."""
    for name, frame in frames.items():
        apart = frame.index.symmetric_difference(wanted)
        if len(apart) or not frame.index.is_unique:
            scan = apart[0] if len(apart) else frame.index[frame.index.duplicated()][0]
            raise CohortError(
                f"Scan {scan} ({max(len(apart), 1)} in all) is not once in latents and {name} alike. "
                "Encode and measure the same cohort."
            )
    return {name: frame.loc[wanted] for name, frame in frames.items()}


def _part(latents: xr.Dataset, regions: pd.DataFrame, scans: pd.DataFrame) -> Part:
    part = latents["part"].values
    # Latents that a label made come with unseen scans alone: they are then described by their own maps, and none is outside.
    train = np.flatnonzero(part == "train") if (part == "train").any() else np.arange(len(part))
    outside = np.setdiff1d(np.arange(len(part)), train)
    return Part(
        train=train,
        outside=outside,
        test=outside[part[outside] == "test"],
        first=first_scans(scans),
        subject=latents["subject"].values.astype(str),
        direction=regions.to_numpy(dtype=np.float64).mean(axis=1),
    )


def _spaces(latents: xr.Dataset, baselines: Mapping[str, pd.DataFrame], train: np.ndarray) -> dict[str, np.ndarray]:
    """(scan, feature) values of each space that varies over the training scans."""
    # In units of the image: a latent's own units are arbitrary, and whitened latents have no principal components.
    scaled = (latents["mean"].values * latents["image_scale"].values).reshape(latents.sizes["scan"], -1)
    spaces = {LATENTS: scaled.astype(np.float64)}
    for name, frame in baselines.items():
        values = stats.check_finite(frame.to_numpy(dtype=np.float64), what=f"The table of {name}")
        if name == REGIONS:
            size = values[train].std(axis=0)
            kept = size > 1e-9 * np.abs(values).max(axis=0, initial=0)
            values = values[:, kept] / size[kept]
        spaces[name] = values
    return {name: values for name, values in spaces.items() if np.ptp(values[train], axis=0).any()}


def _target(scans: pd.DataFrame, part: Part, name: str, shuffling: Shuffling) -> np.ndarray | str:
    if not name:
        return "there is no group, and no other column was named as its target"
    if name not in scans:
        return f"its target '{name}' is not a column of the cohort"
    if not len(part.outside):
        return "there is no scan outside those it would be told of"
    named = name in (shuffling.group, shuffling.site)
    return target_columns(scans[name], part.train, are_levels=are_levels(scans[name], named=named))


def _data(
    latents: xr.Dataset,
    scans: pd.DataFrame,
    maps: Sequence[ShownMap],
    related: Relations,
    judged: xr.Dataset,
    shuffling: Shuffling,
) -> xr.Dataset:
    variables = _drawn(scans, [*map(str, judged["variable"].values), "dataset"], shuffling)
    for shown in maps:
        if shown.space == LATENTS:
            variables |= to_arrays(shown.fitted)
    table = related.table
    return xr.Dataset(
        {
            "scores": (("scan", "component"), np.hstack([shown.scores for shown in maps])),
            "region_r": (("component", "region"), related.region_r),
            "region_p": (("component", "region"), related.region_p),
            "map_scale": (("latent",), latents["image_scale"].values),
            **variables,
            **judged.data_vars,
        },
        coords={
            "scan": ("scan", latents["scan"].values.astype(str)),
            "part": ("scan", latents["part"].values.astype(str)),
            "subject": ("scan", latents["subject"].values.astype(str)),
            "component": ("component", table["component"].to_numpy().astype(str)),
            "region": ("region", np.asarray(related.region_names, dtype=str)),
            "latent": ("latent", latents["latent"].values.astype(str)),
            "axis": ("axis", np.arange(1, N_AXES + 1)),
            **judged.coords,
        },
        attrs={name: latents.attrs[name] for name in ("model_hash", "compact") if name in latents.attrs},
    )


def _drawn(
    scans: pd.DataFrame, names: Sequence[str], shuffling: Shuffling
) -> dict[str, tuple[tuple[str, ...], np.ndarray]]:
    """What is known of every scan, as a figure shows it: amounts as numbers, all else as text."""
    variables: dict[str, tuple[tuple[str, ...], np.ndarray]] = {}
    for name in dict.fromkeys(names):
        values = scans[name]
        is_number = pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)
        text = level_words(values).fillna("n/a").to_numpy().astype(str)
        is_amount = is_number and name not in (shuffling.site, shuffling.group)
        # netCDF allows no slash in a name, and a column may be called M/F.
        stored = f"scan_{name}".replace("/", "_")
        variables[stored] = (("scan",), values.to_numpy(dtype=np.float64) if is_amount else text)
    return variables
