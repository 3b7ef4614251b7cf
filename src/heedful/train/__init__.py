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
from heedful.train.progress import BarReporter, LineReporter, Reporter
from heedful.train.state import DivergenceError, TrainResult

__all__ = [
    "BarReporter",
    "DivergenceError",
    "LineReporter",
    "LossConfig",
    "OptimizerConfig",
    "ParallelConfig",
    "ParameterRule",
    "Perplexity",
    "Reporter",
    "ScheduleConfig",
    "TrainConfig",
    "TrainResult",
    "best_folder",
    "describe_environment",
    "evaluate_perplexity",
    "learning_rate",
    "load_best",
    "peak_tensor_bytes",
    "read_metrics",
    "train",
]
