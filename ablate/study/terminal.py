"""What a study prints: its arms and their budgets before the runs, its verdicts after them."""

from pathlib import Path

from rich.table import Table

from ablate.cli import console
from ablate.study.judge.verdict import Verdict
from ablate.study.plan.arms import Arm
from ablate.study.question import Study
from ablate.words import counted, percent, short


def show_plan(study: Study, arms: list[Arm], folder: Path) -> None:
    out = console()
    out.print(f"[bold]{study.name}[/bold]: ", end="")
    out.print(study.question, markup=False, highlight=False, soft_wrap=True)
    costs = ("parameters", "without emb.", "active", "FLOPs/token", "cache/token")
    table = Table("arm", *costs, "vs baseline", "matched by", "steps", header_style="bold")
    for arm in arms:
        cost, matched = arm.matched.budget, arm.matched
        table.add_row(
            arm.name,
            *(short(n) for n in (cost.total, cost.non_embedding, cost.active, cost.flops_per_token)),
            f"{cost.kv_bytes_per_token} B",
            "baseline" if arm.name == study.baseline else percent(matched.difference, 2, sign=True),
            (matched.override or "").lstrip("+"),
            str(arm.config["trainer"]["max_steps"]),
        )
    out.print(table)
    rule = {"params": "equal parameters", "flops": "equal FLOPs a token", "none": "no budget matched"}[study.match]
    runs = f"{len(arms)} arms x {counted(len(study.seeds), 'seed')}"
    out.print(f"{runs}, {rule}, equal {study.hold}; in {folder}", highlight=False)


def show_verdict(verdict: Verdict, page: Path) -> None:
    out = console()
    study = verdict.study
    out.print(f"\n[bold]{study.metric} against {study.baseline}[/bold]", highlight=False)
    for name, arm in verdict.arms.items():
        claim = arm.claim
        tested = f"  (claim: {claim.expect}: {claim.outcome})" if claim and claim.expect != "report" else ""
        out.print(f"  {name}: {arm.sentence}{tested}", markup=False, highlight=False, soft_wrap=True)
    for note in verdict.notes:
        out.print(f"  note: {note}", markup=False, highlight=False, soft_wrap=True, style="dim")
    out.print(f"report: {page}", highlight=False, soft_wrap=True)
