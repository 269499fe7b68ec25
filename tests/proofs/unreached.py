"""Where the product waits and the proof of interruptions does not strike, and why."""

from __future__ import annotations

from collections.abc import Mapping

from tests.awaits import Place

UNREACHED: Mapping[str, tuple[str, ...]] = {
    "no handler runs through it, but the command line, the server's and the daemon's own life: `killed-daemon` and"
    " tests/test_serve.py end those anywhere": (
        "cli.py ",
        "server.py ",
        "wiring.py ",
        "app.py running: ",
        "app.py _open: ",
        "app.py _beside: ",
        "app.py open_books: ",
        "app.py Jobs.every: ",
        "control.py ",
        "admin.py call: ",
        "admin.py on_file: ",
        "gateway.py Gateway.drain: ",
        "subscriptions.py fold_by: ",
        "http.py Client.close: ",
        "till.py StripeTill.close: ",
        "store/sqlite.py SqliteStore.close: ",
        "store/sqlite.py SqliteStore._close: ",
        "drain/opening.py ",
        "drain/collecting.py Collector.begin: ",
    ),
    "it waits for nothing: a count in memory, by which somebody is refused at once": (
        ".hit(",
        ": self._admit_stranger(request)",
        "api.py Api._admit_anyone: gateway.admit(caller)",
        "api.py Api._caller: self._gateway.admit(caller)",
        "billing.py Billing._caller: self.gateway.admit(caller)",
        "gateway.py _relay: gateway.admit(caller)",
    ),
    "it waits for nothing, entered or left: what is within is struck": (": asyncio.timeout(",),
    "it waits for another of the same at that moment, which must be there first: as a lock is let go of, it is struck"
    " where that is held": (
        "billing.py Billing.sell: self.busy",
        "drain/collecting.py Collector.turn: self._lock",
        "drain/rpc.py Rpc._answer: self._room",
        "http.py Turn.needed: ",
        "http.py Answer.read: turn.needed(size)",
        "relay.py Relay._stream: turn.needed(",
        "meters.py Meter._send: lanes",
    ),
    "a fake's answer comes in one piece with its head here; that which comes in more is struck at the same place below,"
    " in `Answer.read`": (
        "bidding.py _count_upstream: answer.read(",
        "drain/rpc.py Rpc._exchange: answer.read(",
        "relay.py Relay._refuse: answer.read(",
    ),
    "it is told after something else has gone wrong, which is the one error thrown": (
        "front.py Problems.__call__: self._say(errors.Internal()",
        "front.py Cors.__call__: _answer(problem",
        "billing.py Billing.take: store.write(inbox.keep_for_review, event, body, reason,",
    ),
    "the books are not to be written to just then, as on the disk of `disk`": (
        "relay.py Relay._end_hold: asyncio.sleep(",
    ),
    "an error under a provider's 200, for which tests/test_upstream_faults.py has the fake": (
        "relay.py Relay._whole: self._pass_refusal(",
    ),
    "what Stripe says is in doubt, for which tests/test_reconcile.py and tests/test_auto_topup.py have the lies": (
        "cashier.py Cashier._ask: self._refused(attempt, 'refused')",
        "cashier.py Cashier._learn: self.store.write(_take, id, (), ",
        "cashier.py Cashier.reconcile: self.store.write(inbox.doubt,",
        "cashier.py Cashier._pull_events: self.store.write(",
        "cashier.py Cashier._take_events: self.store.write(inbox.keep_for_review",
    ),
    "the chain has lost a transaction, keeps one waiting or closed a channel meanwhile, for which"
    " tests/test_drain_claiming.py, tests/test_drain_collecting.py and `adrift` have the nodes": (
        "drain/chain.py Chain._look: self.buried(",
        "drain/chain.py Chain.buried_block: ",
        "drain/claiming.py Claimer.idle: ",
        "drain/claiming.py Claimer.replace: ",
        "drain/claiming.py Claimer._tip: self._chain.rpc.ask('eth_gasPrice'",
        "drain/claiming.py Claimer.outcome: self._count(hexadecimal(deep))",
        "drain/collecting.py Collector.turn: self.claimer.idle()",
        "drain/collecting.py Collector._follow: self._send_again(claim)",
        "drain/collecting.py Collector._follow: self.store.write(claims.fail,",
        "drain/collecting.py Collector._send_again: ",
        "drain/collecting.py Collector._attend: self._refused(",
        "drain/collecting.py Collector._look_after: self._give_up(each)",
        "drain/collecting.py Collector._refused: ",
        "drain/collecting.py Collector._settle_closed: chain.latest(",
        "drain/collecting.py Collector._settle_closed: chain.buried_block()",
        "drain/collecting.py Collector._settle_closed: self.store.write(",
        "drain/collecting.py Collector._settle_closed: self._give_up(each)",
        "drain/collecting.py Collector._give_up: ",
    ),
}
"""By the reason, the places: what `shown` says of each of them, or a part of that."""

SOMETIMES: Mapping[str, tuple[str, ...]] = {
    "a connection has broken a moment ago, and another is tried": (
        "relay.py Relay._dispatch: client.post(",
        "drain/rpc.py Rpc._post: self._client.post(",
    ),
    "what was interrupted goes on from there before it is interrupted again": (
        "cashier.py Cashier._step: self._send_link(attempt)",
        "drain/claiming.py Claimer.outcome: self._chain.block('latest')",
    ),
}
"""The same of places that are struck in some runs and not in others."""


def judge(waits: set[Place], struck: set[Place]) -> tuple[list[str], set[Place]]:
    """What is not as it is listed: a place that was never struck and is not there, one that is there and was struck, an
    entry that means no place. And the places that are listed."""
    left, wrong = set[Place](), list[str]()
    for entry in (entry for entries in UNREACHED.values() for entry in entries):
        meant = {place for place in waits if entry in shown(place)}
        wrong += [f"{entry} is listed, and there is no such place"] if not meant else []
        wrong += [f"{entry} is listed, and was struck: {place}" for place in sorted(meant & struck)]
        left |= meant
    entries = [entry for some in SOMETIMES.values() for entry in some]
    left |= {place for place in waits - struck if any(entry in shown(place) for entry in entries)}
    return wrong + [f"never struck: {place}" for place in sorted(waits - struck - left)], left


def shown(place: Place) -> str:
    """A place without its line: `relay.py Relay.run: self._authorize()`."""
    return f"{place.module} {place.function}: {place.awaited}"
