"""A Stripe of our own: the real protocol for what a gateway uses, with money that does not exist.

    python -m goosestack.demo.stripe --port 12111 --webhook http://127.0.0.1:3000/billing/webhook --secret whsec_…

It powers `goosestack serve --demo` and the tests: point STRIPE_API_BASE at it. The API is that of version
2026-10-28.endive: forms with nested keys, `Authorization: Bearer sk_test_…`, idempotency keys, error envelopes, lists
with pages, `expand[]`. It is strict: whatever it does not know, it refuses. All state is in memory. Webhooks go to
`--webhook`, signed with `--secret`, and to every endpoint made by `POST /v1/webhook_endpoints`.

A checkout's `url` is a page of this program: it says that no money moves, and has a button to pay and one to cancel.
The portal's page cancels or resumes a subscription. Receipts and invoices have a page each. The price of a subscription
changes by `POST /v1/subscriptions/{id}` with `items` and `proration_behavior`, to one of the same interval; where that
would leave Stripe owing money, it is refused.

Control
=======

Under `/_control`, JSON in (content type application/json; no body is an empty object) and JSON out, no credentials.
Nonsense is a 400, an unknown id a 404, both `{"error": "…"}`. Fields that are not named here are refused.

An **action** answers `{"object": …, "events": [{"id", "type"}, …]}`: what it changed, and the events that it caused,
in order. It answers after the first attempt to deliver them, so that a test need not wait; with `"wait": false` in
its body it answers at once. Amounts are cents, times Unix seconds of the fake's clock.

Checkouts, `POST /_control/checkouts/{cs}/…`

    pay      {"method": "card"}   paid at once. The card is saved where the checkout asked for that.
             {"method": "bank"}   completed but unpaid, until `succeed` or `fail`
             {"card": "card_declined"}   the attempt fails as with a card of that behaviour: the checkout stays open,
                                  and the object in the answer has the error's code as `_declined`
             {"email": "a@example.com"}  what the customer types where the checkout knows no e-mail
    succeed, fail                 the end of a bank payment
    expire

Payments, `POST /_control/payments/{id}/…`, where the id is of a payment intent, a charge, a checkout or an invoice

    refund   {"amount": 300}      absent: all that is left. {"status": "succeeded" | "pending" | "failed"}: a failed
                                  one is first made, then fails, which gives back what it took
    dispute  {"amount", "reason", "withdraw": true, "inquiry": false}   opens one; funds are withdrawn unless told
                                  otherwise, and never for an inquiry
    succeed, fail                 the end of a payment intent that is `processing`

Refunds, `POST /_control/refunds/{re}/…`

    succeed                       of a pending one
    fail     {"kept": true}       of a pending or succeeded one. The charge's amount_refunded goes back, unless it is
                                  kept: whether Stripe does that is not documented, so a reader must bear both

Disputes, `POST /_control/disputes/{dp}/…`

    withdraw                      the funds of one opened with "withdraw": false
    close    {"status": "won" | "lost" | "warning_closed", "reinstate": true}   won gives the funds back, unless told
                                  otherwise
    reinstate                     the funds come back, whatever its status

Customers, `POST /_control/customers/{cus}/…`

    card     {"behaviour": "ok"}  how every card of the customer behaves from now on; one is added where there is none.
                                  One of: ok, processing, card_declined, insufficient_funds, expired_card,
                                  processing_error, authentication_required
    detach                        every card is removed

Subscriptions, `POST /_control/subscriptions/{sub}/…`

    renew    {"outcome": "paid" | "failed"}   the next period begins, wherever the clock is. Absent: as the card
                                  behaves. Failed: past_due, invoice.payment_failed
    retry    {"outcome"}          another attempt at its open invoice
    cancel   {"at_period_end": false}
    status   {"status": "unpaid"}  any status, and customer.subscription.updated

The clock, which runs with the real one, ahead by what it was moved

    GET  /_control/clock          {"now": 1790000000}
    POST /_control/clock          {"advance_s": 3600} or {"now": …}, forward only. An action, whose "object" is the
                                  clock: checkouts expire, subscriptions renew or end, delayed webhooks and retries are
                                  delivered, each at its time and in that order

Objects, as the fake holds them: the truth, in the new shape (`_…` fields are its own)

    GET  /_control/objects?type=checkout.session    {"data": [oldest, …]}; without `type`: all
    GET  /_control/objects/{id}
    POST /_control/objects/{id}/edit   {"set": {"amount_total": 1, "metadata.order": "x"}, "unset": ["customer"],
                                  "event": "checkout.session.completed"}   an action: lies from now on, in answers and
                                  in later events, while the fake itself goes on by the truth; with "event" it sends one
                                  of that type. Edit before `pay` to have a whole payment with one field wrong
    POST /_control/events         {"type": "invoice.paid", "object": id or object, "livemode": false, "created": …}
                                  an action: any event about anything
    POST /_control/reset          everything is forgotten but where webhooks go; the clock is the real one again

What was asked of the API

    GET    /_control/requests     {"data": [{"seq", "at", "method", "path", "params", "idempotency_key", "version",
                                  "status", "replayed", "fault", "request_id", "error"}, …]}, oldest first;
                                  "status" is null while it is being answered, and where the connection was cut.
                                  ?path=/v1/refunds and ?method=POST choose
    DELETE /_control/requests     forgets them

Webhooks

    GET  /_control/delivery       the settings. POST changes those it names and answers all. DELETE: as at the start
        mode       "normal", "hold" (kept until `deliver`), "drop" (never sent: found by delivery_success=false)
        copies     1     every event is posted so many times
        at_once    false  all that is due is posted in parallel, not one after the other
        shuffle    null   a seed: what is due together is sent in an order of its own
        delay_s    0     on the fake's clock
        shape      "new"  or "old": the account's API version (2025-02-24.acacia), for `--webhook` and for /v1/events.
                          An endpoint that pins a version keeps it
        types      null   only these types are delivered to `--webhook`; null: all
        secrets    null   sign with these, one v1 each, in place of the endpoint's own; [] sends no signature at all
        scheme     "v1"   the name under which signatures are sent
        age_s      0     the signature's timestamp is so old (negative: of the future). It is of the real clock
    POST /_control/deliver        {"events": [id, …], "types": […], "copies": 1, "at_once": false, "shuffle": seed}
                                  now, whatever became of them before: the given ones in the given order (an id may be
                                  repeated), or those of the given types, or without either all that are not delivered
                                  yet, oldest first. Answers {"deliveries": [as below]}
    GET  /_control/deliveries     {"data": [{"event", "type", "endpoint", "at", "status", "body", "error"}, …]}: every
                                  attempt, oldest first; "status" is null where there was no answer
    POST /_control/settle         answers {} when nothing is due or on its way
    POST /_control/webhook        {"url", "secret"}: where `--webhook` points from now on; a null url: nowhere

An attempt that is not answered with a 2xx within 10 s is repeated after 5 s, 1 min, 5 min, 30 min, 2 h, 5 h, 10 h,
then every 12 h, for three days of the fake's clock.

Faults of the API, `GET`, `POST` (adds one; they are used up in order) and `DELETE /_control/faults`

    {"kind": …, "method": "POST", "path": "/v1/refunds", "times": 1, "skip": 0, "seconds": 30, "set": {…}}

    path may end in `*`; without it, and without method, every request is meant. Kinds:
    error_429, error_409, error_500, error_503   refused before it has any effect
    error_500_after    it has its effect, the answer is a 500, and so is every replay of its idempotency key
    cut, cut_after     the connection is reset before, or after, the effect; a replay then has the true answer
    hang, hang_after   no answer for `seconds`, before or after the effect; the idempotency key is in use meanwhile
    not_json           it has its effect, the answer is a web page under a 200
    lie                the answer has the fields of `set` in place of its own ("amount_total", "data.0.amount")
"""

from goosestack.demo.stripe.control import VERBS
from goosestack.demo.stripe.faults import KINDS as FAULTS
from goosestack.demo.stripe.server import make_app, start
from goosestack.demo.stripe.till import Till

__all__ = ["FAULTS", "VERBS", "Till", "make_app", "start"]
