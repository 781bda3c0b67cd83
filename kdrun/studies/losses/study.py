"""The study `losses`: the map of the losses, their limits, and how large their gradients are."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from kdrun.studies.contenders import Spec, contenders
from kdrun.studies.findings import Findings
from kdrun.studies.losses import adaptive, disguise, gradient_sizes, limits, paths
from kdrun.studies.losses.pairs import noisy_pairs
from kdrun.studies.losses.simplex import triangles, two_classes


def study(
    *,
    losses: Sequence[Spec],
    seed: int,
    likely: Sequence[float],
    teacher: Sequence[float],
    vocabulary: int,
    num_pairs: int,
    noises: Sequence[float],
    sweep: Sequence[float],
    begin: Callable[[int], Callable[..., None]],
) -> Findings:
    """Claims on limits, convexity, AKL's weight and sizes of gradients, with the pictures that show them.

    likely, teacher: probabilities of the teacher on two and three classes. noises: std of the noise that sets the
    student off, far first; AKL's ends and the fits take the middle one. sweep: values of every swept parameter.
    """
    entrants = contenders(losses)
    advance = begin(disguise.num_fits(sweep) + 4)
    pairs = gradient_sizes.distances(noises, num=num_pairs, vocabulary=vocabulary, seed=seed)
    middle = noises[len(noises) // 2]

    on_the_way = paths.walks(entrants, vocabulary=vocabulary, seed=seed)
    advance()
    limit_pair = noisy_pairs(num_pairs, vocabulary=vocabulary, noise_std=limits.NOISE, seed=seed)
    limit_rows, identity_rows = limits.limit_table(limit_pair), limits.identity_table(limit_pair)
    advance()
    field_rows = adaptive.field_table(entrants, seed=seed)
    arrived = noisy_pairs(num_pairs, vocabulary=vocabulary, noise_std=gradient_sizes.ARRIVED, seed=seed)
    size_rows = gradient_sizes.size_table(entrants, pairs, arrived)
    sweep_rows = gradient_sizes.sweep_table(sweep, pairs)
    advance()
    pictures = [
        two_classes(entrants, likely),
        triangles(entrants, teacher),
        adaptive.akl_picture(pairs[middle], teacher),
        paths.path_picture(on_the_way, vocabulary=vocabulary),
        limits.limit_picture(pairs[noises[0]], noise_std=noises[0]),
        gradient_sizes.size_picture(entrants, num=num_pairs, vocabulary=vocabulary, seed=seed),
        gradient_sizes.sweep_picture(sweep_rows, noises),
    ]
    advance()
    fit_rows = disguise.distances_left(sweep, noise_std=middle, seed=seed, advance=advance)
    return Findings(
        claims=[
            *limits.limit_claims(limit_rows, identity_rows),
            gradient_sizes.gkd_claim(pairs[middle]),
            adaptive.two_class_claim(),
            *adaptive.mu_claims(pairs[middle]),
            adaptive.jump_claim(teacher),
            adaptive.field_claim(field_rows),
            *paths.path_claims(on_the_way),
            *gradient_sizes.arrival_claims(size_rows),
            *gradient_sizes.sweep_claims(sweep_rows, noises),
            *disguise.disguise_claims(fit_rows, noise_std=middle),
        ],
        tables={
            "limits": limit_rows,
            "identities": identity_rows,
            "paths": paths.path_table(on_the_way),
            "fields": field_rows,
            "gradient_sizes": size_rows,
            "sweeps": sweep_rows,
            "sweep_spans": gradient_sizes.span_table(sweep_rows, noises),
            "disguise": fit_rows,
        },
        pictures=[*pictures, disguise.disguise_picture(fit_rows)],
    )
