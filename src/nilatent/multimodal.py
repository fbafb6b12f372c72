"""A joint model in use: latents from any of its modalities, and one modality predicted from others."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
import xarray as xr
from torch import Tensor

from nilatent.cohort import Cohort
from nilatent.errors import CohortError, GridError, LatentsError, SettingError
from nilatent.grid import GM_PRIOR_IN_MASK, Grid, template
from nilatent.latents import make_latents
from nilatent.models.multimodal import ImagePart
from nilatent.provenance import hash_values
from nilatent.training.multimodal.data import Joined, Modality, join
from nilatent.training.multimodal.folder import TrainedMultimodal, subjects_seen
from nilatent.training.validation import Rows, exact
from nilatent.volumes import Volumes, pack

BATCH_SIZE = 16
TISSUES = ("WM", "CSF")


def encode_jointly(
    model: TrainedMultimodal,
    modalities: Mapping[str, Modality],
    parts: pd.DataFrame,
    *,
    use: Sequence[str] = (),
) -> xr.Dataset:
    """Shared latents of scans, from any of their modalities.

    Parameters
    ----------
    model : TrainedMultimodal
        From :func:`nilatent.training.multimodal.folder.load_multimodal`.
    modalities : Mapping[str, Volumes or DataFrame]
        By the names that the model knows; any may be absent, and any scan may lack any.
    parts : DataFrame
        Index ``scan_id``, columns ``subject_id`` and ``part``: the scans wanted.
    use : Sequence[str]
        Look at these modalities only; all that are given where none is named.

    Returns
    -------
    Dataset
        Posterior mean and log-variance of the shared latents, (scan, latent). A scan without any of these modalities has the
        prior: mean 0, log-variance 0. The note ``caveat`` says which modalities were used, and of how many scans.

    Raises
    ------
    SettingError
        When a modality is not known to the model, or not given.
    GridError
        When volumes are on another grid or in another mask.
    LatentsError
        When no scan has any of these modalities.

    Examples
    --------
    >>> from nilatent.training.multimodal.folder import load_multimodal
    >>> latents = encode_jointly(load_multimodal(folder), {"wm": wm}, parts)  # doctest: +SKIP
    """
    joined = _joined(model, modalities, list(parts.index), use)
    if not joined.present.any():
        raise LatentsError(
            f"No scan has any of the modalities {', '.join(_used(model, modalities, use))}. See that the scans have the same "
            "ids in the modalities and in the split."
        )
    means, log_vars = [], []
    for _, x, present in _batches(model, joined, np.arange(len(parts))):
        with exact():
            posterior = model.module.encode(x, present).moments()
        means.append(posterior.mean.numpy())
        log_vars.append(posterior.log_var.numpy())
    volumes = {name: one for name, (one, _) in joined.volumes.items()}
    contents = [one.content_hash for one in volumes.values()] + [hash_values(one) for one in joined.cells.values()]
    return make_latents(
        np.concatenate(means),
        np.concatenate(log_vars),
        scan=list(parts.index),
        subject=list(parts["subject_id"]),
        subject_in_training=list(subjects_seen(model.seen, parts["subject_id"], volumes)),
        part=list(parts["part"]),
        model_hash=model.content_hash,
        volumes_hash=hash_values(contents),
        notes={"caveat": _words(joined, _used(model, modalities, use))},
    )


def _words(joined: Joined, used: Sequence[str]) -> str:
    counts = dict(zip(joined.names, joined.present.sum(axis=0), strict=True))
    told = ", ".join(f"{name} ({counts[name]} of {len(joined.scans)} scans)" for name in used)
    without = int((~joined.present.any(axis=1)).sum())
    bare = f" {without} scans have none of these: their latents are those of the prior." if without else ""
    return f"Shared latents of a joint model, from {told}.{bare}"


def predict_modality(
    model: TrainedMultimodal,
    modalities: Mapping[str, Modality],
    scans: Sequence[str],
    *,
    target: str,
    use: Sequence[str] = (),
) -> Iterator[tuple[list[str], npt.NDArray[np.float32] | pd.DataFrame]]:
    """One modality of scans, predicted from others: what the model expects of them.

    Parameters
    ----------
    model, modalities, use
        As in :func:`encode_jointly`; the target itself is never looked at, and need not be given.
    scans : Sequence[str]
        Which scans. One that has none of the modalities is predicted as the average training scan.
    target : str
        A modality of the model.

    Yields
    ------
    tuple
        Ids of the batch, and its predictions: volumes (batch, voxel) float32 inside the mask of the model's part, in units of
        the scans; of a table a frame with a column per number, and per category a column ``name=level`` with the probability
        of each level.

    Notes
    -----
    Private latents of a modality that is not looked at are at the mean of their prior: a prediction is smoother than a scan,
    and holds no more of it than what the modalities share.

    Raises
    ------
    SettingError
        When the target is no modality of the model, or it is the only one to look at.
    """
    if target not in model.module.names:
        raise SettingError(f"The model has no modality '{target}'; it has {', '.join(model.module.names)}.")
    others = [name for name in _used(model, modalities, use) if name != target]
    if not others:
        raise SettingError(f"'{target}' is to be predicted from others, and none is given. Give another modality.")
    joined = _joined(model, {name: modalities[name] for name in others}, list(scans), ())
    part = model.module.part(target)
    for rows, x, present in _batches(model, joined, np.arange(len(joined.scans))):
        with exact():
            drawn = model.module.draw(target, model.module.encode(x, present).moments().mean)
        ids = [str(scan) for scan in joined.scans[rows]]
        if isinstance(part, ImagePart):
            yield ids, drawn.flatten(1)[:, part.get_buffer("index")].numpy()
        else:
            yield ids, _table(model, target, drawn, ids)


def _table(model: TrainedMultimodal, name: str, drawn: Tensor, ids: list[str]) -> pd.DataFrame:
    told: dict[str, npt.NDArray[np.float32]] = {}
    first = 0
    for column in model.columns[name]:
        width = len(column.mean)
        values = drawn[:, first : first + width]
        if column.levels:
            chances = torch.cat([torch.zeros_like(values[:, :1]), values], dim=1).softmax(dim=1)
            told |= {f"{column.name}={level}": chances[:, k].numpy() for k, level in enumerate(column.levels)}
        else:
            told[column.name] = (values[:, 0] * column.sd[0] + column.mean[0]).numpy()
        first += width
    return pd.DataFrame(told, index=pd.Index(ids, name="scan_id"))


def _used(model: TrainedMultimodal, modalities: Mapping[str, Modality], use: Sequence[str]) -> list[str]:
    for names, place in ((modalities, model.module.names), (use, modalities)):
        strangers = [name for name in names if name not in place]
        if strangers:
            known = ", ".join(place)
            raise SettingError(f"The modality '{strangers[0]}' is not among {known}. Name some of these.")
    return [name for name in model.module.names if name in (use or modalities)]


def _joined(
    model: TrainedMultimodal, modalities: Mapping[str, Modality], scans: Sequence[str], use: Sequence[str]
) -> Joined:
    names = _used(model, modalities, use)
    for name in names:
        one, table = modalities[name], name in model.columns
        if isinstance(one, Volumes) == table:
            raise SettingError(f"The model knows '{name}' as {'a table' if table else 'volumes'}. Give it as that.")
        if isinstance(one, Volumes):
            _check_same_space(model, name, one)
        elif one.index.has_duplicates:
            raise CohortError(f"Scan {one.index[one.index.duplicated()][0]} stands twice in '{name}'.")
    return join({name: modalities[name] for name in names}, scans, model.columns)


def _check_same_space(model: TrainedMultimodal, name: str, volumes: Volumes) -> None:
    model.grids[name].check_same(volumes.grid.shape, volumes.grid.affine, place=f"The volumes of '{name}'")
    mask = model.module.part(name).get_buffer("mask").numpy() > 0
    if not np.array_equal(mask, volumes.mask):
        raise GridError(
            f"The volumes of '{name}' have a mask of {int(volumes.mask.sum())} voxels, the model one of {int(mask.sum())}, or "
            "they lie elsewhere. Pack the scans with the mask the model was trained with."
        )


def _batches(model: TrainedMultimodal, joined: Joined, rows: Rows) -> Iterator[tuple[Rows, dict[str, Tensor], Tensor]]:
    """Batches with every modality of the model; those that are not used are absent of every scan."""
    for first in range(0, len(rows), BATCH_SIZE):
        batch = rows[first : first + BATCH_SIZE]
        given, there = joined.batch(batch, torch.device("cpu"))
        present = torch.zeros(len(batch), len(model.module.names), dtype=torch.bool)
        x = {}
        for place, name in enumerate(model.module.names):
            if name in given:
                x[name], present[:, place] = given[name], there[:, joined.names.index(name)]
            elif name in model.columns:
                x[name] = torch.zeros(len(batch), 2, len(model.module.part(name).get_buffer("mean")))
            else:
                x[name] = torch.zeros(len(batch), 1, *model.grids[name].shape)
        yield batch, x, present


def tissue_volumes(prepared: Cohort, tissue: str, grid: Grid, folder: Path) -> Volumes:
    """Pack the maps of another tissue that preparation left beside those of grey matter.

    Parameters
    ----------
    prepared : Cohort
        Every path is a modulated grey-matter map in template space, ``label-GM`` in its name.
    tissue : str
        ``"WM"`` or ``"CSF"``, segmented, warped, modulated and smoothed in the same step.
    grid : Grid
        Of the grey-matter maps, which is that of all tissues.
    folder : Path
        Receives the volumes.

    Returns
    -------
    Volumes
        In the mask where the template has that tissue. Scans whose map is absent are left out.

    Raises
    ------
    SettingError
        For another tissue.
    CohortError
        When no scan has such a map.
    """
    if tissue not in TISSUES:
        raise SettingError(
            f"Beside grey matter preparation leaves maps of {' and '.join(TISSUES)}; '{tissue}' is none."
        )
    paths = prepared.scans["path"].astype(str).str.replace("_label-GM_", f"_label-{tissue}_", regex=False)
    there = np.array(
        [other != own and Path(other).is_file() for other, own in zip(paths, prepared.scans["path"], strict=True)]
    )
    if not there.any():
        raise CohortError(
            f"No scan has a {tissue} map beside its grey-matter map. Prepare the T1-weighted images with nilatent, which "
            "leaves all tissues; ready-made grey-matter maps come without."
        )
    mask = np.asarray(template(tissue.lower(), grid).get_fdata(dtype=np.float32) > GM_PRIOR_IN_MASK)
    maps = replace(prepared, scans=prepared.scans[there].assign(path=paths[there]))
    return pack(maps, grid, folder, mask=mask)
