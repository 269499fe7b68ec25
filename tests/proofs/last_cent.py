"""Five hundred requests at once on what covers one: a cent of credits, a plan's last tokens, or one of each.

Which of them wins is the machine's affair; that none but it is sent and paid for is not.
"""

from __future__ import annotations

import asyncio
import json
import signal
from collections import Counter
from collections.abc import Mapping

from tests.crowd import Told, told_at_once
from tests.mallory import CHAT, MESSAGES, RESPONSES, asks
from tests.proofs.proof import Attempt, Proof
from tests.witness import faults, query, wrong_books
from tests.world import Customer, World

AT_ONCE = 500
PLANS = """
[free]
tokens_per_month = 0
[last]
tokens_per_month = 15_000
[least]
tokens_per_month = 2_250
"""
CAPS = {CHAT: ("max_tokens", 10_000), RESPONSES: ("max_output_tokens", 10_000), MESSAGES: ("max_tokens", 1_500)}
"""Output for which a cent suffices, or a plan's tokens, and not for twice as much. In the last format
whoever is refused has had its input counted upstream: that takes a while, and is for the full form."""

UNPAID: Told = (402, "insufficient_quota", "insufficient_balance")
REFUSAL: Mapping[str, Told] = {CHAT: UNPAID, RESPONSES: UNPAID, MESSAGES: (402, "billing_error", None)}
"""Of credits, whose word is the last of those that are asked to pay."""

FUNDS = ("credits", "allowance", "one of each")
LOOK_S = 0.02
Look = tuple[int, int]


def run(attempt: Attempt) -> None:
    attempt.expect("credits", "allowance", "plain", "streamed", "looked while it was held")
    if attempt.full:
        attempt.expect(*FUNDS, CHAT, RESPONSES, MESSAGES)
    plans = attempt.folder / "plans.toml"
    plans.write_text(PLANS)
    world = World.create(attempt.folder, FUNDING="allowance,credits", PLANS_FILE=str(plans))
    first = attempt.random.choice((True, False))
    try:
        for number in range(attempt.goal["rounds"]):
            funds = FUNDS[number % (3 if attempt.full else 2)]
            one_round(attempt, world, funds, stream=number % 2 == first)
            if number % 20 == 0:
                books_add_up(attempt, world)
        books_add_up(attempt, world)
        attempt.must(not faults(world), f"the daemon met what it did not expect: {faults(world)[:1]}")
    finally:
        world.daemon.program.stop(signal.SIGKILL)
        world.upstream.program.stop(signal.SIGKILL)


def one_round(attempt: Attempt, world: World, funds: str, *, stream: bool) -> None:
    """One customer, one crowd, and what came of it."""
    chance = attempt.random
    path = chance.choice(tuple(CAPS) if attempt.full else (CHAT, RESPONSES))
    field, cap = CAPS[path]
    customer = funded(world, funds, "least" if path == MESSAGES else "last")
    directive = {"hang_s": chance.choice((0, 0.05, 0.2)), "words": cap if chance.random() < 0.2 else 20}
    output = "completion_tokens" if path == CHAT else "output_tokens"
    text = f"demo:{json.dumps(directive | {'usage': {output: cap}})}"
    body = json.dumps(asks(path, text, **{field: cap, "stream": stream})).encode()
    mark = world.upstream.mark()
    answers, looks = asyncio.run(watched(world, customer, body, path))
    story = f"{AT_ONCE} of {customer.id} to {path} ({funds}{', streamed' if stream else ''})"
    wins = 2 if funds == "one of each" else 1
    attempt.must(answers[200, None, None] == wins, f"{story} had other winners than {wins}: {dict(answers)}")
    attempt.must(answers[REFUSAL[path]] == AT_ONCE - wins, f"{story} were answered {dict(answers)}")
    judge(attempt, world, customer, wins, mark, path, story)
    attempt.must(min(looks)[0] >= 0, f"{story}: {min(looks)[0]} was available")
    attempt.meet("looked while it was held", sum(held > 0 for _, held in looks))
    for danger in (funds, path, "streamed" if stream else "plain"):
        attempt.meet(danger)
    attempt.count("rounds")
    attempt.count("requests", AT_ONCE)


def funded(world: World, funds: str, plan: str) -> Customer:
    """A new customer with enough for one request, and no more."""
    customer = world.customer(0 if funds == "allowance" else 1)
    if funds != "credits":
        world.verb("plan_assign", user=customer.id, plan=plan, until=None)
    return customer


async def watched(world: World, customer: Customer, body: bytes, path: str) -> tuple[Counter[Told], list[Look]]:
    """What the crowd was told, and how the customer's accounts stood meanwhile."""
    looks = look(world, customer)
    crowd = asyncio.create_task(told_at_once(world, customer, body, AT_ONCE, path))
    while not crowd.done():
        await asyncio.wait((crowd,), timeout=LOOK_S)
        looks += look(world, customer)
    return crowd.result(), looks


def look(world: World, customer: Customer) -> list[Look]:
    """What is available in each of the customer's accounts, and what is held, in grains."""
    return query(world, "SELECT balance * grain + carry - held, held FROM accounts WHERE user_id = ?", customer.id)


def judge(attempt: Attempt, world: World, customer: Customer, wins: int, mark: int, path: str, story: str) -> None:
    """A dispatch and a charged row for each that won; nothing held."""
    sent = sum(dispatch["path"] == path for dispatch in world.upstream.dispatches(mark))
    attempt.must(sent == wins, f"{story} had {wins} winners, and {sent} were sent upstream")
    rows = world.rows(customer)
    ends = [(row["status"], row["reason"], row["shortfall"]) for row in rows]
    attempt.must(ends == [("settled", "completed", 0)] * wins, f"{story} left these rows: {ends}")
    attempt.must(len({row["account_id"] for row in rows}) == wins, f"{story} were paid twice by one account")
    attempt.must(all(row["charged"] > 0 for row in rows), f"{story} were answered for nothing")
    held = sum(held for _, held in look(world, customer))
    attempt.must(held == 0, f"{story}: {held} is still held")


def books_add_up(attempt: Attempt, world: World) -> None:
    wrong = wrong_books(world)
    attempt.must(not wrong, f"the books: {wrong[:3]}")


PROOF = Proof(
    name="last-cent",
    claim="500 requests at once on a balance or an allowance that covers one: one winner, never negative.",
    short={"rounds": 2, "requests": 1_000},
    full={"rounds": 200, "requests": 100_000},
    run=run,
    limit_s=(120, 2_400),
)
