"""How large the losses' gradients are beside forward KL's: the learning rate that a loss changes in disguise.

A size is the norm of the gradient in the logits over all pairs together, as in one optimiser step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from kdrun.losses import Loss, make_loss
from kdrun.losses.ab import Ab
from kdrun.losses.amid import Amid
from kdrun.losses.gap import Gap
from kdrun.losses.jsd import Jsd
from kdrun.losses.skl import Skl
from kdrun.losses.srkl import Srkl
from kdrun.losses.taid import Taid
from kdrun.losses.tvd import Tvd
from kdrun.studies.contenders import Contender, label_of
from kdrun.studies.findings import Claim, Table, holds, holds_in, rows_with
from kdrun.studies.losses.pairs import Pair, in_panels, noisy_pairs, step_norm, value_and_gradient
from kdrun.studies.pictures import Curve, Panel, Picture, log_limits

# What people sweep, by loss and parameter; all over the same values in (0, 1).
SWEEPS = (
    ("akl", "mu"), ("fkl_rkl", "weight"), ("jsd", "beta"), ("skl", "alpha"), ("srkl", "alpha"), ("alpha", "alpha"),
    ("ab", "alpha"), ("ab", "beta"), ("taid", "t_start"), ("amid", "alpha"), ("amid", "lam"), ("gap", "head_weight"),
)  # fmt: skip
ARRIVED = 1e-4  # noise at which a student counts as arrived
AS_PREDICTED = 0.01
ALIGNED = 0.98
LEVEL = 1.25  # times: a sweep that changes the size by less leaves the learning rate as it is


def size_beside_fkl(loss: Loss, pair: Pair) -> float:
    """Norm of the loss's gradient over that of forward KL's, on the same pairs."""
    return step_norm(value_and_gradient(loss, *pair)[1]) / step_norm(value_and_gradient(make_loss("fkl"), *pair)[1])


def size_on_arrival(loss: Loss) -> float | None:
    """The limit of `size_beside_fkl` as q -> p, where there is one for all pairs alike.

    f''(1) of an f-divergence sum p f(q/p) over forward KL's, which is 1: both have the gradient f''(1) (q - p) there,
    to first order. None: TVD and the gap do not fade, and AB off the line alpha + beta = 1 weighs classes by powers.
    """
    match loss:
        case Jsd() if 0 < loss.beta < 1:
            return loss.beta * (1 - loss.beta)
        case Skl() | Srkl():
            return (1 - loss.alpha) ** 2
        case Taid():
            return loss.t
        case Amid() if loss.base != "ab":
            return float((1 - loss.lam if "p" in loss.order else loss.lam) ** 2)
        case Ab() if abs(loss.alpha + loss.beta - 1) > 1e-12:
            return None
        case Tvd() | Gap() | Amid():
            return None
        case _:
            return 1.0


def distances(noises: Sequence[float], *, num: int, vocabulary: int, seed: int) -> dict[float, Pair]:
    """noise_std -> pairs, far first; the noises point the same way."""
    return {x: noisy_pairs(num, vocabulary=vocabulary, noise_std=x, seed=seed) for x in sorted(noises, reverse=True)}


def _sizes(loss: Loss, pairs: Mapping[float, Pair]) -> dict[str, float]:
    return {f"noise_{noise:g}": size_beside_fkl(loss, pair) for noise, pair in pairs.items()}


def size_table(entrants: Sequence[Contender], pairs: Mapping[float, Pair], arrived: Pair) -> Table:
    """One row a loss: size beside FKL's at every distance, at arrival as measured and as computed."""
    rows = []
    for entrant in entrants:
        loss = entrant.loss()
        at_end = {"arrived": size_beside_fkl(loss, arrived), "predicted": size_on_arrival(loss)}
        rows.append({"loss": entrant.label, **_sizes(loss, pairs), **at_end})
    return rows


def arrival_claims(rows: Table) -> list[Claim]:
    """Near the teacher all smooth f-divergences are one, but for a factor."""
    known = [row for row in rows if row["predicted"]]
    if not known:
        return []
    off = max(abs(row["arrived"] / row["predicted"] - 1) for row in known)
    factors = ", ".join(f"{row['loss']} {row['predicted']:.3g}" for row in known)
    return [
        Claim(
            "one-loss-but-for-a-factor",
            "Near the teacher every smooth f-divergence (and AKL, TAID, AMiD) is forward KL times a constant.",
            "Csiszar; second-order expansion at p = q",
            f"constants: {factors}; gradient norms agree within {off:.1e} at noise {ARRIVED:g}",
            f"relative difference at most {AS_PREDICTED:g}",
            holds(off <= AS_PREDICTED),
            proven=True,
        )
    ]


def sweep_table(values: Sequence[float], pairs: Mapping[float, Pair]) -> Table:
    """One row a loss, parameter and value: size beside FKL's at every distance."""
    return [
        {"loss": name, "parameter": key, "value": value, **_sizes(make_loss(name, **{key: value}), pairs)}
        for name, key in SWEEPS
        for value in values
    ]


def spans(rows: Table, noises: Sequence[float]) -> dict[tuple[str, str], dict[float, float]]:
    """(loss, parameter) -> noise -> largest size over smallest along the sweep."""
    found = {}
    for name, key in SWEEPS:
        own = rows_with(rows, loss=name, parameter=key)
        sizes = {noise: [row[f"noise_{noise:g}"] for row in own] for noise in noises}
        found[name, key] = {noise: max(column) / min(column) for noise, column in sizes.items()}
    return found


def span_table(rows: Table, noises: Sequence[float]) -> Table:
    """One row a sweep: how many times the size of the gradient changes along it."""
    return [
        {"loss": name, "parameter": key, **{f"noise_{noise:g}": times for noise, times in columns.items()}}
        for (name, key), columns in spans(rows, noises).items()
    ]


def sweep_claims(rows: Table, noises: Sequence[float]) -> Iterator[Claim]:
    """Whether the sweeps that papers make leave the size of the gradient as it is."""
    found = spans(rows, noises)
    values = sorted({row["value"] for row in rows})
    for name, key, source in (
        ("jsd", "beta", "implied by GKD, arXiv 2306.13649, which compares beta = 0.1, 0.5, 0.9"),
        ("akl", "mu", "implied by AKL paper, arXiv 2404.02657, mu as a free choice"),
        ("skl", "alpha", "implied by DistiLLM, arXiv 2402.03898, which compares values of alpha"),
        ("ab", "alpha", "implied by ABKD, arXiv 2505.04560, which compares values of alpha and beta"),
        ("ab", "beta", "implied by ABKD, arXiv 2505.04560, which compares values of alpha and beta"),
    ):
        times = found[name, key]
        level = [f"{noise:g}" for noise in noises if times[noise] <= LEVEL]
        yield Claim(
            f"sweep-{name}-{key}",
            f"A sweep of {label_of(name)} over {key} at one learning rate changes {key} and nothing else.",
            source,
            f"the norm of the gradient changes {', '.join(f'{times[x]:.2f}-fold at noise {x:g}' for x in noises)} "
            f"for {key} from {values[0]:g} to {values[-1]:g}",
            f"at most {LEVEL:g}-fold",
            *holds_in(len(level), len(noises), where=f"the student is at noise {' or '.join(level)}"),
        )


def gkd_claim(pair: Pair) -> Claim:
    """Whether JSD near the ends of beta acts as the KLs do: in direction, and in size."""
    found = {}
    for beta, end in ((0.01, "fkl"), (0.99, "rkl")):
        gradient_NV, end_NV = (value_and_gradient(x, *pair)[1] for x in (make_loss("jsd", beta=beta), make_loss(end)))
        cosine = float((gradient_NV * end_NV).sum()) / (step_norm(gradient_NV) * step_norm(end_NV))
        found[f"beta {beta:g} and {label_of(end)}"] = (cosine, step_norm(gradient_NV) / step_norm(end_NV))
    aligned = all(cosine >= ALIGNED for cosine, _ in found.values())
    sized = all(1 / LEVEL <= size <= LEVEL for _, size in found.values())
    rescaled = all(1 / LEVEL <= size / (0.01 * 0.99) <= LEVEL for _, size in found.values())
    only_rescaled = aligned and rescaled and not sized
    return Claim(
        "jsd-gradients-like-kl",
        "The gradients of JSD behave as forward KL's for beta near 0 and as reverse KL's for beta near 1.",
        "GKD, arXiv 2306.13649, Section 2",
        "; ".join(f"{words}: cosine {cosine:.4f}, norm {size:.4f} of it" for words, (cosine, size) in found.items()),
        f"cosine at least {ALIGNED:g}, norms within {LEVEL:g}-fold; the condition: norms over beta (1 - beta) are",
        "holds only when" if only_rescaled else holds(aligned and sized),
        condition="the gradient is divided by beta (1 - beta)" if only_rescaled else "",
    )


def size_picture(entrants: Sequence[Contender], *, num: int, vocabulary: int, seed: int) -> Picture:
    """Size beside FKL's of every loss against the distance of the student."""
    noises = [0.01 * 10 ** (i / 8) for i in range(22)]  # 0.01 to 4.2
    pairs = [noisy_pairs(num, vocabulary=vocabulary, noise_std=x, seed=seed) for x in noises]
    lines = {e.label: [size_beside_fkl(e.loss(), pair) for pair in pairs] for e in entrants}
    limits = log_limits([size for line in lines.values() for size in line])
    panels = [
        Panel(
            ", ".join(e.label for e in group), "std of the noise on the student's logits", "gradient norm over FKL's",
            [Curve(e.label, noises, lines[e.label], e.look) for e in group],
            log_x=True, log_y=True, y_limits=limits, levels=[("", 1.0)],
        )
        for group in in_panels(entrants)
    ]  # fmt: skip
    title = "How large the gradient is beside forward KL's (dotted: as large)"
    return Picture("gradient_sizes", title, panels, columns=3)


def sweep_picture(rows: Table, noises: Sequence[float]) -> Picture:
    """Size beside FKL's against each parameter."""
    panels = []
    limits = log_limits([row[f"noise_{noise:g}"] for row in rows for noise in noises])
    for name, key in SWEEPS:
        own = rows_with(rows, loss=name, parameter=key)
        values = [row["value"] for row in own]
        curves = [
            Curve(f"student off by noise of std {noise:g}", values, [row[f"noise_{noise:g}"] for row in own], look)
            for look, noise in enumerate(noises)
        ]
        panels.append(
            Panel(
                f"{label_of(name)} over {key}", key, "gradient norm over FKL's", curves,
                log_y=True, y_limits=limits, levels=[("", 1.0)],
            )
        )  # fmt: skip
    title = "A learning rate in disguise: a sweep over a parameter changes the gradient's size (dotted: forward KL's)"
    return Picture("sweeps", title, panels, columns=4)
