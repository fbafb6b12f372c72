"""Sentences of the methods about what was drawn from the latent space."""

from nilatent.report.study import Run


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
