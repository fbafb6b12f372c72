"""A network head in training: from spatial latents and a target to probabilities or numbers, one visible loop."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from nilatent.errors import SettingError
from nilatent.models.heads import ResidualHead, focal_loss
from nilatent.training.config import DEVICES, TrainConfig
from nilatent.training.devices import fabric_of

Grid4 = tuple[int, int, int, int]
# A later epoch must be better by this share of the loss at the start: below it is the noise of a small inner part.
MIN_GAIN = 1e-3


@dataclass(frozen=True)
class HeadConfig:
    """How a network head is trained.

    Parameters
    ----------
    channels : tuple
        Width per level, multiples of four; see :class:`nilatent.models.heads.ResidualHead`.
    weighted : bool
        Every class weighs the same in the loss, however rare. Probabilities are then those of equal prior odds.
    gamma : float
        Of the focal loss, at least 0; 0 is cross-entropy.
    n_epochs : int
        At most this many passes.
    patience : int
        Stop after this many epochs without a gain on the inner validation part.
    batch_size : int
        Scans per step.
    learning_rate, weight_decay : float
        AdamW's.
    input_noise : float
        SD of the noise on the standardised latents while training.
    validation_fraction : float
        Share of the training subjects that choose the epoch and move no weight, in (0, 1).
    device : str
        ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"mps"``.
    """

    channels: tuple[int, ...] = (16, 32)
    weighted: bool = True
    gamma: float = 2.0
    n_epochs: int = 60
    patience: int = 10
    batch_size: int = 16
    learning_rate: float = 1e-3
    weight_decay: float = 0.1
    input_noise: float = 0.3
    validation_fraction: float = 0.2
    device: str = "auto"

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant."""
        for name, lowest in (("n_epochs", 1), ("patience", 1), ("batch_size", 1), ("gamma", 0), ("weight_decay", 0)):
            if getattr(self, name) < lowest:
                raise SettingError(f"head.{name} is {getattr(self, name)}; it must be at least {lowest}.")
        if self.input_noise < 0 or self.learning_rate <= 0:
            raise SettingError(
                f"head.learning_rate is {self.learning_rate} and head.input_noise {self.input_noise}; the first must be "
                "above 0 and the second not below."
            )
        if not 0 < self.validation_fraction < 1:
            raise SettingError(f"head.validation_fraction is {self.validation_fraction}; it must be between 0 and 1.")
        if self.device not in DEVICES:
            raise SettingError(f"head.device is '{self.device}'; choose one of {', '.join(DEVICES)}.")
        if not self.channels or any(width < 4 or width % 4 for width in self.channels):
            raise SettingError(f"head.channels are {self.channels}; they must be multiples of four.")


@dataclass(frozen=True, eq=False)
class NetworkHead:
    """A fitted network head: its weights and what its inputs and outputs are measured in.

    Parameters
    ----------
    kind : str
        ``"binary"``, ``"multi-class"``, ``"ordinal"`` or ``"continuous"``.
    levels : tuple[str, ...]
        Names of the classes; none for a number.
    grid : tuple
        (channel, x, y, z) of the latents.
    channels : tuple
        Width per level.
    centre : ndarray
        (feature,) mean of each latent over the scans that moved the weights.
    scale : ndarray
        (feature,) SD of the latents of each channel, pooled over its cells.
    y_centre, y_scale : float
        Mean and SD of the number in the scans that moved the weights; 0 and 1 for classes.
    state : dict[str, Tensor]
        Weights, on the CPU.
    n_train : int
        Scans the head was fitted on, those that chose the epoch included.
    best_epoch : int
        0 when no epoch was better on the inner part than knowing nothing.
    threshold : float
        Of the probability of the second class: 0.5, at equal prior odds.
    """

    kind: str
    levels: tuple[str, ...]
    grid: Grid4
    channels: tuple[int, ...]
    centre: np.ndarray
    scale: np.ndarray
    y_centre: float
    y_scale: float
    state: dict[str, Tensor]
    n_train: int
    best_epoch: int
    threshold: float = 0.5

    def scores(self, x: np.ndarray) -> np.ndarray:
        """(scan, class) probabilities of equal prior odds, or (scan, 1) numbers, from (scan, feature) latents."""
        module = ResidualHead(grid=self.grid, n_out=max(len(self.levels), 1), channels=self.channels)
        module.load_state_dict(self.state)
        with torch.no_grad():
            read = module(_volumes(x, self.centre, self.scale, self.grid)).double()
        found: np.ndarray = (read.softmax(dim=1) if self.levels else read * self.y_scale + self.y_centre).numpy()
        return found

    def call(self, x: np.ndarray) -> np.ndarray:
        """(scan,) number of the most likely class, or the number."""
        scores = self.scores(x)
        return scores.argmax(axis=1).astype(float) if self.levels else scores[:, 0]


def fit_predict(
    grid: Grid4, config: HeadConfig, *, seed: int
) -> Callable[[np.ndarray, np.ndarray, np.ndarray, Any], np.ndarray]:
    """A network head as a function from training scans and test scans to what is said of the test scans.

    Parameters
    ----------
    grid : tuple
        (channel, x, y, z) of the latents.
    config : HeadConfig
        How it is trained.
    seed : int
        Of the first weights, the inner part, the order and the noise.

    Returns
    -------
    callable
        ``(train_x, train_y, test_x, target) -> scores`` with (scan, feature) latents, classes from 0 or numbers, a
        :class:`nilatent.analysis.prediction.targets.Target`, and what :meth:`NetworkHead.scores` gives. Everything that
        learns, the standardisation and the number of epochs included, sees the training scans only. It is not told whose
        these are: several scans of one person may fall on both sides of the inner part, and the epoch is then chosen too
        late. No test scan has a say in it.
    """

    def predicted(
        train_x: np.ndarray,
        train_y: np.ndarray,
        test_x: np.ndarray,
        target: Any,
    ) -> np.ndarray:
        head = fit_network(
            train_x, train_y, grid=grid, kind=target.kind, levels=target.levels, config=config, seed=seed
        )
        return head.scores(test_x)

    return predicted


def fit_network(
    x: np.ndarray,
    y: np.ndarray,
    *,
    grid: Grid4,
    kind: str,
    levels: tuple[str, ...],
    config: HeadConfig,
    seed: int,
    subjects: Sequence[str] | None = None,
) -> NetworkHead:
    """Train a network head; an inner part of the subjects chooses the epoch.

    Parameters
    ----------
    x : ndarray
        (scan, feature) latents on the grid, flat, the last axis fastest.
    y : ndarray
        (scan,) classes from 0, or numbers.
    grid, kind, levels
        As in :class:`NetworkHead`.
    config : HeadConfig
        How.
    seed : int
        Of all that is drawn.
    subjects : Sequence[str], optional
        (scan,) subject of each scan; without it every scan counts as a subject of its own.

    Returns
    -------
    NetworkHead
        At the epoch with the lowest loss on the inner part; the start is a candidate.

    Raises
    ------
    SettingError
        When the latents do not fit the grid, or a class has fewer than two subjects.
    """
    if x.ndim != 2 or x.shape[1] != int(np.prod(grid)) or len(x) != len(y):
        raise SettingError(f"Latents of shape {x.shape} with {len(y)} targets do not lie on the grid {grid}.")
    names = np.arange(len(y)).astype(str) if subjects is None else np.asarray(subjects, dtype=str)
    inner = inner_part(y, names, classes=bool(levels), fraction=config.validation_fraction, seed=seed)
    centre, scale = _standard(np.asarray(x[~inner], dtype=np.float64), grid[0])
    volumes = _volumes(x, centre, scale, grid)
    if levels:
        y_centre, y_scale = 0.0, 1.0
        counts = np.bincount(np.asarray(y[~inner], dtype=int), minlength=len(levels))
        weights = counts.sum() / (len(levels) * counts) if config.weighted else np.ones(len(levels))
        given, class_weights = torch.from_numpy(np.asarray(y, dtype=np.int64)), torch.from_numpy(weights).float()
    else:
        numbers = np.asarray(y, dtype=np.float64)
        y_centre, y_scale = float(numbers[~inner].mean()), float(numbers[~inner].std()) or 1.0
        given, class_weights = torch.from_numpy((numbers - y_centre) / y_scale).float(), None
    state, best_epoch = _train(volumes, given, inner, class_weights, grid, config, seed)
    return NetworkHead(
        kind=kind,
        levels=tuple(levels),
        grid=grid,
        channels=config.channels,
        centre=centre,
        scale=scale,
        y_centre=y_centre,
        y_scale=y_scale,
        state=state,
        n_train=len(y),
        best_epoch=best_epoch,
    )


def _train(
    volumes: Tensor,
    y: Tensor,
    inner: np.ndarray,
    class_weights: Tensor | None,
    grid: Grid4,
    config: HeadConfig,
    seed: int,
) -> tuple[dict[str, Tensor], int]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = ResidualHead(
            grid=grid, n_out=1 if class_weights is None else len(class_weights), channels=config.channels
        )
    device = fabric_of(TrainConfig(device=config.device, precision="32-true"), alone=True).device
    module, volumes, y = module.to(device), volumes.to(device), y.to(device)
    weights = None if class_weights is None else class_weights.to(device)
    optimiser = torch.optim.AdamW(module.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    noise = torch.Generator().manual_seed(seed)
    outer, judges = np.flatnonzero(~inner), torch.from_numpy(np.flatnonzero(inner)).to(device)

    def loss(rows: Tensor, seen: Tensor) -> Tensor:
        read = module(seen)
        if weights is None:
            return functional.mse_loss(read[:, 0], y[rows])
        return focal_loss(read, y[rows], class_weights=weights, gamma=config.gamma).mean()

    def judged() -> float:
        with torch.no_grad():
            return float(loss(judges, volumes[judges]))

    start = lowest = judged()
    best, best_epoch = _copied(module), 0
    for epoch in range(1, config.n_epochs + 1):
        for batch in _batches(outer, config.batch_size, seed=seed, epoch=epoch):
            rows = batch.to(device)
            shaken = torch.randn(volumes[rows].shape, generator=noise).to(device)
            optimiser.zero_grad()
            loss(rows, volumes[rows] + config.input_noise * shaken).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        now = judged()
        if now < lowest - MIN_GAIN * start:
            lowest, best, best_epoch = now, _copied(module), epoch
        elif epoch - best_epoch >= config.patience:
            break
    return best, best_epoch


def _batches(rows: np.ndarray, size: int, *, seed: int, epoch: int) -> Iterator[Tensor]:
    order = np.random.default_rng([seed, epoch]).permutation(rows)
    for first in range(0, len(order), size):
        yield torch.from_numpy(order[first : first + size])


def _copied(module: ResidualHead) -> dict[str, Tensor]:
    return {name: value.detach().to("cpu", copy=True) for name, value in module.state_dict().items()}


def _standard(x: np.ndarray, n_channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean of each latent, and the SD of each channel: a cell outside the brain must not be blown up to unit variance."""
    centre = x.mean(axis=0)
    spread = np.sqrt(np.square(x - centre).reshape(len(x), n_channels, -1).mean(axis=(0, 2)))
    return centre, np.repeat(np.where(spread > 0, spread, 1.0), x.shape[1] // n_channels)


def _volumes(x: np.ndarray, centre: np.ndarray, scale: np.ndarray, grid: Grid4) -> Tensor:
    standard = ((np.asarray(x, dtype=np.float64) - centre) / scale).astype(np.float32)
    return torch.from_numpy(standard.reshape(len(x), *grid))


def inner_part(y: np.ndarray, subjects: np.ndarray, *, classes: bool, fraction: float, seed: int) -> np.ndarray:
    """Draw the subjects that choose the epoch, from every class or over the whole range of the number.

    Parameters
    ----------
    y : ndarray
        (scan,) classes from 0, or numbers; a subject counts with its first scan.
    subjects : ndarray
        (scan,) subject of each scan.
    classes : bool
        Whether `y` are classes.
    fraction : float
        Share of the subjects, in (0, 1); of every class at least one subject, and at least one is left.
    seed : int
        Of the draw.

    Returns
    -------
    ndarray
        (scan,) true for the scans of these subjects.

    Raises
    ------
    SettingError
        When a class, or the whole, has fewer than two subjects.
    """
    names, first = np.unique(subjects, return_index=True)
    values = np.asarray(y, dtype=float)[first]
    have = [len(np.unique(subjects[y == value])) for value in np.unique(y)] if classes else [len(names)]
    if min(have) < 2:
        raise SettingError(
            f"A network head needs two subjects of every class, one to learn from and one to judge by; one class has "
            f"{min(have)} of the {len(names)} training subjects. Merge classes, or take a linear head."
        )
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(names))
    chosen: list[int] = []
    for group in [shuffled[values[shuffled] == value] for value in np.unique(values)] if classes else [shuffled]:
        if len(group) < 2:
            # Of a class that others have in later scans: its one subject stays where it is learnt from.
            continue
        n_chosen = min(max(round(fraction * len(group)), 1), len(group) - 1)
        ordered = group if classes else group[np.argsort(values[group], kind="stable")]
        # Even steps over the ordered subjects: judges of small and of large values alike.
        steps = np.floor((np.arange(n_chosen) + rng.random()) * len(group) / n_chosen).astype(int)
        chosen.extend(ordered[steps])
    marks: np.ndarray = np.isin(subjects, names[chosen])
    if classes and len(np.unique(y[~marks])) < len(np.unique(y)):
        raise SettingError(
            "A class is left without a scan to learn from: its subjects have scans of other classes first. Give one scan per "
            "subject, or take a linear head."
        )
    return marks
