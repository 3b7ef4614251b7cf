"""Training and evaluation of a model: one loop, exact to resume, thin to read."""

from heedful.train.checkpoint import best_folder, load_best
from heedful.train.config import LossConfig, TrainConfig
from heedful.train.engine import train
from heedful.train.environment import describe_environment
from heedful.train.evaluation import Perplexity, evaluate_perplexity
from heedful.train.memory import peak_tensor_bytes
from heedful.train.metrics import read_metrics
from heedful.train.optimisation import learning_rate
from heedful.train.optimizer_config import OptimizerConfig, ParameterRule, ScheduleConfig
from heedful.train.parallel_config import ParallelConfig
from heedful.train.processes import LostProcessError, Processes, current_processes
from heedful.train.progress import BarReporter, LineReporter, Reporter, SilentReporter
from heedful.train.range_test import RangeTestResult, learning_rate_range_test
from heedful.train.state import CheckpointError, DivergenceError, TrainResult

__all__ = [
    "BarReporter",
    "CheckpointError",
    "DivergenceError",
    "LineReporter",
    "LossConfig",
    "LostProcessError",
    "OptimizerConfig",
    "ParallelConfig",
    "ParameterRule",
    "Perplexity",
    "Processes",
    "RangeTestResult",
    "Reporter",
    "ScheduleConfig",
    "SilentReporter",
    "TrainConfig",
    "TrainResult",
    "best_folder",
    "current_processes",
    "describe_environment",
    "evaluate_perplexity",
    "learning_rate",
    "learning_rate_range_test",
    "load_best",
    "peak_tensor_bytes",
    "read_metrics",
    "train",
]
