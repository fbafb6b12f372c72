"""Copies: whether an image drawn from a latent space is a training scan in disguise.

What a decoder draws is smoother than any scan, so it lies nearer to every training scan than a held-out scan does, without
being a copy of one. The rule here therefore asks no distance but a ratio: how near is the nearest training subject, beside
the next ten? And it takes what is normal from images of the same kind: the reconstruction of every training subject, against
the scans and the reconstructions of all other training subjects. A training scan is no copy of another, whatever the network
has learnt by heart, so the reference stays right where the network is not; reconstructions of unseen scans would not.

Where points lie evenly in D dimensions, the ratio is below x with probability proportional to x**D for small x, so the
logarithm of its inverse has an exponential tail whatever D is. The tail is fitted to the reference, and the p-value is that
of a new value of the same tail, exact for an exponential one.

References
----------
Meehan, Chaudhuri & Dasgupta 2020, arXiv:2004.05675 (samples against held-out scans, both against training scans).
Carlini et al. 2023, arXiv:2301.13188 (nearest distance relative to the next ones). Levina & Bickel 2004, Maximum
likelihood estimation of intrinsic dimension (the law of the ratio).
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.stats import binomtest, mannwhitneyu

from nilatent.analysis.latent_space import LatentSpace
from nilatent.errors import LatentsError
from nilatent.provenance import writing

Images = npt.NDArray[np.float32]

MIN_SUBJECTS = 12
"""Training subjects below which nothing is said: the tail of the reference would rest on a handful."""
N_NEIGHBOURS = 10
# The tail starts at this share of the reference; so many of its members say how fast it falls.
TAIL_SHARE, MIN_TAIL, MAX_TAIL = 0.25, 10, 50
# A ratio below this is a copy to the last bit of single precision.
SMALLEST_RATIO = 1e-6
MAX_SHARE = 0.1
"""Share of flagged samples that is put down to a threshold known from few subjects; calibrated in the tests."""
MAX_HELD, BLOCK = 1000, 256
"""Up to so many training scans all are held, beyond it blocks of so many; the reference is of at most as many subjects."""
FAMILY_WISE = 1e-4
"""p over all samples at which a single one is enough: the tail is extrapolated there, so the level is strict."""


@dataclass(frozen=True, eq=False)
class Gallery:
    """Training images, and how near their subjects lie to one another.

    Parameters
    ----------
    images : Callable
        Positions of training scans, which are sorted by subject, to (n, voxel) float32 about the mean training scan.
    starts : ndarray
        (subject,) position of the first scan of each subject.
    n : int
        How many scans.
    closeness : ndarray
        (reference subject,) ascending: minus the logarithm of the ratio of a training subject against all others.
    """

    images: Callable[[np.ndarray], Images]
    starts: np.ndarray
    n: int
    closeness: np.ndarray

    def blocks(self) -> Iterator[np.ndarray]:
        """Positions of all scans, a block after the other; as one where all are held."""
        size = self.n if self.n <= MAX_HELD else BLOCK
        return (np.arange(start, min(start + size, self.n)) for start in range(0, self.n, size))


@dataclass(frozen=True, eq=False)
class Judged:
    """Where images lie among training scans.

    Parameters
    ----------
    row : ndarray
        (n,) row, in the latent space, of the training scan that is nearest.
    distance : ndarray
        (n,) to its reconstruction: root mean square over voxels.
    ratio : ndarray
        (n,) of the distance to the nearest subject to the median of the next ten, in [0, 1]; 1 is no copy.
    p : ndarray
        (n,) share of images that are no copies with such a ratio or a smaller one.
    """

    row: np.ndarray
    distance: np.ndarray
    ratio: np.ndarray
    p: np.ndarray


@dataclass(frozen=True, eq=False)
class CopyRule:
    """What tells copies of training scans from other images.

    Parameters
    ----------
    rows : ndarray
        (training scan,) rows in the latent space, sorted by subject.
    centre : ndarray
        (voxel,) mean training scan.
    scans, reconstructions : Gallery
        Of the training scans, and of what the decoder makes of them.
    reference : ndarray
        Numbers of the training subjects from which it was learnt what is normal: all, or 1,000 spread over them.
    n_neighbours : int
        Subjects beyond the nearest to which it is compared.
    alpha : float
        Share of images that are no copies and are flagged nevertheless.
    """

    rows: np.ndarray
    centre: Images
    scans: Gallery
    reconstructions: Gallery
    reference: np.ndarray
    n_neighbours: int
    alpha: float

    def judge(self, images: Images) -> Judged:
        """Nearest training scan, ratio and p of images (n, voxel) inside the mask; over the two galleries Bonferroni.

        Raises
        ------
        LatentsError
            When the images have another number of voxels than the training scans, or are not finite.
        """
        if images.ndim != 2 or images.shape[1] != len(self.centre) or not np.isfinite(images).all():
            raise LatentsError(
                f"Images to be judged are finite and (n, {len(self.centre)}), and were {images.shape}. Hand in what the decoder "
                "draws inside the mask."
            )
        centred = np.asarray(images - self.centre, dtype=np.float32)
        found = [_near(centred, gallery, self.n_neighbours) for gallery in (self.scans, self.reconstructions)]
        p = np.stack(
            [
                tail_p(ratio, gallery.closeness)
                for (_, _, ratio), gallery in zip(found, (self.scans, self.reconstructions), strict=True)
            ]
        )
        chosen, every = p.argmin(axis=0), np.arange(len(images))
        position, _, ratio = (np.stack(parts)[chosen, every] for parts in zip(*found, strict=True))
        return Judged(self.rows[position], found[1][1], ratio, np.minimum(2 * p.min(axis=0), 1.0))

    def flag(self, images: Images) -> npt.NDArray[np.bool_]:
        """(n,) whether an image (n, voxel) is taken for a copy; of images that are none, `alpha` are."""
        return np.asarray(self.judge(images).p <= self.alpha)


@dataclass(frozen=True, eq=False)
class CopyCheck:
    """Samples and unseen scans of one latent space against its training scans.

    Parameters
    ----------
    samples, unseen : Judged
        The samples; the reconstructions of unseen scans, one per subject.
    training_ratio : ndarray
        (subject,) ratio of every training subject against the others: what is normal.
    training_distance : ndarray
        (subject,) distance between the reconstruction of a training subject and the nearest other one.
    flagged : ndarray
        (sample,) bool.
    unseen_flagged : ndarray
        (unseen,) bool.
    elsewhere : float
        Share of unseen scans whose reconstruction lies nearer to a training scan than to the scan itself.
    membership : float
        Area under the curve with which the distance to the nearest sample tells training from unseen scans; 0.5 is none.
    membership_p : float
        One-sided p of that area (Mann-Whitney).
    """

    samples: Judged
    unseen: Judged
    training_ratio: np.ndarray
    training_distance: np.ndarray
    flagged: npt.NDArray[np.bool_]
    unseen_flagged: npt.NDArray[np.bool_]
    elsewhere: float
    membership: float
    membership_p: float


def fit_copy_rule(
    space: LatentSpace,
    images_of: Callable[[np.ndarray], Images],
    *,
    told: pd.DataFrame | None = None,
    n_neighbours: int = N_NEIGHBOURS,
    alpha: float = 0.01,
) -> CopyRule:
    """Learn from training scans how near brains lie to one another that are no copies.

    Parameters
    ----------
    space : LatentSpace
        Its training scans are the gallery; its decoder draws their reconstructions.
    images_of : Callable
        Rows of the latent space to scans inside the mask, (n, voxel).
    told : DataFrame, optional
        One row per scan of the space, with what its decoder is told; needed where it is told something.
    n_neighbours : int
        Subjects beyond the nearest to which it is compared; fewer where there are fewer.
    alpha : float
        Share of images that are no copies and are flagged nevertheless, in (0, 1).

    Returns
    -------
    CopyRule
        Holds scans and reconstructions of all training scans in single precision, as far as they are 1,000; of more, the
        reconstructions are in a temporary file.

    Raises
    ------
    LatentsError
        When there are fewer than 12 training subjects, a scan is not finite, or the decoder is told something that is not
        handed in.

    Examples
    --------
    >>> rule = fit_copy_rule(space, lambda rows: scans[rows])  # doctest: +SKIP
    >>> rule.flag(scans[np.flatnonzero(space.training)[:2]])  # doctest: +SKIP
    array([ True,  True])
    """
    rows = np.flatnonzero(space.training)
    rows = rows[np.argsort(space.subjects[rows], kind="stable")]
    starts = np.unique(space.subjects[rows], return_index=True)[1]
    if len(starts) < MIN_SUBJECTS:
        raise LatentsError(
            f"{len(starts)} training subjects cannot say how near brains lie that are no copies; {MIN_SUBJECTS} are needed. "
            "Bring more scans."
        )
    if space.told and told is None:
        raise LatentsError(
            f"The decoder is told {', '.join(space.told)} of every scan. Hand in a table with one row per scan of the space."
        )
    originals, drawn = _read(space, images_of, rows, told)
    if len(rows) <= MAX_HELD:
        originals, drawn = (one(np.arange(len(rows))).__getitem__ for one in (originals, drawn))
    else:
        drawn = _drawn_once(drawn, len(rows))
    centre = _centre(originals, drawn, len(rows))
    n_next, own = min(n_neighbours, len(starts) - 2), np.arange(len(starts))
    if len(own) > MAX_HELD:
        own = own[np.linspace(0, len(own) - 1, MAX_HELD).round().astype(int)]
    galleries = []
    for images in (originals, drawn):
        blank = Gallery(partial(_about, images, centre), starts, len(rows), own)
        ratio = _near(_about(drawn, centre, starts[own]), blank, n_next, own=own)[2]
        galleries.append(replace(blank, closeness=_closeness(ratio)))
    return CopyRule(rows, centre, galleries[0], galleries[1], own, n_next, alpha)


def _read(
    space: LatentSpace, images_of: Callable[[np.ndarray], Images], rows: np.ndarray, told: pd.DataFrame | None
) -> tuple[Callable[[np.ndarray], Images], Callable[[np.ndarray], Images]]:
    """What gives scans, and what gives their reconstructions, by their positions among the rows."""

    def originals(some: np.ndarray) -> Images:
        return np.asarray(images_of(rows[some]), dtype=np.float32)

    def drawn(some: np.ndarray) -> Images:
        said = told.iloc[rows[some]] if space.told and told is not None else None
        return np.asarray(np.concatenate(list(space.draw_latents(space.values[rows[some]], said))), dtype=np.float32)

    return originals, drawn


def _drawn_once(drawn: Callable[[np.ndarray], Images], n: int) -> Callable[[np.ndarray], Images]:
    """The same, from a temporary file: decoders are slow, and whatever is judged is compared with all reconstructions."""
    place = Path(tempfile.gettempdir())
    with writing(place / "reconstructions"), tempfile.TemporaryFile(dir=place) as file:
        for start in range(0, n, BLOCK):
            images = drawn(np.arange(start, min(start + BLOCK, n)))
            file.write(images.tobytes())
        file.flush()
        # What is mapped can be read as long as it is held, though the file has no name any more.
        return np.memmap(file, dtype=np.float32, mode="r", shape=(n, images.shape[1])).__getitem__


def _centre(originals: Callable[[np.ndarray], Images], drawn: Callable[[np.ndarray], Images], n: int) -> Images:
    """(voxel,) mean scan, once scans and their reconstructions are seen to fit."""
    size = n if n <= MAX_HELD else BLOCK
    means = []
    for start in range(0, n, size):
        block = np.arange(start, min(start + size, n))
        scans = originals(block)
        made = drawn(block) if start == 0 else scans
        if scans.shape != made.shape or not np.isfinite(scans).all():
            raise LatentsError(
                f"{len(block)} training scans came as images {scans.shape}, and are drawn as {made.shape}; the shapes "
                "agree, and scans are finite. Hand in scans inside the mask of the decoder."
            )
        means.append(scans.mean(axis=0) * np.float32(len(block) / n))
    return means[0] if len(means) == 1 else np.asarray(np.sum(means, axis=0), dtype=np.float32)


def _about(images: Callable[[np.ndarray], Images], centre: Images, some: np.ndarray) -> Images:
    return np.asarray(images(some) - centre, dtype=np.float32)


def tail_p(ratio: np.ndarray, closeness: np.ndarray) -> np.ndarray:
    """How often images that are no copies have such ratios: by rank, and in the tail by what an exponential one lets expect.

    Parameters
    ----------
    ratio : ndarray
        (n,) in [0, 1].
    closeness : ndarray
        (subject,) ascending, of images that are no copies.

    Returns
    -------
    ndarray
        (n,) in (0, 1].
    """
    n, y = len(closeness), -np.log(np.clip(ratio, SMALLEST_RATIO, 1.0))
    n_tail = min(max(MIN_TAIL, min(int(n * TAIL_SHARE), MAX_TAIL)), n - 2)
    start = closeness[n - n_tail - 1]
    excess = closeness[n - n_tail :] - start
    # Two scans of one person under two names are copies of one another, and must not pass for what is normal.
    total = max(min(float(excess.sum()), 2 * n_tail * float(np.median(excess)) / np.log(2)), SMALLEST_RATIO)
    rank = (1 + n - np.searchsorted(closeness, y - 1e-12, side="left")) / (n + 1)
    beyond = (n_tail + 1) / (n + 1) * (1 + np.maximum(y - start, 0) / total) ** -n_tail
    return np.asarray(np.where(y > start, beyond, rank))


def check_copies(rule: CopyRule, samples: Images, unseen: Images, reconstructions: Images) -> CopyCheck:
    """Judge samples, and whether the decoder draws training scans even for scans that it has never seen.

    Parameters
    ----------
    rule : CopyRule
        Of the latent space.
    samples : ndarray
        (sample, voxel).
    unseen, reconstructions : ndarray
        (unseen, voxel) scans, one per subject, and what the decoder makes of them.
    """
    judged, again = rule.judge(samples), rule.judge(reconstructions)
    firsts = rule.reconstructions.starts[rule.reference]
    _, apart, _ = _near(
        rule.reconstructions.images(firsts), rule.reconstructions, rule.n_neighbours, own=rule.reference
    )
    drawn, true = reconstructions - rule.centre, unseen - rule.centre
    to_training = _to_all(drawn, rule.scans)[0].min(axis=1)
    to_itself = np.linalg.norm(drawn - true, axis=1)
    around = np.asarray(samples - rule.centre, dtype=np.float32)
    members = _distances(rule.scans.images(firsts), around).min(axis=1)
    others = _distances(true, around).min(axis=1)
    test = mannwhitneyu(members, others, alternative="less")
    return CopyCheck(
        samples=judged,
        unseen=again,
        training_ratio=np.exp(-rule.reconstructions.closeness),
        training_distance=apart,
        flagged=judged.p <= rule.alpha,
        unseen_flagged=again.p <= rule.alpha,
        elsewhere=float((to_training < to_itself).mean()),
        membership=float(1 - test.statistic / (len(members) * len(others))),
        membership_p=float(test.pvalue),
    )


def are_copies(judged: Sequence[Judged], flagged: Sequence[npt.NDArray[np.bool_]]) -> bool:
    """Whether images of one or several latent spaces are copies beyond what a rule learnt from few subjects flags anyway.

    So they are when significantly more than a tenth is flagged (binomial, p at most 0.01), or when the smallest
    p times their number is at most 0.0001.
    """
    p, marks = np.concatenate([one.p for one in judged]), np.concatenate(list(flagged))
    many = binomtest(int(marks.sum()), len(marks), MAX_SHARE, alternative="greater").pvalue
    return bool(many <= 0.01 or p.min() * len(p) <= FAMILY_WISE)


def _near(
    images: Images, gallery: Gallery, n_next: int, *, own: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Position of the nearest row of a gallery, root mean square distance to it, and ratio; `own` subjects do not count."""
    (apart, longest), starts = _to_all(images, gallery), gallery.starts
    if own is not None:
        subject = np.repeat(np.arange(len(starts)), np.diff(np.append(starts, gallery.n)))
        apart[subject == own[:, None]] = np.inf
    position = apart.argmin(axis=1)
    # Of the nearest alone the distance must be right to the last bit, and the formula for all is not where it is tiny.
    exact = np.linalg.norm(images - gallery.images(position), axis=1).astype(np.float64)
    ordered = np.sort(np.minimum.reduceat(apart, starts, axis=1), axis=1)
    usual = np.median(ordered[:, 1 : n_next + 1], axis=1)
    # A decoder that draws one image, whatever it is told, copies nobody.
    flat = usual <= SMALLEST_RATIO * longest
    ratio = np.where(flat, 1.0, np.minimum(exact / np.where(flat, 1.0, usual), 1.0))
    return position, exact / np.sqrt(images.shape[1]), ratio


def _to_all(images: Images, gallery: Gallery) -> tuple[np.ndarray, float]:
    """(n, training scan) Euclidean distances, and the greatest length of a training scan."""
    apart, longest = [], 0.0
    for block in gallery.blocks():
        others = gallery.images(block)
        apart.append(_distances(images, others))
        longest = max(longest, float(np.linalg.norm(others, axis=1).max()))
    return np.concatenate(apart, axis=1), longest


def _distances(images: Images, others: Images) -> np.ndarray:
    """(n, other) Euclidean distances."""
    lengths = [np.square(x, dtype=np.float64).sum(axis=1) for x in (images, others)]
    products = (images @ others.T).astype(np.float64)
    return np.asarray(np.sqrt(np.maximum(lengths[0][:, None] + lengths[1] - 2 * products, 0)))


def _closeness(ratio: np.ndarray) -> np.ndarray:
    return np.sort(-np.log(np.maximum(ratio, SMALLEST_RATIO)))
