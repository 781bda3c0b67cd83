"""What a run may be told: every key, its type and its range. The values themselves stand in conf/, none here.

Unknown keys and missing keys are errors; a validated config is frozen. Nothing here imports torch or Hydra, so that a
typing error is answered at once.
"""

from kdrun.config.adapters import Lora
from kdrun.config.bench import BenchConfig
from kdrun.config.commands import CONFIGS, EvaluateConfig, TrainConfig
from kdrun.config.evaluation import Evaluation
from kdrun.config.judge import JudgeConfig
from kdrun.config.losses import LOSS_SECTIONS, SHORT_KEYS, Loss, loss_parameters
from kdrun.config.parts import Data, EmbeddedData, HubData, JsonlData, Pair, PretrainedPair, ScratchPair
from kdrun.config.section import Section
from kdrun.config.study import StudyConfig
from kdrun.config.teacher import CachedTeacher, LiveTeacher, TeacherSource

__all__ = [
    "CONFIGS",
    "LOSS_SECTIONS",
    "SHORT_KEYS",
    "BenchConfig",
    "CachedTeacher",
    "Data",
    "EmbeddedData",
    "EvaluateConfig",
    "Evaluation",
    "HubData",
    "JsonlData",
    "JudgeConfig",
    "LiveTeacher",
    "Lora",
    "Loss",
    "Pair",
    "PretrainedPair",
    "ScratchPair",
    "Section",
    "StudyConfig",
    "TeacherSource",
    "TrainConfig",
    "loss_parameters",
]
