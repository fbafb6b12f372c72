"""How the scans of a model were made, compared with how other scans were: what differs, and whether it changes values."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from nilatent.map_names import read_map_name
from nilatent.provenance import plain
from nilatent.training.stored import ModelError

# Which recipe each scan took; "auto" and the recipe it chose are the same thing.
CHOSEN = "recipe.name"
# Settings that maps which existed before are not touched by.
OF_HEADS = ("recipe.modulation", "recipe.normalisation")
# Another version of an engine changes the last digits, not what a map is.
SMALL = "engines."


def how_made(fingerprint: Mapping[str, Any], recipes: Iterable[str], sources: Iterable[str]) -> dict[str, Any]:
    """How the scans of a cohort were made, in plain values without a path or a name.

    Parameters
    ----------
    fingerprint : Mapping
        Settings and versions, from :func:`nilatent.preprocess.recipe.fingerprint`.
    recipes : Iterable[str]
        Recipe that each scan took, ``"t1"`` or ``"gm"``: the column ``recipe`` of the prepared cohort.
    sources : Iterable[str]
        Path of the image that each was made from, in the same order: of maps that existed, the name says who made them.

    Returns
    -------
    dict
        The fingerprint, the recipes that were ``made``, and the kinds of ``maps`` that were given.
    """
    taken = list(recipes)
    given = [Path(source).name for recipe, source in zip(taken, sources, strict=True) if recipe == "gm"]
    told: dict[str, Any] = plain(fingerprint) | {"made": sorted(set(taken))}
    return told | ({"maps": sorted({_kind(name) for name in given})} if given else {})


def _kind(name: str) -> str:
    found = read_map_name(name)
    if found is None:
        return "maps of a name that says nothing"
    smooth = "by an unstated width" if found.fwhm_mm is None else f"{found.fwhm_mm:g} mm"
    return f"{found.tissue} of {found.tool}, modulation {found.modulation}, smoothed {smooth}"


def check_preparation(
    trained: Mapping[str, Any] | None, given: Mapping[str, Any] | None, *, allow_other: bool = False
) -> str:
    """Refuse scans that were made otherwise than those of the model.

    Parameters
    ----------
    trained, given : Mapping or None
        Plain values (see :func:`nilatent.provenance.plain`) that say how the model's scans and these were made: settings
        of the ``recipe``, its ``version``, the versions of its ``engines``, which recipes were ``made``, and the ``maps``
        that were given. None where it is not known.
    allow_other : bool
        Let scans pass that were made otherwise.

    Returns
    -------
    str
        A caveat in words; empty when both were made alike.

    Raises
    ------
    ModelError
        When a difference changes the values of the scans.
    """
    if trained is None or given is None:
        whose = (
            "The model does not say how its scans were" if trained is None else "It is not known how these scans were"
        )
        return f"{whose} prepared, so it was not checked that model and scans fit together; their latents may be off."
    large, small = differences(trained, given)
    if large and not allow_other:
        raise ModelError(
            f"These scans were made otherwise than those the model was trained on: {'; '.join(large)}. Their latents would be "
            "off in a way that looks like anatomy. Prepare them as the model's were, train a model on them, or pass "
            "allow_other_preparation=True and read the latents with care."
        )
    words = []
    if large:
        words.append(f"These scans were made otherwise than those the model was trained on: {'; '.join(large)}.")
    if small:
        words.append(f"Smaller differences of the preparation: {'; '.join(small)}.")
    return " ".join(words)


def differences(trained: Mapping[str, Any], given: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """List what differs between two preparations.

    Parameters
    ----------
    trained, given : Mapping
        As in :func:`check_preparation`.

    Returns
    -------
    large, small : list[str]
        In words: what changes values, and what hardly does (versions of engines) or is told by one side only.
    """
    before, now = _flat(plain(trained)), _flat(plain(given))
    made = before.get("made"), now.get("made")
    alike = made[0] is not None and made[0] == made[1]
    large: list[str] = []
    small: list[str] = []
    for name in sorted(before | now):
        if before.get(name) == now.get(name) or (alike and _idle(name, made[0])):
            continue
        told = f"{name} {_shown(before, name)} in training, {_shown(now, name)} here"
        (small if name.startswith(SMALL) or name not in before or name not in now else large).append(told)
    return large, small


def _idle(name: str, made: Any) -> bool:
    """Whether nothing depends on a value, given which recipes the scans of both sides took."""
    if name == CHOSEN or (name in OF_HEADS and "t1" not in made):
        return True
    return name.startswith(SMALL) and name.removeprefix(SMALL).split(".")[0] not in made


def _flat(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{before}{name}.") if isinstance(value, Mapping) else {f"{before}{name}": value}
    return flat


def _shown(values: Mapping[str, Any], name: str) -> str:
    value = values.get(name, "not known")
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
