"""Table and figure data of the error profile: one row per region, largest contribution first."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr

from nilatent.analysis.error_profile.classes import Groups, OwnModel
from nilatent.analysis.error_profile.shap import Contributions, cluster_shap


@dataclass(frozen=True, eq=False)
class ByClass:
    """Class reading of the pooled model, and the models of the classes alone.

    Parameters
    ----------
    p_size, p_sign : ndarray
        (region,) family-wise p that |phi|, and phi, differ between classes.
    own : dict[str, OwnModel]
        By class.
    """

    p_size: np.ndarray
    p_sign: np.ndarray
    own: dict[str, OwnModel]


def region_table(
    found: Mapping[str, Contributions],
    deciding: str,
    x: np.ndarray,
    cluster: np.ndarray,
    groups: Groups,
    by_class: ByClass | None,
    *,
    names: np.ndarray,
    labels: np.ndarray,
) -> pd.DataFrame:
    """Regions by mean |phi| of the deciding model.

    Parameters
    ----------
    found : Mapping
        Contributions by model.
    deciding : str
        The model that ranks.
    x : ndarray
        (scan, region) what the model saw.
    cluster : ndarray
        (region,) number of the cluster.
    groups : Groups
        Group of each scan.
    by_class : ByClass or None
        None when classes cannot be compared.
    names, labels : ndarray
        (region,) of the atlas.
    """
    phi = found[deciding].phi
    size, slope = np.abs(phi).mean(axis=0), np.sign((phi * (x - x.mean(axis=0))).sum(axis=0))
    said = {1.0: "larger error with more grey matter", -1.0: "larger error with less grey matter", 0.0: "none"}
    table = pd.DataFrame(
        {
            "name": names,
            "label": labels,
            "mean_abs_phi": size,
            "signed_mean": phi.mean(axis=0),
            "direction": [said[float(sign)] for sign in slope],
            "signed_effect": size * slope,
            "cluster": cluster,
            "cluster_mean_abs_phi": np.abs(cluster_shap(phi, cluster)).mean(axis=0)[cluster - 1],
            "rank": 0,
        }
    )
    for model, other in found.items():
        if model != deciding:
            table[f"mean_abs_phi_{model}"] = np.abs(other.phi).mean(axis=0)
    if by_class is not None:
        table["p_class_size"], table["p_class_sign"] = by_class.p_size, by_class.p_sign
        for name in groups.names:
            of_class = phi[groups.of_scan == name]
            table[f"mean_abs_phi[{name}]"] = np.abs(of_class).mean(axis=0)
            table[f"signed_mean[{name}]"] = of_class.mean(axis=0)
        for name, own in by_class.own.items():
            table[f"own_mean_abs_phi[{name}]"] = own.mean_abs_phi
    table = table.sort_values(["mean_abs_phi", "label"], ascending=[False, True], ignore_index=True)
    return table.assign(rank=np.arange(1, len(table) + 1))


def region_data(
    scan_ids: pd.Index, phi: np.ndarray, x: np.ndarray, groups: Groups, by_class: ByClass | None, *, names: np.ndarray
) -> xr.Dataset:
    """SHAP values and regional values of every scan in the order of the atlas, and the gain within each class."""
    shown = [] if by_class is None else groups.names
    own = [by_class.own.get(name) if by_class is not None else None for name in shown]
    sizes = [np.abs(phi[groups.of_scan == name]).mean(axis=0) for name in shown]
    return xr.Dataset(
        {
            "phi": (("scan", "region"), phi),
            "x": (("scan", "region"), x),
            "group": ("scan", groups.of_scan.astype(str)),
            "own_gain": ("class", np.array([one.gain.gain if one is not None else np.nan for one in own])),
            "own_p": ("class", np.array([one.p_gate if one is not None else np.nan for one in own])),
            "class_mean_abs_phi": (("class", "region"), np.array(sizes).reshape(len(shown), phi.shape[1])),
        },
        coords={
            "scan": ("scan", scan_ids.to_numpy().astype(str)),
            "region": ("region", names.astype(str)),
            "class": ("class", np.array(shown, dtype=str)),
        },
    )
