"""What is studied: the conditions of every study, and the row of numbers that one cohort of a condition gives."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from tests.calibration.calls import badges, called_regions, gate
from tests.calibration.cohorts import Cohort, Condition, make_cohort
from tests.calibration.followed import Followed, judge_followed, make_followed
from tests.calibration.images import ImageCondition, Images, make_images, pca_latents, trained_latents, vbm_calls

import nilatent

LEVEL = {
    "no effect, n = 60": Condition(),
    "no effect, n = 200": Condition(n=200),
    "site goes with the group": Condition(site_effect=1.0),
    "age goes with the group": Condition(age_effect=1.0),
    "15 cases, 45 others": Condition(cases=0.25),
}
# The same without telling the analysis. Where these do not show, the conditions above prove nothing.
UNTOLD = {
    "site goes with the group, not told": Condition(site_effect=1.0, told=False),
    "age goes with the group, not told": Condition(age_effect=1.0, told=False),
}
FEW, MANY = (10, 30, 50), (*range(10, 16), *range(40, 46))
POWER = {
    f"{len(planted)} regions, neighbours {neighbours:g}, effect {effect:g}": Condition(
        n=100, planted=planted, neighbours=neighbours, effect=effect
    )
    for planted, neighbours in ((FEW, 0.0), (FEW, 0.5), (FEW, 0.8), (MANY, 0.5))
    for effect in (0.5, 1.0, 1.5, 2.0)
}
GRADES = {
    "the model sees the regions": Condition(n=100, effect=1.5),
    "class-mediated": Condition(n=100, effect=1.5, class_mediated=True),
}
STAGES = {
    f"stable and progressive, effect {effect:g}": Condition(n=100, effect=effect, stages=True)
    for effect in (2.0, 3.0, 4.0)
}
IMAGES = {
    "no effect": ImageCondition(),
    "site goes with the group": ImageCondition(confounded="site"),
    "age goes with the group": ImageCondition(confounded="age"),
    "effect 0.2": ImageCondition(effect=0.2),
    "effect 0.4": ImageCondition(effect=0.4),
    "effect 0.8": ImageCondition(effect=0.8),
    "class-mediated, effect 0.8": ImageCondition(effect=0.8, class_mediated=True),
    "stable and progressive, effect 1": ImageCondition(effect=1.0, stages=True),
}
TRAINED = {name: IMAGES[name] for name in ("no effect", "effect 0.4", "effect 0.8")}
FOLLOWED = {
    "no difference, n = 40": Followed(),
    "no difference, everybody at one rate": Followed(slope=0.0),
    "no difference, two visits": Followed(visits=(2, 2)),
    "difference 0.15, n = 40": Followed(difference=0.15),
    "difference 0.15, n = 100": Followed(n=100, difference=0.15),
    "difference 0.3, n = 40": Followed(difference=0.3),
}
FOLLOWED_IMAGES = {
    "no difference": Followed(images=True),
    "effect 0.15": Followed(images=True, difference=0.15),
    "effect 0.3": Followed(images=True, difference=0.3),
}

Row = dict[str, float]
REGIONAL = ("stats", "contrast", "discriminability", "lrcp/*")
AGNOSTIC = ("stats", "residuals", "contrast", "discriminability", "crossfit", "agnostic/*", "bounds", "held_out", "sar")
PROFILE = ("stats", "contrast", "error_profile/*")
# Of change over time, the files that decide numbers, and not those that word them.
LONGITUDINAL = (
    *("stats", "contrast", "mixed", "residuals", "directions"),
    *(f"longitudinal/{name}" for name in ("change", "directions", "drawn", "scans", "times", "visits")),
)
HARNESS = ("cohorts", "calls")


@dataclass(frozen=True)
class Study:
    """One table of rows.

    Parameters
    ----------
    conditions : Mapping
        By name, in the order of the table.
    measure : Callable
        Row of a cohort from the name of its condition and its seed.
    n_cohorts : int
        Of each condition, unless another number is asked for.
    code : tuple[str, ...]
        Files of :mod:`nilatent.analysis` that decide the numbers, as patterns without suffix.
    harness : tuple[str, ...]
        Files beside this one that do.
    """

    conditions: Mapping[str, Condition | ImageCondition | Followed]
    measure: Callable[[str, int], Row]
    n_cohorts: int
    code: tuple[str, ...]
    harness: tuple[str, ...] = HARNESS

    def files(self) -> list[Path]:
        """Files whose content decides the numbers."""
        analysis = Path(nilatent.__file__).parent / "analysis"
        found = [path for pattern in self.code for path in sorted(analysis.glob(f"{pattern}.py"))]
        return found + [Path(__file__).with_name(f"{name}.py") for name in self.harness]


def of_arrays(conditions: Mapping[str, Condition], measure: Callable[[Cohort, int], Row]) -> Callable[[str, int], Row]:
    """The same measure in cohorts of the given conditions."""
    return lambda name, seed: measure(make_cohort(conditions[name], seed), seed)


@lru_cache(maxsize=1)
def images_of(seed: int) -> dict[str, Images]:
    """Images of a seed under every condition; kept, because the next condition asks for them again."""
    return make_images(IMAGES, seed)


def by_pca(name: str, seed: int) -> Row:
    """Regions called with principal components of the voxels as latents, and by voxel-based morphometry."""
    made = images_of(seed)[name]
    return called_regions(made.with_latents(pca_latents(made)), seed) | vbm_calls(made, seed=seed)


def by_model(name: str, seed: int) -> Row:
    """Regions called with the latents of the default model."""
    made = images_of(seed)[name]
    return called_regions(made.with_latents(trained_latents(made, seed)), seed)


def over_years(conditions: Mapping[str, Followed]) -> Callable[[str, int], Row]:
    """Differences in rate that are called, intervals and rates of subjects, in cohorts that are followed."""
    return lambda name, seed: judge_followed(make_followed(conditions[name], seed))


def ridge_gate(cohort: Cohort, seed: int) -> Row:
    """The gate of the linear model."""
    return gate(cohort, seed, models=("ridge",))


def whole_gate(cohort: Cohort, seed: int) -> Row:
    """The gate of both models, as it comes."""
    return gate(cohort, seed, models=("ridge", "trees"))


FIRST = {"no effect, n = 60": LEVEL["no effect, n = 60"]}
STUDIES = {
    "regions": Study(LEVEL | UNTOLD, of_arrays(LEVEL | UNTOLD, called_regions), 1000, REGIONAL),
    "badges": Study(LEVEL, of_arrays(LEVEL, badges), 1000, AGNOSTIC),
    "gate": Study(LEVEL, of_arrays(LEVEL, ridge_gate), 1000, PROFILE),
    "gate of both models": Study(FIRST, of_arrays(FIRST, whole_gate), 40, PROFILE),
    "power": Study(POWER, of_arrays(POWER, called_regions), 200, REGIONAL),
    "grades": Study(GRADES, of_arrays(GRADES, called_regions), 200, REGIONAL),
    "stages": Study(STAGES, of_arrays(STAGES, called_regions), 200, REGIONAL),
    "images": Study(IMAGES, by_pca, 40, REGIONAL, (*HARNESS, "images")),
    "trained": Study(TRAINED, by_model, 40, REGIONAL, (*HARNESS, "images")),
    "longitudinal": Study(FOLLOWED, over_years(FOLLOWED), 200, LONGITUDINAL, ("followed",)),
    "longitudinal images": Study(FOLLOWED_IMAGES, over_years(FOLLOWED_IMAGES), 40, LONGITUDINAL, ("followed",)),
}
