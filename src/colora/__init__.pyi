from .adapter.config import CoLoRAConfig
from .adapter.lookup import set_task
from .adapter.model import CoLoRAModel
from .adapter.stored.access import store_cores, tasks_at_hand
from .algebra import canonical_gauge, compose, joint_diagonalisation
from .bank.core_file import extract_core
from .bank.edit import forget_tasks, merge_tasks
from .bank.export import export_lora, export_loras, export_merged
from .bank.generate import Request, generate_texts
from .bank.how_to_prompt import HowToPrompt
from .bank.importing.bank import import_loras
from .bank.layout import BankInfo
from .bank.load import attach_bank, load_bank, save_bank
from .bank.overview import bank_overview
from .bank.tensors import SavedBank
from .errors import ColoraError
from .evaluation.evaluate import evaluate
from .evaluation.records import Record, append_records, read_records
from .evaluation.settings import EvaluationSettings
from .evaluation.table import comparison_markdown, records_table
from .experiments.load import load_experiment
from .experiments.report.build import write_report
from .experiments.run import ExperimentOptions, run_experiment
from .federated.simulate import simulate
from .models.base import load_base
from .tasks.prompting.templates import PromptTemplate, parse_template
from .tasks.read import read_tasks
from .tasks.schema import Example, Task, TaskSource
from .theory.estimator import CoLoRARegressor
from .theory.recover import recover
from .training.check import check_run
from .training.collators import TaskIdsCollator
from .training.config import RunConfig
from .training.config_file import load_config
from .training.loop.optimizer import TaskAdamW, parameter_groups
from .training.loop.own_loop import load_training, save_training
from .training.measure import evaluate_bank
from .training.run import train, train_and_evaluate
from .transfer.before_training import run_similarity
from .transfer.neighbours import nearest_tasks
from .transfer.onboarding.many import onboard_many
from .transfer.onboarding.onboard import onboard
from .transfer.onboarding.update import update
from .transfer.similarity import bank_similarity

__all__ = [
    "BankInfo",
    "CoLoRAConfig",
    "CoLoRAModel",
    "CoLoRARegressor",
    "ColoraError",
    "EvaluationSettings",
    "Example",
    "ExperimentOptions",
    "HowToPrompt",
    "PromptTemplate",
    "Record",
    "Request",
    "RunConfig",
    "SavedBank",
    "Task",
    "TaskAdamW",
    "TaskIdsCollator",
    "TaskSource",
    "append_records",
    "attach_bank",
    "bank_overview",
    "bank_similarity",
    "canonical_gauge",
    "check_run",
    "comparison_markdown",
    "compose",
    "evaluate",
    "evaluate_bank",
    "export_lora",
    "export_loras",
    "export_merged",
    "extract_core",
    "forget_tasks",
    "generate_texts",
    "import_loras",
    "joint_diagonalisation",
    "load_bank",
    "load_base",
    "load_config",
    "load_experiment",
    "load_training",
    "merge_tasks",
    "nearest_tasks",
    "onboard",
    "onboard_many",
    "parameter_groups",
    "parse_template",
    "read_records",
    "read_tasks",
    "records_table",
    "recover",
    "run_experiment",
    "run_similarity",
    "save_bank",
    "save_training",
    "set_task",
    "simulate",
    "store_cores",
    "tasks_at_hand",
    "train",
    "train_and_evaluate",
    "update",
    "write_report",
]
__version__: str
