"""From a request to the provider's wallet: claims, expiry and closes, by a daemon over sockets and a real chain."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from goosestack.agents import CLOSES_PER_HOUR
from goosestack.drain.signing import Signer, checksum_address
from goosestack.drain.vouchers import Domain
from tests.asking import Reply, ask, chat, directed
from tests.chain.control import DOLLAR, Failed, LocalChain
from tests.chain.places import DAVE, FEE_WALLET, MALLORY, PROVIDER, V2
from tests.channels import ADMIN, DEPTH, Channel, code, open_market, query, spend
from tests.world import World, until

OPERATOR = {"authorization": f"Bearer {ADMIN}"}


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory, shared_chain: LocalChain) -> Iterator[World]:
    shared_chain.heal()
    world = open_market(tmp_path_factory.mktemp("paid"), shared_chain, CLAIM_THRESHOLD="1000000000")
    yield world
    world.close()


@pytest.fixture
def dave(market: World, chain: LocalChain) -> Channel:
    return Channel.open(market, chain)


def of(tokens_in: int, tokens_out: int) -> str:
    usage = {"prompt_tokens": tokens_in, "completion_tokens": tokens_out, "total_tokens": tokens_in + tokens_out}
    return directed("Hello", usage=usage)


def admin(world: World, method: str, what: str) -> Reply:
    return ask(world, method, f"/v1/admin/{what}", headers=OPERATOR)


def claim(world: World, *, force: bool = True) -> list[str]:
    reply = admin(world, "POST", f"claim?force={'true' if force else 'false'}")
    assert reply.status == 200, reply.data
    transactions: list[str] = reply.json()["transactions"]
    return transactions


def claim_all(dave: Channel) -> None:
    """Claim, by as many turns and blocks as it takes, until nothing of the channel is unclaimed."""

    def paid() -> bool:
        claim(dave.world)
        dave.chain.mine(DEPTH)
        row = dave.row()
        return bool(row["claimed"] >= row["accepted"] - row["balance"])

    until(paid, "the claim to be final")


def claims(dave: Channel) -> list[dict[str, object]]:
    return query(dave.world, "SELECT * FROM drain_claims WHERE channel_id = ? ORDER BY id", dave.row()["id"])


def test_a_channel_lives_from_its_opening_to_its_end(market: World, dave: Channel, chain: LocalChain) -> None:
    wallet, house = chain.dollars(PROVIDER.address), chain.dollars(FEE_WALLET)
    assert dave.buy(50_000, chat(of(500, 200))).headers["x-drain-cost"] == "8250"
    assert dave.buy(50_000, chat(of(500, 200), stream=True)).status == 200
    assert dave.buy(0, chat(of(500, 200))).headers["x-drain-total"] == str(3 * 8250)
    claim_all(dave)
    assert chain.claimed(dave.id) == 50_000  # the smallest voucher that pays for 24,750
    assert chain.dollars(PROVIDER.address) - wallet == 49_000
    assert chain.dollars(FEE_WALLET) - house == 1_000
    assert claims(dave)[0]["status"] == "confirmed"
    # what was claimed beyond the charge is still the consumer's
    assert dave.buy(0, chat(of(500, 200))).headers["x-drain-total"] == str(4 * 8250)
    assert claim(market) == []
    market.check()


def test_what_was_claimed_is_not_claimed_again_but_what_follows_is(dave: Channel, chain: LocalChain) -> None:
    assert dave.buy(10_000, chat(of(500, 200))).status == 200
    claim_all(dave)
    assert dave.buy(10_000, chat(of(500, 200))).status == 200
    claim_all(dave)
    assert chain.claimed(dave.id) == 20_000
    assert [row["amount"] for row in claims(dave)] == [10_000, 20_000]


def test_below_the_threshold_nothing_is_claimed_without_force(market: World, dave: Channel) -> None:
    assert dave.buy(50_000, chat(of(500, 200))).status == 200
    assert claim(market, force=False) == []
    assert claims(dave) == []
    claim_all(dave)


def test_above_the_threshold_and_before_the_expiry_the_job_claims_by_itself(folder: Path, chain: LocalChain) -> None:
    world = open_market(folder, chain, CLAIM_THRESHOLD="8000")
    try:
        dave = Channel.open(world, chain)
        assert dave.buy(50_000, chat(of(500, 200))).status == 200
        until(lambda: chain.claimed(dave.id) == 50_000, "the job to claim")
        chain.mine(DEPTH)
        small = Channel.open(world, chain, duration=8_000)
        assert small.buy(50_000, chat(of(50, 20))).status == 200
        chain.pass_time(4_500)
        until(lambda: chain.claimed(small.id) == 50_000, "the job to claim what expires")
        assert code(small.buy(50_000)) == "channel_expired"
    finally:
        world.close()


def test_a_claim_that_is_not_worth_its_gas_waits(folder: Path, chain: LocalChain) -> None:
    world = open_market(folder, chain, CLAIM_GAS_PRICE="1000000000000")
    try:
        dave = Channel.open(world, chain)
        assert dave.buy(50_000, chat(of(500, 200))).status == 200
        assert claim(world) == []
        assert claims(dave) == []
    finally:
        world.close()


# --- what becomes of transactions -----------------------------------------------------------------------------


def test_a_claim_that_a_node_dropped_is_sent_again(market: World, dave: Channel, chain: LocalChain) -> None:
    assert dave.buy(50_000, chat(of(500, 200))).status == 200
    chain.fault("lose", method="eth_sendRawTransaction", times=1)
    assert len(claim(market)) == 1
    assert chain.claimed(dave.id) == 0
    claim_all(dave)
    assert chain.claimed(dave.id) == 50_000
    assert [row["status"] for row in claims(dave)] == ["confirmed"]


def test_a_claim_that_a_reorganisation_took_back_comes_again(market: World, dave: Channel, chain: LocalChain) -> None:
    assert dave.buy(50_000, chat(of(500, 200))).status == 200
    assert len(claim(market)) == 1
    assert chain.claimed(dave.id) == 50_000
    chain.reorganise(1, keep=False)
    assert chain.claimed(dave.id) == 0
    assert dave.row()["claimed"] == 0
    claim_all(dave)
    assert chain.claimed(dave.id) == 50_000


def test_a_claim_that_reverts_in_its_block_leaves_the_voucher_pending(
    market: World, dave: Channel, chain: LocalChain
) -> None:
    assert dave.buy(50_000, chat(of(500, 200))).status == 200
    chain.automine(False)
    assert len(claim(market)) == 1
    chain.reorganise(DEPTH + 1, keep=False)  # the channel was never opened
    chain.automine(True)
    chain.mine(DEPTH + 1)
    until(lambda: claim(market) == [] and claims(dave)[0]["status"] == "failed", "the claim to fail")
    until(lambda: claim(market) == [] and dave.row()["gone_at"], "the channel to be given up")
    until(lambda: '"kind":"claim_lost"' in market.daemon.program.text(), "the operator to be told")


def test_a_daemon_that_dies_after_sending_finds_its_claim_again(folder: Path, chain: LocalChain) -> None:
    world = open_market(folder, chain)
    try:
        dave = Channel.open(world, chain)
        assert dave.buy(50_000, chat(of(500, 200))).status == 200
        chain.fault("lose", method="eth_sendRawTransaction")
        assert len(claim(world)) == 1
        world.daemon.program.stop(signal.SIGKILL)
        chain.heal()
        world.daemon.start()
        claim_all(dave)
        assert chain.claimed(dave.id) == 50_000
        assert [row["status"] for row in claims(dave)] == ["confirmed"]
    finally:
        world.close()


@pytest.mark.parametrize("do", ["stall", "mute"], ids=["before a node has it", "after a node has it"])
def test_a_daemon_that_is_killed_while_it_sends_claims_once(folder: Path, chain: LocalChain, do: str) -> None:
    world = open_market(folder, chain)
    try:
        dave = Channel.open(world, chain)
        assert dave.buy(50_000, chat(of(500, 200))).status == 200
        sent, wallet = transactions_of(chain, PROVIDER), chain.dollars(PROVIDER.address)
        chain.fault(do, method="eth_sendRawTransaction")
        claiming = threading.Thread(target=asked_in_vain, args=(world,))
        claiming.start()
        until(lambda: "eth_sendRawTransaction" in chain.asked(), "the node to be asked")
        until(lambda: do == "stall" or chain.claimed(dave.id), "the node to have it")
        world.daemon.program.stop(signal.SIGKILL)
        claiming.join()
        chain.heal()
        world.daemon.start()
        claim_all(dave)
        assert chain.dollars(PROVIDER.address) - wallet == 49_000
        assert transactions_of(chain, PROVIDER) == sent + 1
        assert [row["status"] for row in claims(dave)] == ["confirmed"]
        world.check()
    finally:
        world.close()


def asked_in_vain(world: World) -> None:
    """Claim by a daemon that will not live to answer."""
    with pytest.raises(OSError):
        claim(world)


def transactions_of(chain: LocalChain, who: Signer) -> int:
    return int(chain.rpc("eth_getTransactionCount", checksum_address(who.address), "latest"), 16)


def test_two_daemons_with_one_wallet_claim_everything_once(
    market: World, dave: Channel, folder: Path, chain: LocalChain
) -> None:
    other = open_market(folder, chain)
    try:
        theirs = Channel.open(other, chain)
        assert dave.buy(50_000, chat(of(500, 200))).status == theirs.buy(50_000, chat(of(500, 200))).status == 200
        chain.automine(False)
        claim(market), claim(other)
        chain.automine(True)
        chain.mine(DEPTH)
        for each in (dave, theirs):
            claim_all(each)
        assert chain.claimed(dave.id) == chain.claimed(theirs.id) == 50_000
    finally:
        other.close()


def test_a_claim_that_would_fail_is_nobody_elses_trouble(market: World, dave: Channel, chain: LocalChain) -> None:
    good = Channel.open(market, chain)
    assert dave.buy(50_000, chat(of(500, 200))).status == good.buy(50_000, chat(of(500, 200))).status == 200
    chain.fault(
        "error",
        {"code": 3, "message": "execution reverted", "data": "0x8baa579f"},
        method="eth_estimateGas",
        contains=dave.id.hex(),
    )
    claim_all(good)
    assert chain.claimed(good.id) == 50_000
    assert chain.claimed(dave.id) == 0
    chain.heal()
    claim_all(dave)


def test_a_channel_that_no_node_answers_for_is_nobody_elses_trouble(
    market: World, dave: Channel, chain: LocalChain
) -> None:
    good = Channel.open(market, chain)
    assert dave.buy(50_000, chat(of(500, 200))).status == good.buy(50_000, chat(of(500, 200))).status == 200
    chain.fault("error", {"code": -32000, "message": "busy"}, method="eth_estimateGas", contains=dave.id.hex())
    claim_all(good)
    assert chain.claimed(good.id) == 50_000
    chain.heal()
    claim_all(dave)


def test_a_node_that_is_behind_makes_no_channel_end(market: World, dave: Channel, chain: LocalChain) -> None:
    assert dave.buy(50_000, chat(of(500, 200))).status == 200
    for which, number in (("latest", DEPTH + 1), ("0x", 1)):
        old = {**chain.rpc("eth_getBlockByNumber", "0x1", False), "number": hex(number), "timestamp": "0x1"}
        chain.fault("result", old, method="eth_getBlockByNumber", contains=which)
    before = chain.asked().count("eth_getBlockByNumber")  # the one from before may still count as the latest
    until(lambda: dave.buy(0) and chain.asked().count("eth_getBlockByNumber") > before, "the old block to be read")
    chain.fault("error", {"code": 3, "message": "reverted", "data": "0x1e07dd94"}, method="eth_estimateGas")
    chain.fault("result", "0x" + "00" * 160, method="eth_call")
    assert claim(market) == []
    assert dave.row()["gone_at"] is None
    chain.heal()
    claim_all(dave)
    assert chain.claimed(dave.id) == 50_000


# --- closes ---------------------------------------------------------------------------------------------------


def close(world: World, channel_id: bytes, **more: str) -> Reply:
    return ask(world, "POST", "/v1/close-channel", body={"channelId": "0x" + channel_id.hex(), **more})


def test_a_cooperative_close_pays_what_was_charged_and_ends_the_channel(
    market: World, dave: Channel, chain: LocalChain
) -> None:
    wallet, mine = chain.dollars(PROVIDER.address), chain.dollars(DAVE.address)
    assert dave.buy(50_000, chat(of(500, 200))).status == 200
    signed = close(market, dave.id).json()
    assert (signed["channelId"], signed["finalAmount"]) == ("0x" + dave.id.hex(), "8250")
    assert code(dave.buy(50_000)) == "channel_closing"
    assert claim(market) == []  # nothing is claimed behind the consumer's back
    assert close(market, dave.id).json() == signed  # the one amount, for good
    chain.cooperative_close(dave.id, 8250, bytes.fromhex(signed["signature"][2:]))
    assert chain.dollars(PROVIDER.address) - wallet == 8250 - 8250 * 2 // 100
    assert chain.dollars(DAVE.address) - mine == 10 * DOLLAR - 8250
    chain.mine(DEPTH)
    assert code(dave.buy(50_000)) in ("channel_closing", "channel_not_found")
    until(lambda: claim(market) == [] and dave.row()["gone_at"], "the close to be seen")
    assert dave.row()["claimed"] == 8250
    market.check()


def test_a_channel_stays_frozen_for_a_daemon_that_was_killed_and_its_close_is_good_on_the_chain(
    folder: Path, chain: LocalChain
) -> None:
    world = open_market(folder, chain)
    try:
        dave = Channel.open(world, chain)
        assert dave.buy(50_000, chat(of(500, 200))).status == 200
        wish = {"signature": "0x" + _wish(DAVE, dave.id).hex()}
        signed = close(world, dave.id, **wish).json()
        world.daemon.program.stop(signal.SIGKILL)
        world.daemon.start()
        assert code(dave.buy(50_000)) == "channel_closing"
        assert close(world, dave.id, **wish).json() == close(world, dave.id).json() == signed
        assert claim(world) == []
        chain.cooperative_close(dave.id, 8250, bytes.fromhex(signed["signature"][2:]))
        world.check()
    finally:
        world.close()


def test_an_address_may_ask_for_so_many_closes_an_hour(folder: Path, chain: LocalChain) -> None:
    world = open_market(folder, chain)
    try:
        dave = Channel.open(world, chain)
        assert {close(world, b"\x01" * 32).status for _ in range(CLOSES_PER_HOUR)} == {402}
        asked = len(chain.asked())
        refused = close(world, dave.id)
        assert refused.status == 429
        assert int(refused.headers["retry-after"]) > 0
        assert len([each for each in chain.asked()[asked:] if each == "eth_call"]) == 0
    finally:
        world.close()


def test_a_close_after_a_claim_is_never_below_it(market: World, dave: Channel, chain: LocalChain) -> None:
    assert dave.buy(50_000, chat(of(500, 200))).status == 200
    claim_all(dave)
    signed = close(market, dave.id).json()
    assert signed["finalAmount"] == "50000"
    chain.cooperative_close(dave.id, 50_000, bytes.fromhex(signed["signature"][2:]))


def test_a_strangers_wish_closes_no_channel_that_is_in_use(folder: Path, chain: LocalChain) -> None:
    world = open_market(folder, chain, DRAIN_CLOSE_IDLE_S="3600")
    try:
        dave = Channel.open(world, chain)
        assert dave.buy(50_000, chat(of(500, 200))).status == 200
        assert close(world, dave.id).status == 409
        forged = MALLORY.sign(Domain(137, V2).close_request_digest(dave.id))
        assert close(world, dave.id, signature="0x" + forged.hex()).status == 402
        assert dave.buy(50_000, chat(of(500, 200))).status == 200
        assert close(world, dave.id, signature="0x" + _wish(DAVE, dave.id).hex()).json()["finalAmount"] == "16500"
        assert code(dave.buy(50_000)) == "channel_closing"
    finally:
        world.close()


def _wish(who: Signer, channel_id: bytes) -> bytes:
    return who.sign(Domain(137, V2).close_request_digest(channel_id))


def test_nothing_is_signed_while_a_request_is_in_flight(market: World, dave: Channel) -> None:
    start = market.upstream.mark()
    voucher = dave.voucher(500_000)
    slow = threading.Thread(
        target=spend, args=(market, voucher, chat(directed("Hello", words=40, delay_ms=50), stream=True))
    )
    slow.start()
    until(lambda: market.upstream.dispatches(start), "the request to arrive")
    assert close(market, dave.id).status == 409
    wished = close(market, dave.id, signature="0x" + _wish(DAVE, dave.id).hex())
    assert (wished.status, "under way" in wished.json()["error"]["message"]) == (409, True)
    slow.join()
    assert int(close(market, dave.id).json()["finalAmount"]) == dave.charged > 0


def test_a_channel_is_not_idle_while_a_long_answer_has_just_ended(folder: Path, chain: LocalChain) -> None:
    world = open_market(folder, chain, DRAIN_CLOSE_IDLE_S="2")
    try:
        dave = Channel.open(world, chain)
        long = chat(directed("Hello", words=60, delay_ms=50), stream=True)
        assert dave.buy(2_000_000, long).status == 200
        assert close(world, dave.id).status == 409
        assert dave.buy(0).status == 200
        idle = time.monotonic() + 2  # asked before, its 60 questions an hour would soon be used up
        until(lambda: time.monotonic() > idle and close(world, dave.id).status == 200, "the channel to be idle")
    finally:
        world.close()


def test_what_is_no_channel_of_ours_is_not_closed(market: World, chain: LocalChain) -> None:
    assert ask(market, "POST", "/v1/close-channel", body={}).status == 400
    assert close(market, b"\x77" * 32).status == 402
    theirs = chain.open(provider=MALLORY.address)
    chain.mine(DEPTH)
    assert close(market, theirs).headers["x-drain-error"] == "wrong_provider"


def test_an_expired_channel_is_claimed_until_its_consumer_closes_it(
    market: World, dave: Channel, chain: LocalChain
) -> None:
    assert dave.buy(50_000, chat(of(500, 200))).status == 200
    chain.pass_time(86_400)
    claim_all(dave)
    chain.close_channel(dave.id)
    with pytest.raises(Failed):
        chain.close_channel(dave.id)


# --- loss of state --------------------------------------------------------------------------------------------


def test_after_a_loss_of_everything_what_was_claimed_buys_nothing_again(folder: Path, chain: LocalChain) -> None:
    world = open_market(folder, chain)
    try:
        dave = Channel.open(world, chain)
        old = dave.voucher(50_000)
        assert spend(world, old, chat(of(500, 200))).status == 200
        claim_all(dave)
        assert world.daemon.program.stop() == 0
        for path in folder.glob("goosestack.db*"):
            path.unlink()
        world.daemon.start()
        assert code(spend(world, old)) == "insufficient_funds"
        reply = dave.buy(20_000, chat(of(500, 200)))
        assert reply.status == 200
        assert reply.headers["x-drain-total"] == str(50_000 + 8250)
        claim_all(dave)
        assert chain.claimed(dave.id) == 70_000
    finally:
        world.close()


# --- the operator's view --------------------------------------------------------------------------------------


STATS = (
    "provider providerName chainId totalVouchers unclaimedVouchers activeChannels totalEarned claimThreshold".split()
)
VOUCHER = "channelId amount amountRaw nonce consumer claimed receivedAt".split()
"""What the protocol's own provider shows; ours shows more beside."""


def test_the_operator_sees_what_there_is_to_claim(market: World, dave: Channel) -> None:
    assert dave.buy(50_000, chat(of(500, 200))).status == 200
    stats = admin(market, "GET", "stats").json()
    assert set(stats) >= set(STATS)
    assert stats["provider"] == "0x3C44CdDdB6a900fa2b585dd299e03d12FA4293BC"
    assert stats["unclaimedVouchers"] >= 1
    assert stats["claimThreshold"] == "1000.000000 USDC"
    assert stats["totalEarned"].endswith(" USDC")
    answer = admin(market, "GET", "vouchers").json()
    assert set(answer) == {"provider", "unclaimedCount", "channels"}
    assert answer["unclaimedCount"] == len(answer["channels"])
    mine = {each["channelId"]: each for each in answer["channels"]}["0x" + dave.id.hex()]
    assert set(mine) >= set(VOUCHER)
    assert (mine["amount"], mine["consumer"]) == ("0.050000 USDC", checksum_address(DAVE.address))
    assert (mine["amountRaw"], mine["nonce"], mine["claimed"]) == ("50000", "1", False)
    shown = {each["channelId"]: each for each in market.daemon.command("drain", "channels")}
    assert shown["0x" + dave.id.hex()]["charged"] == 8250
    assert market.daemon.command("drain", "status")["chainId"] == 137
    done = market.daemon.command("drain", "claim", "--force")
    assert set(done) >= {"success", "claimed", "transactions", "forced"}
    assert (done["success"], done["forced"], done["claimed"]) == (True, True, len(done["transactions"]))
    claim_all(dave)


def test_without_the_token_nothing_of_it_is_shown(market: World, folder: Path, chain: LocalChain) -> None:
    for method, what in (("POST", "claim"), ("GET", "stats"), ("GET", "vouchers")):
        assert ask(market, method, f"/v1/admin/{what}").status == 403
        wrong = {"authorization": "Bearer " + "x" * 40}
        assert ask(market, method, f"/v1/admin/{what}", headers=wrong).status == 403
