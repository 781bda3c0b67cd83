"""Seconds a sample of each method, from the runs of a sweep (or several): python cost.py DIR...

Prints a Markdown table: the median over runs of loop_s / (steps x batch), the least and the most, the ratio of the
medians to SFT's, and the published figures of ABKD beside it (GPT-2 XL -> GPT-2, one GPU; quoted second-hand).
"""

import json
import sys
from collections import defaultdict
from pathlib import Path
from statistics import median

import yaml

PUBLISHED_S = {
    "sft": 0.344, "fkl": 0.649, "seqkd": 0.744, "minillm_no_corpus": 4.452, "gkd": 2.078, "distillm": 1.331, "ab": 0.768
}  # fmt: skip


def main(folders: list[str]) -> None:
    """Read every finished run and print the table."""
    seconds = defaultdict(list)
    for folder in folders:
        for summary in sorted(Path(folder).glob("*/summary.json")):
            config = yaml.safe_load((summary.parent / "config.yaml").read_text())
            name = config["loss"]["name"] if config["name"].startswith(config["pair"]["name"]) else config["name"]
            found = json.loads(summary.read_text())
            seconds[name].append(found["loop_s"] / found["steps"] / config["train"]["batch_size"])
    base, published = median(seconds["sft"]), PUBLISHED_S["sft"]
    print("| method | runs | ms a sample, median [least, most] | x SFT | published s a sample | x its SFT |")
    print("|---|---|---|---|---|---|")
    for name, values in sorted(seconds.items(), key=lambda item: median(item[1])):
        theirs = PUBLISHED_S.get(name)
        told = f"{theirs:.3f} | {theirs / published:.1f}" if theirs else "- | -"
        spread = f"{1e3 * median(values):.1f} [{1e3 * min(values):.1f}, {1e3 * max(values):.1f}]"
        print(f"| {name} | {len(values)} | {spread} | {median(values) / base:.1f} | {told} |")


if __name__ == "__main__":
    main(sys.argv[1:])
