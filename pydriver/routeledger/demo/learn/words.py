"""What the loop did, in sentences: the terminal and the report say the same."""

from __future__ import annotations

from routeledger.demo.words import money, number, percent, plural

from .summary import Learning, Run


def title(learning: Learning) -> str:
    return "The loop closed." if learning.ok else "The loop did not close."


def notice(learning: Learning, run: Run) -> str:
    """When the move of the alias was noticed, and what it cost until then."""
    met = run.notice
    if not met.task_types:
        return f"no task type went to {learning.alias} when it moved: nothing to notice"
    text = ", ".join(
        f"{gone.task_type} {'never' if gone.after is None else f'after {number(gone.after)}'}"
        for gone in met.task_types
    )
    return (
        f"went elsewhere: {text} requests (at most {number(learning.notice_limit)});"
        f" {learning.alias} answered {number(met.toll)} until then"
    )


def since_move(run: Run) -> str:
    return (
        f"{percent(run.notice.right)} right since the move, {percent(run.notice.frozen_right)} had"
        " nothing been learnt from it"
    )


def outage(learning: Learning, run: Run) -> str:
    """What became of the requests in the outage."""
    met = run.outage
    answered = met.requests - met.unanswered
    return (
        f"{number(answered)} of {plural(met.requests, 'request')} answered;"
        f" {plural(met.hit, 'decision')} went to {learning.outage_provider} first, and"
        f" {plural(met.failed_attempts, 'attempt')} failed"
    )


def exploration(learning: Learning) -> str:
    """Whether exploration paid."""
    without, with_it = (run.line.regret_usd for run in learning.runs)
    saved = learning.exploration_saves_usd
    share = abs(saved) / without if without else 0.0
    verdict = (
        f"exploration paid: {percent(share)} less regret"
        if saved > 0
        else f"exploration did not pay: {percent(share)} more regret"
    )
    return f"{verdict}, {money(with_it)} against {money(without)}"
