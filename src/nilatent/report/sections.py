"""The findings of the page, in order, and how each is shown."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from nilatent.finding import Finding
from nilatent.plots import (
    agnostic,
    blur,
    counterfactual,
    error_profile,
    fidelity,
    fusion,
    harmonise,
    leaks,
    longitudinal,
    lrcp,
    multimodal,
    normative,
    prediction,
    projections,
    reconstruction,
    sensitivity,
)
from nilatent.plots import search as search_plot
from nilatent.report.slider import Slider, direction_sliders

__all__ = ["SECTIONS", "Drawing", "FindingSection"]

Drawing = Callable[[Finding], Figure]


@dataclass(frozen=True)
class FindingSection:
    """How a finding is shown.

    Attributes
    ----------
    title, finding
        Heading, and the name of the finding under `findings/`.
    draw
        Its figure.
    lead
        What the section is about, in one sentence.
    names
        Columns of its table that are shown, to (shown name, explanation); see `page.sheet`.
    more
        Further figures: stem of the file to function.
    maps
        Maps that are drawn on the template, to the label of the colour bar, or what says it of a finding, and its limits.
    scatter
        Values of an interactive scatter, from the finding and the table of scans; None for none.
    sliders
        Sliders through drawn pictures, from the finding; None for none.
    """

    title: str
    finding: str
    draw: Drawing
    lead: str
    names: Mapping[str, tuple[str, str]]
    more: Mapping[str, Drawing] = field(default_factory=dict)
    maps: Mapping[str, tuple[str | Callable[[Finding], str], tuple[float, float] | None]] = field(default_factory=dict)
    scatter: Callable[[Finding, pd.DataFrame], dict[str, Any]] | None = None
    sliders: Callable[[Finding], tuple[Slider, ...]] | None = None


SECTIONS: tuple[FindingSection, ...] = (
    FindingSection(
        "Search of settings",
        "search",
        search_plot.draw,
        "Whether other settings of the model do better than those given, judged on the validation scans alone.",
        search_plot.COLUMN_NAMES,
        more={"search-seeds": search_plot.draw_seeds},
    ),
    FindingSection(
        "Reconstruction",
        "reconstruction",
        reconstruction.draw,
        "What survives the way through the latents and back, on scans the model has never seen.",
        reconstruction.COLUMN_NAMES,
        more={
            "reconstruction-regions": reconstruction.draw_regions,
            "reconstruction-slices": reconstruction.draw_slices,
        },
        maps=reconstruction.MAPS,
    ),
    FindingSection(
        "Latent space",
        "projections",
        projections.draw,
        "How the scans lie to one another in the latents, and what that order follows.",
        projections.COLUMN_NAMES,
        more={
            "projections-spaces": projections.draw_spaces,
            "projections-quality": projections.draw_quality,
            "projections-relations": projections.draw_relations,
        },
        scatter=projections.scatter,
    ),
    FindingSection(
        "Regions (LRCP)",
        "lrcp",
        lrcp.draw,
        "Which regions the latents carry, and whether what they carry tells the groups apart.",
        lrcp.COLUMN_NAMES,
        more={"lrcp-profile": lrcp.draw_profile},
        maps=lrcp.MAPS,
    ),
    FindingSection(
        "Error profile",
        "error_profile",
        error_profile.draw,
        "Which regions tell how well a brain is reconstructed by a model that has not seen it.",
        error_profile.COLUMN_NAMES,
        maps=error_profile.MAPS,
    ),
    FindingSection(
        "Agnostic validation",
        "agnostic",
        agnostic.draw,
        "What can be certified whatever the distribution of the data: bounds on the error for people not in the study.",
        agnostic.COLUMN_NAMES,
        maps=agnostic.MAPS,
    ),
    FindingSection(
        "Prediction",
        "prediction",
        prediction.draw,
        "What can be told of people from their latents, beside what simpler numbers tell.",
        prediction.COLUMN_NAMES,
        more={"prediction-curves": prediction.draw_curves, "prediction-calls": prediction.draw_calls},
    ),
    FindingSection(
        "Harmonisation",
        "harmonise",
        harmonise.draw,
        "Whether the scanner can be told from the measures, before and after site effects are removed.",
        harmonise.COLUMN_NAMES,
    ),
    FindingSection(
        "Normative deviation",
        "normative",
        normative.draw,
        "How far each brain lies from what is expected of its age, sex and site; every subject has a page in subjects/.",
        normative.COLUMN_NAMES,
        maps=normative.MAPS,
    ),
    FindingSection(
        "Directions in the latent space",
        "sensitivity",
        sensitivity.draw,
        "What changes in a brain when its latents move: with age, from group to group, along single latents.",
        sensitivity.COLUMN_NAMES,
        more={"sensitivity-strips": sensitivity.draw_strips},
        maps=sensitivity.MAPS,
        sliders=direction_sliders,
    ),
    FindingSection(
        "Counterfactuals",
        "counterfactual",
        counterfactual.draw,
        "What the model expects of unseen brains ten years older or as another group, and whether other brains agree.",
        counterfactual.COLUMN_NAMES,
        more={"counterfactual-example": counterfactual.draw_example},
    ),
    FindingSection(
        "Synthetic brains",
        "fidelity",
        fidelity.draw,
        "Whether brains drawn from the latent space look like held-out brains, are copies of training scans, or are of use.",
        fidelity.COLUMN_NAMES,
        more={"fidelity-strip": fidelity.draw_strip},
    ),
    FindingSection(
        "Why is it blurry",
        "blur",
        blur.draw,
        "How much of the detail of a scan is drawn, whether it is the right detail, and what takes the rest.",
        blur.COLUMN_NAMES,
    ),
    FindingSection(
        "Change over years",
        "longitudinal",
        longitudinal.draw,
        "How fast regions and latents change in each group, by mixed models of every visit, and what a later scan looks like.",
        longitudinal.COLUMN_NAMES,
        maps=longitudinal.MAPS,
    ),
    FindingSection(
        "What kinds of measurement share",
        "multimodal",
        multimodal.draw,
        "Whether one kind of measurement can be told from others, and a joint model of all does it better than regressions.",
        multimodal.COLUMN_NAMES,
        more={"multimodal-examples": multimodal.draw_examples},
    ),
    FindingSection(
        "Fusion",
        "fusion",
        fusion.draw,
        "Whether several kinds of measurement together tell more than the best one alone, and which carries what.",
        fusion.COLUMN_NAMES,
    ),
    FindingSection(
        "Leak audit",
        "leaks",
        leaks.draw,
        "Whether anything lets a result look better than it is.",
        leaks.COLUMN_NAMES,
    ),
)
"""The findings of the page, in order. One that is absent from the run becomes a line "not run"."""
