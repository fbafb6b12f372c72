"""Further images of the scans of a study: which they are, brought onto the grid, and packed."""

from pathlib import Path

import pandas as pd

from nilatent.cohort import Cohort
from nilatent.config import RunConfig, StudyConfig
from nilatent.errors import SettingError
from nilatent.further import MADE
from nilatent.modalities import MODALITIES
from nilatent.preprocess.beside import mask_of, prepare_beside
from nilatent.preprocess.config import RecipeConfig
from nilatent.provenance import atomic, read_json, write_json
from nilatent.volumes import Grid, pack

IMAGES, FAILED = "images.json", "failed.tsv"
VOLUME_FILES = ("volumes.npy", "mask.nii.gz", "grid.json", "scans.tsv")
"""What a folder of packed volumes holds."""


def write_images(out: Path, study: StudyConfig) -> None:
    """Note which suffixes and columns the images of a cohort were read from, where the study names further images."""
    record = out / "cohort" / IMAGES
    if study.modalities:
        write_json(record, study.modalities)
    else:
        record.unlink(missing_ok=True)


def check_images(out: Path, study: StudyConfig) -> None:
    """Refuse to go on with a cohort whose images were read from other suffixes or columns than the study now names.

    Raises
    ------
    SettingError
        Names the modality.
    """
    record = out / "cohort" / IMAGES
    read = read_json(record) if record.is_file() else {}
    for name, source in study.modalities.items():
        if source not in MADE and read.get(name) != source:
            raise SettingError(
                f"study.modalities: '{name}' is now {source}, and the scans were read with {read.get(name, 'none')}. Name the "
                "sources in `nilatent run`."
            )


def pack_modality(
    cohort: Cohort, prepared: Cohort, name: str, source: str, out: Path, recipe: RecipeConfig, *, n_procs: int
) -> list[Path]:
    """Bring further images of the scans onto the grid and pack them; those that fail are listed and the rest goes on.

    Parameters
    ----------
    cohort, prepared : Cohort
        As read, and after the recipe.
    name, source : str
        Of the modality, and the suffix or column that holds it.
    out : Path
        The run folder: volumes and ``failed.tsv`` go to ``modalities/<name>/``, images on the grid to ``prepared/`` in it.
    recipe : RecipeConfig
        Grid and preparation.
    n_procs : int
        Processes.

    Returns
    -------
    list of Path
        What is left in ``modalities/<name>/``.

    Raises
    ------
    CohortError
        When no scan has such an image, or none could be prepared.
    """
    grid, folder = Grid.mni(recipe.spacing_mm), out / MODALITIES / name
    images, failed = prepare_beside(cohort, prepared, name, source, folder / "prepared", recipe, n_procs=n_procs)
    pack(images, grid, folder, mask=mask_of(source, grid))
    with atomic(folder / FAILED) as temporary:
        failed.to_csv(temporary, sep="\t", index=False)
    return [*(folder / file for file in VOLUME_FILES), folder / FAILED]


def failed_images(out: Path, config: RunConfig) -> pd.DataFrame:
    """Further images that could not be prepared: scan_id, modality, path, rule and reason; empty where all could."""
    tables = [pd.read_csv(out / MODALITIES / name / FAILED, sep="\t", dtype=str) for name in config.study.modalities]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=["scan_id", "modality"])
