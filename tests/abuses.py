"""The abuses that this gateway is built against, each by a name, with the tests that hold it off.

What is `sent` is sent by the proof `bad-input`, too: each of its cases (`tests/bad_input.py`) bears the name of the
abuse that it is one of. `tests/test_abuses.py` sees that every test exists, and that every case belongs somewhere.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Abuse:
    """What somebody tries, and the tests that try it, by their names with blanks between."""

    what: str
    tests: str
    sent: bool = False
    """Whether the proof `bad-input` tries it, too."""


ROUTING = {
    "R1": Abuse(
        "a field of the body that names another place, or another key for it",
        "test_no_field_of_the_body_chooses_another_upstream_or_credential",
        sent=True,
    ),
    "R2": Abuse(
        "the same, deeper in the body or in a list",
        "test_what_is_hidden_deeper_in_the_body_goes_to_the_provider_as_it_is_and_routes_nothing",
        sent=True,
    ),
    "R3": Abuse(
        "headers that other gateways are steered by, or that reach into the operator's account",
        """test_of_the_callers_headers_nothing_reaches_the_provider
        test_anthropics_own_headers_pass_but_for_those_that_reach_into_the_operators_account
        test_a_beta_that_unbounds_the_cost_is_refused_however_it_is_written""",
        sent=True,
    ),
    "R4": Abuse(
        "a provider that sends the daemon elsewhere",
        "test_a_redirect_of_the_provider_is_not_followed_and_costs_nothing",
    ),
    "R5": Abuse(
        "an image or a document at an address of the inside",
        """test_an_image_that_lies_nowhere_public_is_refused test_so_is_a_document
        test_a_public_image_is_left_to_the_provider_to_fetch""",
        sent=True,
    ),
    "R6": Abuse(
        "a provider without a key of the operator's, who could be sent the caller's",
        """test_neither_a_proxy_variable_nor_an_unset_key_nor_a_router_leads_astray
        test_without_an_own_key_nothing_is_sold_where_the_operator_has_none""",
    ),
    "R7": Abuse(
        "somebody's own key, used for somebody else",
        "test_an_own_key_goes_with_its_owners_request_and_with_no_other",
    ),
    "R8": Abuse(
        "an own key, sent to a provider that it is not of",
        "test_an_own_key_never_reaches_a_provider_that_it_is_not_of",
    ),
    "R9": Abuse(
        "an own key of who may not bring one, or no more",
        """test_who_is_not_pro_is_refused_and_never_charged_instead
        test_whoever_is_not_pro_or_no_longer_is_gets_a_403_and_is_never_charged_instead""",
        sent=True,
    ),
    "R10": Abuse(
        "an own key that stays somewhere after its request",
        "test_whatever_fails_an_own_key_is_in_no_error_log_database_or_backup",
    ),
    "R11": Abuse(
        "an own key that is named as a header of the connection",
        "test_an_own_key_that_is_named_as_a_header_of_the_connection_counts_all_the_same",
    ),
    "R12": Abuse(
        "an own key that is no key, or more than one header",
        """test_what_is_no_key_is_a_bad_request_and_never_charged_instead
        test_a_key_that_could_split_a_header_is_not_even_read""",
        sent=True,
    ),
    "R13": Abuse(
        "a proxy in the environment",
        "test_neither_a_proxy_variable_nor_an_unset_key_nor_a_router_leads_astray",
    ),
    "R14": Abuse(
        "a provider whose errors tell of the operator's key and account",
        """test_no_error_of_the_provider_tells_whose_account_it_is
        test_neither_does_an_error_in_the_middle_of_a_stream test_neither_does_a_good_answer""",
    ),
}

IDENTITY = {
    "A1": Abuse(
        "a credential that is a statement, or anything else but a key",
        "test_what_is_no_key_opens_nothing test_what_does_not_look_like_a_key_never_meets_the_database",
        sent=True,
    ),
    "A2": Abuse(
        "a second credential beside the first",
        "test_two_credentials_that_differ_are_a_conflict_and_never_a_choice",
        sent=True,
    ),
    "A3": Abuse(
        "a credential that is remembered for another, or for longer than it is good",
        """test_a_revoked_key_opens_nothing_from_the_next_request_on_and_its_sister_still_does
        test_a_token_that_is_remembered_expires_all_the_same""",
    ),
    "A4": Abuse("keys out of the database", "test_of_a_key_the_database_has_a_hash_and_twelve_characters"),
    "A5": Abuse(
        "a sign-up under somebody else's e-mail address",
        """test_a_sign_up_with_a_victims_email_is_a_stranger_with_nothing
        test_one_customer_is_made_for_a_user_and_never_looked_up""",
    ),
    "A6": Abuse(
        "an access token under somebody else's e-mail address",
        "test_a_user_keeps_their_account_under_another_e_mail_and_nobody_gets_one_by_it",
    ),
    "A7": Abuse(
        "sign-ups by the thousand",
        """test_sign_ups_from_one_network_are_bounded_and_so_are_their_rows
        test_whoever_closed_the_door_opens_it_to_nobody""",
        sent=True,
    ),
    "A8": Abuse(
        "an e-mail address that is none, or looks like another",
        """test_an_email_is_one_line_with_one_at_and_of_bounded_length
        test_emails_that_look_alike_are_labels_of_different_users""",
        sent=True,
    ),
    "A9": Abuse(
        "a column of the database, set by its name",
        "test_nobody_assigns_what_is_not_theirs_by_naming_a_column",
        sent=True,
    ),
    "A10": Abuse(
        "an access token that the project did not make, or not for this",
        """test_what_is_no_good_token_of_a_user_is_refused_on_every_route
        test_a_flood_of_unknown_keys_has_them_fetched_hardly_ever_and_a_user_does_not_notice""",
        sent=True,
    ),
    "A11": Abuse("a project's secret that can be guessed", "test_the_settings_of_a_project_go_together"),
    "A12": Abuse(
        "the operator's doors, tried by anybody",
        """test_there_is_no_way_in_for_operators_over_http
        test_what_is_for_the_operator_opens_to_the_token_and_to_the_machine_itself""",
        sent=True,
    ),
    "A13": Abuse(
        "the ids of what belongs to others",
        """test_the_ids_of_others_keys_and_holds_are_not_found test_mallory_finds_nothing_under_the_ids_of_alice
        test_nobody_sees_or_uses_what_others_bought""",
        sent=True,
    ),
    "A14": Abuse(
        "a search that costs the database more than it is worth",
        "test_a_query_of_usage_is_taken_as_it_is_meant_or_refused",
        sent=True,
    ),
}

PRICE = {
    "P1": Abuse(
        "a model that has no price, or nearly the name of one that has",
        "test_a_model_without_a_price_is_not_found_and_not_asked",
        sent=True,
    ),
    "P2": Abuse(
        "a price that is none", "test_a_price_that_is_no_price_is_refused test_a_daemon_does_not_start_with_such_prices"
    ),
    "P3": Abuse(
        "a key that stands twice in the body",
        "test_a_key_that_stands_twice_is_refused_at_every_depth",
        sent=True,
    ),
    "P4": Abuse(
        "a number or a truth that is read in more than one way",
        """test_a_number_that_is_priced_by_is_a_plain_integer_within_reason test_stream_is_true_or_false
        test_a_cap_is_a_whole_number_of_cents""",
        sent=True,
    ),
    "P5": Abuse("a body that is too deep to be read", "test_a_body_is_nested_64_levels_deep_and_no_deeper", sent=True),
    "P6": Abuse(
        "a body in another encoding, or of no characters",
        """test_a_body_is_utf_8_without_a_mark_and_without_half_characters
        test_what_is_no_json_object_is_refused""",
        sent=True,
    ),
    "P7": Abuse("an answer without a bound", "test_an_output_cap_that_was_not_named_follows_from_what_can_be_held"),
    "P8": Abuse("two bounds that differ", "test_of_two_caps_the_larger_is_held_for"),
    "P9": Abuse(
        "more answers than one",
        """test_every_answer_that_is_asked_for_is_held_for
        test_what_multiplies_the_output_or_is_billed_beside_it_is_refused""",
    ),
    "P10": Abuse(
        "a dearer tier",
        """test_a_tier_is_always_sent_and_held_at_its_price test_a_call_costs_what_the_tier_costs_that_served_it
        test_anthropics_tier_speed_and_place_are_sent_or_refused""",
        sent=True,
    ),
    "P11": Abuse(
        "tools that the provider runs, and charges for",
        """test_tools_that_the_provider_would_run_are_refused_by_name
        test_the_one_tool_that_may_run_there_is_held_for_and_capped_at_five_calls""",
        sent=True,
    ),
    "P12": Abuse(
        "what is written to a cache",
        """test_what_is_written_to_a_cache_costs_by_how_long_it_stays_there
        test_whoever_asks_for_the_longer_cache_is_held_at_its_price""",
    ),
    "P13": Abuse("more from the cache than there was", "test_more_cached_than_read_is_never_less_than_nothing"),
    "P14": Abuse(
        "a request so long that its price is another",
        "test_one_token_more_than_the_threshold_makes_the_whole_call_dearer",
    ),
    "P15": Abuse(
        "input that lies with the provider, unseen",
        """test_what_stands_for_input_that_cannot_be_seen_is_refused
        test_nothing_is_stored_with_the_provider_whatever_the_caller_says""",
        sent=True,
    ),
    "P16": Abuse(
        "a stream that is not to tell what was used",
        "test_usage_is_asked_for_in_every_stream_whatever_the_caller_says",
    ),
    "P17": Abuse(
        "a provider that reports nonsense as used",
        """test_a_usage_that_is_lost_or_absurd_is_estimated_and_the_bill_is_not_lost
        test_a_usage_that_is_repeated_counts_once_and_a_falling_one_not_at_all""",
    ),
    "P18": Abuse(
        "thoughts, sounds, pictures and pages that are paid for beside the text",
        """test_what_multiplies_the_output_or_is_billed_beside_it_is_refused test_no_image_is_more_than_its_models_cap
        test_a_document_costs_as_much_inside_what_a_tool_gave_back""",
    ),
    "P19": Abuse(
        "what is free to ask for here, and costs something there",
        "test_what_is_not_sold_is_not_found_and_not_asked test_counting_is_no_estimate",
        sent=True,
    ),
    "P20": Abuse("a request that is sent again by us", "test_what_the_provider_has_read_is_never_sent_again"),
    "P21": Abuse(
        "many calls of less than a cent",
        "test_the_sum_rounds_up_and_not_each_call test_many_small_calls_bill_the_sum_rounded_up_and_not_each_call",
    ),
    "P22": Abuse(
        "an answer that costs more than was held",
        "test_a_charge_above_the_hold_takes_what_there_is_and_never_more",
    ),
}

DENIAL = {
    "D1": Abuse(
        "the last cent, spent many times at once",
        """test_of_200_at_once_exactly_as_many_succeed_as_the_rest_covers test_every_grain_counts_at_the_gate
        test_requests_without_a_cap_share_what_there_is""",
    ),
    "D2": Abuse(
        "leaving before it is told what was used",
        """test_whoever_leaves_before_the_usage_comes_pays_all_the_same
        test_whoever_goes_after_any_frame_has_been_billed""",
    ),
    "D3": Abuse(
        "an answer that nobody waits for any more, and that goes on being written",
        "test_an_answer_that_is_given_up_because_it_takes_too_long_costs_all_that_it_could",
    ),
    "D4": Abuse("a caller who does not read", "test_whoever_reads_nothing_stops_the_provider_and_not_the_daemon"),
    "D5": Abuse(
        "a head or a body that comes by the drop",
        """test_bodies_that_do_not_come_are_given_up_and_take_no_room
        test_a_full_body_on_a_slow_link_arrives_in_time_and_a_trickle_does_not""",
    ),
    "D6": Abuse("a body without end", "test_a_body_beyond_the_limit_is_refused_declared_or_not", sent=True),
    "D7": Abuse("headers without end", "test_too_many_or_too_long_headers_are_refused", sent=True),
    "D8": Abuse(
        "one request that is two to whoever stands behind",
        "test_a_request_that_could_be_read_as_two_is_read_as_none",
        sent=True,
    ),
    "D9": Abuse("a body that is packed", "test_a_body_is_plain_json_by_its_type_and_encoding", sent=True),
    "D10": Abuse(
        "an answer that is packed, endless or broken",
        """test_a_monstrous_or_broken_answer_is_a_502_or_an_error_frame
        test_an_answer_without_end_is_cut_and_settled""",
    ),
    "D11": Abuse("text that is hard to count", "test_text_that_is_hard_to_count_is_bounded_by_its_bytes"),
    "D12": Abuse("text with the signs that only models write", "test_special_tokens_in_a_text_are_text"),
    "D13": Abuse(
        "leaving a stream that never pauses",
        "test_whoever_resets_a_stream_of_very_many_frames_does_not_stop_the_others",
    ),
    "D14": Abuse(
        "an address that is made up",
        """test_a_stranger_is_counted_once_however_many_addresses_it_has
        test_a_peer_that_is_no_proxy_chooses_no_address test_believing_everybody_is_no_setting""",
        sent=True,
    ),
    "D15": Abuse(
        "asking without a pause, or all at once",
        """test_a_key_is_counted_wherever_it_comes_from
        test_more_than_so_many_requests_of_one_user_at_once_wait_and_nobody_else_does""",
        sent=True,
    ),
    "D16": Abuse("connections that do nothing", "test_idle_sockets_keep_nobody_out"),
    "D17": Abuse(
        "answers of ours that are long, or packed together with secrets",
        """test_usage_is_read_in_pages
        test_no_answer_says_what_it_was_made_with_or_is_packed_together_with_secrets""",
    ),
    "D18": Abuse(
        "an odd first line, or host",
        """test_an_odd_request_line_is_refused_and_never_a_fault
        test_nothing_depends_on_the_host_that_the_caller_names""",
        sent=True,
    ),
    "D19": Abuse(
        "a body of a type that pages may send", "test_a_body_is_plain_json_by_its_type_and_encoding", sent=True
    ),
    "D20": Abuse("a thousand ranges of an answer", "test_a_range_of_an_answer_is_all_of_it"),
}

TILL = {
    "B1": Abuse(
        "a webhook that Stripe did not sign",
        """test_a_forged_or_damaged_webhook_is_a_400_without_detail_and_nothing_is_stored
        test_without_a_webhook_secret_there_is_no_webhook_and_nothing_is_sold""",
    ),
    "B2": Abuse(
        "a webhook that nobody can read",
        """test_what_was_signed_and_cannot_be_taken_is_kept_for_review_and_never_a_500
        test_what_is_signed_and_no_utf_8_is_refused""",
    ),
    "B3": Abuse(
        "an event that is told again and again", "test_the_same_event_delivered_fifty_times_at_once_grants_once"
    ),
    "B4": Abuse("events in any order", "test_all_720_orders_of_six_events_end_in_the_same_rows"),
    "B5": Abuse(
        "a purchase that is done and not paid for",
        """test_a_bank_payment_is_granted_when_it_succeeds_and_not_before
        test_a_bank_payment_that_fails_grants_nothing_and_is_told""",
    ),
    "B6": Abuse(
        "another amount, currency or buyer than was sold to",
        "test_every_field_of_a_checkout_that_is_altered_grants_nothing_and_waits_for_review",
    ),
    "B7": Abuse(
        "a payment of another shop, or of play money",
        """test_an_event_of_somebody_elses_payment_is_ignored
        test_an_event_of_live_mode_does_nothing_under_a_test_key""",
    ),
    "B8": Abuse(
        "credits that stay when the money goes back",
        """test_a_dispute_takes_the_credits_and_its_end_gives_them_back
        test_a_payment_is_worth_between_nothing_and_what_was_sold test_who_owes_something_is_admitted_nowhere""",
    ),
    "B9": Abuse(
        "a subscription that is not paid, or another",
        """test_an_invoice_for_another_price_makes_nobody_pro test_a_prorated_line_and_a_trial_make_nobody_pro
        test_a_late_end_of_an_older_subscription_changes_nothing""",
    ),
    "B10": Abuse("a page of somebody else's to return to", "test_nobody_chooses_where_a_buyer_is_sent_or_what_is_paid"),
    "B11": Abuse("checkouts by the hundred", "test_a_hundred_checkouts_make_at_most_five_at_stripe"),
    "B12": Abuse("webhooks by the thousand", "test_a_flood_of_junk_at_the_webhook_delays_nobody"),
    "B13": Abuse(
        "events that never came, or under the secret before",
        "test_what_no_webhook_told_is_asked_for test_two_secrets_hold_while_one_replaces_the_other",
    ),
    "B14": Abuse(
        "a copy from before the purchase, restored", "test_a_backup_that_had_not_seen_a_payment_is_granted_it_once"
    ),
}

VOUCHERS = {
    "V1": Abuse(
        "a voucher that is used many times at once",
        "test_the_same_voucher_a_hundred_times_at_once_is_served_once",
    ),
    "V2": Abuse(
        "a voucher for less than the answer costs",
        "test_the_output_is_capped_to_what_the_voucher_pays_for",
        sent=True,
    ),
    "V3": Abuse("a channel that is over", "test_a_channel_that_expires_by_the_chains_clock_is_not_served"),
    "V4": Abuse(
        "a voucher from before the books were lost",
        "test_after_a_loss_of_everything_what_was_claimed_buys_nothing_again",
    ),
    "V5": Abuse(
        "a signature that the chain would not take",
        "test_a_signature_that_could_not_be_claimed_buys_nothing",
        sent=True,
    ),
    "V6": Abuse(
        "a voucher that is written oddly",
        "test_a_malformed_header_is_told_so_and_nothing_else test_no_header_is_more_than_malformed",
        sent=True,
    ),
    "V7": Abuse(
        "a contract whose terms are, or become, others",
        """test_other_terms_than_the_operators_are_refused
        test_terms_that_change_for_the_worse_end_the_serving""",
    ),
    "V8": Abuse(
        "a node that is down, or lies",
        """test_nodes_that_fail_are_a_503_and_never_a_guess
        test_nodes_that_contradict_each_other_are_not_believed""",
    ),
    "V9": Abuse(
        "a voucher of somebody else, or for something else",
        """test_what_is_wrong_with_a_channel_is_told_by_its_code
        test_a_signature_is_good_for_what_dave_signed_alone""",
        sent=True,
    ),
    "V10": Abuse("the operator's claims, seen by anybody", "test_without_the_token_nothing_of_it_is_shown"),
}

LEAKS = {
    "L1": Abuse(
        "secrets in what is written down",
        """test_neither_what_was_asked_nor_what_was_answered_is_written_down
        test_metrics_and_logs_hold_no_key_no_prompt_and_no_path_of_a_strangers_making""",
    ),
    "L2": Abuse("lines of the log that a caller writes", "test_no_caller_writes_the_log"),
    "L3": Abuse(
        "a key in an address",
        "test_a_key_counts_in_no_other_place_than_the_two_headers test_a_key_in_a_path_is_not_repeated",
        sent=True,
    ),
    "L4": Abuse(
        "a database that others can read",
        """test_every_file_of_the_daemon_is_its_owners_alone_even_where_the_umask_is_open
        test_no_start_on_a_database_that_others_can_read""",
    ),
    "L5": Abuse(
        "a copy that others can read",
        """test_nobody_else_can_read_what_a_service_writes
        test_every_file_of_the_daemon_is_its_owners_alone_even_where_the_umask_is_open""",
    ),
    "L6": Abuse(
        "a page of somebody else's that asks with what the browser has",
        """test_only_the_listed_origins_may_read_an_answer_and_none_with_cookies
        test_where_every_origin_may_ask_none_is_answered_with_credentials test_an_origin_that_is_none_is_no_setting""",
    ),
    "L7": Abuse(
        "what the daemon is made with, told to everybody",
        "test_no_answer_says_what_it_was_made_with_or_is_packed_together_with_secrets",
    ),
    "L8": Abuse("a package that is another than was tried", "test_every_package_is_pinned_to_a_version_and_its_hashes"),
    "L9": Abuse(
        "secrets in the environment",
        "test_secrets_leave_the_environment_once_they_are_read test_no_secret_is_handed_over_in_the_environment",
    ),
}

ABUSES: dict[str, Abuse] = ROUTING | IDENTITY | PRICE | DENIAL | TILL | VOUCHERS | LEAKS


def unheld(abuses: Mapping[str, Abuse], tests: Collection[str], sent: Collection[str]) -> Iterator[str]:
    """What is said here and is not so, a sentence each; `tests` are those that there are, `sent` the names of abuses
    that are sent."""
    for name, abuse in abuses.items():
        there = abuse.tests.split()
        if not there:
            yield f"{name}, {abuse.what}: no test holds it off"
        for test in there:
            if test not in tests:
                yield f"{name}, {abuse.what}: there is no {test}"
        if abuse.sent != (name in sent):
            yield f"{name}, {abuse.what}: {'not sent, as was said' if abuse.sent else 'sent, and nothing says so'}"
    yield from (f"{name} is sent, and is no abuse" for name in sorted(set(sent) - abuses.keys()))
