"""A line between two scans in the latent space beside cross-fades of their voxels: whether the latent space adds anything."""

import numpy as np
import pandas as pd

from nilatent.analysis.latent_space import LatentSpace
from nilatent.volumes import Volumes

BATCH = 64


def between(
    room: LatentSpace, volumes: Volumes, images: np.ndarray, ends: tuple[int, int], share: np.ndarray
) -> pd.DataFrame:
    """Each step beside cross-fades of the two scans and of their reconstructions; distances are root mean squares."""
    a, b = volumes.masked(volumes.rows([str(room.scans[end]) for end in ends])).astype(np.float64)
    fades = {
        "scans": (1 - share)[:, None] * a + share[:, None] * b,
        "reconstructions": (1 - share)[:, None] * images[0] + share[:, None] * images[-1],
    }
    table = pd.DataFrame({"share": share})
    for name, fade in fades.items():
        table[f"from_fade_of_{name}"] = np.sqrt(np.square(images - fade).mean(axis=1))
    others = np.flatnonzero(room.unseen & ~np.isin(room.subjects, room.subjects[list(ends)]))
    rows = volumes.rows(list(room.scans[others]))
    for name, shown in {"drawn": images, **{f"fade_of_{name}": fade for name, fade in fades.items()}}.items():
        table[f"nearest_unseen_{name}"] = _to_nearest(shown, volumes, rows)
    return table


def _to_nearest(images: np.ndarray, volumes: Volumes, rows: np.ndarray) -> np.ndarray:
    """(image,) root mean square distance to the nearest of some scans; NaN without any."""
    nearest = np.full(len(images), np.inf)
    for start in range(0, len(rows), BATCH):
        for scan in volumes.masked(rows[start : start + BATCH]):
            nearest = np.minimum(nearest, np.square(images - scan).mean(axis=1))
    return np.where(np.isfinite(nearest), np.sqrt(nearest), np.nan)


def between_notes(room: LatentSpace, table: pd.DataFrame, norms: np.ndarray) -> tuple[str, ...]:
    """What the table of :func:`between`, and the lengths (step,) of the latents, say in words."""
    place = int((table["share"] - 0.5).abs().to_numpy().argmin())
    if not 0 < place < len(table) - 1:
        return ()
    middle = table.iloc[place]
    apart = middle["from_fade_of_reconstructions"] / max(float(middle["from_fade_of_scans"]), 1e-300)
    words = [
        f"At {100 * middle['share']:.0f} % of the way the drawing is {middle['from_fade_of_scans']:.3g} (root mean square) from "
        f"the cross-fade of the two scans and {middle['from_fade_of_reconstructions']:.3g} from that of their reconstructions "
        f"({100 * apart:.0f} % of the former): what is left of the latter is all that the latent space adds to a cross-fade."
    ]
    if np.isfinite(middle["nearest_unseen_drawn"]):
        words.append(
            f"To the nearest unseen scan of someone else it is {middle['nearest_unseen_drawn']:.3g} from the drawing, "
            f"{middle['nearest_unseen_fade_of_reconstructions']:.3g} from the cross-fade of the reconstructions and "
            f"{middle['nearest_unseen_fade_of_scans']:.3g} from that of the scans, which is sharper and so farther from everyone."
        )
    if room.has_prior:
        words.append(
            f"The line goes through the middle of the prior: the latents are {norms[place] / norms[[0, -1]].mean():.2f} times as "
            "long there as at its ends, so that brains on the way are nearer to the mean brain than the two are."
        )
    return tuple(words)
