"""Where a joint model starts: principal components of each modality, and what of them the modalities share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from nilatent.errors import SettingError
from nilatent.models.multimodal import ImagePart, LinearPart, MultimodalVae, TablePart, read_linearly
from nilatent.training.conditions import Column
from nilatent.training.multimodal.config import MultimodalConfig
from nilatent.training.multimodal.data import Joined
from nilatent.training.multimodal.sharing import Array, Choice, Measured, Sharing, choose_sharing, fit_sharing
from nilatent.training.validation import Rows
from nilatent.volumes import Volumes, VoxelPca, voxel_pca

SHARED_TRIED = (1, 2, 4, 8, 16)
# Of a column's variance, at least this much is noise: no questionnaire is more reliable.
TABLE_NOISE = 0.05
N_AXIS_STEPS = 30
MAX_AUTO_LATENT = 16
BLOCK_BYTES = 4 * 2**20


@dataclass(frozen=True, eq=False)
class Start:
    """A joint model before training.

    Parameters
    ----------
    module : MultimodalVae
        Networks at zero.
    choice : Choice
        How many latents are shared, and what that is worth.
    """

    module: MultimodalVae
    choice: Choice


def start(
    joined: Joined, columns: Mapping[str, Sequence[Column]], rows: Rows, subject: np.ndarray, config: MultimodalConfig
) -> Start:
    """Fit the linear model to training scans and build the joint model on it.

    Parameters
    ----------
    joined : Joined
        The modalities.
    columns : Mapping
        Of each table.
    rows : ndarray
        Training scans; no other is touched.
    subject : ndarray
        (row,) whose scans they are.
    config : MultimodalConfig
        Sizes and seed.

    Raises
    ------
    SettingError
        When a modality has too few training scans for the latents, or weights name a modality that is not there.
    """
    strangers = sorted(set(config.weights) - set(joined.names))
    if strangers:
        raise SettingError(f"multimodal.weights names '{strangers[0]}'; the modalities are {', '.join(joined.names)}.")
    pcas = {name: _pca(joined, name, rows, config) for name in joined.volumes}
    measured = [_measured(joined, name, rows, n_components=config.n_latent) for name in joined.names]
    widths = [one.n_components or one.values.shape[1] for one in measured]
    blocks = [slice(sum(widths[:place]), sum(widths[: place + 1])) for place in range(len(widths))]
    # No more than two modalities can share: the widest but one has the say.
    most = sorted(widths)[-2]
    tried = [config.n_shared] if config.n_shared else [n for n in SHARED_TRIED if n <= most]
    choice = choose_sharing(measured, subject=subject, candidates=tried, seed=config.seed)
    values, scale = _values(joined, pcas, rows)
    sharing = fit_sharing(
        values,
        blocks,
        scale,
        tables=[name in columns for name in joined.names],
        n_shared=choice.n_shared,
        ridge=choice.ridge,
    )
    linear = {
        name: _image_part(pcas[name], sharing, block)
        if name in pcas
        else _table_part(sharing, block, scale[block], n_private=config.n_table_private)
        for name, block in zip(joined.names, blocks, strict=True)
    }
    linear = _turned(linear)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        parts: dict[str, ImagePart | TablePart] = {}
        for name, part in linear.items():
            if name in pcas:
                mask = torch.from_numpy(np.asarray(joined.volumes[name][0].mask))
                parts[name] = ImagePart(mask=mask, channels=config.channels, start=part)
            else:
                parts[name] = table_part(columns[name], part)
        return Start(MultimodalVae(parts, kind=config.experts), choice)


def table_part(columns: Sequence[Column], linear: LinearPart) -> TablePart:
    """The part of a table with these columns."""
    shares = [share if column.levels else 0.0 for column in columns for share in column.mean]
    return TablePart(
        levels=tuple(max(len(column.levels), 1) for column in columns),
        shares=torch.tensor(shares, dtype=torch.float32),
        start=linear,
    )


def sized(config: MultimodalConfig, counts: Sequence[int]) -> MultimodalConfig:
    """Settings with a number of latents that the training scans can carry, where none is set.

    Parameters
    ----------
    config : MultimodalConfig
        With ``n_latent = 0``, half as many latents as the training scans of the modality of volumes that has the fewest, at
        least 1, at least `n_shared` and at most 16; otherwise as set.
    counts : Sequence[int]
        Training scans of each modality of volumes.

    Examples
    --------
    >>> sized(MultimodalConfig(), [40, 19]).n_latent
    9
    """
    if config.n_latent:
        return config
    return replace(config, n_latent=max(1, config.n_shared, min(MAX_AUTO_LATENT, min(counts) // 2)))


def check_size(name: str, n_train: int, config: MultimodalConfig) -> None:
    """Refuse more latents than the training scans of a modality of volumes can give.

    Raises
    ------
    SettingError
        With the number of scans.
    """
    if max(config.n_latent, 1) >= n_train:
        raise SettingError(
            f"multimodal.n_latent is {config.n_latent or 'at least 1'} and must be smaller than the number of training scans of "
            f"'{name}', {n_train}. Lower it, or bring more scans."
        )


def _pca(joined: Joined, name: str, rows: Rows, config: MultimodalConfig) -> VoxelPca:
    volumes, places = joined.volumes[name]
    own = places[rows][places[rows] >= 0]
    check_size(name, len(own), config)
    return voxel_pca(volumes, own, config.n_latent, seed=config.seed)


def _values(joined: Joined, pcas: Mapping[str, VoxelPca], rows: Rows) -> tuple[Array, Array]:
    """Whitened scores and standard cells of the training scans side by side, NaN where missing, and the SD of each."""
    found, scales = [], []
    for name in joined.names:
        if name in pcas:
            volumes, places = joined.volumes[name]
            there, sd = places[rows] >= 0, pcas[name].sd.astype(np.float64)
            own = np.full((len(rows), len(sd)), np.nan)
            own[there] = pcas[name].scores(volumes.masked(places[rows][there])) / sd
        else:
            cells = joined.cells[name][rows].astype(np.float64)
            own = np.where(cells[:, 1] > 0, cells[:, 0], np.nan)
            # An indicator of a category is no number of unit variance.
            sd = np.sqrt(np.nanmean(np.square(own), axis=0))
            own = own / sd
        found.append(own)
        scales.append(sd)
    return np.concatenate(found, axis=1), np.concatenate(scales)


def _measured(joined: Joined, name: str, rows: Rows, *, n_components: int) -> Measured:
    if name in joined.cells:
        cells = joined.cells[name][rows].astype(np.float64)
        return Measured(np.where(cells[:, 1] > 0, cells[:, 0], np.nan), 0)
    volumes, places = joined.volumes[name]
    there = np.flatnonzero(places[rows] >= 0)
    found = _coordinates(volumes, places[rows][there])
    values = np.full((len(rows), found.shape[1]), np.nan)
    values[there] = found
    return Measured(values, n_components)


def _coordinates(volumes: Volumes, rows: Rows) -> Array:
    """Coordinates (row, row) of scans, as far apart as their voxels, without all voxels ever being in memory."""
    gram = np.zeros((len(rows), len(rows)))
    size = max(BLOCK_BYTES // (8 * len(rows)), 1)
    for first in range(0, int(volumes.mask.sum()), size):
        x = volumes.block(rows, first, first + size).astype(np.float64)
        x -= x.mean(axis=0)
        gram += x @ x.T
    size_of, axes = np.linalg.eigh(gram)
    return np.asarray((axes * np.sqrt(np.maximum(size_of, 0.0)))[:, ::-1])


def _image_part(pca: VoxelPca, sharing: Sharing, block: slice) -> LinearPart:
    """Loadings of the voxels: their marginal distribution is that of probabilistic PCA."""
    sd, components = pca.sd.astype(np.float64), pca.components.astype(np.float64)
    n_voxels = components.shape[1]
    noise = max(pca.residual_variance * n_voxels / (n_voxels - len(sd)), 1e-10 * float(np.square(sd).sum()) / n_voxels)
    # What is neither shared nor noise is private; along the axes of this covariance its latents are told apart.
    size, axes = np.linalg.eigh(sd[:, None] * sharing.rest[block, block] * sd - noise * np.eye(len(sd)))
    private = (axes * np.sqrt(np.maximum(size, 0.0)))[:, ::-1]
    return LinearPart(
        mean=torch.from_numpy(pca.mean.astype(np.float64)),
        shared=torch.from_numpy((sd[:, None] * sharing.loadings[block]).T @ components),
        private=torch.from_numpy(private.T @ components),
        noise=torch.full((n_voxels,), noise, dtype=torch.float64),
    )


def _table_part(sharing: Sharing, block: slice, scale: Array, *, n_private: int) -> LinearPart:
    """Loadings of the columns, by principal axes: what pairs of columns have in common, and noise for each column."""
    rest = sharing.rest[block, block]
    n_private = min(n_private, max(len(rest) - 1, 0))
    noise = 0.5 * np.diagonal(rest)
    private = np.zeros((len(rest), n_private))
    for _ in range(N_AXIS_STEPS):
        size, axes = np.linalg.eigh(rest - np.diag(noise))
        size, axes = size[::-1][:n_private], axes[:, ::-1][:, :n_private]
        private = axes * np.sqrt(np.maximum(size, 0.0))
        noise = np.maximum(np.diagonal(rest) - np.square(private).sum(axis=1), TABLE_NOISE)
    return LinearPart(
        mean=torch.zeros(len(rest), dtype=torch.float64),
        shared=torch.from_numpy((scale[:, None] * sharing.loadings[block]).T.copy()),
        private=torch.from_numpy((scale[:, None] * private).T.copy()),
        noise=torch.from_numpy(np.square(scale) * noise),
    )


def _turned(linear: Mapping[str, LinearPart]) -> dict[str, LinearPart]:
    """The same model with shared latents turned: uncorrelated given all modalities, best known first, signs fixed."""
    known = sum((read_linearly(part, 1.0 / part.noise[None]).precision[0] for part in linear.values()), torch.zeros(()))
    axes = torch.linalg.eigh(known).eigenvectors.flip(1)
    loadings = torch.cat([axes.T @ part.shared for part in linear.values()], dim=1)
    largest = loadings[torch.arange(len(loadings)), loadings.abs().argmax(dim=1)]
    turn = axes * torch.where(largest < 0, -1.0, 1.0)
    return {
        name: LinearPart(part.mean, turn.T @ part.shared, part.private, part.noise) for name, part in linear.items()
    }
