import gzip
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from nilatent.errors import FindingError
from nilatent.viewed import Viewed, encoded_bytes, read_viewed, view, viewing_order, write_viewed
from nilatent.volumes import Grid, Volumes, volumes_in_memory

N_SCANS, SHAPE, SPACING = 12, (15, 17, 13), 2.0
UNSEEN = np.arange(N_SCANS) % 3 == 0


@pytest.fixture
def volumes(rng: np.random.Generator) -> Volumes:
    """Scans with noise inside a box that starts at an odd voxel, and nothing outside."""
    mask = np.zeros(SHAPE, dtype=bool)
    mask[3:12, 2:16, 1:12] = True
    data = np.where(mask, rng.random((N_SCANS, *SHAPE)), 0.0)
    affine = np.diag([SPACING, SPACING, SPACING, 1.0])
    affine[:3, 3] = (-11.0, -20.0, 7.0)
    names = pd.Index([f"sub-{row:02d}" for row in range(N_SCANS)], name="scan_id")
    scans = pd.DataFrame({"subject_id": names, "dataset": "one"}, index=names)
    return volumes_in_memory(data, mask=mask, grid=Grid(SHAPE, affine), scans=scans)


@pytest.fixture
def latents(rng: np.random.Generator, volumes: Volumes) -> xr.Dataset:
    scans = list(volumes.scans.index)
    made = xr.Dataset(
        {"mean": (("scan", "latent"), rng.normal(size=(N_SCANS, 3)))},
        {"scan": scans, "subject_in_training": ("scan", ~UNSEEN)},
    )
    return made.isel(scan=rng.permutation(N_SCANS))


def looked_at(volumes: Volumes, latents: xr.Dataset, **settings: object) -> Viewed:
    """The model adds a tenth; it is asked in batches of five."""

    def halves(rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for start in range(0, len(rows), 5):
            batch = rows[start : start + 5]
            yield batch, volumes.masked(batch) + np.float32(0.1)

    names = list(volumes.scans.index)
    errors = xr.DataArray(np.arange(N_SCANS, dtype=float), dims="scan", coords={"scan": names})
    return view(volumes, latents, errors, halves, **settings)


def test_worst_unseen_scans_come_first_then_the_unseen_then_the_rest(volumes: Volumes, latents: xr.Dataset) -> None:
    viewed = looked_at(volumes, latents, cases=["sub-01"])
    # Of the unseen 0, 3, 6 and 9 all are among the five with the largest errors; a seen scan with a larger one is not.
    assert viewed.scans[:5] == ("sub-01", "sub-09", "sub-06", "sub-03", "sub-00")
    assert list(viewed.listed) == [True] * 5 + [False] * 7
    assert list(viewed.unseen[:5]) == [False, True, True, True, True]
    assert sorted(viewed.scans) == sorted(volumes.scans.index)
    assert viewed.n_all == N_SCANS


def test_order_is_farthest_first_among_the_unseen_before_the_seen(rng: np.random.Generator) -> None:
    points = rng.normal(size=(40, 4))
    unseen = rng.random(40) < 0.4
    order = viewing_order(points, unseen, [5, 5])
    assert sorted(order) == list(range(40))
    assert order[0] == 5
    rest = [bool(unseen[row]) for row in order[1:]]
    assert rest == sorted(rest, reverse=True)
    for position in range(1, 40):
        pool = [row for row in order[position:] if unseen[row] == unseen[order[position]]]
        away = [min(np.linalg.norm(points[row] - points[other]) for other in order[:position]) for row in pool]
        assert np.argmax(away) == 0


def test_small_volumes_are_the_means_of_blocks_in_their_places(volumes: Volumes, latents: xr.Dataset) -> None:
    viewed = looked_at(volumes, latents)
    step = (viewed.high - viewed.low) / 255
    for position in (0, 7):
        row = volumes.rows([viewed.scans[position]])[0]
        full = np.zeros(SHAPE)
        full[volumes.mask] = volumes.masked([row])[0]
        shown = viewed.low + step * viewed.original[position]
        for voxel in [(0, 0, 0), (2, 3, 1), (4, 6, 5)]:
            # Blocks of two voxels from the corner of the mask, and the millimetres of their centre.
            corner = np.array([3, 2, 1]) + 2 * np.array(voxel)
            block = full[tuple(slice(start, start + 2) for start in corner)]
            expected = np.clip(block.sum() / 8, viewed.low, viewed.high)
            assert shown[voxel] == pytest.approx(expected, abs=0.51 * step)
            centre = viewed.affine @ [*voxel, 1]
            np.testing.assert_allclose(centre[:3], (volumes.grid.affine @ [*(corner + 0.5), 1])[:3])
    assert viewed.error_limit == pytest.approx(0.1, abs=1e-3)


def test_budget_is_kept_and_holds_as_many_as_it_can(volumes: Volumes, latents: xr.Dataset) -> None:
    every = looked_at(volumes, latents)
    sizes = [encoded_bytes(*pair) for pair in zip(every.original, every.model, strict=True)]
    budget = sum(sizes[:7]) + sizes[7] // 2
    some = looked_at(volumes, latents, budget_bytes=budget)
    assert some.scans == every.scans[:7]
    assert len(looked_at(volumes, latents, budget_bytes=1).scans) == 1


def test_there_and_back_again(volumes: Volumes, latents: xr.Dataset, tmp_path: Path) -> None:
    assert read_viewed(tmp_path) is None
    viewed = looked_at(volumes, latents)
    path = write_viewed(viewed, tmp_path)
    back = read_viewed(tmp_path)
    assert back is not None
    for name in ("scans", "low", "high", "error_limit", "n_all"):
        assert getattr(back, name) == getattr(viewed, name)
    for name in ("original", "model", "affine", "unseen", "listed"):
        np.testing.assert_array_equal(getattr(back, name), getattr(viewed, name))
    path.write_bytes(gzip.compress(b"nothing"))
    with pytest.raises(FindingError, match="analyse reconstruction"):
        read_viewed(tmp_path)
