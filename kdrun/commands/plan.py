"""kdrun plan: what a training will take, before it starts. Sizes come from config.json; no weight is read."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdrun.commands.assembly import build_models, choose_device, choose_precision, chosen_loss, encode_data, load_data
from kdrun.commands.cache_list import print_table
from kdrun.commands.preconditions import check_data, missing_teacher
from kdrun.commands.teachers import teacher_dtype
from kdrun.config import CachedTeacher, ScratchPair, TrainConfig
from kdrun.config.launching import OneProcess, Sharding
from kdrun.data.examples import Splits
from kdrun.errors import UserError
from kdrun.models.loading import load_tokenizer, local_folder, quiet_libraries
from kdrun.planning.machines import DATA_SHEETS, WATTS_A_CORE, Machine, named_gpu, this_machine
from kdrun.runs.directory import write_json
from kdrun.runs.gpus import visible_gpus
from kdrun.teachers.listing import spell_bytes
from kdrun.untrusted import check_model_config

if TYPE_CHECKING:
    from kdrun.planning.training import Training


def plan(config: TrainConfig, *, gpu: str | None, utilisation: float, json: Path | None) -> None:
    """Print the memory, tokens, steps, operations, time and energy of a train config, here and on a named GPU.

    Raises:
        UserError: for a GPU that is not known, or a model whose config is not on this machine.
    """
    if gpu is not None and gpu not in DATA_SHEETS:
        raise UserError(f"--gpu={gpu}: must be one of {', '.join(DATA_SHEETS)}")
    if not 0 < utilisation <= 1:
        raise UserError(f"--utilisation={utilisation}: must be above 0 and at most 1; type --utilisation=0.35")
    check_data(config.data)
    quiet_libraries()
    device = choose_device(config.train.device)
    training, said = _training(config, precision=choose_precision(config.train.precision, device))
    plans = [_on(this_machine(device, training.precision), training, utilisation)]
    if gpu is not None:
        there = replace(training, precision="bf16" if config.train.precision == "auto" else training.precision)
        plans.append(_on(named_gpu(gpu), there, utilisation))
    facts = {**_facts(training), "assumed": [*said, *_assumptions(utilisation)], "machines": plans}
    _show(facts)
    if json is not None:
        write_json(json, facts)


# -- from a config to plain values -------------------------------------------------------------------------------------


def _training(config: TrainConfig, *, precision: str) -> tuple[Training, list[str]]:
    """The training, and what had to be assumed of its rows."""
    from kdrun.planning.training import Training

    splits, tokenizer, said = _data(config)
    needs = chosen_loss(config.loss).needs_teacher
    asked = config.role == "student" and (needs or config.train.watch_teacher)
    cached = isinstance(config.teacher, CachedTeacher)
    # of a lossy cache, and of an exact one that only the validation asks, next to nothing is in memory
    held = not cached or (needs and config.teacher.topk is None)  # type: ignore[union-attr]
    lengths, scored, assumed = _rows(config, splits, tokenizer)
    settings = config.train
    return Training(
        student=_model_config(config, config.role, tokenizer),
        teacher=_model_config(config, "teacher", tokenizer) if asked and held else None,
        use="cached" if cached else "live" if needs else "idle",
        lengths=lengths, scored=scored, epochs=settings.epochs, max_steps=settings.max_steps,
        batch_size=settings.batch_size, micro_batch_size=settings.micro_batch_size, seed=config.seed,
        precision=precision, teacher_dtype=teacher_dtype(config.pair),  # type: ignore[arg-type]
        checkpointing=settings.gradient_checkpointing, chunk_tokens=settings.chunk_tokens, ranks=_ranks(config),
    ), [*said, *assumed, *_bounds(config)]  # fmt: skip


def _ranks(config: TrainConfig) -> int:
    """Processes of the training: what launch= says, or one a GPU of this machine."""
    if isinstance(config.launch, OneProcess):
        return 1
    return config.launch.processes or max(1, len(visible_gpus()))


def _bounds(config: TrainConfig) -> list[str]:
    """What of a config is not modelled, and what it is counted as."""
    found = []
    if config.rollout.name != "data":
        found.append(f"rollout={config.rollout.name}: as if its text were the data's; writing it is not counted")
    if config.adapter.kind != "none":
        found.append("adapter: as if all weights were trained, an upper bound")
    if (bits := getattr(config.pair, "teacher_bits", None)) is not None:
        found.append(f"pair.teacher_bits={bits}: as if it were null, an upper bound of the memory")
    if (ranks := _ranks(config)) > 1:
        found.append(
            f"launch={config.launch.kind}: memory is of each of {ranks} processes, which share the rows of a step and, "
            "on GPUs, the time; what they tell each other takes none"
        )
    elif not isinstance(config.launch, OneProcess):
        found.append(f"launch={config.launch.kind}: in one process; type launch.processes=8 for eight")
    if isinstance(config.launch, Sharding) and ranks > 1:
        student = "" if getattr(config.launch, "stage", 3) == 2 else "student, "
        found.append(
            f"sharding: as if there were none, an upper bound; of {student}gradients and optimiser each process holds "
            f"1/{ranks}"
        )
    return found


def _data(config: TrainConfig) -> tuple[Splits | None, Any, list[str]]:
    """What of the rows and the tokenizer is on this machine, and what is said of the rest."""
    said, splits, tokenizer = [], None, None
    try:
        splits = load_data(config.data)
        tokenizer = _tokenizer(config, splits)
    except UserError as error:
        if isinstance(config.pair, ScratchPair) and tokenizer is None:
            raise
        said.append(f"{'rows' if splits is None else 'tokenizer'} not on this machine ({error})")
    return splits, tokenizer, said


def _tokenizer(config: TrainConfig, splits: Splits) -> Any:
    from torch._subclasses.fake_tensor import FakeTensorMode

    pair, missing = config.pair, missing_teacher(config)
    if not isinstance(pair, ScratchPair):
        return load_tokenizer(
            getattr(pair, config.role), key=f"pair.{config.role}", trust_remote_code=pair.trust_remote_code
        )
    if config.role == "student" and (pair.student is not None or missing is None):
        return load_tokenizer(pair.student or pair.teacher, key="pair.student" if pair.student else "pair.teacher")
    with FakeTensorMode():  # the model beside it is made without data
        return build_models(pair, config.data, splits, role="teacher", seed=config.seed).tokenizer


def _rows(config: TrainConfig, splits: Splits | None, tokenizer: Any) -> tuple[Any, Any, list[str]]:
    """(tokens of each row, scored ones of each, what was assumed): of the rows themselves, or upper bounds."""
    import numpy as np

    data = config.data
    if splits is not None and tokenizer is not None:
        rows = encode_data(splits.train, tokenizer, data, split="train")
        return rows.lengths, rows.scored_lengths.astype(np.int64), []
    count = len(splits.train) if splits is not None else data.max_rows
    if count is None:
        raise UserError(
            f"data={data.name}: its rows are not on this machine, and kdrun plan downloads nothing; type "
            "data.max_rows=N for an upper bound, or data.path=FOLDER"
        )
    bound = np.full(count, data.max_tokens)
    return bound, bound - 1, [f"every row has data.max_tokens={data.max_tokens} tokens, all scored: an upper bound"]


def _model_config(config: TrainConfig, role: str, tokenizer: Any) -> Any:
    """The transformers config of the student or the teacher."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from transformers import AutoConfig

    from kdrun.models.scratch import make_model

    pair = config.pair
    if isinstance(pair, ScratchPair):
        is_made = missing_teacher(config) is not None or config.role == "teacher"
        if (pair.student is None) if role == "student" else is_made:
            size = {name: getattr(pair, f"{role}_{name}") for name in ("layers", "width", "heads")}
            with FakeTensorMode():
                return make_model(
                    vocab_size=len(tokenizer), context=pair.context, end_id=tokenizer.eos_token_id, seed=0, **size
                ).config
    reference, key = getattr(pair, role), f"pair.{role}"
    try:
        folder = local_folder(reference, key=key)
    except UserError as error:
        raise UserError(
            f"{key}={reference}: its config.json is not on this machine, and kdrun plan downloads nothing; give a "
            f"folder, or type hf download {reference} config.json"
        ) from error
    try:
        trust_remote_code = bool(getattr(pair, "trust_remote_code", False))
        found = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except Exception as error:  # transformers raises its own
        raise UserError(
            f"{key}={reference}: its config cannot be read ({' '.join(str(error).split())[:200]})"
        ) from error
    check_model_config(found, key=f"{key}={reference}")
    return found


# -- what it takes -----------------------------------------------------------------------------------------------------


def _facts(training: Training) -> dict[str, Any]:
    from kdrun.planning.memory import parameters
    from kdrun.planning.work import training_flops

    chosen, times = training.seen_rows()
    models = {"student": training.student, "teacher": training.teacher}
    return {
        "models": {role: {"architecture": config.model_type, "parameters": parameters(config)}
                   for role, config in models.items() if config is not None},
        "rows": len(training.lengths), "steps": training.num_steps,
        "tokens": round(times * int(training.lengths[chosen].sum())),
        "scored_tokens": round(times * int(training.scored[chosen].sum())),
        "flops": training_flops(training),
    }  # fmt: skip


def _on(machine: Machine, training: Training, utilisation: float) -> dict[str, Any]:
    """The memory, time and energy of a training on a machine, and what to change when it does not fit."""
    from kdrun.planning.training import remedies
    from kdrun.planning.work import training_flops

    memory = _memory(machine, training)
    on_cpu = machine.device_type == "cpu"  # which the processes share; each has a GPU of its own
    together = training.ranks if on_cpu else 1
    gpus = 1 if on_cpu else training.ranks
    seconds = sum(training_flops(training).values()) / (machine.flops[training.precision] * utilisation * gpus)
    found: dict[str, int] = {}
    if memory["peak"] * together > machine.memory_bytes:
        found = {word: _memory(machine, other)["peak"] for word, other in remedies(training).items()}
    return {
        **asdict(machine), "precision": training.precision, "bytes": memory,
        "fits": memory["peak"] * together <= machine.memory_bytes, "processes": training.ranks,
        "remedies": {word: peak for word, peak in sorted(found.items(), key=lambda item: item[1])
                     if peak < memory["peak"]}, "seconds": seconds,
        "kwh": None if machine.watts is None else machine.watts * gpus * seconds / 3.6e6,
    }  # fmt: skip


def _memory(machine: Machine, training: Training) -> dict[str, int]:
    from kdrun.planning.memory import loading_bytes, training_memory

    parts = training_memory(training, machine.device_type)
    loading = loading_bytes(training) if machine.device_type == "cpu" else 0
    peak = machine.own_bytes + max(sum(parts.values()), loading)
    return {"process": machine.own_bytes, **parts, "loading": loading, "peak": peak}


def _assumptions(utilisation: float) -> list[str]:
    return [
        "memory: of the training alone, without evaluation; parts at the highest moment of the largest micro-batch",
        f"time: operations at {utilisation:.0%} of the rate above (--utilisation), padding, validation and data not "
        "counted; a GPU's rates are its maker's, this machine's was measured for a second",
        f"energy: time x watts; this CPU at {WATTS_A_CORE:.0f} W a thread, a guess",
    ]


# -- printing ----------------------------------------------------------------------------------------------------------

LABELS = {
    "process": "process itself", "weights": "weights, fp32", "optimiser": "AdamW's two moments",
    "kept": "freed, but kept", "loading": "or loading the models", "peak": "PEAK",
}  # fmt: skip


def _show(facts: dict[str, Any]) -> None:
    for role, model in facts["models"].items():
        print(f"{role}: {model['architecture']}, {model['parameters']:,} parameters")
    print(
        f"{facts['rows']:,} rows, {facts['steps']:,} steps, {facts['tokens']:,} tokens, {facts['scored_tokens']:,} of "
        f"them scored; {sum(facts['flops'].values()):.3g} operations ("
        + ", ".join(f"{name} {flops:.2g}" for name, flops in facts["flops"].items())
        + ")\n"
    )
    machines = facts["machines"]
    lines = [[LABELS.get(name, name), *(spell_bytes(size) if (size := m["bytes"][name]) else "" for m in machines)]
             for name in machines[0]["bytes"] if any(m["bytes"][name] for m in machines)]  # fmt: skip
    if machines[0]["processes"] > 1:
        lines.append(["processes", *(str(m["processes"]) for m in machines)])
    lines.append(["memory there", *(spell_bytes(m["memory_bytes"]) for m in machines)])
    lines.append(["fits", *("yes" if m["fits"] else "NO" for m in machines)])
    lines.append(["rate", *(f"{m['flops'][m['precision']] / 1e12:.3g} TFLOP/s {m['precision']}" for m in machines)])
    lines.append(["time", *(_spell_time(m["seconds"]) for m in machines)])
    lines.append(["energy", *("watts not known" if m["kwh"] is None else f"{m['kwh']:.3g} kWh" for m in machines)])
    print_table(["", *(m["name"] for m in machines)], lines)
    for machine in (m for m in machines if not m["fits"]):
        print(f"\nIt does not fit on {machine['name']}. The peak with one of these words instead:")
        for word, peak in machine["remedies"].items():
            print(f"  {word:<36} {spell_bytes(peak):>8}{'  fits' if peak <= machine['memory_bytes'] else ''}")
    print("\nAssumed:", *facts["assumed"], sep="\n- ")


def _spell_time(seconds: float) -> str:
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"
