"""The tests' own contracts do what DRAIN's are documented to do: whatever is proved on them is proved of something."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from goosestack.drain import abi
from goosestack.drain.signing import ORDER, Signer, keccak256
from goosestack.drain.vouchers import Domain, parse_voucher
from tests.chain.control import (
    APPROVE,
    CLOSE,
    COOPERATIVE_CLOSE,
    DOLLAR,
    MINT,
    OPEN,
    Failed,
    LocalChain,
    voucher_header,
)
from tests.chain.places import DAVE, FEE_WALLET, MALLORY, OWNER, PROVIDER, USDC, V1, V2

BOTH = pytest.mark.parametrize("contract", [V1, V2], ids=["V1", "V2"])
SET_FEE = abi.selector("setFee(address,uint256)")
RENOUNCE = abi.selector("renounceOwnership()")


def refusal(chain: LocalChain, who: Signer, to: bytes, calldata: bytes) -> str | None:
    """The error that a call as somebody would meet."""
    with pytest.raises(Failed) as caught:
        chain.ask(to, calldata, who)
    error = caught.value.args[0]
    assert error["code"] == 3
    return abi.error_name(bytes.fromhex(error["data"][2:]))


@pytest.fixture
def own_chain(folder: Path) -> Iterator[LocalChain]:
    """A chain whose owner may change what others rely on."""
    chain = LocalChain(folder)
    yield chain
    chain.close()


def claim(channel_id: bytes, amount: int, nonce: int, contract: bytes) -> bytes:
    voucher = parse_voucher(voucher_header(channel_id, amount, nonce, domain=Domain(137, contract)))
    return abi.claim(channel_id, amount, nonce, voucher.signature)


def cooperative_close(channel_id: bytes, amount: int, signature: bytes) -> bytes:
    words = abi.call(COOPERATIVE_CLOSE, channel_id, amount, 3 * abi.WORD, len(signature))
    return words + signature.ljust(96, b"\0")


@BOTH
def test_a_contract_says_the_domain_that_vouchers_are_signed_for(chain: LocalChain, contract: bytes) -> None:
    assert chain.ask(contract, abi.DOMAIN_SEPARATOR) == Domain(137, contract).separator


@BOTH
def test_a_channel_is_opened_by_its_consumer(chain: LocalChain, contract: bytes) -> None:
    before = chain.dollars(DAVE.address)
    channel_id = chain.open(10 * DOLLAR, 3_600, contract=contract)
    found = abi.read_channel(channel_id, chain.ask(contract, abi.call(abi.GET_CHANNEL, channel_id)))
    assert found == abi.Channel(channel_id, DAVE.address, PROVIDER.address, 10 * DOLLAR, 0, chain.time() + 3_600)
    nonces = abi.call(abi.selector("nonces(address)"), DAVE.address)
    count = abi.read_number(chain.ask(contract, nonces)) - 1
    packed = DAVE.address + PROVIDER.address + abi.word(chain.time()) + abi.word(count)
    assert channel_id == keccak256(packed)
    assert chain.dollars(DAVE.address) == before


@BOTH
def test_a_channel_that_makes_no_sense_is_not_opened(chain: LocalChain, contract: bytes) -> None:
    assert refusal(chain, DAVE, contract, abi.call(OPEN, PROVIDER.address, 0, 60)) == "InvalidAmount"
    assert refusal(chain, DAVE, contract, abi.call(OPEN, b"\0" * 20, 1, 60)) == "ZeroAddress"
    assert refusal(chain, MALLORY, contract, abi.call(OPEN, PROVIDER.address, 1, 60)) == "TransferFailed"


@BOTH
def test_a_claim_pays_the_difference_and_leaves_the_channel_open(chain: LocalChain, contract: bytes) -> None:
    channel_id = chain.open(contract=contract)
    before, fees = chain.dollars(PROVIDER.address), chain.dollars(FEE_WALLET)
    receipt = chain.act(PROVIDER, contract, claim(channel_id, DOLLAR, 7, contract))
    chain.act(PROVIDER, contract, claim(channel_id, 3 * DOLLAR, 7, contract))  # the contract does not look at nonces
    kept = 3 * DOLLAR * 2 // 100 if contract == V2 else 0
    assert chain.dollars(PROVIDER.address) - before == 3 * DOLLAR - kept
    assert chain.dollars(FEE_WALLET) - fees == kept
    assert chain.claimed(channel_id, contract) == 3 * DOLLAR
    (log,) = (log for log in receipt["logs"] if log["topics"][0] == "0x" + abi.CHANNEL_CLAIMED.hex())
    assert bytes.fromhex(log["topics"][1][2:]) == channel_id
    assert int(log["data"], 16) == DOLLAR


@BOTH
def test_a_claim_is_refused_for_every_reason(chain: LocalChain, contract: bytes) -> None:
    channel_id = chain.open(contract=contract)
    assert refusal(chain, PROVIDER, contract, claim(b"\x01" * 32, 1, 1, contract)) == "ChannelNotFound"
    assert refusal(chain, MALLORY, contract, claim(channel_id, 1, 1, contract)) == "NotProvider"
    assert refusal(chain, PROVIDER, contract, claim(channel_id, 0, 1, contract)) == "InvalidAmount"
    assert refusal(chain, PROVIDER, contract, claim(channel_id, 10 * DOLLAR + 1, 1, contract)) == "InvalidAmount"
    other = V1 if contract == V2 else V2
    assert refusal(chain, PROVIDER, contract, claim(channel_id, 1, 1, other)) == "InvalidSignature"
    chain.act(PROVIDER, contract, claim(channel_id, DOLLAR, 1, contract))
    assert refusal(chain, PROVIDER, contract, claim(channel_id, DOLLAR, 1, contract)) == "InvalidAmount"


def test_a_signature_is_taken_by_the_rule_that_is_checked_here(chain: LocalChain) -> None:
    channel_id = chain.open()
    voucher = parse_voucher(voucher_header(channel_id, DOLLAR, 1))
    r, s, v = voucher.signature[:32], int.from_bytes(voucher.signature[32:64], "big"), voucher.signature[64]
    low = voucher.signature[:64] + bytes([v - 27])
    high = r + (ORDER - s).to_bytes(32, "big") + bytes([55 - v])
    compact = r + (s | (v - 27) << 255).to_bytes(32, "big")
    for bad in (high, compact, voucher.signature[:64] + b"\x1d", b"\0" * 65):
        assert refusal(chain, PROVIDER, V2, abi.claim(channel_id, DOLLAR, 1, bad)) == "InvalidSignature"
    for good in (voucher.signature, low):
        assert chain.ask(V2, abi.claim(channel_id, DOLLAR, 1, good), PROVIDER) == b""


@BOTH
def test_a_channel_is_closed_by_its_consumer_once_it_has_expired(chain: LocalChain, contract: bytes) -> None:
    before = chain.dollars(DAVE.address)
    channel_id = chain.open(10 * DOLLAR, 600, contract=contract)
    chain.act(PROVIDER, contract, claim(channel_id, DOLLAR, 1, contract))
    close = abi.call(CLOSE, channel_id)
    assert refusal(chain, DAVE, contract, close) == "NotExpired"
    assert refusal(chain, MALLORY, contract, close) == "NotConsumer"
    chain.pass_time(600)
    chain.act(PROVIDER, contract, claim(channel_id, 2 * DOLLAR, 2, contract))  # claims go on until the close
    chain.close_channel(channel_id, contract=contract)
    assert chain.dollars(DAVE.address) - before == 8 * DOLLAR
    assert chain.ask(contract, abi.call(abi.GET_CHANNEL, channel_id)) == b"\0" * 160
    assert refusal(chain, PROVIDER, contract, claim(channel_id, 3 * DOLLAR, 3, contract)) == "ChannelNotFound"


def test_a_cooperative_close_splits_what_is_there(chain: LocalChain) -> None:
    daves, ours = chain.dollars(DAVE.address), chain.dollars(PROVIDER.address)
    channel_id = chain.open(10 * DOLLAR)
    chain.act(PROVIDER, V2, claim(channel_id, DOLLAR, 1, V2))
    signature = Domain(137, V2).authorize_close(PROVIDER, channel_id, 3 * DOLLAR)
    assert refusal(chain, MALLORY, V2, cooperative_close(channel_id, 3 * DOLLAR, signature)) == "NotConsumer"
    assert refusal(chain, DAVE, V2, cooperative_close(channel_id, 2 * DOLLAR, signature)) == "InvalidSignature"
    low = Domain(137, V2).authorize_close(PROVIDER, channel_id, DOLLAR - 1)
    assert refusal(chain, DAVE, V2, cooperative_close(channel_id, DOLLAR - 1, low)) == "InvalidAmount"
    chain.cooperative_close(channel_id, 3 * DOLLAR, signature)
    assert chain.dollars(DAVE.address) - daves == 7 * DOLLAR
    assert chain.dollars(PROVIDER.address) - ours == 3 * DOLLAR * 98 // 100
    assert refusal(chain, DAVE, V2, cooperative_close(channel_id, 3 * DOLLAR, signature)) == "ChannelNotFound"


def test_an_old_close_voids_later_vouchers_which_is_why_a_signed_one_freezes_a_channel(chain: LocalChain) -> None:
    before = chain.dollars(PROVIDER.address)
    channel_id = chain.open(10 * DOLLAR)
    early = Domain(137, V2).authorize_close(PROVIDER, channel_id, 0)
    later = claim(channel_id, 5 * DOLLAR, 9, V2)
    chain.cooperative_close(channel_id, 0, early)
    assert refusal(chain, PROVIDER, V2, later) == "ChannelNotFound"
    assert chain.dollars(PROVIDER.address) == before


def test_v1_has_neither_fee_nor_cooperative_close(chain: LocalChain) -> None:
    channel_id = chain.open(contract=V1)
    signature = Domain(137, V1).authorize_close(PROVIDER, channel_id, 0)
    assert refusal(chain, DAVE, V1, abi.FEE_BPS) is None
    assert refusal(chain, DAVE, V1, cooperative_close(channel_id, 0, signature)) is None


def test_the_owner_sets_the_fee_up_to_a_tenth_until_there_is_no_owner(own_chain: LocalChain) -> None:
    chain = own_chain
    assert refusal(chain, MALLORY, V2, abi.call(SET_FEE, FEE_WALLET, 300)) == "NotOwner"
    assert refusal(chain, OWNER, V2, abi.call(SET_FEE, FEE_WALLET, 1_001)) == "FeeTooHigh"
    chain.act(OWNER, V2, abi.call(SET_FEE, FEE_WALLET, 1_000))
    assert abi.read_number(chain.ask(V2, abi.FEE_BPS)) == 1_000
    chain.act(OWNER, V2, RENOUNCE)
    assert not any(chain.ask(V2, abi.OWNER))
    assert refusal(chain, OWNER, V2, abi.call(SET_FEE, FEE_WALLET, 0)) == "NotOwner"


def test_what_is_in_the_contract_beyond_channels_is_the_owners(own_chain: LocalChain) -> None:
    chain = own_chain
    sweep = abi.selector("sweep()")
    chain.open()
    assert refusal(chain, OWNER, V2, sweep) == "NoExcess"
    chain.act(MALLORY, USDC, abi.call(MINT, V2, 5))
    chain.act(OWNER, V2, sweep)
    assert chain.dollars(OWNER.address) == 5


def test_the_token_moves_only_what_is_there_and_allowed(chain: LocalChain) -> None:
    transfer = abi.selector("transfer(address,uint256)")
    everything = chain.dollars(MALLORY.address) + 1
    assert not any(chain.ask(USDC, abi.call(transfer, DAVE.address, everything), MALLORY))
    chain.act(DAVE, USDC, abi.call(APPROVE, MALLORY.address, 0))
    move = abi.call(abi.selector("transferFrom(address,address,uint256)"), DAVE.address, MALLORY.address, 1)
    assert not any(chain.ask(USDC, move, MALLORY))
