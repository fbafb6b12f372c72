"""What a run folder is asked: every analysis with its settings and the pools it rests on."""

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import xarray as xr

from nilatent.analysis.agnostic import QUESTION as AGNOSTIC_QUESTION
from nilatent.analysis.agnostic import agnostic
from nilatent.analysis.error_profile import QUESTION as ERROR_PROFILE_QUESTION
from nilatent.analysis.error_profile import error_profile
from nilatent.analysis.fusion import NAME as FUSION
from nilatent.analysis.fusion import QUESTION as FUSION_QUESTION
from nilatent.analysis.fusion import fusion
from nilatent.analysis.harmonise import NAME as HARMONISE
from nilatent.analysis.harmonise import QUESTION as HARMONISE_QUESTION
from nilatent.analysis.harmonise import Measures, harmonise
from nilatent.analysis.leaks import NAME as LEAKS
from nilatent.analysis.leaks import QUESTION as LEAKS_QUESTION
from nilatent.analysis.leaks import leaks
from nilatent.analysis.lrcp import QUESTION as LRCP_QUESTION
from nilatent.analysis.lrcp import lrcp
from nilatent.analysis.multimodal import NAME as MULTIMODAL
from nilatent.analysis.multimodal import QUESTION as MULTIMODAL_QUESTION
from nilatent.analysis.normative import NAME as NORMATIVE
from nilatent.analysis.normative import QUESTION as NORMATIVE_QUESTION
from nilatent.analysis.normative import deviation_maps, normative
from nilatent.analysis.prediction import NAME as PREDICTION
from nilatent.analysis.prediction import QUESTION as PREDICTION_QUESTION
from nilatent.analysis.prediction import prediction
from nilatent.analysis.prediction.sets import LATENTS, REGIONS, covariate_set, latent_set, region_set, volume_set
from nilatent.analysis.projections import QUESTION as PROJECTIONS_QUESTION
from nilatent.analysis.projections import projections
from nilatent.analysis.reconstruction import QUESTION as RECONSTRUCTION_QUESTION
from nilatent.analysis.reconstruction import reconstruction
from nilatent.asked import Asked
from nilatent.drawn import QUESTIONS as DRAWN_QUESTIONS
from nilatent.drawn import drawn
from nilatent.encode import reconstructions
from nilatent.errors import GridError, ScanError
from nilatent.feature_sets import described, feature_sets, image_sets, joint_set
from nilatent.finding import Finding, not_run
from nilatent.joint import joint_found
from nilatent.latents import read_latents
from nilatent.modalities import JOINT, joint_stages, modality_names, modality_stages
from nilatent.models import SpatialVae
from nilatent.models.features import image_features
from nilatent.pools import Pools
from nilatent.preprocess.native import to_native
from nilatent.provenance import atomic, plain
from nilatent.training.checkpoint import TrainedModel, load_model
from nilatent.training.heads import HeadConfig, fit_predict
from nilatent.viewed import FORMAT_VERSION as VIEWED_VERSION
from nilatent.viewed import view, write_viewed
from nilatent.volumes import gm_mask

QUESTIONS = {
    "reconstruction": RECONSTRUCTION_QUESTION,
    "projections": PROJECTIONS_QUESTION,
    "lrcp": LRCP_QUESTION,
    "error_profile": ERROR_PROFILE_QUESTION,
    "agnostic": AGNOSTIC_QUESTION,
    PREDICTION: PREDICTION_QUESTION,
    HARMONISE: HARMONISE_QUESTION,
    NORMATIVE: NORMATIVE_QUESTION,
    LEAKS: LEAKS_QUESTION,
    MULTIMODAL: MULTIMODAL_QUESTION,
    FUSION: FUSION_QUESTION,
} | DRAWN_QUESTIONS

FURTHER = ("modalities", "tables")
MIN_PREDICTED = 20
"""Scans that a model has not seen, below which nothing is predicted."""


def analyses(pools: Pools) -> dict[str, Asked]:
    """Every analysis by its name, in the order of the report; none is run yet."""
    config = pools.config
    common = ["latents", "regions", "volumes", "split", "prepared"]
    # Further modalities are asked of two analyses alone, which name them as what they rest on.
    asked = {name: value for name, value in plain(config.study).items() if name not in FURTHER}
    study = {"study": asked, "seed": config.seed}
    crossfit = [f"fold {fold}" for fold in range(config.folds)]
    further = [*modality_stages(config), *joint_stages(config)]
    return {
        "reconstruction": Asked(
            lambda: _reconstruction(pools),
            study | {"viewed": VIEWED_VERSION},
            [*common, "model"],
            partial(_viewed, pools),
        ),
        "projections": Asked(lambda: _projections(pools), study | {"projections": config.projections}, common),
        "lrcp": Asked(lambda: _lrcp(pools), study | {"lrcp": config.lrcp}, [*common, *crossfit]),
        "error_profile": Asked(
            lambda: _error_profile(pools),
            study | {"error_profile": config.error_profile},
            [*common, *(crossfit or ["model"])],
        ),
        "agnostic": Asked(lambda: _agnostic(pools), study | {"agnostic": config.agnostic}, [*common, *crossfit]),
        PREDICTION: Asked(
            lambda: _prediction(pools),
            study | {"prediction": config.prediction},
            [*common, *(crossfit or ["model"])],
        ),
        HARMONISE: Asked(lambda: _harmonise(pools), study | {"harmonise": config.harmonise}, [*common, *crossfit]),
        NORMATIVE: Asked(
            lambda: _normative(pools),
            study | {"normative": config.normative},
            [*common, *(crossfit or ["model"])],
            partial(_deviation_maps, pools),
        ),
        LEAKS: Asked(
            lambda: _leaks(pools),
            study | {"leaks": config.leaks, "targets": config.prediction.targets},
            [*common, *crossfit],
        ),
        MULTIMODAL: Asked(
            lambda: joint_found(pools),
            {"names": modality_names(config), "seed": config.seed},
            ["volumes", "split", "prepared", *further],
        ),
        FUSION: Asked(
            lambda: _fusion(pools),
            study | {"fusion": config.fusion},
            # What the joint latents were made of is said by the study's own.
            [
                *common,
                *(crossfit or ["model"]),
                *further,
                *([JOINT] if config.folds and modality_names(config) else []),
            ],
        ),
    } | drawn(pools, crossfit)


def _reconstruction(pools: Pools) -> Finding:
    config, study = pools.config, pools.config.study
    model = load_model(pools.out / "model")
    rows = pools.volumes.rows(list(pools.parts.index))
    features, network = image_features(pools.volumes.mask)
    return reconstruction(
        pools.volumes,
        reconstructions(model, pools.volumes, rows, scans=pools.prepared.scans),
        pools.parts,
        pools.prepared.scans,
        n_latent=values_used(model),
        seed=config.seed,
        group=study.group,
        site=study.site,
        regions=pools.of_mask,
        features=features,
        features_note=network,
        model_note=model.result["summary"],
        target=config.recipe.target,
    )


def _viewed(pools: Pools, found: Finding, folder: Path) -> list[Path]:
    """Small volumes of some scans and of what the model makes of them, for the report to show."""
    if found.not_run:
        (folder / "viewed.nc").unlink(missing_ok=True)
        return []
    model, scans = load_model(pools.out / "model"), pools.prepared.scans
    viewed = view(
        pools.volumes,
        pools.latents,
        found.data["mse"].sel(approach="model"),
        lambda rows: reconstructions(model, pools.volumes, rows, scans=scans),
        cases=[str(scan) for scan in found.data["case_scan"].values],
    )
    return [write_viewed(viewed, folder)]


def values_used(model: TrainedModel) -> int:
    """Values of a latent that differ from scan to scan: of a grid those of cells with a voxel of the mask."""
    return model.module.n_used if isinstance(model.module, SpatialVae) else model.model_config.n_values


def _projections(pools: Pools) -> Finding:
    study = pools.config.study
    regions, scans = pools.of_judged()
    found = projections(
        pools.judged,
        regions,
        scans,
        pools.config.projections,
        voxel_scores=pools.voxel_scores(pools.latents.sizes["latent"], pools.parts).loc[pools.judged["scan"].values],
        group=study.group,
        site=study.site,
        seed=pools.config.seed,
    )
    return _with_notes(found, pools.latents)


def _error_profile(pools: Pools) -> Finding:
    grid = pools.volumes.grid
    scans, config = pools.prepared.scans, pools.config.error_profile
    return error_profile(pools.errors(), pools.regions, scans, pools.weights, grid, gm_mask(grid), config)


def _agnostic(pools: Pools) -> Finding:
    regions, scans = pools.of_judged()
    grid, folds = pools.volumes.grid, pools.blind()
    config = pools.config.agnostic
    found = agnostic(pools.judged, regions, scans, pools.weights, grid, gm_mask(grid), config, folds=folds)
    return _with_notes(found, pools.latents)


def _lrcp(pools: Pools) -> Finding:
    regions, scans = pools.of_judged()
    grid = pools.volumes.grid
    config, folds = pools.config.lrcp, pools.blind()
    found = lrcp(pools.judged, regions, scans, pools.weights, grid, gm_mask(grid), config, folds=folds, label="lrcp")
    return _with_notes(found, pools.latents)


def _shaped(pools: Pools) -> str:
    """Why nothing is predicted from these latents, and no site harmonised in them; empty where both may be."""
    label = pools.latents.attrs.get("supervised")
    return (
        f"'{label}' shaped the latents of training scans; train a model without model.align to ask this"
        if label
        else ""
    )


def _prediction(pools: Pools) -> Finding:
    if _shaped(pools):
        return not_run(PREDICTION, PREDICTION_QUESTION, _shaped(pools))
    latents, scans, folds = described(pools)
    if len(latents) < 2 or len(scans) < MIN_PREDICTED:
        return not_run(
            PREDICTION,
            PREDICTION_QUESTION,
            f"the model has not seen {len(scans)} scans, and at least {MIN_PREDICTED} are needed. With --folds 5 every scan is "
            "described by a model that has not seen it",
        )
    sets, network = feature_sets(pools, latents, scans, folds), None
    for channel, x, y, z in (one.grid for one in sets if one.grid):
        network = fit_predict((channel, x, y, z), HeadConfig(), seed=pools.config.seed)
    found = prediction(sets, scans, folds, pools.config.prediction, network=network, label="prediction")
    if pools.config.folds:
        return found
    note = f"Judged on the {len(scans)} scans that the study's one model has not seen; with --folds, on all of them."
    return replace(found, caveats=(note, *found.caveats))


def _fusion(pools: Pools) -> Finding:
    tables = pools.config.fusion.tables
    if _shaped(pools) or not modality_names(pools.config):
        none = "no other kind of measurement is named; name columns with --table or images with --modality to ask this"
        return not_run(FUSION, FUSION_QUESTION, _shaped(pools) or none)
    latents, scans, folds = described(pools)
    if len(latents) < 2 or len(scans) < MIN_PREDICTED:
        return not_run(
            FUSION, FUSION_QUESTION, f"fewer than {MIN_PREDICTED} scans that the model has not seen; use --folds 5"
        )
    volumes, joint = volume_set(scans), joint_set(pools, scans, n_folds=len(latents))
    sets = [latent_set(latents, scans), *image_sets(pools, scans, latents), *([volumes] if volumes is not None else [])]
    sets += [replace(covariate_set(scans, columns), name=name, baseline=False) for name, columns in tables.items()]
    found = fusion(sets, joint, scans, folds, pools.config.fusion, label="fusion")
    return replace(found, caveats=(*found.caveats, str(read_latents(pools.out / JOINT).attrs["caveat"])))


def _harmonise(pools: Pools) -> Finding:
    if _shaped(pools):
        return not_run(HARMONISE, HARMONISE_QUESTION, _shaped(pools))
    latents, scans, folds = described(pools)
    if len(latents) < 2:
        return not_run(HARMONISE, HARMONISE_QUESTION, "fewer than two folds have a scan that the model has not seen")
    regions, z = region_set(pools.regions, scans), latent_set(latents, scans)
    # Components of latent grids may be fewer in one fold than in another; those that all have are compared.
    width = min(values.shape[1] for values in z.by_fold)
    names = tuple(f"z{number:03d}" for number in range(width))
    measures = [
        Measures(REGIONS, regions.by_fold, tuple(map(str, pools.regions))),
        Measures(LATENTS, tuple(values[:, :width] for values in z.by_fold), names, z.seen),
    ]
    return harmonise(measures, scans, folds, pools.config.harmonise)


def _normative(pools: Pools) -> Finding:
    scans = pools.prepared.scans
    return normative(
        pools.blind() or [pools.latents],
        pools.regions.loc[scans.index],
        pools.regional_errors().reindex(columns=list(pools.weights.names)),
        scans,
        pools.parts["fold"].loc[scans.index].to_numpy(),
        pools.weights,
        pools.volumes.grid,
        gm_mask(pools.volumes.grid),
        pools.config.normative,
    )


def _deviation_maps(pools: Pools, found: Finding, folder: Path) -> list[Path]:
    """A map of z of each scan that deviates most, ``maps/<scan>.nii.gz``, and of raw heads ``maps/native/<scan>.nii.gz``."""
    place = folder / "maps"
    if place.is_dir():
        shutil.rmtree(place)
    if found.not_run:
        return []
    scans, volumes = pools.prepared.scans, pools.volumes
    folds = pools.parts["fold"].loc[scans.index].to_numpy()
    config, chosen = pools.config.normative, found.settings["mapped"]
    written, failed = [], []
    for scan, z in deviation_maps(volumes, scans, folds, config, chosen=chosen, label="deviation maps"):
        values = np.zeros(volumes.grid.shape, dtype=np.float32)
        values[volumes.mask] = z
        image = volumes.grid.to_image(values)
        written.append(_saved(image, place / f"{scan}.nii.gz"))
        if scans.at[scan, "recipe"] != "t1":
            continue
        side_car = Path(str(scans.at[scan, "path"]).removesuffix(".nii.gz") + ".json")
        try:
            written.append(_saved(to_native(image, side_car), place / "native" / f"{scan}.nii.gz"))
        except (ScanError, GridError) as error:
            failed.append({"scan_id": scan, "reason": str(error)})
    if failed:
        written.append(place / "native" / "not_written.tsv")
        with atomic(written[-1]) as temporary:
            pd.DataFrame(failed).to_csv(temporary, sep="\t", index=False)
    return written


def _saved(image: nib.Nifti1Image, path: Path) -> Path:
    with atomic(path) as temporary:
        nib.save(image, temporary)
    return path


def _leaks(pools: Pools) -> Finding:
    scans, config = pools.prepared.scans, pools.config
    return leaks(
        scans,
        pools.parts,
        replace(config.leaks, targets=tuple(dict.fromkeys([*config.leaks.targets, *config.prediction.targets]))),
        latents=pools.latents,
        folds=pools.fold_latents(),
        regions=pools.regions.loc[scans.index],
        volumes=pools.volumes,
    )


def _with_notes(finding: Finding, latents: xr.Dataset) -> Finding:
    """A finding with what the latents themselves say of how far they can be trusted."""
    notes = [str(latents.attrs[name]) for name in ("caveat", "seen", "told", "compact") if latents.attrs.get(name)]
    if latents.attrs.get("supervised"):
        notes.append(
            f"The first latent was pulled to {latents.attrs['supervised']} on training scans, so only scans of subjects that the "
            "model has not seen were analysed."
        )
    return replace(finding, caveats=(*finding.caveats, *notes))
