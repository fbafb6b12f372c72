"""Settings of the model of a run: what a trained one depends on, and what training is given beside the scans."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from nilatent.cohort import Cohort, load_cohort
from nilatent.config import RunConfig, sized
from nilatent.models import ModelConfig
from nilatent.preprocess.recipe import fingerprint
from nilatent.training.checkpoint import load_model
from nilatent.training.config import TrainConfig, settled
from nilatent.training.nuisance import NUISANCES
from nilatent.training.preparation import how_made


def preparation_of(config: RunConfig, out: Path, prepared: Cohort) -> dict[str, Any]:
    """How the scans of a run folder were made, as far as a model and the scans it is used on must agree."""
    sources = load_cohort(out / "cohort").scans.loc[prepared.scans.index, "path"]
    return how_made(fingerprint(config.recipe), prepared.scans["recipe"], sources)


def training_of(
    config: RunConfig, out: Path, prepared: Cohort, parts: pd.DataFrame
) -> tuple[ModelConfig, dict[str, Any], dict[str, Any]]:
    """Settings of the model of a split.

    Parameters
    ----------
    config : RunConfig
        Every setting.
    out : Path
        The run folder.
    prepared : Cohort
        Its scans.
    parts : DataFrame
        Index ``scan_id``, column ``part``.

    Returns
    -------
    model : ModelConfig
        With a number of latents that the training scans can carry.
    settings : dict
        What a trained model depends on.
    beside : dict
        What :func:`nilatent.training.loop.train` is given beside the scans and these settings.
    """
    model_config = sized(config, n_train=int((parts["part"] == "train").sum()))
    preparation = preparation_of(config, out, prepared)
    settings = {"model": model_config, "training": _recorded(config.training), "preparation": preparation}
    # The table of scans says what a model is told or pulled to, and what its latents should not know.
    nuisances = tuple(dict.fromkeys(filter(None, (config.study.site, *NUISANCES))))
    beside = {"scans": prepared.scans, "preparation": preparation, "nuisances": nuisances}
    settings["nuisances"] = nuisances
    return model_config, settings | ({"remedy": True} if config.remedy else {}), beside


def _recorded(training: TrainConfig) -> TrainConfig:
    """Settings on which a trained model depends; where a model that it starts from lies is none of them."""
    other = load_model(Path(training.start_from)).content_hash if training.start_from else ""
    return replace(settled(training), start_from=other)
