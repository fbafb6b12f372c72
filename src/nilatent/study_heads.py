"""Heads that a study passes on: for every target it predicted, a rule on the latents of its own model, frozen for others."""

from pathlib import Path

import numpy as np

from nilatent.analysis.prediction.sets import LATENTS
from nilatent.analysis.prediction.targets import make_targets
from nilatent.feature_sets import GRID
from nilatent.finding import Finding
from nilatent.head import write_head
from nilatent.head_fit import fit_head, held_out_of
from nilatent.latents import is_grid, read_latents
from nilatent.pools import Pools
from nilatent.provenance import file_stems
from nilatent.training.heads import HeadConfig


def write_heads(pools: Pools, found: Finding, folder: Path) -> list[Path]:
    """Fit and write a head for every target of a prediction, ``<target>/`` in the folder.

    Parameters
    ----------
    pools : Pools
        Of the run folder.
    found : Finding
        The prediction: its targets, and how well such heads did on held-out subjects.
    folder : Path
        Receives one folder per target; those of targets that are no longer asked are left to the caller.

    Returns
    -------
    list of Path
        The files.
    """
    if found.not_run:
        return []
    latents = read_latents(pools.out)
    scans = pools.prepared.scans.loc[latents["scan"].values]
    config = pools.config.prediction
    folds = pools.parts["fold"].loc[scans.index].to_numpy()
    targets, _ = make_targets(scans, folds, config, usable=np.ones(len(scans), dtype=bool))
    network = HeadConfig() if "network" in config.heads and is_grid(latents) else None
    # A linear head on a grid is none of those that were judged, which read its principal components.
    judged = (GRID, "network") if network is not None else ("" if is_grid(latents) else LATENTS, "linear")
    errors = pools.study_errors()
    written: list[Path] = []
    stems = file_stems(target.name for target in targets)
    for target in targets:
        head = fit_head(
            latents,
            target,
            pools.volumes,
            network=network,
            errors=errors,
            # Judged with ComBat in every fold, and passed on without: those figures would be of another rule.
            held_out={} if config.harmonise else held_out_of(found, target, features=judged[0], head=judged[1]),
            seed=pools.config.seed,
        )
        written += write_head(head, folder / stems[target.name])
    return written
