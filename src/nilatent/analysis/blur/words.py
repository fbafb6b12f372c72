"""What the blur analysis found, in words."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

MIN_SHARE = 0.01
"""Share of what scans have beyond the mean, below which a band is not spoken of: preparation has left nothing in it."""
INVENTED = 0.05
"""Share of a scan's energy that is drawn and not there, above which the answer says so."""
MARGIN = 0.01
"""Difference in shares explained, below which two ways are called equal."""
DRAWN = ("samples of the density", "samples of the prior")


def answer(table: pd.DataFrame, data: xr.Dataset, settings: Mapping[str, Any]) -> str:
    """What is kept of the finest detail that scans hold, beside the yardsticks, and what takes the rest.

    Parameters
    ----------
    table, data, settings
        Of the finding.
    """
    number = int(np.argmax(data["scan_share"].values >= MIN_SHARE))
    band = str(data["band"].values[number])
    fine = table[table["band"] == band].set_index("approach")
    model, equal = _row(fine, "reconstruction"), _row(fine, "PCA of equal size")
    gain = model["explained"] - equal["explained"]
    if gain > MARGIN:
        first = ""
    else:
        first = f"The model draws {'no more' if gain > -MARGIN else 'less'} right detail than PCA of equal size. "
    of = f"{band} ({_percent(model['scan_share'])} of what scans have beyond the mean image)"
    return (
        f"{first}Of the detail {of}, reconstructions of unseen scans explain {_percent(model['explained'])} "
        f"({_percent(model['explained_low'])} to {_percent(model['explained_high'])}), PCA of equal size "
        f"{_percent(equal['explained'])}, the mean image 0 %; they hold {_percent(model['detail_kept'])} of its energy"
        f"{_samples(fine)}. {_reasons(fine, float(data['passed'].values[number]), settings)}"
    )


def _reasons(fine: pd.DataFrame, passed: float, settings: Mapping[str, Any]) -> str:
    model, equal, largest = (
        _row(fine, name) for name in ("reconstruction", "PCA of equal size", "PCA of all training scans")
    )
    most = max(float(largest["explained"]), float(equal["explained"]), float(model["explained"]), 0.0)
    better = model["explained"] > largest["explained"]
    who = "by neither the model nor PCA of any size" if better else "by no PCA, however large"
    parts = [
        f"{_percent(1 - most)} of it is explained {who}, from {settings['n_train']} training scans (noise of the scanner, and "
        "what is one person's own), and a decoder that draws the mean of what it expects leaves out what it cannot tell"
    ]
    missed = float(largest["explained"] - max(equal["explained"], model["explained"]))
    if missed > MARGIN:
        parts.append(f"{_percent(missed)} would come back with more latents")
    if settings["fwhm_mm"] > 0:
        parts.append(
            f"before, the smoothing by {settings['fwhm_mm']:g} mm had left {_percent(passed)} of the energy of such detail"
        )
    words = f"Why: {'; '.join(parts)}."
    invented = float(model["detail_kept"] * (1.0 - model["coherence"] ** 2))
    if invented > INVENTED:
        words += f" Detail worth {_percent(invented)} of the scans' energy is drawn and is not that of the scan."
    return words


def _samples(fine: pd.DataFrame) -> str:
    kept = [f"{name} {_percent(_row(fine, name)['detail_kept'])}" for name in DRAWN if name in fine.index]
    return f", {' and '.join(kept)}" if kept else ""


def _row(fine: pd.DataFrame, approach: str) -> dict[str, float]:
    return {str(name): float(value) for name, value in fine.loc[approach].items() if isinstance(value, float | int)}


def caveats(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """What must not be concluded."""
    said = [
        "Noise of the scanner is fine detail too: a perfect denoising and a blur cannot be told apart by energy.",
        "Energy is no quality: detail can be drawn that the scan does not have. Read it beside coherence and share explained.",
        "What cannot be told from these training scans may be told from more of them.",
        "The yardsticks are linear and are told of no column; a conditional model is told more than they are.",
    ]
    if settings["fwhm_mm"] > 0:
        said.append(
            "What the smoothing of the preparation lets through is computed for detail of equal strength at every wavelength; "
            "the averaging over voxels, which comes on top, is not in it."
        )
    if settings["n_values"] > settings["n_train"]:
        said.append(
            f"The latent holds {settings['n_values']} values; {settings['n_train']} training scans span no more than "
            f"{settings['n_train'] - 1} components, so PCA of equal size is PCA of all training scans. The density knows the few "
            "components of the latents that these scans carry, so its samples are smoother than reconstructions."
        )
    return tuple(said)


def _percent(share: float) -> str:
    """A share in percent, with a decimal where it is small."""
    per_cent = 100.0 * float(share)
    return f"{per_cent:.0f} %".replace("-", "−") if abs(per_cent) >= 10 else f"{per_cent:.1f} %".replace("-", "−")
