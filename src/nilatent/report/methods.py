"""Methods text from the settings of the run, with the works to cite; it says what was done and nothing else."""

from collections.abc import Callable, Mapping
from typing import Any

from nilatent.report import drawn_words, model_words, people_words, search
from nilatent.report.page import Reference, number_text
from nilatent.report.references import REFERENCES as WORKS
from nilatent.report.study import Run, count

REFERENCES = WORKS | search.REFERENCES


def paragraphs(run: Run) -> tuple[str, ...]:
    """The methods in words, one paragraph per stage that was run; citations are keys such as [n4]."""
    stages: tuple[Callable[[Run], str], ...] = (
        _scans,
        _preparation,
        _model,
        _search,
        _reconstruction,
        _regions,
        _crossfit,
        _projections,
        _lrcp,
        _error_profile,
        _agnostic,
        people_words.prediction,
        people_words.harmonise,
        people_words.normative,
        drawn_words.sensitivity,
        drawn_words.counterfactual,
        drawn_words.fidelity,
        drawn_words.blur,
        drawn_words.longitudinal,
        drawn_words.multimodal,
        drawn_words.fusion,
        _software,
    )
    return tuple(text for stage in stages if (text := stage(run)))


def numbered(texts: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[Reference, ...]]:
    """Texts with [n4] turned into [1], and the references in the order of their first mention.

    Only keys of our own list are turned, so that brackets in names from data stay as they are.
    """
    order: list[str] = []
    for text in texts:
        found = [(text.index(f"[{key}]"), key) for key in REFERENCES if f"[{key}]" in text]
        order += [key for _, key in sorted(found) if key not in order]
    done = list(texts)
    for number, key in enumerate(order, start=1):
        done = [text.replace(f"[{key}]", f"[{number}]") for text in done]
    return tuple(done), tuple(REFERENCES[key] for key in order)


def _scans(run: Run) -> str:
    scans = run.cohort.scans
    sources = sorted(scans["dataset"].unique())
    text = (
        f"We analysed {count(len(scans), 'scan')} of {count(scans['subject_id'].nunique(), 'person')} from "
        f"{count(len(sources), 'data set')} ({', '.join(sources)}), read as BIDS [bids] folders or tables. "
        + (
            f"{count(len(run.cohort.excluded), 'scan').capitalize()} left out, each listed with its reason."
            if len(run.cohort.excluded)
            else "None was left out."
        )
    )
    if run.parts.empty:
        return text
    parts = run.parts["part"].value_counts()
    sizes = ", ".join(
        f"{count(int(parts.get(part, 0)), 'scan')} for {part}" for part in ("train", "validation", "test")
    )
    by = run.records.get("split", {}).get("settings", {}).get("stratify") or ()
    strata = f" and {', '.join(by)}" if by else ""
    learnt = run.records.get("split", {}).get("settings", {}).get("train_on") or ()
    if learnt:
        strata += f"; the model learnt from {', '.join(learnt)} alone, and everyone else is in the test part"
    return f"{text} Persons, never single scans, were divided at random, stratified by data set{strata}: {sizes}."


def _preparation(run: Run) -> str:
    recipe = run.settings.get("recipe", {})
    done = set(run.cohort.scans["recipe"].dropna()) if "recipe" in run.cohort.scans else {recipe.get("name")}
    parts = []
    if "t1" in done:
        syn = recipe.get("normalisation") == "syn"
        warp = " followed by a symmetric diffeomorphic warp (ANTs SyN [syn])" if syn else ""
        parts.append(
            "T1-weighted scans were stripped of the skull where it was present (deepbet [deepbet]), corrected for intensity "
            "bias (N4 [n4]), aligned to the MNI152 2009a template [mni] by an affine transform that maximises mutual "
            f"information [mattes]{warp}, and segmented into grey matter, white matter and fluid by a mixture of pure and "
            "mixed tissues with the template's tissue priors and a Markov random field [tohka] [ashburner]. "
            + _modelled(recipe, syn=syn)
            + _within(recipe)
        )
    if "gm" in done:
        parts.append("Existing grey-matter maps in MNI space were checked and resampled once.")
    if not parts and not recipe:
        return ""
    if "fwhm_mm" in recipe:
        width = recipe["fwhm_mm"]
        maps = "Tissue maps" if recipe.get("target") == "t1w" else "They"
        parts.append(
            f"{maps} were smoothed by {number_text(width)} mm FWHM." if width else f"{maps} were not smoothed."
        )
    if "spacing_mm" in recipe:
        parts.append(f"All analyses used a grid of {number_text(recipe['spacing_mm'])} mm voxels in MNI space.")
    return " ".join(parts)


def _within(recipe: Mapping[str, Any]) -> str:
    """How visits of one person were kept alike; empty when each was prepared by itself."""
    if not recipe.get("within_subject"):
        return ""
    return (
        " Visits of a person with two or more were first aligned rigidly to their average halfway between them, and took from it "
        "one transform to the template and one brain mask [reuter]."
    )


def _modelled(recipe: Mapping[str, Any], *, syn: bool) -> str:
    if recipe.get("target") == "t1w":
        return (
            "Their intensities were scaled between the percentiles 0.5 and 99.5 of each brain and resampled once; regional "
            "grey matter comes from the tissue maps."
        )
    change = "the Jacobian determinant of the whole transform" if syn else "the determinant of that transform"
    modulated = f" and modulated by {change} [modulation]" if recipe.get("modulation") else ""
    return f"Grey-matter maps were resampled once{modulated}."


def _model(run: Run) -> str:
    model, training = run.model.get("model", {}), run.model.get("training", {})
    if run.history.empty or not model:
        return ""
    begun = model_words.start(model)
    text = f"{model_words.kind(model)} was trained on the training scans{model_words.anchor(begun, model, training)}"
    text += _optimiser(training) + model_words.objective(model, training) + model_words.supervision(model)
    if not run.best_epoch and begun in ("pca", "local"):
        text += f" The epoch kept was 0. {run.result.get('summary', '')}"
    elif run.best_epoch is not None:
        rule = " by more than two standard errors over persons" if begun in ("pca", "local") else ""
        text += (
            f" The weights of epoch {run.best_epoch} were kept: another epoch replaces the start only where its error on the "
            f"validation scans is lower{rule}."
        )
    return text


def _search(run: Run) -> str:
    return search.paragraph(run.findings["search"]) if run.done("search") else ""


def _optimiser(training: Mapping[str, Any]) -> str:
    rate = training.get("learning_rate") or training.get("lr")
    settings = [f"learning rate {number_text(rate)}"] if rate else []
    settings += [f"weight decay {number_text(training['weight_decay'])}"] if training.get("weight_decay") else []
    settings += [f"batches of {training['batch_size']}"] if training.get("batch_size") else []
    return f" (AdamW [adamw]{', ' if settings else ''}{', '.join(settings)})."


def _reconstruction(run: Run) -> str:
    if not run.done("reconstruction"):
        return ""
    intensities = run.settings.get("recipe", {}).get("target") == "t1w"
    found = run.findings["reconstruction"].settings
    text = (
        f"Reconstruction was judged inside the {'brain' if intensities else 'grey-matter'} mask and, where it says so, on the "
        "whole volume, on the test scans only: beside the mean image, down-sampling to as many values, and a principal component "
        "analysis with as many dimensions (or as many as the training scans allow), all fitted on the training scans. FVU is "
        "the fraction of variance left unexplained, the mean squared error divided by that of the mean image. Structural "
        "similarity is SSIM [ssim] and MS-SSIM [msssim] in three dimensions."
    )
    if found.get("features"):
        text += f" Deep-feature distances are those of {found['features']} [features], relative to the mean image's."
    if not intensities:
        text += " Agreement of total grey matter is bias, Lin's concordance [lin] and limits of agreement [bland]."
    return text + " Intervals are 95 % bootstrap intervals over subjects."


def _regions(run: Run) -> str:
    atlas = str(run.settings.get("atlas", {}).get("spec", ""))
    if not atlas or not (run.folder / "regions.tsv").is_file():
        return ""
    named = "AAL2 [aal2] [aal]" if atlas == "aal2" else f"the label image {atlas.replace(chr(92), '/').split('/')[-1]}"
    return (
        f"Regional grey matter is the mean over the regions of {named}, put on the grid by the fraction of each voxel "
        "that a region covers; regions under eight voxels were dropped and are listed."
    )


def _crossfit(run: Run) -> str:
    n_folds = int(run.settings.get("folds", 0) or 0)
    if n_folds == 0 or "fold 0" not in run.records:
        return ""
    text = (
        f"The model was cross-fitted: {n_folds} further models were trained with the same settings, each without one fold of the "
        "persons. Coordinates of different models are never pooled; only quantities in units of the image or of a region are."
    )
    if run.model.get("model", {}).get("align"):
        return f"{text} Since a label shaped the latents, only the error profile uses these models."
    return f"{text} So every scan is described by a model that has not seen its person."


def _projections(run: Run) -> str:
    if not run.done("projections"):
        return ""
    settings = run.findings["projections"].settings
    names = {
        "pca": "principal components",
        "pls": "partial least squares [pls]",
        "tsne": "t-SNE [tsne]",
        "umap": "UMAP [umap]",
    }
    table = run.findings["projections"].table
    made = {str(name).lower().replace("-", "") for name in table.get("method", ["PCA"])}
    drawn = [name for method, name in names.items() if method in made]
    supervised = bool(run.model.get("model", {}).get("align"))
    fitted = (
        "fitted on the scans shown" if supervised else "fitted on the training scans, with the others placed in the map"
    )
    return (
        f"Latents were projected by {', '.join(drawn)}, {fitted}; "
        "the same maps of regional means and of voxel components stand beside. How well neighbours are kept is trustworthiness "
        "and continuity [trust]; whether scans of the same kind lie together is the share of like neighbours, with a permutation "
        f"p-value ({settings.get('n_permutations', 0):,} permutations)."
    )


def _error_profile(run: Run) -> str:
    if not run.done("error_profile"):
        return ""
    settings = run.findings["error_profile"].settings
    return (
        "The error profile regresses the logarithm of each scan's reconstruction error, by a model that has not seen the person, "
        "on standardised regional grey matter, beyond a null model of total grey matter, head size, covariates and site; ridge "
        "regression and gradient-boosted trees were fitted in nested cross-validation over persons. Regions are attributed by "
        f"SHAP values [shap] [treeshap] of held-out scans only where their gain is significant by permutation [freedman] "
        f"({settings.get('n_permutations', 0):,} permutations, trees {settings.get('n_permutations_trees', 0):,} with early "
        "stopping [besag])."
    )


def _agnostic(run: Run) -> str:
    if not run.done("agnostic"):
        return ""
    settings = run.findings["agnostic"].settings
    return (
        "Agnostic validation bounds the error for any distribution of the data with probability "
        f"{number_text(1 - settings.get('eta', 0.05))}: balanced error of held-out folds plus a bound in the number of "
        "dimensions (cross-validated upper bound [cubv]; statistical agnostic mapping of regions [sam]; statistical agnostic "
        "regression [sar]), with a permutation p-value beside each. A bound is a certificate and never the decision."
    )


def _lrcp(run: Run) -> str:
    if not run.done("lrcp"):
        return ""
    settings = run.findings["lrcp"].settings
    reading = settings.get("reading", "joint")
    draws = settings.get("n_permutations_linked" if reading == "linked" else "n_permutations")
    how = f" with {draws:,} permutations" if isinstance(draws, int) else ""
    # What was really removed: the covariates asked for, total grey matter and head size where adjusted for, and the site.
    confounds = [*(settings.get("confounds") or ()), *([settings["site"]] if settings.get("site") else [])]
    removed = f" after removing {', '.join(confounds)}" if confounds else ""
    models = settings.get("n_models") or 0
    within = [f"the levels of {settings['site']}"] if settings.get("site") else []
    within += ["the folds"] if models else []
    blocks = f", permuted within {' and '.join(within)}" if within else ""
    does = f"follows {settings['target']}" if settings.get("target") else "separates the groups"
    if reading == "blended":
        asked = (
            "whether the region's grey matter, blended with its out-of-fold readout from the latents (which counts by half the "
            f"share that they predict), {does}. The first holds at a false discovery rate over regions, the second family-wise "
            "by the maximum statistic"
        )
    else:
        asked = (
            f"whether what they carry of the region {does}. Both hold family-wise over regions by the maximum statistic"
        )
    several = "," in str(settings.get("contrast", ""))
    number = " p was multiplied by the number of contrasts." if several else ""
    crossed = f" Every scan was judged by the one of {models} models that has not seen its person." if models else ""
    return (
        f"Latent-regional correlation profiling (LRCP as implemented here) joined two tests{how} [freedman] [winkler]"
        f"{removed}{blocks}: whether the latents are associated with a region's grey matter, and {asked}; a region is called "
        f"when both are significant and its own grey matter, tested among the regions found, agrees.{number}{crossed} False "
        "discovery rates of the joint reading are given beside them [fdr]."
    )


def _software(run: Run) -> str:
    known = run.versions
    listed = ", ".join(f"{name} {version}" for name, version in known.items() if name != "nilatent")
    seed = run.settings.get("seed")
    return (
        f"Analyses were run with nilatent {known.get('nilatent', '')}".rstrip()
        + (f" ({listed})" if listed else "")
        + (f"; the seed was {seed}." if seed is not None else ".")
    )
