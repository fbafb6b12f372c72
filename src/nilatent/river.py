"""River: the pools of one output folder, each filled by one function and skipped when nothing it depends on has changed."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd
from rich.console import Console

from nilatent.analyses import QUESTIONS, analyses
from nilatent.analysis.prediction import NAME as PREDICTION
from nilatent.analysis.regional import regional, write_regions
from nilatent.asked import Asked
from nilatent.atlas import Atlas, RegionWeights, load_atlas, region_weights
from nilatent.cohort import Cohort, exclude, load_cohort, read_cohort, write_cohort, write_excluded
from nilatent.config import RunConfig, sized, write_config
from nilatent.crossfit import fit_fold, fold_parts
from nilatent.drawn import LRCP, done
from nilatent.encode import encode
from nilatent.errors import CohortError
from nilatent.finding import Finding, not_run, read_finding, write_finding
from nilatent.further_images import FAILED, VOLUME_FILES, check_images, failed_images, pack_modality, write_images
from nilatent.latents import write_latents
from nilatent.lock import locked
from nilatent.modalities import JOINT, MODALITIES, fit_joint, modality_stages, open_modalities, told
from nilatent.model_settings import preparation_of, training_of
from nilatent.parts import split
from nilatent.pools import Pools, read_split
from nilatent.preprocess.beside import BESIDE_VERSION
from nilatent.preprocess.quality import quality
from nilatent.preprocess.recipe import fingerprint, prepare, try_again
from nilatent.provenance import atomic, content_hash, is_fresh, seal, sweep
from nilatent.report import build, embedded
from nilatent.report.quality import build as build_quality
from nilatent.search import search
from nilatent.study import check_study, listed_exclusions, stratified
from nilatent.study_heads import write_heads
from nilatent.training.checkpoint import load_model
from nilatent.training.cost import cost_of
from nilatent.training.loop import train
from nilatent.training.multimodal.data import Modality
from nilatent.training.remedy import train_with_remedies
from nilatent.volumes import Grid, Volumes, brain_mask, gm_mask, open_volumes, pack


class River:
    """The pools of one output folder: each method fills one unless it is fresh, and reads it back from disk.

    Parameters
    ----------
    out : Path
        The output folder.
    config : RunConfig
        Every setting.
    """

    def __init__(self, out: Path, config: RunConfig) -> None:
        # Prepared maps are named by absolute paths, and what a stage wrote is listed relative to its folder.
        self.out = Path(out).absolute()
        self.config = config
        self.hashes: dict[str, str] = {}
        self.console = Console(stderr=True)

    def _stage(
        self, name: str, record: Path, *, settings: object, needs: Sequence[str], fill: Callable[[], Sequence[Path]]
    ) -> None:
        inputs = {need: self.hashes[need] for need in needs}
        if is_fresh(record, stage=name, settings=settings, inputs=inputs):
            self.console.print(f"{name}: up to date", style="dim", highlight=False)
        else:
            self.console.print(f"{name} ...", highlight=False)
            outputs = fill()
            seal(record, stage=name, settings=settings, inputs=inputs, outputs=outputs, seed=self.config.seed)
        self.hashes[name] = content_hash(record)

    def cohort(self, sources: Sequence[Path]) -> Cohort:
        """Read the sources, leave out what the study leaves out, and check what it asks for; none: as it was read."""
        study = self.config.study
        sweep(self.out, but="prepared")  # There, parts may be prepared side by side.
        if not sources:
            known = load_cohort(self.out / "cohort")
            check_study(known, self.config)
            check_images(self.out, study)
            if not (self.out / "study.toml").is_file():
                write_config(self.config, self.out / "study.toml")
            self.hashes["cohort"] = known.content_hash
            return known
        found = read_cohort(sources, suffix=study.image, column_aliases=study.columns, images=study.modalities)
        if study.exclude:
            found = exclude(found, listed_exclusions(found, Path(study.exclude)))
        check_study(found, self.config)
        self.out.mkdir(parents=True, exist_ok=True)
        write_config(self.config, self.out / "study.toml")
        write_cohort(found, self.out / "cohort")
        write_images(self.out, study)
        self.hashes["cohort"] = found.content_hash
        self.console.print(
            f"cohort: {len(found.scans)} scans of {found.n_subjects} subjects, {len(found.excluded)} left out",
            highlight=False,
        )
        return found

    def prepared(self, cohort: Cohort, *, n_procs: int, scheduler: str) -> Cohort:
        """Maps on the grid; scans that fail are listed and the rest goes on."""
        folder = self.out / "prepared"
        listed = folder / "excluded.tsv"

        def fill() -> list[Path]:
            done = prepare(cohort, folder, self.config.recipe, n_procs=n_procs, scheduler=scheduler)
            if done.scans.empty:
                reasons = "\n".join(f"  {row.scan_id}: {row.reason}" for row in done.excluded.itertuples())
                raise CohortError(f"No scan could be prepared.\n{reasons}")
            written = [path for path in write_cohort(done, folder) if path != listed]
            return [*written, *(Path(path) for path in done.scans["path"])]

        try_again(listed, folder / "provenance.json")
        self._stage(
            "prepared",
            folder / "provenance.json",
            settings=fingerprint(self.config.recipe),
            needs=["cohort"],
            fill=fill,
        )
        # Scans that never came this far may differ from the last run's while the maps are the same: the list is no
        # output of the stage, and holds those of this run beside those that could not be prepared.
        done = load_cohort(folder)
        failed = done.excluded[done.excluded["stage"] == "prepare"]
        done = replace(done, excluded=pd.concat([cohort.excluded, failed], ignore_index=True))
        write_excluded(done, listed)
        self.quality(done)
        return done

    def quality(self, prepared: Cohort) -> None:
        """A page with a row of slices per scan, ``prepared/quality.html``, from the finding in ``prepared/quality/``."""
        folder = self.out / "prepared"
        record = folder / "quality" / "provenance.json"

        def fill() -> list[Path]:
            written = write_finding(quality(prepared, folder=folder), folder / "quality")
            build_quality(folder)
            return written

        if not (folder / "quality.html").is_file():
            record.unlink(missing_ok=True)
        dropped = prepared.excluded[["scan_id", "stage", "rule"]].astype(str).to_numpy().tolist()
        self._stage("quality", record, settings={"dropped": dropped}, needs=["prepared"], fill=fill)

    def volumes(self, prepared: Cohort) -> Volumes:
        """One memory-mapped cache."""
        folder = self.out / "volumes"
        grid, target = Grid.mni(self.config.recipe.spacing_mm), self.config.recipe.target

        def fill() -> list[Path]:
            pack(prepared, grid, folder, mask=gm_mask(grid) if target == "gm" else brain_mask(grid))
            return [folder / name for name in VOLUME_FILES]

        settings = grid.to_dict() | ({} if target == "gm" else {"target": target})
        self._stage("volumes", folder / "provenance.json", settings=settings, needs=["prepared"], fill=fill)
        return open_volumes(folder)

    def modalities(self, cohort: Cohort, prepared: Cohort, *, n_procs: int) -> pd.DataFrame:
        """Further images of the study, packed in ``modalities/``; gives those that failed, whose scans go on without them."""
        recipe = self.config.recipe
        for name, source in self.config.study.modalities.items():
            folder = self.out / MODALITIES / name
            try_again(folder / FAILED, folder / "provenance.json")
            self._stage(
                f"modality {name}",
                folder / "provenance.json",
                settings={"source": source, "recipe": fingerprint(recipe), "version": BESIDE_VERSION},
                needs=["cohort", "prepared"],
                fill=partial(pack_modality, cohort, prepared, name, source, self.out, recipe, n_procs=n_procs),
            )
        failed = failed_images(self.out, self.config)
        for modality, images in failed.groupby("modality"):
            listed = f"{len(images)} images could not be used, see {MODALITIES}/{modality}/failed.tsv"
            self.console.print(f"modality {modality}: {listed}", style="yellow", highlight=False)
        return failed

    def grey(self, prepared: Cohort, volumes: Volumes) -> Volumes:
        """Grey-matter maps on the same grid: the volumes themselves, unless T1 intensities are modelled."""
        if self.config.recipe.target == "gm":
            self.hashes["grey"] = self.hashes["volumes"]
            return volumes
        folder, grid = self.out / "grey", volumes.grid
        maps = replace(prepared, scans=prepared.scans.assign(path=prepared.scans["gm_path"]))

        def fill() -> list[Path]:
            pack(maps, grid, folder)
            return [folder / name for name in VOLUME_FILES]

        self._stage("grey", folder / "provenance.json", settings=grid.to_dict(), needs=["prepared"], fill=fill)
        return open_volumes(folder)

    def regions(self, volumes: Volumes) -> RegionWeights:
        """Mean grey matter per atlas region, in ``regions.tsv``; `volumes` hold grey matter."""
        weights = self._weights(volumes)
        self._stage(
            "regions",
            self.out / "regions.provenance.json",
            settings={"atlas": self._atlas().sha256},
            needs=["grey"],
            fill=lambda: write_regions(regional(volumes, weights), weights, self.out),
        )
        return weights

    def _weights(self, volumes: Volumes) -> RegionWeights:
        return region_weights(self._atlas(), volumes.grid, volumes.mask)

    def _atlas(self) -> Atlas:
        table = self.config.atlas.table
        return load_atlas(self.config.atlas.spec, table=Path(table) if table else None)

    def parts(self, prepared: Cohort) -> pd.DataFrame:
        """Part and fold of every scan, in ``split.tsv``; stratified by group and sex unless told otherwise."""
        path = self.out / "split.tsv"
        settings = stratified(self.config, prepared)

        def fill() -> list[Path]:
            with atomic(path) as temporary:
                split(prepared, settings).to_csv(temporary, sep="\t", index_label="scan_id")
            return [path]

        self._stage("split", self.out / "split.provenance.json", settings=settings, needs=["prepared"], fill=fill)
        return read_split(self.out)

    def model(self, prepared: Cohort, volumes: Volumes, parts: pd.DataFrame) -> None:
        """The trained model, in ``model/``."""
        folder, config = self.out / "model", self.config.training
        model_config, settings, beside = training_of(self.config, self.out, prepared, parts)

        def fill() -> list[Path]:
            start = folder / "attempts" / "0" if self.config.remedy else folder
            cost = cost_of(volumes, parts, model_config, config, start, scans=prepared.scans)
            self.console.print(f"model: {cost.sentence}", highlight=False)
            (folder / "attempts.json").unlink(missing_ok=True)
            training = train_with_remedies if self.config.remedy else train
            training(volumes, parts, model_config, config, folder, **beside)
            # What is needed to resume is not part of the model, and the history holds seconds, which differ.
            passing = {"provenance.json", "start.safetensors", "resume.safetensors", "history.tsv", "attempts.json"}
            return sorted(path for path in folder.iterdir() if path.is_file() and path.name not in passing)

        needs = ["volumes", "split", "prepared"]
        self._stage("model", folder / "provenance.json", settings=settings, needs=needs, fill=fill)

    def join(self) -> tuple[int, pd.DataFrame]:
        """Train beside the first process, which writes; gives the number of scans and those left out."""
        prepared, volumes = load_cohort(self.out / "prepared"), open_volumes(self.out / "volumes")
        parts = read_split(self.out)
        records = {"prepared": "prepared/", "volumes": "volumes/", "split": "split."}
        inputs = {name: content_hash(self.out / f"{place}provenance.json") for name, place in records.items()}
        model_config, settings, beside = training_of(self.config, self.out, prepared, parts)
        record = self.out / "model" / "provenance.json"
        # The first process asks the same, and does not train what is trained.
        if not is_fresh(record, stage="model", settings=settings, inputs=inputs):
            train(volumes, parts, model_config, self.config.training, self.out / "model", **beside)
        return len(prepared.scans), prepared.excluded

    def latents(self, prepared: Cohort, volumes: Volumes, parts: pd.DataFrame) -> None:
        """Posterior means and log-variances, in ``latents.nc`` and ``latents.tsv``."""
        preparation = preparation_of(self.config, self.out, prepared)

        def fill() -> list[Path]:
            model = load_model(self.out / "model")
            return write_latents(encode(model, volumes, parts, scans=prepared.scans, preparation=preparation), self.out)

        self._stage(
            "latents",
            self.out / "latents.provenance.json",
            settings={"preparation": preparation},
            needs=["model", "volumes", "split", "prepared"],
            fill=fill,
        )

    def folds(self, prepared: Cohort, volumes: Volumes, parts: pd.DataFrame) -> None:
        """As many further models as the study asks for, each with what it says of the scans it has not seen, in ``folds/``."""
        config, settings = self.config, training_of(self.config, self.out, prepared, parts)[1]
        for fold, of_fold in self._fold_parts(parts):
            folder = self.out / "folds" / str(fold)
            model_config, _, beside = training_of(config, self.out, prepared, of_fold)
            fit = partial(
                fit_fold, volumes, of_fold, fold, model_config, config.training, folder, remedy=config.remedy, **beside
            )
            # A worker whose run was stopped may still train it.
            with locked(folder):
                self._stage(
                    f"fold {fold}",
                    folder / "provenance.json",
                    settings=settings | {"model": model_config, "folds": config.folds, "split": config.split},
                    needs=["volumes", "split", "prepared"],
                    fill=fit,
                )

    def joint(self, prepared: Cohort, parts: pd.DataFrame) -> None:
        """The joint model of all modalities and its latents, in ``multimodal/``, where the study names more than one."""
        modalities = open_modalities(self.out, self.config, prepared)
        if modalities:
            takes = told(modalities, parts, n_models=1 + self.config.folds)
            self._joint(JOINT, self.out / JOINT, modalities, parts, takes=takes)

    def joint_folds(self, prepared: Cohort, parts: pd.DataFrame) -> None:
        """A joint model of every fold, in ``folds/``, each trained on the scans that train the fold's model."""
        modalities = open_modalities(self.out, self.config, prepared)
        for fold, of_fold in self._fold_parts(parts) if modalities else []:
            self._joint(f"fold {fold} {JOINT}", self.out / "folds" / str(fold) / JOINT, modalities, of_fold)

    def _fold_parts(self, parts: pd.DataFrame) -> list[tuple[int, pd.DataFrame]]:
        share, seed, folds = self.config.split.validation_fraction, self.config.split.seed, range(self.config.folds)
        return [(fold, fold_parts(parts, fold, validation_fraction=share, seed=seed)) for fold in folds]

    def _joint(
        self, stage: str, folder: Path, modalities: Mapping[str, Modality], parts: pd.DataFrame, *, takes: str = ""
    ) -> None:
        config = self.config

        def fill() -> list[Path]:
            if takes:
                self.console.print(f"{stage}: {takes}", highlight=False)
            return fit_joint(modalities, parts, config.multimodal, folder)

        settings = {"multimodal": config.multimodal, "tables": config.study.tables, "names": list(modalities)}
        settings |= {} if stage == JOINT else {"folds": config.folds, "split": config.split}
        needs = ["volumes", *modality_stages(config), "split", "prepared"]
        self._stage(stage, folder / "provenance.json", settings=settings, needs=needs, fill=fill)

    def findings(
        self,
        prepared: Cohort,
        volumes: Volumes,
        parts: pd.DataFrame,
        weights: RegionWeights,
        *,
        only: Sequence[str],
    ) -> None:
        """Every analysis that the study's columns allow, in ``findings/``."""
        # T1 intensities have a wider mask than grey matter, so their regions are weighed anew.
        of_mask = weights if self.config.recipe.target == "gm" else self._weights(volumes)
        pools = Pools(self.out, self.config, prepared, volumes, parts, weights, of_mask)
        if only and LRCP not in only:
            # What is joined to it takes it as an earlier call left it.
            self.hashes[LRCP] = done(self.out, LRCP)
        for name, asked in analyses(pools).items():
            if not only or name in only:
                self._finding(name, asked)

    def search(self, prepared: Cohort, volumes: Volumes, parts: pd.DataFrame) -> None:
        """Other settings of the model, tried on the validation scans, in ``search/`` and ``findings/search/``."""
        config = self.config
        model = sized(config, n_train=int((parts["part"] == "train").sum()))

        def searched() -> Finding:
            place = self.out / "search"
            return search(volumes, parts, model, config.training, config.search, place, scans=prepared.scans)

        settings = {"model": model, "training": config.training, "search": config.search}
        self._finding("search", Asked(searched, settings, ["volumes", "split", "prepared"]))

    def _finding(self, name: str, asked: Asked) -> None:
        folder = self.out / "findings" / name

        def fill() -> list[Path]:
            found = asked.analyse()
            # What stands beside a finding is complete before the finding can be read.
            beside = asked.beside(found, folder)
            return [*beside, *write_finding(found, folder)]

        self._stage(name, folder / "provenance.json", settings=asked.settings, needs=asked.needs, fill=fill)

    def heads(self, prepared: Cohort, volumes: Volumes, parts: pd.DataFrame, weights: RegionWeights) -> None:
        """A frozen head for every target of the prediction, in ``heads/``, for scans from elsewhere."""
        folder = self.out / "heads"
        if PREDICTION not in self.hashes:
            return
        pools = Pools(self.out, self.config, prepared, volumes, parts, weights, weights)

        def fill() -> list[Path]:
            if folder.is_dir():
                shutil.rmtree(folder)
            folder.mkdir()
            return write_heads(pools, read_finding(self.out / "findings" / PREDICTION), folder)

        self._stage(
            "heads",
            folder / "provenance.json",
            settings=self.config.prediction,
            needs=["latents", "model", "volumes", "split", "prepared", PREDICTION],
            fill=fill,
        )

    def nothing_found(self, reason: str) -> None:
        """Findings that say why they were not run."""
        self.console.print(f"no model: {reason}", highlight=False)
        for name, question in QUESTIONS.items():
            write_finding(not_run(name, question, reason), self.out / "findings" / name)

    def report(self) -> None:
        """``report.html``, from the files of the folder, and a page per subject where deviations were measured."""
        self.console.print("report ...", highlight=False)
        build(self.out)
        if said := embedded(self.out):
            self.console.print(said, highlight=False)
