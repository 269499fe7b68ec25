"""The schema, as steps that are only ever appended to. A database's version is the number of steps it has had.

Amounts name their unit: `balance` and `entries.amount` count the account's unit (cents for `usd_cents`),
`carry`, `held`, `quote`, `charged`, `shortfall` and `progress` count grains (a 10,000,000th of a cent, which
is a nanodollar; a 1,000th of a micro-USDC; a token). Times are UTC, ISO 8601, milliseconds, `Z`.
"""

from __future__ import annotations

MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE users (
        id                 TEXT PRIMARY KEY,
        email              TEXT NOT NULL,
        stripe_customer_id TEXT UNIQUE,
        pro_until          TEXT,
        created_at         TEXT NOT NULL
    ) STRICT;
    CREATE INDEX users_by_email ON users (email);

    CREATE TABLE api_keys (
        id         TEXT PRIMARY KEY,
        key_hash   TEXT NOT NULL UNIQUE,
        key_prefix TEXT NOT NULL,
        user_id    TEXT NOT NULL REFERENCES users (id),
        name       TEXT NOT NULL,
        revoked    INTEGER NOT NULL DEFAULT 0 CHECK (revoked IN (0, 1)),
        created_at TEXT NOT NULL
    ) STRICT;
    CREATE INDEX api_keys_by_user ON api_keys (user_id);
    CREATE INDEX api_keys_by_prefix ON api_keys (key_prefix);

    CREATE TABLE accounts (
        id         INTEGER PRIMARY KEY,
        user_id    TEXT NOT NULL REFERENCES users (id),
        unit       TEXT NOT NULL,
        ref        TEXT NOT NULL DEFAULT '',
        grain      INTEGER NOT NULL,
        balance    INTEGER NOT NULL DEFAULT 0 CHECK (balance BETWEEN 0 AND 100000000000),
        carry      INTEGER NOT NULL DEFAULT 0,
        held       INTEGER NOT NULL DEFAULT 0 CHECK (held >= 0),
        updated_at TEXT NOT NULL,
        UNIQUE (user_id, unit, ref),
        CHECK (carry >= 0 AND carry < grain),
        CHECK (grain = CASE unit WHEN 'usd_cents' THEN 10000000 WHEN 'usdc_micro' THEN 1000 WHEN 'tokens' THEN 1 END),
        CHECK (balance * grain + carry >= held)
    ) STRICT;

    CREATE TABLE entries (
        seq        INTEGER PRIMARY KEY,
        id         TEXT NOT NULL UNIQUE,
        account_id INTEGER NOT NULL REFERENCES accounts (id),
        kind       TEXT NOT NULL CHECK (kind IN ('topup', 'grant', 'refund', 'reversal', 'adjustment')),
        ref        TEXT NOT NULL,
        amount     INTEGER NOT NULL CHECK (amount <> 0),
        note       TEXT NOT NULL DEFAULT '',
        created_at TEXT NOT NULL,
        UNIQUE (kind, ref)
    ) STRICT;
    CREATE INDEX entries_by_account ON entries (account_id, seq);

    CREATE TABLE processes (
        id         INTEGER PRIMARY KEY,
        version    TEXT NOT NULL,
        started_at TEXT NOT NULL
    ) STRICT;

    CREATE TABLE usage_log (
        id                      TEXT PRIMARY KEY,
        user_id                 TEXT NOT NULL REFERENCES users (id),
        key_id                  TEXT REFERENCES api_keys (id),
        account_id              INTEGER REFERENCES accounts (id),
        unit                    TEXT,
        process_id              INTEGER NOT NULL REFERENCES processes (id),
        wire                    TEXT NOT NULL,
        provider                TEXT NOT NULL,
        model                   TEXT NOT NULL,
        status                  TEXT NOT NULL CHECK (status IN ('held', 'settled', 'released')),
        reason                  TEXT NOT NULL DEFAULT '',
        quote                   INTEGER NOT NULL CHECK (quote >= 0),
        held                    INTEGER NOT NULL CHECK (held >= 0 AND held <= quote),
        progress                INTEGER CHECK (progress >= 0),
        charged                 INTEGER NOT NULL DEFAULT 0,
        billed                  INTEGER NOT NULL DEFAULT 0,
        cost_cents              INTEGER NOT NULL DEFAULT 0,
        cost_nanos              INTEGER NOT NULL DEFAULT 0,
        shortfall               INTEGER NOT NULL DEFAULT 0 CHECK (shortfall >= 0),
        estimated               INTEGER NOT NULL DEFAULT 0 CHECK (estimated IN (0, 1)),
        input_tokens            INTEGER NOT NULL DEFAULT 0,
        output_tokens           INTEGER NOT NULL DEFAULT 0,
        cache_read_tokens       INTEGER NOT NULL DEFAULT 0,
        cache_write_tokens      INTEGER NOT NULL DEFAULT 0,
        cache_write_long_tokens INTEGER NOT NULL DEFAULT 0,
        input_audio_tokens      INTEGER NOT NULL DEFAULT 0,
        output_audio_tokens     INTEGER NOT NULL DEFAULT 0,
        reasoning_tokens        INTEGER NOT NULL DEFAULT 0,
        web_searches            INTEGER NOT NULL DEFAULT 0,
        settled_seq             INTEGER UNIQUE,
        created_at              TEXT NOT NULL,
        ended_at                TEXT,
        CHECK ((status = 'settled') = (settled_seq IS NOT NULL)),
        CHECK ((status = 'held') = (ended_at IS NULL)),
        CHECK (status = 'settled' OR (charged = 0 AND billed = 0 AND shortfall = 0)),
        CHECK (cost_cents = CASE unit WHEN 'usd_cents' THEN billed ELSE 0 END),
        CHECK (account_id IS NOT NULL OR (held = 0 AND charged = 0 AND billed = 0))
    ) STRICT;
    CREATE INDEX usage_log_by_user ON usage_log (user_id, id);
    CREATE INDEX usage_log_open ON usage_log (user_id) WHERE status = 'held';

    CREATE TABLE statements (
        account_id  INTEGER PRIMARY KEY REFERENCES accounts (id),
        entry_seq   INTEGER NOT NULL,
        settled_seq INTEGER NOT NULL,
        entered     INTEGER NOT NULL,
        billed      INTEGER NOT NULL,
        charged     INTEGER NOT NULL,
        verified_at TEXT NOT NULL
    ) STRICT;

    CREATE VIEW credits AS
        SELECT user_id, balance AS balance_cents, updated_at
        FROM accounts WHERE unit = 'usd_cents' AND ref = '';
    """,
    """
    -- Debt: what must still be taken back of what was posted for a ref, because it had been spent (units).
    ALTER TABLE accounts ADD COLUMN debt INTEGER NOT NULL DEFAULT 0 CHECK (debt >= 0);
    ALTER TABLE entries ADD COLUMN cause TEXT;
    CREATE INDEX entries_by_cause ON entries (cause) WHERE cause IS NOT NULL;

    CREATE TABLE dues (
        seq        INTEGER PRIMARY KEY,
        ref        TEXT NOT NULL UNIQUE,
        account_id INTEGER NOT NULL REFERENCES accounts (id),
        kind       TEXT NOT NULL,
        target     INTEGER NOT NULL CHECK (target >= 0),
        posted     INTEGER NOT NULL DEFAULT 0,
        entries    INTEGER NOT NULL DEFAULT 0,
        CHECK (posted >= target)
    ) STRICT;
    CREATE INDEX dues_owed ON dues (account_id, seq) WHERE posted > target;
    """,
    """
    -- What customers buy, and what Stripe said of it. Amounts are cents.
    ALTER TABLE users ADD COLUMN pro_given TEXT;  -- by the operator
    ALTER TABLE users ADD COLUMN pro_paid TEXT;   -- by subscriptions; pro_until is the later of the two
    UPDATE users SET pro_given = pro_until;

    CREATE TABLE payments (
        id              TEXT PRIMARY KEY,
        user_id         TEXT NOT NULL REFERENCES users (id),
        kind            TEXT NOT NULL CHECK (kind IN ('credits', 'pro', 'auto')),
        amount          INTEGER NOT NULL CHECK (amount >= 0),
        granted         INTEGER NOT NULL CHECK (granted >= 0),
        price_id        TEXT,
        livemode        INTEGER NOT NULL CHECK (livemode IN (0, 1)),
        status          TEXT NOT NULL,
        refunded        INTEGER NOT NULL DEFAULT 0,
        disputed        INTEGER NOT NULL DEFAULT 0,
        failure         TEXT,
        checkout_id     TEXT UNIQUE,
        intent_id       TEXT UNIQUE,
        subscription_id TEXT UNIQUE,
        url             TEXT,
        receipt_url     TEXT,
        expires_at      TEXT,
        created_at      TEXT NOT NULL,
        updated_at      TEXT NOT NULL
    ) STRICT;
    CREATE INDEX payments_by_user ON payments (user_id, id);

    CREATE TABLE payment_requests (
        user_id    TEXT NOT NULL REFERENCES users (id),
        key        TEXT NOT NULL,
        payment_id TEXT NOT NULL REFERENCES payments (id),
        created_at TEXT NOT NULL,
        PRIMARY KEY (user_id, key)
    ) STRICT;
    CREATE INDEX payment_requests_by_age ON payment_requests (created_at);

    CREATE TABLE subscriptions (
        id         TEXT PRIMARY KEY,
        user_id    TEXT NOT NULL REFERENCES users (id),
        price_id   TEXT,
        status     TEXT NOT NULL,
        until      TEXT,
        updated_at TEXT NOT NULL
    ) STRICT;
    CREATE INDEX subscriptions_by_user ON subscriptions (user_id);

    CREATE TABLE stripe_facts (
        about  TEXT NOT NULL,
        name   TEXT NOT NULL,
        object TEXT NOT NULL,
        amount INTEGER NOT NULL,
        at     INTEGER NOT NULL,
        detail TEXT NOT NULL,
        PRIMARY KEY (about, name, object, amount, at, detail)
    ) STRICT;
    CREATE INDEX stripe_facts_by_object ON stripe_facts (name, object, about);

    -- Where a receipt or an invoice is shown, by the latest word of it: Stripe renews these addresses.
    CREATE TABLE stripe_pages (
        object TEXT PRIMARY KEY,
        about  TEXT NOT NULL,
        url    TEXT NOT NULL,
        at     INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX stripe_pages_by_about ON stripe_pages (about);

    CREATE TABLE stripe_events (
        id          TEXT PRIMARY KEY,
        type        TEXT NOT NULL,
        created     INTEGER NOT NULL,
        body        TEXT NOT NULL,
        status      TEXT NOT NULL CHECK (status IN ('applied', 'ignored', 'review', 'reviewed')),
        reason      TEXT NOT NULL DEFAULT '',
        received_at TEXT NOT NULL
    ) STRICT;
    CREATE INDEX stripe_events_by_reason ON stripe_events (reason) WHERE status IN ('review', 'reviewed');
    CREATE INDEX stripe_events_to_review ON stripe_events (id) WHERE status = 'review';
    CREATE INDEX stripe_events_with_body ON stripe_events (received_at) WHERE body <> '' AND status <> 'review';

    CREATE TABLE auto_topups (
        user_id    TEXT PRIMARY KEY REFERENCES users (id),
        enabled    INTEGER NOT NULL CHECK (enabled IN (0, 1)),
        below      INTEGER NOT NULL CHECK (below >= 0),
        amount     INTEGER NOT NULL,
        daily_cap  INTEGER NOT NULL,
        updated_at TEXT NOT NULL
    ) STRICT;
    CREATE INDEX auto_topups_enabled ON auto_topups (user_id) WHERE enabled = 1;

    -- Automatic top-ups that we began and have not brought to an end: no other payment is ever charged by us.
    CREATE TABLE attempts (
        payment_id TEXT PRIMARY KEY REFERENCES payments (id),
        step       TEXT NOT NULL CHECK (step IN ('ask', 'look', 'link')),
        tries      INTEGER NOT NULL DEFAULT 0,
        asked_at   TEXT NOT NULL,
        next_at    TEXT NOT NULL
    ) STRICT;
    CREATE INDEX attempts_due ON attempts (next_at);

    -- Of users whose customer at Stripe was deleted there.
    CREATE TABLE former_customers (
        customer TEXT PRIMARY KEY,
        user_id  TEXT NOT NULL REFERENCES users (id)
    ) STRICT;

    CREATE TABLE reconciliations (
        source TEXT PRIMARY KEY,
        until  INTEGER NOT NULL
    ) STRICT;

    -- The outbox of NOTIFY_WEBHOOK_URL.
    CREATE TABLE notices (
        id           TEXT PRIMARY KEY,
        body         TEXT NOT NULL,
        attempts     INTEGER NOT NULL DEFAULT 0,
        next_at      TEXT,
        delivered_at TEXT,
        created_at   TEXT NOT NULL
    ) STRICT;
    CREATE INDEX notices_due ON notices (next_at) WHERE next_at IS NOT NULL;
    CREATE INDEX notices_delivered ON notices (delivered_at) WHERE delivered_at IS NOT NULL;

    CREATE TABLE low_balances (
        account_id INTEGER PRIMARY KEY REFERENCES accounts (id),
        told_at    TEXT NOT NULL
    ) STRICT;
    CREATE INDEX accounts_by_balance ON accounts (balance) WHERE unit = 'usd_cents' AND ref = '';
    """,
    """
    CREATE TABLE identities (
        issuer     TEXT NOT NULL,
        subject    TEXT NOT NULL,
        user_id    TEXT NOT NULL REFERENCES users (id),
        created_at TEXT NOT NULL,
        PRIMARY KEY (issuer, subject)
    ) STRICT;
    CREATE INDEX identities_by_subject ON identities (subject);
    CREATE INDEX identities_by_user ON identities (user_id);
    """,
    """
    CREATE TABLE meter_cursors (
        sink        TEXT PRIMARY KEY,
        first_seq   INTEGER NOT NULL,
        settled_seq INTEGER NOT NULL,
        fixed_seq   INTEGER NOT NULL,
        skipped     INTEGER NOT NULL DEFAULT 0,
        failures    INTEGER NOT NULL DEFAULT 0,
        error       TEXT,
        retry_at    TEXT,
        updated_at  TEXT NOT NULL,
        CHECK (first_seq <= settled_seq AND settled_seq <= fixed_seq)
    ) STRICT;

    CREATE TABLE meter_events (
        sink     TEXT NOT NULL REFERENCES meter_cursors (sink),
        id       TEXT NOT NULL,
        user_id  TEXT NOT NULL REFERENCES users (id),
        seq      INTEGER NOT NULL,
        facts    TEXT NOT NULL,
        status   TEXT NOT NULL CHECK (status IN ('pending', 'dead')),
        reason   TEXT,
        tried_at TEXT,
        fixed_at TEXT NOT NULL,
        PRIMARY KEY (sink, id),
        CHECK ((status = 'dead') = (reason IS NOT NULL))
    ) STRICT;
    CREATE INDEX meter_events_by_status ON meter_events (sink, status, seq);

    CREATE TABLE meter_carries (
        meter     TEXT NOT NULL,
        user_id   TEXT NOT NULL REFERENCES users (id),
        since_seq INTEGER NOT NULL,
        amount    INTEGER NOT NULL,
        PRIMARY KEY (meter, user_id)
    ) STRICT;
    """,
    """
    CREATE TABLE user_plans (
        user_id    TEXT NOT NULL REFERENCES users (id),
        source     TEXT NOT NULL,
        plan       TEXT NOT NULL,
        until      TEXT,
        own_period INTEGER NOT NULL CHECK (own_period IN (0, 1)),
        updated_at TEXT NOT NULL,
        PRIMARY KEY (user_id, source, plan),
        CHECK (own_period = 0 OR until IS NOT NULL)
    ) STRICT;

    CREATE TABLE spending_caps (
        user_id    TEXT NOT NULL REFERENCES users (id),
        set_by     TEXT NOT NULL CHECK (set_by IN ('operator', 'user')),
        cents      INTEGER NOT NULL CHECK (cents >= 0),
        updated_at TEXT NOT NULL,
        PRIMARY KEY (user_id, set_by)
    ) STRICT;
    """,
    """
    -- DRAIN: channels of one contract on one chain, what their consumers have signed, and our claims of it. Amounts are
    -- micro-USDC, addresses and ids hex digits in lower case, expiry and fees as the chain counts them.
    CREATE TABLE drain_channels (
        id              INTEGER PRIMARY KEY,
        chain_id        INTEGER NOT NULL,
        contract        TEXT NOT NULL,
        channel         TEXT NOT NULL,
        account_id      INTEGER NOT NULL UNIQUE REFERENCES accounts (id),
        consumer        TEXT NOT NULL,
        deposit         INTEGER NOT NULL CHECK (deposit > 0),
        expiry          INTEGER NOT NULL,
        base            INTEGER NOT NULL CHECK (base >= 0),     -- what was claimed of vouchers that are not here
        accepted        INTEGER NOT NULL,                       -- the highest amount: base and all top-ups
        claimed         INTEGER NOT NULL CHECK (claimed >= 0),  -- by a buried block
        closing         INTEGER CHECK (closing >= 0),           -- the one amount of a signed close
        gone_at         TEXT,                                   -- when the contract had it no more
        created_at      TEXT NOT NULL,
        used_at         TEXT NOT NULL,
        UNIQUE (chain_id, contract, channel),
        CHECK (base <= accepted AND accepted <= deposit)
    ) STRICT;
    CREATE INDEX drain_channels_open ON drain_channels (id) WHERE gone_at IS NULL;

    CREATE TABLE drain_vouchers (
        channel_id  INTEGER NOT NULL REFERENCES drain_channels (id),
        nonce       INTEGER NOT NULL,
        amount      INTEGER NOT NULL,
        signature   TEXT NOT NULL,
        hold_id     TEXT NOT NULL REFERENCES usage_log (id),    -- the request that it paid for last
        received_at TEXT NOT NULL,
        PRIMARY KEY (channel_id, nonce, amount)
    ) STRICT;
    CREATE INDEX drain_vouchers_by_amount ON drain_vouchers (channel_id, amount);

    CREATE TABLE drain_claims (
        id         INTEGER PRIMARY KEY,
        channel_id INTEGER NOT NULL REFERENCES drain_channels (id),
        amount     INTEGER NOT NULL,
        nonce      INTEGER NOT NULL,
        signature  TEXT NOT NULL,
        tx_nonce   INTEGER NOT NULL,
        status     TEXT NOT NULL CHECK (status IN ('sent', 'confirmed', 'failed')),
        reason     TEXT NOT NULL DEFAULT '',
        created_at TEXT NOT NULL,
        updated_at TEXT NOT NULL
    ) STRICT;
    CREATE UNIQUE INDEX drain_claims_under_way ON drain_claims (status) WHERE status = 'sent';  -- one at a time
    CREATE INDEX drain_claims_by_channel ON drain_claims (channel_id);

    CREATE TABLE drain_transactions (
        hash     TEXT PRIMARY KEY,
        claim_id INTEGER NOT NULL REFERENCES drain_claims (id),
        raw      TEXT NOT NULL,
        gas      INTEGER NOT NULL,
        max_fee  INTEGER NOT NULL,
        tip      INTEGER NOT NULL,
        made_at  TEXT NOT NULL
    ) STRICT;
    CREATE INDEX drain_transactions_by_claim ON drain_transactions (claim_id);
    """,
    """
    -- What a subscription says has the period that was paid last. Since when was not kept before: on its end's day.
    CREATE TABLE new_user_plans (
        user_id    TEXT NOT NULL REFERENCES users (id),
        source     TEXT NOT NULL,
        plan       TEXT NOT NULL,
        until      TEXT,
        paid_since TEXT,
        paid_to    TEXT,
        updated_at TEXT NOT NULL,
        PRIMARY KEY (user_id, source, plan),
        CHECK ((paid_since IS NULL) = (paid_to IS NULL)),
        CHECK (paid_to IS NULL OR until IS NOT NULL)
    ) STRICT;
    INSERT INTO new_user_plans
        SELECT user_id, source, plan, until, CASE own_period WHEN 1 THEN until END,
            CASE own_period WHEN 1 THEN until END, updated_at
        FROM user_plans;
    DROP TABLE user_plans;
    ALTER TABLE new_user_plans RENAME TO user_plans;

    -- By which terms subscriptions were folded: one row, or none.
    CREATE TABLE folded_by (terms TEXT NOT NULL) STRICT;
    """,
    """
    -- Each restore: usage up to this row may have been reported by the books that were replaced, at that time or later.
    CREATE TABLE restores (
        settled_seq INTEGER NOT NULL,
        known_at    TEXT NOT NULL
    ) STRICT;
    """,
)
