"""A simulated cohort on disk: a BIDS folder with the planted truth beside it."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import pandas as pd
from joblib import Parallel, delayed

from nilatent.errors import SettingError
from nilatent.progress import track
from nilatent.provenance import atomic, hash_file, hash_values, plain, read_json, versions, write_json
from nilatent.simulate.anatomy import Anatomy, base_anatomy, grey_matter_maps
from nilatent.simulate.config import SimulationConfig
from nilatent.simulate.head import Head, base_head, head_images
from nilatent.simulate.memory import template_ml, truth_maps, truth_regions
from nilatent.simulate.people import (
    GM_LOST_PER_YEAR,
    GM_WOMEN_OVER_MEN,
    Visit,
    course_columns,
    draw_people,
    visits_of_people,
)

BIDS_VERSION = "1.11.1"
SPACE = "MNI152NLin2009aSym"
# The page of the template itself: nothing that is read at run time.
TEMPLATE_URL = "https://www.bic.mni.mcgill.ca/ServicesAtlases/ICBM152NLin2009"
TEMPLATE_DOI = "10.1016/j.neuroimage.2010.07.033"
ATLAS_DOI = "10.1016/j.neuroimage.2015.07.075"
RECORD = "simulation.json"
# Raised whenever the same settings give other bytes, so that scans of two versions never mix in one folder.
FORMAT_VERSION = 2

COLUMNS: dict[str, dict[str, Any]] = {
    "age": {"Description": "Simulated age (at the first session in participants.tsv)", "Units": "year"},
    "sex": {"Description": "Simulated sex", "Levels": {"F": "female", "M": "male"}},
    "site": {"Description": "Simulated scanner"},
    "group": {
        "Description": "Simulated group",
        "Levels": {"control": "no disease", "patient": "disease", "advanced": "rare, more severe stage of the disease"},
    },
    "severity": {"Description": "Simulated score like the Mini-Mental State Examination, 0 to 30; low is severe"},
    "intracranial_ml": {"Description": "Simulated volume inside the skull", "Units": "ml"},
    "course": {
        "Description": "Simulated course of a patient within the follow-up",
        "Levels": {"stable": "the disease stayed below 1.65", "progressive": "it came to 1.65"},
    },
    "course_years": {"Description": "Time to progression, or to the end of the follow-up", "Units": "year"},
    "years": {"Description": "Time since the first session", "Units": "year"},
}
OF_PERSON = ["age", "sex", "site", "group", "severity", "intracranial_ml"]
OF_SESSION = ["age", "severity", "years"]

README = """# Simulated cohort

Every scan, person and score in this folder is SIMULATED by nilatent. Nobody was scanned and no patient is described.

Each person is the MNI152 template in another shape (a random diffeomorphism), size and age. People of the group
"patient" have lost grey matter in a few named regions. What was planted, where and in whom is in `truth.json`,
`truth/scans.tsv` and the maps in `truth/`.

- `participants.tsv`: age, sex, site, group, severity (a score: low is severe), described in `participants.json`
- `truth/gm.nii.gz`: grey matter everyone starts from; `truth/loss.nii.gz`: fraction of it lost at disease 1
- `simulation.json`: every setting; the same settings give the same bytes

The template is the MNI152 2009a that comes with nilearn (Fonov et al. 2011, doi 10.1016/j.neuroimage.2010.07.033);
regions are those of AAL2 (Rolls et al. 2015, doi 10.1016/j.neuroimage.2015.07.075).
"""


def simulate(out: Path, config: SimulationConfig, *, n_procs: int = 1) -> Path:
    """Write a simulated cohort as a BIDS folder with planted truth.

    Parameters
    ----------
    out : Path
        Folder to fill: empty, absent, or left by the same simulation, which is then finished.
    config : SimulationConfig
        The settings; the same settings give the same bytes.
    n_procs : int
        Processes; the bytes do not depend on it.

    Returns
    -------
    Path
        `out`.

    Raises
    ------
    SettingError
        When `out` holds something else, a region is not in the atlas, or n_procs is not positive.

    Examples
    --------
    >>> import tempfile
    >>> out = simulate(Path(tempfile.mkdtemp()), SimulationConfig(n_subjects=2, spacing_mm=6.0))
    >>> sorted(path.name for path in out.glob("sub-*"))
    ['sub-001', 'sub-002']
    """
    if n_procs < 1:
        raise SettingError(f"n_procs is at least 1, got {n_procs}. Give the number of processes.")
    out = Path(out)
    _claim(out, config)
    anatomy = base_anatomy(config)
    material = anatomy if config.kind == "gm" else base_head(config)
    scans, planted = draw_people(config, template_ml=template_ml())
    people = visits_of_people(scans, planted)
    paths = _paths_of_people(out, config, scans)
    work = (
        delayed(_write_person)(config, material, index, *one)
        for index, one in enumerate(zip(people, paths, strict=True))
    )
    for _ in track(Parallel(n_jobs=n_procs, return_as="generator")(work), total=len(people), label="simulate"):
        pass
    _write_tables(out, config, scans)
    _write_truth(out, config, anatomy, scans, planted)
    return out


def _claim(out: Path, config: SimulationConfig) -> None:
    """Write the settings first, so that a folder never holds scans of two simulations."""
    record = {"settings": dataclasses.asdict(config), "format_version": FORMAT_VERSION, "Simulated": True}
    path = out / RECORD
    if path.is_file():
        known = read_json(path)
        differing = _differing(known.get("settings", {}), plain(record["settings"]))
        if known.get("format_version") != FORMAT_VERSION or differing:
            what = ", ".join(differing) or "the version of the simulator"
            raise SettingError(
                f"{out} holds a simulation with another {what}. Choose an empty folder, or delete this one."
            )
        for left_by_a_killed_run in out.rglob(".*.partial.*"):
            left_by_a_killed_run.unlink()
        return
    if out.exists() and any(out.iterdir()):
        raise SettingError(f"A simulation needs an empty folder; {out} holds other files. Choose another folder.")
    write_json(path, record)


def _differing(known: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    return sorted(name for name in known.keys() | asked.keys() if known.get(name) != asked.get(name))


def _paths_of_people(out: Path, config: SimulationConfig, scans: pd.DataFrame) -> list[list[Path]]:
    return [
        [scan_path(out, config, str(subject), session) for session in rows["session_id"]]
        for subject, rows in scans.groupby("subject_id", sort=False)
    ]


def _write_person(
    config: SimulationConfig, material: Anatomy | Head, index: int, visits: Sequence[Visit], paths: Sequence[Path]
) -> None:
    keys = [hash_values([FORMAT_VERSION, config, index, number]) for number in range(len(visits))]
    if all(_is_done(path, key) for path, key in zip(paths, keys, strict=True)):
        return
    images: list[nib.Nifti1Image]
    if isinstance(material, Anatomy):
        images = [material.grid.to_image(one) for one in grey_matter_maps(config, material, index, visits)]
    else:
        images = head_images(config, material, index, visits)
    for path, key, image in zip(paths, keys, images, strict=True):
        with atomic(path) as temporary:
            nib.save(image, temporary)
        write_json(
            _side_car(path), _scan_metadata(config) | {"SimulationKey": key, "SimulationSha256": hash_file(path)}
        )


def scan_path(out: Path, config: SimulationConfig, subject: str, session: str) -> Path:
    """Where a scan lies in the BIDS folder."""
    folder = out / subject / session / "anat" if session else out / subject / "anat"
    stem = f"{subject}_{session}" if session else subject
    if config.kind == "t1":
        return folder / f"{stem}_T1w.nii.gz"
    return folder / f"{stem}_space-{SPACE}_res-{_resolution(config)}_label-GM_probseg.nii.gz"


def _resolution(config: SimulationConfig) -> str:
    # A BIDS label holds letters and digits only.
    return f"{config.spacing_mm:g}".replace(".", "p")


def _side_car(path: Path) -> Path:
    return path.with_name(path.name.removesuffix(".nii.gz") + ".json")


def _is_done(path: Path, key: str) -> bool:
    side_car = _side_car(path)
    if not (path.is_file() and side_car.is_file()):
        return False
    known = read_json(side_car)
    return bool(known.get("SimulationKey") == key and known.get("SimulationSha256") == hash_file(path))


def _scan_metadata(config: SimulationConfig) -> dict[str, Any]:
    if config.kind == "t1":
        return {"Simulated": True, "Modality": "MR", "SkullStripped": False, "Manufacturer": "simulated"}
    return {
        "Simulated": True,
        "Description": "Simulated grey matter, modulated: head size and local volume are kept, sums are volumes",
        "SkullStripped": True,
        "SpatialReference": TEMPLATE_URL,
        "Resolution": f"{config.spacing_mm:g} mm isotropic",
        "Units": "fraction of the voxel, in template millimetres",
    }


def _write_tables(out: Path, config: SimulationConfig, scans: pd.DataFrame) -> None:
    first = scans[scans["years"] == 0].set_index("subject_id")
    of_person = [*OF_PERSON, *course_columns(config)]
    _write_tsv(first[of_person], out / "participants.tsv", index="participant_id")
    write_json(out / "participants.json", {name: COLUMNS[name] for name in of_person})
    if config.n_sessions > 1:
        for subject, rows in scans.groupby("subject_id"):
            table = rows.set_index("session_id")[OF_SESSION]
            stem = out / str(subject) / f"{subject}_sessions"
            _write_tsv(table, stem.with_suffix(".tsv"), index="session_id")
            write_json(stem.with_suffix(".json"), {name: COLUMNS[name] for name in OF_SESSION})
    _write_description(out, config)


def _write_description(out: Path, config: SimulationConfig) -> None:
    derived = config.kind == "gm"
    generator = {"Name": "nilatent simulate", "Version": versions().get("nilatent", "unknown")}
    description = {
        "Name": "Simulated cohort with planted truth (nilatent simulate)",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative" if derived else "raw",
        "Authors": ["The nilatent developers"],
        "GeneratedBy": [generator],
        "SourceDatasets": [{"DOI": TEMPLATE_DOI, "URL": TEMPLATE_URL}],
        "ReferencesAndLinks": [f"https://doi.org/{doi}" for doi in (TEMPLATE_DOI, ATLAS_DOI)],
        "Simulated": True,
    }
    write_json(out / "dataset_description.json", description)
    for name, text in (("README", README), (".bidsignore", f"truth*\n{RECORD}\n")):
        with atomic(out / name) as temporary:
            temporary.write_text(text, encoding="utf-8")


def _write_truth(
    out: Path, config: SimulationConfig, anatomy: Anatomy, scans: pd.DataFrame, planted: pd.DataFrame
) -> None:
    for name, array in truth_maps(anatomy).items():
        with atomic(out / "truth" / f"{name}.nii.gz") as temporary:
            nib.save(anatomy.grid.to_image(array), temporary)
    _write_tsv(planted.drop(columns="subject_id"), out / "truth" / "scans.tsv", index="scan_id")
    truth = {
        "Simulated": True,
        "settings": dataclasses.asdict(config),
        "null": config.null,
        "groups": {name: int(scans.loc[scans["group"] == name, "subject_id"].nunique()) for name in config.groups},
        "grid": anatomy.grid.to_dict(),
        "atlas": "AAL2",
        "regions": truth_regions(anatomy, scans, planted).to_dict("records"),
        "gm_lost_per_year": GM_LOST_PER_YEAR,
        "gm_women_over_men": GM_WOMEN_OVER_MEN,
        "sites": [f"site{number + 1}" for number in range(config.n_sites)],
        "site_noise": anatomy.site_noise,
        "maps": {
            "gm": "truth/gm.nii.gz: grey matter of the template that everyone starts from",
            "loss": "truth/loss.nii.gz: fraction of it that is lost at disease 1, before the person's deformation",
        },
        "scans": "truth/scans.tsv: disease, atrophy (disease that reached the brain), head_size, gm_factor of each scan"
        + (", and cause_1 and so on: how much of each cause of shape the person has, in SD" if config.n_causes else ""),
    }
    write_json(out / "truth.json", truth)


def _write_tsv(table: pd.DataFrame, path: Path, *, index: str) -> None:
    with atomic(path) as temporary:
        table.to_csv(temporary, sep="\t", index_label=index, na_rep="n/a", lineterminator="\n", float_format="%.10g")
