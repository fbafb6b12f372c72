"""Map names: which tool made a tissue map, what was done to it, and whose it is, as its file name says."""

import re
from dataclasses import dataclass

ENDING = re.compile(r"\.(?:nii|img|hdr|mgh|mgz)(?:\.gz|\.bz2)?$", re.IGNORECASE)
TISSUES = {"1": "GM", "2": "WM", "3": "CSF", "graymatter": "GM", "whitematter": "WM", "csf": "CSF"}
# Templates of adults that lie on MNI152 to within a few millimetres; "unknown" is for the check of the voxels to find out.
TEMPLATE_SPACE = re.compile(r"MNI(?!Infant|Pediatric)|ICBM|IXI549|IXI555|unknown", re.IGNORECASE)
# From the map that holds volumes, to the one that holds probabilities.
MODULATIONS = ("all", "nonlinear", "unknown", "none")
MODULATED = re.compile(r"(?P<no>(?:un|non|not|no)-?)?modulated", re.IGNORECASE)
NUMBER = r"\d+(?:[.p]\d+)?"
SMOOTH = rf"(?P<smooth>s(?:{NUMBER})?)?"
# A user's own words may stand in front of a prefix that cannot be mistaken for one of them (`wp1` can: work package 1).
BEFORE = r"(?:(?P<before>.*_)(?=s\d*m?w|m))?"
BIDS = (
    r"(?P<source>.+?)(?:_space-(?P<space>[^_]+?)(?P<mod>-nonlinear-modulated)?(?:_[a-z]+-[^_]+)*?)?"
    r"_label-(?P<tissue>[A-Za-z]+)(?:_desc-(?P<desc>[^_]+))?_probseg"
)
CLINICA = (
    r"(?P<source>.+?)_segm-(?P<tissue>[a-z]+)(?:_space-(?P<space>[^_]+)_modulated-(?:(?P<mod>on)|off)"
    rf"(?:_fwhm-(?P<smooth>{NUMBER})mm)?)?_(?:probability|dartelinput)"
)
FSL_VBM = r"(?P<source>.+?)(?:_struc)?_GM_to_(?:template|T)_(?P<tissue>GM)(?P<part>_mod)?"
SPM_WARPED = rf"{BEFORE}{SMOOTH}(?P<mod>m)?wr?c(?P<tissue>[1-6])(?P<source>.*)"
CAT12_WARPED = rf"{BEFORE}{SMOOTH}(?:(?P<part>m0)|(?P<mod>mwm|m))?wr?p(?P<tissue>[1-6])(?:r(?=sub-))?(?P<source>.*)"
CAT12_AFFINE = r"r?p(?P<tissue>[1-6])(?:_(?:affine|large)_?(?P<source>.+)|(?P<before>.+)_affine)"
# A letter after the number, or the raw scans c1_T1w and p10 would be maps.
SPM_NATIVE = r"r?c(?P<tissue>[1-6])(?P<source>[A-Za-z].*)"
CAT12_NATIVE = r"r?p(?P<tissue>[1-6])(?P<source>[A-Za-z].*)"
PLAIN_LABEL = r"(?P<source>.+?)_label-(?P<tissue>GM|WM|CSF)"
# Images that are no maps: the entity of BIDS, and SPM's w for warped before a name of BIDS (wsub-, wmsub-, s6wrsub-).
SPACE_ENTITY = re.compile(r"_space-([^_]+)")
WARPED = re.compile(rf"^(?:s(?:{NUMBER})?)?wm?r?(?=sub-)")
SPM_SPACE = "MNI152 of SPM (IXI549Space in SPM12)"
CAT12_SPACE = "MNI152 of CAT12 (MNI152NLin2009cAsym, IXI555 in older versions)"
# Pattern of the whole name, who writes it, and the template space where the name does not state it ("" for the
# subject's own space, and for rigid moves, which keep the head's size). The first that fits holds. Marks of the name:
# m (mod) multiplied by the whole volume change, m0 (part) by its non-linear part, s6 smoothed with 6 mm, w warped,
# r rigid or DARTEL import. Sources: SPM12 manual, Segment and DARTEL; CAT12 online help, Naming; deepmriprep, README
# (outputs are named as by CAT12); nilearn, fetch_oasis_vbm (mwrc1); FSL-VBM user guide; Clinica, CAPS.
CONVENTIONS = (
    (BIDS, "BIDS derivatives", ""),
    (CLINICA, "SPM12 through Clinica", ""),
    (FSL_VBM, "FSL-VBM", "MNI152NLin6Asym"),
    (SPM_WARPED, "SPM", SPM_SPACE),
    (SPM_NATIVE, "SPM", ""),
    (CAT12_AFFINE, "CAT12", CAT12_SPACE),
    (CAT12_WARPED, "CAT12", CAT12_SPACE),
    (CAT12_NATIVE, "CAT12", ""),
    (PLAIN_LABEL, "unknown", "unknown"),
)


@dataclass(frozen=True)
class MapName:
    """What the name of a tissue map says.

    Parameters
    ----------
    tool : str
        Who writes such names; deepmriprep, VBM8 and T1Prep write those of CAT12.
    tissue : str
        ``"GM"``, ``"WM"``, ``"CSF"``, or the label as written.
    modulation : str
        ``"all"``: multiplied by the volume change of the whole normalisation, so that sums are the subject's volumes;
        ``"nonlinear"``: by its non-linear part, so that head size is removed; ``"none"``; ``"unknown"``.
    fwhm_mm : float or None
        Smoothing that the name states; 0 when it states none, None when it does not state how much.
    space : str
        Template space, or ``""`` for the subject's own.
    source : str
        Name of the scan that the map was made from.
    kind : str
        The rest of the name, the same for all scans that were treated alike.
    """

    tool: str
    tissue: str
    modulation: str
    fwhm_mm: float | None
    space: str
    source: str
    kind: str

    @property
    def in_template(self) -> bool:
        """Whether the map lies on the template of adults, as far as its name says."""
        return TEMPLATE_SPACE.match(self.space) is not None

    @property
    def is_grey(self) -> bool:
        """Whether it is grey matter on the template, which can be modelled."""
        return self.in_template and self.tissue == "GM"

    @property
    def rank(self) -> tuple[int, bool]:
        """Lower is the better map to model: volumes before probabilities, and what was not smoothed yet."""
        return MODULATIONS.index(self.modulation), self.fwhm_mm != 0


def read_map_name(name: str) -> MapName | None:
    """What a file's name says about the tissue map in it.

    Parameters
    ----------
    name : str
        File name without folders.

    Returns
    -------
    MapName or None
        None for every other image.

    Examples
    --------
    >>> found = read_map_name("s6mwp1sub-01_T1w.nii")
    >>> found.tissue, found.modulation, found.fwhm_mm, found.source
    ('GM', 'all', 6.0, 'sub-01_T1w')
    """
    stem = ENDING.sub("", name)
    for pattern, tool, space in CONVENTIONS:
        match = re.fullmatch(pattern, stem)
        if match is not None:
            return _described(match, tool, space)
    return None


def in_template(name: str) -> bool:
    """Whether an image of any kind lies on the template of adults, as far as its file name says.

    Examples
    --------
    >>> in_template("sub-01_space-MNI152NLin2009cAsym_desc-preproc_FLAIR.nii.gz"), in_template("sub-01_FLAIR.nii.gz")
    (True, False)
    """
    said = read_map_name(name)
    if said is not None:
        return said.in_template
    space = SPACE_ENTITY.search(name)
    return WARPED.match(name) is not None if space is None else TEMPLATE_SPACE.match(space.group(1)) is not None


def of_tissue(name: str, tissue: str) -> str | None:
    """The file name that the same tool gives the map of another tissue of the same scan, made in the same way.

    Parameters
    ----------
    name : str
        File name of a tissue map, without folders.
    tissue : {"GM", "WM", "CSF"}
        The other tissue.

    Returns
    -------
    str or None
        None when the name is not that of a map of one of these tissues.

    Examples
    --------
    >>> of_tissue("mwp1sub-01_T1w.nii", "WM"), of_tissue("sub-01_space-MNI152NLin6Asym_label-GM_probseg.nii.gz", "CSF")
    ('mwp2sub-01_T1w.nii', 'sub-01_space-MNI152NLin6Asym_label-CSF_probseg.nii.gz')
    """
    stem = ENDING.sub("", name)
    match = next((found for pattern, *_ in CONVENTIONS if (found := re.fullmatch(pattern, stem)) is not None), None)
    if match is None:
        return None
    written = match["tissue"]
    # Each tool writes all its tissues in one way: as numbers, as words, or as labels.
    words = {there: word for word, there in TISSUES.items() if word.isdigit() == written.isdigit()}
    words = {there: there for there in words} if written in words else words
    if TISSUES.get(written, written) not in words or tissue not in words:
        return None
    start, end = match.span("tissue")
    return f"{name[:start]}{words[tissue]}{name[end:]}"


def _described(match: re.Match[str], tool: str, space: str) -> MapName:
    said = {group: value for group, value in match.groupdict().items() if value is not None}
    owner = "_".join(part for part in (said.get("before", "").strip("_"), said.get("source", "")) if part)
    spans = sorted(match.span(group) for group in ("before", "source") if group in said)
    kept, at = "", 0
    for start, end in spans:
        kept, at = kept + match.string[at:start], end
    return MapName(
        tool=tool,
        tissue=TISSUES.get(said["tissue"], said["tissue"]),
        modulation=_modulation(said, tool),
        fwhm_mm=_fwhm_mm(said),
        space=said.get("space", space),
        source=owner,
        kind=(kept + match.string[at:]).strip("_"),
    )


def _modulation(said: dict[str, str], tool: str) -> str:
    description = said.get("desc", "").casefold()
    stated = MODULATED.search(description)
    if "mod" in said or (stated is not None and stated["no"] is None):
        return "all"
    if "part" in said:
        return "nonlinear"
    return "unknown" if tool == "unknown" or description.startswith("given") else "none"


def _fwhm_mm(said: dict[str, str]) -> float | None:
    smooth = said.get("smooth", "")
    described = re.search(rf"smooth({NUMBER})?", said.get("desc", ""), re.IGNORECASE)
    number = re.search(NUMBER, smooth) if smooth else described and re.search(NUMBER, described.group())
    if number:
        return float(number.group().replace("p", "."))
    return None if smooth or described else 0.0
