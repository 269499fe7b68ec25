"""Fixtures that every test may use."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.canaries import found_by_a_search
from tests.shops import Shop
from tests.tills import Till
from tests.world import DAEMONS, World


@pytest.fixture(scope="session", autouse=True)
def _no_credential_is_written_down() -> Iterator[None]:
    """When all tests have ended, none of the credentials that they used is in what their daemons have written; and
    where daemons have been, there is something to search, in which a canary is found."""
    yield
    lasting = [daemon for daemon in DAEMONS if not daemon.passes]
    assert [wrong for daemon in lasting for wrong in found_by_a_search(daemon.folder, daemon.secrets)] == []


if TYPE_CHECKING:
    from tests.chain.control import LocalChain

collect_ignore_glob = ["test_drain_*"] if sys.version_info >= (3, 14) else []
"""What DRAIN needs is not built for every Python; pyproject.toml says up to which."""


@pytest.fixture(scope="session")
def shared_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """One daemon for all tests that need no settings of their own."""
    world = World.create(tmp_path_factory.mktemp("world"), DISCONNECT_GRACE_S="1", DRAIN_S="5")
    yield world
    world.close()


@pytest.fixture
def world(shared_world: World) -> Iterator[World]:
    """The shared daemon; when the test has ended, nothing is in flight and the books add up."""
    yield shared_world
    shared_world.check()


@pytest.fixture(scope="session")
def shared_shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """One daemon that sells, for all tests that need no settings of their own."""
    shop = Shop.open(tmp_path_factory.mktemp("shop"), DISCONNECT_GRACE_S="1", DRAIN_S="5")
    yield shop
    shop.close()


@pytest.fixture
def shop(shared_shop: Shop) -> Iterator[Shop]:
    """The shared shop; when the test has ended, the books add up."""
    shared_shop.till.call("DELETE", "/delivery")
    yield shared_shop
    shared_shop.till.call("DELETE", "/delivery")
    shared_shop.till.no_faults()
    shared_shop.world.check()


@pytest.fixture(scope="session")
def shared_till(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Till]:
    """One fake Stripe for all tests that need no settings of their own."""
    till = Till.start(tmp_path_factory.mktemp("till"))
    yield till
    till.stop()


@pytest.fixture
def till(shared_till: Till) -> Till:
    """The shared fake Stripe, empty for each test."""
    shared_till.reset()
    return shared_till


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty folder, for a world of the test's own."""
    return tmp_path


@pytest.fixture(scope="session")
def shared_chain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalChain]:
    """One chain for all tests; each opens channels of its own."""
    from tests.chain.control import LocalChain

    chain = LocalChain(tmp_path_factory.mktemp("chain"))
    yield chain
    chain.close()


@pytest.fixture
def chain(shared_chain: LocalChain) -> Iterator[LocalChain]:
    """The shared chain with healthy nodes, a block for each transaction, and none that waits from before."""
    shared_chain.heal()
    shared_chain.automine(True)
    shared_chain.forget_waiting()
    yield shared_chain
    shared_chain.heal()
