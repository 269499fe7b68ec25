"""The ledger's rules, each told as a story. How stories are written is said in `stories.py`.

Wherever a story ends, the books add up, from the beginning and since the last statement.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import pytest

from goosestack import ledger
from tests.stories import CENT, NOW, Ledger

LATER = "2026-11-22T12:00:00.000Z"

Tell = Callable[[str], Ledger]


@pytest.fixture
def book() -> Iterator[Ledger]:
    book = Ledger()
    yield book
    book.close()


@pytest.fixture
def tell(book: Ledger) -> Iterator[Tell]:
    yield book.tell
    book.tell("check | right \n check full | right")


# --- entries --------------------------------------------------------------------------------------------------


def test_what_is_posted_is_the_balance(tell: Tell) -> None:
    tell("""
        topup alice 100      | posted balance 100 held 0 carry 0 available 100c
        grant alice 5        | posted balance 105
        refund alice -30     | posted balance 75
        reversal alice -75   | posted balance 0 available 0
    """)


def test_an_entry_says_what_it_is_of_why_and_when(book: Ledger) -> None:
    book.tell("topup alice 100 pay_1 \n bring alice 5 pay_2")
    ledger.post(book.db, 1, "adjustment", "desk_1", -3, LATER, note="ours")
    rows = book.db.execute("SELECT seq, id, account_id, kind, ref, amount, note, cause, created_at FROM entries")
    assert rows.fetchall() == [
        (1, "ent_topup_pay_1", 1, "topup", "pay_1", 100, "", None, NOW),
        (2, "ent_topup_pay_2#1", 1, "topup", "pay_2#1", 5, "", "pay_2", NOW),
        (
            3,
            "ent_adjustment_desk_1",
            1,
            "adjustment",
            "desk_1",
            -3,
            "ours",
            None,
            LATER,
        ),
    ]
    book.tell("bring alice 7 pay_3")
    dues = book.db.execute("SELECT seq, ref, account_id, kind, target, posted, entries FROM dues ORDER BY seq")
    assert dues.fetchall() == [(1, "pay_2", 1, "topup", 5, 5, 1), (2, "pay_3", 1, "topup", 7, 7, 1)]


def test_an_account_says_when_something_was_last_posted_or_charged(book: Ledger) -> None:
    def updated() -> str:
        return str(book.db.execute("SELECT updated_at FROM accounts").fetchone()[0])

    book.tell("topup alice 100 \n authorize r1 alice 5c")
    assert updated() == NOW
    ledger.post(book.db, 1, "grant", "first", 1, "later")
    assert updated() == "later"
    ledger.settle(book.db, "r1", ledger.Charge(1, 1), "completed", "later still")
    assert updated() == "later still"


@pytest.mark.parametrize("way", [1, -1])
def test_an_account_is_one_users_in_one_unit_for_one_ref(book: Ledger, way: int) -> None:
    for user in ("alice", "bob"):
        book.account(user)
    wanted = list(itertools.product(("alice", "bob"), ledger.GRAINS, ("", "a", "b")))[::way]
    ids = {each: ledger.open_account(book.db, each[0], each[1], NOW, ref=each[2]) for each in wanted}
    rows = book.db.execute("SELECT user_id, unit, ref, id, grain, balance, updated_at FROM accounts").fetchall()
    assert {row[:3]: row[3] for row in rows} == ids and len(ids) == 18
    assert {row[4:] for row in rows if row[1] == "usdc_micro"} == {(1_000, 0, NOW)}
    for each in reversed(wanted):
        assert ledger.open_account(book.db, each[0], each[1], NOW, ref=each[2]) == ids[each]
    assert ledger.open_account(book.db, "alice", "tokens", NOW) == ids["alice", "tokens", ""]


def test_nobody_has_nothing_and_owes_nothing(book: Ledger) -> None:
    book.tell("topup alice 5")
    assert (ledger.left_in(book.db, None), ledger.owed_by(book.db, None)) == (0, 0)


def test_an_entry_is_posted_once_for_its_ref(tell: Tell) -> None:
    tell("""
        topup alice 100 pay_1   | posted balance 100
        topup alice 100 pay_1   | repeated balance 100
        topup alice 100 pay_2   | posted balance 200
        grant alice 100 pay_1   | posted balance 300
        topup alice 100 pay_1   | repeated balance 300
    """)


def test_a_ref_never_stands_for_two_movements(tell: Tell) -> None:
    tell("""
        topup alice 100 pay_1   | posted
        topup alice 101 pay_1   | error posted before
        topup bob 100 pay_1     | error posted before
        show alice              | balance 100
        show bob                | balance 0
    """)


def test_nothing_is_taken_that_is_not_there(tell: Tell) -> None:
    tell("""
        topup alice 100     | balance 100
        refund alice -101   | error no room
        refund alice -100   | balance 0
        refund alice -1     | error no room
        show alice          | balance 0
    """)


def test_what_is_held_is_not_taken_away(tell: Tell) -> None:
    tell("""
        topup alice 100          |
        authorize r1 alice 60c   | holds 60c available 40c
        refund alice -41         | error no room
        refund alice -40         | balance 60 available 0
        authorize r2 alice 1     | refused
        settle r1 60c            | balance 0
    """)


def test_a_hold_into_the_carry_keeps_the_last_cent(tell: Tell) -> None:
    tell("""
        topup alice 2            |
        authorize r1 alice 1     | holds 1
        settle r1 1              | balance 1 carry 9999999
        authorize r2 alice 1c    | holds 1c available 9999999
        refund alice -1          | error no room
        release r2               | released
        authorize r3 alice 9999999   | available 1c
        refund alice -1          | balance 0 carry 9999999 available 0
    """)


def test_the_largest_balance_is_a_hundred_billion_units(tell: Tell) -> None:
    tell("""
        topup alice 100000000000      | posted
        topup alice 1                 | error no room
        bring bob 100000000000 pay_1  | balance 100000000000
        topup carol 100000000001      | error no movement
        bring carol 100000000001 p    | error no target
    """)


def test_an_account_has_its_bounds(tell: Tell) -> None:
    tell(f"""
        topup alice {ledger.MOST_UNITS}       | balance {ledger.MOST_UNITS}
        topup alice 1                         | error no room
        topup bob {ledger.MOST_UNITS + 1}     | error no movement
        topup bob {10**30}                    | error no movement
        topup bob 0                           | error no movement
        authorize r1 alice {ledger.MOST_UNITS}c | available 0
        settle r1 {ledger.MOST_UNITS}c        | balance 0 shortfall 0
    """)


# --- authorize ------------------------------------------------------------------------------------------------


def test_as_much_is_held_as_is_asked_for(tell: Tell) -> None:
    tell("""
        topup alice 100              |
        authorize r1 alice 1c..30c   | holds 30c held 30c available 70c balance 100
        authorize r2 alice 1c..70c   | holds 70c held 100c available 0
        row r2                       | status held quote 70c held 70c
    """)


def test_where_less_is_available_all_of_that_is_held(tell: Tell) -> None:
    tell("""
        topup alice 100               |
        authorize r1 alice 1c..150c   | holds 100c available 0
        row r1                        | quote 150c held 100c
    """)


def test_below_the_least_nothing_is_held(tell: Tell) -> None:
    tell("""
        topup alice 100                   |
        authorize r1 alice 100c+1..150c   | refused available 100c held 0
        row r1                            | nothing
        authorize r1 alice 100c..150c     | holds 100c available 0
    """)


def test_every_grain_counts_at_the_gate(tell: Tell) -> None:
    tell("""
        topup alice 1                        |
        authorize r1 alice 9999999           | holds 9999999 available 1
        authorize r2 alice 2                 | refused available 1
        authorize r3 alice 1                 | holds 1 available 0
        authorize r4 alice 1                 | refused available 0
        authorize r5 alice 0                 | holds 0 available 0
    """)


def test_the_same_hold_is_made_once(tell: Tell) -> None:
    tell("""
        topup alice 100              |
        authorize r1 alice 1c..30c   | holds 30c available 70c
        authorize r1 alice 1c..30c   | holds 30c available 70c held 30c
        authorize r1 alice 50c..90c  | holds 30c available 70c held 30c
        authorize r2 alice 1c..90c   | holds 70c available 0
        authorize r2 alice 1c..90c   | holds 70c available 0
        release r2                   |
        topup bob 100                |
        authorize r1 bob 1c          | error used before
        release r1                   | released held 0
        authorize r1 alice 1c..30c   | error used before
    """)


@pytest.mark.parametrize("bounds", ["2..1", "-1..1", "-2..-1"])
def test_bounds_that_make_no_sense_hold_nothing(tell: Tell, bounds: str) -> None:
    tell(f"""
        topup alice 1                 |
        authorize r1 alice {bounds}   | error cannot be held
        row r1                        | nothing
    """)


def test_an_empty_account_can_hold_nothing_but_nothing(tell: Tell) -> None:
    tell("""
        authorize r1 alice 1   | refused available 0
        authorize r2 alice 0   | holds 0 available 0
        settle r2 0            | charged 0 billed 0 settled
    """)


def test_a_free_call_has_a_row_and_no_payer(tell: Tell) -> None:
    tell("""
        authorize r1 nobody 0   | holds 0 available 0
        row r1                  | status held held 0
        settle r1 0             | charged 0 billed 0 balance 0
        row r1                  | status settled settled_seq 1
        authorize r2 nobody 1   | error cannot be held
        row r2                  | nothing
    """)


# --- settle ---------------------------------------------------------------------------------------------------


def test_the_cost_is_charged_and_the_rest_returned(tell: Tell) -> None:
    tell("""
        topup alice 100          |
        authorize r1 alice 30c   | available 70c
        settle r1 12c            | charged 12c billed 12 balance 88 held 0 available 88c shortfall 0 settled
        row r1                   | status settled reason completed charged 12c billed 12 cost_cents 12 cost_nanos 12c
    """)


def test_a_cost_above_the_hold_takes_what_else_is_available(tell: Tell) -> None:
    tell("""
        topup alice 100          |
        authorize r1 alice 30c   |
        settle r1 45c            | charged 45c billed 45 shortfall 0 balance 55 held 0
    """)


def test_other_holds_are_not_touched_and_the_house_bears_the_rest(tell: Tell) -> None:
    tell("""
        topup alice 100          |
        authorize r1 alice 30c   |
        authorize r2 alice 60c   | available 10c
        settle r1 45c            | charged 40c billed 40 shortfall 5c cost 45c available 0 held 60c balance 60
        row r1                   | charged 40c shortfall 5c cost_nanos 45c
        settle r2 60c            | charged 60c shortfall 0 balance 0
    """)


def test_settling_again_changes_nothing(tell: Tell) -> None:
    tell("""
        topup alice 100          |
        authorize r1 alice 30c   |
        settle r1 12c            | charged 12c billed 12 balance 88
        settle r1 12c            | charged 12c billed 12 balance 88
        settle r1 29c            | charged 12c billed 12 balance 88
        settle r1 1c estimated   | charged 12c billed 12 balance 88
        row r1.c                 | nothing
    """)


def test_a_released_hold_is_never_charged(tell: Tell) -> None:
    tell("""
        topup alice 100          |
        authorize r1 alice 30c   |
        release r1               | released balance 100 held 0
        settle r1 12c            | error it was released
        show alice               | balance 100 available 100c
    """)


def test_what_was_never_held_is_neither_settled_nor_released(tell: Tell) -> None:
    tell("""
        settle r1 1    | error never made
        release r1     | error never made
    """)


def test_a_charge_never_adds_to_a_balance(tell: Tell) -> None:
    tell("""
        topup alice 1            |
        authorize r1 alice 1     |
        settle r1 -1             | error cannot be charged
        row r1                   | status held
        settle r1 0              | balance 1 charged 0
    """)


# --- release --------------------------------------------------------------------------------------------------


def test_a_released_hold_costs_nothing(tell: Tell) -> None:
    tell("""
        topup alice 100          |
        authorize r1 alice 30c   |
        journal r1 5c            |
        release r1               | released balance 100 held 0 available 100c
        row r1                   | status released reason refused_400 charged 0 cost_nanos 0 progress None
        release r1               | released balance 100
    """)


def test_a_free_call_that_is_released_has_a_row_all_the_same(tell: Tell) -> None:
    tell("""
        authorize r1 nobody 0    |
        release r1               | released
        row r1                   | status released reason refused_400 held 0 charged 0
    """)


def test_releasing_what_is_settled_changes_nothing_and_says_so(tell: Tell) -> None:
    tell("""
        topup alice 100          |
        authorize r1 alice 30c   |
        settle r1 12c            | balance 88
        release r1               | settled balance 88 held 0
        row r1                   | status settled charged 12c
    """)


# --- the carry ------------------------------------------------------------------------------------------------


def test_the_sum_rounds_up_and_not_each_call(tell: Tell) -> None:
    tell("""
        topup alice 10                |
        authorize r1 alice 1c         |
        settle r1 4000000             | billed 1 balance 9 carry 6000000
        authorize r2 alice 1c         |
        settle r2 4000000             | billed 0 balance 9 carry 2000000
        authorize r3 alice 1c         |
        settle r3 4000000             | billed 1 balance 8 carry 8000000
        authorize r4 alice 1c         |
        settle r4 8000000             | billed 0 balance 8 carry 0
        authorize r5 alice 1c         |
        settle r5 1                   | billed 1 balance 7 carry 9999999
        row r4                        | cost_cents 0 cost_nanos 8000000
    """)


def test_the_carry_is_money_like_any_other(tell: Tell) -> None:
    tell("""
        topup alice 1                 |
        authorize r1 alice 1          |
        settle r1 1                   | balance 0 carry 9999999 available 9999999
        authorize r2 alice 9999999    | holds 9999999 available 0
        settle r2 9999999             | billed 0 balance 0 carry 0
        authorize r3 alice 1          | refused
    """)


def test_a_thousand_hellos_cost_their_sum_and_not_a_thousand_cents(book: Ledger, tell: Tell) -> None:
    tell("topup alice 100")
    for number in range(1000):
        tell(f"authorize r{number} alice 1..1c \n settle r{number} 2970")
    tell("show alice | balance 99 carry 7030000")


# --- estimates and their correction ---------------------------------------------------------------------------


def test_an_estimate_is_corrected_by_the_truth_when_that_is_more(tell: Tell) -> None:
    tell("""
        topup alice 100            |
        authorize r1 alice 30c     |
        settle r1 10c estimated    | charged 10c balance 90
        row r1                     | estimated 1
        settle r1 25c              | charged 25c billed 25 cost 25c shortfall 0 balance 75
        row r1                     | charged 10c billed 10 settled_seq 1 estimated 1 input_tokens 10c
        row r1.c                   | charged 15c billed 15 settled_seq 2 cost_nanos 15c input_tokens 15c held 0
    """)


def test_an_estimate_is_corrected_by_a_credit_when_the_truth_is_less(tell: Tell) -> None:
    tell("""
        topup alice 100            |
        authorize r1 alice 30c     |
        settle r1 10c+5 estimated  | charged 10c+5 billed 11 balance 89 carry 9999995
        settle r1 4c               | charged 4c billed 4 cost 4c balance 96 carry 0
        row r1.c                   | billed -7 cost_cents -7 shortfall 0
        show alice                 | balance 96 available 96c
    """)


def test_a_correction_takes_what_is_available_and_no_hold_of_another(tell: Tell) -> None:
    tell("""
        topup alice 100            |
        authorize r1 alice 30c     |
        settle r1 10c estimated    | balance 90
        authorize r2 alice 85c     | available 5c
        settle r1 25c              | charged 15c shortfall 10c cost 25c available 0 held 85c
        row r1.c                   | charged 5c shortfall 10c
        settle r2 85c              | charged 85c balance 0
    """)


def test_a_correction_is_a_row_of_its_own_that_bears_the_differences(book: Ledger) -> None:
    book.tell("topup alice 100 \n authorize r1 alice 30c")
    guessed = ledger.Charge(3 * CENT, 1_000, (10, 20, 30, 40, 50, 60, 70, 80, 90), estimated=True)
    truth = ledger.Charge(5 * CENT + 1, 1_700, (11, 22, 33, 44, 55, 66, 77, 88, 0))
    assert ledger.settle(book.db, "r1", guessed, "cut", NOW).nanos == 1_000
    receipt = ledger.settle(book.db, "r1", truth, "completed", LATER)
    assert receipt == ledger.Settled("settled", 5 * CENT + 1, 6, 1_700, 0, 94, 95 * CENT - 1)
    names = "id, reason, charged, billed, cost_cents, cost_nanos, shortfall, estimated, settled_seq, quote, held"
    assert book.db.execute(f"SELECT {names}, ended_at FROM usage_log ORDER BY id").fetchall() == [
        ("r1", "cut", 3 * CENT, 3, 3, 1_000, 0, 1, 1, 30 * CENT, 30 * CENT, NOW),
        ("r1.c", "correction: completed", 2 * CENT + 1, 3, 3, 700, 0, 0, 2, 0, 0, LATER),
    ]
    counts = book.db.execute(f"SELECT {', '.join(ledger.COUNTS)} FROM usage_log ORDER BY id").fetchall()
    assert counts == [guessed.counts, (1, 2, 3, 4, 5, 6, 7, 8, -90)]
    whose = "user_id, key_id, account_id, unit, process_id, wire, provider, model"
    first, second = book.db.execute(f"SELECT {whose} FROM usage_log ORDER BY id").fetchall()
    assert first == second == ("alice", None, 1, "usd_cents", 1, "openai_chat", "openai", "gpt")
    book.tell("check full | right")


def test_what_a_charge_counts_stands_in_the_order_of_the_columns(book: Ledger) -> None:
    columns = [name for _, name, *_ in book.db.execute("PRAGMA table_info(usage_log)")]
    assert tuple(name for name in columns if name in ledger.COUNTS) == ledger.COUNTS


def test_a_charge_counts_nothing_and_is_no_estimate_unless_it_says_so() -> None:
    assert ledger.Charge(5, 7) == ledger.Charge(5, 7, (0,) * 9, estimated=False)


def test_an_estimate_is_corrected_once(tell: Tell) -> None:
    tell("""
        topup alice 100            |
        authorize r1 alice 30c     |
        settle r1 10c estimated    | charged 10c
        settle r1 20c estimated    | charged 10c
        settle r1 10c              | charged 10c balance 90
        row r1.c                   | charged 0 settled_seq 2
        settle r1 25c              | charged 10c balance 90
        release r1                 | settled balance 90
        settle r1.c 25c            | charged 0 balance 90
    """)


def test_the_correction_of_a_free_call_counts_what_it_used(tell: Tell) -> None:
    tell("""
        authorize r1 nobody 0      |
        settle r1 0 estimated      | charged 0
        settle r1 0                | charged 0
        row r1.c                   | charged 0 settled_seq 2
    """)


# --- crash and recovery ---------------------------------------------------------------------------------------


def test_what_a_dead_process_held_is_given_back_where_nothing_was_seen(tell: Tell) -> None:
    tell("""
        topup alice 100            |
        authorize r1 alice 30c     |
        restart                    |
        check                      | error held by a process that is gone
        recover                    | charged 0 given_back 1
        row r1                     | status released reason interrupted charged 0
        show alice                 | balance 100 held 0
    """)


def test_what_was_seen_of_an_answer_is_charged_as_an_estimate(tell: Tell) -> None:
    tell("""
        topup alice 100            |
        authorize r1 alice 30c     |
        journal r1 3c              | balance 100 held 30c
        journal r1 7c              | balance 100 held 30c available 70c
        row r1                     | status held progress 7c
        restart                    |
        recover                    | charged 1 given_back 0
        row r1                     | status settled reason recovered charged 7c estimated 1 input_tokens 7c
        row r1                     | cost_nanos 7c settled_seq 1
        show alice                 | balance 93 held 0
        settle r1 9c               | charged 9c balance 91
    """)


def test_the_amount_of_what_was_seen_is_in_grains_of_the_payers_and_its_cost_in_nanodollars(book: Ledger) -> None:
    book.tell("grant carol/tokens 100 \n authorize r1 carol/tokens 50")
    ledger.journal(book.db, "r1", ledger.Charge(30, 7_000, (1, 2, 3, 4, 5, 6, 7, 8, 9)))
    book.tell("row r1 | progress 30 cost_nanos 7000 charged 0")
    book.tell("restart \n recover | charged 1 \n row r1 | progress None cost_nanos 7000 charged 30 cost_cents 0")
    counts = book.db.execute(f"SELECT {', '.join(ledger.COUNTS)} FROM usage_log").fetchone()
    assert counts == (1, 2, 3, 4, 5, 6, 7, 8, 9)


def test_a_process_bears_the_next_number_its_version_and_when_it_began(book: Ledger) -> None:
    assert ledger.begin_process(book.db, "2.0", LATER) == 2
    rows = book.db.execute("SELECT id, version, started_at FROM processes").fetchall()
    assert rows == [(1, "test", NOW), (2, "2.0", LATER)]


def test_recovery_settles_in_the_order_of_the_requests_and_not_of_the_rows(tell: Tell) -> None:
    tell("""
        topup alice 100            |
        authorize r2 alice 10c     |
        authorize r1 alice 10c     |
        journal r2 1c              |
        journal r1 1c              |
        restart                    |
        recover                    | charged 2
        row r1                     | settled_seq 1
        row r2                     | settled_seq 2
    """)


def test_recovery_leaves_alone_what_lives_and_what_has_ended(tell: Tell) -> None:
    tell("""
        topup alice 100            |
        authorize r1 alice 10c     |
        settle r1 10c              |
        authorize r2 alice 10c     |
        release r2                 |
        restart                    |
        authorize r3 alice 10c     |
        recover                    | charged 0 given_back 0
        row r1                     | status settled reason completed
        row r2                     | status released reason refused_400
        row r3                     | status held
        recover                    | charged 0 given_back 0
    """)


def test_recovery_can_itself_be_interrupted_and_happens_once(tell: Tell) -> None:
    tell("""
        topup alice 100            |
        authorize r1 alice 10c     |
        journal r1 4c              |
        authorize r2 alice 10c     |
        restart                    |
        restart                    |
        recover                    | charged 1 given_back 1
        restart                    |
        recover                    | charged 0 given_back 0
        show alice                 | balance 96 held 0
    """)


def test_nothing_is_journalled_of_what_has_ended(tell: Tell) -> None:
    tell("""
        topup alice 100            |
        authorize r1 alice 10c     |
        settle r1 2c               |
        journal r1 9c              | balance 98
        row r1                     | charged 2c progress None cost_nanos 2c
        authorize r2 alice 10c     |
        release r2                 |
        journal r2 9c              | balance 98
        row r2                     | status released cost_nanos 0 progress None
    """)


# --- units ----------------------------------------------------------------------------------------------------


def test_a_token_is_its_own_grain(tell: Tell) -> None:
    tell("""
        grant carol/tokens 1000                 |
        authorize r1 carol/tokens 1..1200       | holds 1000 available 0
        settle r1 377                           | charged 377 billed 377 balance 623 carry 0
        row r1                                  | cost_cents 0 billed 377
    """)


def test_a_thousandth_of_a_microdollar_is_a_grain_of_a_channel(tell: Tell) -> None:
    tell("""
        topup dave/usdc_micro 10                |
        authorize r1 dave/usdc_micro 1..4500    | holds 4500 available 5500
        settle r1 1500                          | billed 2 balance 8 carry 500
        authorize r2 dave/usdc_micro 8500       | holds 8500 available 0
        settle r2 8500                          | billed 8 balance 0 carry 0 shortfall 0
        row r2                                  | cost_cents 0
    """)


def test_each_unit_of_a_user_is_an_account_of_its_own(tell: Tell) -> None:
    tell("""
        topup alice 5                     |
        grant alice/tokens 100            | balance 100
        authorize r1 alice/tokens 60      | held 60 available 40
        settle r1 90                      | charged 90 balance 10
        show alice                        | balance 5 held 0 available 5c
    """)


def test_there_is_no_other_unit(book: Ledger) -> None:
    with pytest.raises(KeyError):
        book.tell("topup alice/euro 1")


# --- debt -----------------------------------------------------------------------------------------------------


def test_what_is_brought_to_a_target_is_posted_once_for_all(tell: Tell) -> None:
    tell("""
        bring alice 100 pay_1   | owed 0 balance 100 debt 0
        bring alice 100 pay_1   | owed 0 balance 100
        bring alice 130 pay_1   | balance 130
        bring alice 50 pay_1 refund   | owed 0 balance 50
        bring alice 50 pay_1 refund   | balance 50
        bring alice 0 pay_1 refund    | balance 0 debt 0
        entries pay_1           | are topup:100,topup:30,refund:-80,refund:-50
    """)


def test_it_can_be_asked_what_something_was_brought_to(tell: Tell) -> None:
    tell("""
        due pay_2               | brought False target 0
        bring alice 100 pay_2   |
        due pay_2               | brought True target 100
        due pay_1               | brought False target 0
        due pay_3               | brought False target 0
        bring alice 7 pay_1     |
        bring alice 8 pay_3     |
        due pay_2               | brought True target 100
        authorize r1 alice 90c  |
        bring alice 40 pay_2    | owed 35 debt 35
        due pay_2               | brought True target 40
        bring alice 0 pay_2     | owed 75
        due pay_2               | brought True target 0
        due pay_1               | brought True target 7
        due pay_3               | brought True target 8
    """)


def test_what_was_spent_and_must_be_taken_back_is_owed(tell: Tell) -> None:
    tell("""
        bring alice 100 pay_1          |
        authorize r1 alice 60c         |
        settle r1 60c                  | balance 40
        bring alice 0 pay_1 refund     | owed 60 balance 0 debt 60 available 0
        bring alice 0 pay_1 refund     | owed 60 balance 0 debt 60
        entries pay_1                  | are topup:100,refund:-40
    """)


def test_what_is_taken_back_bears_the_name_under_which_it_was_first_owed(tell: Tell) -> None:
    tell("""
        bring alice 100 pay_1          |
        authorize r1 alice 100c        |
        settle r1 100c                 | balance 0
        bring alice 0 pay_1 refund     | owed 100 debt 100
        bring alice 0 pay_1 reversal   | owed 100 debt 100
        topup alice 100 pay_2          | balance 0 debt 0
        entries pay_1                  | are topup:100,refund:-100
    """)


def test_open_holds_are_honoured_and_what_they_return_pays_the_debt(tell: Tell) -> None:
    tell("""
        bring alice 100 pay_1          |
        authorize r1 alice 30c         |
        authorize r2 alice 30c         |
        bring alice 0 pay_1 refund     | owed 60 balance 60 held 60c available 0
        settle r1 10c                  | charged 10c balance 30 debt 40 available 0
        release r2                     | balance 0 debt 10
        topup alice 25 pay_2           | posted balance 15 debt 0
        authorize r3 alice 15c         | holds 15c
        release r3                     |
        entries pay_1                  | are topup:100,refund:-40,refund:-20,refund:-30,refund:-10
    """)


def test_nothing_is_admitted_while_something_is_owed(tell: Tell) -> None:
    tell("""
        bring alice 10 pay_1           |
        authorize r1 alice 4c+5        |
        settle r1 4c+5                 | balance 5 carry 9999995
        bring alice 0 pay_1 reversal   | owed 5 balance 0 carry 9999995 available 9999995
        authorize r2 alice 1           | refused debt 5 available 9999995
        topup bob 1                    |
        authorize r4 bob 1c+1          | refused debt 0 available 1c
        authorize r2 alice 0           | refused debt 5
        authorize r3 nobody 0          | holds 0
        grant alice 5                  | posted balance 0 debt 0
        authorize r2 alice 1           | holds 1
    """)


def test_a_reinstated_payment_is_exactly_undone(tell: Tell) -> None:
    tell("""
        bring alice 100 pay_1          |
        authorize r1 alice 70c         |
        settle r1 70c                  |
        bring alice 0 pay_1 reversal   | balance 0 debt 70
        bring alice 100 pay_1 reversal | balance 30 debt 0 owed 0
        entries pay_1                  | are topup:100,reversal:-30,reversal:30
    """)


def test_a_smaller_refund_shrinks_the_debt(tell: Tell) -> None:
    tell("""
        bring alice 100 pay_1          |
        authorize r1 alice 70c         |
        settle r1 70c                  |
        bring alice 0 pay_1 refund     | balance 0 debt 70
        bring alice 50 pay_1 refund    | balance 0 debt 20 owed 20
        bring alice 80 pay_1 refund    | balance 10 debt 0 owed 0
    """)


def test_the_oldest_debt_is_paid_first(tell: Tell) -> None:
    tell("""
        bring alice 50 pay_1           |
        bring alice 50 pay_2           |
        authorize r1 alice 100c        |
        settle r1 100c                 |
        bring alice 0 pay_2 refund     | debt 50
        bring alice 0 pay_1 refund     | debt 100
        topup alice 60 pay_3           | balance 0 debt 40
        entries pay_1                  | are topup:50,refund:-50
        entries pay_2                  | are topup:50,refund:-10
    """)


def test_a_payment_that_comes_while_another_is_owed_pays_it(tell: Tell) -> None:
    tell("""
        bring alice 50 pay_1           |
        authorize r1 alice 50c         |
        settle r1 50c                  |
        bring alice 0 pay_1 refund     | debt 50
        bring alice 80 pay_2           | owed 0 balance 30 debt 0
    """)


def test_a_correction_that_gives_back_pays_the_debt(tell: Tell) -> None:
    tell("""
        bring alice 50 pay_1           |
        authorize r1 alice 50c         |
        settle r1 50c estimated        | balance 0
        bring alice 0 pay_1 refund     | debt 50
        settle r1 20c                  | charged 20c balance 0
        show alice                     | balance 0 debt 20
    """)


def test_a_charge_above_its_hold_comes_before_the_debt(tell: Tell) -> None:
    tell("""
        bring alice 50 pay_1           |
        authorize r1 alice 20c         |
        authorize r2 alice 20c         |
        bring alice 0 pay_1 refund     | balance 40 debt 40
        settle r1 25c                  | charged 20c shortfall 5c balance 20 debt 40
        release r2                     | balance 0 debt 20
    """)


def test_a_crash_pays_the_debt_too(tell: Tell) -> None:
    tell("""
        bring alice 50 pay_1           |
        authorize r1 alice 50c         |
        bring alice 0 pay_1 refund     | balance 50 debt 50
        restart                        |
        recover                        | given_back 1
        show alice                     | balance 0 debt 0
    """)


def test_a_due_belongs_to_one_account_and_has_a_sensible_target(tell: Tell) -> None:
    tell("""
        bring alice 50 pay_1           |
        bring bob 50 pay_1             | error another account
        bring alice -1 pay_1           | error no target
        bring alice 100000000001 pay_1 | error no target
        show alice                     | balance 50
    """)
