-- Counters in PostgreSQL 14 or later: the same promises as claim.lua, put.lua and delete.lua keep in Redis.
--
-- The service runs this file on first use; `pythonricing schema` prints it for an administrator. A service whose role
-- owns nothing here needs:
--
--   GRANT USAGE ON SCHEMA pythonricing TO the_role;
--   GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA pythonricing TO the_role;
--
-- Every change of a counter, its receipts and its keys happens under the lock of the counter's row, the one lock that
-- is waited for; times are microseconds since 1970 in epochs and milliseconds in `patience`.

BEGIN ISOLATION LEVEL READ COMMITTED;
SELECT pg_advisory_xact_lock(8097121499101110);  -- one installation at a time
CREATE SCHEMA IF NOT EXISTS pythonricing;

-- A counter; its tombstone (no count, `deleted_until`); or the mark of a loss (`lost`: the count that a worker knew).
-- Rows change with every batch: room in the page keeps all versions of a row there (heap-only tuples), where the next
-- batches prune them.
CREATE TABLE IF NOT EXISTS pythonricing.counter (
  name text PRIMARY KEY,
  count bigint,
  "limit" bigint,
  epoch bigint NOT NULL,
  by_operator boolean NOT NULL DEFAULT false,  -- who began the epoch: an operator, or the first claim by itself
  lost bigint,
  deleted_until timestamptz
) WITH (fillfactor = 10, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000);

-- The reply to each worker's last batch.
CREATE TABLE IF NOT EXISTS pythonricing.receipt (
  name text,
  worker text,
  sequence bigint NOT NULL,
  reply bigint[] NOT NULL,
  expires timestamptz NOT NULL,  -- not indexed, so that updates stay heap-only
  PRIMARY KEY (name, worker)
) WITH (fillfactor = 25, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000);

-- The first answer to each idempotency key, valid in the epoch in which it was given.
CREATE TABLE IF NOT EXISTS pythonricing.key (
  name text,
  key text,
  epoch bigint NOT NULL,
  record bigint[] NOT NULL,  -- size, count, limit, admitted (1 or 0)
  expires timestamptz NOT NULL,
  PRIMARY KEY (name, key)
) WITH (autovacuum_vacuum_scale_factor = 0.02);
CREATE INDEX IF NOT EXISTS key_expires ON pythonricing.key (expires);

-- One row: what is installed, and when everything that had expired was last removed.
CREATE TABLE IF NOT EXISTS pythonricing.installation (
  only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
  version int NOT NULL,
  swept timestamptz NOT NULL DEFAULT now()
);

-- Start a transaction that sees what others commit, whatever the database's default: a later statement must see what
-- was committed while it waited for the counter's row.
CREATE OR REPLACE PROCEDURE pythonricing.start(patience int) LANGUAGE plpgsql AS $$
BEGIN
  IF current_setting('transaction_isolation') <> 'read committed' THEN
    ROLLBACK;
    SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
  END IF;
  -- Nobody waits for the answer any longer than this; a statement left behind must not queue for the row.
  PERFORM set_config('lock_timeout', patience::text, true);
END $$;

CREATE OR REPLACE FUNCTION pythonricing.new_epoch(last bigint) RETURNS bigint LANGUAGE sql VOLATILE AS $$
  SELECT greatest((extract(epoch FROM clock_timestamp()) * 1000000)::bigint, coalesce(last, 0) + 1)
$$;

-- One batch of claims on one counter: executed once, however often it is sent.
--
-- The claims are runs in arrival order: times[i] claims of sizes[i]; one with a key is a run of its own.
-- `outcome` is OK, MISSING, LOST or STALE; `reply` is attempt, epoch, limit, the count before, and for each keyed claim
-- its size, count, limit and admitted, or four zeros where the key was new. If a loss raised the count, `outcome` is
-- OK and the count before, this once.
CREATE OR REPLACE PROCEDURE pythonricing.claim(
  patience int,
  counter_name text,
  worker_id text,
  batch_sequence bigint,  -- 0 reads only and leaves no receipt
  batch_attempt int,      -- which composition of the batch this is
  receipt_seconds int,
  key_seconds int,
  create_limit bigint,    -- limit with which a missing counter is created, or null
  seen_epoch bigint,      -- what the worker has seen of the counter, or nulls
  seen_count bigint,
  seen_limit bigint,
  on_loss text,           -- "halt" marks the counter as lost; "raise" lifts it to what is known of it
  times bigint[],
  sizes bigint[],
  keys text[],
  OUT outcome text,
  OUT reply text[]
) LANGUAGE plpgsql AS $$
DECLARE
  counter pythonricing.counter;
  receipt pythonricing.receipt;
  claim record;
  answer bigint[];
  known bigint[];
  total bigint;
  admitted boolean;
  deleted boolean;
  older boolean;
  now_lost boolean;
  raised bigint;
  writing boolean := batch_sequence > 0;
BEGIN
  CALL pythonricing.start(patience);

  -- Reading locks nothing, until it turns out that the counter has to be created or marked as lost.
  LOOP
    IF writing THEN
      SELECT * INTO counter FROM pythonricing.counter c WHERE c.name = counter_name FOR UPDATE;
    ELSE
      SELECT * INTO counter FROM pythonricing.counter c WHERE c.name = counter_name;
    END IF;
    IF batch_sequence > 0 THEN
      SELECT * INTO receipt FROM pythonricing.receipt r
        WHERE r.name = counter_name AND r.worker = worker_id AND r.expires > clock_timestamp();
      IF receipt.sequence >= batch_sequence THEN
        outcome := CASE WHEN receipt.sequence = batch_sequence THEN 'OK' ELSE 'STALE' END;
        reply := receipt.reply;
        RETURN;
      END IF;
    END IF;
    deleted := coalesce(counter.deleted_until > clock_timestamp(), false);
    raised := NULL;
    IF on_loss = 'raise' AND counter.lost IS NOT NULL THEN
      raised := counter.count;
      counter.count := greatest(counter.count, counter.lost);
      counter.lost := NULL;
    END IF;
    older := counter.epoch < seen_epoch;
    now_lost := counter.lost IS NULL AND seen_epoch IS NOT NULL AND CASE
      WHEN older THEN true
      WHEN counter.count IS NULL THEN NOT deleted
      WHEN counter.epoch = seen_epoch THEN counter.count < seen_count
      -- Nobody deleted or reset it, and yet it began anew: whoever created it knew nothing of the numbers given before.
      ELSE NOT counter.by_operator AND seen_count > CASE on_loss WHEN 'raise' THEN counter.count ELSE 0 END
    END;
    EXIT WHEN writing AND counter.name IS NOT NULL;
    EXIT WHEN NOT now_lost AND raised IS NULL AND (counter.count IS NOT NULL OR create_limit IS NULL);
    writing := true;
    INSERT INTO pythonricing.counter (name, epoch) VALUES (counter_name, 0) ON CONFLICT DO NOTHING;
  END LOOP;

  IF now_lost AND on_loss = 'raise' THEN
    raised := coalesce(raised, counter.count, 0);
    IF older OR counter.count IS NULL THEN
      -- Not the operator's, as far as is known: workers that have seen more of another epoch may raise it further.
      counter."limit" := seen_limit;
      counter.epoch := seen_epoch;
      counter.by_operator := false;
    END IF;
    counter.count := seen_count;
    now_lost := false;
  END IF;
  IF raised IS NOT NULL THEN
    UPDATE pythonricing.counter c
      SET count = counter.count, "limit" = counter."limit", epoch = counter.epoch, by_operator = counter.by_operator,
        lost = NULL, deleted_until = NULL
      WHERE c.name = counter_name;
  END IF;
  IF now_lost THEN
    UPDATE pythonricing.counter c
      SET lost = seen_count, count = coalesce(c.count, 0), "limit" = coalesce(c."limit", seen_limit),
        epoch = greatest(c.epoch, seen_epoch), deleted_until = NULL
      WHERE c.name = counter_name;
  END IF;
  IF now_lost OR counter.lost IS NOT NULL THEN
    outcome := 'LOST';
    RETURN;
  END IF;
  IF counter.count IS NULL THEN
    IF create_limit IS NULL THEN
      outcome := 'MISSING';
      RETURN;
    END IF;
    UPDATE pythonricing.counter c
      SET count = 0, "limit" = create_limit, epoch = pythonricing.new_epoch(c.epoch), by_operator = deleted,
        deleted_until = NULL
      WHERE c.name = counter_name RETURNING * INTO counter;
  END IF;

  outcome := 'OK' || coalesce(' ' || raised, '');
  answer := ARRAY[batch_attempt, counter.epoch, counter."limit", counter.count];
  reply := answer;
  IF batch_sequence = 0 THEN
    RETURN;
  END IF;
  total := counter.count;
  FOR claim IN SELECT * FROM unnest(times, sizes, keys) AS claims (times, size, key) LOOP
    IF claim.key IS NULL THEN
      IF total < counter."limit" THEN
        total := total + claim.size * least(claim.times, (counter."limit" - total) / claim.size);
      END IF;
      CONTINUE;
    END IF;
    SELECT k.record INTO known FROM pythonricing.key k
      WHERE k.name = counter_name AND k.key = claim.key AND k.epoch = counter.epoch AND k.expires > clock_timestamp();
    IF NOT FOUND THEN
      known := ARRAY[0, 0, 0, 0];
      admitted := total + claim.size <= counter."limit";
      IF admitted THEN
        total := total + claim.size;
      END IF;
      INSERT INTO pythonricing.key AS k (name, key, epoch, record, expires) VALUES (
          counter_name, claim.key, counter.epoch, ARRAY[claim.size, total, counter."limit", admitted::int],
          clock_timestamp() + make_interval(secs => key_seconds))
        ON CONFLICT (name, key) DO UPDATE
          SET epoch = excluded.epoch, record = excluded.record, expires = excluded.expires;
    END IF;
    answer := answer || known;
  END LOOP;

  IF total > counter.count THEN
    UPDATE pythonricing.counter c SET count = total WHERE c.name = counter_name;
  END IF;
  INSERT INTO pythonricing.receipt AS r (name, worker, sequence, reply, expires) VALUES (
      counter_name, worker_id, batch_sequence, answer, clock_timestamp() + make_interval(secs => receipt_seconds))
    ON CONFLICT (name, worker) DO UPDATE
      SET sequence = excluded.sequence, reply = excluded.reply, expires = excluded.expires;
  reply := answer;
  COMMIT;  -- here rather than with the client's next message, which may never come
END $$;

-- Create a counter, change its limit, or start it over.
--
-- `how`: "change" keeps the count (of a lost counter the highest that is known) and "restart" sets it to 0, both an
-- operator's word that ends the state of a lost counter; "configure" is the settings' word, which leaves a lost counter
-- lost. `outcome` is OK, MISSING or LOST; `reply` is created (1 or 0), epoch, limit and count.
CREATE OR REPLACE PROCEDURE pythonricing.put(
  patience int,
  counter_name text,
  new_limit bigint,  -- null keeps the one it has
  how text,
  OUT outcome text,
  OUT reply text[]
) LANGUAGE plpgsql AS $$
DECLARE
  counter pythonricing.counter;
  created boolean;
BEGIN
  CALL pythonricing.start(patience);
  LOOP
    SELECT * INTO counter FROM pythonricing.counter c WHERE c.name = counter_name FOR UPDATE;
    EXIT WHEN FOUND OR new_limit IS NULL;
    INSERT INTO pythonricing.counter (name, epoch) VALUES (counter_name, 0) ON CONFLICT DO NOTHING;
  END LOOP;
  created := counter.count IS NULL;

  IF counter.lost IS NOT NULL AND how = 'configure' THEN
    outcome := 'LOST';
    RETURN;
  END IF;
  IF new_limit IS NULL AND created THEN
    outcome := 'MISSING';
    RETURN;
  END IF;
  outcome := 'OK';
  IF created OR counter.lost IS NOT NULL OR how = 'restart' THEN
    UPDATE pythonricing.counter c
      SET count = CASE WHEN created OR how = 'restart' THEN 0 ELSE greatest(c.count, c.lost) END,
        "limit" = coalesce(new_limit, c."limit"), epoch = pythonricing.new_epoch(c.epoch),
        by_operator = how <> 'configure' OR coalesce(c.deleted_until > clock_timestamp(), false),
        lost = NULL, deleted_until = NULL
      WHERE c.name = counter_name RETURNING * INTO counter;
  ELSIF new_limit <> counter."limit" THEN
    UPDATE pythonricing.counter c SET "limit" = new_limit WHERE c.name = counter_name RETURNING * INTO counter;
  END IF;
  reply := ARRAY[created::int, counter.epoch, counter."limit", counter.count];
  COMMIT;
END $$;

-- Forget a counter, and leave a tombstone that tells deletion from loss. `outcome` is OK or MISSING.
CREATE OR REPLACE PROCEDURE pythonricing.delete(
  patience int, counter_name text, tombstone_seconds int, OUT outcome text, OUT reply text[]
) LANGUAGE plpgsql AS $$
BEGIN
  CALL pythonricing.start(patience);
  UPDATE pythonricing.counter c
    SET count = NULL, "limit" = NULL, lost = NULL,
      deleted_until = clock_timestamp() + make_interval(secs => tombstone_seconds)
    WHERE c.name = counter_name AND c.count IS NOT NULL;
  outcome := CASE WHEN FOUND THEN 'OK' ELSE 'MISSING' END;
  COMMIT;
END $$;

-- Remove what has expired, at most `most` rows of each table, if it was not done in the last `pause` seconds.
-- Waits for no lock: what a claim holds or another worker removes is passed over. `reply` is the number of rows, 0 when
-- nothing is left to do.
CREATE OR REPLACE PROCEDURE pythonricing.sweep(
  patience int, most int, pause int, OUT outcome text, OUT reply text[]
) LANGUAGE plpgsql AS $$
DECLARE
  moment timestamptz := clock_timestamp();
  removed bigint;
  total bigint := 0;
  busy boolean := false;
BEGIN
  CALL pythonricing.start(patience);
  outcome := 'OK';
  reply := ARRAY[0];
  PERFORM FROM pythonricing.installation
    WHERE swept <= moment - make_interval(secs => pause) FOR UPDATE SKIP LOCKED;
  IF NOT FOUND THEN
    RETURN;
  END IF;
  DELETE FROM pythonricing.key WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM pythonricing.key WHERE expires < moment ORDER BY expires LIMIT most FOR UPDATE SKIP LOCKED));
  GET DIAGNOSTICS removed = ROW_COUNT;
  total := total + removed;
  busy := busy OR removed = most;
  DELETE FROM pythonricing.receipt WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM pythonricing.receipt WHERE expires < moment LIMIT most FOR UPDATE SKIP LOCKED));
  GET DIAGNOSTICS removed = ROW_COUNT;
  total := total + removed;
  busy := busy OR removed = most;
  DELETE FROM pythonricing.counter WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM pythonricing.counter WHERE count IS NULL AND deleted_until < moment LIMIT most FOR UPDATE SKIP LOCKED));
  GET DIAGNOSTICS removed = ROW_COUNT;
  total := total + removed;
  busy := busy OR removed = most;
  IF NOT busy THEN
    UPDATE pythonricing.installation SET swept = moment;
  END IF;
  reply := ARRAY[total];
  COMMIT;
END $$;

INSERT INTO pythonricing.installation AS i (version) VALUES (2)
  ON CONFLICT (only_row) DO UPDATE SET version = greatest(i.version, excluded.version);
COMMIT;
