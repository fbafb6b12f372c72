"""Sentences of the methods about what was drawn from the latent space, change over time and several kinds of measurement."""

from nilatent.report.page import number_text
from nilatent.report.study import Run

# Kinds of measures of change, in the order of the finding, and how they are called in the methods.
MEASURES = {
    "regions": "regional means",
    "decoded regions": "regional means of reconstructions by the model that had not seen the person",
    "directions": "places along directions of the latent space [haufe]",
    "latents": "single latents of the study's own model",
}
EXPERTS = {
    "poe": "the product of what the kinds say of them [experts]",
    "moe": "the mixture of what the kinds say of them [mixture]",
    "mopoe": "the mixture of the products over all sets of kinds [mopoe]",
}


def sensitivity(run: Run) -> str:
    """How directions were read; empty when they were not."""
    if not run.done("sensitivity"):
        return ""
    settings = run.findings["sensitivity"].settings
    n_models = int(settings.get("n_models", 1))
    over = f", averaged over {n_models} cross-fitted models" if n_models > 1 else ""
    return (
        "Directions of the latent space were fitted on training scans: covariates and groups by regression of the latents on the "
        "column with the others held, discriminants by the pattern of their score [haufe]. The sensitivity of a region is half "
        f"the difference of what the decoder draws {settings.get('reach', 2):g} SD to either side, per unit{over}. Effects of "
        f"columns were tested by {settings.get('n_permutations', 0):,} permutations of the column over persons [freedman] with "
        "the maximum over regions; single latents were held against scans that the model had not seen."
    )


def counterfactual(run: Run) -> str:
    """How scans were changed; empty when they were not."""
    if not run.done("counterfactual"):
        return ""
    settings = run.findings["counterfactual"].settings
    asked = "; ".join(map(str, settings.get("asked", ())))
    return (
        f"Counterfactuals ({asked}) moved the latents of unseen scans along the pattern of the column on training scans, or told "
        "a conditional decoder the new value, and subtracted the reconstruction from what was then drawn. Intervals are "
        f"bootstrap intervals over persons ({settings.get('n_bootstrap', 0):,}) in which the pattern was fitted again. Agreement "
        f"with the slopes among unseen scans was tested by {settings.get('n_permutations', 0):,} permutations of the column over "
        "persons."
    )


def fidelity(run: Run) -> str:
    """How drawn brains were judged; empty when they were not."""
    if not run.done("fidelity"):
        return ""
    settings = run.findings["fidelity"].settings
    copies = " Copies were sought among nearest training scans [copying]." if "copies" in settings else ""
    return (
        f"{settings.get('n_samples', 0)} images were drawn from each latent space at a density of the latents of training scans "
        "(one Gaussian or a mixture, whichever held-out persons preferred) [expost]. They were compared with unseen scans by "
        "maximum mean discrepancy [mmd] and its polynomial form [kid] on regional means and on features of a fixed random "
        f"network, with permutation p, and by coverage and density [coverage].{copies}"
    )


def blur(run: Run) -> str:
    """How detail was measured; empty when it was not."""
    if not run.done("blur"):
        return ""
    return (
        "Detail was measured in bands inside the mask: energy of the drawn images relative to that of unseen scans, and its "
        "coherence with the detail of the same scan, beside principal components of equal size."
    )


def longitudinal(run: Run) -> str:
    """How change over time was measured; empty when it was not."""
    if not run.done("longitudinal"):
        return ""
    finding = run.findings["longitudinal"]
    settings, table = finding.settings, finding.table
    rates = table[table["what"] == "rate"]
    measures = [words for kind, words in MEASURES.items() if kind in set(rates["kind"])]
    step = (
        "visits"
        if settings.get("unit") == "visits"
        else f"years since the first visit, from '{settings.get('time', 'age')}'"
    )
    held = [*(settings.get("covariates") or ()), *([settings["site"]] if settings.get("site") else [])]
    level = f" Levels depended on {', '.join(held)} too." if held else ""
    pace = f" Rates depended on {', '.join(settings['pace'])} too." if settings.get("pace") else ""
    sloped = (rates["random"] == "intercept and slope").any()
    return (
        f"Change over time of {_listed(measures)} was modelled by linear mixed models [laird] [bernal] with a random intercept "
        f"{'and a random slope ' if sloped else ''}of every person, a level and a rate of every group, fitted by restricted "
        f"maximum likelihood; time was in {step}.{level}{pace}{_compared(run)}{_drawn_and_foreseen(run)}"
    )


def _compared(run: Run) -> str:
    """How groups were compared, and how repeatable measures are."""
    finding = run.findings["longitudinal"]
    settings, table = finding.settings, finding.table
    text = ""
    if settings.get("contrasts"):
        within = f" within {settings['site']}" if settings.get("site") else ""
        text += (
            f" Rates of groups were compared by {settings.get('n_permutations', 0):,} permutations of persons between "
            f"them{within}, on the slopes of persons weighted by their precision [freedman], with the maximum statistic over the "
            "measures of one kind [winkler], beside the likelihood ratio."
        )
    near = table[table["what"] == "repeatability, close visits"]
    text += " Repeatability is the share of variance between persons of the mixed model"
    if len(near):
        days = number_text(settings.get("retest_days", 0))
        text += f", and the intraclass correlation ICC(2,1) of visits at most {days} days apart [shrout]"
    return f"{text}."


def _drawn_and_foreseen(run: Run) -> str:
    """What decoders drew of time, and what was foreseen."""
    finding = run.findings["longitudinal"]
    table, text = finding.table, ""
    if table["drawn"].notna().any():
        text += (
            " Decoders drew the average person of each group at the fixed effects of the latents of "
            f"{'all persons' if finding.settings.get('drawn_seen') else 'persons they had not seen'}; images of several models "
            "were averaged."
        )
        if "drawn_low" in table and table["drawn_low"].notna().any():
            text += (
                f" Intervals of the drawn change rest on {finding.settings.get('n_redrawn', 0)} further courses of every model, "
                "for which each person moved the fixed effects by a jackknife step of random size [wu]."
            )
    if (table["what"] == "error of forecast").any():
        text += (
            " The last visit of persons that a model had not seen was foreseen from the first by rates of the latents, and held "
            "against the first scan as it is, the rates of regions and a regression on the first visit, all learnt on the "
            "training persons."
        )
    return text


def fusion(run: Run) -> str:
    """How several kinds of measurement were compared; empty when they were not."""
    if not run.done("fusion"):
        return ""
    settings, table = run.findings["fusion"].settings, run.findings["fusion"].table
    joint = (
        "the latents of the joint model, " if (table["way"].eq("joint latents") & table["value"].notna()).any() else ""
    )
    barred = settings.get("barred") or {}
    kept = "; ".join(f"{name} did not predict {columns}" for name, columns in barred.items())
    return (
        f"Kinds of measurement ({', '.join(map(str, settings.get('modalities', ())))}) were compared in one nested "
        f"cross-validation over {settings.get('n_folds', 0)} folds of persons [varma]: each alone, the features of all side by "
        f"side, {joint}the average of what they say, and a weighted sum with weights of at least 0 that were learnt on "
        f"{settings.get('n_inner', 0)} inner folds [wolpert] [breiman]; the comparator is the single kind that did best on inner "
        "folds."
        f"{f' Because it defines them, {kept}.' if kept else ''} What a kind carries beyond the others was judged by conditional "
        f"permutation [strobl] ({settings.get('n_draws', 0):,} draws on held-out scans). Two ways were compared by swapping "
        f"their predictions within persons; intervals are bootstrap intervals over persons ({settings.get('n_bootstrap', 0):,})."
    )


def multimodal(run: Run) -> str:
    """How several kinds of measurement were modelled and told from one another; empty when they were not."""
    if not run.done("multimodal"):
        return ""
    settings = run.findings["multimodal"].settings
    n_folds = int(settings.get("n_folds", 1))
    experts = EXPERTS.get(run.settings.get("multimodal", {}).get("experts", "poe"), EXPERTS["poe"])
    models = f"{n_folds} cross-fitted models" if n_folds > 1 else "one model"
    wider = ", widened for folds that share training scans [nadeau]" if n_folds > 1 else ""
    return (
        f"A joint variational autoencoder of {', '.join(settings.get('kinds', {}))} has latents that they share, whose posterior "
        f"is {experts}, and latents of their own; it starts as a linear latent model, its networks learn what that misses, and "
        f"kinds were hidden at random in training. By {models} each kind was told from the others, and from fewer of them, in "
        "people the model had not seen. Beside it stand the mean of the training scans, ridge regression [ridge] and partial "
        "least squares [pls] on all voxels and columns, and of categories logistic regression; their settings, and which of them "
        "is compared, were chosen on left-out persons of the training and validation part. Intervals resample persons "
        f"({settings.get('n_bootstrap', 0):,} times); p-values flip the signs of their differences "
        f"({settings.get('n_flips', 0):,} times){wider}, with a false discovery rate over all comparisons [fdr]."
    )


def _listed(words: list[str]) -> str:
    """Words with commas, and an "and" before the last."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
