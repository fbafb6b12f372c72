"""What is simulated: one flat set of settings, checked at the door."""

from dataclasses import dataclass

from nilatent.errors import SettingError

KINDS = ("gm", "t1")
CONFOUNDS = ("none", "age", "site")
CONTROL, PATIENT, ADVANCED = "control", "patient", "advanced"

# Severity of a patient at the first session is between 1 - SPREAD and 1 + SPREAD, the mean is 1.
SEVERITY_SPREAD = 0.6
# The rare stage is this many times as severe as a patient.
ADVANCED_TIMES = 1.5
# Severity that a patient gains per year lies between these two.
SLOPE_PER_YEAR = (0.05, 0.2)
# Visits are shifted by at most this much around their planned date.
VISIT_JITTER_YEARS = 0.1
# Disease at which a patient is called progressive: mild at the first visit, reached within years by those who are quick.
CONVERSION = 1.65
# A region that loses more than this is no longer a region.
LARGEST_LOSS = 0.95


@dataclass(frozen=True)
class SimulationConfig:
    """Settings of a simulated cohort.

    Parameters
    ----------
    kind : {"gm", "t1"}
        Modulated grey-matter maps in MNI space, or raw T1-weighted heads in native space.
    n_subjects : int
        People. Person number i is the same whatever the number of people.
    seed : int
        The only source of randomness.
    spacing_mm : float
        Voxel size of grey-matter maps and of the truth maps.
    native_spacing_mm : float
        Voxel size of T1-weighted heads.
    null : bool
        No tissue is lost: group and severity have nothing to do with the brain.
    confounded : {"none", "age", "site"}
        Patients are older than controls, or come mostly from other sites.
    class_mediated : bool
        Every patient is equally severe: loss varies between groups and never within one.
    effect : float
        Multiplies every loss in `losses`.
    regions : tuple[str, ...]
        AAL2 names of the regions that lose tissue.
    losses : tuple[float, ...]
        Fraction of grey matter that each region of a patient of mean severity has lost.
    ventricles_mm : float
        How far the walls of the ventricles move outward at disease 1.
    patient_head_size : float
        Multiplies the volume of the heads of everyone who is no control.
    follow_up_years : float
        Patients are followed for this long: columns ``course`` ("progressive" when the disease comes to 1.65 by then, else
        "stable") and ``course_years`` (time to it, or to the end). 0: there are no such columns.
    group_fraction : float
        Share of people who are patients (of any stage).
    advanced_fraction : float
        Share of people in the rare stage "advanced"; they are part of `group_fraction`.
    n_sites : int
        Scanners.
    site_effect : float
        Multiplies the differences between sites in contrast, bias and noise; 0 makes them equal.
    n_sessions : int
        Visits of each person.
    interval_years : float
        Time between two visits.
    missed_fraction : float
        Share of visits after the first that do not take place; the others keep their dates and labels.
    deformation : float
        Multiplies the differences in shape between people; 0 gives everyone the template's shape.
    n_causes : int
        0: every person's shape differs by a random field of its own, so that differences have as many causes as the
        field has bumps. 1 to 99: everyone's shape differs by the same few fields, each person with amplitudes of its
        own; the deformations are wide and large, so maps lie on a curved sheet of that many dimensions.
    noise : float
        Multiplies the noise of the scanner.

    Raises
    ------
    SettingError
        When a setting is out of range or two contradict each other.
    """

    kind: str = "gm"
    n_subjects: int = 160
    seed: int = 0
    spacing_mm: float = 4.0
    native_spacing_mm: float = 1.5
    null: bool = False
    confounded: str = "none"
    class_mediated: bool = False
    effect: float = 1.0
    regions: tuple[str, ...] = ("Hippocampus_L", "Hippocampus_R", "Temporal_Mid_L", "Temporal_Inf_L")
    losses: tuple[float, ...] = (0.35, 0.30, 0.25, 0.20)
    ventricles_mm: float = 0.0
    patient_head_size: float = 1.0
    follow_up_years: float = 0.0
    group_fraction: float = 0.5
    advanced_fraction: float = 0.0
    n_sites: int = 2
    site_effect: float = 1.0
    n_sessions: int = 1
    interval_years: float = 1.0
    missed_fraction: float = 0.0
    deformation: float = 1.0
    n_causes: int = 0
    noise: float = 1.0

    def __post_init__(self) -> None:
        """Refuse nonsense."""
        _one_of("kind", self.kind, KINDS)
        _one_of("confounded", self.confounded, CONFOUNDS)
        _in_range("n_subjects", self.n_subjects, 1, 99_999)
        _in_range("seed", self.seed, 0, 2**32 - 1)
        _in_range("spacing_mm", self.spacing_mm, 1, 6)
        _in_range("native_spacing_mm", self.native_spacing_mm, 0.8, 4)
        _in_range("n_sites", self.n_sites, 1, 99)
        _in_range("n_sessions", self.n_sessions, 1, 99)
        _in_range("interval_years", self.interval_years, 2 * VISIT_JITTER_YEARS, 20)
        _in_range("missed_fraction", self.missed_fraction, 0, 1)
        _in_range("group_fraction", self.group_fraction, 0, 1)
        _in_range("advanced_fraction", self.advanced_fraction, 0, self.group_fraction)
        _in_range("site_effect", self.site_effect, 0, 5)
        _in_range("deformation", self.deformation, 0, 1.5)
        _in_range("n_causes", self.n_causes, 0, 99)
        _in_range("noise", self.noise, 0, 10)
        _in_range("effect", self.effect, 0, 10)
        _in_range("ventricles_mm", self.ventricles_mm, 0, 8)
        _in_range("patient_head_size", self.patient_head_size, 0.5, 1.5)
        _in_range("follow_up_years", self.follow_up_years, 0, 50)
        self._check_regions()
        if self.confounded == "site" and self.n_sites < 2:
            raise SettingError(
                f"confounded='site' needs at least 2 sites, n_sites is {self.n_sites}. Set n_sites=2 or confounded='none'."
            )

    def _check_regions(self) -> None:
        if len(self.regions) != len(self.losses) or len(set(self.regions)) != len(self.regions):
            raise SettingError(
                f"Every planted region is named once and has one loss; there are {len(self.regions)} regions "
                f"({', '.join(self.regions)}) and {len(self.losses)} losses. Give two lists of equal length."
            )
        if not self.regions:
            raise SettingError(
                "At least one region is named in regions. For a cohort without any effect set null=true."
            )
        for name, loss in zip(self.regions, self.losses, strict=True):
            _in_range(f"the loss of {name}", loss, 0, 1)
        worst = max(self.losses) * self.effect * self.largest_severity
        if worst > LARGEST_LOSS:
            raise SettingError(
                f"The most severe patient may lose at most {LARGEST_LOSS:.0%} of a region; effect={self.effect:g} with a "
                f"loss of {max(self.losses):g} and {self.n_sessions} sessions would take {worst:.0%}. "
                f"Lower effect to {self.effect * LARGEST_LOSS / worst:.2f} or less."
            )

    @property
    def largest_severity(self) -> float:
        """Severity that no patient can exceed at the last session; a patient's mean at the first one is 1."""
        start = 1 + (0.0 if self.class_mediated else SEVERITY_SPREAD)
        years = (self.n_sessions - 1) * self.interval_years + (VISIT_JITTER_YEARS if self.n_sessions > 1 else 0)
        stage = ADVANCED_TIMES if self.advanced_fraction > 0 else 1.0
        return start * stage + SLOPE_PER_YEAR[1] * years

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the groups, in order of severity."""
        return (CONTROL, PATIENT, ADVANCED) if self.advanced_fraction > 0 else (CONTROL, PATIENT)


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise SettingError(f"{name} is one of {', '.join(allowed)}, got '{value}'.")


def _in_range(name: str, value: float, low: float, high: float) -> None:
    # Written so that a NaN, for which every comparison is false, is refused too.
    if not low <= value <= high:
        raise SettingError(f"{name} lies between {low:g} and {high:g}, got {value}. Change this setting.")
