"""What Stripe tells may come in any order, again and again, late, or never, and from anybody: a purchase counts once.

Lives of purchases are drawn by chance (`tests.lives`), and told to the real inbox on the real tables: as they happened,
then in other orders, doubled, while their credits are being spent, with events that were lost until Stripe was asked
for them, and to books that were restored from before the purchase. Each telling must end where the life says. Some are
told over HTTP, with forgeries among them, to a daemon that is killed half-way. What two deliveries at once meet of each
other is up to the kernel, and not repeated by a seed; all else is.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from random import Random
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

from goosestack import accounts, ledger, payments
from goosestack.cashier import Cashier
from goosestack.clock import utc_now
from goosestack.payments import Payment, Terms
from goosestack.store import Tx
from goosestack.store.sqlite import SqliteStore, connect_read_only
from goosestack.stripe_facts import Event
from goosestack.subscriptions import iso
from goosestack.till import Till
from tests.bookings import CUSTOMER, MONTH_S, START, Bookings
from tests.forgeries import FORGED, send, signature
from tests.lives import Life, Object, of_credits, of_pro
from tests.proofs.proof import Attempt, Proof, Refuted
from tests.tills import KEY, SECRET
from tests.witness import faults
from tests.world import World

P = ParamSpec("P")
T = TypeVar("T")

PRICE = "price_pro"
ORDERS = 10
"""In which each life is told."""
WAYS = ("in another order", "doubled", "while it is spent", "lost and asked for", "to restored books")
RARE = (
    *("bank", "bank that refused", "expired", "refund that failed", "dispute asked about", "dispute open"),
    *("dispute won", "dispute lost", "subscription cancelled at once", "subscription cancelled at its end"),
    *("subscription not paid any more", "subscription given back", "subscription goes on"),
)
"""What happens in some lives, and in a short run perhaps in none."""
AT_ONCE = 6
"""Deliveries at once, over HTTP."""
LATEST = iso(START + 12 * MONTH_S)


# --- in memory ------------------------------------------------------------------------------------------------


class Desk:
    """A `Store` on the books' one connection, for whoever asks Stripe."""

    def __init__(self, books: Bookings) -> None:
        self.db, self.full = books.db, False

    def write(self, verb: Callable[Concatenate[Tx, P], T], *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[T]:
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self.db.execute("SAVEPOINT verb")
        done.set_result(verb(self.db, *args, **kwargs))
        self.db.execute("RELEASE verb")
        return done

    async def read(self, query: Callable[Concatenate[Tx, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        return query(self.db, *args, **kwargs)

    def peek(self, query: Callable[Concatenate[Tx, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        return query(self.db, *args, **kwargs)


class Account:
    """Stripe, for whoever asks what it has."""

    def __init__(self, life: Life, *, events: bool) -> None:
        self._objects: Mapping[str, Sequence[Object]] = dict(life.objects)
        self._events = [as_sent(event) for event in life.events] if events else []

    async def pull(self, source: str, since: int) -> AsyncIterator[Object]:
        for found in self._events if source == "events" else self._objects.get(source, ()):
            yield found


def as_sent(event: Event) -> Object:
    """An event as it is delivered and listed."""
    fields = asdict(event)
    return {"object": "event", "data": {"object": fields.pop("object")}, **fields}


@dataclass(slots=True)
class Telling:
    """One way in which a life is told to the books."""

    books: Bookings
    life: Life
    chance: Random
    runner: asyncio.Runner
    spent: int = 0

    def tell(self, events: Iterable[Event]) -> Counter[str]:
        return Counter(self.books.receive(event) for event in events)

    def shuffled(self, events: Iterable[Event]) -> list[Event]:
        found = list(events)
        self.chance.shuffle(found)
        return found

    def way(self, name: str) -> None:
        """Tell it so."""
        events, chance = self.life.events, self.chance
        match name:
            case "in another order":
                self.tell(self.shuffled(events))
            case "doubled":
                self.tell(self.shuffled([*events, *chance.choices(events, k=chance.randrange(1, 9))]))
            case "while it is spent":
                for event in self.shuffled(events):
                    self._spend()
                    self.books.receive(event)
            case "lost and asked for":
                heard = self.shuffled(event for event in events if chance.random() < 0.5)
                self.tell(heard)
                self._reconcile()
                self.tell(self.shuffled(events)[: chance.randrange(len(events))])
            case "to restored books":
                self.books.db.execute("DELETE FROM payments WHERE id = ?", (self.life.payment.id,))
                self.tell(self.shuffled(event for event in events if chance.random() < 0.5))
                self._reconcile()

    def _spend(self) -> None:
        available = self.books.funds()["available_cents"]
        if available and self.books.funds()["debt_cents"] == 0:
            cents = self.chance.randrange(1, available + 1)
            self.spent += cents
            self.books.spend(cents, f"req_{self.spent}")

    def _reconcile(self) -> None:
        listed = self.chance.random() < 0.5 or "bank that refused" in self.life.kinds  # of which no object tells
        account = cast(Till, Account(self.life, events=listed))
        cashier = Cashier(
            store=Desk(self.books),
            till=account,
            terms=self.books.terms,
            topups={},
            now=lambda: LATEST,
            alert=lambda kind, **facts: None,
        )
        self.runner.run(cashier.reconcile())

    def wrong(self) -> list[str]:
        """What is otherwise than the life says."""
        life, db = self.life, self.books.db
        rows = db.execute("SELECT status FROM payments WHERE id = ?", (life.payment.id,)).fetchall()
        expected = [] if life.payment.kind == "pro" else [(life.status,)]
        found = {
            "status": (rows if expected else [], expected),
            "worth": (ledger.target_of(db, life.payment.id), life.worth),
            "Pro until": (self.books.pro_until(), None if life.until is None else iso(life.until)),
        }
        funds = self.books.funds()
        found["balance less debt"] = (funds["balance_cents"] - funds["debt_cents"], life.worth - self.spent)
        wrong = [f"{name} is {is_}, and should be {should}" for name, (is_, should) in found.items() if is_ != should]
        return wrong + ledger.check(db, full=True).wrong


def in_memory(seed: int, sequences: int) -> tuple[Counter[str], str | None]:
    """Tell so many sequences; what was met, and the story of the first that ended elsewhere."""
    chance, met, told = Random(seed), Counter[str](), 0
    books = Bookings(PRICE)
    with asyncio.Runner() as runner:
        while told < sequences:
            books.db.execute("SAVEPOINT life")
            life = drawn(chance, books)
            met.update(life.kinds)
            expected: list[Any] = []
            for number in range(min(ORDERS, sequences - told)):
                told += 1
                way = "as it happened" if number == 0 else chance.choice(WAYS)
                met[way] += 1
                books.db.execute("SAVEPOINT telling")
                telling = Telling(books, life, chance, runner)
                if number == 0:
                    telling.tell(life.events)
                    expected = books.rows()
                else:
                    telling.way(way)
                wrong = telling.wrong()
                if not wrong and way in ("in another order", "doubled") and books.rows() != expected:
                    wrong = [str(pair) for pair in zip(books.rows(), expected, strict=False) if pair[0] != pair[1]]
                if wrong:
                    return met, story(life, way, wrong)
                books.db.execute("ROLLBACK TO telling")
            books.db.execute("ROLLBACK TO life")
            books.db.execute("RELEASE life")
    return met, None


def drawn(chance: Random, books: Bookings) -> Life:
    """One life, whose purchase the books know of."""
    if chance.random() < 0.3:
        payment = books.sold_pro(PRICE)
        return of_pro(chance, payment)
    amount = chance.choice((1000, 2500, 50))
    return of_credits(chance, books.sold(amount, amount + chance.choice((0, 0, 100))))


def story(life: Life, way: str, wrong: Sequence[str]) -> str:
    events = ", ".join(f"{event.type}@{event.created}" for event in life.events)
    kinds = ", ".join(sorted(life.kinds))
    return f"a life of {kinds}, told {way}: {'; '.join(wrong)}. It was: {events}"


# --- over HTTP ------------------------------------------------------------------------------------------------


def over_http(attempt: Attempt) -> None:
    """Many lives at once, told to a daemon that is killed half-way; what is forged grants nothing."""
    lives = asyncio.run(_sold(attempt, attempt.goal["lives over HTTP"]))
    world = World.create(
        attempt.folder,
        STRIPE_SECRET_KEY=KEY,
        STRIPE_WEBHOOK_SECRET=SECRET,
        STRIPE_PRO_PRICE_ID=PRICE,
        STRIPE_API_BASE="http://127.0.0.1:9",
        PUBLIC_URL="https://llm.example.com",
        FORWARDED_ALLOW_IPS="127.0.0.1",
        PRO_GRACE_HOURS="0",
    )
    with world.closing():
        events = [json.dumps(as_sent(event)).encode() for life in lives for event in life.events]
        _forge(attempt, world, attempt.random.choice(events))
        sent = [*events, *attempt.random.choices(events, k=len(events) // 2)]
        attempt.random.shuffle(sent)
        half = len(sent) // 2
        answered = _deliver(world, sent[:half], dies_after=half // 2)
        attempt.must(answered < half, "the daemon was killed, and had answered everything before")
        attempt.meet("killed half-way")
        world.daemon.start()
        again = _deliver(world, sent)  # what was not answered is sent again, and here the rest as well
        attempt.must(again == len(sent), f"{len(sent) - again} good events were not taken")
        for life in lives:
            _judge(attempt, world, life)
            attempt.count("lives over HTTP")
        attempt.must(not faults(world), f"a daemon met what it did not expect: {faults(world)[:1]}")


async def _sold(attempt: Attempt, count: int) -> list[Life]:
    """So many users, each with one purchase; the lives of these."""
    store, chance = SqliteStore(attempt.folder / "goosestack.db"), attempt.random
    terms, lives = Terms(livemode=False, pro_price=PRICE), []
    for number in range(count):
        customer = f"cus_{number}"
        pro = chance.random() < 0.3

        def sell(tx: Tx, customer: str = customer, pro: bool = pro) -> Payment:
            user, now = accounts.create_user(tx, f"{customer}@example.com", utc_now()), utc_now()
            payments.set_customer(tx, user, customer)
            if pro:
                return payments.add(tx, user, "pro", 0, 0, PRICE, terms, now)
            return payments.add(tx, user, "credits", 1000, 1100, None, terms, now)

        life = (of_pro if pro else of_credits)(chance, await store.write(sell))
        life.events = [replace(event, object=_of(customer, event.object)) for event in life.events]
        lives.append(life)
    await store.close()
    return lives


def _of(customer: str, about: Mapping[str, Any]) -> Mapping[str, Any]:
    return {**about, "customer": customer} if about.get("customer") == CUSTOMER else about


def _forge(attempt: Attempt, world: World, good: bytes) -> None:
    """A good event that was not told yet, in every forged form."""
    for number, (name, forge) in enumerate(FORGED.items()):
        body, header = forge(good)
        reply = send(world, body, header, **{"x-forwarded-for": f"10.0.{number}.1"})
        attempt.must(reply.status == 400, f"a webhook with {name} was answered {reply.status}")
        attempt.count("forgeries")
    found = _rows(world, "SELECT (SELECT count(*) FROM stripe_events) + (SELECT count(*) FROM stripe_facts)")
    attempt.must(found == [(0,)], "a forged webhook was written down")


def _deliver(world: World, bodies: Sequence[bytes], *, dies_after: int | None = None) -> int:
    """Send these, several at once; how many were answered with 200. The daemon is killed after so many of them."""
    answered = Counter[int]()

    def lane(number: int) -> None:
        connection = http.client.HTTPConnection(world.url.removeprefix("http://"), timeout=30)
        for body in bodies[number::AT_ONCE]:
            head = {"content-type": "application/json", "stripe-signature": signature(body)}
            try:
                connection.request("POST", "/billing/webhook", body, head)
                with connection.getresponse() as answer:
                    answer.read()
                    answered[number] += answer.status == 200
            except (ConnectionError, http.client.HTTPException):
                break
            if dies_after is not None and sum(answered.values()) >= dies_after:
                world.daemon.program.process.send_signal(signal.SIGKILL)
        connection.close()

    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(lane, range(AT_ONCE)))
    if dies_after is not None:
        world.daemon.program.process.wait()
    return sum(answered.values())


def _judge(attempt: Attempt, world: World, life: Life) -> None:
    ((balance, debt, pro, status),) = _rows(
        world,
        "SELECT a.balance, a.debt, u.pro_until, p.status FROM payments p JOIN users u ON u.id = p.user_id"
        " JOIN accounts a ON a.user_id = u.id WHERE p.id = ?",
        life.payment.id,
    )
    expected = (life.worth, 0, None if life.until is None else iso(life.until))
    story = f"over HTTP, a life of {', '.join(sorted(life.kinds))} ended with {balance, debt, pro}, not {expected}"
    attempt.must((balance, debt, pro) == expected, story)
    if life.payment.kind == "credits":
        attempt.must(status == life.status, f"{story}: its status is {status}, not {life.status}")


def _rows(world: World, sql: str, *args: object) -> list[tuple[Any, ...]]:
    db = connect_read_only(world.daemon.db)
    try:
        return db.execute(sql, args).fetchall()
    finally:
        db.close()


# --- the proof ------------------------------------------------------------------------------------------------


def run(attempt: Attempt) -> None:
    """In memory, on both cores where there is much to tell; then over HTTP."""
    attempt.expect(*WAYS, "refund", "subscription", "killed half-way")
    if attempt.full:
        attempt.expect(*RARE)
    goal = attempt.goal["sequences"]
    size = 2_500 if attempt.full else goal
    shares = [(attempt.random.getrandbits(64), min(size, goal - start)) for start in range(0, goal, size)]
    if len(shares) == 1:
        _learn(attempt, *in_memory(*shares[0]), shares[0][1])
    else:
        with ProcessPoolExecutor(2, get_context("spawn")) as pool:
            waiting = {pool.submit(in_memory, *share): share[1] for share in shares}
            try:
                for done in as_completed(waiting):
                    _learn(attempt, *done.result(), waiting[done])
            except Refuted:
                pool.shutdown(cancel_futures=True)
                raise
    over_http(attempt)


def _learn(attempt: Attempt, met: Counter[str], wrong: str | None, told: int) -> None:
    attempt.must(wrong is None, str(wrong))
    for what, times in met.items():
        attempt.meet(what, times)
    attempt.count("sequences", told)


PROOF = Proof(
    name="webhooks",
    claim="In whatever order Stripe tells of a purchase, or not at all, it is granted once; what is forged, never.",
    short={"sequences": 300, "forgeries": 40, "lives over HTTP": 10},
    full={"sequences": 100_000, "forgeries": 40, "lives over HTTP": 1_000},
    run=run,
    limit_s=(60, 1_800),
)
