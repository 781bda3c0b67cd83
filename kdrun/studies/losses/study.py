"""The study `losses`: the map of the losses, their limits, and how large their gradients are."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from kdrun.studies.contenders import Spec, contenders
from kdrun.studies.findings import Findings
from kdrun.studies.losses.adaptive import akl_picture, field_claim, field_table, jump_claim, mu_claims, two_class_claim
from kdrun.studies.losses.disguise import disguise_claims, disguise_picture, distances_left, num_fits
from kdrun.studies.losses.gradient_sizes import (
    ARRIVED,
    arrival_claims,
    distances,
    gkd_claim,
    size_picture,
    size_table,
    span_table,
    sweep_claims,
    sweep_picture,
    sweep_table,
)  # fmt: skip
from kdrun.studies.losses.limits import NOISE as LIMIT_NOISE
from kdrun.studies.losses.limits import identity_table, limit_claims, limit_picture, limit_table
from kdrun.studies.losses.pairs import noisy_pairs
from kdrun.studies.losses.paths import path_claims, path_picture, path_table, walks
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
    advance = begin(num_fits(sweep) + 4)
    pairs = distances(noises, num=num_pairs, vocabulary=vocabulary, seed=seed)
    middle = noises[len(noises) // 2]

    on_the_way = walks(entrants, vocabulary=vocabulary, seed=seed)
    advance()
    limit_pair = noisy_pairs(num_pairs, vocabulary=vocabulary, noise_std=LIMIT_NOISE, seed=seed)
    limit_rows, identity_rows = limit_table(limit_pair), identity_table(limit_pair)
    advance()
    field_rows = field_table(entrants, seed=seed)
    arrived = noisy_pairs(num_pairs, vocabulary=vocabulary, noise_std=ARRIVED, seed=seed)
    size_rows, sweep_rows = size_table(entrants, pairs, arrived), sweep_table(sweep, pairs)
    advance()
    pictures = (
        two_classes(entrants, likely),
        triangles(entrants, teacher),
        akl_picture(pairs[middle], teacher),
        path_picture(on_the_way, vocabulary=vocabulary),
        limit_picture(pairs[noises[0]], noise_std=noises[0]),
        size_picture(entrants, num=num_pairs, vocabulary=vocabulary, seed=seed),
        sweep_picture(sweep_rows, noises),
    )
    advance()
    fit_rows = distances_left(sweep, noise_std=middle, seed=seed, advance=advance)
    return Findings(
        claims=(
            *limit_claims(limit_rows, identity_rows),
            gkd_claim(pairs[middle]),
            two_class_claim(),
            *mu_claims(pairs[middle]),
            jump_claim(teacher),
            field_claim(field_rows),
            *path_claims(on_the_way),
            *arrival_claims(size_rows),
            *sweep_claims(sweep_rows, noises),
            *disguise_claims(fit_rows, noise_std=middle),
        ),
        tables={
            "limits": limit_rows,
            "identities": identity_rows,
            "paths": path_table(on_the_way),
            "fields": field_rows,
            "gradient_sizes": size_rows,
            "sweeps": sweep_rows,
            "sweep_spans": span_table(sweep_rows, noises),
            "disguise": fit_rows,
        },
        pictures=(*pictures, disguise_picture(fit_rows)),
    )
