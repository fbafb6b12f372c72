"""The one door for optional packages."""

import importlib
from types import ModuleType

from nilatent.errors import MissingExtraError


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
        raise MissingExtraError(
            f"The package '{module}' is needed here and is not installed. Install it with: pip install 'nilatent[{extra}]'"
        ) from error
