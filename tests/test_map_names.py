import pytest

from nilatent.map_names import in_template, of_tissue, read_map_name

# Name: tissue, modulation, smoothing in mm, on the template, scan, kind.
NAMES = {
    "c1sub-01_T1w.nii": ("GM", "none", 0, False, "sub-01_T1w", "c1"),
    "rc1sub-01_T1w.nii": ("GM", "none", 0, False, "sub-01_T1w", "rc1"),
    "wc1sub-01_T1w.nii": ("GM", "none", 0, True, "sub-01_T1w", "wc1"),
    "mwc2sub-01_T1w.nii": ("WM", "all", 0, True, "sub-01_T1w", "mwc2"),
    "smwc1sub-01_T1w.nii": ("GM", "all", None, True, "sub-01_T1w", "smwc1"),
    "s8mwrc1sub-01_T1w.nii": ("GM", "all", 8, True, "sub-01_T1w", "s8mwrc1"),
    "mwrc1OAS1_0001_MR1_mpr_anon_fslswapdim_bet.nii.gz": (
        "GM",
        "all",
        0,
        True,
        "OAS1_0001_MR1_mpr_anon_fslswapdim_bet",
        "mwrc1",
    ),
    "p1IXI012.nii": ("GM", "none", 0, False, "IXI012", "p1"),
    "wp1001.nii": ("GM", "none", 0, True, "001", "wp1"),
    "m0wrp1a.nii": ("GM", "nonlinear", 0, True, "a", "m0wrp1"),
    "s6mwmwp1rsub-01_ses-1_T1w.nii": ("GM", "all", 6, True, "sub-01_ses-1_T1w", "s6mwmwp1r"),
    "rp1sub-01_T1w_rigid.nii": ("GM", "none", 0, False, "sub-01_T1w_rigid", "rp1"),
    "rp1sub-01_T1w_affine.nii": ("GM", "none", 0, True, "sub-01_T1w", "rp1_affine"),
    "p1_affinesub-1.nii.gz": ("GM", "none", 0, True, "sub-1", "p1_affine"),
    "sub-5_s8mwp1.nii.gz": ("GM", "all", 8, True, "sub-5", "s8mwp1"),
    "sub-01_ses-1_run-2_space-MNI152NLin6Asym_res-2_label-CSF_probseg.nii.gz": (
        "CSF",
        "none",
        0,
        True,
        "sub-01_ses-1_run-2",
        "space-MNI152NLin6Asym_res-2_label-CSF_probseg",
    ),
    "sub-01_label-GM_probseg.nii.gz": ("GM", "none", 0, False, "sub-01", "label-GM_probseg"),
    "sub-01_space-T1w_label-GM_probseg.nii": ("GM", "none", 0, False, "sub-01", "space-T1w_label-GM_probseg"),
    "sub-01_space-MNI152NLin2009cAsym-nonlinear-modulated_label-GM_probseg.nii": (
        "GM",
        "all",
        0,
        True,
        "sub-01",
        "space-MNI152NLin2009cAsym-nonlinear-modulated_label-GM_probseg",
    ),
    "sub-01_space-MNI152_label-GM_desc-modulatedSmooth1p5_probseg.nii": (
        "GM",
        "all",
        1.5,
        True,
        "sub-01",
        "space-MNI152_label-GM_desc-modulatedSmooth1p5_probseg",
    ),
    "sub-01_space-MNI152_label-GM_desc-smooth_probseg.nii": (
        "GM",
        "none",
        None,
        True,
        "sub-01",
        "space-MNI152_label-GM_desc-smooth_probseg",
    ),
    "T1_GM_to_template_GM_mod.nii.gz": ("GM", "nonlinear", 0, True, "T1", "GM_to_template_GM_mod"),
    "sub-01_T1w_segm-whitematter_space-Ixi549Space_modulated-off_fwhm-8mm_probability.nii.gz": (
        "WM",
        "none",
        8,
        True,
        "sub-01_T1w",
        "segm-whitematter_space-Ixi549Space_modulated-off_fwhm-8mm_probability",
    ),
    "sub-01_T1w_segm-graymatter_dartelinput.nii.gz": (
        "GM",
        "none",
        0,
        False,
        "sub-01_T1w",
        "segm-graymatter_dartelinput",
    ),
}
OTHERS = """
sub-01_T1w.nii.gz c1_T1w.nii p10_T1w.nii p0sub-01.nii wmsub-01_T1w.nii h2020_wp1_T1w.nii wp0sub-01.nii y_sub-01_T1w.nii
sub-01_space-MNI152_desc-preproc_T1w.nii.gz sub-01_space-MNI152_label-GM_mask.nii.gz C1abc.nii mysub.nii
"""


@pytest.mark.parametrize("name", NAMES)
def test_a_name_says_tissue_treatment_place_and_scan(name):
    said = read_map_name(name)
    assert said is not None
    found = (said.tissue, said.modulation, said.fwhm_mm, said.in_template, said.source, said.kind)
    assert found == NAMES[name]
    assert said.is_grey == (said.tissue == "GM" and said.in_template)


@pytest.mark.parametrize(
    ("description", "modulation"),
    [
        ("modulated", "all"),
        ("Modulated", "all"),
        ("modulatedSmooth8", "all"),
        ("unmodulated", "none"),
        ("nonmodulated", "none"),
        ("nonModulatedSmooth8", "none"),
        ("non-modulated", "none"),
        ("un-modulated", "none"),
        ("notmodulated", "none"),
        ("smooth8notModulated", "none"),
        ("preproc", "none"),
    ],
)
def test_a_description_that_denies_modulation_is_believed(description, modulation):
    said = read_map_name(f"sub-01_space-MNI152NLin6Asym_label-GM_desc-{description}_probseg.nii.gz")
    assert said is not None
    assert said.modulation == modulation


@pytest.mark.parametrize("name", OTHERS.split())
def test_other_images_are_no_tissue_maps(name):
    assert read_map_name(name) is None


def test_volumes_rank_before_probabilities_and_sharp_before_smooth():
    names = ["mwp1a", "smwp1a", "m0wp1a", "sub-1_label-GM", "wp1a", "s8wp1a"]
    ranks = [read_map_name(f"{name}.nii").rank for name in names]
    assert ranks == sorted(ranks)
    assert len(set(ranks)) == len(ranks)


@pytest.mark.parametrize(
    ("name", "white"),
    [
        ("s6mwmwp1rsub-01_ses-1_T1w.nii", "s6mwmwp2rsub-01_ses-1_T1w.nii"),
        ("c1_mwp1sub-1.nii.gz", "c1_mwp2sub-1.nii.gz"),
        ("sub-1_space-MNI152_label-GM_desc-modulatedSmooth8_probseg.nii.gz",) * 2,
        (
            "sub-1_T1w_segm-graymatter_space-Ixi549Space_modulated-on_probability.nii",
            "sub-1_T1w_segm-whitematter_space-Ixi549Space_modulated-on_probability.nii",
        ),
        ("sub-1_T1w.nii", None),
        ("c4sub-1.nii", None),
    ],
)
def test_the_map_of_another_tissue_is_called_alike(name, white):
    white = white.replace("label-GM", "label-WM") if white else None
    assert of_tissue(name, "WM") == white
    assert white is None or of_tissue(white, "GM") == name
    assert white is None or read_map_name(white).tissue == "WM"


def test_images_of_any_kind_say_by_name_whether_they_lie_on_the_template():
    there = (
        "wsub-1_FLAIR.nii",
        "s6wmsub-1_T1w.nii",
        "sub-1_space-MNI152NLin6Asym_res-2_desc-preproc_T2w.nii.gz",
        "mwp1a.nii",
    )
    not_there = (
        "sub-1_FLAIR.nii",
        "sub-1_space-T1w_FLAIR.nii",
        "sub-1_space-MNIInfant_T2w.nii",
        "wFLAIR.nii",
        "p1sub-1.nii",
    )
    assert [name for name in (*there, *not_there) if in_template(name)] == list(there)
