"""The `kdrun` command: words in, exit codes out. Imports typer only, so that --help answers at once."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

HERE = Path(__file__).parent
# In a wheel conf/ lies inside the package, in a checkout beside it.
CONF = next((folder for folder in (HERE / "conf", HERE.parent / "conf") if folder.is_dir()), HERE / "conf")

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help"]},
    help="Distil language models: train, evaluate, sweep, compare. KEY=VALUE words are Hydra overrides.",
)
HYDRA = {"ignore_unknown_options": True, "allow_extra_args": True}


def options(group: str) -> str:
    """The choices of a config group, for help texts: file names in conf/, nothing composed."""
    files = [*(CONF / group).glob("*.yaml"), *(CONF / group).glob("*/*.yaml")]
    names = (f.relative_to(CONF / group).with_suffix("").as_posix() for f in files if not f.stem.startswith("_"))
    return ", ".join(sorted(names))


Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Hydra overrides and flags, for example: loss=akl mu=0.5 --cfg job"),
]


@app.command(
    context_settings=HYDRA,
    help=f"""Train once: a distillation, or with loss=sft a fine-tuning (role=teacher: of the teacher).

loss: {options("loss")}.

rollout (whose text is learned): {options("rollout")}.

pair: {options("pair")}. data: {options("data")}. experiment: {options("experiment")}.

launch (in how many processes): {options("launch")}; torchrun -m kdrun train does as well.

Examples: kdrun train loss=akl mu=0.5 | kdrun train loss=fkl data=jsonl data.path=my.jsonl | kdrun train resume=DIR""",
)
def train(overrides: Overrides = None) -> None:
    """Train once."""
    launch("train", overrides)


@app.command(
    context_settings=HYDRA,
    help="""Train once for every combination of the values given (a Hydra multirun of the train task).

Examples: kdrun sweep loss=akl mu=0.3,0.5,0.7 | kdrun sweep loss=fkl,rkl,jsd seed=0,1,2""",
)
def sweep(overrides: Overrides = None) -> None:
    """Train once for every combination of values."""
    launch("train", ["--multirun", *(overrides or [])])


@app.command(
    context_settings=HYDRA,
    help=f"""Generate and score: ROUGE, BERTScore, agreement with the teacher.

eval: {options("eval")}.

Examples: kdrun evaluate run=DIR eval=paper | kdrun evaluate student=PATH data=unicode | kdrun evaluate run=DIR
role=teacher""",
)
def evaluate(overrides: Overrides = None) -> None:
    """Generate and score."""
    launch("evaluate", overrides)


@app.command(
    context_settings=HYDRA,
    help="""Let a language model judge evaluations: quality, diversity, and pairs in both orders.

Any OpenAI-compatible endpoint. Without yes=true it prints what it would send, and sends nothing.

Examples: kdrun judge runs=[DIR,DIR] judge.model=NAME judge.base_url=http://HOST/v1 judge.key_env=OPENAI_API_KEY |
kdrun judge ... against=DIR yes=true | kdrun judge ... against=references decoding=seed10 | kdrun judge ...
scores=diversity judge.num_examples=100""",
)
def judge(overrides: Overrides = None) -> None:
    """Let a language model judge evaluations."""
    # To Hydra, eval= is the config group of train and evaluate.
    launch("judge", [f"evaluation={word[5:]}" if word.startswith("eval=") else word for word in overrides or []])


@app.command()
def compare(  # noqa: PLR0917 - Typer calls it by name
    sources: Annotated[
        list[str],
        typer.Argument(metavar="DIR", help="Runs, sweeps, folders of them; wandb:ENTITY/PROJECT or .../GROUP."),
    ],
    baseline: Annotated[
        list[str] | None,
        typer.Option(help="Judge every student against this run (its name or folder, or sft, teacher); repeatable."),
    ] = None,
    csv: Annotated[Path | None, typer.Option(help="Every metric, a line a run (and FILE-verdicts.csv).")] = None,
    latex: Annotated[Path | None, typer.Option(help="The main table for the booktabs package.")] = None,
    markdown: Annotated[Path | None, typer.Option("--markdown", "--md", help="All tables as Markdown.")] = None,
    plot: Annotated[Path | None, typer.Option(help="The validation curves, as .png or .svg.")] = None,
    every_metric: Annotated[bool, typer.Option("--all", help="Show every metric, not the main ones.")] = False,
) -> None:
    """Runs side by side: the settings that differ, quality as mean +- sd over seeds, cost, and paired verdicts."""
    from kdrun.launch import answered

    with answered():
        from kdrun.commands.compare import compare

        compare(
            sources, baselines=baseline or [], csv=csv, latex=latex, markdown=markdown, plot=plot,
            every_metric=every_metric,
        )  # fmt: skip


@app.command()
def report(
    directories: Annotated[list[Path], typer.Argument(metavar="DIR", help="Runs, sweeps, folders of them.")],
    *,
    output: Annotated[Path, typer.Option("--output", "-o", help="The page to write.")] = Path("report.html"),
    baseline: Annotated[
        str | None, typer.Option(help="Judge every student against this run (its name or folder, or sft, teacher).")
    ] = None,
    figures: Annotated[
        Path | None, typer.Option(help="Folder for figures and tables as files (default: beside the page).")
    ] = None,
    title: Annotated[str | None, typer.Option(help="The page's heading (default: what differs).")] = None,
    wandb: Annotated[str | None, typer.Option(help="Show tables and figures in this project of W&B, too.")] = None,
) -> None:
    """One page that opens offline: question, answer, curves, cost, texts, configs and provenance of runs."""
    from kdrun.launch import answered

    with answered():
        from kdrun.commands.report import report

        report(directories, output, baseline=baseline, figures=figures, title=title, project=wandb)


@app.command(
    context_settings=HYDRA,
    help=f"""Measure contestants side by side (kdrun's, the textbook's, installed peers'): time, memory, one picture.

WHICH: {options("bench")}. Peers come with `make bench`, which runs them all.

Examples: kdrun bench loss | kdrun bench objective bench.tokens=512 | kdrun bench step bench.data=my.jsonl""",
)
def bench(
    which: Annotated[str, typer.Argument(metavar="WHICH", help="The benchmark.")] = "", overrides: Overrides = None
) -> None:
    """Measure side by side."""
    _with_choice("bench", which, overrides or [], "loss")


def _with_choice(command: str, which: str, words: list[str], example: str) -> None:
    """Launch a command whose first word is a choice of the group of its own name."""
    if not which or "=" in which or which.startswith("-"):
        typer.echo(
            f"kdrun: {command}: say which first, one of {options(command)}; for example kdrun {command} {example}",
            err=True,
        )
        raise typer.Exit(2)
    launch(command, [f"{command}={which}", *words])


@app.command(
    context_settings=HYDRA,
    help=f"""Check claims of the literature that need no large model: source, measured figure, verdict, pictures.

WHICH: {options("study")}. --strict: exit with 1 when a proven identity does not hold here.

Examples: kdrun study toy | kdrun study rank study.losses=\\[fkl,rkl] | kdrun study theory --strict |
kdrun study headtail study.runs=outputs/sweep/...""",
)
def study(
    which: Annotated[str, typer.Argument(metavar="WHICH", help="The study.")] = "", overrides: Overrides = None
) -> None:
    """Check claims of the literature."""
    _with_choice("study", which, ["strict=true" if word == "--strict" else word for word in overrides or []], "toy")


@app.command(
    context_settings=HYDRA,
    help="""Make the teacher caches that a training will read (teacher=cached), ahead of it; or list them.

The words are those of train; a sweep's words are as good. rollout=teacher writes the teacher's text; with
teacher=cached its states over that text, too. ls lists what lies in a directory (outputs/cache, outputs/rollouts).

Examples: kdrun cache pair=gpt2 | kdrun cache data=docstrings cache.topk=50 | kdrun cache rollout=teacher |
kdrun cache ls | kdrun cache ls DIR""",
)
def cache(overrides: Overrides = None) -> None:
    """Make or list teacher caches."""
    from kdrun.launch import answered
    from kdrun.launch import cache as run

    words = list(overrides or [])
    if words[:1] != ["ls"]:
        return run(words, CONF)
    with answered():
        from kdrun.commands.cache_list import list_caches

        outputs = Path(os.environ.get("KDRUN_OUTPUTS", "outputs"))
        list_caches(*([Path(words[1])] if words[1:] else [outputs / "cache", outputs / "rollouts"]))


@app.command(
    context_settings=HYDRA,
    help="""Check the machine, then on a few rows that this training computes what it says. Exit 1 when a check fails.

The words are those of train. Nothing is trained, and nothing is written but what --json names.

Examples: kdrun doctor | kdrun doctor pair=gpt2 data=dolly loss=akl | kdrun doctor data=jsonl data.path=my.jsonl""",
)
def doctor(
    overrides: Overrides = None,
    *,
    json: Annotated[Path | None, typer.Option(help="Write every finding to this file, too.")] = None,
) -> None:
    """Check the machine and a training."""
    from kdrun.launch import doctor as run

    run(list(overrides or []), CONF, json=json)


@app.command(
    context_settings=HYDRA,
    help="""Say before a training what it will take: memory of each part, tokens, steps, operations, time and energy.

The words are those of train. No weight is read and nothing is downloaded; what is assumed is printed.

Examples: kdrun plan | kdrun plan pair=gpt2 loss=akl --gpu h100 | kdrun plan pair=llama train.micro_batch_size=2""",
)
def plan(
    overrides: Overrides = None,
    *,
    gpu: Annotated[str | None, typer.Option(help="Beside this machine: a10, a100-40gb, a100-80gb, h100, ...")] = None,
    utilisation: Annotated[float, typer.Option(help="Share of the machine's rate that a training gets.")] = 0.35,
    json: Annotated[Path | None, typer.Option(help="Write every figure to this file, too.")] = None,
) -> None:
    """Say what a training will take."""
    from kdrun.launch import plan as run

    run(list(overrides or []), CONF, gpu=gpu, utilisation=utilisation, json=json)


@app.command(context_settings=HYDRA)
def show(overrides: Overrides = None) -> None:
    """Print the composed, checked config of `kdrun train` (or: kdrun show evaluate ...) without running it."""
    from kdrun.launch import show as run

    words = list(overrides or [])
    command = words.pop(0) if words and words[0] in ("train", "evaluate", "judge", "bench", "study") else "train"
    run(command, words)


def launch(command: str, words: list[str] | None) -> None:
    """Hand the words to Hydra; imported here and not above, because Hydra costs 0.15 s."""
    from kdrun.launch import launch as run

    run(command, list(words or []), CONF)


def main() -> None:
    """The console script."""
    app(prog_name="kdrun")
