-- The queue that devices share. Times are milliseconds since 1970 by this server's clock, which alone decides about
-- leases. Later migrations only add: devices of several versions work on one queue while an update goes round.

CREATE FUNCTION now_ms() RETURNS BIGINT LANGUAGE sql VOLATILE AS
    'SELECT (extract(epoch FROM clock_timestamp()) * 1000)::BIGINT';

-- While the server was away nobody could renew a lease: after a start each holder gets as long again.
CREATE FUNCTION lease_is_over(lease_until_ms BIGINT, lease_ms BIGINT) RETURNS BOOLEAN LANGUAGE sql STABLE AS
    'SELECT lease_until_ms < (extract(epoch FROM clock_timestamp()) * 1000)::BIGINT
        AND (extract(epoch FROM pg_postmaster_start_time()) * 1000)::BIGINT + lease_ms
            < (extract(epoch FROM clock_timestamp()) * 1000)::BIGINT';

CREATE TABLE jobs (
    seq              BIGSERIAL PRIMARY KEY,
    id               TEXT NOT NULL UNIQUE,
    series_uid       TEXT NOT NULL,
    revision         BIGINT NOT NULL,
    state            TEXT NOT NULL,
    -- Name of the model that has to compute it; empty: any.
    model            TEXT NOT NULL,
    -- That made it.
    device           TEXT NOT NULL,
    attempts         BIGINT NOT NULL DEFAULT 0,
    reason           TEXT,
    -- Raised with every claim: who comes with an older one is refused.
    epoch            BIGINT NOT NULL DEFAULT 0,
    holder           TEXT,
    lease_until_ms   BIGINT,
    not_before_ms    BIGINT NOT NULL DEFAULT 0,
    last_received_ms BIGINT NOT NULL,
    ready_ms         BIGINT,
    finished_ms      BIGINT,
    queue_ms         BIGINT,
    compute_ms       BIGINT,
    computed_by      TEXT,
    model_digest     TEXT,
    UNIQUE (series_uid, revision)
);
CREATE INDEX jobs_ready ON jobs (seq) WHERE state = 'ready';
CREATE INDEX jobs_leased ON jobs (lease_until_ms) WHERE state = 'running';
CREATE INDEX jobs_open ON jobs (last_received_ms) WHERE state = 'received';
CREATE INDEX jobs_for_a_person ON jobs (seq) WHERE state IN ('failed', 'quarantined');

CREATE TABLE instances (
    id            BIGSERIAL PRIMARY KEY,
    sop_uid       TEXT NOT NULL,
    sop_class_uid TEXT NOT NULL,
    series_uid    TEXT NOT NULL,
    sha256        TEXT NOT NULL,
    extension     TEXT NOT NULL,
    bytes         BIGINT NOT NULL,
    day           DATE NOT NULL,
    state         TEXT NOT NULL,
    device        TEXT NOT NULL,
    UNIQUE (sop_uid, sha256)
);
CREATE UNIQUE INDEX one_accepted_instance ON instances (sop_uid) WHERE state = 'accepted';
CREATE INDEX instances_of_series ON instances (series_uid);
CREATE INDEX instances_of_day ON instances (day);

CREATE TABLE deliveries (
    id              BIGSERIAL PRIMARY KEY,
    job             TEXT NOT NULL REFERENCES jobs (id),
    destination     TEXT NOT NULL,
    name            TEXT NOT NULL,
    sop_class_uid   TEXT NOT NULL,
    sop_uid         TEXT NOT NULL,
    transfer_syntax TEXT NOT NULL,
    sha256          TEXT NOT NULL,
    bytes           BIGINT NOT NULL,
    day             DATE NOT NULL,
    state           TEXT NOT NULL,
    attempts        BIGINT NOT NULL DEFAULT 0,
    created_ms      BIGINT NOT NULL,
    next_attempt_ms BIGINT NOT NULL DEFAULT 0,
    settled_ms      BIGINT,
    reason          TEXT,
    epoch           BIGINT NOT NULL DEFAULT 0,
    holder          TEXT,
    lease_until_ms  BIGINT,
    -- A job is one revision of a series: each account gets each of its results once.
    UNIQUE (job, destination, sop_uid)
);
CREATE INDEX deliveries_pending ON deliveries (destination, id) WHERE state = 'pending';
CREATE INDEX deliveries_dead ON deliveries (id) WHERE state = 'dead';
CREATE INDEX deliveries_of_day ON deliveries (day);

-- What each destination got since the queue was made: outlives the deliveries.
CREATE TABLE accounts (
    destination TEXT PRIMARY KEY,
    attempts    BIGINT NOT NULL DEFAULT 0,
    sent        BIGINT NOT NULL DEFAULT 0,
    sent_bytes  BIGINT NOT NULL DEFAULT 0,
    dead        BIGINT NOT NULL DEFAULT 0,
    dropped     BIGINT NOT NULL DEFAULT 0
);

-- Payloads in pieces, by the day on which they came (UTC): a day goes at once, when nothing names it any more.
CREATE TABLE chunks (
    day    DATE NOT NULL,
    sha256 TEXT NOT NULL,
    seq    INTEGER NOT NULL,
    data   BYTEA NOT NULL,
    PRIMARY KEY (day, sha256, seq)
) PARTITION BY RANGE (day);
-- Pixel data that is worth compressing is so already.
ALTER TABLE chunks ALTER COLUMN data SET STORAGE EXTERNAL;
