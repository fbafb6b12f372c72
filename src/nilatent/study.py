"""Study: what is asked of a cohort, held against what the cohort has, before anything is computed."""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from nilatent.analysis.contrast import level_words
from nilatent.analysis.prediction.sets import LATENTS
from nilatent.cohort import Cohort
from nilatent.config import RunConfig, sized
from nilatent.crossfit import fold_parts
from nilatent.errors import SettingError
from nilatent.further import MADE
from nilatent.modalities import check_joint
from nilatent.parts import SplitConfig
from nilatent.tables import image_column
from nilatent.training.conditions import fit_conditions
from nilatent.training.multimodal.data import Modality, check_name
from nilatent.training.transfer import source_of
from nilatent.variables import CODE, NUMBER
from nilatent.volumes import Volumes

DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+")


def stratified(config: RunConfig, prepared: Cohort) -> SplitConfig:
    """The split's settings; without strata of its own, by group and sex where every subject has them."""
    if config.split.stratify:
        return config.split
    wanted = [name for name in (config.study.group, "sex") if name and name in prepared.scans]
    return replace(config.split, stratify=tuple(wanted))


def check_study(cohort: Cohort, config: RunConfig) -> None:
    """Refuse a study that asks for columns or groups the cohort does not have, before anything is computed.

    Raises
    ------
    SettingError
        Names the column or group and the nearest one there is.
    """
    study = config.study
    model = config.model
    asked = {"--group": study.group, "--site": study.site} | {f"--covariates {name}": name for name in study.covariates}
    asked |= {"model.align": model.align} | {f"model.condition {name}": name for name in model.condition}
    asked |= {f"--table {table} {name}": name for table, columns in study.tables.items() for name in columns}
    for flag, name in asked.items():
        if name and name not in cohort.scans:
            raise SettingError(f"{flag}: there is no column '{name}'.{nearest(name, list(map(str, cohort.scans)))}")
    if study.group and study.group in model.condition:
        raise SettingError(
            f"model.condition names '{study.group}', the group of the study: latents that were told it cannot be asked about "
            "it, and would differ between groups of people who do not. Take it out."
        )
    names = list(map(str, cohort.scans["dataset"].unique()))
    for name in config.split.train_on:
        if name not in names:
            raise SettingError(f"--train-on: there is no data set '{name}'.{nearest(name, names)}")
    named = [*study.covariates, *([study.site] if study.site else [])]
    twice = [name for name in dict.fromkeys(named) if named.count(name) > 1]
    if twice:
        raise SettingError(
            f"'{twice[0]}' is named twice among --covariates and --site. Name it once: a site is adjusted for anyway."
        )
    for name in study.covariates:
        _check_numbers(cohort, name, f"--covariates {name}")
    _check_modalities(cohort, config)
    if study.contrast and not study.group:
        raise SettingError(f"--contrast {study.contrast} needs --group, the column that holds its two values.")
    if study.contrast:
        values = sorted(level_words(cohort.scans[study.group]).dropna().unique())
        for contrast in study.contrast.split(","):
            sides = [side.strip() for side in contrast.split(":")]
            if len(sides) != 2 or sides[0] == sides[1]:
                raise SettingError(f"--contrast is two different values joined by a colon, got '{contrast}'.")
            for side in sides:
                if side not in values:
                    raise SettingError(
                        f"--contrast: column '{study.group}' has no value '{side}'.{nearest(side, values)}"
                    )


def _check_modalities(cohort: Cohort, config: RunConfig) -> None:
    """Refuse names that no modality can have, tables from which nothing can be learned, and images the cohort does not know."""
    study = config.study
    taken = {config.recipe.target: "the modelled image", LATENTS: "what the model says of it"}
    for flag, name in [
        *(("--modality", name) for name in study.modalities),
        *(("--table", name) for name in study.tables),
    ]:
        check_name(name)
        if name.lower() in taken:
            raise SettingError(
                f"{flag} {name}: '{name.lower()}' is {taken[name.lower()]} already. Give every modality a name of its own."
            )
        taken[name.lower()] = f"the name of a {flag.removeprefix('--')}"
    for name, source in study.modalities.items():
        if not source:
            raise SettingError(
                f"--modality {name}= names no images. Write {name}=SUFFIX, such as wm=WM or flair=FLAIR."
            )
        if source not in MADE and image_column(name) not in cohort.scans:
            raise SettingError(
                f"--modality {name}={source}: the scans were read without these images. Name the sources in `nilatent run`."
            )
    for table, columns in study.tables.items():
        if not columns or len(set(columns)) < len(columns):
            raise SettingError(
                f"--table {table} has the columns {', '.join(columns) or 'none'}. Name at least one, and each once."
            )
        for name in columns:
            _check_numbers(cohort, name, f"--table {table} {name}")


def _check_numbers(cohort: Cohort, name: str, flag: str) -> None:
    """Refuse a column that is mostly numbers, but for a cell that would turn all of them into names of levels."""
    values = cohort.scans[name].dropna()
    if pd.api.types.is_numeric_dtype(values) or values.empty:
        return
    words = values.astype(str).str.strip()
    odd = words[~words.str.fullmatch(NUMBER)]
    commas = words[words.str.fullmatch(DECIMAL_COMMA)]
    if len(odd) - len(commas) >= len(words) / 2 or words.str.match(CODE).any():
        return
    raise SettingError(
        f"{flag}: scan {odd.index[0]} has '{odd.iloc[0]}' where most scans have numbers, so every number would "
        "count as a category of its own. Write n/a for a missing value and a decimal point for a comma."
    )


def nearest(name: str, names: Sequence[str]) -> str:
    """The nearest of some names as a hint, or the first of them."""
    near = difflib.get_close_matches(name, names, n=1)
    return f" Did you mean '{near[0]}'?" if near else f" There are: {', '.join(names[:20])}."


def check_folds(prepared: Cohort, volumes: Volumes, parts: pd.DataFrame, config: RunConfig, out: Path) -> None:
    """Refuse, before anything is trained, folds that could not be: too small, or with levels their training has not seen.

    Parameters
    ----------
    prepared : Cohort
        The scans.
    volumes : Volumes
        Their images.
    parts : DataFrame
        Split of the study.
    config : RunConfig
        Settings.
    out : Path
        The run folder, in which a model to start from may lie.

    Raises
    ------
    SettingError
        Names the fold and what to change.
    """
    for fold in range(config.folds):
        of_fold = fold_parts(parts, fold, validation_fraction=config.split.validation_fraction, seed=config.split.seed)
        training = list(of_fold.index[of_fold["part"] == "train"])
        model = sized(config, n_train=len(training))
        fit_conditions(prepared.scans, training, model.condition).values(prepared.scans)
        source = source_of(config.training, model, volumes, of_fold, folder=out / "folds" / str(fold) / "model")
        if model.start == "pca" and model.n_latent >= len(training) and source is None:
            raise SettingError(
                f"Fold {fold} of {config.folds} leaves {len(training)} scans to train on, and model.n_latent is "
                f"{model.n_latent}. Ask for more folds or fewer latents."
            )


def check_joint_splits(modalities: Mapping[str, Modality], parts: pd.DataFrame, config: RunConfig) -> None:
    """Refuse, before anything is trained, modalities of which a joint model of the study or of a fold could not be learned.

    Parameters
    ----------
    modalities : Mapping[str, Volumes or DataFrame]
        From :func:`nilatent.modalities.open_modalities`; none where the study names none.
    parts : DataFrame
        Split of the study.
    config : RunConfig
        Settings.

    Raises
    ------
    SettingError
        Names the fold and the modality.
    """
    if not modalities:
        return
    check_joint(modalities, parts, config.multimodal)
    split = config.split
    for fold in range(config.folds):
        of_fold = fold_parts(parts, fold, validation_fraction=split.validation_fraction, seed=split.seed)
        try:
            check_joint(modalities, of_fold, config.multimodal)
        except SettingError as error:
            raise SettingError(
                f"Fold {fold} of {config.folds}: {error} Fewer folds leave more scans to each."
            ) from error


def listed_exclusions(cohort: Cohort, path: Path) -> list[Mapping[str, str]]:
    """Scans that the user's file leaves out.

    Parameters
    ----------
    cohort : Cohort
        The scans.
    path : Path
        One scan or subject per line; after a tab, the reason.

    Returns
    -------
    list[Mapping[str, str]]
        For :func:`nilatent.cohort.exclude`.

    Raises
    ------
    SettingError
        When the file is absent or a line names no scan and no subject.
    """
    if not path.is_file():
        raise SettingError(f"There is no file {path}. --exclude names a text file with one scan or subject per line.")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        text = path.read_text(encoding="latin-1")
    failures: dict[str, Mapping[str, str]] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        name, _, why = line.strip().partition("\t")
        if not name or name in ("scan_id", "subject_id", "participant_id"):
            continue
        hit = cohort.scans.index[(cohort.scans.index == name) | (cohort.scans["subject_id"] == name)]
        gone = cohort.excluded["scan_id"].eq(name).any()
        if hit.empty and not gone:
            known = [*cohort.scans.index, *cohort.scans["subject_id"]]
            raise SettingError(f"{path}, line {number}: '{name}' is no scan and no subject.{nearest(name, known)}")
        for scan_id in hit:
            failures[scan_id] = {
                "scan_id": scan_id,
                "stage": "study",
                "rule": "left out by the user",
                "reason": why or f"Listed in {path.name}.",
            }
    return list(failures.values())
