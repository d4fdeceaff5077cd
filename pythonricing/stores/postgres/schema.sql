-- Counters in PostgreSQL 14 or later: a translation of counting/rules.py, as counter.lua, claim.lua, put.lua and
-- delete.lua are for Redis. docs/protocol.md says why.
--
-- The service runs this file on first use; `pythonricing schema` prints it for an administrator. A service whose role
-- owns nothing here needs:
--
--   GRANT USAGE ON SCHEMA pythonricing TO the_role;
--   GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA pythonricing TO the_role;
--
-- Every change of a counter, its receipts and its keys happens under the lock of the counter's row, the one lock that
-- is waited for. It ends with the procedure, before the client's next message, which may never come: by a COMMIT, or by
-- a ROLLBACK where nothing was changed. Times are microseconds since 1970 in epochs and `not_after`, milliseconds in
-- `patience`.

BEGIN ISOLATION LEVEL READ COMMITTED;
SELECT pg_advisory_xact_lock(8097121499101110);  -- one installation at a time
CREATE SCHEMA IF NOT EXISTS pythonricing;

-- A counter, or its tombstone. Rows change with every batch: room in the page keeps all versions of a row there
-- (heap-only tuples), where the next batches prune them.
CREATE TABLE IF NOT EXISTS pythonricing.counter (
  name text PRIMARY KEY,
  count bigint NOT NULL,
  "limit" bigint NOT NULL,
  most bigint NOT NULL DEFAULT 0,      -- the largest claim, 0: no bound
  epoch bigint NOT NULL,               -- 0 only while a transaction makes the row
  revision bigint NOT NULL DEFAULT 0,
  base bigint NOT NULL DEFAULT 0,      -- the highest number of earlier epochs that this one takes account of;
                                       -- negative: the last epoch of which it takes account of all
  lost boolean NOT NULL DEFAULT false, -- data turned out to be gone or too old; the count is the highest one known
  deleted_until timestamptz            -- of a tombstone: when it is forgotten, never as long as it is lost too
) WITH (fillfactor = 10, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000);

-- Step 3, from versions 1 and 2. Their workers find their procedures gone, and are told to upgrade: docs/upgrades.md says
-- what a later step owes to running workers.
DO $$
DECLARE
  old regprocedure;
BEGIN
  PERFORM FROM pg_attribute
    WHERE attrelid = 'pythonricing.counter'::regclass AND attname = 'by_operator' AND NOT attisdropped;
  IF NOT FOUND THEN
    RETURN;
  END IF;
  FOR old IN SELECT oid FROM pg_proc
    WHERE pronamespace = 'pythonricing'::regnamespace AND proname IN ('claim', 'put', 'delete', 'sweep')
  LOOP
    EXECUTE format('DROP PROCEDURE %s', old);
  END LOOP;
  ALTER TABLE pythonricing.counter
    ADD COLUMN most bigint NOT NULL DEFAULT 0,
    ADD COLUMN revision bigint NOT NULL DEFAULT 0,
    ADD COLUMN base bigint NOT NULL DEFAULT 0;
  UPDATE pythonricing.counter
    SET count = greatest(count, lost, 0), "limit" = coalesce("limit", 0),
      base = CASE WHEN by_operator OR deleted_until IS NOT NULL THEN 9007199254740992 ELSE 0 END;
  ALTER TABLE pythonricing.counter
    ALTER COLUMN count SET NOT NULL,
    ALTER COLUMN "limit" SET NOT NULL,
    ALTER COLUMN lost TYPE boolean USING lost IS NOT NULL,
    ALTER COLUMN lost SET DEFAULT false,
    ALTER COLUMN lost SET NOT NULL,
    DROP COLUMN by_operator;
END $$;

-- The reply to each worker's last batch, and to each word of an operator, whose id stands for the worker.
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
  -- Nobody waits for the answer any longer than this; a statement left behind must not queue for the row. And the
  -- warning that a commit may not have reached the standby must not be kept from the client.
  PERFORM set_config('lock_timeout', patience::text, true), set_config('client_min_messages', 'warning', true);
END $$;

-- Microseconds since 1970.
CREATE OR REPLACE FUNCTION pythonricing.clock() RETURNS bigint LANGUAGE sql VOLATILE AS $$
  SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint
$$;

CREATE OR REPLACE FUNCTION pythonricing.new_epoch(last bigint) RETURNS bigint LANGUAGE sql VOLATILE AS $$
  SELECT greatest(pythonricing.clock(), coalesce(last, 0) + 1)
$$;

-- Make a row for a counter that has none, or none but an expired tombstone: with epoch 0 it stands for no counter.
CREATE OR REPLACE FUNCTION pythonricing.make_row(counter_name text) RETURNS void LANGUAGE sql AS $$
  INSERT INTO pythonricing.counter AS c (name, count, "limit", epoch) VALUES (counter_name, 0, 0, 0)
    ON CONFLICT (name) DO UPDATE
      SET count = 0, "limit" = 0, most = 0, epoch = 0, revision = 0, base = 0, lost = false, deleted_until = NULL
      WHERE c.deleted_until <= clock_timestamp()
$$;

CREATE OR REPLACE FUNCTION pythonricing.save(state pythonricing.counter, tombstone_seconds int) RETURNS void
LANGUAGE sql AS $$
  UPDATE pythonricing.counter c
    SET count = state.count, "limit" = state."limit", most = state.most, epoch = state.epoch,
      revision = state.revision, base = state.base, lost = state.lost,
      deleted_until = CASE
        WHEN state.deleted_until IS NULL THEN NULL
        WHEN state.lost THEN 'infinity'
        ELSE clock_timestamp() + make_interval(secs => tombstone_seconds)
      END
    WHERE c.name = state.name
$$;

-- The state with whatever a worker has seen beyond it, which the store has lost then; null if there is nothing.
CREATE OR REPLACE FUNCTION pythonricing.reconcile(
  state pythonricing.counter,
  seen_epoch bigint, seen_revision bigint, seen_count bigint, seen_limit bigint, seen_most bigint, seen_deleted boolean
) RETURNS pythonricing.counter LANGUAGE plpgsql AS $$
BEGIN
  IF seen_epoch IS NULL THEN
    RETURN NULL;
  ELSIF state.epoch > seen_epoch THEN
    -- Begun without knowledge of what was seen; who has nothing to lose has lost nothing.
    IF (seen_epoch <= -state.base OR seen_count <= greatest(state.base, 0)) AND NOT (seen_revision > 0 AND state.revision = 0) THEN
      RETURN NULL;
    END IF;
    state.count := greatest(state.count, seen_count);
    IF state.revision > 0 OR seen_deleted THEN
      RETURN state;
    END IF;
  ELSIF state.epoch = seen_epoch AND state.revision >= seen_revision THEN
    IF state.deleted_until IS NOT NULL OR state.count >= seen_count THEN
      RETURN NULL;
    END IF;
    state.count := seen_count;
    RETURN state;
  ELSE
    IF state.epoch < seen_epoch THEN
      state.epoch := seen_epoch;
      state.count := seen_count;
      state.base := 0;
    END IF;
    state.count := greatest(state.count, seen_count);
    state.deleted_until := CASE WHEN seen_deleted THEN 'infinity'::timestamptz END;
  END IF;
  state.revision := seen_revision;
  state."limit" := seen_limit;
  state.most := seen_most;
  RETURN state;
END $$;

-- The same, marked as lost ("halt"), or raised to what is known ("raise"), as a counter that was marked before is too.
CREATE OR REPLACE FUNCTION pythonricing.recover(
  state pythonricing.counter, on_loss text,
  seen_epoch bigint, seen_revision bigint, seen_count bigint, seen_limit bigint, seen_most bigint, seen_deleted boolean
) RETURNS pythonricing.counter LANGUAGE plpgsql AS $$
DECLARE
  more pythonricing.counter := pythonricing.reconcile(
    state, seen_epoch, seen_revision, seen_count, seen_limit, seen_most, seen_deleted);
BEGIN
  IF more.name IS NULL AND state.lost AND on_loss = 'raise' THEN
    more := state;
  END IF;
  IF more.name IS NOT NULL THEN
    more.lost := on_loss = 'halt';
  END IF;
  RETURN more;
END $$;

-- End a transaction in which a row was locked.
CREATE OR REPLACE PROCEDURE pythonricing.finish(changed boolean) LANGUAGE plpgsql AS $$
BEGIN
  IF changed THEN
    COMMIT;
  ELSE
    ROLLBACK;
  END IF;
END $$;

-- End a transaction in which nothing was executed for a batch; and if that is a repeat, nothing is later either, when its
-- first copy arrives: the receipt is '{}' for LOST, epoch and revision of the deletion, or zeros, for MISSING.
CREATE OR REPLACE PROCEDURE pythonricing.refuse(
  counter_name text, worker_id text, batch_sequence bigint, batch_attempt int, receipt_seconds int, answer bigint[],
  changed boolean
) LANGUAGE plpgsql AS $$
BEGIN
  IF batch_sequence > 0 AND batch_attempt > 0 THEN
    INSERT INTO pythonricing.receipt AS r (name, worker, sequence, reply, expires) VALUES (
        counter_name, worker_id, batch_sequence, answer, clock_timestamp() + make_interval(secs => receipt_seconds))
      ON CONFLICT (name, worker) DO UPDATE
        SET sequence = excluded.sequence, reply = excluded.reply, expires = excluded.expires;
    changed := true;
  END IF;
  CALL pythonricing.finish(changed);
END $$;

-- One batch of claims on one counter: executed once, however often it is sent.
--
-- The claims are runs in arrival order: times[i] claims of sizes[i]; one with a key is a run of its own.
-- `outcome` is OK, MISSING, LOST or STALE; `reply` is attempt, epoch, revision, limit, most, the count before, the count
-- before a loss raised it to that (or null), and for each keyed claim its size, count, limit and admitted, or four zeros
-- where the key was new. MISSING replies epoch and revision of the deletion if that is known.
CREATE OR REPLACE PROCEDURE pythonricing.claim(
  patience int,
  counter_name text,
  worker_id text,
  batch_sequence bigint,  -- 0 reads only and leaves no receipt
  batch_attempt int,      -- which composition of the batch this is
  receipt_seconds int,
  tombstone_seconds int,
  key_seconds int,        -- how long the key of an admitted claim is kept
  refused_key_seconds int,
  create_limit bigint,    -- limit with which a missing counter is created, or null
  on_loss text,           -- "halt" marks the counter as lost; "raise" lifts it to what is known of it
  seen_epoch bigint,      -- what the worker has seen of the counter, or nulls
  seen_revision bigint,
  seen_count bigint,
  seen_limit bigint,
  seen_most bigint,
  seen_deleted boolean,
  times bigint[],
  sizes bigint[],
  keys text[],
  OUT outcome text,
  OUT reply text[]
) LANGUAGE plpgsql AS $$
DECLARE
  counter pythonricing.counter;
  more pythonricing.counter;
  receipt pythonricing.receipt;
  claim record;
  answer bigint[];
  known bigint[];
  total bigint;
  admitted boolean;
  raised bigint;
  writing boolean := batch_sequence > 0;
  changed boolean := false;
BEGIN
  CALL pythonricing.start(patience);

  -- Reading locks nothing, until it turns out that the counter has to be created or marked as lost.
  LOOP
    IF writing THEN
      SELECT * INTO counter FROM pythonricing.counter c
        WHERE c.name = counter_name AND (c.deleted_until IS NULL OR c.deleted_until > clock_timestamp()) FOR UPDATE;
    ELSE
      SELECT * INTO counter FROM pythonricing.counter c
        WHERE c.name = counter_name AND (c.deleted_until IS NULL OR c.deleted_until > clock_timestamp());
    END IF;
    IF batch_sequence > 0 THEN
      SELECT * INTO receipt FROM pythonricing.receipt r
        WHERE r.name = counter_name AND r.worker = worker_id AND r.expires > clock_timestamp();
      IF receipt.sequence = batch_sequence THEN
        -- A write: the first commit may not have reached a synchronous standby, and this one waits for both.
        UPDATE pythonricing.receipt r SET expires = clock_timestamp() + make_interval(secs => receipt_seconds)
          WHERE r.name = counter_name AND r.worker = worker_id;
        outcome := CASE cardinality(receipt.reply) WHEN 0 THEN 'LOST' WHEN 2 THEN 'MISSING' ELSE 'OK' END;
        reply := CASE WHEN receipt.reply <> '{0,0}' THEN receipt.reply END;
        COMMIT;
        RETURN;
      ELSIF receipt.sequence > batch_sequence THEN
        outcome := 'STALE';
        ROLLBACK;
        RETURN;
      END IF;
    END IF;
    IF counter.lost OR counter.epoch <> seen_epoch OR counter.revision <> seen_revision OR counter.count < seen_count THEN
      more := pythonricing.recover(
        counter, on_loss, seen_epoch, seen_revision, seen_count, seen_limit, seen_most, seen_deleted);
    END IF;
    EXIT WHEN CASE
      WHEN counter.name IS NULL THEN seen_epoch IS NULL AND create_limit IS NULL
      WHEN writing THEN true
      ELSE more.name IS NULL AND (counter.deleted_until IS NULL OR create_limit IS NULL)
    END;
    writing := true;
    more := NULL;
    PERFORM pythonricing.make_row(counter_name);
  END LOOP;

  IF more.name IS NOT NULL THEN
    raised := CASE WHEN NOT more.lost THEN counter.count END;
    counter := more;
    PERFORM pythonricing.save(counter, tombstone_seconds);
    changed := true;
  END IF;
  IF counter.lost THEN
    outcome := 'LOST';
    CALL pythonricing.refuse(counter_name, worker_id, batch_sequence, batch_attempt, receipt_seconds, '{}', changed);
    RETURN;
  END IF;
  IF counter.name IS NULL OR counter.epoch = 0 OR counter.deleted_until IS NOT NULL THEN
    IF create_limit IS NULL THEN
      outcome := 'MISSING';
      reply := CASE WHEN counter.epoch > 0 THEN ARRAY[counter.epoch, counter.revision] END;
      CALL pythonricing.refuse(
        counter_name, worker_id, batch_sequence, batch_attempt, receipt_seconds,
        coalesce(reply::bigint[], '{0,0}'), changed);
      RETURN;
    END IF;
    IF counter.epoch > 0 THEN
      counter.revision := counter.revision + 1;
      counter.base := -counter.epoch;
    END IF;
    counter.epoch := pythonricing.new_epoch(greatest(counter.epoch, seen_epoch));
    counter.count := 0;
    counter."limit" := create_limit;
    counter.most := 0;
    counter.deleted_until := NULL;
    raised := NULL;
    PERFORM pythonricing.save(counter, tombstone_seconds);
    changed := true;
  END IF;

  outcome := 'OK';
  answer := ARRAY[
    batch_attempt, counter.epoch, counter.revision, counter."limit", counter.most, counter.count, raised];
  reply := answer;
  IF batch_sequence = 0 THEN
    IF writing THEN
      CALL pythonricing.finish(changed);
    END IF;
    RETURN;
  END IF;
  total := counter.count;
  FOR claim IN SELECT * FROM unnest(times, sizes, keys) AS claims (times, size, key) LOOP
    IF claim.key IS NULL THEN
      IF total < counter."limit" AND (counter.most = 0 OR claim.size <= counter.most) THEN
        total := total + claim.size * least(claim.times, (counter."limit" - total) / claim.size);
      END IF;
      CONTINUE;
    END IF;
    SELECT k.record INTO known FROM pythonricing.key k
      WHERE k.name = counter_name AND k.key = claim.key AND k.epoch = counter.epoch AND k.expires > clock_timestamp();
    IF NOT FOUND THEN
      known := ARRAY[0, 0, 0, 0];
      IF counter.most = 0 OR claim.size <= counter.most THEN
        admitted := total + claim.size <= counter."limit";
        IF admitted THEN
          total := total + claim.size;
        END IF;
        INSERT INTO pythonricing.key AS k (name, key, epoch, record, expires) VALUES (
            counter_name, claim.key, counter.epoch, ARRAY[claim.size, total, counter."limit", admitted::int],
            clock_timestamp() + make_interval(secs => CASE WHEN admitted THEN key_seconds ELSE refused_key_seconds END))
          ON CONFLICT (name, key) DO UPDATE
            SET epoch = excluded.epoch, record = excluded.record, expires = excluded.expires;
      END IF;
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
  COMMIT;
END $$;

-- Begin to execute a word of an operator: lock the counter's row, made if need be. `outcome` is null if it is to be
-- executed; or else the transaction has ended: OK, it was executed before and replied `reply`; LOST, so it
-- was answered before; or LATE.
CREATE OR REPLACE PROCEDURE pythonricing.hear(
  patience int,
  counter_name text,
  word_id text,
  not_after bigint,
  receipt_seconds int,
  INOUT counter pythonricing.counter,
  INOUT outcome text,
  INOUT reply text[]
) LANGUAGE plpgsql AS $$
BEGIN
  CALL pythonricing.start(patience);
  LOOP
    SELECT * INTO counter FROM pythonricing.counter c
      WHERE c.name = counter_name AND (c.deleted_until IS NULL OR c.deleted_until > clock_timestamp()) FOR UPDATE;
    EXIT WHEN FOUND;
    PERFORM pythonricing.make_row(counter_name);
  END LOOP;
  -- A write, as in claim.
  UPDATE pythonricing.receipt r SET expires = clock_timestamp() + make_interval(secs => receipt_seconds)
    WHERE r.name = counter_name AND r.worker = word_id AND r.expires > clock_timestamp() RETURNING r.reply INTO reply;
  IF FOUND THEN
    outcome := CASE WHEN reply = '{}' THEN 'LOST' ELSE 'OK' END;
    COMMIT;
  ELSIF pythonricing.clock() > not_after THEN
    -- Asked under the lock: whoever claims or speaks later finds this executed, or never.
    outcome := 'LATE';
    ROLLBACK;
  END IF;
END $$;

-- Create a counter, change its limit and largest claim, or start it over: once, however often it is sent.
--
-- `how`: "change" keeps the count and ends the state of a lost counter, but not of one of which nobody knew that it is
-- lost; "restart" begins a new epoch at 0; "configure" is the settings' word, which leaves a lost counter lost.
-- `outcome` is OK, LATE, LOST or MISSING (see claim); `reply` is created (1 or 0), epoch, revision, limit, most, count and
-- the count before a loss raised it, or null.
CREATE OR REPLACE PROCEDURE pythonricing.put(
  patience int,
  counter_name text,
  word_id text,
  not_after bigint,   -- the moment after which it has no effect
  receipt_seconds int,
  tombstone_seconds int,
  new_limit bigint,   -- null keeps the one it has
  new_most bigint,    -- null keeps the one it has
  how text,
  on_loss text,       -- and what was seen, as in claim
  seen_epoch bigint,
  seen_revision bigint,
  seen_count bigint,
  seen_limit bigint,
  seen_most bigint,
  seen_deleted boolean,
  OUT outcome text,
  OUT reply text[]
) LANGUAGE plpgsql AS $$
DECLARE
  counter pythonricing.counter;
  more pythonricing.counter;
  marked boolean;
  missed boolean;
  raised bigint;
  answer bigint[];
BEGIN
  CALL pythonricing.hear(patience, counter_name, word_id, not_after, receipt_seconds, counter, outcome, reply);
  IF outcome IS NOT NULL THEN
    RETURN;
  END IF;
  IF how <> 'restart' THEN
    marked := counter.lost;
    more := pythonricing.recover(
      counter, on_loss, seen_epoch, seen_revision, seen_count, seen_limit, seen_most, seen_deleted);
    IF more.name IS NOT NULL THEN
      raised := CASE WHEN NOT more.lost THEN counter.count END;
      counter := more;
      PERFORM pythonricing.save(counter, tombstone_seconds);
    END IF;
    IF counter.lost AND (how = 'configure' OR NOT marked) THEN
      -- With a receipt: sent again, it must not end the loss that it was the first to notice.
      outcome := 'LOST';
      INSERT INTO pythonricing.receipt (name, worker, sequence, reply, expires) VALUES (
        counter_name, word_id, 0, '{}', clock_timestamp() + make_interval(secs => receipt_seconds))
        ON CONFLICT (name, worker) DO UPDATE SET reply = excluded.reply, expires = excluded.expires;
      COMMIT;
      RETURN;
    END IF;
  END IF;

  missed := counter.epoch = 0 OR counter.deleted_until IS NOT NULL;
  new_limit := coalesce(new_limit, CASE
    WHEN NOT missed THEN counter."limit"
    WHEN counter.epoch = 0 AND how = 'restart' AND NOT seen_deleted THEN seen_limit
  END);
  IF new_limit IS NULL THEN
    outcome := 'MISSING';
    reply := CASE WHEN counter.epoch > 0 THEN ARRAY[counter.epoch, counter.revision] END;
    CALL pythonricing.finish(more.name IS NOT NULL);
    RETURN;
  END IF;
  new_most := coalesce(new_most, CASE WHEN missed THEN 0 ELSE counter.most END);
  IF missed OR how = 'restart' THEN
    counter.revision := CASE
      WHEN how = 'configure' AND counter.epoch = 0 THEN 0
      ELSE greatest(counter.revision, seen_revision) + 1
    END;
    counter.base := CASE WHEN how = 'restart' THEN 9007199254740992 ELSE -counter.epoch END;
    counter.epoch := pythonricing.new_epoch(greatest(counter.epoch, seen_epoch));
    counter.count := 0;
    counter.deleted_until := NULL;
    raised := NULL;
  ELSIF counter.lost OR (new_limit, new_most) <> (counter."limit", counter.most) THEN
    counter.revision := counter.revision + 1;
    counter.base := CASE WHEN counter.lost AND counter.base >= 0 THEN greatest(counter.base, counter.count) ELSE counter.base END;
  END IF;
  counter.lost := false;
  counter."limit" := new_limit;
  counter.most := new_most;
  PERFORM pythonricing.save(counter, tombstone_seconds);

  outcome := 'OK';
  answer := ARRAY[
    missed::int, counter.epoch, counter.revision, counter."limit", counter.most, counter.count, raised];
  reply := answer;
  INSERT INTO pythonricing.receipt (name, worker, sequence, reply, expires) VALUES (
    counter_name, word_id, 0, answer, clock_timestamp() + make_interval(secs => receipt_seconds))
    ON CONFLICT (name, worker) DO UPDATE SET reply = excluded.reply, expires = excluded.expires;
  COMMIT;
END $$;

-- Forget a counter, and leave a tombstone that tells deletion from loss: once, however often it is sent.
-- `outcome` is OK, LATE or MISSING (see claim); `reply` is epoch and revision of the deletion.
CREATE OR REPLACE PROCEDURE pythonricing.delete(
  patience int,
  counter_name text,
  word_id text,
  not_after bigint,
  receipt_seconds int,
  tombstone_seconds int,
  seen_epoch bigint,
  seen_revision bigint,
  seen_count bigint,
  seen_limit bigint,
  seen_most bigint,
  seen_deleted boolean,
  OUT outcome text,
  OUT reply text[]
) LANGUAGE plpgsql AS $$
DECLARE
  counter pythonricing.counter;
  more pythonricing.counter;
  answer bigint[];
BEGIN
  CALL pythonricing.hear(patience, counter_name, word_id, not_after, receipt_seconds, counter, outcome, reply);
  IF outcome IS NOT NULL THEN
    RETURN;
  END IF;
  more := pythonricing.reconcile(
    counter, seen_epoch, seen_revision, seen_count, seen_limit, seen_most, seen_deleted);
  IF more.name IS NOT NULL THEN
    counter := more;
  END IF;
  IF (counter.epoch = 0 OR counter.deleted_until IS NOT NULL) AND NOT counter.lost THEN
    outcome := 'MISSING';
    reply := CASE WHEN counter.epoch > 0 THEN ARRAY[counter.epoch, counter.revision] END;
    ROLLBACK;
    RETURN;
  END IF;
  counter.count := 0;
  counter."limit" := 0;
  counter.most := 0;
  counter.base := 9007199254740992;
  counter.revision := counter.revision + 1;
  counter.lost := false;
  counter.deleted_until := clock_timestamp();
  PERFORM pythonricing.save(counter, tombstone_seconds);

  outcome := 'OK';
  answer := ARRAY[counter.epoch, counter.revision];
  reply := answer;
  INSERT INTO pythonricing.receipt (name, worker, sequence, reply, expires) VALUES (
    counter_name, word_id, 0, answer, clock_timestamp() + make_interval(secs => receipt_seconds))
    ON CONFLICT (name, worker) DO UPDATE SET reply = excluded.reply, expires = excluded.expires;
  COMMIT;
END $$;

-- Remove what has expired, at most `at_most` rows of each table, if it was not done in the last `pause` seconds.
-- Waits for no lock: what a claim holds or another worker removes is passed over. `reply` is the number of rows, 0 when
-- nothing is left to do.
CREATE OR REPLACE PROCEDURE pythonricing.sweep(
  patience int, at_most int, pause int, OUT outcome text, OUT reply text[]
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
    SELECT ctid FROM pythonricing.key WHERE expires < moment ORDER BY expires LIMIT at_most FOR UPDATE SKIP LOCKED));
  GET DIAGNOSTICS removed = ROW_COUNT;
  total := total + removed;
  busy := busy OR removed = at_most;
  DELETE FROM pythonricing.receipt WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM pythonricing.receipt WHERE expires < moment LIMIT at_most FOR UPDATE SKIP LOCKED));
  GET DIAGNOSTICS removed = ROW_COUNT;
  total := total + removed;
  busy := busy OR removed = at_most;
  DELETE FROM pythonricing.counter WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM pythonricing.counter WHERE deleted_until < moment LIMIT at_most FOR UPDATE SKIP LOCKED));
  GET DIAGNOSTICS removed = ROW_COUNT;
  total := total + removed;
  busy := busy OR removed = at_most;
  IF NOT busy THEN
    UPDATE pythonricing.installation SET swept = moment;
  END IF;
  reply := ARRAY[total];
  COMMIT;
END $$;

INSERT INTO pythonricing.installation AS i (version) VALUES (3)
  ON CONFLICT (only_row) DO UPDATE SET version = greatest(i.version, excluded.version);
COMMIT;
