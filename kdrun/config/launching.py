"""The launch group: in how many processes a training runs, and what each of them holds."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from kdrun.config.section import Count, Section


class OneProcess(Section):
    """This process alone; or, where torchrun or accelerate launch has started several, these as with ddp."""

    kind: Literal["local"]


class Ddp(Section):
    """Every process holds both models whole; gradients are averaged. processes: null is one a visible GPU."""

    kind: Literal["ddp"]
    processes: Count | None


class Sharding(Section):
    """The student's share of memory is divided over the processes.

    `teacher`: whole on every process, its blocks sharded, or sharded and kept in the machine's memory.
    """

    processes: Count | None
    teacher: Literal["whole", "sharded", "offloaded"]


class Fsdp(Sharding):
    """Student, gradients and optimiser are sharded over the processes (torch's fully_shard)."""

    kind: Literal["fsdp"]


class DeepSpeed(Sharding):
    """DeepSpeed's ZeRO: gradients and optimiser are sharded over the processes, from stage 3 on the student, too."""

    kind: Literal["deepspeed"]
    stage: Literal[2, 3]


Launch = Annotated[OneProcess | Ddp | Fsdp | DeepSpeed, Field(discriminator="kind")]
