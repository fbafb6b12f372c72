"""What the decoder's sensitivity says in words: the answer, and what the reader must not conclude."""

from collections.abc import Mapping, Sequence

import numpy as np

from nilatent.analysis.sensitivity.effects import SCORES, Effect, SensitivityConfig

N_NAMED = 3
# Share of the largest effect by which slopes may miss it before the reader is told first.
LARGEST_DEPARTURE = 0.2
SMALL = 50


def answer(effects: Sequence[Effect], names: np.ndarray, config: SensitivityConfig) -> str:
    """Sentences with numbers; what speaks against the decoder comes first."""
    asked = [one for one in effects if np.isfinite(one.p).any()]
    lines = _against(asked, config)
    main = next((one for one in asked if one.direction.kind == "group"), asked[0] if asked else None)
    if main is not None:
        lines.append(_moved(main, names, config))
        lines.append(_held(main))
    lines += [_others(asked, main, config)] if len(asked) > 1 else []
    lines += [] if asked else ["No column defines a direction here; the table holds single latents and components."]
    return " ".join(line for line in lines if line)


def _against(asked: Sequence[Effect], config: SensitivityConfig) -> list[str]:
    lines = []
    curved = [one for one in asked if one.departure > LARGEST_DEPARTURE]
    if curved:
        worst = max(curved, key=lambda one: one.departure)
        lines.append(
            f"The decoder bends: its slopes, on which p-values rest, miss the drawn effect of {worst.direction.name} by up to "
            f"{worst.departure:.0%} of its largest."
        )
    fewer = [
        f"{one.direction.name} ({plain} against {drawn})"
        for one in asked
        if (plain := _called(one.p_regional, config)) > (drawn := _called(one.p, config))
    ]
    if fewer:
        lines.append(
            f"Plain regional regression on the same scans calls more regions than the decoder: {', '.join(fewer)}."
        )
    behind = [
        f"{one.direction.name} ({one.baseline_agrees.r:.3f} against {one.agrees.r:.3f})"
        for one in asked
        if one.agrees.r <= one.baseline_agrees.r and one.baseline_agrees.p <= config.alpha
    ]
    if behind:
        lines.append(
            "Plain regional regression on the training scans foretells the regions of unseen scans at least as well as the "
            f"decoder for {', '.join(behind)}, by rank correlation."
        )
    return lines


def _moved(one: Effect, names: np.ndarray, config: SensitivityConfig) -> str:
    called = one.p <= config.alpha
    told = f"{one.direction.name} ({one.direction.unit})"
    beside = (
        f"; plain regional regression on the same scans calls {_called(one.p_regional, config)}, and the decoder draws "
        f"{one.carried:.0%} of its slopes."
    )
    if not called.any():
        smallest = f"smallest family-wise p = {np.nanmin(one.p):.2g}"
        return f"No region is moved by {told} more than by a shuffled column ({smallest}){beside}"
    order = np.argsort(-np.abs(np.where(called, one.effect, 0)), kind="stable")[: min(N_NAMED, int(called.sum()))]
    listed = ", ".join(f"{names[place]} {one.effect[place]:+.3g} (p = {one.p[place]:.2g})" for place in order)
    of_all = f"{int(called.sum())} of {len(called)} regions (family-wise error {config.alpha:g})"
    return f"{told} moves {of_all}, most of all {listed}{beside}"


def _called(p: np.ndarray, config: SensitivityConfig) -> int:
    return int((p <= config.alpha).sum())


def _held(one: Effect) -> str:
    if not one.n_unseen:
        return "Too few scans are unseen to hold this against them."
    return (
        f"In {one.n_unseen} scans that the model has not seen, regions differ in the order that the decoder draws with a rank "
        f"correlation of {one.agrees.r:.2f} (p = {one.agrees.p:.2g}; regional regression {one.baseline_agrees.r:.2f})."
    )


def _others(asked: Sequence[Effect], main: Effect | None, config: SensitivityConfig) -> str:
    parts = [
        f"{one.direction.name} ({one.direction.unit}) moves {_called(one.p, config)} regions"
        + (f", rank correlation with unseen scans {one.agrees.r:.2f}" if one.n_unseen else "")
        for one in asked
        if one is not main
    ]
    return f"{'; '.join(parts)}."


def _scores(effects: Sequence[Effect], by_space: Mapping[str, np.ndarray]) -> str:
    scores = [one for one in effects if one.direction.kind in SCORES and one.n_unseen]
    if not scores:
        return "Single latents cannot be held against unseen scans: too few are."
    parts = []
    for kind, words in zip(SCORES, ("single latents", "components"), strict=True):
        r = [one.agrees.r for one in scores if one.direction.kind == kind]
        plain = [one.baseline_agrees.r for one in scores if one.direction.kind == kind]
        if not r:
            continue
        several = by_space[kind][np.isfinite(by_space[kind])]
        over = f", over {len(several)} models {np.mean(several):.2f}" if len(several) > 1 else ""
        parts.append(f"{words} {np.median(r):.2f}{over} (regional regression {np.median(plain):.2f})")
    return f"Median rank correlation of what the decoder says with unseen scans: {'; '.join(parts)}."


def caveats(
    effects: Sequence[Effect],
    refused: Mapping[str, str],
    by_space: Mapping[str, np.ndarray],
    config: SensitivityConfig,
    *,
    n_models: int,
    n_training: int,
    head_size: bool,
) -> tuple[str, ...]:
    """What the reader must not conclude, and what was not asked."""
    lines = [
        "An effect is what the decoder draws when the latents move, not what happens to a person; a direction of a column is an "
        "association and no cause. The decoder draws the mean it expects, so effects in fine detail are blurred over neighbours.",
        "p-values are family-wise over the regions of one direction. They shuffle the column over training subjects, refit the "
        "direction in every model at once, and take regional effects through the slopes of the decoder; the encoder, which has "
        "not been told of the column, is held fixed. Intervals are those of the regression and leave out what another training "
        "of the model would change.",
        f"The decoder is moved by {config.reach:g} SD of the training scans along each direction to both sides. Slopes at the "
        f"mean miss the effects of columns by up to {_worst(effects):.0%} of the largest.",
    ]
    if n_models > 1:
        lines.append(
            f"Effects of columns are means over {n_models} cross-fitted models, each held against its own unseen scans only. "
            "Single latents and components are those of the study's own model: another model's have other meanings."
        )
    lines.append(
        "With a single latent the decoder says what its own slopes and the latents that go along with it in training scans "
        "bring; unseen scans are asked for the slope of each true regional mean on that latent."
    )
    lines.append(
        "A decoder with few latents draws only a part of what differs between people: a small region may be moved too little, "
        "and its neighbours too much. Regional regression stands beside every effect for that reason."
    )
    lines.append(_scores(effects, by_space))
    if head_size:
        lines.append(
            "Head size is known and no covariate: groups that differ in it, by chance too, are drawn to differ in every region."
        )
    if n_training < SMALL:
        lines.append(f"Only {n_training} training subjects say what the directions are.")
    lines += [f"No direction {name}: {reason}." for name, reason in refused.items()]
    left_out = max((one.direction.n_left_out for one in effects), default=0)
    if left_out:
        lines.append(
            f"Up to {left_out} training scans have no say in a direction: a missing value, another group or a later session."
        )
    return tuple(lines)


def _worst(effects: Sequence[Effect]) -> float:
    return max((one.departure for one in effects if one.direction.kind not in SCORES), default=float("nan"))
