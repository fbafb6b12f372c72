"""The paragraph on a search of settings, from what it left; citations are keys such as [optuna]."""

from nilatent.finding import Finding
from nilatent.report.page import Reference

REFERENCES = {
    "optuna": Reference(
        "Akiba T, et al. Optuna: a next-generation hyperparameter optimization framework. KDD 2019:2623-2631.",
        "10.1145/3292500.3330701",
    ),
    "parzen": Reference(
        "Watanabe S. Tree-structured Parzen estimator: understanding its algorithm components and their roles for better "
        "empirical performance. arXiv 2023.",
        "10.48550/arXiv.2304.11127",
    ),
}
OBJECTIVES = {
    "validation_elbo": "the evidence lower bound at beta 1",
    "validation_fvu": "the fraction of variance left unexplained",
    "active_share": "the share of active latents",
    "n_values": "the number of values in the latent",
}
NAMES = {"width": "channels", "kl_warmup": "KL warm-up"}


def paragraph(found: Finding) -> str:
    """What was searched, how, and on which scans.

    Parameters
    ----------
    found
        Of `search`, and run.
    """
    settings, table = found.settings, found.table
    names = ", ".join(NAMES.get(name, name.replace("_", " ")) for name in settings["searched"])
    objective = " and ".join(OBJECTIVES[name] for name in settings["objective"])
    n_finished = int((table["state"] == "finished").sum())
    return (
        f"Settings of the model ({names}) were searched with optuna [optuna] and a tree-structured Parzen estimator [parzen] for "
        f"{objective} of the validation scans: {len(table)} trials, the first with the settings as given, of which "
        f"{n_finished} finished. A trial was stopped when its first figure was worse than the median of the finished trials at "
        "the same epoch, and one of these was no worse in any other. Test scans took no part. The settings given, and those "
        f"chosen where they differ, were trained with {settings['search']['n_seeds']} further seeds."
    )
