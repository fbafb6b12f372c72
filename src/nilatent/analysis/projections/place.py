"""New scans in an existing map of latents."""

import numpy as np
import pandas as pd
import xarray as xr

from nilatent.analysis.projections.maps import AXES, METHODS, from_arrays, place
from nilatent.errors import LatentsError
from nilatent.finding import Finding
from nilatent.latents import check_latents


def place_scans(finding: Finding, latents: xr.Dataset) -> pd.DataFrame:
    """Where scans lie in the maps of the latents that a finding holds.

    The place of a scan does not depend on which other scans are placed with it, by any of the four methods. UMAP's own
    placement is the coarsest: even a copy of a training scan comes to lie beside it, not on it.

    Parameters
    ----------
    finding : Finding
        Of `projections`.
    latents : Dataset
        Latents of other scans, or of the same, encoded by the same model.

    Returns
    -------
    DataFrame
        (scan, component) places under the names of the finding; index scan_id.

    Raises
    ------
    LatentsError
        When the finding holds no map, or the latents are of another model, or are other components of it.

    Examples
    --------
    >>> from nilatent.finding import read_finding                               # doctest: +SKIP
    >>> from nilatent.latents import read_latents                               # doctest: +SKIP
    >>> place_scans(read_finding("study/findings/projections"), read_latents("new"))  # doctest: +SKIP
    """
    check_latents(latents)
    data = finding.data
    if "map_scale" not in data:
        raise LatentsError(
            f"Finding {finding.name} holds no map of latents. Run `nilatent analyse projections` on the study again."
        )
    of_map, given = (str(source.attrs.get("model_hash", "")) for source in (data, latents))
    if of_map != given or list(data["latent"].values) != list(latents["latent"].values):
        raise LatentsError(
            f"The map is of {data.sizes['latent']} latents of model '{of_map[:12]}', and the scans have "
            f"{latents.sizes['latent']} of model '{given[:12]}'. Encode them with the model of the study."
        )
    # Components of latents on a grid have the same names whatever scans they were made of.
    of_map, given = (str(source.attrs.get("compact", "")) for source in (data, latents))
    if of_map != given:
        raise LatentsError(
            f"The map is of '{of_map or 'the latents as they are'}', the scans have '{given or 'the latents as they are'}'. "
            "Compact both with the same training scans."
        )
    values = (latents["mean"].values * data["map_scale"].values).astype(np.float64)
    placed: dict[str, np.ndarray] = {}
    for method in METHODS:
        fitted = from_arrays(data, method)
        if fitted is not None:
            scores = place(fitted, values)
            placed |= {f"{AXES[method]}{axis + 1}": scores[:, axis] for axis in range(scores.shape[1])}
    return pd.DataFrame(placed, index=pd.Index(latents["scan"].values, name="scan_id"))
