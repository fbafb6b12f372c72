"""Model card: what a model is, what it was made from, how well it does and what must not be concluded from it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nilatent.models import ModelConfig
from nilatent.provenance import versions
from nilatent.training.conditions import Conditions
from nilatent.volumes import Grid

KINDS = {
    "autoencoder": "an autoencoder with a latent vector",
    "vae": "a variational autoencoder with a latent vector",
    "spatial_vae": "a variational autoencoder with a latent grid",
}
STARTS = {
    "pca": "the principal components of its training scans, to which a network adds what they miss",
    "local": "the mean image and the principal components of every block of voxels, to which a network adds what they miss",
    "mean": "the mean image of its training scans, to which a network adds the rest",
    "none": "a network alone",
}
MARKS = re.compile(r"([\\`*_\[\]<>#!|~&])")
USE = """\
Latents of structural brain scans that were prepared as described above, for research on groups: their reconstruction,
their relation to regions, covariates and diagnoses, on people whom the model has not seen."""
LIMITS = """\
- Nothing about a single person: it is no diagnostic device, and it was not assessed as one.
- Nothing causal: a latent that follows a diagnosis may follow age, scanner, motion or preparation.
- Nothing about scans prepared otherwise, of other ages or scanners than those it was trained on, without a check of its
  reconstructions there.
- No accuracy from people it has seen: `nilatent encode` marks them (`subject_in_training`); judge on the others.
- A latent has no meaning of its own: another seed or another sample of people gives other latents."""
PRIVACY = """\
- The weights were computed from the training scans. The mean image, the principal components and the network may let
  through something of single scans, the more so the fewer there were.
- `subjects.tsv` holds salted hashes of the names and of the values of the scans, so that scans the model has seen are found
  again. Names cannot be read off them, but whoever guesses a name or holds a scan can test whether it was among them:
  short names such as sub-01 are quickly tried. Whether somebody took part is therefore not a secret this folder keeps.
- `conditions.json` holds the names, levels, means and SDs of the columns the model is told, if any."""


@dataclass(frozen=True, eq=False)
class Facts:
    """What a model card is written from.

    Parameters
    ----------
    model : ModelConfig
        Which model.
    training : Mapping
        The settings it was trained with.
    conditions : Conditions
        What it is told.
    grid : Grid
        Of its scans.
    n_voxels : int
        Inside the mask.
    n_learned, n_fixed : int
        Numbers that the training moved, and those that it took from the training scans before.
    preparation : Mapping, optional
        How the scans were made.
    result : Mapping
        As in ``result.json``; its ``trained_on`` is that of :func:`nilatent.training.origin.summary`.
    """

    model: ModelConfig
    training: Mapping[str, Any]
    conditions: Conditions
    grid: Grid
    n_voxels: int
    n_learned: int
    n_fixed: int
    preparation: Mapping[str, Any] | None
    result: Mapping[str, Any]


def model_card(facts: Facts) -> str:
    """Write the card as Markdown, without names of people, paths or dates.

    Parameters
    ----------
    facts : Facts
        Everything it says.

    Returns
    -------
    str
        Whole text of ``MODEL_CARD.md``. Words that come from settings or columns are escaped.
    """
    sections = {
        "What it is": _what(facts),
        "What it was trained on": _trained_on(facts),
        "How the scans were prepared": _prepared(facts),
        "How well it does": _figures(facts.result),
        "Intended use": USE,
        "What must not be concluded": LIMITS,
        "Privacy": PRIVACY,
        "Licence": "The licence of these weights is not specified: whoever shares them says so here, as far as the consent and "
        "the terms of use of the training data allow.",
        "Software": "\n".join(f"- {escaped(name)} {escaped(version)}" for name, version in versions().items()),
    }
    body = "\n".join(f"## {title}\n\n{text}\n" for title, text in sections.items())
    return f"# Model card: {escaped(facts.model.name)}\n\n{body}"


def escaped(value: object) -> str:
    """A value as one line of plain text in Markdown: no marks, tags or line breaks of its own."""
    return MARKS.sub(r"\\\1", " ".join(str(value).split()))


def _what(facts: Facts) -> str:
    model, shape = facts.model, " x ".join(map(str, facts.grid.shape))
    size = f"{model.n_values} values"
    if model.name == "spatial_vae":
        size = (
            f"{model.latent_channels} maps of {' x '.join([str(model.latent_grid)] * 3)} cells, {model.n_values} values"
        )
    lines = [
        f"This is {KINDS[model.name]}. It starts from {_start(facts)}.",
        "",
        f"- Latent: {size} per scan",
        f"- Learned weights: {facts.n_learned:,}; numbers taken from the training scans: {facts.n_fixed:,}",
        f"- Scans: {shape} voxels of {facts.grid.spacing_mm:g} mm, {facts.n_voxels:,} of them inside the mask",
        f"- Told of every scan: {_list([column.name for column in facts.conditions.columns]) or 'nothing'}",
        f"- Pulled to a score: {escaped(model.align) or 'none'}",
        f"- Seed: {escaped(facts.training.get('seed', 'not known'))}",
    ]
    if model.align:
        lines += [
            "",
            "Its first latent was trained with the labels of that score, and says nothing new of it on training scans.",
        ]
    return "\n".join(lines)


def _start(facts: Facts) -> str:
    other = facts.training.get("start_from")
    if other:
        return (
            f"another model (content hash {escaped(other)}), whose training scans gave its anchor and moved its weights before; "
            "they are not counted below"
        )
    return STARTS[facts.model.start]


def _trained_on(facts: Facts) -> str:
    told = facts.result.get("trained_on")
    if not told:
        return "Not stated by whoever trained it."
    words = {"train": "moved the weights", "validation": "chose the epoch"}
    return "\n".join(f"- {_people(told[part])} {what}" for part, what in words.items())


def _people(part: Mapping[str, Any]) -> str:
    counted = [(part["n_scans"], "scan"), (part["n_subjects"], "subject"), (part["n_datasets"], "data set")]
    scans, subjects, datasets = (f"{count} {word}{'' if count == 1 else 's'}" for count, word in counted)
    told = [f"{scans} of {subjects} from {datasets}"]
    if "age_mean" in part:
        told.append(f"age {part['age_mean']:g} years (SD {part['age_sd']:g})")
    if "sex" in part:
        told.append("sex " + ", ".join(f"{escaped(value)} {count}" for value, count in part["sex"].items()))
    return "; ".join(told) + ":"


def _prepared(facts: Facts) -> str:
    if facts.preparation is None:
        return "Not stated by whoever trained it; scans cannot be checked against it."
    rows = _rows(facts.preparation)
    return "\n".join(["| Setting | Value |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


def _rows(values: Mapping[str, Any], before: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for name, value in values.items():
        here = f"{before}{name}"
        if isinstance(value, Mapping):
            rows += _rows(value, f"{here} ")
        else:
            rows.append((escaped(here), _list(value) if isinstance(value, list | tuple) else escaped(value)))
    return rows


def _figures(result: Mapping[str, Any]) -> str:
    rows = [
        ("This model", result["validation_fvu"]),
        ("PCA of equal size, or the largest that the training scans allow", result["pca_fvu"]),
        ("Mean image", 1.0),
    ]
    lines = ["| | Fraction of variance unexplained, validation scans |", "|---|---|"]
    lines += [f"| {name} | {value:.4f} |" for name, value in rows]
    lines += [
        "",
        "The validation scans chose the epoch, so these figures flatter a little; judge on scans it has not seen.",
        "",
    ]
    lines += [escaped(result["summary"]), ""] if "summary" in result else []
    lines += [
        f"- {escaped(verdict['failure'])}: {escaped(verdict['state'])}. {escaped(verdict['sentence'])}"
        for verdict in result.get("verdicts", ())
    ]
    return "\n".join(lines)


def _list(values: Any) -> str:
    return ", ".join(escaped(value) for value in values)
