"""Matched, fair comparisons of attention mechanisms: recipes, budgets, runs, statistics and the report.

`load_recipe` reads what to compare, `run_comparison` carries it out in a folder, and `load_result` with
`render_terminal` shows what it found.
"""

from heedful.study.compare import load_result as load_result
from heedful.study.compare import run_comparison as run_comparison
from heedful.study.plan import Plan as Plan
from heedful.study.plan import make_plan as make_plan
from heedful.study.recipe import Arm as Arm
from heedful.study.recipe import FindTheBlockTask as FindTheBlockTask
from heedful.study.recipe import LanguageModellingTask as LanguageModellingTask
from heedful.study.recipe import Match as Match
from heedful.study.recipe import Recipe as Recipe
from heedful.study.recipe_file import load_recipe as load_recipe
from heedful.study.recipe_file import parse_overrides as parse_overrides
from heedful.study.report import render_report as render_report
from heedful.study.table import plain_text as plain_text
from heedful.study.table import render_terminal as render_terminal
