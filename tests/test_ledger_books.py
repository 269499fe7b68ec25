"""The books, as the check finds them: right after whatever the ledger did, wrong after whatever somebody else did.

The plain check starts from the last verified statement, the full one from the beginning. Stories as in `stories.py`.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from goosestack import ledger
from tests.stories import NOW, Ledger


@pytest.fixture
def book() -> Iterator[Ledger]:
    book = Ledger()
    yield book
    book.close()


OLD = """
    topup alice 100              |
    topup alice 50 pay_old       |
    topup bob 100                |
    bring bob 20 old_due         |
    authorize old_1 alice 30c    |
    settle old_1 12c+3           |
    authorize old_2 alice 30c    |
    settle old_2 4c              |
    authorize old_3 nobody 0     |
    settle old_3 0               |
"""
NEW = """
    topup alice 7 pay_new        |
    topup bob 7                  |
    authorize new_1 alice 30c    |
    settle new_1 5c+1            |
    authorize new_3 nobody 0     |
    settle new_3 0               |
    authorize new_2 bob 30c      |
    settle new_2 3c estimated    |
    settle new_2 2c              |
    authorize open_1 alice 30c   |
    authorize open_2 bob 20c     |
    authorize gone alice 1c      |
    release gone                 |
    bring bob 3 paid_due         |
    bring dave 9 new_due         |
    authorize open_3 dave 6c     |
    bring dave 2 new_due         | owed 4
    bring carol 20 one_due       |
    bring carol 20 two_due       |
    authorize open_4 carol 40c   |
    bring carol 0 one_due        | owed 20
    bring carol 5 two_due        | owed 15 debt 35
"""

STANDING = {
    "a balance": "UPDATE accounts SET balance = balance + 1 WHERE user_id = 'alice'",
    "a smaller balance": "UPDATE accounts SET balance = balance - 1 WHERE user_id = 'bob'",
    "a carry": "UPDATE accounts SET carry = carry + 1 WHERE user_id = 'alice'",
    "what is held": "UPDATE accounts SET held = held - 1 WHERE user_id = 'alice'",
    "a grain": "UPDATE accounts SET grain = 1000 WHERE user_id = 'alice'",
    "an open hold's amount": "UPDATE usage_log SET held = held - 1 WHERE id = 'open_1'",
    "an open hold's payer": "UPDATE usage_log SET account_id = 2 WHERE id = 'open_1'",
    "an open hold's process": "UPDATE usage_log SET process_id = 0 WHERE id = 'open_1'",
    "an open hold into a released one": "UPDATE usage_log SET status = 'released' WHERE id = 'open_1'",
    "a released hold into an open one": "UPDATE usage_log SET status = 'held', held = 5 WHERE id = 'gone'",
    "an open hold into nothing": "DELETE FROM usage_log WHERE id = 'open_1'",
    "a debt": "UPDATE accounts SET debt = debt - 1 WHERE user_id = 'dave'",
    "a debt into nothing": "UPDATE accounts SET debt = 0 WHERE user_id = 'dave'",
    "a debtor": "UPDATE dues SET account_id = 1 WHERE ref = 'new_due'",
    "the target of a due": "UPDATE dues SET target = target + 1 WHERE ref = 'new_due'",
    "the target of a due that is settled": "UPDATE dues SET target = target - 1 WHERE ref = 'old_due'",
    "what was posted for a due": "UPDATE dues SET posted = posted + 1, target = target + 1 WHERE ref = 'new_due'",
    "a due into nothing": "DELETE FROM dues WHERE ref = 'new_due'",
    "a due that nothing is owed of into nothing": "DELETE FROM dues WHERE ref = 'paid_due'",
}
ENTRIES = {
    "an entry's amount": "UPDATE entries SET amount = amount + 1 WHERE ref = 'pay_{when}'",
    "an entry's account": "UPDATE entries SET account_id = 2 WHERE ref = 'pay_{when}'",
    "an entry into nothing": "DELETE FROM entries WHERE ref = 'pay_{when}'",
}
SETTLEMENTS = {
    "what was charged": "UPDATE usage_log SET charged = charged - 1 WHERE id = '{when}_1'",
    "what was billed": "UPDATE usage_log SET billed = billed - 1 WHERE id = '{when}_1'",
    "who paid": "UPDATE usage_log SET account_id = 2 WHERE id = '{when}_1'",
    "that somebody paid": "UPDATE usage_log SET account_id = NULL WHERE id = '{when}_1'",
    "a settlement into a release": (
        "UPDATE usage_log SET status = 'released', settled_seq = NULL, charged = 0, billed = 0 WHERE id = '{when}_1'"
    ),
    "a settlement into an open hold": (
        "UPDATE usage_log SET status = 'held', settled_seq = NULL, charged = 0, billed = 0 WHERE id = '{when}_2'"
    ),
    "a settlement into nothing": "DELETE FROM usage_log WHERE id = '{when}_1'",
    "a free call into nothing": "DELETE FROM usage_log WHERE id = '{when}_3'",
}
ADDED = {
    "an entry that was never posted": (
        "INSERT INTO entries SELECT 99, 'ent_x', account_id, kind, 'x', 5, note, created_at, cause FROM entries"
        " WHERE seq = 1"
    ),
    "a correction of what was charged": "UPDATE usage_log SET charged = charged - 1 WHERE id = 'new_2.c'",
}
ROWS = ENTRIES | SETTLEMENTS
NUMBERED = (("seq", "entries"), ("settled_seq", "usage_log"))


@pytest.fixture
def verified(book: Ledger) -> Ledger:
    """Books with some history before the last verified statement, and some after it."""
    book.db.execute("PRAGMA foreign_keys = OFF")
    return book.tell(OLD).tell("verify").tell(NEW).tell("check | right \n check full | right")


@pytest.mark.parametrize("how", ["", "full"])
@pytest.mark.parametrize("sql", (STANDING | ADDED).values(), ids=list(STANDING | ADDED))
def test_the_check_finds_that_somebody_changed(verified: Ledger, sql: str, how: str) -> None:
    verified.tell(f"sql {sql}").tell(f"check {how} | error")


@pytest.mark.parametrize("how", ["", "full"])
@pytest.mark.parametrize("sql", ROWS.values(), ids=list(ROWS))
def test_the_check_finds_that_somebody_changed_since_the_statement(verified: Ledger, sql: str, how: str) -> None:
    verified.tell(f"sql {sql.format(when='new')}").tell(f"check {how} | error")


@pytest.mark.parametrize("sql", ROWS.values(), ids=list(ROWS))
def test_the_full_check_finds_that_somebody_changed_before_the_statement(verified: Ledger, sql: str) -> None:
    verified.tell(f"sql {sql.format(when='old')}").tell("check full | error")


@pytest.mark.parametrize("column", ["entered", "billed", "charged"])
def test_the_plain_check_finds_that_somebody_changed_a_statement(verified: Ledger, column: str) -> None:
    verified.tell(f"sql UPDATE statements SET {column} = {column} - 1 WHERE account_id = 1").tell("check | error")


def test_what_is_wrong_is_named_with_what_it_should_be(verified: Ledger) -> None:
    verified.tell("""
        sql UPDATE accounts SET balance = balance + 1 WHERE user_id = 'alice'   |
        check   | error account 1: balance is 136, and its rows add up to 135
    """)


@pytest.mark.parametrize("how", ["", "full"])
def test_a_number_that_is_missing_is_named(verified: Ledger, how: str) -> None:
    before, after = (verified.db.execute(f"SELECT max({name}) FROM {table}").fetchone()[0] for name, table in NUMBERED)
    verified.tell("sql DELETE FROM entries WHERE ref = 'pay_new'").tell("sql DELETE FROM usage_log WHERE id = 'new_3'")
    wrong = ledger.check(verified.db, full=how == "full").wrong
    assert wrong[:2] == [
        f"entries are numbered to {before}, and there are {before - 1}",
        f"settlements are numbered to {after}, and there are {after - 1}",
    ]


def test_every_difference_is_found_at_once(verified: Ledger) -> None:
    verified.tell("""
        sql UPDATE accounts SET balance = balance + 1 WHERE user_id = 'alice'   |
        sql UPDATE accounts SET carry = carry + 1 WHERE user_id = 'bob'         |
        sql UPDATE usage_log SET held = held - 1 WHERE id = 'open_1'            |
    """)
    wrong = ledger.check(verified.db, full=True).wrong
    assert [text.partition(" is ")[0] for text in wrong] == [
        "account 1: balance",
        "account 1: held",
        "account 2: carry",
    ]


def test_all_that_is_wrong_with_an_account_is_told(book: Ledger) -> None:
    book.tell("""
        topup alice 5             |
        authorize r1 alice 2c     |
        settle r1 1c+1            | balance 3 carry 9999999
        authorize r2 alice 1c     |
        sql UPDATE accounts SET balance = 0, carry = 7, held = 8, debt = 1   |
    """)
    told = [
        "account 1: balance is 0, and its rows add up to 3",
        "account 1: carry is 7, and its rows add up to 9999999",
        "account 1: held is 8, and its rows add up to 10000000",
        "account 1: debt is 1, and its rows add up to 0",
    ]
    assert ledger.check(book.db, full=False).wrong == [*told, "account 1: 8 held, more than it has"]
    book.tell("sql UPDATE accounts SET balance = 4, carry = 9999999")
    assert ledger.check(book.db, full=False).wrong == [
        "account 1: balance is 4, and its rows add up to 3",
        *told[2:],
        "account 1: owes 1, and has not paid what it could",
    ]


def test_dues_that_are_wrong_are_named_in_order(book: Ledger) -> None:
    book.tell("""
        bring alice 5 second   |
        bring alice 6 first    |
        sql UPDATE dues SET entries = 2 WHERE ref = 'first'    |
        sql UPDATE dues SET entries = 2 WHERE ref = 'second'   |
    """)
    assert ledger.check(book.db, full=False).wrong == [
        "due first: 6 was posted in 2 entries, and there are 1, of 6",
        "due second: 5 was posted in 2 entries, and there are 1, of 5",
    ]


def test_the_check_finds_who_could_have_paid_a_debt(verified: Ledger) -> None:
    verified.tell("""
        sql UPDATE accounts SET balance = balance + 1 WHERE user_id = 'dave'   |
        check   | error has not paid what it could
    """)


def test_what_is_left_of_a_unit_helps_to_pay_a_debt(book: Ledger) -> None:
    book.tell("""
        bring alice 10 pay_1           |
        authorize r1 alice 4c+5        |
        settle r1 4c+5                 |
        bring alice 0 pay_1 reversal   | debt 5 balance 0 carry 9999995
        check                          | right
        sql UPDATE accounts SET balance = balance + 1 WHERE user_id = 'alice'   |
        check                          | error owes 5, and has not paid what it could
    """)


def test_a_debt_that_no_due_bears_is_named(verified: Ledger) -> None:
    verified.tell("""
        sql UPDATE accounts SET debt = debt + 1 WHERE user_id = 'carol'   |
        check   | error account 4: debt is 36, and its rows add up to 35
    """)


def test_holds_of_processes_that_are_gone_are_named_in_order(book: Ledger) -> None:
    book.tell("authorize r2 nobody 0 \n authorize r1 nobody 0 \n restart")
    gone = "held by a process that is gone"
    assert ledger.check(book.db, full=False).wrong == [f"usage r1: {gone}", f"usage r2: {gone}"]


def test_a_due_is_looked_at_from_the_latest_entries_on_however_many_settlements_there_were(book: Ledger) -> None:
    for number in range(20):
        book.tell(f"authorize r{number} nobody 0 \n settle r{number} 0")
    book.tell("""
        topup alice 5        |
        verify               |
        bring alice 9 due    |
        check                | right
        sql UPDATE dues SET posted = posted + 1, target = target + 1 WHERE ref = 'due'   |
        check                | error due due: 10 was posted in 1 entries, and there are 1, of 9
    """)


def test_the_check_finds_more_held_than_there_is_also_where_the_holds_add_up(verified: Ledger) -> None:
    verified.tell("""
        sql UPDATE accounts SET held = held + 1000000000000 WHERE user_id = 'alice'   |
        sql UPDATE usage_log SET held = held + 1000000000000 WHERE id = 'open_1'      |
        check   | error more than it has
    """)


# --- statements -----------------------------------------------------------------------------------------------


def test_wrong_books_are_never_verified(verified: Ledger) -> None:
    before = verified.db.execute("SELECT * FROM statements").fetchall()
    verified.tell("""
        sql UPDATE accounts SET balance = balance + 1 WHERE user_id = 'alice'   |
        verify   | error prove nothing
        check    | error balance
    """)
    assert verified.db.execute("SELECT * FROM statements").fetchall() == before


def test_a_statement_stays_right_whatever_comes_after_it(book: Ledger) -> None:
    book.tell(f"""
        verify                        |
        check                         | right
        {OLD}
        verify                        |
        {NEW}
        check                         | right
        topup carol 9                 |
        topup carol/tokens 9          |
        check                         | right
        verify                        |
        authorize c1 carol 9c         |
        check                         | right
        settle c1 3c estimated        |
        verify                        |
        settle c1 8c                  |
        check                         | right
        settle open_1 1c              |
        release open_2                |
        check                         | right
        verify                        |
        verify                        |
    """)


def test_calls_that_nobody_pays_for_are_not_counted_again_and_again(book: Ledger) -> None:
    book.tell("show alice \n verify")
    short = steps_of_a_check(book)
    for number in range(500):
        book.tell(f"authorize r{number} nobody 0 \n settle r{number} 0")
    book.tell("verify")
    assert steps_of_a_check(book) <= short + 1


def test_only_who_moved_gets_a_new_statement(book: Ledger) -> None:
    def stated() -> dict[int, tuple[int, int]]:
        rows = book.db.execute("SELECT account_id, entry_seq, settled_seq FROM statements").fetchall()
        return {account: (entries, settlements) for account, entries, settlements in rows}

    book.tell("topup alice 10 \n topup bob 10 \n verify")
    assert stated() == {1: (2, 0), 2: (2, 0)}
    book.tell("topup carol 5 \n authorize r1 carol 1c \n settle r1 1c \n verify")
    assert stated() == {1: (3, 1), 2: (2, 0), 3: (3, 1)}, "the first account always tells how far the books are proved"
    book.tell("topup bob 7 \n refund bob -7 \n verify \n check | right")
    assert stated() == {1: (5, 1), 2: (2, 0), 3: (3, 1)}, "bob has what he had"
    book.tell("authorize r2 bob 2c \n settle r2 2c \n check | right \n verify")
    assert stated() == {1: (5, 2), 2: (5, 2), 3: (3, 1)}
    book.tell("check | right \n topup carol 1 \n check | right \n check full | right")


def test_a_statement_says_when_it_was_last_verified(book: Ledger) -> None:
    book.tell("topup alice 5 \n verify")
    ledger.verify(book.db, ledger.check(book.db, full=False), "later")
    assert book.db.execute("SELECT verified_at FROM statements").fetchall() == [("later",)]


def test_a_full_check_mends_a_statement_that_somebody_changed(verified: Ledger) -> None:
    verified.tell("sql UPDATE statements SET entered = entered - 1 WHERE account_id = 1").tell("check | error balance")
    ledger.verify(verified.db, ledger.check(verified.db, full=True), NOW)
    verified.tell("check | right")


def test_a_hold_that_was_made_before_the_statement_settles_after_it(book: Ledger) -> None:
    book.tell("""
        topup alice 100          |
        authorize r1 alice 30c   |
        verify                   |
        check                    | right
        settle r1 12c            |
        check                    | right
    """)


@pytest.mark.parametrize("between", [NEW, "topup alice 5", "settle open 1c"], ids=["much", "entry", "settlement"])
def test_an_older_check_never_overwrites_a_younger_statement(book: Ledger, between: str) -> None:
    book.tell(OLD).tell("topup bob 1 \n topup bob 2 \n authorize open alice 2c")
    older = ledger.check(book.db, full=False)
    book.tell(between)
    book.tell("verify")
    stands = book.db.execute("SELECT * FROM statements").fetchall()
    ledger.verify(book.db, older, NOW)
    assert book.db.execute("SELECT * FROM statements").fetchall() == stands
    book.tell("check | right")


def steps_of_a_check(book: Ledger) -> int:
    """How many instructions of SQLite's machine a plain check takes, in tens."""
    steps = 0

    def count() -> int:
        nonlocal steps
        steps += 1
        return 0

    book.db.set_progress_handler(count, 10)
    ledger.check(book.db, full=False)
    book.db.set_progress_handler(None, 10)
    return steps


def test_after_a_statement_the_plain_check_costs_the_same_however_long_the_history(book: Ledger) -> None:
    def live(batch: int, days: int) -> None:
        for day in range(days):
            name = f"r{batch}_{day}"
            book.tell(f"topup alice 5 \n authorize {name} alice 1c..2c \n settle {name} 1c+1")

    live(1, 10)
    book.tell("verify")
    short = steps_of_a_check(book)
    live(2, 1000)
    unverified = steps_of_a_check(book)
    book.tell("verify")
    long = steps_of_a_check(book)
    assert long <= short + 1 and unverified > 20 * short, (short, unverified, long)
