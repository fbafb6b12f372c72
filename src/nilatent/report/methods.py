"""Methods text from the settings of the run, with the works to cite; it says what was done and nothing else."""

from collections.abc import Callable, Mapping
from typing import Any

from nilatent.report.page import Reference, number_text
from nilatent.report.study import Run, count

REFERENCES: dict[str, Reference] = {
    "aal": Reference(
        "Tzourio-Mazoyer N, et al. Automated anatomical labeling of activations in SPM. NeuroImage 2002;15:273-289.",
        "10.1006/nimg.2001.0978",
    ),
    "aal2": Reference(
        "Rolls ET, Joliot M, Tzourio-Mazoyer N. Implementation of a new parcellation of the orbitofrontal cortex in the "
        "automated anatomical labeling atlas. NeuroImage 2015;122:1-5.",
        "10.1016/j.neuroimage.2015.07.075",
    ),
    "adamw": Reference(
        "Loshchilov I, Hutter F. Decoupled weight decay regularization. ICLR 2019.", "10.48550/arXiv.1711.05101"
    ),
    "bids": Reference(
        "Gorgolewski KJ, et al. The brain imaging data structure, a format for organizing and describing outputs of "
        "neuroimaging experiments. Scientific Data 2016;3:160044.",
        "10.1038/sdata.2016.44",
    ),
    "deepbet": Reference(
        "Fisch L, et al. deepbet: Fast brain extraction of T1-weighted MRI using convolutional neural networks. "
        "Computers in Biology and Medicine 2024;179:108845.",
        "10.1016/j.compbiomed.2024.108845",
    ),
    "fdr": Reference(
        "Benjamini Y, Hochberg Y. Controlling the false discovery rate. Journal of the Royal Statistical Society B "
        "1995;57:289-300.",
        "10.1111/j.2517-6161.1995.tb02031.x",
    ),
    "freedman": Reference(
        "Freedman D, Lane D. A nonstochastic interpretation of reported significance levels. Journal of Business & "
        "Economic Statistics 1983;1:292-298.",
        "10.1080/07350015.1983.10509354",
    ),
    "mattes": Reference(
        "Mattes D, et al. PET-CT image registration in the chest using free-form deformations. IEEE Transactions on "
        "Medical Imaging 2003;22:120-128.",
        "10.1109/TMI.2003.809072",
    ),
    "mni": Reference(
        "Fonov V, et al. Unbiased average age-appropriate atlases for pediatric studies. NeuroImage 2011;54:313-327.",
        "10.1016/j.neuroimage.2010.07.033",
    ),
    "modulation": Reference(
        "Good CD, et al. A voxel-based morphometric study of ageing in 465 normal adult human brains. NeuroImage "
        "2001;14:21-36.",
        "10.1006/nimg.2001.0786",
    ),
    "n4": Reference(
        "Tustison NJ, et al. N4ITK: improved N3 bias correction. IEEE Transactions on Medical Imaging 2010;29:1310-1320.",
        "10.1109/TMI.2010.2046908",
    ),
    "ashburner": Reference(
        "Ashburner J, Friston KJ. Unified segmentation. NeuroImage 2005;26:839-851.", "10.1016/j.neuroimage.2005.02.018"
    ),
    "syn": Reference(
        "Avants BB, et al. Symmetric diffeomorphic image registration with cross-correlation. Medical Image Analysis "
        "2008;12:26-41.",
        "10.1016/j.media.2007.06.004",
    ),
    "tohka": Reference(
        "Tohka J, Zijdenbos A, Evans A. Fast and robust parameter estimation for statistical partial volume models in "
        "brain MRI. NeuroImage 2004;23:84-97.",
        "10.1016/j.neuroimage.2004.05.007",
    ),
    "ssim": Reference(
        "Wang Z, et al. Image quality assessment: from error visibility to structural similarity. IEEE Transactions on "
        "Image Processing 2004;13:600-612.",
        "10.1109/TIP.2003.819861",
    ),
    "vae": Reference("Kingma DP, Welling M. Auto-encoding variational Bayes. ICLR 2014.", "10.48550/arXiv.1312.6114"),
    "winkler": Reference(
        "Winkler AM, et al. Permutation inference for the general linear model. NeuroImage 2014;92:381-397.",
        "10.1016/j.neuroimage.2014.01.060",
    ),
}


def paragraphs(run: Run) -> tuple[str, ...]:
    """The methods in words, one paragraph per stage that was run; citations are keys such as [n4]."""
    stages: tuple[Callable[[Run], str], ...] = (
        _scans,
        _preparation,
        _model,
        _reconstruction,
        _regions,
        _lrcp,
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
    kind = "A variational autoencoder [vae]" if model.get("name") == "vae" else "An autoencoder"
    text = f"{kind} with {model.get('n_latent')} latent dimensions was trained on the training scans"
    if model.get("anchor") == "pca":
        text += (
            ", anchored to their principal components: the decoder is the mean image plus the components plus a "
            "convolutional network that starts at zero, and likewise the encoder"
        )
    text += _optimiser(training)
    if not run.best_epoch and model.get("anchor") == "pca":
        text += " The epoch kept was 0: the model is the principal component analysis, the network added nothing."
    elif run.best_epoch is not None:
        text += (
            f" The weights of epoch {run.best_epoch}, which had the lowest error on the validation scans, were kept."
        )
    return text


def _optimiser(training: Mapping[str, Any]) -> str:
    rate = training.get("learning_rate") or training.get("lr")
    settings = [f"learning rate {number_text(rate)}"] if rate else []
    settings += [f"weight decay {number_text(training['weight_decay'])}"] if training.get("weight_decay") else []
    settings += [f"batches of {training['batch_size']}"] if training.get("batch_size") else []
    return f" (AdamW [adamw]{', ' if settings else ''}{', '.join(settings)})."


def _reconstruction(run: Run) -> str:
    if not run.done("reconstruction"):
        return ""
    mask = "brain" if run.settings.get("recipe", {}).get("target") == "t1w" else "grey-matter"
    return (
        f"Reconstruction was judged inside the {mask} mask on the test scans only, beside the mean image and a "
        "principal component analysis with as many dimensions, both fitted on the training scans. FVU is the fraction "
        "of variance left unexplained, the mean squared error divided by that of the mean image. Structural similarity "
        "is SSIM in three dimensions [ssim]. Intervals are 95 % bootstrap intervals."
    )


def _regions(run: Run) -> str:
    atlas = str(run.settings.get("atlas", {}).get("spec", ""))
    if not atlas or not (run.folder / "regions.tsv").is_file():
        return ""
    named = "AAL2 [aal2] [aal]" if atlas == "aal2" else f"the label image {atlas.replace(chr(92), '/').split('/')[-1]}"
    return (
        f"Regional grey matter is the mean over the regions of {named}, put on the grid by the fraction of each voxel "
        "that a region covers; regions under eight voxels were dropped and are listed."
    )


def _lrcp(run: Run) -> str:
    if not run.done("lrcp"):
        return ""
    settings = run.findings["lrcp"].settings
    draws = next((settings[key] for key in ("n_permutations", "n_permutation") if key in settings), None)
    how = f" with {draws:,} permutations" if isinstance(draws, int) else ""
    # What was really removed: the covariates asked for, total grey matter and head size where adjusted for, and the site.
    confounds = [*(settings.get("confounds") or ()), *([settings["site"]] if settings.get("site") else [])]
    removed = f" after removing {', '.join(confounds)}" if confounds else ""
    blocks = f", permuted within the levels of {settings['site']}" if settings.get("site") else ""
    return (
        f"Latent-regional correlation profiling (LRCP as implemented here) joined two tests{how} [freedman] [winkler]"
        f"{removed}{blocks}: whether the latents are associated with a region's grey matter, and whether what they carry of the "
        "region separates the groups. Both hold family-wise over regions by the maximum statistic; a region is positive "
        "when both are significant. False discovery rates are given beside them [fdr]."
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
