"""Run folders made by hand, so that the report is tested on its contract with the files and on nothing else."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tomli_w
import xarray as xr

from nilatent import report
from nilatent.cohort import Cohort, write_cohort
from nilatent.finding import Finding, not_run, write_finding
from nilatent.provenance import write_json
from nilatent.viewed import Viewed, write_viewed
from nilatent.volumes import Grid

HOSTILE = """</script><img src=x onerror="alert(1)"> & 'q' $\\alpha$ {{ 7*7 }} ="1" 😀 %{x}"""
STRATUM_COLUMNS = ("fvu", "mse", "mae", "psnr", "ssim", "mse_sd", "ssim_sd", "gm_error_percent", "mse_low", "mse_high")


@pytest.fixture
def hostile() -> str:
    return HOSTILE


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Write a run folder; `label` names a group, a data set, a region and a scan."""

    def make(label: str = "patient", *, n_scans: int = 24, with_model: bool = True, column: str = "group") -> Path:
        return write_run(tmp_path, label, n_scans=n_scans, with_model=with_model, column=column)

    return make


@pytest.fixture(scope="package")
def built_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with its report; tests only look at it."""
    folder = write_run(tmp_path_factory.mktemp("built"), "patient", n_scans=24, with_model=True, column="group")
    report.build(folder)
    return folder


def grey_of(row: int) -> float:
    """Value of every voxel of the original of a scan in :func:`write_viewed_scans`; its reconstruction is half of it."""
    return (row + 6) / 40.0


def write_viewed_scans(folder: Path, n_embedded: int = 12) -> list[str]:
    """Volumes of the first scans of a run folder: each is of one grey, so that a picture of it tells which it is."""
    scans = list(pd.read_csv(folder / "prepared" / "scans.tsv", sep="\t", dtype=str)["scan_id"])
    grid = Grid.mni(6.0)
    codes = [round(255 * grey_of(row)) for row in range(n_embedded)]
    original = np.stack([np.full(grid.shape, code, dtype=np.uint8) for code in codes])
    # The last bit of the lowest slices is noise: files that are emptier than any picture are refused.
    lowest = original[..., :4]
    lowest += np.random.default_rng(0).integers(0, 2, lowest.shape, dtype=np.uint8)
    unseen = np.arange(n_embedded) % 2 == 0
    viewed = Viewed(
        tuple(scans[:n_embedded]), np.arange(n_embedded) < 3, unseen, original, original // 2, grid.affine,
        low=0.0, high=1.0, error_limit=0.25, n_all=len(scans),
    )  # fmt: skip
    write_viewed(viewed, folder / "findings" / "reconstruction")
    return scans


def write_run(
    place: Path, label: str = "patient", *, n_scans: int = 24, with_model: bool = True, column: str = "group"
) -> Path:
    rng = np.random.default_rng(0)
    folder = place / "run"
    scans = _scans(rng, label, n_scans, column)
    write_cohort(_cohort(scans, label), folder / "cohort")
    write_cohort(_cohort(scans, label), folder / "prepared")
    _quality(rng, scans).to_csv(folder / "prepared" / "quality.tsv", sep="\t", index=False, na_rep="n/a")
    settings = {
        "seed": 7,
        "study": {"group": column, "exclude": "/home/someone/list.txt"},
        "atlas": {"spec": "aal2"},
    }
    settings |= {"recipe": {"name": "auto", "spacing_mm": 4.0, "fwhm_mm": 8.0, "modulation": True}}
    (folder / "study.toml").write_text(tomli_w.dumps(settings), encoding="utf-8")
    values = pd.DataFrame(rng.random((n_scans, 2)), columns=[label, "Region_1_L"])
    values.insert(0, "scan_id", scans.index)
    values.to_csv(folder / "regions.tsv", sep="\t", index=False)
    described = [{"name": name, "label": 4101 + i, "n_voxels": 9.5} for i, name in enumerate([label, "Region_1_L"])]
    dropped = [{"name": "Tiny", "label": 9, "n_voxels": 1.0, "reason": "under eight voxels"}]
    write_json(folder / "regions.json", {"regions": described, "dropped": dropped})
    record = {
        "stage": "prepared",
        "content_hash": "ab" * 32,
        "seed": 7,
        "versions": {"python": "3.11", "nilatent": "0.1"},
    }
    write_json(folder / "prepared" / "provenance.json", record)
    if with_model:
        _model(rng, folder, scans)
        findings = [_reconstruction(rng, scans), _projections(rng, scans, label, column), _lrcp(rng, label)]
    else:
        why = f"too few subjects ({n_scans}; at least 20 are needed)"
        findings = [not_run(name, "Why?", why) for name in ("reconstruction", "projections", "lrcp")]
    for finding in findings:
        write_finding(finding, folder / "findings" / finding.name)
    return folder


def _scans(rng: np.random.Generator, label: str, n: int, column: str) -> pd.DataFrame:
    ids = [f"sub-{i:02d}" for i in range(n - 1)] + [f"sub-{label}"]
    return pd.DataFrame(
        {
            "subject_id": ids,
            "session_id": "",
            "dataset": ["one"] * (n // 2) + [f"two {label}"] * (n - n // 2),
            "path": "/home/someone/data/x.nii.gz",
            "gm_path": "/home/someone/data/gm.nii.gz",
            "image_flair": ["/home/someone/data/flair.nii.gz"] * 3 + [None] * (n - 3),
            "image_flair_sha256": ["ab" * 32] * 3 + [None] * (n - 3),
            "sha256": [f"{i:064d}" for i in range(n)],
            "source_id": ids,
            "age": rng.uniform(20, 90, n).round(1),
            "sex": rng.choice(["F", "M"], n),
            column: [label, "control"] * (n // 2) + ["control"] * (n % 2),
        },
        index=pd.Index(ids, name="scan_id"),
    )


def _cohort(scans: pd.DataFrame, label: str) -> Cohort:
    row = ("sub-99", "/home/someone/data/y.nii.gz", "prepare", "4D image", f"File /home/someone/data/y.nii.gz: {label}")
    return Cohort(scans, pd.DataFrame([row], columns=["scan_id", "path", "stage", "rule", "reason"]))


def _quality(rng: np.random.Generator, scans: pd.DataFrame) -> pd.DataFrame:
    table = scans[["dataset"]].reset_index()
    for name, centre in (("template_correlation", 0.9), ("gm_ml", 650.0), ("head_size_factor", 1.1)):
        table[name] = centre * rng.normal(1, 0.05, len(table))
    return table.assign(flags=["gm_ml"] + [""] * (len(table) - 1))


def _model(rng: np.random.Generator, folder: Path, scans: pd.DataFrame) -> None:
    part = rng.choice(["train", "validation", "test"], len(scans))
    table = {"scan_id": scans.index, "subject_id": scans["subject_id"], "part": part, "fold": 0}
    pd.DataFrame(table).to_csv(folder / "split.tsv", sep="\t", index=False)
    epoch = np.arange(12)
    fvu = 0.93 + 0.002 * (epoch - 5.0) ** 2
    history = pd.DataFrame({"epoch": epoch, "train_loss": np.where(epoch == 0, np.nan, 2 / (epoch + 1.0))})
    history = history.assign(validation_fvu=fvu, pca_fvu=0.95, kl=np.nan, best_epoch=np.minimum(epoch, 5))
    (folder / "model").mkdir()
    history.to_csv(folder / "model" / "history.tsv", sep="\t", index=False, na_rep="n/a")
    model = {"model": {"name": "autoencoder", "n_latent": 8, "anchor": "pca"}, "training": {"learning_rate": 0.001}}
    (folder / "model" / "config.toml").write_text(tomli_w.dumps(model), encoding="utf-8")
    verdict = {"failure": "mean local minimum", "state": "absent", "sentence": "No mean local minimum: 7 % explained."}
    write_json(
        folder / "model" / "result.json", {"best_epoch": 5, "summary": "Best epoch 5 of 11.", "verdicts": [verdict]}
    )


def _finding(name: str, table: pd.DataFrame, data: xr.Dataset, **more: object) -> Finding:
    texts = {"question": f"What of {name}?", "answer": f"Answer of {name} is yes (FVU 0.93). Then more."}
    settings = {"settings": {}, "caveats": (f"Caveat of {name}.",), "n_scans": 24, "n_subjects": 24}
    return Finding(**{"name": name, "table": table, "data": data, **texts, **settings, **more})


def _reconstruction(rng: np.random.Generator, scans: pd.DataFrame) -> Finding:
    rows = [
        {
            "stratum": stratum,
            "part": "test",
            "method": method,
            "n_scans": 5,
            "n_subjects": 5,
            "fvu_low": 0.8,
            "fvu_high": 1.1,
        }
        | dict.fromkeys(STRATUM_COLUMNS, 0.9 + 0.01 * i)
        for stratum in ("all", *(f"dataset {name}" for name in scans["dataset"].unique()))
        for i, method in enumerate(("model", "pca", "mean image"))
    ]
    data = {
        f"{kind}_{plane}": (("case", first, second), rng.random((3, 15, 17)).astype(np.float32) - (kind == "error") / 2)
        for kind in ("original", "model", "error")
        for plane, first, second in (("axial", "x", "y"), ("coronal", "x", "z"))
    }
    coordinates = {"case": ["best", "median", "worst"], "case_scan": ("case", list(scans.index[-3:]))}
    maps = {"fvu": Grid.mni(6.0).to_image(rng.random(Grid.mni(6.0).shape))}
    return _finding("reconstruction", pd.DataFrame(rows), xr.Dataset(data, coordinates), maps=maps)


def _projections(rng: np.random.Generator, scans: pd.DataFrame, label: str, column: str) -> Finding:
    table = pd.DataFrame({"component": ["PC1", "PC2", "PC3"], "explained": [0.4, 0.2, 0.1], "explained_heldout": 0.1})
    table = table.assign(
        r2_age=[0.3, 0.01, 0.02], p_age=[0.001, 0.9, 0.8], **{f"r2_{column}": 0.1, f"p_{column}": 0.04}
    )
    data = xr.Dataset(
        {
            "scores": (("scan", "component"), rng.normal(size=(len(scans), 3))),
            f"scan_{column}".replace("/", "_"): ("scan", scans[column].to_numpy().astype(str)),
        },
        {"scan": scans.index.to_numpy().astype(str), "part": ("scan", ["train", "test"] * (len(scans) // 2))},
    )
    return _finding("projections", table, data, settings={"group": column})


def _lrcp(rng: np.random.Generator, label: str) -> Finding:
    n = 30
    table = pd.DataFrame(
        {
            "name": [label, *(f"Region_{i}_L" for i in range(1, n))],
            "label": range(n),
            "a": np.linspace(0.6, 0.1, n),
            "p_a": np.linspace(0.0002, 1, n),
            "bal_acc": np.linspace(0.8, 0.45, n),
            "p_d": np.linspace(0.0002, 1, n),
            "p": np.linspace(0.0002, 1, n),
            "grade": ["strong"] * 4 + ["class-mediated"] * 3 + ["none"] * (n - 7),
            "badge": "not assessed",
            "rank": range(1, n + 1),
        }
    )
    values = np.zeros(Grid.mni(6.0).shape, np.float32)
    values[8:12, 12:18, 10:14] = 2.5
    return _finding("lrcp", table, xr.Dataset(), maps={"minus_log10_p": Grid.mni(6.0).to_image(values)})
