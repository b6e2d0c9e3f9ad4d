"""Judge policies by their samples, draw the run, and write the report."""

from rlhf_lightning.evaluation.compare import compare, summarise, win_rate
from rlhf_lightning.evaluation.conclusion import conclusion
from rlhf_lightning.evaluation.figures import save_figures
from rlhf_lightning.evaluation.history import read_histories, read_history
from rlhf_lightning.evaluation.report import read_evaluation, write_report
from rlhf_lightning.evaluation.table import before_and_after, print_table

__all__ = [
    "before_and_after",
    "compare",
    "print_table",
    "read_evaluation",
    "read_histories",
    "read_history",
    "save_figures",
    "summarise",
    "conclusion",
    "win_rate",
    "write_report",
]
