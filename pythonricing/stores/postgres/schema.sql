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
  issued bigint NOT NULL,              -- the highest number that ever left it
  "limit" bigint NOT NULL,
  most bigint NOT NULL DEFAULT 0,      -- the largest claim, 0: no bound
  epoch bigint NOT NULL,               -- 0 only while a transaction makes the row
  revision bigint NOT NULL DEFAULT 0,
  base bigint NOT NULL DEFAULT 0,      -- the highest number of earlier epochs that this one takes account of;
                                       -- negative: the last epoch of which it takes account of all
  lost boolean NOT NULL DEFAULT false, -- data turned out to be gone or too old; `issued` is the highest one known
  deleted_until timestamptz,           -- of a tombstone: when it is forgotten, never as long as it is lost too
  moved bigint NOT NULL DEFAULT 0,     -- the numbers that ever became free or were given again
  free int8multirange,                 -- the numbers that came back; null: none
  lent bigint                          -- when a lease was last given, in microseconds; null: none is out
) WITH (fillfactor = 10, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000);

-- The reply to each worker's last batch, and to each word of an operator, whose id stands for the worker.
CREATE TABLE IF NOT EXISTS pythonricing.receipt (
  name text,
  worker text,
  sequence bigint NOT NULL,
  reply bigint[] NOT NULL,
  expires timestamptz NOT NULL,  -- not indexed, so that updates stay heap-only
  held int8multirange,           -- the worker's lease; null: none
  lent bigint,                   -- when it was last lent to, in microseconds
  PRIMARY KEY (name, worker)
) WITH (fillfactor = 25, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000);

-- The first answer to each idempotency key, valid in the epoch in which it was given.
CREATE TABLE IF NOT EXISTS pythonricing.key (
  name text,
  key text,
  epoch bigint NOT NULL,
  record bigint[] NOT NULL,  -- size, count, limit, admitted (1 or 0), and its runs where it got several
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

-- As earlier versions have left it. Their workers find their procedures gone, and are told to upgrade: docs/upgrades.md
-- says what a later step owes to running workers.
DO $$
DECLARE
  old record;
BEGIN
  PERFORM FROM pg_attribute
    WHERE attrelid = 'pythonricing.counter'::regclass AND attname = 'count' AND NOT attisdropped;
  IF NOT FOUND THEN
    RETURN;
  END IF;
  FOR old IN SELECT oid::regprocedure AS routine FROM pg_proc WHERE pronamespace = 'pythonricing'::regnamespace LOOP
    EXECUTE format('DROP ROUTINE %s', old.routine);
  END LOOP;
  PERFORM FROM pg_attribute
    WHERE attrelid = 'pythonricing.counter'::regclass AND attname = 'by_operator' AND NOT attisdropped;
  IF FOUND THEN -- version 1 or 2
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
  END IF;
  ALTER TABLE pythonricing.counter RENAME COLUMN count TO issued;
  ALTER TABLE pythonricing.counter
    ADD COLUMN moved bigint NOT NULL DEFAULT 0, ADD COLUMN free int8multirange, ADD COLUMN lent bigint;
  ALTER TABLE pythonricing.receipt
    ADD COLUMN IF NOT EXISTS held int8multirange, ADD COLUMN IF NOT EXISTS lent bigint;
END $$;

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
  INSERT INTO pythonricing.counter AS c (name, issued, "limit", epoch) VALUES (counter_name, 0, 0, 0)
    ON CONFLICT (name) DO UPDATE
      SET issued = 0, "limit" = 0, most = 0, epoch = 0, revision = 0, base = 0, lost = false, deleted_until = NULL,
        moved = 0, free = NULL, lent = NULL
      WHERE c.deleted_until <= clock_timestamp()
$$;

-- `anew`: it begins an epoch, or is what is left after a loss, so that nothing is free and no lease is known.
CREATE OR REPLACE FUNCTION pythonricing.save(state pythonricing.counter, tombstone_seconds int, anew boolean)
RETURNS void LANGUAGE sql AS $$
  UPDATE pythonricing.receipt r SET held = NULL, lent = NULL
    WHERE anew AND r.name = state.name AND r.held IS NOT NULL;
  UPDATE pythonricing.counter c
    SET issued = state.issued, "limit" = state."limit", most = state.most, epoch = state.epoch,
      revision = state.revision, base = state.base, lost = state.lost,
      deleted_until = CASE
        WHEN state.deleted_until IS NULL THEN NULL
        WHEN state.lost THEN 'infinity'
        ELSE clock_timestamp() + make_interval(secs => tombstone_seconds)
      END,
      moved = state.moved,
      free = CASE WHEN NOT anew THEN c.free END,
      lent = CASE WHEN NOT anew THEN c.lent END
    WHERE c.name = state.name
$$;

-- How many numbers there are in runs.
CREATE OR REPLACE FUNCTION pythonricing.total(runs int8multirange) RETURNS bigint LANGUAGE sql IMMUTABLE AS $$
  SELECT coalesce(sum(upper(run) - lower(run)), 0)::bigint FROM unnest(runs) run
$$;

-- Append a run to the first and last numbers of others; one that follows the last one is added to it.
CREATE OR REPLACE FUNCTION pythonricing.add(runs bigint[], first bigint, last bigint) RETURNS bigint[]
LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
  IF runs[cardinality(runs)] + 1 = first THEN
    runs[cardinality(runs)] := last;
    RETURN runs;
  END IF;
  RETURN runs || ARRAY[first, last];
END $$;

-- How many numbers are out on leases that may come back: they do for 0.3 s. One worker's lease is another one by now.
CREATE OR REPLACE FUNCTION pythonricing.leased(
  counter_name text, last_lent bigint,
  own_worker text DEFAULT '', own_held int8multirange DEFAULT NULL, own_lent bigint DEFAULT NULL
) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
  young bigint;
BEGIN
  IF last_lent IS NULL THEN
    RETURN 0;
  END IF;
  young := pythonricing.clock() - 300000;
  IF last_lent <= young THEN
    RETURN 0;
  END IF;
  RETURN CASE WHEN own_lent > young THEN pythonricing.total(own_held) ELSE 0 END + (
    SELECT coalesce(sum(pythonricing.total(r.held)), 0) FROM pythonricing.receipt r
    WHERE r.name = counter_name AND r.worker <> own_worker AND r.lent > young);
END $$;

-- Numbers from at most so many free runs, the lowest first, and the rest of them fresh, as far as the limit goes.
CREATE OR REPLACE PROCEDURE pythonricing.gather(
  INOUT counter pythonricing.counter, size bigint, at_most bigint, INOUT got bigint[]
) LANGUAGE plpgsql AS $$
DECLARE
  run int8range;
  part bigint;
BEGIN
  got := '{}';
  FOR run IN SELECT free FROM unnest(counter.free) free ORDER BY free LIMIT at_most LOOP
    EXIT WHEN size = 0;
    part := least(size, upper(run) - lower(run));
    got := got || ARRAY[lower(run), lower(run) + part - 1];
    counter.free := counter.free - int8multirange(int8range(lower(run), lower(run) + part));
    counter.moved := counter.moved + part;
    size := size - part;
  END LOOP;
  size := least(size, counter."limit" - counter.issued);
  IF size > 0 THEN
    got := pythonricing.add(got, counter.issued + 1, counter.issued + size);
    counter.issued := counter.issued + size;
  END IF;
END $$;

-- The numbers of an admitted claim: one run, unless only scattered ones are left.
CREATE OR REPLACE PROCEDURE pythonricing.take(
  INOUT counter pythonricing.counter, size bigint, INOUT got bigint[]
) LANGUAGE plpgsql AS $$
DECLARE
  first bigint;
BEGIN
  SELECT lower(run) INTO first FROM unnest(counter.free) run
    WHERE least(upper(run) - 1, counter."limit") - lower(run) + 1 >= size ORDER BY run LIMIT 1;
  IF NOT FOUND THEN
    CALL pythonricing.gather(
      counter, size, CASE WHEN counter.issued + size <= counter."limit" THEN 0 END, got);
    RETURN;
  END IF;
  counter.free := counter.free - int8multirange(int8range(first, first + size));
  counter.moved := counter.moved + size;
  got := ARRAY[first, first + size - 1];
END $$;

-- The state with whatever a worker has seen beyond it, which the store has lost then; null if there is nothing.
CREATE OR REPLACE FUNCTION pythonricing.reconcile(
  state pythonricing.counter,
  seen_epoch bigint, seen_revision bigint, seen_issued bigint, seen_limit bigint, seen_most bigint,
  seen_deleted boolean, seen_moved bigint
) RETURNS pythonricing.counter LANGUAGE plpgsql AS $$
BEGIN
  IF seen_epoch IS NULL THEN
    RETURN NULL;
  ELSIF state.epoch > seen_epoch THEN
    -- Begun without knowledge of what was seen; who has nothing to lose has lost nothing. Whoever began it after a
    -- deletion made the revision greater than all that they knew of the epoch that it ended.
    IF (seen_epoch < -state.base OR (seen_epoch = -state.base AND seen_revision < state.revision)
          OR seen_issued <= greatest(state.base, 0))
        AND NOT (seen_revision > 0 AND state.revision = 0) THEN
      RETURN NULL;
    END IF;
    state.issued := greatest(state.issued, seen_issued);
    IF state.revision > 0 OR seen_deleted THEN
      RETURN state;
    END IF;
  ELSIF state.epoch = seen_epoch AND state.revision >= seen_revision
      AND NOT (state.revision = seen_revision AND state.deleted_until IS NOT NULL AND NOT seen_deleted) THEN
    IF state.deleted_until IS NOT NULL OR (state.issued >= seen_issued AND state.moved >= seen_moved) THEN
      RETURN NULL;
    END IF;
    state.issued := greatest(state.issued, seen_issued);
    state.moved := greatest(state.moved, seen_moved);
    RETURN state;
  ELSE
    IF state.epoch < seen_epoch THEN
      -- Of a counter that is lost the count is the highest that anybody has told, in whichever epoch. And a later epoch
      -- of no later revision was no reset of this one, but begun by somebody who knew nothing.
      state.issued := CASE
        WHEN (state.lost OR state.revision >= seen_revision) AND state.deleted_until IS NULL
          THEN greatest(state.issued, seen_issued)
        ELSE seen_issued
      END;
      state.epoch := seen_epoch;
      state.moved := seen_moved;
      state.base := 0;
    END IF;
    state.issued := greatest(state.issued, seen_issued);
    state.moved := greatest(state.moved, seen_moved);
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
  seen_epoch bigint, seen_revision bigint, seen_issued bigint, seen_limit bigint, seen_most bigint,
  seen_deleted boolean, seen_moved bigint
) RETURNS pythonricing.counter LANGUAGE plpgsql AS $$
DECLARE
  more pythonricing.counter := pythonricing.reconcile(
    state, seen_epoch, seen_revision, seen_issued, seen_limit, seen_most, seen_deleted, seen_moved);
BEGIN
  IF more.name IS NULL AND state.lost AND on_loss = 'raise' THEN
    more := state;
  END IF;
  IF more.name IS NOT NULL THEN
    -- What an older copy calls free may have been given since, what it calls leased may have come back.
    more.free := NULL;
    more.lent := NULL;
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

-- End a transaction in which nothing was executed for a batch; and if that is a repeat, nothing is later either, when
-- its first copy arrives: the receipt is '{}' for LOST, epoch and revision of the deletion, or zeros, for MISSING.
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
-- The claims are groups in arrival order: times[i] claims of sizes[i]; one with a key is a group of its own. Runs of
-- numbers are pairs of the first and the last one.
-- `outcome` is OK, MISSING, LOST or STALE; `reply` is attempt, epoch, revision, limit, most, the numbers taken before,
-- issued, moved, the numbers out on leases that may come back (0 if every claim was admitted and another one might be),
-- and what was issued before a loss raised it, or null. Then, each after its length: the runs that the admitted claims
-- got, those that the worker is lent, and for each keyed claim its record, of length 0 where the key was new.
-- MISSING replies epoch and revision of the deletion if that is known.
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
  seen_issued bigint,
  seen_limit bigint,
  seen_most bigint,
  seen_deleted boolean,
  seen_moved bigint,
  want bigint,            -- how many numbers the worker wants to be lent
  back bigint[],          -- the runs of its lease that it gives back, or null
  still bigint[],         -- the runs of its lease that it still holds, or null
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
  records bigint[];
  known bigint[];
  runs bigint[];       -- null as long as nothing is free, because then they are one, of those issued here
  got bigint[];
  lent bigint[];
  held int8multirange;
  run int8multirange;
  before bigint;
  spare bigint := 0;   -- how many are free
  size bigint;
  admitted bigint;
  waited bigint;
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
    IF counter.lost OR counter.deleted_until IS NOT NULL OR counter.epoch <> seen_epoch
      OR counter.revision <> seen_revision OR counter.issued < seen_issued OR counter.moved < seen_moved THEN
      more := pythonricing.recover(
        counter, on_loss, seen_epoch, seen_revision, seen_issued, seen_limit, seen_most, seen_deleted, seen_moved);
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
    raised := CASE WHEN NOT more.lost THEN counter.issued END;
    counter := more;
    PERFORM pythonricing.save(counter, tombstone_seconds, true);
    receipt.held := NULL;
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
    counter.issued := 0;
    counter.moved := 0;
    counter.free := NULL;
    counter.lent := NULL;
    counter."limit" := create_limit;
    counter.most := 0;
    counter.deleted_until := NULL;
    raised := NULL;
    PERFORM pythonricing.save(counter, tombstone_seconds, true);
    receipt.held := NULL;
    changed := true;
  END IF;

  outcome := 'OK';
  IF batch_sequence = 0 THEN
    reply := ARRAY[
      batch_attempt, counter.epoch, counter.revision, counter."limit", counter.most,
      counter.issued - pythonricing.total(counter.free), counter.issued, counter.moved,
      pythonricing.leased(counter_name, counter.lent), raised, 0, 0];
    IF writing THEN
      CALL pythonricing.finish(changed);
    END IF;
    RETURN;
  END IF;

  -- Each expression costs a microsecond, since every call is a transaction: most batches meet few of those that follow.
  IF receipt.held IS NOT NULL OR counter.free IS NOT NULL THEN
    -- What the worker gives back becomes free, as far as it was lent in this state. Whatever else is said, no number
    -- counts as free and as held, or twice.
    FOR i IN 1..coalesce(cardinality(back), 0) BY 2 LOOP
      run := int8multirange(int8range(back[i], back[i + 1], '[]'));
      IF receipt.held @> run THEN
        receipt.held := receipt.held - run;
        counter.free := coalesce(counter.free, '{}') + run;
        counter.moved := counter.moved + back[i + 1] - back[i] + 1;
      END IF;
    END LOOP;
    FOR i IN 1..coalesce(cardinality(still), 0) BY 2 LOOP
      run := int8multirange(int8range(still[i], still[i + 1], '[]'));
      IF receipt.held @> run THEN
        receipt.held := receipt.held - run;
        held := coalesce(held, '{}') + run;
      END IF;
    END LOOP;
    IF counter.free IS NOT NULL THEN
      runs := '{}';
      spare := pythonricing.total(counter.free);
      changed := true;
    END IF;
  END IF;

  before := counter.issued - spare;
  FOR claim IN SELECT * FROM unnest(times, sizes, keys) AS claims (times, size, key) LOOP
    IF claim.key IS NOT NULL THEN
      SELECT k.record INTO known FROM pythonricing.key k
        WHERE k.name = counter_name AND k.key = claim.key AND k.epoch = counter.epoch AND k.expires > clock_timestamp();
      IF FOUND THEN
        records := records || cardinality(known)::bigint || known;
        CONTINUE;
      END IF;
      records := records || 0::bigint;
    ELSIF runs IS NULL AND (counter.most = 0 OR claim.size <= counter.most)
        AND claim.times <= (counter."limit" - counter.issued) / claim.size THEN
      counter.issued := counter.issued + claim.size * claim.times;
      CONTINUE;
    END IF;
    CONTINUE WHEN counter.most > 0 AND claim.size > counter.most;
    admitted := greatest(0, least(claim.times, (counter."limit" - counter.issued + spare) / claim.size));
    IF runs IS NULL THEN
      counter.issued := counter.issued + admitted * claim.size;
    ELSIF admitted > 0 THEN
      FOR n IN 1..admitted LOOP
        CALL pythonricing.take(counter, claim.size, got);
        FOR i IN 1..cardinality(got) BY 2 LOOP
          runs := pythonricing.add(runs, got[i], got[i + 1]);
        END LOOP;
      END LOOP;
      spare := pythonricing.total(counter.free);
    END IF;
    IF waited IS NULL AND admitted < claim.times THEN
      waited := CASE WHEN counter.lent IS NULL THEN 0
        ELSE pythonricing.leased(counter_name, counter.lent, worker_id, held, receipt.lent) END;
    END IF;
    -- A refusal is remembered once no lease can make room any more.
    IF claim.key IS NOT NULL
        AND (admitted > 0 OR counter.issued - spare + claim.size - waited > counter."limit") THEN
      known := ARRAY[claim.size, counter.issued, counter."limit", admitted];
      IF admitted = 0 THEN
        known[2] := counter.issued - spare;
      ELSIF runs IS NOT NULL THEN
        known[2] := got[cardinality(got)];
        known := known || CASE WHEN cardinality(got) > 2 THEN got END;
      END IF;
      INSERT INTO pythonricing.key AS k (name, key, epoch, record, expires) VALUES (
          counter_name, claim.key, counter.epoch, known,
          clock_timestamp()
            + make_interval(secs => CASE WHEN admitted > 0 THEN key_seconds ELSE refused_key_seconds END))
        ON CONFLICT (name, key) DO UPDATE
          SET epoch = excluded.epoch, record = excluded.record, expires = excluded.expires;
    END IF;
  END LOOP;

  IF waited IS NULL AND counter.issued - spare >= counter."limit" THEN
    waited := pythonricing.leased(counter_name, counter.lent, worker_id, held, receipt.lent);
  END IF;

  -- A lease is at most 1/64 of what is left and at least 4 numbers, of at most 8 free runs; none is given above 64 of
  -- those.
  IF want >= 4 THEN
    size := least(want, (counter."limit" - counter.issued + spare) / 64);
    IF size >= 4 AND (SELECT count(*) <= 64 FROM unnest(counter.free)) THEN
      IF runs IS NULL THEN
        runs := CASE WHEN counter.issued > before THEN ARRAY[before + 1, counter.issued] ELSE '{}' END;
      END IF;
      CALL pythonricing.gather(counter, size, 8, lent);
      held := coalesce(held, '{}');
      FOR i IN 1..cardinality(lent) BY 2 LOOP
        held := held + int8multirange(int8range(lent[i], lent[i + 1], '[]'));
      END LOOP;
      receipt.lent := pythonricing.clock();
      counter.lent := receipt.lent;
      changed := true;
    END IF;
  END IF;

  IF changed OR counter.issued > before THEN
    UPDATE pythonricing.counter c
      SET issued = counter.issued, moved = counter.moved, free = nullif(counter.free, '{}'), lent = counter.lent
      WHERE c.name = counter_name;
  END IF;
  answer := ARRAY[
    batch_attempt, counter.epoch, counter.revision, counter."limit", counter.most, before, counter.issued,
    counter.moved, coalesce(waited, 0), raised] || CASE
      WHEN runs IS NOT NULL THEN cardinality(runs)::bigint || runs
      WHEN counter.issued > before THEN ARRAY[2, before + 1, counter.issued]
      ELSE ARRAY[0::bigint]
    END || CASE WHEN lent IS NULL THEN ARRAY[0::bigint] ELSE cardinality(lent)::bigint || lent END || records;
  INSERT INTO pythonricing.receipt AS r (name, worker, sequence, reply, expires, held, lent) VALUES (
      counter_name, worker_id, batch_sequence, answer, clock_timestamp() + make_interval(secs => receipt_seconds),
      held, CASE WHEN held IS NOT NULL THEN receipt.lent END)
    ON CONFLICT (name, worker) DO UPDATE
      SET sequence = excluded.sequence, reply = excluded.reply, expires = excluded.expires, held = excluded.held,
        lent = excluded.lent;
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
-- `outcome` is OK, LATE, LOST or MISSING (see claim); `reply` is created (1 or 0), epoch, revision, limit, most, the
-- numbers taken, issued, moved, those out on leases that may come back, and what was issued before a loss raised it, or
-- null.
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
  seen_issued bigint,
  seen_limit bigint,
  seen_most bigint,
  seen_deleted boolean,
  seen_moved bigint,
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
      counter, on_loss, seen_epoch, seen_revision, seen_issued, seen_limit, seen_most, seen_deleted, seen_moved);
    IF more.name IS NOT NULL THEN
      raised := CASE WHEN NOT more.lost THEN counter.issued END;
      counter := more;
      PERFORM pythonricing.save(counter, tombstone_seconds, true);
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
    counter.issued := 0;
    counter.moved := 0;
    counter.free := NULL;
    counter.lent := NULL;
    counter.deleted_until := NULL;
    raised := NULL;
  ELSIF counter.lost OR (new_limit, new_most) <> (counter."limit", counter.most) THEN
    counter.revision := counter.revision + 1;
    counter.base := CASE
      WHEN counter.lost AND counter.base >= 0 THEN greatest(counter.base, counter.issued)
      ELSE counter.base
    END;
  END IF;
  counter.lost := false;
  counter."limit" := new_limit;
  counter.most := new_most;
  PERFORM pythonricing.save(counter, tombstone_seconds, missed OR how = 'restart');

  outcome := 'OK';
  answer := ARRAY[
    missed::int, counter.epoch, counter.revision, counter."limit", counter.most,
    counter.issued - pythonricing.total(counter.free), counter.issued, counter.moved,
    pythonricing.leased(counter_name, counter.lent), raised];
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
  seen_issued bigint,
  seen_limit bigint,
  seen_most bigint,
  seen_deleted boolean,
  seen_moved bigint,
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
    counter, seen_epoch, seen_revision, seen_issued, seen_limit, seen_most, seen_deleted, seen_moved);
  IF more.name IS NOT NULL THEN
    counter := more;
  END IF;
  IF (counter.epoch = 0 OR counter.deleted_until IS NOT NULL) AND NOT counter.lost THEN
    outcome := 'MISSING';
    reply := CASE WHEN counter.epoch > 0 THEN ARRAY[counter.epoch, counter.revision] END;
    ROLLBACK;
    RETURN;
  END IF;
  counter.issued := 0;
  counter.moved := 0;
  counter."limit" := 0;
  counter.most := 0;
  counter.base := 9007199254740992;
  counter.revision := counter.revision + 1;
  counter.lost := false;
  counter.deleted_until := clock_timestamp();
  PERFORM pythonricing.save(counter, tombstone_seconds, true);

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

INSERT INTO pythonricing.installation AS i (version) VALUES (4)
  ON CONFLICT (only_row) DO UPDATE SET version = greatest(i.version, excluded.version);
COMMIT;
