"""The run folder as values, and the sections that come from its own files: cohort, preparation and training."""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from nilatent.analysis.regional import read_regions
from nilatent.cohort import Cohort, load_cohort
from nilatent.errors import FindingError
from nilatent.finding import Finding, not_run, read_finding
from nilatent.plots import quality as quality_plot
from nilatent.plots import training as training_plot
from nilatent.provenance import read_json
from nilatent.report import page

VERDICT_NAMES = {"failure": ("failure", ""), "state": ("state", ""), "sentence": ("in words", "")}
ATTEMPT_NAMES = {
    "number": ("attempt", ""),
    "change": ("change", "Beside those of the attempts before"),
    "failures": ("failures found", ""),
    "validation_fvu": ("validation FVU", "Fraction of variance unexplained at the best epoch"),
    "kept": ("outcome", ""),
}
REGION_NAMES = {
    "name": ("region", ""),
    "label": ("label", "Number in the atlas"),
    "n_voxels": ("voxels", "Size in voxels of the grid, parts of voxels counted as parts"),
    "mean": ("mean", "Grey-matter fraction"),
    "sd": ("SD", "Over scans"),
    "reason": ("reason", ""),
}
OUTDATED = "it was made from scans or a model that have changed since; run the study again"

# Windows drive or root, then folders; the file's own name is kept. A URL is not a path of this machine. A folder's name may
# hold blanks, but not after what looks like the ending of a file, where a sentence goes on: "/data/a.nii is in mm/s".
_NAME = r"""[^\s'"<>|:,;()\\/]"""
_BLANK = r"(?<!\.\w\w)(?<!\.\w{3})(?<!\.\w{4})[ \t]+"
_PATH = re.compile(rf"(?<![\w/:.])(?:[A-Za-z]:[\\/]+|\\{{2,}}|/)(?:{_NAME}+(?:{_BLANK}{_NAME}+)*[\\/]+)+")
# Between quotes a folder's name may hold blanks.
_QUOTED = re.compile(r"""(["'])(?:[A-Za-z]:[\\/]+|\\{2,}|/)(?:[^"'\n\\/]+[\\/]+)*([^"'\n\\/]*)(?=\1)""")


@dataclass(frozen=True, eq=False)
class Run:
    """Everything a run folder holds that the page needs; what is absent is empty.

    Attributes
    ----------
    folder
        The run folder.
    cohort
        Scans and exclusions, after preparation where that was done.
    quality, parts, history : DataFrame
        `prepared/quality.tsv`, `split.tsv` and `model/history.tsv`.
    model, result, settings
        Tables of `model/config.toml`, `model/result.json` and the resolved `study.toml`.
    findings
        By name.
    records
        Stage to its `provenance.json`.
    """

    folder: Path
    cohort: Cohort
    quality: pd.DataFrame
    parts: pd.DataFrame
    history: pd.DataFrame
    model: Mapping[str, Any]
    result: Mapping[str, Any]
    settings: Mapping[str, Any]
    findings: Mapping[str, Finding]
    records: Mapping[str, Mapping[str, Any]]

    def done(self, name: str) -> bool:
        """Whether a finding is there and was run."""
        return name in self.findings and not self.findings[name].not_run

    @property
    def best_epoch(self) -> int | None:
        """The epoch whose weights were kept; None without a model."""
        return int(self.result["best_epoch"]) if "best_epoch" in self.result else None

    @property
    def n_latent(self) -> int | None:
        """Values that the latent of a scan holds; None without a model."""
        model = self.model.get("model", {})
        if model.get("name") == "spatial_vae":
            return int(model["latent_channels"]) * int(model["latent_grid"]) ** 3
        return int(model["n_latent"]) if "n_latent" in model else None

    @property
    def versions(self) -> dict[str, str]:
        """Software to version, as recorded by the first stage that recorded it."""
        return next((dict(record["versions"]) for record in self.records.values() if "versions" in record), {})

    @property
    def group(self) -> str:
        """Name of the group column; empty when the study has none."""
        return self._column("group")

    @property
    def site(self) -> str:
        """Name of the column of scanners or centres; empty when the study has none."""
        return self._column("site")

    def _column(self, setting: str) -> str:
        named = str(self.settings.get("study", {}).get(setting) or "")
        return named if named in self.cohort.scans else ""


def read_run(folder: Path) -> Run:
    """Read a run folder.

    Raises
    ------
    FindingError
        When the folder holds no cohort, so it is not a run.
    """
    if not (folder / "cohort" / "scans.tsv").is_file():
        raise FindingError(
            f"{folder} has no cohort/scans.tsv, so it is not the output of a run. "
            "Give the folder that `nilatent run SOURCE OUT` wrote."
        )
    prepared = (folder / "prepared" / "scans.tsv").is_file()
    records = {_stage(path, folder): read_json(path) for path in _records(folder)}
    outdated = _outdated(records)
    findings = [read_finding(path.parent) for path in sorted(folder.glob("findings/*/finding.json"))]
    findings = [
        not_run(finding.name, finding.question, OUTDATED)
        if finding.name in outdated and not finding.not_run
        else finding
        for finding in findings
    ]
    model, result = folder / "model", folder / "model" / "result.json"
    trained = "model" not in outdated
    return Run(
        folder,
        load_cohort(folder / ("prepared" if prepared else "cohort")),
        _table(folder / "prepared" / "quality.tsv"),
        _table(folder / "split.tsv") if "split" not in outdated else pd.DataFrame(),
        _table(model / "history.tsv") if trained else pd.DataFrame(),
        _toml(model / "config.toml") if trained else {},
        read_json(result) if trained and result.is_file() else {},
        _toml(folder / "study.toml"),
        {finding.name: finding for finding in findings},
        {stage: record for stage, record in records.items() if stage not in outdated},
    )


def _outdated(records: Mapping[str, Mapping[str, Any]]) -> set[str]:
    """Stages whose files were made from what another stage has replaced since: they describe another study."""
    outdated: set[str] = set()
    for _ in records:
        outdated |= {
            stage
            for stage, record in records.items()
            for need, digest in record.get("inputs", {}).items()
            if need in outdated or (need in records and records[need].get("content_hash") != digest)
        }
    return outdated


def _table(path: Path) -> pd.DataFrame:
    if not path.is_file():
        return pd.DataFrame()
    return pd.read_csv(
        path, sep="\t", na_values=["n/a"], keep_default_na=False, dtype={"scan_id": str, "subject_id": str}
    )


def _toml(path: Path) -> dict[str, Any]:
    return tomllib.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _records(folder: Path) -> list[Path]:
    # Deeper folders belong to single scans; their records would repeat the stage's own.
    found = [
        *folder.glob("*provenance.json"),
        *folder.glob("*/*provenance.json"),
        *folder.glob("findings/*/*provenance.json"),
        *folder.glob("folds/*/provenance.json"),
    ]
    return sorted(set(found))


def _stage(path: Path, folder: Path) -> str:
    return str(read_json(path).get("stage") or path.parent.relative_to(folder))


def without_paths(text: str) -> str:
    """The text with the folders of this machine cut off every path, so that a shared page tells none of them."""
    return _PATH.sub("…/", _QUOTED.sub(r"\1…/\2", text))


def count(n: int, noun: str) -> str:
    """A number with its noun: "no scans", "1 scan", "2 scans"."""
    return f"{n or 'no'} {noun}{'' if n == 1 else 's'}"


def quality_section(run: Run) -> page.Section:
    """How the prepared scans look, which stand out, and where the page with their slices is."""
    title, lead = "Preparation", "What preparation made of every scan, and which scans stand out from the rest."
    if run.quality.empty:
        return page.Section(title, "preparation", lead, not_run="this run holds no prepared scans")
    drawn = page.picture(
        quality_plot.draw(run.quality),
        "quality",
        caption="Every prepared scan on every measure; scans that stand out are marked.",
        alternative="One strip per quality measure with one dot per scan. The table below gives the numbers.",
    )
    folder = run.folder / "prepared"
    found = read_finding(folder / "quality") if (folder / "quality" / "finding.json").is_file() else None
    return page.Section(
        title,
        "preparation",
        lead,
        question=found.question if found is not None else "",
        answer=found.answer if found is not None else "",
        pictures=(drawn,),
        sheets=(page.sheet(run.quality, "Quality of every prepared scan.", names=quality_plot.COLUMN_NAMES),),
        caveats=found.caveats if found is not None else (),
        files=(*(["prepared/quality.html"] if (folder / "quality.html").is_file() else []), "prepared/quality.tsv"),
    )


def training_section(run: Run) -> page.Section:
    """How the model learned, which epoch was kept, and what the diagnostics say."""
    title, lead = "Training", "How the model learned, judged on validation scans that did not move its weights."
    if run.history.empty:
        return page.Section(title, "training", lead, not_run="this run holds no trained model")
    drawn = page.picture(
        training_plot.draw(run.history, best_epoch=run.best_epoch),
        "training",
        caption="Training curves; the dot marks the epoch that was kept, 0 being the start.",
        alternative=f"Loss and unexplained variance by epoch. {training_answer(run)}",
    )
    verdicts = pd.DataFrame(run.result.get("verdicts", []), columns=list(VERDICT_NAMES))
    sheets = [page.sheet(verdicts, "What can go wrong in training, and whether it did.", names=VERDICT_NAMES)]
    return page.Section(
        title,
        "training",
        lead,
        answer=training_answer(run),
        pictures=(drawn,),
        sheets=(*(sheets if len(verdicts) else ()), *_attempts(run)),
        files=("model/history.tsv", "model/result.json"),
    )


def training_answer(run: Run) -> str:
    """Which epoch was kept, in the words that the training left."""
    return str(run.result.get("summary", ""))


def _attempts(run: Run) -> tuple[page.Sheet, ...]:
    """What was tried when a training failed and was started again; nothing when it was not."""
    path = run.folder / "model" / "attempts.json"
    if not path.is_file():
        return ()
    record = read_json(path)
    tried = pd.DataFrame(record["attempts"])
    tried["failures"] = [", ".join(found) or "none" for found in tried["failures"]]
    tried["change"] = tried["change"].replace("", "as asked for")
    tried["kept"] = ["kept" if number == record["chosen"] else "" for number in tried["number"]]
    caption = "Trainings that were tried: one with a known failure starts again with the change its diagnosis advises."
    if record.get("by_heart"):
        caption += f" {record['by_heart']['sentence']}"
    return (page.sheet(tried, caption, names=ATTEMPT_NAMES),)


def region_labels(run: Run) -> dict[str, int]:
    """Name to label of every region of the study; none where it measured none."""
    if not (run.folder / "regions.tsv").is_file():
        return {}
    regions = read_regions(run.folder)
    return dict(zip(map(str, regions.values.columns), map(int, regions.labels), strict=True))


def regions_section(run: Run) -> page.Section:
    """Mean grey matter by region, and the regions that were dropped."""
    title, lead = "Regional grey matter", "What the atlas regions hold, scan by scan; this needs no model."
    if not (run.folder / "regions.tsv").is_file():
        return page.Section(title, "regions", lead, not_run="this run measured no regions")
    regions = read_regions(run.folder)
    table = pd.DataFrame({"name": list(regions.values.columns), "label": regions.labels, "n_voxels": regions.n_voxels})
    table["mean"], table["sd"] = regions.values.mean().to_numpy(), regions.values.std().to_numpy()
    caption = f"Mean and SD over {count(len(regions.values), 'scan')} of the mean grey matter in each region."
    sheets = [page.sheet(table, caption, names=REGION_NAMES)]
    if len(regions.dropped):
        sheets.append(page.sheet(regions.dropped, "Regions of the atlas that were dropped.", names=REGION_NAMES))
    return page.Section(
        title,
        "regions",
        lead,
        answer=f"{count(len(table), 'region')} of the atlas were measured; {count(len(regions.dropped), 'region')} dropped.",
        sheets=tuple(sheets),
        files=("regions.tsv", "regions.json"),
    )


def provenance_sheets(run: Run) -> tuple[page.Sheet, ...]:
    """Versions, and what each stage was made from; no machine path, no user name."""
    versions = run.versions
    stages = [
        {"stage": stage, "seed": record.get("seed"), "content": str(record.get("content_hash", ""))[:16]}
        for stage, record in run.records.items()
    ]
    sheets = []
    if versions:
        table = pd.DataFrame({"software": list(versions), "version": list(versions.values())})
        sheets.append(page.sheet(table, "Versions.", names={}))
    if stages:
        names = {"stage": ("stage", ""), "seed": ("seed", "")}
        names |= {"content": ("content hash", "First 16 digits of the SHA-256 of the files the stage wrote")}
        sheets.append(page.sheet(pd.DataFrame(stages).astype(object), "Stages of this run.", names=names))
    return tuple(sheets)


def settings_text(run: Run) -> str:
    """The resolved settings as written beside the results, without folders of this machine."""
    path = run.folder / "study.toml"
    return without_paths(path.read_text(encoding="utf-8")) if path.is_file() else ""
