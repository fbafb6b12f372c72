"""Config: how scans become maps."""

from dataclasses import dataclass

from nilatent.errors import SettingError
from nilatent.volumes import Grid

RECIPES = ("auto", "t1", "gm")
TARGETS = ("gm", "t1w")
NORMALISATIONS = ("affine", "syn")
FWHM_LIMIT_MM = 12.0


@dataclass(frozen=True)
class RecipeConfig:
    """How scans become maps.

    Parameters
    ----------
    name : {"auto", "t1", "gm"}
        ``"t1"``: raw T1 heads or stripped brains. ``"gm"``: grey-matter maps in MNI space. ``"auto"``: by file name, scan
        by scan (``label-GM``, CAT12's ``mwp1``, SPM's ``mwc1`` and others of ``map_names`` are maps, all else is T1).
    spacing_mm : float
        Voxel size of the output, 1 to 6.
    fwhm_mm : float
        Gaussian smoothing of tissue maps in template space, 0 to 12; maps that were smoothed before are not smoothed again.
    modulation : bool
        Recipe ``"t1"``: multiply tissue maps by the volume change, so that volume is preserved. Maps that exist are taken
        as they are.
    normalisation : {"affine", "syn"}
        Recipe ``"t1"``: how a brain is moved to the template; ``"syn"`` adds a symmetric diffeomorphic registration, as
        VBM does, and takes longer.
    target : {"gm", "t1w"}
        The image that is modelled: the grey-matter map, or T1 intensities scaled to [0, 1] inside the brain. Recipe
        ``"t1"`` writes both.
    within_subject : bool
        Recipe ``"t1"``: subjects with two or more scans get a template of their own, and all their scans one affine (and
        warp) and one brain mask, so that registration does not fake change; see ``docs/preparation.md``. Subjects with one
        scan, and maps that exist, are prepared as without it. For longitudinal studies.
    """

    name: str = "auto"
    spacing_mm: float = 4.0
    fwhm_mm: float = 8.0
    modulation: bool = True
    normalisation: str = "affine"
    target: str = "gm"
    within_subject: bool = False

    def __post_init__(self) -> None:
        """Refuse settings out of range."""
        if self.name not in RECIPES:
            raise SettingError(f"recipe.name is one of {', '.join(RECIPES)}, got '{self.name}'.")
        if self.normalisation not in NORMALISATIONS:
            raise SettingError(
                f"recipe.normalisation is one of {', '.join(NORMALISATIONS)}, got '{self.normalisation}'."
            )
        if self.target not in TARGETS:
            raise SettingError(f"recipe.target is one of {', '.join(TARGETS)}, got '{self.target}'.")
        if not 0 <= self.fwhm_mm <= FWHM_LIMIT_MM:
            raise SettingError(
                f"recipe.fwhm_mm is between 0 and {FWHM_LIMIT_MM:g}, got {self.fwhm_mm}. 8 is usual for VBM."
            )
        if self.within_subject and self.name == "gm":
            raise SettingError(
                "recipe.within_subject makes templates of T1 scans, and recipe.name is 'gm': maps are taken as they are. "
                "Give the T1 scans, or set recipe.within_subject = false."
            )
        Grid.mni(self.spacing_mm)
