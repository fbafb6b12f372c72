"""The one door for optional packages."""

import importlib
import importlib.util
from types import ModuleType

from nilatent.errors import MissingExtraError

# Import names of what each extra brings and we use.
EXTRAS = {
    "prepare": ("ants", "deepbet"),
    "embed": ("openTSNE", "umap", "numba"),
    "explain": ("shap",),
    "report": ("jinja2", "matplotlib", "PIL"),
    "search": ("optuna",),
    "cluster": ("distributed",),
}


def require(module: str, *, extra: str) -> ModuleType:
    """Import an optional package, or say what to install.

    Parameters
    ----------
    module : str
        Import name, such as ``"ants"``.
    extra : str
        The extra of nilatent that installs it, such as ``"prepare"``.

    Returns
    -------
    ModuleType
        The imported module.

    Raises
    ------
    MissingExtraError
        When the package is not installed.

    Examples
    --------
    >>> require("json", extra="report").dumps([1])
    '[1]'
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.split(".")[0] != module.split(".")[0]:
            raise
        raise _told(module, extra) from error


def missing_extra(error: ModuleNotFoundError) -> MissingExtraError | None:
    """What to install after an import failed that did not go through :func:`require`, as those of pages and plots.

    Parameters
    ----------
    error : ModuleNotFoundError
        As it was raised.

    Returns
    -------
    MissingExtraError or None
        None when no extra brings the module.

    Examples
    --------
    >>> str(missing_extra(ModuleNotFoundError(name="matplotlib.figure"))).split(": ")[1]
    "pip install 'nilatent[report]'"
    """
    module = (error.name or "").split(".")[0]
    return next((_told(module, extra) for extra, modules in EXTRAS.items() if module in modules), None)


def absent(extra: str) -> list[str]:
    """Import names of an extra that are not installed."""
    return [module for module in EXTRAS[extra] if importlib.util.find_spec(module) is None]


def _told(module: str, extra: str) -> MissingExtraError:
    return MissingExtraError(
        f"The package '{module}' is needed here and is not installed. Install it with: pip install 'nilatent[{extra}]'"
    )
