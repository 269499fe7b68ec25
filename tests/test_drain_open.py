"""What strangers, agents and operators find where DRAIN is on; and when a daemon refuses to start with it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest

from goosestack import agents
from goosestack.config import load
from goosestack.drain import abi
from goosestack.drain.prices import OwnPrice, Prices, with_fee
from goosestack.drain.signing import keccak256
from goosestack.drain.vouchers import Domain
from goosestack.errors import Refusal
from goosestack.pricing import Model, Rate, Usage, charge
from tests.asking import ask, chat
from tests.chain.control import APPROVE, OPEN, LocalChain, voucher_header
from tests.chain.places import PROVIDER, PROVIDER_KEY, USDC, V1
from tests.channels import DEPTH, Channel, open_market, spend
from tests.world import Upstream, World, bare_environment, until

WALLET = "0x3C44CdDdB6a900fa2b585dd299e03d12FA4293BC"


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory, shared_chain: LocalChain) -> Iterator[World]:
    shared_chain.heal()
    world = open_market(tmp_path_factory.mktemp("open"), shared_chain, ADMIN_TOKEN="", MARKUP_PERCENT="50")
    yield world
    world.close()


def test_prices_are_published_in_the_protocols_shape(market: World) -> None:
    published = ask(market, "GET", "/v1/pricing").json()
    assert (published["provider"], published["chainId"]) == (WALLET, 137)
    assert (published["currency"], published["decimals"], published["feeBps"]) == ("USDC", 6, 200)
    assert published["minDeposit"] == "100000"
    assert published["minRemainingSeconds"] == 900 + 3600
    mini = published["models"]["gpt-4o-mini"]
    assert (mini["inputPer1kTokens"], mini["outputPer1kTokens"]) == ("0.0075", "0.0225")
    assert mini["credits"]["inputPer1kTokens"] == "0.000225"
    for name, model in published["models"].items():
        for price in (model["inputPer1kTokens"], model["outputPer1kTokens"]):
            assert Decimal(price) > 0, name
            assert len(price.partition(".")[2]) <= 6, name


def test_a_price_of_the_book_has_the_markup_and_the_contracts_fee_on_it() -> None:
    assert with_fee(Decimal(0), 200) == Decimal("2.0409")
    assert with_fee(Decimal(50), 0) == 50
    rate = Rate("standard", 0, "", 10**6, 4 * 10**6, 10**6, 10**6, 10**6, 10**6, 4 * 10**6)
    model = Model("openai", "some-model", "Some", "chat", 1000, 1000, 1000, False, (rate,))
    assert Prices({}, Decimal(50), 200).published(model, "2026-11-21") == ("0.001531", "0.006123")


def test_a_search_has_markup_and_fee_on_it_also_where_the_operator_prices_the_tokens() -> None:
    model = Model("openai", "some-model", "Some", "chat", 1000, 1000, 1000, False, (), web_search=10_000_000)
    sold, terms = Prices({"SOMEMODEL": OwnPrice(7_500, 22_500)}, Decimal(50), 200).of(model)
    usage = Usage(500, 200, web_searches=1)
    assert charge(sold, usage, terms, "2026-11-21") == 8_250_000 + 15_307_000  # nanodollars: 1 cent, 50 %, 2 % of that


def test_whatever_is_paid_the_provider_keeps_what_the_markup_alone_would_bring() -> None:
    for fee in (0, 1, 200, 500, 1000):
        for markup in (Decimal(0), Decimal("12.5"), Decimal(300)):
            gross = 100 + with_fee(markup, fee)
            assert gross * (10_000 - fee) / 10_000 >= 100 + markup


def test_models_and_health_are_open(market: World) -> None:
    assert ask(market, "GET", "/v1/models").status == 200
    assert ask(market, "GET", "/health").json()["provider"] == WALLET


def test_the_page_for_agents_is_of_the_length_that_they_read(market: World) -> None:
    reply = ask(market, "GET", "/v1/docs")
    assert reply.headers["content-type"].startswith("text/plain")
    text = reply.data.decode()
    assert 800 <= len(text) <= 2_500
    assert WALLET in text
    assert "X-DRAIN-Voucher" in text
    assert "/v1/close-channel" in text
    assert "(DRAIN V2)" in text


def test_the_page_for_agents_stays_within_its_length_whatever_is_sold() -> None:
    facts = {"provider": WALLET, "contract": WALLET, "version": 2, "chain": 80002, "early": agents.PAGE_CLOSE}
    line = agents.page_line("m" * 80, "1000000.123456", "1000000.123456")
    most = {"name": "n" * 40, "deposit": 10**12, "seconds": 10**7, "count": 10_000}
    assert len(agents.PAGE.format(**facts, **most, models="\n".join([line] * agents.MOST_DOCS_MODELS))) <= 2_500
    assert len(agents.PAGE.format(**{**facts, "early": ""}, name="", deposit=1, seconds=1, count=0, models="")) >= 800


def test_what_the_page_says_is_signed_is_what_is_checked(market: World) -> None:
    text = ask(market, "GET", "/v1/docs").data.decode()
    assert 'name "DrainChannel", version "1"' in text
    (signed,) = re.findall(r"type (Voucher\([^)]*\))", text)
    assert keccak256(signed.encode()).hex() == "c9cdc4cc70aa6358dcce05ec5203e3ddb46e60ae0e8342801841c1ae755cdfc6"
    (opened,) = re.findall(r"open\(([^)]*)\)", text)
    kinds = ",".join(argument.split()[0] for argument in opened.split(", "))
    assert abi.selector(f"open({kinds})") == OPEN


def test_the_gateway_is_a_directory_of_itself(market: World) -> None:
    (entry,) = ask(market, "GET", "/api/mcp/providers?online=false").json()["providers"]
    assert (entry["apiUrl"], entry["docsUrl"]) == (market.url, f"{market.url}/v1/docs")
    assert (entry["providerAddress"], entry["chainId"], entry["protocol"]) == (WALLET, 137, "drain")
    assert entry["status"]["online"] is True
    (mini,) = (model for model in entry["models"] if model["id"] == "gpt-4o-mini")
    assert mini["pricing"] == {
        "inputPer1kTokens": "0.0075",
        "outputPer1kTokens": "0.0225",
        "currency": "USDC",
        "decimals": 6,
    }


def test_while_no_voucher_is_taken_the_directory_says_so(folder: Path, chain: LocalChain) -> None:
    chain.automine(False)
    chain.send(PROVIDER, USDC, abi.call(APPROVE, PROVIDER.address, 0))  # of the wallet, and nobody knows what it is
    world = open_market(folder, chain)
    try:

        def online() -> object:
            return ask(world, "GET", "/api/mcp/providers").json()["providers"][0]["status"]["online"]

        assert online() is False
        assert spend(world, voucher_header(b"\x11" * 32, 1, 1)).status == 503
        wish = {"channelId": "0x" + "11" * 32}  # what is on its way may be a claim above what would be signed
        assert ask(world, "POST", "/v1/close-channel", body=wish).status == 503
        chain.automine(True)
        chain.mine(DEPTH + 1)
        until(online, "the wallet to be idle")
    finally:
        world.close()


def test_without_an_operators_token_there_are_no_operators_endpoints(market: World) -> None:
    for method, what in (("POST", "claim"), ("GET", "stats"), ("GET", "vouchers")):
        assert ask(market, method, f"/v1/admin/{what}").status == 404


def test_where_drain_is_off_there_is_nothing_of_it(world: World) -> None:
    for path in ("/v1/docs", "/api/mcp/providers", "/v1/admin/stats"):
        assert ask(world, "GET", path).status == 404
    assert ask(world, "POST", "/v1/close-channel", body={}).status == 404
    assert "provider" not in ask(world, "GET", "/v1/pricing").json()
    assert spend(world, "{}").status == 401


# --- starting -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Upstream]:
    upstream = Upstream(tmp_path_factory.mktemp("upstream"))
    yield upstream
    upstream.program.stop()


def refusal(folder: Path, **settings: str) -> str:
    env = bare_environment(DB_PATH=str(folder / "x.db"), PORT="0", OPENAI_API_KEY="sk-test-0001", **settings)
    done = subprocess.run(
        [sys.executable, "-m", "goosestack", "serve"],
        env=env,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode in (75, 78), done.stdout + done.stderr
    return done.stderr.strip()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"PROVIDER_PRIVATE_KEY": "0x1234"}, "PROVIDER_PRIVATE_KEY must be 64 hexadecimal digits"),
        ({"PROVIDER_PRIVATE_KEY": "0" * 64}, "the private key must be 64 hexadecimal digits"),
        ({"DRAIN_RPC_URL": ""}, "set DRAIN_RPC_URL"),
        ({"CHAIN_ID": "1"}, "CHAIN_ID must be one of 137, 80002"),
        ({"DRAIN_CONTRACT": "0x12"}, "DRAIN_CONTRACT must be 0x and 40"),
        ({"DRAIN_CONTRACT": "0x" + "12" * 20}, "there is no contract at"),
        ({"DRAIN_MOST_FEE_BPS": "100"}, "takes 200 hundredths of a percent, above 100"),
        ({"PRICE_GPTNONE_INPUT": "1", "PRICE_GPTNONE_OUTPUT": "1"}, "is the price of no model that is sold here"),
        ({"PRICE_GPT55_INPUT": "1"}, "PRICE_GPT55_OUTPUT is missing"),
        ({"PRICE_GPT55_OUTPUT": "1"}, "PRICE_GPT55_INPUT is missing"),
        ({"PRICE_GPT_55_INPUT": "1"}, "PRICE_GPT_55_INPUT is no price"),
        ({"PRICE_gpt-5.5_OUTPUT": "1"}, "PRICE_gpt-5.5_OUTPUT is no price"),
        ({"PRICE_GPT55_INPUT": "1.5", "PRICE_GPT55_OUTPUT": "1"}, "PRICE_GPT55_INPUT must be a whole number"),
        ({"PRICE_GPT55_INPUT": "1", "PRICE_GPT55_OUTPUT": "0"}, "PRICE_GPT55_OUTPUT must be a whole number"),
    ],
    ids=str,
)
def test_a_start_that_cannot_go_well_is_refused(
    folder: Path, chain: LocalChain, settings: dict[str, str], said: str
) -> None:
    given = {"PROVIDER_PRIVATE_KEY": PROVIDER_KEY, "DRAIN_RPC_URL": chain.url("a"), **settings}
    text = refusal(folder, **given)
    assert said in text
    assert len(text.splitlines()) == 1
    assert PROVIDER_KEY not in text


def test_prices_may_stand_in_the_file_of_settings(folder: Path) -> None:
    (folder / ".env").write_text("PRICE_GPT4OMINI_INPUT=7500\nPRICE_GPT4OMINI_OUTPUT=22500\n")
    assert load({}, folder).drain_prices == {"GPT4OMINI_INPUT": 7500, "GPT4OMINI_OUTPUT": 22500}
    (folder / ".env").write_text("PRICE_GPT_4O_INPUT=7500\n")
    with pytest.raises(Refusal, match=r"line 1 of \.env sets PRICE_GPT_4O_INPUT, which is no setting"):
        load({}, folder)


def test_a_start_waits_for_a_node_that_answers(folder: Path, chain: LocalChain) -> None:
    chain.fault("cut")
    text = refusal(folder, PROVIDER_PRIVATE_KEY=PROVIDER_KEY, DRAIN_RPC_URL=chain.url("a"))
    assert "no node of DRAIN_RPC_URL tells the contract's terms" in text


def test_two_models_of_one_name_in_capitals_refuse_a_price(folder: Path, chain: LocalChain) -> None:
    (folder / "prices.toml").write_text(
        '[models."a-b"]\nprovider = "openai"\ninput = 1\noutput = 1\ncontext = 1000\nmax_output = 100\n'
        '[models."ab"]\nprovider = "openai"\ninput = 1\noutput = 1\ncontext = 1000\nmax_output = 100\n'
    )
    given = {"PROVIDER_PRIVATE_KEY": PROVIDER_KEY, "DRAIN_RPC_URL": chain.url("a")}
    text = refusal(folder, PRICE_AB_INPUT="1", PRICE_AB_OUTPUT="1", **given)
    assert "PRICE_AB_INPUT could be the price of a-b and ab" in text


def test_the_key_is_in_no_log_and_no_settings(market: World) -> None:
    shown = market.daemon.command("config")
    assert shown["PROVIDER_PRIVATE_KEY"] == "(set)"
    assert shown["DRAIN_RPC_URL"] == "(set)"
    assert PROVIDER_KEY[2:] not in json.dumps(shown) + market.daemon.program.text()


def test_the_first_contract_is_served_as_well(folder: Path, chain: LocalChain) -> None:
    world = open_market(folder, chain, DRAIN_CONTRACT="0x" + V1.hex())
    try:
        channel_id = chain.open(contract=V1)
        chain.mine(2)
        voucher = voucher_header(channel_id, 50_000, 1, domain=Domain(137, V1))
        assert spend(world, voucher, chat(max_tokens=20)).status == 200
        dave = Channel.open(world, chain)  # of the other contract: here it does not exist
        assert dave.buy(50_000).headers["x-drain-error"] == "channel_not_found"
        closing = ask(world, "POST", "/v1/close-channel", body={"channelId": "0x" + channel_id.hex()})
        assert closing.status == 409
        text = ask(world, "GET", "/v1/docs").data.decode()
        assert "(DRAIN V1)" in text
        assert "close-channel" not in text
    finally:
        world.close()
