"""Requests that vouchers pay for: over sockets, by a daemon, from channels on a chain."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from tests.asking import ask, chat, connect, directed, message
from tests.chain.control import DOLLAR, LocalChain, voucher_header
from tests.chain.places import MALLORY, PROVIDER
from tests.channels import Channel, code, open_market, query, spend
from tests.world import World, until


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory, shared_chain: LocalChain) -> Iterator[World]:
    shared_chain.heal()
    world = open_market(tmp_path_factory.mktemp("market"), shared_chain)
    yield world
    world.close()


@pytest.fixture
def dave(market: World, chain: LocalChain) -> Iterator[Channel]:
    yield Channel.open(market, chain)
    market.check()


def of(tokens_in: int, tokens_out: int) -> str:
    """A question whose answer reports so many tokens."""
    usage = {"prompt_tokens": tokens_in, "completion_tokens": tokens_out, "total_tokens": tokens_in + tokens_out}
    return directed("Hello", usage=usage)


def test_a_request_costs_what_the_price_says_rounded_up_once(market: World, dave: Channel) -> None:
    reply = dave.buy(50_000, chat(of(500, 200)))
    assert reply.status == 200, reply.data
    assert reply.json()["usage"]["total_tokens"] == 700
    assert reply.headers["x-drain-cost"] == "8250"
    assert reply.headers["x-drain-total"] == "8250"
    assert reply.headers["x-drain-remaining"] == str(10 * DOLLAR - 8250)
    assert reply.headers["x-drain-channel"] == "0x" + dave.id.hex()
    again = dave.buy(1, chat(of(1, 2), max_tokens=10))
    assert again.headers["x-drain-cost"] == "53"  # of 52.5, where each part rounded up would be 54
    assert again.headers["x-drain-total"] == "8303"


def test_a_stream_says_after_its_end_what_it_cost(dave: Channel) -> None:
    reply = dave.buy(50_000, chat(of(500, 200), stream=True))
    assert reply.status == 200, reply.data
    assert reply.headers["x-drain-channel"] == "0x" + dave.id.hex()
    assert "x-drain-cost" not in reply.headers
    rest = f": X-DRAIN-Cost: 8250\n: X-DRAIN-Total: 8250\n: X-DRAIN-Remaining: {10 * DOLLAR - 8250}\n"
    assert reply.data.decode().partition("data: [DONE]\n\n")[2] == rest
    assert b"goosestack" not in reply.data


def test_an_answer_that_fails_and_is_charged_says_what_it_cost(dave: Channel) -> None:
    lost = dave.buy(50_000, chat(directed("Hello", fault="eof")))
    assert lost.status == 502, lost.data
    assert 0 < dave.charged == int(lost.headers["x-drain-cost"]) == int(lost.headers["x-drain-total"])
    before = dave.charged
    cut = dave.buy(50_000, chat(directed("Hello", fault="eof"), stream=True)).data.decode()
    _, _, told = cut.partition('"code":"upstream_cut"}}\n\n')
    after, left = dave.charged, 10 * DOLLAR - dave.charged
    assert told == f": X-DRAIN-Cost: {after - before}\n: X-DRAIN-Total: {after}\n: X-DRAIN-Remaining: {left}\n"
    refused = dave.buy(50_000, chat(directed("Hello", fault="error_500")))
    assert refused.status == 502, refused.data
    assert "x-drain-cost" not in refused.headers
    assert dave.charged == after


def test_what_is_not_used_stays_the_consumers_credit(dave: Channel) -> None:
    assert dave.buy(50_000, chat(of(500, 200))).status == 200
    reply = dave.buy(0, chat(max_tokens=100))
    assert reply.status == 200, reply.data
    assert dave.row()["accepted"] == 50_000
    assert dave.charged == int(reply.headers["x-drain-total"])


def test_one_consumer_is_one_user_with_an_account_for_each_channel(
    market: World, dave: Channel, chain: LocalChain
) -> None:
    other = Channel.open(market, chain)
    assert dave.buy(50_000).status == other.buy(50_000).status == 200
    rows = query(market, "SELECT user_id, ref FROM accounts WHERE unit = 'usdc_micro'")
    mine = [row for row in rows if row["ref"].endswith((dave.id.hex(), other.id.hex()))]
    assert len(mine) == 2
    assert {row["user_id"] for row in mine} == {"usr_0x" + dave.consumer.address.hex()}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/responses", {"model": "gpt-4o-mini", "input": "Hello", "max_output_tokens": 50}),
        ("/v1/messages", message(max_tokens=50)),
        ("/v1/embeddings", {"model": "text-embedding-3-small", "input": "Hello"}),
        ("/chat/completions", chat(max_tokens=50)),
    ],
    ids=str,
)
def test_every_format_takes_vouchers(dave: Channel, path: str, body: object) -> None:
    reply = dave.buy(100_000, body, path)
    assert reply.status == 200, reply.data
    assert int(reply.headers["x-drain-cost"]) > 0


def test_the_other_name_of_the_header_is_as_good(market: World, dave: Channel) -> None:
    voucher = dave.voucher(50_000)
    reply = ask(market, "POST", "/v1/chat/completions", body=chat(), headers={"x-payment-voucher": voucher})
    assert reply.status == 200, reply.data


# --- who asks -------------------------------------------------------------------------------------------------


def test_whoever_sends_nothing_is_told_how_to_pay(market: World) -> None:
    reply = ask(market, "POST", "/v1/chat/completions", body=chat())
    assert code(reply) == "voucher_required"
    assert reply.headers["x-payment-protocol"] == "drain-v2"
    assert reply.headers["x-payment-provider"] == "0x3C44CdDdB6a900fa2b585dd299e03d12FA4293BC"
    assert reply.headers["x-payment-contract"] == "0x0C2B3aA1e80629D572b1f200e6DF3586B3946A8A"
    assert reply.headers["x-payment-chain"] == "137"
    assert reply.headers["x-payment-docs"] == "/v1/docs"


def test_a_key_is_as_good_as_ever_and_a_bad_one_is_told_so(market: World) -> None:
    alice = market.customer(100)
    reply = ask(market, "POST", "/v1/chat/completions", key=alice.key, body=chat())
    assert reply.status == 200
    assert "x-drain-cost" not in reply.headers
    assert reply.headers["x-goosestack-cost-usd"]
    assert ask(market, "POST", "/v1/chat/completions", key="gsk_" + "x" * 40, body=chat()).status == 401


def test_a_key_and_a_voucher_contradict_each_other(market: World, dave: Channel) -> None:
    alice, voucher = market.customer(100), dave.voucher(50_000)
    headers = {"x-drain-voucher": voucher, "authorization": f"Bearer {alice.key}"}
    reply = ask(market, "POST", "/v1/chat/completions", body=chat(), headers=headers)
    assert (reply.status, reply.json()["error"]["code"]) == (400, "credential_conflict")
    headers = {"x-drain-voucher": voucher, "x-payment-voucher": dave.voucher(1)}
    reply = ask(market, "POST", "/v1/chat/completions", body=chat(), headers=headers)
    assert (reply.status, reply.json()["error"]["code"]) == (400, "credential_conflict")
    # the placeholder that an SDK sends where it is given no key is no second credential
    assert spend(market, voucher, headers={"authorization": "Bearer unused"}).status == 200


def test_a_voucher_pays_and_is_good_for_nothing_else(market: World, dave: Channel) -> None:
    headers = {"x-drain-voucher": dave.voucher(50_000)}
    assert ask(market, "GET", "/v1/usage", headers=headers).status == 401
    assert ask(market, "GET", "/v1/keys", headers=headers).status == 401
    count = {"model": "claude-haiku-4-5", "messages": [{"role": "user", "content": "Hello"}]}
    assert ask(market, "POST", "/v1/messages/count_tokens", body=count, headers=headers).status == 401
    own = {"x-provider-key": "sk-somebodys-own-key-0001"}
    assert spend(market, headers["x-drain-voucher"], headers=own).status == 403
    assert spend(market, headers["x-drain-voucher"]).status == 200  # and was not used up by any of that


def test_a_model_that_is_not_sold_is_told_in_the_protocols_words(market: World, dave: Channel) -> None:
    voucher = dave.voucher(50_000)
    reply = spend(market, voucher, {**chat(), "model": "gpt-none"})
    assert (reply.status, reply.json()["error"]["code"]) == (400, "model_not_supported")
    assert spend(market, voucher).status == 200


# --- one voucher, one request ---------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
def test_the_same_voucher_a_hundred_times_at_once_is_served_once(market: World, dave: Channel, stream: bool) -> None:
    voucher, start = dave.voucher(50_000), market.upstream.mark()
    barrier = threading.Barrier(20)

    def ask_once(_: int) -> str:
        barrier.wait(30)
        reply = spend(market, voucher, chat(max_tokens=20, stream=stream))
        return "served" if reply.status == 200 else code(reply)

    with ThreadPoolExecutor(20) as pool:
        answers = Counter(pool.map(ask_once, range(100)))
    assert answers == {"served": 1, "invalid_nonce": 99}
    assert len(market.upstream.dispatches(start)) == 1


def test_another_spelling_of_the_channel_is_no_other_channel(market: World, dave: Channel) -> None:
    voucher = dave.voucher(50_000)
    assert spend(market, voucher).status == 200
    upper = voucher.replace(dave.id.hex(), dave.id.hex().upper())
    assert upper != voucher
    assert code(spend(market, upper)) == "invalid_nonce"


def test_parallel_vouchers_are_all_served_in_whatever_order_they_end(market: World, dave: Channel) -> None:
    vouchers = [dave.voucher(100_000) for _ in range(8)]

    start = market.upstream.mark()

    def ask_one(number: int) -> int:
        body = chat(directed("Hello", words=5, delay_ms=(8 - number) * 40), max_tokens=20, stream=True)
        return spend(market, vouchers[number], body).status

    with ThreadPoolExecutor(8) as pool:
        answers: list[Future[int]] = []
        while len(answers) < 8:  # sent in their order, answered in the other
            answers.append(pool.submit(ask_one, len(answers)))
            until(lambda: len(market.upstream.dispatches(start)) == len(answers), "the request to arrive")
        assert [each.result() for each in answers] == [200] * 8
    assert dave.row()["accepted"] == 800_000


def test_a_nonce_below_one_that_was_charged_is_too_late(market: World, dave: Channel) -> None:
    first, second = dave.voucher(50_000), dave.voucher(50_000)
    assert spend(market, second).status == 200
    assert code(spend(market, first)) == "invalid_nonce"


def test_a_request_that_was_not_charged_gives_its_voucher_back(market: World, dave: Channel) -> None:
    voucher = dave.voucher(50_000)
    failed = spend(market, voucher, chat(directed("Hello", fault="error_400")))
    assert failed.status == 400
    assert spend(market, voucher).status == 200
    assert code(spend(market, voucher)) == "invalid_nonce"


# --- what a voucher buys --------------------------------------------------------------------------------------


def test_a_voucher_that_cannot_pay_for_a_useful_answer_is_told_what_would(market: World, dave: Channel) -> None:
    voucher, start = dave.voucher(100), market.upstream.mark()
    reply = spend(market, voucher)
    assert code(reply) == "insufficient_funds"
    assert reply.headers["x-drain-provided"] == "100"
    assert query(market, "SELECT 1 FROM drain_channels WHERE channel = ?", dave.id.hex()) == []
    assert market.upstream.dispatches(start) == []
    more = int(reply.headers["x-drain-required"]) - 100
    assert code(dave.buy(more - 1)) == "insufficient_funds"
    assert dave.buy(1).status == 200


def test_the_output_is_capped_to_what_the_voucher_pays_for(market: World, dave: Channel) -> None:
    start = market.upstream.mark()
    reply = dave.buy(10_000, chat(max_tokens=4_000))
    assert reply.status == 200, reply.data
    cap = int(reply.headers["x-goosestack-output-cap"])
    assert 256 <= cap < 4_000
    assert market.upstream.dispatches(start)[0]["body"]["max_tokens"] == cap
    assert int(reply.headers["x-drain-cost"]) <= 10_000


@pytest.mark.parametrize("asked", [40, 100, 255])
def test_a_small_cap_is_lowered_before_the_voucher_is_refused(market: World, dave: Channel, asked: int) -> None:
    refused = dave.buy(0, chat(max_tokens=asked))
    assert code(refused) == "insufficient_funds"
    enough = int(refused.headers["x-drain-required"])
    reply = dave.buy(enough, chat(max_tokens=asked))
    assert reply.status == 200, reply.data
    assert int(reply.headers["x-goosestack-output-cap"]) == -(-asked // 2)


def test_a_client_that_goes_is_charged_for_what_it_saw(market: World, dave: Channel) -> None:
    body = chat(directed("Hello", words=400, delay_ms=20), stream=True)
    connection = connect(market)
    headers = {"content-type": "application/json", "x-drain-voucher": dave.voucher(500_000)}
    connection.request("POST", "/v1/chat/completions", json.dumps(body).encode(), headers)
    response = connection.getresponse()
    response.readline()
    response.close()
    connection.close()
    market.check()
    assert 0 < dave.charged <= 500_000


# --- channels that are not good -------------------------------------------------------------------------------


def test_what_is_wrong_with_a_channel_is_told_by_its_code(market: World, dave: Channel, chain: LocalChain) -> None:
    assert code(spend(market, voucher_header(b"\x77" * 32, 50_000, 1))) == "channel_not_found"
    assert code(spend(market, voucher_header(dave.id, 11 * DOLLAR, 1))) == "exceeds_deposit"
    assert code(spend(market, voucher_header(dave.id, 50_000, 1, signer=MALLORY))) == "invalid_signature"
    assert code(spend(market, "{}")) == "invalid_voucher_format"
    theirs, soon, small = chain.open(provider=MALLORY.address), chain.open(duration=4_000), chain.open(50_000)
    chain.mine(2)
    assert code(spend(market, voucher_header(theirs, 50_000, 1))) == "wrong_provider"
    assert code(spend(market, voucher_header(soon, 50_000, 1))) == "channel_expired"
    assert code(spend(market, voucher_header(small, 50_000, 1))) == "insufficient_funds"
    assert PROVIDER.address != MALLORY.address


def test_browsers_may_read_what_vouchers_are_told_by(market: World, dave: Channel) -> None:
    page = {"origin": "https://agents.example.com"}
    asks = {"access-control-request-method": "POST", "access-control-request-headers": "content-type,x-drain-voucher"}
    may = ask(market, "OPTIONS", "/v1/chat/completions", headers={**page, **asks})
    assert may.status == 200
    assert "x-drain-voucher" in may.headers["access-control-allow-headers"]
    told = [spend(market, dave.voucher(more), headers=page) for more in (0, 50_000)]
    told.append(ask(market, "POST", "/v1/chat/completions", body=chat(), headers=page))
    assert [reply.status for reply in told] == [402, 200, 402]
    for reply in told:
        exposed = {name.strip() for name in reply.headers["access-control-expose-headers"].split(",")}
        ours = {name for name in map(str.lower, reply.headers) if name.startswith(("x-drain-", "x-payment-"))}
        assert ours
        assert ours <= exposed
