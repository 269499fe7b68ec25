"""Vouchers without a chain: how they are read, what is signed, and whose signature counts."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import rlp as another  # type: ignore[import-untyped]
from coincurve import PublicKey
from hypothesis import given, settings, strategies as st

from goosestack import errors
from goosestack.drain import abi, rlp
from goosestack.drain.abi import MOST, Channel
from goosestack.drain.signing import ORDER, Signer, checksum_address, keccak256, parse_address, recover
from goosestack.drain.vouchers import Domain, Voucher, check, parse_channel_id, parse_voucher
from goosestack.errors import Refusal, VoucherMalformed
from tests.chain.control import voucher_header
from tests.chain.places import DAVE, MALLORY, PROVIDER, V1, V2
from tests.other_accounts import Account, encode_typed_data

POLYGON = Domain(137, V2)
ONES = b"\x11" * 32
NOW = 1_800_000_000
CHANNEL = Channel(ONES, DAVE.address, PROVIDER.address, 10_000_000, 0, NOW + 86_400)


def dave_signs(amount: int, nonce: int, channel_id: bytes = ONES, domain: Domain = POLYGON) -> Voucher:
    return parse_voucher(voucher_header(channel_id, amount, nonce, domain=domain))


def code(problem: type[errors.Problem]) -> str:
    return problem.openai[1] or ""


# --- the fixed vectors ----------------------------------------------------------------------------------------


def test_the_domains_are_those_that_the_deployed_contracts_compute() -> None:
    assert POLYGON.separator.hex() == "3a505b795c73ae4827c5622a9ef10b92248e48efc96f3ca8bd2244f6ba0a887f"
    assert Domain(137, V1).separator.hex() == "35e85db0bac72c426b3ec95e40abae4c375915e0d891ddb0be838114d5a6cdb7"


def test_a_voucher_is_signed_as_the_contract_expects_it() -> None:
    digest = POLYGON.voucher_digest(ONES, 1_000_000, 1)
    assert digest.hex() == "1d8f4a265a661ae74a1a2a9b302406e3d0f6dc4a232977945295825d7966038b"
    assert DAVE.sign(digest).hex() == (
        "ef1d1efc71e1e43f4208c2e4ba90056d1c2c10da6511564a76e1ecb067091c09"
        "5d73c4e39cfa3ebe2e028988163f8093d1fd6f030c6e512e6af1cc1d6dce65491c"
    )
    assert checksum_address(DAVE.address) == "0x70997970C51812dc3A010C7d01b50e0d17dc79C8"


def test_a_close_is_signed_as_the_contract_expects_it() -> None:
    digest = POLYGON.close_digest(ONES, 750_000)
    assert digest.hex() == "3cccff70911d9a0b8f32e10258d3264adfd589e79d77019fba6e26efe7591c70"
    assert POLYGON.authorize_close(PROVIDER, ONES, 750_000).hex() == (
        "b1c3154141b611fc7499ac16ec48f815dda966a4a26e6628cf43d746488c64e1"
        "2e62c0bda3b000b80714c3fefad37c248e961235bd2bc60b74df41e283d71bbb1c"
    )
    assert checksum_address(PROVIDER.address) == "0x3C44CdDdB6a900fa2b585dd299e03d12FA4293BC"


@pytest.mark.parametrize(
    ("signature", "expected"),
    [
        ("open(address,uint256,uint256)", "89a86ad3"),
        ("claim(bytes32,uint256,uint256,bytes)", "95ace4b3"),
        ("close(bytes32)", "39c79e0c"),
        ("cooperativeClose(bytes32,uint256,bytes)", "2a624912"),
        ("getChannel(bytes32)", "831c2b82"),
        ("DOMAIN_SEPARATOR()", "3644e515"),
        ("owner()", "8da5cb5b"),
        ("usdc()", "3e413bee"),
        ("feeBps()", "24a9d853"),
        ("setFee(address,uint256)", "e55156b5"),
        ("NotOwner()", "30cd7471"),
        ("NoOwner()", "7f51e102"),
        ("ZeroAddress()", "d92e233d"),
        ("ChannelExists()", "d180033c"),
        ("ChannelNotFound()", "1e07dd94"),
        ("NotProvider()", "3480e2b2"),
        ("NotConsumer()", "8c7dc13d"),
        ("NotExpired()", "d0404f85"),
        ("InvalidSignature()", "8baa579f"),
        ("InvalidAmount()", "2c5211c6"),
        ("TransferFailed()", "90b8ec18"),
        ("FeeTooHigh()", "cd4e6167"),
        ("NoExcess()", "6c163b7e"),
    ],
)
def test_functions_and_errors_have_the_names_of_the_deployed_contracts(signature: str, expected: str) -> None:
    assert abi.selector(signature).hex() == expected
    if signature[0].isupper() and signature != "DOMAIN_SEPARATOR()":
        assert abi.error_name(bytes.fromhex(expected)) == signature.removesuffix("()")


def test_the_event_of_a_claim_has_the_name_of_the_deployed_contracts() -> None:
    assert abi.CHANNEL_CLAIMED.hex() == "f52962519ffeefc816f3b8d3e9498fd9fd014f35c0b6aeead0118577a42bb324"


# --- another implementation agrees ----------------------------------------------------------------------------

TYPES = {
    "EIP712Domain": [
        {"name": "name", "type": "string"},
        {"name": "version", "type": "string"},
        {"name": "chainId", "type": "uint256"},
        {"name": "verifyingContract", "type": "address"},
    ],
    "Voucher": [
        {"name": "channelId", "type": "bytes32"},
        {"name": "amount", "type": "uint256"},
        {"name": "nonce", "type": "uint256"},
    ],
}


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 2**32),
    st.binary(min_size=20, max_size=20),
    st.binary(min_size=32, max_size=32),
    st.integers(0, MOST),
    st.integers(0, MOST),
)
def test_what_eth_account_signs_is_what_is_read_here(
    chain_id: int, contract: bytes, channel_id: bytes, amount: int, nonce: int
) -> None:
    domain = {
        "name": "DrainChannel",
        "version": "1",
        "chainId": chain_id,
        "verifyingContract": checksum_address(contract),
    }
    message = {"channelId": channel_id, "amount": amount, "nonce": nonce}
    typed = {"types": TYPES, "primaryType": "Voucher", "domain": domain, "message": message}
    account = Account.create()
    signature = bytes(account.sign_message(encode_typed_data(full_message=typed)).signature)
    voucher = Voucher(channel_id, amount, nonce, signature)
    assert Domain(chain_id, contract).consumer_of(voucher) == bytes.fromhex(account.address[2:])


numbers = st.integers(0, 2**64) | st.integers(0, 300)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, ORDER - 1), st.lists(numbers, min_size=6, max_size=6), st.binary(max_size=400))
def test_a_transaction_is_to_the_byte_the_one_that_eth_account_makes(key: int, fields: list[int], data: bytes) -> None:
    chain_id, nonce, gas, tip, more, value = fields
    to = key.to_bytes(32, "big")[:20]
    ours = Signer(f"{key:064x}").sign_transaction(
        chain_id=chain_id, nonce=nonce, to=to, data=data, gas=gas, max_fee=tip + more, tip=tip, value=value
    )
    named = {"chainId": chain_id, "nonce": nonce, "gas": gas, "value": value, "data": data, "type": 2}
    fees = {"maxFeePerGas": tip + more, "maxPriorityFeePerGas": tip}
    theirs = Account.sign_transaction({**named, **fees, "to": checksum_address(to)}, f"0x{key:064x}")
    assert ours == (bytes(theirs.raw_transaction), bytes(theirs.hash))


nested = st.recursive(
    st.binary(max_size=70) | st.integers(0, 2**80), lambda items: st.lists(items, max_size=8), max_leaves=60
)


@settings(max_examples=200, deadline=None)
@given(nested | st.binary(min_size=250, max_size=70_000))
def test_prefixes_are_written_as_another_library_writes_them(item: rlp.Item) -> None:
    assert rlp.encode(item) == another.encode(item)  # eth-account's own


@settings(max_examples=30, deadline=None)
@given(st.binary(min_size=20, max_size=20))
def test_an_address_is_written_with_its_checksum_and_read_with_it(address: bytes) -> None:
    text = checksum_address(address)
    assert parse_address(text) == parse_address(text.lower()) == address
    swapped = "0x" + text[2:].swapcase()
    if any(each.isalpha() for each in text[2:]) and swapped[2:] not in (swapped[2:].lower(), swapped[2:].upper()):
        with pytest.raises(ValueError, match="checksum"):
            parse_address(swapped)


@pytest.mark.parametrize("text", ["", "0x", "0x12", "70997970C51812dc3A010C7d01b50e0d17dc79C8", "0x" + "g" * 40])
def test_what_is_no_address_is_not_read_as_one(text: str) -> None:
    with pytest.raises(ValueError, match="an address is"):
        parse_address(text)


# --- reading the header ---------------------------------------------------------------------------------------

GOOD = {
    "channelId": "0x" + "11" * 32,
    "amount": "1000000",
    "nonce": "1",
    "signature": "0x" + "22" * 64 + "1b",
}


def test_a_header_is_read() -> None:
    expected = Voucher(ONES, 1_000_000, 1, b"\x22" * 64 + b"\x1b")
    assert parse_voucher(json.dumps(GOOD)) == expected
    assert parse_voucher(json.dumps({**GOOD, "comment": "members that nobody knows are nobody's"})) == expected
    assert parse_voucher(json.dumps({**GOOD, "nonce": str(MOST)})).nonce == MOST


def test_one_channel_has_one_identity_however_it_is_written() -> None:
    mixed = "0x" + "aB" * 32
    assert parse_channel_id(mixed) == parse_channel_id(mixed.lower()) == parse_channel_id("0x" + "AB" * 32)


def changed(**members: object) -> str:
    return json.dumps({**GOOD, **members})


def without(name: str) -> str:
    return json.dumps({each: value for each, value in GOOD.items() if each != name})


MALFORMED = {
    "nothing": "",
    "no JSON": "voucher",
    "half of it": json.dumps(GOOD)[:-1],
    "two of it": json.dumps(GOOD) * 2,
    "base64": "eyJjaGFubmVsSWQiOiIweDExIn0=",
    "null": "null",
    "a list": json.dumps([GOOD]),
    "a text": json.dumps(json.dumps(GOOD)),
    "deep nesting": "[" * 2_000,
    "too long": changed(comment="x" * 2_048),
    "no channel": without("channelId"),
    "no amount": without("amount"),
    "no nonce": without("nonce"),
    "no signature": without("signature"),
    "a member twice": json.dumps(GOOD)[:-1] + ', "amount": "9"}',
    "channel without 0x": changed(channelId="11" * 32),
    "channel of 31 bytes": changed(channelId="0x" + "11" * 31),
    "channel of 33 bytes": changed(channelId="0x" + "11" * 33),
    "channel that is not hexadecimal": changed(channelId="zz"),
    "channel with a line break": changed(channelId="0x" + "11" * 32 + "\n"),
    "channel that is a number": changed(channelId=17),
    "amount that is a number": changed(amount=1_000_000),
    "amount that is a float": changed(amount=1e6),
    "amount that is true": changed(amount=True),
    "amount that is null": changed(amount=None),
    "amount that is empty": changed(amount=""),
    "amount in hexadecimal": changed(amount="0xf4240"),
    "amount with an exponent": changed(amount="1e6"),
    "amount with a point": changed(amount="1.0"),
    "amount with a sign": changed(amount="+1"),
    "amount below zero": changed(amount="-1"),
    "amount with a blank": changed(amount=" 1"),
    "amount with a line break": changed(amount="1\n"),
    "amount with a leading zero": changed(amount="01"),
    "amount with an underscore": changed(amount="1_000"),
    "amount in other digits": changed(amount="١٠"),
    "amount beyond 64 bits": changed(amount=str(MOST + 1)),
    "amount of 256 bits": changed(amount=str(2**256)),
    "nonce that is a number": changed(nonce=1),
    "nonce beyond 64 bits": changed(nonce=str(2**63)),
    "signature without 0x": changed(signature="22" * 65),
    "signature that is empty": changed(signature="0x"),
    "signature of half a byte": changed(signature="0x2"),
    "signature that is not hexadecimal": changed(signature="0x" + "zz" * 65),
    "signature in pieces": changed(signature=["0x"]),
}


@pytest.mark.parametrize("header", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_header_is_told_so_and_nothing_else(header: str) -> None:
    with pytest.raises(VoucherMalformed) as caught:
        parse_voucher(header)
    assert code(type(caught.value)) == "invalid_voucher_format"
    assert "\n" not in caught.value.message


@given(st.text(max_size=300) | st.recursive(st.none() | st.booleans() | st.text(), st.lists).map(json.dumps))
def test_no_text_has_any_other_effect_than_being_malformed(header: str) -> None:
    with pytest.raises(VoucherMalformed):
        parse_voucher(header)


# --- whose signature counts -----------------------------------------------------------------------------------


def test_the_signer_of_a_voucher_is_found() -> None:
    assert POLYGON.consumer_of(dave_signs(1_000_000, 1)) == DAVE.address


def test_v_may_be_0_and_1_as_well_and_is_claimed_as_27_and_28() -> None:
    for nonce in range(1, 9):
        voucher = dave_signs(5, nonce)
        low = replace(voucher, signature=voucher.signature[:64] + bytes([voucher.signature[64] - 27]))
        assert POLYGON.consumer_of(low) == DAVE.address
        assert low.claimable == voucher.claimable == voucher.signature


def test_the_other_half_of_every_signature_is_not_taken() -> None:
    voucher = dave_signs(1_000_000, 1)
    s = ORDER - int.from_bytes(voucher.signature[32:64], "big")
    high = voucher.signature[:32] + s.to_bytes(32, "big") + bytes([55 - voucher.signature[64]])
    digest = POLYGON.voucher_digest(ONES, 1_000_000, 1)
    plain = PublicKey.from_signature_and_message(high[:64] + bytes([high[64] - 27]), digest, hasher=None)
    assert keccak256(plain.format(compressed=False)[1:])[-20:] == DAVE.address  # mathematically it is his
    assert recover(digest, high) is None


def compact(signature: bytes) -> bytes:
    """The form of EIP-2098: 64 bytes, the parity in the highest bit of s."""
    s = int.from_bytes(signature[32:64], "big") | (signature[64] - 27) << 255
    return signature[:32] + s.to_bytes(32, "big")


ORDER_BYTES = ORDER.to_bytes(32, "big")
NO_SIGNATURES = {
    "64 bytes": compact(dave_signs(1_000_000, 1).signature),
    "64 bytes, v left out": dave_signs(1_000_000, 1).signature[:64],
    "66 bytes": dave_signs(1_000_000, 1).signature + b"\0",
    "one byte": b"\x1b",
    "v 2": dave_signs(1_000_000, 1).signature[:64] + b"\x02",
    "v 29": dave_signs(1_000_000, 1).signature[:64] + b"\x1d",
    "v of EIP-155": dave_signs(1_000_000, 1).signature[:64] + bytes([35]),
    "zeros": b"\0" * 64 + b"\x1b",
    "r of zero": b"\0" * 32 + dave_signs(1_000_000, 1).signature[32:],
    "s of zero": dave_signs(1_000_000, 1).signature[:32] + b"\0" * 32 + b"\x1b",
    "r of the order": ORDER_BYTES + dave_signs(1_000_000, 1).signature[32:],
    "r beyond everything": b"\xff" * 32 + dave_signs(1_000_000, 1).signature[32:],
}


@pytest.mark.parametrize("signature", NO_SIGNATURES.values(), ids=NO_SIGNATURES)
def test_what_the_contract_would_not_take_is_nobodys_signature(signature: bytes) -> None:
    assert POLYGON.consumer_of(Voucher(ONES, 1_000_000, 1, signature)) is None


OTHERS = {
    "another amount": Voucher(ONES, 1_000_001, 1, dave_signs(1_000_000, 1).signature),
    "another nonce": Voucher(ONES, 1_000_000, 2, dave_signs(1_000_000, 1).signature),
    "another channel": Voucher(b"\x12" * 32, 1_000_000, 1, dave_signs(1_000_000, 1).signature),
    "another contract": dave_signs(1_000_000, 1, domain=Domain(137, V1)),
    "another chain": dave_signs(1_000_000, 1, domain=Domain(80002, V2)),
    "somebody else": parse_voucher(voucher_header(ONES, 1_000_000, 1, signer=MALLORY)),
    "the provider": parse_voucher(voucher_header(ONES, 1_000_000, 1, signer=PROVIDER)),
}


@pytest.mark.parametrize("voucher", OTHERS.values(), ids=OTHERS)
def test_a_signature_is_good_for_what_dave_signed_alone(voucher: Voucher) -> None:
    assert POLYGON.consumer_of(voucher) != DAVE.address


# --- the checks in their order --------------------------------------------------------------------------------

REFUSED = {
    "no channel": (None, dave_signs(1, 1), 0, "channel_not_found"),
    "somebody else's": (replace(CHANNEL, provider=MALLORY.address), dave_signs(1, 1), 0, "wrong_provider"),
    "ends too soon": (CHANNEL, dave_signs(1, 1), CHANNEL.expiry + 1, "channel_expired"),
    "without duration": (replace(CHANNEL, expiry=NOW), dave_signs(1, 1), NOW + 1, "channel_expired"),
    "more than there is": (CHANNEL, dave_signs(10_000_001, 1), 0, "exceeds_deposit"),
    "forged": (CHANNEL, parse_voucher(voucher_header(ONES, 1, 1, signer=MALLORY)), 0, "invalid_signature"),
    "two faults": (replace(CHANNEL, expiry=1), OTHERS["somebody else"], NOW, "channel_expired"),
}


@pytest.mark.parametrize(("channel", "voucher", "until", "expected"), REFUSED.values(), ids=REFUSED)
def test_a_voucher_is_refused_by_its_first_fault(
    channel: Channel | None, voucher: Voucher, until: int, expected: str
) -> None:
    with pytest.raises(errors.Problem) as caught:
        check(voucher, channel, POLYGON, PROVIDER.address, until=until)
    assert caught.value.status == 402
    assert code(type(caught.value)) == expected


def test_a_voucher_for_the_whole_deposit_is_good_until_the_very_end() -> None:
    assert check(dave_signs(10_000_000, 1), CHANNEL, POLYGON, PROVIDER.address, until=CHANNEL.expiry) == CHANNEL


# --- the provider's key ---------------------------------------------------------------------------------------

BAD_KEYS = ["", "0x", "secret", "0x" + "1" * 63, "1" * 65, "0x" + "g" * 64, "0" * 64, f"{ORDER:064x}", "f" * 64]


@pytest.mark.parametrize("key", BAD_KEYS)
def test_a_bad_private_key_refuses_without_being_shown(key: str) -> None:
    with pytest.raises(Refusal) as caught:
        Signer(key)
    assert not key or key.removeprefix("0x") not in str(caught.value) or key == "0x"


def test_a_private_key_never_shows_itself() -> None:
    key = "7c852118294e51e653712a81e05800f419141751be58f605c371e15141b007a6"
    signer = Signer(key)
    assert repr(signer) == f"<Signer {checksum_address(signer.address)}>"
    assert Signer("0x" + key).address == signer.address


def test_a_process_with_drain_still_refuses_deep_json_instead_of_ending() -> None:
    ask = """import goosestack.drain.signing, json, msgspec
for decode in (json.loads, msgspec.json.decode):
    try:
        decode(b"[" * 500_000)
    except RecursionError:
        print("refused")
"""
    done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split()) == (0, ["refused", "refused"])
