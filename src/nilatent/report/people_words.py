"""Sentences of the methods about what is said of single people: prediction, harmonisation and normative deviation."""

from nilatent.report.study import Run

HEADS = {
    "linear": "L2-penalised logistic and ridge regression",
    "svm": "linear support vector machines",
    "trees": "gradient-boosted trees",
    "network": "a small three-dimensional residual network with class weights and focal loss [focal]",
}


def prediction(run: Run) -> str:
    """How targets were predicted; empty when they were not."""
    if not run.done("prediction"):
        return ""
    settings = run.findings["prediction"].settings
    heads = " and ".join(HEADS[name] for name in settings.get("heads", ("linear",)))
    ordered = " (ordered levels by cumulative binary models [frank])" if settings.get("ordinal") else ""
    times = (
        " Where times to an event are known, Harrell's C of the held-out scores is given."
        if settings.get("times")
        else ""
    )
    models = int(run.settings.get("folds", 0) or 0)
    whose = (
        "each person's latents come from the cross-fitted model that has not seen that person"
        if models
        else "only persons whom the model has not seen took part"
    )
    sited = (
        " Site effects were removed by ComBat fitted within training parts [combat]."
        if settings.get("harmonise")
        else ""
    )
    shuffled = f", shuffled within {settings['site']}" if settings.get("site") else ""
    return (
        f"Targets were predicted by {heads}{ordered} in nested cross-validation over {settings.get('n_folds', 0)} folds of "
        f"persons [varma]; {whose}. Scaling, the penalty ({settings.get('n_inner', 0)} inner folds) and the decision threshold "
        "were learnt in the training part of each fold, and where it says so head size and total grey matter were regressed out "
        f"there.{sited} The same was done from regional means, voxel components of equal size, covariates, and head size with "
        f"tissue volumes.{times} Intervals are bootstrap intervals over persons; p-values repeat the whole procedure under at "
        f"most {settings.get('n_permutations', 0):,} shuffles of the labels{shuffled}, with early stopping [besag]; two feature "
        "sets are compared by swapping their predictions within persons, allowing for folds that share training scans [nadeau]."
    )


def harmonise(run: Run) -> str:
    """How sites were harmonised; empty when they were not."""
    if not run.done("harmonise"):
        return ""
    settings = run.findings["harmonise"].settings
    kept = settings.get("covariates") or ()
    keeping = f", keeping the effects of {', '.join(kept)}" if kept else ""
    return (
        f"Site effects of {settings.get('site', '')} were estimated by ComBat [combat] [neurocombat] on the training part of "
        f"each fold{keeping}, and removed from the held-out scans; how well the site can be told was judged before and after, by "
        "predictors that were fitted on training scans alone."
    )


def normative(run: Run) -> str:
    """How deviations were measured; empty when they were not."""
    if not run.done("normative"):
        return ""
    settings = run.findings["normative"].settings
    covariates = ", ".join([*(settings.get("covariates") or ()), *([settings["site"]] if settings.get("site") else [])])
    given = f" given {covariates}" if covariates else ""
    table = run.findings["normative"].table
    modelled = ["regional grey matter"]
    modelled += ["its error of reconstruction"] if table["error_region_z"].notna().any() else []
    distance = table["mahalanobis"].notna().any()
    modelled += ["the latents"] if distance else []
    together = (
        " Latents together are judged by a Mahalanobis distance with a shrunk covariance [ledoit]." if distance else ""
    )
    return (
        f"Deviation of each scan was measured against {settings.get('reference', 'the reference')} "
        f"({settings.get('n_reference', 0)} scans) [normative]: {' and '.join(modelled)} "
        f"were modelled{given} by regressions that had not seen the person, and residuals were divided by the standard deviation "
        f"of a prediction, so that those of new reference subjects are standard normal.{together}"
    )
