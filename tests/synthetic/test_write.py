import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from nilatent.analysis.latent_space import LatentSpace
from nilatent.cohort import read_cohort
from nilatent.errors import SettingError
from nilatent.map_names import read_map_name
from nilatent.provenance import read_json
from nilatent.synthetic import Form, SamplesConfig, write_synthetic
from nilatent.synthetic.plan import BLOCK, drawn, plan_samples

N_TRAINING, INPUTS = 24, {"model": "abc", "latents": "def"}
ValuesOf = Callable[[Path], dict[str, np.ndarray]]


def test_what_was_decoded_is_read_back_as_a_cohort(
    tmp_path: Path, space: LatentSpace, scans: pd.DataFrame, form: Form, decoder: Any
) -> None:
    config = SamplesConfig(n=20, seed=4)
    write_synthetic(tmp_path / "made", space, scans, form, config, is_copy=None)
    plan = plan_samples(space, scans, form, config, checks_copies=False)
    latents = np.concatenate([drawn(space, plan, start)[0] for start in (0, BLOCK)])[:20]
    cohort = read_cohort([tmp_path / "made"])
    assert list(cohort.scans.index) == [f"sub-synthetic{i:05d}" for i in range(1, 21)]
    assert cohort.excluded.empty
    for path, expected in zip(cohort.scans["path"], decoder.images(latents), strict=True):
        volume = np.asarray(nib.load(path).dataobj)
        np.testing.assert_array_equal(volume[form.mask], np.maximum(expected, 0))
        assert not volume[~form.mask].any()
        np.testing.assert_allclose(nib.load(path).affine, form.grid.affine)


def test_every_sample_says_that_it_is_synthetic(
    tmp_path: Path, space: LatentSpace, scans: pd.DataFrame, form: Form
) -> None:
    write_synthetic(tmp_path / "made", space, scans, form, SamplesConfig(n=3), is_copy=None)
    cohort = read_cohort([tmp_path / "made"])
    assert set(cohort.scans["synthetic"]) == {"true"}
    assert cohort.scans[["age", "sex", "group"]].replace("", np.nan).isna().all(axis=None)
    assert "does not exist" in cohort.columns["synthetic"]["Description"]
    for path in map(Path, cohort.scans["path"]):
        side_car = read_json(path.with_name(path.name.replace(".nii.gz", ".json")))
        assert side_car["Synthetic"] is True
        assert side_car["nilatent"]["Model"] == "abc"
        assert bytes(nib.load(path).header["descrip"]).startswith(b"synthetic (nilatent)")
        assert re.fullmatch(r"sub-synthetic0000\d_.*_desc-modulatedSmooth8Synthetic_probseg\.nii\.gz", path.name)
    described = read_json(tmp_path / "made" / "dataset_description.json")
    assert described["DatasetType"] == "derivative"
    assert "nobody in this data set exists" in described["Name"]
    assert "nobody in this data set exists" in (tmp_path / "made" / "README").read_text()


def test_names_keep_saying_how_the_maps_were_made(form: Form) -> None:
    for description, modulation, fwhm_mm in (("modulatedSyn", "all", 0.0), ("givenSmooth1p5", "unknown", 1.5)):
        name = replace(form, description=description).image(Path(), "sub-synthetic00001").name
        said = read_map_name(name)
        assert said is not None
        assert said.is_grey
        assert (said.modulation, said.fwhm_mm) == (modulation, fwhm_mm)


def test_a_sample_is_the_same_among_few_and_many(
    tmp_path: Path, space: LatentSpace, scans: pd.DataFrame, form: Form, decoder: Any, values_of: ValuesOf
) -> None:
    for n, name in ((5, "few"), (40, "many")):
        write_synthetic(tmp_path / name, space, scans, form, SamplesConfig(n=n), is_copy=None)
    few, many = (values_of(tmp_path / name) for name in ("few", "many"))
    assert (len(few), len(many)) == (5, 40)
    for subject, values in few.items():
        np.testing.assert_array_equal(values, many[subject])
    # And never more than a block at once.
    assert set(decoder.batches) == {BLOCK}
    assert len({values.tobytes() for values in many.values()}) == 40
    write_synthetic(tmp_path / "few", space, scans, form, SamplesConfig(n=40), is_copy=None)
    records = [read_json(tmp_path / name / "provenance.json") for name in ("few", "many")]
    assert records[0]["content_hash"] == records[1]["content_hash"]


def test_another_seed_gives_other_samples(
    tmp_path: Path, space: LatentSpace, scans: pd.DataFrame, form: Form, values_of: ValuesOf
) -> None:
    for seed in (0, 1):
        write_synthetic(tmp_path / str(seed), space, scans, form, SamplesConfig(n=4, seed=seed), is_copy=None)
    one, other = (np.stack(list(values_of(tmp_path / str(seed)).values())) for seed in (0, 1))
    assert not (one == other).all(axis=1).any()


def test_an_export_that_was_killed_goes_on(
    tmp_path: Path, space: LatentSpace, scans: pd.DataFrame, form: Form, decoder: Any, values_of: ValuesOf
) -> None:
    config, out = SamplesConfig(n=40), tmp_path / "killed"
    write_synthetic(tmp_path / "whole", space, scans, form, config, is_copy=None)
    decoder.fails_at = len(decoder.batches) + 2
    with pytest.raises(KeyboardInterrupt):
        write_synthetic(out, space, scans, form, config, is_copy=None)
    assert not (out / "provenance.json").exists()
    assert len(values_of(out)) == 2 * BLOCK
    damaged = sorted(out.glob("sub-*/anat/*.nii.gz"))[3]
    damaged.write_bytes(damaged.read_bytes()[:-20])
    kept = {path: path.stat().st_mtime_ns for path in out.glob("sub-synthetic0002*/anat/*")}
    decoder.fails_at, before = 10**9, len(decoder.batches)
    write_synthetic(out, space, scans, form, config, is_copy=None)
    assert len(decoder.batches) == before + 2
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    hashes = [read_json(folder / "provenance.json")["content_hash"] for folder in (out, tmp_path / "whole")]
    assert hashes[0] == hashes[1]


def test_conditions_move_the_samples_and_are_written(
    tmp_path: Path, space: LatentSpace, scans: pd.DataFrame, form: Form
) -> None:
    found = {}
    for age, group in ((30, "control"), (70, "case")):
        conditions = (("age", str(age)), ("group", group))
        config = SamplesConfig(n=64, conditions=conditions, seed=age)
        write_synthetic(tmp_path / group, space, scans, form, config, is_copy=None)
        plan = plan_samples(space, scans, form, config, checks_copies=False)
        found[group] = np.concatenate([drawn(space, plan, start)[0] for start in range(0, 64, BLOCK)]).mean(axis=0)
        cohort = read_cohort([tmp_path / group])
        assert set(cohort.scans["age"]) == {float(age)}
        assert set(cohort.scans["group"]) == {group}
    np.testing.assert_allclose(found["case"] - found["control"], [2.0, 3.0, 0.0], atol=0.45)


def test_conditions_like_the_cohort_tell_no_person(
    tmp_path: Path, space: LatentSpace, scans: pd.DataFrame, form: Form
) -> None:
    config = SamplesConfig(n=320, like=("age", "group", "code"))
    plan = plan_samples(space, scans, form, config, checks_copies=False)
    told = pd.concat([drawn(space, plan, start)[2] for start in range(0, 320, BLOCK)])
    training = scans.iloc[:N_TRAINING]
    assert told["age"].between(training["age"].min(), training["age"].max()).all()
    assert told["age"].std() == pytest.approx(training["age"].std(), rel=0.2)
    assert told["age"].mean() == pytest.approx(training["age"].mean(), abs=4)
    assert told["age"].isin(training["age"]).mean() < 0.1
    assert set(told["code"]) == {1, 2, 3}
    assert set(told["group"]) == {"case", "control"}
    # To a hundredth of their spread, whatever the unit.
    small = plan_samples(space, scans.assign(age=scans["age"] / 1e4), form, config, checks_copies=False)
    shrunk = pd.concat([drawn(space, small, start)[2] for start in range(0, 320, BLOCK)])["age"]
    assert shrunk.std() == pytest.approx(training["age"].std() / 1e4, rel=0.2)
    assert shrunk.nunique() > 20
    # Not even where there are few ages.
    few = scans.assign(age=60.0 + 3.0 * (np.arange(len(scans)) % 6))
    coarse = plan_samples(space, few, form, config, checks_copies=False)
    ages = pd.concat([drawn(space, coarse, start)[2] for start in range(0, 320, BLOCK)])["age"]
    assert ages.isin(few["age"]).mean() < 0.8
    # Row by row together: the code and the group of one person come from one person.
    pairs = set(zip(told["group"], told["code"], strict=True))
    assert pairs <= set(zip(training["group"], training["code"], strict=True))


def test_unseen_scans_that_no_density_knows_are_no_obstacle(
    space: LatentSpace, scans: pd.DataFrame, form: Form
) -> None:
    other = scans.assign(group=[*scans["group"].iloc[:-2], "third", None])
    plan = plan_samples(space, other, form, SamplesConfig(like=("group",)), checks_copies=False)
    assert set(plan.said["distance of scans"]) == {"training", "unseen"}
    assert plan.said["distance of scans"]["training"] == pytest.approx(0.95, abs=0.15)
    # Nor is anybody drawn like the one training subject of a category.
    one = plan_samples(
        space, scans.assign(group=["third", *scans["group"].iloc[1:]]), form, SamplesConfig(like=("group",)),
        checks_copies=False,
    )  # fmt: skip
    assert set(one.pool["group"]) == {"case", "control"}
    assert len(one.pool) == one.density.n_subjects == N_TRAINING - 1
    far = replace(space, values=np.where(space.unseen[:, None], 50.0, space.values))
    assert plan_samples(far, scans, form, SamplesConfig(), checks_copies=False).said["distance of scans"]["unseen"] > 5


def test_a_condition_beyond_the_training_scans_is_marked(
    tmp_path: Path, space: LatentSpace, scans: pd.DataFrame, form: Form
) -> None:
    for age, mark in (("50", "false"), ("95", "true")):
        config = SamplesConfig(n=2, conditions=(("age", age),))
        table = write_synthetic(tmp_path / age, space, scans, form, config, is_copy=None)
        assert list(table["beyond_training"]) == [mark] * 2


def test_the_prior_is_drawn_from_and_its_distance_told(
    tmp_path: Path, space: LatentSpace, scans: pd.DataFrame, form: Form
) -> None:
    plan = plan_samples(space, scans, form, SamplesConfig(density="prior"), checks_copies=False)
    latents = np.concatenate([drawn(space, plan, start)[0] for start in range(0, 1600, BLOCK)])
    np.testing.assert_allclose(latents.std(axis=0), 1, atol=0.08)
    np.testing.assert_allclose(latents.mean(axis=0), 0, atol=0.1)
    tables = [
        write_synthetic(tmp_path / density, space, scans, form, SamplesConfig(n=32, density=density), is_copy=None)
        for density in ("prior", "mixture")
    ]
    prior, mixture = (table["distance"].median() for table in tables)
    assert prior > 1.5 > mixture


def test_a_decoder_is_told_what_it_is_conditioned_on(
    tmp_path: Path, space: LatentSpace, scans: pd.DataFrame, form: Form, decoder: Any
) -> None:
    telling = replace(space, told=("age",))
    config = SamplesConfig(n=2, density="prior", conditions=(("age", "44"),))
    write_synthetic(tmp_path / "asked", telling, scans, form, config, is_copy=None)
    assert decoder.told[-1] is not None
    assert set(decoder.told[-1]["age"]) == {44.0}
    # Where nothing is asked, a decoder that wants to know is told what training subjects are like.
    write_synthetic(tmp_path / "not", telling, scans, form, SamplesConfig(n=2), is_copy=None)
    assert decoder.told[-1]["age"].nunique() > 3
    assert read_cohort([tmp_path / "not"]).scans["age"].notna().all()


def test_copies_are_left_out_and_listed_unless_allowed(
    tmp_path: Path, space: LatentSpace, scans: pd.DataFrame, form: Form
) -> None:
    def is_copy(images: np.ndarray) -> np.ndarray:
        return np.arange(len(images)) == 2

    for allow in (False, True):
        config = SamplesConfig(n=20, allow_copies=allow)
        table = write_synthetic(tmp_path / str(allow), space, scans, form, config, is_copy=is_copy)
        excluded = pd.read_csv(tmp_path / str(allow) / "excluded.tsv", sep="\t")
        refused = ["sub-synthetic00003", "sub-synthetic00019"]
        assert list(excluded["scan_id"]) == ([] if allow else refused)
        assert ("sub-synthetic00003" in table.index) == allow
        assert set(table["copy"]) == ({"true", "false"} if allow else {"false"})
        assert len(read_cohort([tmp_path / str(allow)]).scans) == (20 if allow else 18)
        # A second call knows the refused ones again.
        again = write_synthetic(tmp_path / str(allow), space, scans, form, config, is_copy=is_copy)
        pd.testing.assert_frame_equal(again, table)


def test_copies_are_looked_for_in_what_the_decoder_draws(
    tmp_path: Path, space: LatentSpace, scans: pd.DataFrame, form: Form
) -> None:
    seen = []
    table = write_synthetic(
        tmp_path / "made", space, scans, form, SamplesConfig(n=1), is_copy=lambda x: seen.append(x) or x[:, 0] > np.inf
    )
    assert seen[0].min() < 0
    assert set(table["copy"]) == {"false"}
    unchecked = write_synthetic(tmp_path / "other", space, scans, form, SamplesConfig(n=1), is_copy=None)
    assert set(unchecked["copy"]) == {"unknown"}
    assert "not looked for" in (tmp_path / "other" / "README").read_text()


def test_what_was_below_zero_is_told(
    tmp_path: Path, space: LatentSpace, scans: pd.DataFrame, form: Form, decoder: Any
) -> None:
    config = SamplesConfig(n=3)
    table = write_synthetic(tmp_path / "made", space, scans, form, config, is_copy=None)
    plan = plan_samples(space, scans, form, config, checks_copies=False)
    images = decoder.images(drawn(space, plan, 0)[0])[:3].astype(float)
    share = -np.minimum(images, 0).sum(axis=1) / np.maximum(images, 0).sum(axis=1)
    np.testing.assert_allclose(table["clipped_share"], share, atol=1e-6)
    assert share.min() > 1e-4


def test_intensities_are_found_through_a_table(
    tmp_path: Path, space: LatentSpace, scans: pd.DataFrame, form: Form
) -> None:
    heads = replace(form, target="t1w", description="preproc")
    write_synthetic(tmp_path / "made", space, scans, heads, SamplesConfig(n=3), is_copy=None)
    cohort = read_cohort([tmp_path / "made" / "images.tsv"])
    assert len(cohort.scans) == 3
    assert set(cohort.scans["synthetic"]) == {"true"}
    assert all(path.endswith("_desc-preprocSynthetic_T1w.nii.gz") for path in cohort.scans["path"])


def test_a_folder_of_something_else_is_left_alone(
    tmp_path: Path, space: LatentSpace, scans: pd.DataFrame, form: Form
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    write_synthetic(tmp_path / "made", space, scans, form, SamplesConfig(n=3), is_copy=None)
    for out, config, message in (
        ("mine", SamplesConfig(n=3), "holds something else"),
        ("made", SamplesConfig(n=3, seed=1), "another model, density, condition or seed"),
        ("made", SamplesConfig(n=3, allow_copies=True), "another model"),
        ("made", SamplesConfig(n=2), "sub-synthetic00003, and 2 samples"),
    ):
        with pytest.raises(SettingError, match=message):
            write_synthetic(tmp_path / out, space, scans, form, config, is_copy=None)
    other = replace(form, inputs=INPUTS | {"model": "other"})
    with pytest.raises(SettingError, match="another model"):
        write_synthetic(tmp_path / "made", space, scans, other, SamplesConfig(n=3), is_copy=None)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"density": "prior"}, "no prior to draw from"),
        ({"conditions": (("group", "patient"),)}, "'patient' is that of fewer than 5 training subjects"),
        ({"conditions": (("weight", "80"),)}, "no such column"),
        ({"conditions": (("age", "old"),)}, "got 'old'"),
    ],
)
def test_what_cannot_be_drawn_is_refused_before_anything_is_written(
    tmp_path: Path,
    space: LatentSpace,
    scans: pd.DataFrame,
    form: Form,
    settings: dict[str, object],
    message: str,
) -> None:
    plain = replace(space, has_prior=False)
    with pytest.raises(SettingError, match=message):
        write_synthetic(tmp_path / "made", plain, scans, form, SamplesConfig(n=3, **settings), is_copy=None)
    assert not (tmp_path / "made").exists()


def test_settings_that_contradict_are_refused(space: LatentSpace, scans: pd.DataFrame, form: Form) -> None:
    config = SamplesConfig(density="prior", conditions=(("group", "case"),))
    with pytest.raises(SettingError, match="knows nothing of group"):
        plan_samples(space, scans, form, config, checks_copies=False)
    for settings in ({"n": 0}, {"density": "kde"}, {"conditions": (("a", "1"), ("a", "2"))}):
        with pytest.raises(SettingError):
            SamplesConfig(**settings)
    with pytest.raises(SettingError, match="age is conditioned on twice"):
        SamplesConfig(conditions=(("age", "1"),), like=("age",))
