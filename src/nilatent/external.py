"""External cohort: a frozen model, head and threshold on sources that neither has seen."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from nilatent.analysis.contrast import first_scans
from nilatent.analysis.external import ExternalConfig, Foreign, Rule, Study, external, known_values
from nilatent.cohort import Cohort, exclude, read_cohort, write_cohort
from nilatent.crossfit import errors_of
from nilatent.encode import encode
from nilatent.errors import CohortError, LatentsError, LeakageError, SettingError
from nilatent.finding import Finding, write_finding
from nilatent.head import Head, read_head
from nilatent.latents import read_latents, write_latents
from nilatent.lock import locked
from nilatent.preprocess.config import RecipeConfig
from nilatent.preprocess.gm import is_map
from nilatent.preprocess.recipe import fingerprint, prepare
from nilatent.provenance import atomic, seal, sweep
from nilatent.training.checkpoint import ModelError, TrainedModel, load_model
from nilatent.training.origin import Seen, recognise
from nilatent.training.preparation import check_preparation, how_made
from nilatent.volumes import Volumes, pack

SEEN = ("refuse", "leave out", "by scan")
# Fewer unseen subjects of the study than this say little of what is normal for the model.
MIN_UNSEEN = 10
N_NAMED = 5


@dataclass(frozen=True)
class PredictConfig:
    """Settings of :func:`predict`.

    Parameters
    ----------
    column_aliases : dict[str, str]
        Our name of a column to the source's, as for :func:`nilatent.cohort.read_cohort`.
    image : str
        Which image of a folder, as for :func:`nilatent.cohort.read_cohort`.
    seen : {"refuse", "leave out", "by scan"}
        What is done with subjects that the model or the head knows. ``"refuse"``: nothing is predicted. ``"leave out"``: they
        are listed as excluded. ``"by scan"``: names agree by chance, as of two cohorts that both count from ``sub-01``;
        only subjects of whom a scan is known by its values are left out. A known person under another name whose scan is not
        the very same is then not found.
    allow_other_preparation : bool
        Go on where the scans were prepared otherwise than the model's; a caveat then says so.
    external : ExternalConfig
        Settings of the analysis.
    """

    column_aliases: dict[str, str] = field(default_factory=dict)
    image: str = "auto"
    seen: str = "refuse"
    allow_other_preparation: bool = False
    external: ExternalConfig = field(default_factory=ExternalConfig)

    def __post_init__(self) -> None:
        """Refuse an unknown word."""
        if self.seen not in SEEN:
            raise SettingError(f"predict.seen is '{self.seen}'; choose one of {', '.join(SEEN)}.")


@dataclass(frozen=True, eq=False)
class Predicted:
    """What is said of an external cohort.

    Parameters
    ----------
    predictions : DataFrame
        Index scan_id; what ``predictions.tsv`` holds.
    finding : Finding
        Measures, where the target is known, and the domain shift.
    excluded : DataFrame
        Scans that were left out, with reasons.
    """

    predictions: pd.DataFrame
    finding: Finding
    excluded: pd.DataFrame


def predict(
    model_folder: Path,
    head_folder: Path,
    sources: Sequence[Path],
    out: Path,
    *,
    config: PredictConfig | None = None,
    study: Path | None = None,
    n_procs: int = 1,
) -> Predicted:
    """Prepare new sources as the model's scans were, encode them and let the head speak; nothing is fitted to them.

    Parameters
    ----------
    model_folder : Path
        From :func:`nilatent.training.loop.train`.
    head_folder : Path
        From :func:`nilatent.head.write_head`, for this model.
    sources : Sequence[Path]
        BIDS folders, derivatives, CAT12 folders, tables of paths.
    out : Path
        Receives ``prepared/``, ``volumes/``, ``latents.nc``, ``predictions.tsv`` and ``findings/external/``; scans that are
        prepared there already are not prepared again.
    config : PredictConfig, optional
        Settings.
    study : Path, optional
        Run folder of the study, whose ``latents.nc`` the new latents are compared with. Without it the shift is judged by the
        reconstruction error and the mean of each latent, which the head brings.
    n_procs : int
        Processes for the preparation.

    Returns
    -------
    Predicted
        Also written to `out`.

    Raises
    ------
    HeadError
        When the head is of another model, or damaged.
    ModelError
        When the model does not say how its scans were prepared, or these were prepared otherwise.
    LeakageError
        When a subject is known to the model or the head, unless the settings say what to do.
    CohortError
        When no scan is left.
    """
    config, out = PredictConfig() if config is None else config, Path(out).absolute()
    own = {Path(place).absolute() for place in (model_folder, head_folder, study) if place is not None}
    if out in own or (out / "study.toml").is_file():
        raise SettingError(f"{out} belongs to a study, whose scans would be overwritten. Name a folder of its own.")
    model, head = load_model(model_folder), read_head(head_folder)
    # Before hours of preparation.
    head.check_model(model.content_hash)
    recipe = _recipe(model)
    if recipe.within_subject and config.seen == "by scan":
        raise SettingError(
            "seen = 'by scan' compares values, and with recipe.within_subject those of a scan depend on the person's other "
            "visits: a known scan would pass as new. Use 'refuse' or 'leave out'."
        )
    cohort = read_cohort(sources, suffix=config.image, column_aliases=config.column_aliases)
    if recipe.within_subject and all(is_map(Path(str(path))) for path in cohort.scans["path"]):
        # Maps have no template of their subject; the check of the preparation says what that means.
        recipe = replace(recipe, within_subject=False)
    with locked(out):
        sweep(out, but="prepared")
        prepared = prepare(cohort, out / "prepared", recipe, n_procs=n_procs)
        made = _made(prepared, cohort, recipe)
        check_preparation(model.preparation, made, allow_other=config.allow_other_preparation)
        prepared, volumes, words = _strangers(prepared, model, head, out, config)
        write_cohort(prepared, out / "prepared")
        latents = encode(
            model,
            volumes,
            prepared.scans[["subject_id"]].assign(part="test"),
            scans=prepared.scans,
            preparation=made,
            allow_other_preparation=config.allow_other_preparation,
        )
        errors = errors_of(model, volumes, np.arange(len(prepared.scans)), 0, scans=prepared.scans)
        foreign = _foreign(prepared, latents, head, errors)
        finding = external(foreign, _rule(head), _normal(head, study), config.external)
        said = tuple(filter(None, (latents.attrs.get("caveat", ""), words, *_left_out(prepared))))
        finding = replace(finding, caveats=(*finding.caveats, *said))
        predictions = _table(foreign, _rule(head))
        written = [out / "predictions.tsv", *write_latents(latents, out)]
        with atomic(written[0]) as temporary:
            predictions.to_csv(temporary, sep="\t", index_label="scan_id", na_rep="n/a")
        written += write_finding(finding, out / "findings" / "external")
        inputs = {"model": model.content_hash, "head": head.content_hash, "cohort": cohort.content_hash}
        seal(out / "provenance.json", stage="predict", settings=asdict(config), inputs=inputs, outputs=written)
    return Predicted(predictions, finding, prepared.excluded)


def _recipe(model: TrainedModel) -> RecipeConfig:
    made = model.preparation
    if not isinstance(made, dict) or "recipe" not in made:
        raise ModelError(
            "The model does not say how its scans were prepared, so new scans cannot be prepared alike. Train it again with this "
            "version of nilatent."
        )
    try:
        recipe = RecipeConfig(**made["recipe"])
    except (TypeError, ValueError) as error:
        raise ModelError(
            f"The model's scans were prepared with settings this nilatent does not know: {error}. Install the nilatent that "
            "trained it."
        ) from error
    for setting in fields(RecipeConfig):
        kind, value = type(setting.default), getattr(recipe, setting.name)
        # The text "no" would count as true.
        if type(value) is not kind and (kind is not float or type(value) is not int):
            raise ModelError(
                f"The model says that its scans were prepared with {setting.name} = {value!r}, which is no {kind.__name__}. Get "
                "it again from whoever made it, or train again."
            )
    return recipe


def _made(prepared: Cohort, cohort: Cohort, recipe: RecipeConfig) -> dict[str, Any]:
    if prepared.scans.empty:
        reasons = "\n".join(f"  {row.scan_id}: {row.reason}" for row in prepared.excluded.itertuples())
        raise CohortError(f"No scan could be prepared.\n{reasons}")
    images = cohort.scans.loc[prepared.scans.index, "path"]
    return how_made(fingerprint(recipe), prepared.scans["recipe"], images)


def _strangers(
    prepared: Cohort, model: TrainedModel, head: Head, out: Path, config: PredictConfig
) -> tuple[Cohort, Volumes, str]:
    """The scans of subjects whom neither model nor head knows, packed."""
    volumes = pack(prepared, model.grid, out / "volumes", mask=model.mask)
    subjects = prepared.scans["subject_id"]
    known = np.zeros(len(subjects), dtype=bool)
    for seen in (model.seen, head.seen):
        known |= recognise(_by_scan(seen) if config.seen == "by scan" else seen, volumes, subjects)[0]
    words = (
        "Subjects were compared with those the model and the head have seen by the values of their scans, not by name."
    )
    words = words if config.seen == "by scan" else ""
    if not known.any():
        return prepared, volumes, words
    names = list(dict.fromkeys(subjects[known]))
    shown = ", ".join(names[:N_NAMED]) + (f" and {len(names) - N_NAMED} more" if len(names) > N_NAMED else "")
    if config.seen == "refuse":
        by_scan = np.zeros(len(subjects), dtype=bool)
        for seen in (model.seen, head.seen):
            by_scan |= recognise(_by_scan(seen), volumes, subjects)[0]
        n_certain = int(subjects[by_scan].nunique())
        raise LeakageError(
            f"The model or the head has seen {shown}: {n_certain} of these {len(names)} subjects by a scan with the same values, "
            "the others by name. A prediction for them says nothing of new subjects. Leave them out (seen='leave out'), or, if "
            "the cohorts only number their subjects alike, compare scans alone (seen='by scan')."
        )
    rule = {
        "stage": "predict",
        "rule": "not seen before",
        "reason": "The model or the head was fitted on this subject.",
    }
    prepared = exclude(prepared, [{"scan_id": str(scan)} | rule for scan in subjects.index[known]])
    if prepared.scans.empty:
        raise CohortError(f"The model or the head knows every subject of this cohort ({shown}). Bring another cohort.")
    return prepared, pack(prepared, model.grid, out / "volumes", mask=model.mask), words


def _by_scan(seen: Seen) -> Seen:
    return Seen(seen.salt, {}, seen.scans, None if seen.before is None else _by_scan(seen.before))


def _left_out(prepared: Cohort) -> list[str]:
    known = prepared.excluded[prepared.excluded["stage"] == "predict"]
    if known.empty:
        return []
    return [f"{len(known)} scans of subjects that the model or the head knows were left out."]


def _rule(head: Head) -> Rule:
    return Rule(head.target, head.column, head.rule.kind, head.levels, float(head.rule.threshold), head.held_out)


def _foreign(prepared: Cohort, latents: xr.Dataset, head: Head, errors: pd.DataFrame) -> Foreign:
    scans = prepared.scans.loc[latents["scan"].values.astype(str)]
    return Foreign(
        scans=scans,
        scores=head.scores(latents),
        called=head.call(latents),
        latents=latents["mean"].values.astype(np.float64),
        names=tuple(str(name) for name in latents["latent"].values),
        errors=errors.loc[scans.index, "error"].to_numpy(dtype=np.float64),
    )


def _normal(head: Head, study: Path | None) -> Study:
    reference = head.reference
    known = Study(reference.mean, reference.sd, reference.error, reference.error_se, reference.n_error)
    if study is None:
        return known
    latents = read_latents(study)
    if latents.attrs["model_hash"] != head.model_hash:
        raise LatentsError(
            f"The latents in {study} are of the model {str(latents.attrs['model_hash'])[:12]}, the head of "
            f"{head.model_hash[:12]}. Name the run folder from which model and head come."
        )
    unseen = ~latents["subject_in_training"].values & (latents["part"].values == "test")
    enough = len(np.unique(latents["subject"].values[unseen])) >= MIN_UNSEEN
    rows = np.flatnonzero(unseen) if enough else np.arange(latents.sizes["scan"])
    first = rows[first_scans(pd.DataFrame({"subject_id": latents["subject"].values[rows]}))]
    return replace(known, latents=latents["mean"].values[first].astype(np.float64), unseen=enough)


def _table(foreign: Foreign, rule: Rule) -> pd.DataFrame:
    table = foreign.scans[["subject_id", "dataset"]].copy()
    y = known_values(foreign.scans, rule)
    if not rule.levels:
        return table.assign(predicted=foreign.scores[:, 0], known=y)
    for code, level in enumerate(rule.levels):
        table[f"score_{level}"] = foreign.scores[:, code]
    names = {float(code): level for code, level in enumerate(rule.levels)}
    called, known = (pd.Series(codes, index=table.index, dtype=float).map(names) for codes in (foreign.called, y))
    return table.assign(call=called, known=known)
