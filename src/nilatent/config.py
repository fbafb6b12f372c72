"""Config: every setting of a study in one frozen tree, from presets, a TOML file and the command line, in that order."""

import dataclasses
import difflib
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomli_w

from nilatent.analysis.agnostic import AgnosticConfig
from nilatent.analysis.counterfactual import CounterfactualConfig
from nilatent.analysis.error_profile import ErrorProfileConfig
from nilatent.analysis.fidelity import FidelityConfig
from nilatent.analysis.fusion.config import FusionConfig
from nilatent.analysis.harmonise import HarmoniseConfig
from nilatent.analysis.leaks import LeaksConfig
from nilatent.analysis.longitudinal import LongitudinalConfig
from nilatent.analysis.lrcp import LrcpConfig
from nilatent.analysis.normative import NormativeConfig
from nilatent.analysis.prediction.config import PredictionConfig
from nilatent.analysis.projections import ProjectionsConfig
from nilatent.analysis.sensitivity import SensitivityConfig
from nilatent.errors import SettingError
from nilatent.models import ModelConfig
from nilatent.parts import SplitConfig
from nilatent.preprocess.config import RecipeConfig
from nilatent.provenance import atomic, plain
from nilatent.search.config import SearchConfig
from nilatent.training.loop import TrainConfig
from nilatent.training.multimodal.config import MultimodalConfig

# Each preset is a complete choice of resolution, network and batch for a kind of machine; the file and the flags refine it.
# By the estimate of nilatent.training.cost a spatial_vae takes at most 0.3 GB with cpu-small, 0.5 with cpu, 2 with gpu and 9
# with gpu-large, in mixed precision on the last two, and a vector model about half; `nilatent run` says it before it trains.
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    # A laptop: minutes for a hundred scans.
    "cpu-small": {
        "recipe": {"spacing_mm": 4.0},
        "model": {"channels": (8, 16, 32, 64)},
        "training": {"n_epochs": 60, "patience": 12, "batch_size": 8, "precision": "32-true"},
    },
    # A workstation.
    "cpu": {
        "recipe": {"spacing_mm": 3.0},
        "model": {"channels": (8, 16, 32, 64)},
        "training": {"n_epochs": 80, "patience": 15, "batch_size": 8, "precision": "32-true"},
    },
    # One GPU with 8 GB.
    "gpu": {
        "recipe": {"spacing_mm": 2.0},
        "model": {"channels": (16, 32, 64, 128)},
        "training": {"n_epochs": 120, "patience": 20, "batch_size": 16, "precision": "auto"},
    },
    # One or more GPUs with 24 GB: full resolution, with activations computed again.
    "gpu-large": {
        "recipe": {"spacing_mm": 1.0},
        "model": {"channels": (16, 32, 64, 128, 128)},
        "training": {
            "n_epochs": 150,
            "patience": 25,
            "batch_size": 16,
            "checkpointing": True,
            "precision": "auto",
        },
    },
}
# What a spatial_vae takes in place of its preset's: its critic sets in after a share of the epochs, so there are more of them,
# and the patience outlasts that share.
SPATIAL: dict[str, dict[str, Any]] = {"training": {"n_epochs": 80, "patience": 25, "batch_size": 4}}
MAX_AUTO_LATENT = 32
SCANS_PER_LATENT = 4
# Tables that take the one seed unless they name their own, and what analyses take from the study.
SEEDED = (
    "split", "training", "lrcp", "error_profile", "agnostic", "prediction", "harmonise", "leaks", "search", "sensitivity",
    "counterfactual", "fidelity", "fusion", "multimodal",
)  # fmt: skip
ASKED = {
    "lrcp": ("group", "contrast", "covariates", "site"),
    "error_profile": ("group", "covariates", "site"),
    "agnostic": ("group", "contrast", "covariates", "site"),
    "prediction": ("group", "contrast", "covariates", "site"),
    "harmonise": ("covariates", "site"),
    "normative": ("group", "covariates", "site"),
    "leaks": ("group", "covariates", "site"),
    "sensitivity": ("group", "contrast", "covariates", "site"),
    "counterfactual": ("group", "contrast", "covariates", "site"),
    "fidelity": ("group", "contrast"),
    "longitudinal": ("group", "contrast", "covariates", "site"),
    "fusion": ("group", "contrast", "tables"),
}
ATLASES = ("aal2",)
# Settings that may name a file; relative to the TOML file that holds them.
FILES = (("study", "exclude"), ("atlas", "spec"), ("atlas", "table"), ("training", "start_from"))


@dataclass(frozen=True)
class StudyConfig:
    """What is asked of the cohort.

    Parameters
    ----------
    group : str
        Column of the group; empty for none.
    contrast : str
        ``"A:B"``, two values of that column: A against the reference B; or several, ``"A:B,C:B"``. Empty with more than two
        groups: all against the control group, or all pairs.
    covariates : tuple[str, ...]
        Columns whose effect is removed.
    site : str
        Column of the scanner or centre; permutations stay within it.
    columns : dict[str, str]
        Our name to the source's, such as ``{"sex": "gender"}``.
    exclude : str
        File with one scan or subject per line to leave out, and after a tab the reason.
    image : str
        Which image of a folder: ``"auto"``, ``"T1w"`` or ``"GM"``.
    modalities : dict[str, str]
        Further images of the scans: a name to the BIDS suffix or the column of a table that holds them, such as
        ``{"wm": "WM", "flair": "FLAIR"}``. A scan may lack any.
    tables : dict[str, tuple[str, ...]]
        Measurements beside the images: a name to columns of the cohort, such as ``{"scores": ("BDI", "MADRS")}``, in which
        cells may be empty.
    """

    group: str = ""
    contrast: str = ""
    covariates: tuple[str, ...] = ()
    site: str = ""
    columns: dict[str, str] = field(default_factory=dict)
    exclude: str = ""
    image: str = "auto"
    modalities: dict[str, str] = field(default_factory=dict)
    tables: dict[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class AtlasConfig:
    """Which regions.

    Parameters
    ----------
    spec : str
        ``"aal2"`` or the path of a label image in MNI space.
    table : str
        Path of its names; empty to look beside the image.
    """

    spec: str = "aal2"
    table: str = ""


@dataclass(frozen=True)
class RunConfig:
    """Every setting of a run.

    Parameters
    ----------
    seed : int
        Seed of everything that draws.
    n_latent_auto : bool
        Whether the number of latents follows the number of training scans: one per four, at most 32.
    remedy : bool
        Whether a training whose diagnosis finds a known failure starts again with the change it advises, at most thrice.
    folds : int
        Cross-fitting: how many further models are trained, each without one fold of the subjects, so that every scan is
        described by one that has not seen its subject; 0 for none, otherwise at least 2.
    """

    seed: int = 0
    n_latent_auto: bool = True
    remedy: bool = False
    folds: int = 0
    study: StudyConfig = field(default_factory=StudyConfig)
    recipe: RecipeConfig = field(default_factory=RecipeConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainConfig = field(default_factory=TrainConfig)
    atlas: AtlasConfig = field(default_factory=AtlasConfig)
    projections: ProjectionsConfig = field(default_factory=ProjectionsConfig)
    lrcp: LrcpConfig = field(default_factory=LrcpConfig)
    error_profile: ErrorProfileConfig = field(default_factory=ErrorProfileConfig)
    agnostic: AgnosticConfig = field(default_factory=AgnosticConfig)
    prediction: PredictionConfig = field(default_factory=PredictionConfig)
    harmonise: HarmoniseConfig = field(default_factory=HarmoniseConfig)
    normative: NormativeConfig = field(default_factory=NormativeConfig)
    leaks: LeaksConfig = field(default_factory=LeaksConfig)
    sensitivity: SensitivityConfig = field(default_factory=SensitivityConfig)
    counterfactual: CounterfactualConfig = field(default_factory=CounterfactualConfig)
    fidelity: FidelityConfig = field(default_factory=FidelityConfig)
    longitudinal: LongitudinalConfig = field(default_factory=LongitudinalConfig)
    fusion: FusionConfig = field(default_factory=FusionConfig)
    multimodal: MultimodalConfig = field(default_factory=MultimodalConfig)
    search: SearchConfig = field(default_factory=SearchConfig)


def read_config(
    path: Path | None = None, *, preset: str = "cpu-small", overrides: Mapping[str, Any] | None = None
) -> RunConfig:
    """Settings from a preset, a file and overrides; the later wins.

    Parameters
    ----------
    path : Path, optional
        TOML file, such as the ``study.toml`` that a run leaves; files it names are relative to its folder.
    preset : str
        A key of :data:`PRESETS`.
    overrides : Mapping[str, Any], optional
        Dotted name to value, such as ``{"study.group": "diagnosis"}``.

    Returns
    -------
    RunConfig
        Complete and checked.

    Raises
    ------
    SettingError
        For an unknown preset or key (the nearest name is offered), a value of the wrong type, or a file that is not TOML.

    Examples
    --------
    >>> read_config(overrides={"seed": 7}).seed
    7
    """
    if preset not in PRESETS:
        raise SettingError(f"There is no preset '{preset}'. Choose one of {', '.join(PRESETS)}.")
    asked: dict[str, Any] = {}
    if path is not None:
        _merge(asked, _read_toml(Path(path)))
    for dotted, value in (overrides or {}).items():
        nested: Any = value
        for key in reversed(dotted.split(".")):
            nested = {key: nested}
        _merge(asked, nested)
    values: dict[str, Any] = {}
    model = asked.get("model")
    spatial = isinstance(model, dict) and model.get("name") == "spatial_vae"
    for chosen in (PRESETS[preset], SPATIAL if spatial else {}, asked):
        _merge(values, chosen)
    config: RunConfig = _build(RunConfig, values, place="")
    if "n_latent" in values.get("model", {}):
        if values.get("n_latent_auto"):
            raise SettingError(
                "'model.n_latent' is set, and 'n_latent_auto = true' would pass over it. Set n_latent_auto = false."
            )
        config = dataclasses.replace(config, n_latent_auto=False)
    return _shared(config, values)


def write_config(config: RunConfig, path: Path) -> None:
    """Write the settings as TOML, readable by :func:`read_config`; absent values are left out.

    What follows from another setting is left out too (the one seed, what LRCP takes from the study, a number of latents
    that follows the scans): written down, it would stand against whoever changes the setting it follows from.
    """
    values = _without_none(plain(config))
    for name in SEEDED:
        if values[name]["seed"] == config.seed:
            del values[name]["seed"]
    for table, names in ASKED.items():
        for name in names:
            del values[table][name]
    if config.n_latent_auto:
        del values["model"]["n_latent"]
    if config.folds or config.split.n_folds == SplitConfig().n_folds:
        del values["split"]["n_folds"]
    with atomic(path) as temporary:
        temporary.write_text(tomli_w.dumps(values), encoding="utf-8")


def sized(config: RunConfig, *, n_train: int) -> ModelConfig:
    """The model's settings with the number of latents that this many training scans can carry.

    Parameters
    ----------
    config : RunConfig
        With `n_latent_auto`, the number is one per four training scans, at least 2 and at most 32; otherwise as set.
    n_train : int
        Scans in the training part.
    """
    if not config.n_latent_auto or config.model.name == "spatial_vae":
        return config.model
    return dataclasses.replace(config.model, n_latent=max(2, min(MAX_AUTO_LATENT, n_train // SCANS_PER_LATENT)))


def _shared(config: RunConfig, values: Mapping[str, Any]) -> RunConfig:
    # One seed for all, unless a table names its own; what the study asks is asked of its analyses.
    seeded = {
        name: dataclasses.replace(getattr(config, name), seed=config.seed)
        for name in SEEDED
        if "seed" not in values.get(name, {})
    }
    config = dataclasses.replace(config, **seeded)
    if config.folds:
        if config.folds < 2 or values.get("split", {}).get("n_folds", config.folds) != config.folds:
            raise SettingError(
                f"'folds' is {config.folds}: it is 0 or at least 2, and the same as 'split.n_folds' where that is set. Leave "
                "out split.n_folds."
            )
        if config.split.train_on:
            raise SettingError(
                f"'folds' is {config.folds} and 'split.train_on' names {', '.join(config.split.train_on)}: scans of the other "
                "data sets are new to the model without cross-fitting. Leave one of the two out."
            )
        config = dataclasses.replace(config, split=dataclasses.replace(config.split, n_folds=config.folds))
    for table, names in ASKED.items():
        analysis = getattr(config, table)
        asked = {name: getattr(config.study, name) for name in names}
        own = {name for name in asked if name in values.get(table, {}) and getattr(analysis, name) != asked[name]}
        if own:
            raise SettingError(f"'{table}.{min(own)}' is set in [study], for every analysis: write it there.")
        config = dataclasses.replace(config, **{table: dataclasses.replace(analysis, **asked)})
    return config


def _read_toml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise SettingError(f"There is no configuration file {path}. Check the path given with --config.")
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SettingError(f"{path} is not valid TOML: {error}.") from error
    for table, name in FILES:
        given = values[table].get(name) if isinstance(values.get(table), dict) else None
        # Resolved here, or a run folder would look for its atlas beside whoever calls `nilatent analyse`.
        if isinstance(given, str) and given and (name != "spec" or given.lower() not in ATLASES):
            values[table][name] = str((path.parent / given).resolve())
    return values


def _merge(into: dict[str, Any], new: Mapping[str, Any]) -> None:
    for key, value in new.items():
        if isinstance(value, Mapping) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = dict(value) if isinstance(value, Mapping) else value


def _build(kind: Any, values: Mapping[str, Any], *, place: str) -> Any:
    hints = typing.get_type_hints(kind)
    made = {}
    for key, value in values.items():
        where = f"{place}.{key}" if place else key
        if key not in hints:
            near = difflib.get_close_matches(key, hints, n=1)
            meant = f" Did you mean '{near[0]}'?" if near else f" The keys are: {', '.join(hints)}."
            raise SettingError(f"There is no setting '{where}'.{meant}")
        if dataclasses.is_dataclass(hints[key]):
            if not isinstance(value, Mapping):
                raise SettingError(f"'{where}' is a table of settings, got {value!r}. Write [{where}] above its keys.")
            made[key] = _build(hints[key], value, place=where)
        else:
            made[key] = _value(hints[key], value, place=where)
    return kind(**made)


def _value(hint: Any, value: Any, *, place: str) -> Any:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in inner:
            return None
        return _value(next(part for part in inner if part is not type(None)), value, place=place)
    if origin is typing.Literal:
        if value not in inner:
            raise SettingError(f"'{place}' is one of {', '.join(map(str, inner))}, got {value!r}.")
        return value
    if origin is tuple and isinstance(value, list | tuple):
        kinds = [inner[0]] * len(value) if inner[-1] is Ellipsis else list(inner)
        return tuple(_value(part, item, place=place) for part, item in zip(kinds, value, strict=True))
    if origin is dict and isinstance(value, Mapping):
        return {str(key): _value(inner[1], item, place=f"{place}.{key}") for key, item in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    expected = hint.__name__ if isinstance(hint, type) and origin is None else str(hint)
    raise SettingError(f"'{place}' is of type {expected}, got {value!r}.")


def _without_none(values: Any) -> Any:
    if isinstance(values, dict):
        return {key: _without_none(value) for key, value in values.items() if value is not None}
    return values
