"""What nodes say is read strictly, by one question for many, and where they do not know nothing is guessed."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace

import pytest

from goosestack.drain import abi
from goosestack.drain.chain import HEAD_S, Chain, Terms
from goosestack.drain.rpc import DOWN_S, SAME_CHAIN_S, Rpc
from goosestack.drain.vouchers import Domain, parse_voucher
from goosestack.errors import ChainUnknown, Refusal
from goosestack.http import Client
from tests.chain.control import DOLLAR, LocalChain, voucher_header
from tests.chain.places import DAVE, MALLORY, OWNER, PROVIDER, USDC, V1, V2

KEEP_S = 30.0
CHANNEL = "0x" + abi.GET_CHANNEL.hex()


class Clock:
    """Time that passes when a test says so."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    client = Client()
    yield client
    await client.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="module")
def amoy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalChain]:
    """Another chain altogether, whose fee is none."""
    chain = LocalChain(tmp_path_factory.mktemp("amoy"), chain_id=80002, fee_bps=0)
    yield chain
    chain.close()


def reader(
    client: Client,
    urls: list[str],
    clock: Clock,
    *,
    contract: bytes = V2,
    chain_id: int = 137,
    depth: int = 2,
    timeout_s: float = 10.0,
) -> Chain:
    rpc = Rpc(client, urls, chain_id, timeout_s=timeout_s, clock=clock)
    return Chain(rpc, Domain(chain_id, contract), depth=depth, keep_s=KEEP_S, clock=clock)


async def unknown(chain: Chain, channel_id: bytes) -> str:
    """Why the chain is unknown."""
    with pytest.raises(ChainUnknown) as caught:
        await chain.channel(channel_id)
    assert caught.value.status == 503
    assert int(caught.value.headers["retry-after"]) > 0
    assert "127.0.0.1" not in str(caught.value.facts)
    return str(caught.value.facts["why"])


def old_channel(chain: LocalChain, deposit: int = 10 * DOLLAR, duration: int = 86_400) -> bytes:
    channel_id = chain.open(deposit, duration)
    chain.mine(2)
    return channel_id


# --- channels -------------------------------------------------------------------------------------------------


async def test_a_channel_is_what_the_contract_has(chain: LocalChain, client: Client, clock: Clock) -> None:
    channel_id = chain.open(7 * DOLLAR, 3_600)
    expiry = chain.time() + 3_600
    voucher = parse_voucher(voucher_header(channel_id, DOLLAR, 1))
    chain.act(PROVIDER, V2, abi.claim(channel_id, DOLLAR, 1, voucher.signature))
    chain.mine(2)
    found = await reader(client, [chain.url()], clock).channel(channel_id)
    assert found == abi.Channel(channel_id, DAVE.address, PROVIDER.address, 7 * DOLLAR, DOLLAR, expiry, DOLLAR)


async def test_a_channel_that_is_not_there_is_none(chain: LocalChain, client: Client, clock: Clock) -> None:
    assert await reader(client, [chain.url()], clock).channel(os.urandom(32)) is None


async def test_the_same_id_on_the_other_contract_is_another_channel(
    chain: LocalChain, client: Client, clock: Clock
) -> None:
    channel_id = old_channel(chain)
    assert await reader(client, [chain.url()], clock, contract=V1).channel(channel_id) is None


async def test_a_hundred_questions_at_once_are_one(chain: LocalChain, client: Client, clock: Clock) -> None:
    channel_id = old_channel(chain)
    known = reader(client, [chain.url()], clock)
    found = await asyncio.gather(*(known.channel(channel_id) for _ in range(100)))
    assert found[0] is not None
    assert set(found) == {found[0]}
    await asyncio.gather(*(known.head() for _ in range(100)))
    assert chain.asked().count("eth_getBlockByNumber") == 1
    assert chain.asked().count("eth_call") == 2  # as of a buried block, and of the latest


async def test_one_who_asks_and_goes_takes_nobody_along(chain: LocalChain, client: Client, clock: Clock) -> None:
    channel_id = old_channel(chain)
    known = reader(client, [chain.url()], clock)
    gone, stays = (asyncio.create_task(known.channel(channel_id)) for _ in range(2))
    await asyncio.sleep(0)
    gone.cancel()
    assert await stays is not None


async def test_a_channel_is_read_again_after_a_while_or_on_demand(
    chain: LocalChain, client: Client, clock: Clock
) -> None:
    channel_id = old_channel(chain, duration=60)
    known = reader(client, [chain.url()], clock)
    assert await known.channel(channel_id) is not None
    chain.pass_time(60)
    chain.close_channel(channel_id)
    clock.now += KEEP_S - 1
    assert await known.channel(channel_id) is not None
    known.forget(channel_id)
    assert await known.channel(channel_id) is None
    assert await known.channel(channel_id) is None


async def test_a_channel_that_was_not_there_is_soon_looked_for_again(
    chain: LocalChain, client: Client, clock: Clock
) -> None:
    known = reader(client, [chain.url()], clock, depth=0)
    chain.fault("result", "0x" + "00" * 160, contains=CHANNEL)
    channel_id = old_channel(chain)
    assert await known.channel(channel_id) is None
    chain.heal()
    assert await known.channel(channel_id) is None
    clock.now += 3
    assert await known.channel(channel_id) is not None


async def test_a_channel_counts_once_blocks_stand_on_it(chain: LocalChain, client: Client, clock: Clock) -> None:
    channel_id = chain.open()
    known = reader(client, [chain.url()], clock)
    assert await unknown(known, channel_id) == "the channel is too young"
    chain.mine(2)
    clock.now += HEAD_S
    assert await known.channel(channel_id) is not None


async def test_a_channel_that_a_reorganisation_undid_was_never_there(
    chain: LocalChain, client: Client, clock: Clock
) -> None:
    channel_id = chain.open()
    chain.mine()
    known = reader(client, [chain.url()], clock)
    assert await unknown(known, channel_id) == "the channel is too young"
    chain.reorganise(2, keep=False)
    clock.now += HEAD_S
    assert await known.channel(channel_id) is None


async def test_what_was_claimed_a_moment_ago_is_told_apart(chain: LocalChain, client: Client, clock: Clock) -> None:
    channel_id = old_channel(chain)
    voucher = parse_voucher(voucher_header(channel_id, DOLLAR, 1))
    chain.act(PROVIDER, V2, abi.claim(channel_id, DOLLAR, 1, voucher.signature))
    known = reader(client, [chain.url()], clock)
    found = await known.channel(channel_id)
    assert found is not None
    assert (found.claimed, found.unburied) == (0, DOLLAR)
    buried = await known.buried(channel_id)
    assert buried is not None
    assert buried.claimed == 0


async def test_the_chains_time_is_the_latest_blocks(chain: LocalChain, client: Client, clock: Clock) -> None:
    known = reader(client, [chain.url()], clock)
    before = (await known.head()).timestamp
    chain.pass_time(5_000)
    assert (await known.head()).timestamp == before
    clock.now += HEAD_S
    head = await known.head()
    assert head.timestamp == chain.time()
    assert head.timestamp >= before + 5_000


# --- nodes that fail ------------------------------------------------------------------------------------------

FAILURES: dict[str, dict[str, object]] = {
    "cuts the connection": {"do": "cut"},
    "says nothing": {"do": "stall"},
    "says a little, again and again": {"do": "drip"},
    "is out of order": {"do": "status", "value": 502},
    "wants less": {"do": "status", "value": 429},
    "sends us elsewhere": {"do": "status", "value": 302},
    "answers with a page": {"do": "text", "value": "<html>welcome</html>"},
    "answers with half": {"do": "text", "value": '{"jsonrpc": "2.0", "id": 1, "res'},
    "answers with a list": {"do": "text", "value": "[]"},
    "answers with nothing": {"do": "text", "value": ""},
    "answers another question": {"do": "text", "value": '{"jsonrpc": "2.0", "id": -1, "result": "0x89"}'},
    "answers without end": {"do": "text", "value": "x" * 2_000_000},
    "answers deeply": {"do": "text", "value": "[" * 500_000},
    "has an error": {"do": "error", "value": {"code": -32603, "message": "internal error"}},
    "has an error of no shape": {"do": "error", "value": "oops"},
    "has no such block": {"do": "error", "value": {"code": -32000, "message": "header not found"}},
    "knows nothing": {"do": "result", "value": None},
    "is on another chain": {"do": "result", "value": "0x13882", "method": "eth_chainId"},
    "does not know its chain": {"do": "result", "value": 137, "method": "eth_chainId"},
}
STALLED_S = 1.0
"""How long these tests wait for a node that says nothing."""
FAILING = pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES)


def patience(failure: dict[str, object]) -> float:
    return STALLED_S if failure["do"] in ("stall", "drip") else 10.0


@FAILING
async def test_a_node_that_fails_makes_the_chain_unknown(
    chain: LocalChain, client: Client, clock: Clock, failure: dict[str, object]
) -> None:
    channel_id = old_channel(chain)
    chain.fault(**failure)  # type: ignore[arg-type]
    await unknown(reader(client, [chain.url()], clock, timeout_s=patience(failure)), channel_id)


@FAILING
async def test_where_one_node_fails_another_is_asked(
    chain: LocalChain, client: Client, clock: Clock, failure: dict[str, object]
) -> None:
    channel_id = old_channel(chain)
    chain.fault(**failure)  # type: ignore[arg-type]
    known = reader(client, [chain.url("a"), chain.url("b")], clock, timeout_s=patience(failure))
    assert await known.channel(channel_id) is not None


async def test_a_node_that_quotes_the_key_in_its_address_is_not_repeated(
    chain: LocalChain, client: Client, clock: Clock
) -> None:
    """A provider's node says which key it refuses, and why a node refuses is logged: so the key was in the log."""
    key = "an-operators-Key~0123456789"
    channel_id, node = chain.open(), f"v2/{key}"
    for quotation in (key, key.lower(), "x" * 180 + key):
        chain.fault("error", {"code": -32001, "message": f"{quotation} is no key"}, node=node)
        why = await unknown(reader(client, [chain.url(node)], clock), channel_id)
        assert "[redacted]" in why and key[:10].lower() not in why.lower()
        chain.heal()


async def test_a_node_that_nobody_answers_for_is_passed_over(chain: LocalChain, client: Client, clock: Clock) -> None:
    channel_id = old_channel(chain)
    known = reader(client, ["http://127.0.0.1:1/", "http://nowhere.invalid/", chain.url("b")], clock)
    assert await known.channel(channel_id) is not None
    alone = reader(client, ["http://127.0.0.1:1/"], clock)
    assert "NotSent" in await unknown(alone, channel_id)


async def test_a_node_that_failed_is_left_alone_for_a_while(chain: LocalChain, client: Client, clock: Clock) -> None:
    channel_id = old_channel(chain)
    known = reader(client, [chain.url("a"), chain.url("b")], clock)
    chain.fault("status", 500, node="a")
    assert await known.channel(channel_id) is not None
    chain.heal()
    clock.now += DOWN_S - 1
    known.forget(channel_id)
    assert await known.channel(channel_id) is not None
    assert chain.asked("a") == []
    clock.now += 1
    known.forget(channel_id)
    assert await known.channel(channel_id) is not None
    assert chain.asked("a")[0] == "eth_chainId"


async def test_where_all_failed_all_are_asked_again_at_once(chain: LocalChain, client: Client, clock: Clock) -> None:
    channel_id = old_channel(chain)
    known = reader(client, [chain.url("a"), chain.url("b")], clock)
    chain.fault("cut", node=None)
    with pytest.raises(ChainUnknown):
        await known.channel(channel_id)
    chain.heal()
    assert await known.channel(channel_id) is not None


async def test_a_node_must_say_again_and_again_which_chain_it_is_on(
    chain: LocalChain, amoy: LocalChain, client: Client, clock: Clock
) -> None:
    known = reader(client, [chain.url("a")], clock)
    assert await known.channel(os.urandom(32)) is None
    chain.fault("result", "0x13882", method="eth_chainId")
    assert await known.channel(os.urandom(32)) is None
    clock.now += SAME_CHAIN_S
    await unknown(known, os.urandom(32))
    assert "another chain" in await unknown(reader(client, [amoy.url("a")], clock), os.urandom(32))


async def test_an_idle_connection_that_a_node_closed_is_no_failure(
    chain: LocalChain, client: Client, clock: Clock
) -> None:
    channel_id = old_channel(chain)
    known = reader(client, [chain.url("a")], clock)
    assert await known.channel(channel_id) is not None
    known.forget(channel_id)
    clock.now += HEAD_S
    chain.fault("cut", times=1)
    assert await known.channel(channel_id) is not None


# --- nodes that lie -------------------------------------------------------------------------------------------


def words(*values: int | bytes) -> str:
    return "0x" + b"".join(abi.word(each) for each in values).hex()


LIES = {
    "no answer": "0x",
    "four words": words(1, 2, 3, 4),
    "six words": words(DAVE.address, PROVIDER.address, 5, 0, 9, 0),
    "not hexadecimal": "0xzz",
    "half a byte": words(DAVE.address, PROVIDER.address, 5, 0, 9) + "0",
    "without 0x": words(DAVE.address, PROVIDER.address, 5, 0, 9)[2:],
    "a number": 5,
    "an object": {"deposit": 5},
    "more than an address": words(b"\xff" * 32, PROVIDER.address, 5, 0, 9),
    "no consumer": words(0, PROVIDER.address, 5, 0, 9),
    "no provider": words(DAVE.address, 0, 5, 0, 9),
    "no deposit": words(DAVE.address, PROVIDER.address, 0, 0, 9),
    "a deposit beyond all money": words(DAVE.address, PROVIDER.address, 2**63, 0, 9),
    "more claimed than deposited": words(DAVE.address, PROVIDER.address, 5, 6, 9),
    "no expiry": words(DAVE.address, PROVIDER.address, 5, 0, 0),
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
async def test_a_channel_that_cannot_be_is_no_answer(
    chain: LocalChain, client: Client, clock: Clock, lie: object
) -> None:
    channel_id = old_channel(chain)
    chain.fault("result", lie, contains=CHANNEL)
    await unknown(reader(client, [chain.url("a")], clock), channel_id)
    assert await reader(client, [chain.url("a"), chain.url("b")], clock).channel(channel_id) is not None


@pytest.mark.parametrize(
    "lie",
    [
        words(DAVE.address, PROVIDER.address, 1_000 * DOLLAR, 0, 9_999_999_999),
        words(MALLORY.address, PROVIDER.address, 10 * DOLLAR, 0, 9_999_999_999),
        words(0, 0, 0, 0, 0),
    ],
    ids=["more money", "another consumer", "nothing"],
)
async def test_nodes_that_contradict_each_other_are_not_believed(
    chain: LocalChain, client: Client, clock: Clock, lie: str
) -> None:
    channel_id = old_channel(chain)
    chain.fault("result", lie, contains=CHANNEL, node="a")
    known = reader(client, [chain.url("a"), chain.url("b")], clock)
    assert "contradict" in await unknown(known, channel_id)


async def test_an_answer_that_changes_within_a_moment_is_not_believed(
    chain: LocalChain, client: Client, clock: Clock
) -> None:
    channel_id = old_channel(chain)
    lie = words(DAVE.address, PROVIDER.address, 1_000 * DOLLAR, 0, 9_999_999_999)
    chain.fault("result", lie, contains=CHANNEL, times=1)
    assert await unknown(reader(client, [chain.url()], clock), channel_id) == "the channel is not what it was"


async def test_a_node_that_is_behind_only_makes_channels_younger(
    chain: LocalChain, client: Client, clock: Clock
) -> None:
    channel_id = old_channel(chain)
    chain.mine()
    chain.fault("behind", 1, node="a")
    assert await reader(client, [chain.url("a"), chain.url("b")], clock).channel(channel_id) is not None
    chain.heal()
    chain.fault("behind", 2, node="a")
    assert "young" in await unknown(reader(client, [chain.url("a"), chain.url("b")], clock), channel_id)


BLOCK = {"number": "0x10", "hash": "0x" + "11" * 32, "timestamp": "0x6a000000", "baseFeePerGas": "0x1"}


@pytest.mark.parametrize(
    "lie",
    [
        {},
        [],
        {**BLOCK, "timestamp": None},
        {**BLOCK, "timestamp": "0x" + "f" * 64},
        {**BLOCK, "timestamp": 1_800_000_000},
        {**BLOCK, "number": "16"},
        {**BLOCK, "number": "0x"},
        {**BLOCK, "hash": "0x11"},
        {**BLOCK, "baseFeePerGas": "0x" + "1" * 65},
    ],
)
async def test_a_block_that_cannot_be_is_no_answer(
    chain: LocalChain, client: Client, clock: Clock, lie: object
) -> None:
    chain.fault("result", lie, method="eth_getBlockByNumber")
    with pytest.raises(ChainUnknown):
        await reader(client, [chain.url("a")], clock).head()
    assert (await reader(client, [chain.url("a"), chain.url("b")], clock).head()).number > 0


# --- the contract's terms -------------------------------------------------------------------------------------


async def test_the_terms_are_read_from_either_contract(
    chain: LocalChain, amoy: LocalChain, client: Client, clock: Clock
) -> None:
    second = await reader(client, [chain.url()], clock).terms()
    assert second == Terms(2, USDC, 200, OWNER.address)
    assert not second.renounced
    assert second.payout(1_000_000) == 980_000
    first = await reader(client, [chain.url()], clock, contract=V1).terms()
    assert first == Terms(1, USDC, 0, OWNER.address)
    other = await reader(client, [amoy.url()], clock, chain_id=80002).terms()
    assert other == replace(second, fee_bps=0)


def test_the_provider_receives_what_the_contract_pays() -> None:
    terms = Terms(2, USDC, 200, b"\0" * 20)
    assert terms.renounced
    for amount in (0, 1, 49, 50, 51, 1_000_001):
        assert terms.payout(amount) == amount - amount * 200 // 10_000


def test_other_terms_than_the_operators_are_refused() -> None:
    terms = Terms(2, USDC, 200, OWNER.address)
    terms.refuse_other(USDC, 200)
    with pytest.raises(Refusal, match="above 199"):
        terms.refuse_other(USDC, 199)
    with pytest.raises(Refusal, match="0x3c499c542cEF5E3811e1192ce70d8cC03d5c3359, which is not 0x0C2B"):
        terms.refuse_other(V2, 200)


@pytest.mark.parametrize(
    ("contract", "why"),
    [(DAVE.address, "there is no contract"), (USDC, "is not a DRAIN channel contract")],
    ids=["a person", "the token"],
)
async def test_what_is_no_drain_contract_is_refused(
    chain: LocalChain, client: Client, clock: Clock, contract: bytes, why: str
) -> None:
    with pytest.raises(Refusal, match=why):
        await reader(client, [chain.url()], clock, contract=contract).terms()


async def test_a_contract_of_another_signing_domain_is_refused(chain: LocalChain, client: Client, clock: Clock) -> None:
    chain.fault("result", "0x" + "11" * 32, contains="0x" + abi.DOMAIN_SEPARATOR.hex())
    with pytest.raises(Refusal, match="another signing domain"):
        await reader(client, [chain.url()], clock).terms()


async def test_terms_that_cannot_be_read_are_unknown_and_not_refused(
    chain: LocalChain, client: Client, clock: Clock
) -> None:
    chain.fault("stall")
    with pytest.raises(ChainUnknown):
        await reader(client, [chain.url()], clock, timeout_s=STALLED_S).terms()
