"""Claims reach the chain once, whatever becomes of the transactions on their way, and whoever else has a say."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from hexbytes import HexBytes

from goosestack.drain import abi
from goosestack.drain.chain import Chain
from goosestack.drain.claiming import (
    LEAST_GAS,
    MOST_GAS,
    Claimer,
    NotTaken,
    Outcome,
    State,
    TooDear,
    Transaction,
    Why,
)
from goosestack.drain.rpc import Reverted, Rpc
from goosestack.drain.signing import Signer, checksum_address
from goosestack.drain.vouchers import Domain, Voucher, parse_voucher
from goosestack.errors import ChainUnknown
from goosestack.http import Client
from tests.chain.control import DOLLAR, GWEI, LocalChain, voucher_header
from tests.chain.places import MALLORY, PROVIDER, USDC, V2
from tests.other_accounts import Account, TypedTransaction

DEPTH = 2


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    client = Client()
    yield client
    await client.close()


def claimer(
    client: Client, urls: list[str], *, signer: Signer = PROVIDER, least_tip: int = GWEI, most_fee: int = 100 * GWEI
) -> Claimer:
    chain = Chain(Rpc(client, urls, 137, timeout_s=10), Domain(137, V2), depth=DEPTH, keep_s=0)
    return Claimer(chain, signer, least_tip=least_tip, most_fee=most_fee)


@pytest.fixture
def ours(chain: LocalChain, client: Client) -> Claimer:
    return claimer(client, [chain.url("a")])


def voucher(channel_id: bytes, amount: int, nonce: int = 1) -> Voucher:
    return parse_voucher(voucher_header(channel_id, amount, nonce))


async def sent(ours: Claimer, what: Voucher) -> Transaction:
    """Prepared, and sent as the wallet's next."""
    transaction = await ours.prepare(what, await ours.next_nonce())
    await ours.send(transaction)
    return transaction


async def outcome(ours: Claimer, *transactions: Transaction) -> Outcome:
    return await ours.outcome(transactions[0].nonce, [each.hash for each in transactions])


# --- the good way ---------------------------------------------------------------------------------------------


async def test_a_claim_is_paid_and_final_once_blocks_stand_on_it(chain: LocalChain, ours: Claimer) -> None:
    channel_id, before = chain.open(), chain.dollars(PROVIDER.address)
    await ours.preflight(voucher(channel_id, 2 * DOLLAR))
    transaction = await sent(ours, voucher(channel_id, 2 * DOLLAR))
    first = await outcome(ours, transaction)
    assert first == Outcome(State.CLAIMED, False, transaction.hash, {channel_id: 2 * DOLLAR})
    chain.mine(DEPTH)
    assert await outcome(ours, transaction) == replace(first, final=True)
    assert chain.claimed(channel_id) == 2 * DOLLAR
    assert chain.dollars(PROVIDER.address) - before == 2 * DOLLAR * 98 // 100


async def test_a_second_claim_pays_the_difference(chain: LocalChain, ours: Claimer) -> None:
    channel_id = chain.open()
    await sent(ours, voucher(channel_id, 2 * DOLLAR, 1))
    transaction = await sent(ours, voucher(channel_id, 5 * DOLLAR, 2))
    assert (await outcome(ours, transaction)).claimed == {channel_id: 3 * DOLLAR}


async def test_the_transaction_is_the_one_that_eth_account_would_make(chain: LocalChain, ours: Claimer) -> None:
    what = voucher(chain.open(), DOLLAR)
    transaction = await ours.prepare(what, 7)
    assert Account.recover_transaction(transaction.raw) == checksum_address(PROVIDER.address)
    fields = TypedTransaction.from_bytes(HexBytes(transaction.raw)).as_dict()
    assert fields["chainId"] == 137
    assert fields["nonce"] == 7
    assert bytes(fields["to"]) == V2
    assert fields["value"] == 0
    assert bytes(fields["data"]) == abi.claim(what.channel_id, DOLLAR, 1, what.signature)
    assert (fields["gas"], fields["maxFeePerGas"], fields["maxPriorityFeePerGas"]) == (
        transaction.gas,
        transaction.max_fee,
        transaction.tip,
    )


async def test_sending_again_changes_nothing(chain: LocalChain, ours: Claimer) -> None:
    chain.automine(False)
    transaction = await sent(ours, voucher(chain.open(), DOLLAR))
    await ours.send(transaction)
    chain.mine()
    assert (await outcome(ours, transaction)).state is State.CLAIMED
    with pytest.raises(NotTaken) as caught:
        await ours.send(transaction)
    assert caught.value.why is Why.NONCE_USED


async def test_the_wallet_is_idle_where_nothing_of_it_waits(chain: LocalChain, ours: Claimer) -> None:
    channel_id = chain.open()
    assert await ours.idle()
    chain.automine(False)
    transaction = await sent(ours, voucher(channel_id, DOLLAR))
    assert not await ours.idle()
    assert await ours.next_nonce() == transaction.nonce + 1
    chain.mine()
    assert await ours.idle()


async def test_every_node_hears_of_a_claim_and_one_that_takes_it_is_enough(chain: LocalChain, client: Client) -> None:
    channel_id = chain.open()
    ours = claimer(client, [chain.url("a"), chain.url("b"), chain.url("c")])
    chain.fault("cut", node="a", method="eth_sendRawTransaction")
    chain.fault("error", {"code": -32000, "message": "txpool is full"}, node="b", method="eth_sendRawTransaction")
    transaction = await sent(ours, voucher(channel_id, DOLLAR))
    assert "eth_sendRawTransaction" in chain.asked("b")
    assert (await outcome(ours, transaction)).state is State.CLAIMED


# --- what the contract refuses --------------------------------------------------------------------------------


async def test_a_claim_that_the_contract_would_refuse_is_not_even_signed(chain: LocalChain, ours: Claimer) -> None:
    channel_id = chain.open()
    await sent(ours, voucher(channel_id, 2 * DOLLAR))
    forged = replace(voucher(channel_id, 3 * DOLLAR), amount=4 * DOLLAR)
    refused = [
        (voucher(channel_id, 2 * DOLLAR), "InvalidAmount"),
        (voucher(channel_id, 11 * DOLLAR), "InvalidAmount"),
        (voucher(b"\x01" * 32, DOLLAR), "ChannelNotFound"),
        (forged, "InvalidSignature"),
    ]
    for what, why in refused:
        with pytest.raises(Reverted) as caught:
            await ours.prepare(what, 0)
        assert caught.value.error == why


async def test_the_channel_of_another_provider_is_not_ours_to_claim(chain: LocalChain, client: Client) -> None:
    channel_id = chain.open()
    with pytest.raises(Reverted) as caught:
        await claimer(client, [chain.url("a")], signer=MALLORY).preflight(voucher(channel_id, DOLLAR))
    assert caught.value.error == "NotProvider"


REVERTS: list[tuple[object, str | None]] = [
    ({"code": 3, "message": "execution reverted", "data": "0x2c5211c6"}, "InvalidAmount"),
    ({"code": 3, "message": "execution reverted", "data": "0x"}, None),
    ({"code": 3, "message": "execution reverted"}, None),
    ({"code": -32000, "message": "execution reverted"}, None),
    ({"code": -32000, "message": "execution reverted: custom error", "data": "0xdeadbeef"}, None),
    ({"code": -32015, "message": "VM execution error.", "data": "Reverted 0x1e07dd94"}, "ChannelNotFound"),
    ({"code": -32603, "message": "Error: reverted", "data": {"data": "0x8baa579f"}}, "InvalidSignature"),
    ({"code": -32603, "message": "internal", "data": {"message": "x", "data": "0x3480e2b2"}}, "NotProvider"),
]


@pytest.mark.parametrize(("error", "name"), REVERTS)
async def test_a_revert_is_known_in_the_dialect_of_any_node(
    chain: LocalChain, ours: Claimer, error: object, name: str | None
) -> None:
    chain.fault("error", error, method="eth_call")
    with pytest.raises(Reverted) as caught:
        await ours.preflight(voucher(b"\x01" * 32, DOLLAR))
    assert caught.value.error == name


async def test_a_claim_that_reverts_in_its_block_costs_gas_and_says_so(chain: LocalChain, ours: Claimer) -> None:
    channel_id = chain.open()
    chain.automine(False)
    first = await sent(ours, voucher(channel_id, 2 * DOLLAR))
    second = await sent(ours, voucher(channel_id, DOLLAR, 2))  # fine now, and too low once the first is in
    chain.mine(1 + DEPTH)
    assert (await outcome(ours, first)).state is State.CLAIMED
    assert await outcome(ours, second) == Outcome(State.REVERTED, True, second.hash, {})
    assert chain.claimed(channel_id) == 2 * DOLLAR


# --- transactions that get lost -------------------------------------------------------------------------------


async def test_a_claim_that_a_node_took_and_forgot_is_pending_and_sent_again(chain: LocalChain, ours: Claimer) -> None:
    channel_id = chain.open()
    chain.fault("lose", method="eth_sendRawTransaction", times=1)
    transaction = await sent(ours, voucher(channel_id, DOLLAR))
    chain.mine(5)
    assert await outcome(ours, transaction) == Outcome(State.PENDING)
    await ours.send(transaction)
    assert (await outcome(ours, transaction)).state is State.CLAIMED


async def test_a_claim_that_waits_too_long_is_replaced_by_a_dearer_one(chain: LocalChain, ours: Claimer) -> None:
    channel_id = chain.open()
    chain.automine(False)
    first = await sent(ours, voucher(channel_id, DOLLAR))
    second = await ours.replace(voucher(channel_id, 2 * DOLLAR, 2), first)
    assert second.nonce == first.nonce
    assert second.tip * 8 >= first.tip * 9
    assert second.max_fee * 8 >= first.max_fee * 9
    await ours.send(second)
    chain.mine()
    found = await outcome(ours, first, second)
    assert (found.state, found.hash, found.claimed) == (State.CLAIMED, second.hash, {channel_id: 2 * DOLLAR})


async def test_of_two_with_one_nonce_whichever_was_taken_is_found(chain: LocalChain, ours: Claimer) -> None:
    channel_id = chain.open()
    chain.automine(False)
    first = await sent(ours, voucher(channel_id, DOLLAR))
    second = await ours.replace(voucher(channel_id, DOLLAR), first)
    chain.mine()
    with pytest.raises(NotTaken) as caught:
        await ours.send(second)
    assert caught.value.why is Why.NONCE_USED
    assert (await outcome(ours, first, second)).hash == first.hash


async def test_a_nonce_that_somebody_else_with_the_key_took_is_lost(chain: LocalChain, ours: Claimer) -> None:
    channel_id = chain.open()
    transaction = await ours.prepare(voucher(channel_id, DOLLAR), await ours.next_nonce())
    chain.act(PROVIDER, USDC, abi.call(abi.selector("transfer(address,uint256)"), V2, 0))
    assert await outcome(ours, transaction) == Outcome(State.LOST)
    chain.mine(DEPTH)
    assert await outcome(ours, transaction) == Outcome(State.LOST, True)
    with pytest.raises(NotTaken) as caught:
        await ours.send(transaction)
    assert caught.value.why is Why.NONCE_USED


async def test_a_reorganisation_takes_a_claim_back_and_it_comes_again(chain: LocalChain, ours: Claimer) -> None:
    channel_id = chain.open()
    transaction = await sent(ours, voucher(channel_id, DOLLAR))
    chain.mine()
    assert await outcome(ours, transaction) == Outcome(State.CLAIMED, False, transaction.hash, {channel_id: DOLLAR})
    chain.reorganise(2, keep=False)
    assert await outcome(ours, transaction) == Outcome(State.PENDING)
    await ours.send(transaction)
    chain.mine(DEPTH)
    assert (await outcome(ours, transaction)).final
    assert chain.claimed(channel_id) == DOLLAR


async def test_a_claim_that_comes_back_by_itself_after_a_reorganisation_is_known(
    chain: LocalChain, ours: Claimer
) -> None:
    channel_id = chain.open()
    transaction = await sent(ours, voucher(channel_id, DOLLAR))
    chain.automine(False)
    chain.reorganise(1)
    assert (await outcome(ours, transaction)).state is State.PENDING
    chain.mine()
    assert (await outcome(ours, transaction)).state is State.CLAIMED


async def test_a_reorganisation_that_undoes_the_channel_leaves_a_claim_that_reverts(
    chain: LocalChain, ours: Claimer
) -> None:
    channel_id = chain.open()
    transaction = await sent(ours, voucher(channel_id, DOLLAR))
    chain.reorganise(2, keep=False)
    await ours.send(transaction)
    chain.mine(DEPTH)
    assert await outcome(ours, transaction) == Outcome(State.REVERTED, True, transaction.hash, {})


async def test_two_claimers_of_one_wallet_do_not_pay_twice(chain: LocalChain, client: Client) -> None:
    channel_id, before = chain.open(), chain.dollars(PROVIDER.address)
    chain.automine(False)
    one, two = claimer(client, [chain.url("a")]), claimer(client, [chain.url("b")])
    mine = await one.prepare(voucher(channel_id, DOLLAR), await one.next_nonce())
    theirs = await two.prepare(voucher(channel_id, 2 * DOLLAR, 2), await two.next_nonce())
    await one.send(mine)
    with pytest.raises(NotTaken) as caught:
        await two.send(theirs)
    assert caught.value.why is Why.UNDERPRICED
    chain.mine(1 + DEPTH)
    assert (await outcome(one, mine)).state is State.CLAIMED
    assert await outcome(two, theirs) == Outcome(State.LOST, True)
    assert chain.dollars(PROVIDER.address) - before == DOLLAR * 98 // 100


# --- what gas may cost ----------------------------------------------------------------------------------------


async def test_a_claim_offers_what_the_network_asks_and_room_for_more(chain: LocalChain, ours: Claimer) -> None:
    transaction = await ours.prepare(voucher(chain.open(), DOLLAR), 0)
    base_fee = int(chain.rpc("eth_getBlockByNumber", "latest", False)["baseFeePerGas"], 16)
    assert transaction.tip == GWEI
    assert transaction.max_fee == 2 * base_fee + GWEI
    assert LEAST_GAS <= transaction.gas <= MOST_GAS
    assert 0 < transaction.expected_wei <= transaction.gas * transaction.max_fee


async def test_a_network_that_wants_a_tip_gets_it_whatever_a_node_says(chain: LocalChain, client: Client) -> None:
    channel_id = chain.open()
    chain.fault("result", "0x0", method="eth_maxPriorityFeePerGas")
    transaction = await claimer(client, [chain.url("a")], least_tip=30 * GWEI).prepare(voucher(channel_id, 1), 0)
    assert transaction.tip == 30 * GWEI


async def test_a_node_that_knows_no_tips_is_asked_for_the_price(chain: LocalChain, client: Client) -> None:
    channel_id = chain.open()
    unknown = {"code": -32601, "message": "the method does not exist"}
    chain.fault("error", unknown, method="eth_maxPriorityFeePerGas")
    chain.fault("result", hex(7 * GWEI), method="eth_gasPrice")
    transaction = await claimer(client, [chain.url("a")]).prepare(voucher(channel_id, 1), 0)
    base_fee = int(chain.rpc("eth_getBlockByNumber", "latest", False)["baseFeePerGas"], 16)
    assert transaction.tip == 7 * GWEI - base_fee


@pytest.mark.parametrize("lie", [hex(10**18), "0x" + "f" * 64])
async def test_no_node_can_make_us_pay_more_than_is_allowed(chain: LocalChain, ours: Claimer, lie: str) -> None:
    channel_id = chain.open()
    chain.fault("result", lie, method="eth_maxPriorityFeePerGas")
    with pytest.raises(TooDear):
        await ours.prepare(voucher(channel_id, DOLLAR), 0)


async def test_near_the_limit_a_claim_offers_the_limit_and_never_more(chain: LocalChain, client: Client) -> None:
    channel_id = chain.open()
    base_fee = int(chain.rpc("eth_getBlockByNumber", "latest", False)["baseFeePerGas"], 16)
    limit = base_fee + GWEI + 5
    tight = claimer(client, [chain.url("a")], most_fee=limit)
    transaction = await tight.prepare(voucher(channel_id, DOLLAR), 0)
    assert transaction.max_fee == limit
    with pytest.raises(TooDear):
        await tight.replace(voucher(channel_id, DOLLAR), transaction)
    with pytest.raises(TooDear):
        await claimer(client, [chain.url("a")], most_fee=base_fee).prepare(voucher(channel_id, DOLLAR), 0)


@pytest.mark.parametrize(("lie", "gas"), [("0x1", LEAST_GAS), ("0xffffffffff", MOST_GAS)])
async def test_a_wrong_estimate_neither_starves_a_claim_nor_feeds_anybody(
    chain: LocalChain, ours: Claimer, lie: str, gas: int
) -> None:
    channel_id = chain.open()
    chain.fault("result", lie, method="eth_estimateGas")
    transaction = await sent(ours, voucher(channel_id, DOLLAR))
    assert transaction.gas == gas
    assert (await outcome(ours, transaction)).state is State.CLAIMED


async def test_a_wallet_without_money_for_gas_is_told_so(chain: LocalChain, client: Client) -> None:
    poor = Signer("0x" + "42" * 32)
    ours = claimer(client, [chain.url("a")], signer=poor)
    channel_id = chain.open(provider=poor.address)
    with pytest.raises(NotTaken) as caught:
        await sent(ours, voucher(channel_id, DOLLAR))
    assert caught.value.why is Why.NO_GAS_MONEY


# --- nodes that do not answer, or wrongly ---------------------------------------------------------------------


async def test_a_claim_that_no_node_confirms_may_be_on_its_way_all_the_same(chain: LocalChain, client: Client) -> None:
    channel_id = chain.open()
    ours = claimer(client, [chain.url("a"), chain.url("b")])
    transaction = await ours.prepare(voucher(channel_id, DOLLAR), await ours.next_nonce())
    chain.rpc("eth_sendRawTransaction", "0x" + transaction.raw.hex())
    chain.fault("cut", node=None, method="eth_sendRawTransaction")
    with pytest.raises(ChainUnknown):
        await ours.send(transaction)
    assert (await outcome(ours, transaction)).state is State.CLAIMED


async def test_a_node_that_names_another_transaction_has_not_taken_ours(chain: LocalChain, ours: Claimer) -> None:
    channel_id = chain.open()
    chain.fault("result", "0x" + "11" * 32, method="eth_sendRawTransaction")
    with pytest.raises(NotTaken) as caught:
        await sent(ours, voucher(channel_id, DOLLAR))
    assert caught.value.why is Why.OTHER


async def test_the_words_of_a_refusal_that_nobody_knows_are_for_the_log(chain: LocalChain, ours: Claimer) -> None:
    channel_id = chain.open()
    chain.fault("error", {"code": -32000, "message": "Computer says no"}, method="eth_sendRawTransaction")
    with pytest.raises(NotTaken, match="computer says no") as caught:
        await sent(ours, voucher(channel_id, DOLLAR))
    assert caught.value.why is Why.OTHER


RECEIPT_LIES: dict[str, dict[str, object]] = {
    "no object": {"value": "0x1"},
    "no status": {"value": {"blockNumber": "0x1", "blockHash": "0x" + "11" * 32, "logs": []}},
    "status 2": {"value": {"blockNumber": "0x1", "blockHash": "0x" + "11" * 32, "logs": [], "status": "0x2"}},
    "no logs": {"value": {"blockNumber": "0x1", "blockHash": "0x" + "11" * 32, "status": "0x1"}},
    "no block": {"value": {"blockNumber": None, "blockHash": None, "logs": [], "status": "0x1"}},
    "a block that is not in the chain": {
        "value": {"blockNumber": "0x1", "blockHash": "0x" + "11" * 32, "logs": [], "status": "0x1"}
    },
    "a block of the future": {
        "value": {"blockNumber": "0xffffff", "blockHash": "0x" + "11" * 32, "logs": [], "status": "0x1"}
    },
    "broken logs": {
        "value": {"blockNumber": "0x1", "blockHash": "0x" + "11" * 32, "logs": [{"topics": 5}], "status": "0x1"}
    },
}


@pytest.mark.parametrize("lie", RECEIPT_LIES.values(), ids=RECEIPT_LIES)
async def test_a_receipt_that_cannot_be_is_no_outcome(chain: LocalChain, ours: Claimer, lie: dict[str, object]) -> None:
    transaction = await sent(ours, voucher(chain.open(), DOLLAR))
    chain.fault("result", lie["value"], method="eth_getTransactionReceipt")
    with pytest.raises(ChainUnknown):
        await outcome(ours, transaction)


async def test_the_event_of_another_contract_is_no_payment(chain: LocalChain, ours: Claimer) -> None:
    channel_id = chain.open()
    transaction = await sent(ours, voucher(channel_id, DOLLAR))
    receipt = chain.rpc("eth_getTransactionReceipt", "0x" + transaction.hash.hex())
    for log in receipt["logs"]:
        log["address"] = "0x" + "11" * 20
    chain.fault("result", receipt, method="eth_getTransactionReceipt")
    assert await outcome(ours, transaction) == Outcome(State.CLAIMED, False, transaction.hash, {})


async def test_a_claim_is_known_even_after_its_channel_was_closed(chain: LocalChain, ours: Claimer) -> None:
    channel_id = chain.open(duration=60)
    transaction = await sent(ours, voucher(channel_id, DOLLAR))
    chain.pass_time(60)
    chain.close_channel(channel_id)
    chain.mine(DEPTH)
    assert await outcome(ours, transaction) == Outcome(State.CLAIMED, True, transaction.hash, {channel_id: DOLLAR})


async def test_many_channels_are_claimed_one_after_the_other(chain: LocalChain, ours: Claimer) -> None:
    channels = [chain.open(DOLLAR) for _ in range(4)]
    before = chain.dollars(PROVIDER.address)
    chain.automine(False)
    all_sent = [await sent(ours, voucher(each, DOLLAR)) for each in channels]
    assert [each.nonce - all_sent[0].nonce for each in all_sent] == [0, 1, 2, 3]
    chain.mine()
    found = await asyncio.gather(*(outcome(ours, each) for each in all_sent))
    assert [each.claimed for each in found] == [{each: DOLLAR} for each in channels]
    assert chain.dollars(PROVIDER.address) - before == 4 * DOLLAR * 98 // 100
