"""Every error that nilatent raises on purpose; each message says rule, value, place and next step."""


class NilatentError(Exception):
    """Something the user can mend; printed without a traceback by the command line."""


class SettingError(NilatentError):
    """A setting, option or configuration key is unknown, contradictory or out of range."""


class CohortError(NilatentError):
    """A source folder or table cannot be read as a cohort, or two tables disagree about its rows."""


class ScanError(NilatentError):
    """One scan cannot be used; the others go on.

    Parameters
    ----------
    message : str
        What was found, where, and what to do next.
    rule : str
        Short name of the rule that was broken, for the table of excluded scans.
    """

    def __init__(self, message: str, *, rule: str) -> None:
        super().__init__(message)
        self.rule = rule

    def __reduce__(self) -> tuple[object, ...]:
        # Worker processes send errors home by reduction, which by default forgets keyword-only arguments.
        return (_scan_error, (str(self), self.rule))


def _scan_error(message: str, rule: str) -> ScanError:
    return ScanError(message, rule=rule)


class GridError(NilatentError):
    """Two images that must share a voxel grid do not."""


class AtlasError(NilatentError):
    """A label image or its table is missing, ambiguous or off the brain."""


class LatentsError(NilatentError):
    """A latent table breaks its schema."""


class FindingError(NilatentError):
    """A finding on disk is incomplete or of another format version."""


class LeakageError(NilatentError):
    """A subject stands on both sides of a split, or was seen by the model that is being judged on it."""


class MissingExtraError(NilatentError):
    """An optional package is not installed; the message says which extra brings it."""
