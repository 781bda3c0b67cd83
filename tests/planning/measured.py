"""python -m tests.planning.measured GPT2_TOKENIZER_FOLDER [NUMBER]...: peaks that kdrun plan says against real ones.

Each setting is a real `kdrun train` of a few steps in a process of its own; measured is the highest resident memory of
that process since it began (what the system counted). Minutes of CPU and up to 4 GB, so no part of the test suite.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROWS = ["data=docstrings", "data.max_rows=200", "track.mode=disabled", "evaluate=false", "train.valid_rows=8"]
STEPS = ["train.max_steps=3", "train.valid_every=null", "train.threads=1"]
LARGE = ["pair.student_layers=8", "pair.student_width=512", "pair.student_heads=8", "pair.teacher_layers=8",
         "pair.teacher_width=768", "pair.teacher_heads=12"]  # fmt: skip
SMALL = ["pair.student_layers=4", "pair.student_width=256", "pair.student_heads=4"]
SETTINGS = {
    "own vocabulary, the tiny pair, live, all 32 rows at once": [],
    "GPT-2's vocabulary, 4 x 256, live, 4 rows": ["gpt2", *SMALL, "train.micro_batch_size=4"],
    "GPT-2's vocabulary, 8 x 512, live, 16 rows": ["gpt2", *LARGE, "train.micro_batch_size=16"],
    "the same with checkpointing": [
        "gpt2", *LARGE, "train.micro_batch_size=16", "train.gradient_checkpointing=true"],
    "the same, cached, 1 row": ["gpt2", *LARGE, "train.micro_batch_size=1", "teacher=cached"],
}  # fmt: skip


def kdrun(*words: str, cwd: Path) -> int:
    """Run a command; returns the highest resident memory of its process in bytes."""
    process = subprocess.Popen([sys.executable, "-m", "kdrun", *words], cwd=cwd, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, words
    return usage.ru_maxrss * 1024


def main(tokenizer: str, *numbers: str) -> None:
    """Print a line a setting."""
    print(f"{'setting':60} {'predicted':>10} {'measured':>10} {'ratio':>6}")
    chosen = [list(SETTINGS)[int(number)] for number in numbers] or SETTINGS
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for setting in chosen:
            words = SETTINGS[setting]
            if words[:1] == ["gpt2"]:
                words = [f"pair.tokenizer={tokenizer}", *words[1:]]
            words = [*ROWS, *words, f"pair.teacher=outputs/{abs(hash(setting))}"]
            teacher = [word for word in words if word != "teacher=cached" and not word.startswith("train.")]
            kdrun("train", "role=teacher", "loss=sft", *teacher, "train.max_steps=1", "train.micro_batch_size=4",
                  f"hydra.run.dir=outputs/{abs(hash(setting))}", cwd=folder)  # fmt: skip
            words += STEPS
            if "teacher=cached" in words:
                kdrun("cache", *words, cwd=folder)
            kdrun("plan", *words, "--json", "plan.json", cwd=folder)
            said = json.loads((folder / "plan.json").read_text())["machines"][0]["bytes"]
            peak = kdrun("train", *words, cwd=folder)
            print(f"{setting:60} {said['peak'] / 1e6:8.0f}MB {peak / 1e6:8.0f}MB {said['peak'] / peak:6.2f}  {said}")


if __name__ == "__main__":
    main(*sys.argv[1:])
