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

-- Running workers of an earlier version lock a counter before anything else: what they have begun is waited for here, or
-- else they and the steps below might wait for each other.
DO $$
BEGIN
  IF to_regclass('pythonricing.installation') IS NOT NULL THEN
    IF (SELECT version FROM pythonricing.installation) < 5 THEN
      LOCK TABLE pythonricing.counter IN ACCESS EXCLUSIVE MODE;
    END IF;
  END IF;
END $$;

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
  lent bigint,                         -- when a lease was last given, in microseconds; null: none is out
  -- What follows is null until the counter has a hold, a give-back, claimants or windows for the first time.
  began bigint,                        -- the epoch with which it was last started over other than by renewing
  each bigint,                         -- how many numbers a claimant may own, 0: no claimants
  every text,                          -- how it renews, '': not at all; in which zone; and where its window ends
  zone text,
  ends bigint,
  resolved bigint,                     -- how many holds were confirmed or released since it began
  losses bigint,                       -- how often data was lost since
  held bigint,                         -- how many numbers of this epoch are on holds
  given bigint,                        -- how many numbers of this epoch were given back
  due bigint                           -- the second at which a hold expires, at the earliest; null: none does
) WITH (fillfactor = 10, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000);

-- The reply to each worker's last batch, and to each word of an operator, whose id stands for the worker.
CREATE TABLE IF NOT EXISTS pythonricing.receipt (
  name text,
  worker text,
  number bigint NOT NULL,        -- the sequence of the batch
  reply bigint[] NOT NULL,
  expires timestamptz NOT NULL,  -- not indexed, so that updates stay heap-only
  held int8multirange,           -- the worker's lease; null: none
  lent bigint,                   -- when it was last lent to, in microseconds
  told text[],                   -- the reply, where it isn't numbers only: of a batch then, `reply` is one number
  PRIMARY KEY (name, worker)
) WITH (fillfactor = 25, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000);

-- The first answer to each idempotency key: an admission is valid until the counter starts over, a refusal in its epoch.
CREATE TABLE IF NOT EXISTS pythonricing.key (
  name text,
  key text,
  epoch bigint NOT NULL,
  record bigint[] NOT NULL,  -- size, count, limit, admitted (1, 0, or 2: refused because of what its claimant has), and
                             -- its runs where it got several
  expires timestamptz NOT NULL,
  words text[],              -- of a claim with a hold or a claimant: the hold's id, when it expires, the claimant
  PRIMARY KEY (name, key)
) WITH (autovacuum_vacuum_scale_factor = 0.02);
CREATE INDEX IF NOT EXISTS key_expires ON pythonricing.key (expires);

-- A hold, until 24 hours after it was resolved.
CREATE TABLE IF NOT EXISTS pythonricing.hold (
  name text,
  id text,
  epoch bigint NOT NULL,         -- the counter's epoch and losses when it was made
  losses int NOT NULL,
  size int NOT NULL,             -- how many numbers it was made for
  due bigint NOT NULL,           -- the second at which it expires, or once it was resolved, is forgotten
  runs int8multirange NOT NULL,  -- its numbers; once it was resolved, those that are confirmed
  outcome text,                  -- 'confirmed', 'released', 'expired'; null: none yet
  PRIMARY KEY (name, id)
) WITH (autovacuum_vacuum_scale_factor = 0.02);
CREATE INDEX IF NOT EXISTS hold_open ON pythonricing.hold (name, due) WHERE outcome IS NULL;
CREATE INDEX IF NOT EXISTS hold_resolved ON pythonricing.hold (due) WHERE outcome IS NOT NULL;

-- Numbers that were given back, in runs that lie apart; whose the numbers of claims for claimants are, perhaps those given
-- back too; and how many each claimant has of the others. Of epochs that are over they count for nothing.
CREATE TABLE IF NOT EXISTS pythonricing.given_back (
  name text, epoch bigint, first bigint, last bigint NOT NULL, PRIMARY KEY (name, epoch, first)
);
CREATE TABLE IF NOT EXISTS pythonricing.owner (
  name text, epoch bigint, first bigint, last bigint NOT NULL, claimant text NOT NULL, PRIMARY KEY (name, epoch, first)
);
CREATE TABLE IF NOT EXISTS pythonricing.claimant (
  name text, epoch bigint, claimant text, share bigint NOT NULL, PRIMARY KEY (name, epoch, claimant)
);

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
  installed int := (SELECT version FROM pythonricing.installation);
BEGIN
  IF coalesce(installed, 5) >= 5 THEN
    RETURN;
  END IF;
  FOR old IN SELECT oid::regprocedure AS routine FROM pg_proc WHERE pronamespace = 'pythonricing'::regnamespace LOOP
    EXECUTE format('DROP ROUTINE %s', old.routine);
  END LOOP;
  IF installed < 3 THEN
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
  IF installed < 4 THEN
    ALTER TABLE pythonricing.counter RENAME COLUMN count TO issued;
    ALTER TABLE pythonricing.counter
      ADD COLUMN moved bigint NOT NULL DEFAULT 0, ADD COLUMN free int8multirange, ADD COLUMN lent bigint;
    ALTER TABLE pythonricing.receipt
      ADD COLUMN IF NOT EXISTS held int8multirange, ADD COLUMN IF NOT EXISTS lent bigint;
  END IF;
  ALTER TABLE pythonricing.counter
    ADD COLUMN began bigint, ADD COLUMN each bigint, ADD COLUMN every text, ADD COLUMN zone text,
    ADD COLUMN ends bigint, ADD COLUMN resolved bigint, ADD COLUMN losses bigint, ADD COLUMN held bigint,
    ADD COLUMN given bigint, ADD COLUMN due bigint;
  ALTER TABLE pythonricing.receipt ADD COLUMN IF NOT EXISTS told text[];
  -- A call that waited for this meanwhile goes on, though it has nowhere to return to: it must not get as far as a commit.
  PERFORM FROM pg_attribute
    WHERE attrelid = 'pythonricing.receipt'::regclass AND attname = 'sequence' AND NOT attisdropped;
  IF FOUND THEN
    ALTER TABLE pythonricing.receipt RENAME COLUMN sequence TO number;
  END IF;
  ALTER TABLE pythonricing.key ADD COLUMN IF NOT EXISTS words text[];
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

-- Of an epoch that is over nobody holds or owns anything. Mostly that is seen by the epoch, and its rows are swept away.
CREATE OR REPLACE FUNCTION pythonricing.forget(counter_name text, last_epoch bigint) RETURNS void LANGUAGE sql AS $$
  DELETE FROM pythonricing.hold h WHERE h.name = counter_name AND h.epoch = last_epoch;
  DELETE FROM pythonricing.given_back g WHERE g.name = counter_name AND g.epoch = last_epoch;
  DELETE FROM pythonricing.owner o WHERE o.name = counter_name AND o.epoch = last_epoch;
  DELETE FROM pythonricing.claimant c WHERE c.name = counter_name AND c.epoch = last_epoch
$$;

-- `anew`: it begins an epoch, or is what is left after a loss, so that nothing is free and no lease is known.
CREATE OR REPLACE FUNCTION pythonricing.save(state pythonricing.counter, tombstone_seconds int, anew boolean)
RETURNS void LANGUAGE sql AS $$
  -- Deleted, and there again in the same epoch, since a worker has seen more.
  SELECT pythonricing.forget(c.name, c.epoch) FROM pythonricing.counter c
    WHERE state.deleted_until IS NULL AND c.name = state.name AND c.epoch = state.epoch
      AND c.deleted_until IS NOT NULL AND c.began IS NOT NULL;
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
      free = CASE WHEN NOT anew THEN nullif(state.free, '{}') END,
      lent = CASE WHEN NOT anew THEN state.lent END,
      began = state.began, each = state.each, every = state.every, zone = state.zone, ends = state.ends,
      resolved = state.resolved, losses = state.losses, held = state.held, given = state.given, due = state.due
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
  size := least(size, counter."limit" + coalesce(counter.given, 0) - counter.issued);
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
    WHERE least(upper(run) - 1, counter."limit" + coalesce(counter.given, 0)) - lower(run) + 1 >= size ORDER BY run LIMIT 1;
  IF NOT FOUND THEN
    CALL pythonricing.gather(
      counter, size,
      CASE WHEN counter.issued + size <= counter."limit" + coalesce(counter.given, 0) THEN 0 END, got);
    RETURN;
  END IF;
  counter.free := counter.free - int8multirange(int8range(first, first + size));
  counter.moved := counter.moved + size;
  got := ARRAY[first, first + size - 1];
END $$;

-- A counter that has, or will have, holds, give-backs, claimants or windows.
CREATE OR REPLACE FUNCTION pythonricing.special(state pythonricing.counter) RETURNS pythonricing.counter
LANGUAGE plpgsql AS $$
BEGIN
  IF state.began IS NULL THEN
    state.began := state.epoch;
    state.each := 0;
    state.every := '';
    state.zone := '';
    state.ends := 0;
    state.resolved := 0;
    state.losses := 0;
    state.held := 0;
    state.given := 0;
  END IF;
  RETURN state;
END $$;

-- Begin an epoch at 0, whatever was before it; `base` is for the caller to set.
CREATE OR REPLACE FUNCTION pythonricing.begin_epoch(state pythonricing.counter, new_epoch bigint)
RETURNS pythonricing.counter LANGUAGE plpgsql AS $$
BEGIN
  state.epoch := new_epoch;
  state.issued := 0;
  state.moved := 0;
  state.free := NULL;
  state.lent := NULL;
  IF state.began IS NOT NULL THEN
    state.held := 0;
    state.given := 0;
  END IF;
  RETURN state;
END $$;

-- The window of a counter that contains a moment. The end of one of the calendar is `calendar`'s, which the worker has
-- computed: every, zone, begin and end, as often as need be; nulls if it isn't there.
CREATE OR REPLACE FUNCTION pythonricing.time_window(
  every text, zone text, moment bigint, calendar text[], OUT begins bigint, OUT ends bigint
) LANGUAGE plpgsql AS $$
DECLARE
  length bigint;
BEGIN
  IF every ~ '^[0-9]' THEN
    length := left(every, -1)::bigint * 1000000
      * CASE right(every, 1) WHEN 's' THEN 1 WHEN 'm' THEN 60 WHEN 'h' THEN 3600 ELSE 86400 END;
    begins := moment / length * length;
    ends := begins + length;
    RETURN;
  END IF;
  FOR i IN 1..coalesce(cardinality(calendar), 0) BY 4 LOOP
    IF calendar[i] = every AND calendar[i + 1] = zone
        AND calendar[i + 2]::bigint <= moment AND moment < calendar[i + 3]::bigint THEN
      begins := calendar[i + 2];
      ends := calendar[i + 3];
    END IF;
  END LOOP;
END $$;

-- Begin the window that contains a moment, if the one before is over, with the epoch that is the moment at which it
-- begins. `over` is the reply that asks for that window: the moment, every and zone.
CREATE OR REPLACE PROCEDURE pythonricing.renew(
  INOUT counter pythonricing.counter, moment bigint, calendar text[], INOUT over text[]
) LANGUAGE plpgsql AS $$
DECLARE
  time_window record;
BEGIN
  IF counter.deleted_until IS NOT NULL OR counter.lost OR counter.ends IS NULL OR counter.ends = 0
      OR moment < counter.ends THEN
    RETURN;
  END IF;
  time_window := pythonricing.time_window(counter.every, counter.zone, moment, calendar);
  IF time_window.ends IS NULL THEN
    over := ARRAY[moment::text, counter.every, counter.zone];
    RETURN;
  END IF;
  counter := pythonricing.begin_epoch(counter, greatest(time_window.begins, counter.epoch + 1));
  counter.ends := time_window.ends;
  PERFORM pythonricing.save(counter, 0, true);
END $$;

-- The state with whatever a worker has seen beyond it, which the store has lost then; null if there is nothing.
CREATE OR REPLACE FUNCTION pythonricing.reconcile(
  state pythonricing.counter,
  seen_epoch bigint, seen_revision bigint, seen_issued bigint, seen_limit bigint, seen_most bigint,
  seen_deleted boolean, seen_moved bigint, seen_more text[]
) RETURNS pythonricing.counter LANGUAGE plpgsql AS $$
DECLARE
  seen_resolved bigint := coalesce(seen_more[1], '0');
  seen_ends bigint := coalesce(seen_more[5], '0');
  follow boolean;  -- whether it has the rules of what was seen
  renewed boolean; -- whether what was seen is of an earlier window
  ended boolean;
BEGIN
  IF seen_epoch IS NULL THEN
    RETURN NULL;
  ELSIF state.epoch > seen_epoch THEN
    -- Of a window that is over the numbers don't matter any more, but what it renews by does.
    renewed := seen_epoch >= coalesce(state.began, state.epoch);
    ended := renewed OR (seen_ends > 0 AND seen_ends <= state.epoch);
    IF renewed AND (state.revision < seen_revision OR state.resolved < seen_resolved) THEN
      follow := state.revision < seen_revision;
    ELSE
      -- Begun without knowledge of what was seen; who has nothing to lose has lost nothing. Whoever began it after a
      -- deletion made the revision greater than all that they knew of the epoch that it ended.
      IF (ended OR seen_epoch < -state.base OR (seen_epoch = -state.base AND seen_revision < state.revision)
            OR seen_issued <= greatest(state.base, 0))
          AND NOT (seen_revision > 0 AND state.revision = 0) THEN
        RETURN NULL;
      END IF;
      follow := state.revision = 0 AND NOT seen_deleted;
    END IF;
    IF NOT ended THEN
      state.issued := greatest(state.issued, seen_issued);
    END IF;
  ELSIF state.epoch = seen_epoch AND state.revision >= seen_revision
      AND NOT (state.revision = seen_revision AND state.deleted_until IS NOT NULL AND NOT seen_deleted) THEN
    IF state.deleted_until IS NOT NULL OR (state.issued >= seen_issued AND state.moved >= seen_moved
        AND coalesce(state.resolved, 0) >= seen_resolved) THEN
      RETURN NULL;
    END IF;
    state.issued := greatest(state.issued, seen_issued);
    state.moved := greatest(state.moved, seen_moved);
    follow := false;
  ELSE
    IF state.epoch < seen_epoch THEN
      -- Of a counter that is lost the count is the highest that anybody has told, in whichever epoch. And a later epoch
      -- of no later revision was no reset of this one, but a later window, or begun by somebody who knew nothing.
      IF state.deleted_until IS NOT NULL OR NOT (state.lost OR (state.revision >= seen_revision
          AND NOT coalesce(state.ends > 0 AND state.ends <= seen_epoch, false))) THEN
        state.issued := seen_issued;
      END IF;
      state.epoch := seen_epoch;
      state.moved := seen_moved;
      state.base := 0;
      IF state.began IS NOT NULL THEN
        state.began := seen_epoch;
        state.given := 0;
        state.resolved := 0;
      END IF;
    END IF;
    state.issued := greatest(state.issued, seen_issued);
    state.moved := greatest(state.moved, seen_moved);
    follow := true;
  END IF;
  IF state.began IS NOT NULL OR seen_more IS NOT NULL THEN
    -- What is stored as held may be resolved.
    state := pythonricing.special(state);
    state.held := 0;
    state.losses := state.losses + 1;
    state.resolved := greatest(state.resolved, seen_resolved);
  END IF;
  IF follow THEN
    state.deleted_until := CASE WHEN seen_deleted THEN 'infinity'::timestamptz END;
    state.revision := seen_revision;
    state."limit" := seen_limit;
    state.most := seen_most;
    IF state.began IS NOT NULL THEN
      state.each := coalesce(seen_more[2], '0');
      state.every := coalesce(seen_more[3], '');
      state.zone := coalesce(seen_more[4], '');
      -- A worker of an earlier window doesn't end the one that it is now.
      state.ends := greatest(seen_ends, CASE WHEN state.every <> '' AND state.epoch > seen_epoch THEN state.ends END);
    END IF;
  END IF;
  RETURN state;
END $$;

-- The same, marked as lost ("halt"), or raised to what is known ("raise"), as a counter that was marked before is too.
CREATE OR REPLACE FUNCTION pythonricing.recover(
  state pythonricing.counter, on_loss text,
  seen_epoch bigint, seen_revision bigint, seen_issued bigint, seen_limit bigint, seen_most bigint,
  seen_deleted boolean, seen_moved bigint, seen_more text[]
) RETURNS pythonricing.counter LANGUAGE plpgsql AS $$
DECLARE
  more pythonricing.counter := pythonricing.reconcile(
    state, seen_epoch, seen_revision, seen_issued, seen_limit, seen_most, seen_deleted, seen_moved, seen_more);
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

-- The runs of first and last numbers, and the other way round.
CREATE OR REPLACE FUNCTION pythonricing.runs(numbers bigint[]) RETURNS int8multirange LANGUAGE sql IMMUTABLE AS $$
  SELECT coalesce(range_agg(int8range(numbers[i], numbers[i + 1], '[]')), '{}')
  FROM generate_series(1, cardinality(numbers), 2) i
$$;

CREATE OR REPLACE FUNCTION pythonricing.numbers(runs int8multirange) RETURNS bigint[] LANGUAGE sql IMMUTABLE AS $$
  SELECT coalesce(array_agg(number ORDER BY number), '{}')
  FROM unnest(runs) run, LATERAL (VALUES (lower(run)), (upper(run) - 1)) AS ends (number)
$$;

-- The first so many numbers of runs.
CREATE OR REPLACE FUNCTION pythonricing.first(runs int8multirange, size bigint) RETURNS int8multirange
LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
  run int8range;
  got int8multirange := '{}';
BEGIN
  FOR run IN SELECT each FROM unnest(runs) each ORDER BY each LOOP
    EXIT WHEN size <= 0;
    got := got + int8multirange(int8range(lower(run), least(upper(run), lower(run) + size)));
    size := size - (upper(run) - lower(run));
  END LOOP;
  RETURN got;
END $$;

-- Give numbers back, as far as they were not, to their owners' shares too; `given` is how many that are. For the caller
-- to save. Runs lie apart, so that those which meet one are the last one that begins before it, and those within.
CREATE OR REPLACE PROCEDURE pythonricing.mark(
  INOUT counter pythonricing.counter, runs int8multirange, INOUT given bigint
) LANGUAGE plpgsql AS $$
DECLARE
  claimants text[];
  numbers bigint[];
BEGIN
  SELECT runs - coalesce(range_agg(int8range(g.first, g.last, '[]')), '{}') INTO runs
    FROM unnest(runs) run JOIN pythonricing.given_back g
      ON g.name = counter.name AND g.epoch = counter.epoch AND g.first < upper(run) AND g.last >= lower(run)
      AND g.first >= coalesce((
        SELECT max(b.first) FROM pythonricing.given_back b
        WHERE b.name = counter.name AND b.epoch = counter.epoch AND b.first <= lower(run)), lower(run));
  given := pythonricing.total(runs);
  IF given = 0 THEN
    RETURN;
  END IF;
  counter.given := counter.given + given;
  INSERT INTO pythonricing.given_back AS g (name, epoch, first, last)
    SELECT counter.name, counter.epoch, lower(run), upper(run) - 1 FROM unnest(runs) run
    ON CONFLICT (name, epoch, first) DO UPDATE SET last = excluded.last;
  SELECT array_agg(part.claimant), array_agg(part.numbers) INTO claimants, numbers FROM (
    SELECT o.claimant, sum(least(o.last, upper(run) - 1) - greatest(o.first, lower(run)) + 1) AS numbers
    FROM unnest(runs) run JOIN pythonricing.owner o
      ON o.name = counter.name AND o.epoch = counter.epoch AND o.first < upper(run) AND o.last >= lower(run)
      AND o.first >= coalesce((
        SELECT max(b.first) FROM pythonricing.owner b
        WHERE b.name = counter.name AND b.epoch = counter.epoch AND b.first <= lower(run)), lower(run))
    GROUP BY o.claimant) AS part;
  IF claimants IS NOT NULL THEN
    UPDATE pythonricing.claimant c SET share = c.share - part.numbers
      FROM unnest(claimants, numbers) AS part (claimant, numbers)
      WHERE c.name = counter.name AND c.epoch = counter.epoch AND c.claimant = part.claimant;
    DELETE FROM pythonricing.claimant c
      WHERE c.name = counter.name AND c.epoch = counter.epoch AND c.claimant = ANY (claimants) AND c.share <= 0;
    DELETE FROM pythonricing.owner o USING unnest(runs) run
      WHERE o.name = counter.name AND o.epoch = counter.epoch AND o.first >= lower(run) AND o.first < upper(run)
      AND o.last < upper(run);
  END IF;
END $$;

-- Note whose the numbers of an admitted claim are, and its hold; `expires` is the second at which that does, or 0. For the
-- caller to save.
CREATE OR REPLACE PROCEDURE pythonricing.own(
  INOUT counter pythonricing.counter, got bigint[], hold_id text, seconds bigint, claimant_id text, moment bigint,
  INOUT expires bigint
) LANGUAGE plpgsql AS $$
DECLARE
  runs int8multirange := pythonricing.runs(got);
  size bigint := pythonricing.total(runs);
BEGIN
  expires := 0;
  IF claimant_id <> '' THEN
    INSERT INTO pythonricing.owner AS o (name, epoch, first, last, claimant)
      SELECT counter.name, counter.epoch, lower(run), upper(run) - 1, claimant_id FROM unnest(runs) run
      ON CONFLICT (name, epoch, first) DO UPDATE SET last = excluded.last, claimant = excluded.claimant;
    INSERT INTO pythonricing.claimant AS c (name, epoch, claimant, share)
      VALUES (counter.name, counter.epoch, claimant_id, size)
      ON CONFLICT (name, epoch, claimant) DO UPDATE SET share = c.share + excluded.share;
  END IF;
  IF hold_id <> '' THEN
    expires := moment / 1000000 + seconds + 1;
    INSERT INTO pythonricing.hold (name, id, epoch, losses, size, due, runs)
      VALUES (counter.name, hold_id, counter.epoch, counter.losses, size, expires, runs);
    counter.held := counter.held + size;
    counter.due := least(counter.due, expires);
  END IF;
END $$;

-- Give back the numbers of holds that have expired, at most 128 of them, those that are due first, and keep that.
-- `expired` is how many numbers went back, `ripe` whether holds that have expired are left.
CREATE OR REPLACE PROCEDURE pythonricing.expire(
  INOUT counter pythonricing.counter, moment bigint, INOUT expired bigint, INOUT ripe boolean
) LANGUAGE plpgsql AS $$
DECLARE
  second bigint := moment / 1000000;
  ids text[];
  opened text[];
  own_size bigint;
  own_runs int8multirange;
  given bigint;
BEGIN
  SELECT array_agg(h.id), array_agg(h.id) FILTER (WHERE h.open), coalesce(sum(h.size) FILTER (WHERE h.open), 0),
      coalesce(sum(h.size) FILTER (WHERE h.open AND h.epoch = counter.epoch), 0)
    INTO ids, opened, expired, own_size
    FROM (
      SELECT o.id, o.epoch, o.size, o.epoch >= counter.began AND o.losses = counter.losses AS open
      FROM pythonricing.hold o WHERE o.name = counter.name AND o.outcome IS NULL AND o.due <= second
      ORDER BY o.due, o.id COLLATE "C" LIMIT 128) AS h;
  IF own_size > 0 THEN
    SELECT range_agg(run) INTO own_runs FROM pythonricing.hold h, unnest(h.runs) run
      WHERE h.name = counter.name AND h.id = ANY (opened) AND h.epoch = counter.epoch;
    CALL pythonricing.mark(counter, own_runs, given);
    counter.held := counter.held - own_size;
  END IF;
  IF opened IS NOT NULL THEN
    counter.moved := counter.moved + expired;
    UPDATE pythonricing.hold h SET outcome = 'expired', runs = '{}', due = h.due + 86400
      WHERE h.name = counter.name AND h.id = ANY (opened);
  END IF;
  -- Of an epoch that is forgotten, or of before a loss; or resolved long ago by now.
  DELETE FROM pythonricing.hold h
    WHERE h.name = counter.name AND h.id = ANY (ids) AND (h.outcome IS NULL OR h.due <= second);
  SELECT min(h.due) INTO counter.due FROM pythonricing.hold h WHERE h.name = counter.name AND h.outcome IS NULL;
  ripe := coalesce(counter.due <= second, false) AND counter.held > 0;
  UPDATE pythonricing.counter c
    SET moved = counter.moved, held = counter.held, given = counter.given, due = counter.due
    WHERE c.name = counter.name;
END $$;

-- What is told of a counter that is read: epoch, revision, limit, most, the numbers taken, issued, moved, those out on
-- leases that may come back, and what was issued before a loss raised it, or null; and of one with more than that: each,
-- every, zone, ends, resolved, held, given back, the second at which a hold is due, the time if anything depends on it,
-- and the numbers that went back just now because their holds had expired.
CREATE OR REPLACE FUNCTION pythonricing.told(counter pythonricing.counter, raised bigint, expired bigint)
RETURNS text[] LANGUAGE plpgsql AS $$
DECLARE
  numbers bigint[] := ARRAY[
    counter.epoch, counter.revision, counter."limit", counter.most,
    counter.issued - pythonricing.total(counter.free) - coalesce(counter.given, 0), counter.issued, counter.moved,
    pythonricing.leased(counter.name, counter.lent), raised];
BEGIN
  IF counter.began IS NULL THEN
    RETURN numbers;
  END IF;
  RETURN numbers::text[] || ARRAY[
    counter.each::text, counter.every, counter.zone, counter.ends::text, counter.resolved::text, counter.held::text,
    counter.given::text, CASE WHEN counter.held > 0 THEN counter.due ELSE 0 END::text,
    CASE WHEN counter.ends > 0 OR counter.held > 0 THEN pythonricing.clock() ELSE 0 END::text,
    coalesce(expired, 0)::text];
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
    INSERT INTO pythonricing.receipt AS r (name, worker, number, reply, expires) VALUES (
        counter_name, worker_id, batch_sequence, answer, clock_timestamp() + make_interval(secs => receipt_seconds))
      ON CONFLICT (name, worker) DO UPDATE
        SET number = excluded.number, reply = excluded.reply, expires = excluded.expires;
    changed := true;
  END IF;
  CALL pythonricing.finish(changed);
END $$;

-- One batch of claims on one counter: executed once, however often it is sent.
--
-- The claims are groups in arrival order: times[i] claims of sizes[i]; one with a key is a group of its own, and so is
-- each one where `wishes` are given: id and seconds of its hold and its claimant for each, perhaps ''. Runs of numbers
-- are pairs of the first and the last one.
-- `outcome` is OK, MISSING, LOST, STALE or OVER; `reply` is attempt, epoch, revision, limit, most, the numbers taken
-- before, issued, moved, the numbers out on leases that may come back (0 if every claim was admitted and another one
-- might be), and what was issued before a loss raised it, or null. Then, each after its length: nothing, or of a counter
-- with more than that each, every, zone, ends, resolved, due, time, expired and held (see told) and the places of the
-- claims that their claimants' shares refused; the runs that the admitted claims got, those that the worker is lent, and for
-- each keyed claim its record, of length 0 where the key was new, and with its hold, expiry and claimant before the runs
-- where there is more. What is only read is told otherwise (see told).
-- MISSING replies epoch and revision of the deletion if that is known; OVER the time, every and zone of a window that
-- the worker has to add to `calendar` (see time_window), before it sends the same again.
CREATE OR REPLACE PROCEDURE pythonricing.claim(
  patience int,
  calendar text[],
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
  seen_more text[],       -- its resolved, each, every, zone and ends; null: it had none of these
  want bigint,            -- how many numbers the worker wants to be lent
  back bigint[],          -- the runs of its lease that it gives back, or null
  still bigint[],         -- the runs of its lease that it still holds, or null
  times bigint[],
  sizes bigint[],
  keys text[],
  wishes text[],
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
  spare bigint := 0;   -- how many are free or were given back
  gone bigint;         -- how many were given back; null where it has nothing of the following, as all of that
  size bigint;
  admitted bigint;
  waited bigint;
  raised bigint;
  special boolean;     -- whether it has holds, give-backs, claimants or windows
  told text[];
  over text[];
  moment bigint;
  last_epoch bigint;
  expired bigint;
  ripe boolean;
  stale boolean;
  place int;
  hold_id text;
  claimant_id text;
  share bigint;
  capped boolean;
  refused text[];
  words text[];
  expires bigint;
  writing boolean := batch_sequence > 0;
  changed boolean := false;
BEGIN
  -- As `start` does: to call it would take a batch a twenty-fifth of its time.
  IF current_setting('transaction_isolation') <> 'read committed' THEN
    ROLLBACK;
    SET TRANSACTION ISOLATION LEVEL READ COMMITTED;
  END IF;
  PERFORM set_config('lock_timeout', patience::text, true), set_config('client_min_messages', 'warning', true);

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
      IF receipt.number = batch_sequence THEN
        -- A write: the first commit may not have reached a synchronous standby, and this one waits for both.
        UPDATE pythonricing.receipt r SET expires = clock_timestamp() + make_interval(secs => receipt_seconds)
          WHERE r.name = counter_name AND r.worker = worker_id;
        outcome := CASE cardinality(receipt.reply) WHEN 0 THEN 'LOST' WHEN 2 THEN 'MISSING' ELSE 'OK' END;
        reply := CASE
          WHEN cardinality(receipt.reply) = 1 THEN receipt.told
          WHEN receipt.reply <> '{0,0}' THEN receipt.reply::text[]
        END;
        COMMIT;
        RETURN;
      ELSIF receipt.number > batch_sequence THEN
        outcome := 'STALE';
        ROLLBACK;
        RETURN;
      END IF;
    END IF;
    IF counter.began IS NOT NULL THEN
      -- Renewed before anything else: what was seen of a window that is over is no loss.
      moment := pythonricing.clock();
      IF NOT writing THEN
        stale := (counter.ends > 0 AND counter.ends <= moment) OR coalesce(counter.due <= moment / 1000000, false);
      ELSIF counter.ends > 0 AND counter.ends <= moment THEN
        last_epoch := counter.epoch;
        CALL pythonricing.renew(counter, moment, calendar, over);
        IF over IS NOT NULL THEN
          outcome := 'OVER';
          reply := over;
          ROLLBACK;
          RETURN;
        END IF;
        IF counter.epoch > last_epoch THEN
          receipt.held := NULL;
          changed := true;
        END IF;
      END IF;
    END IF;
    IF counter.lost OR counter.deleted_until IS NOT NULL OR counter.epoch <> seen_epoch
      OR counter.revision <> seen_revision OR counter.issued < seen_issued OR counter.moved < seen_moved
      OR coalesce(counter.resolved, 0) < coalesce(seen_more[1], '0')::bigint THEN
      more := pythonricing.recover(
        counter, on_loss, seen_epoch, seen_revision, seen_issued, seen_limit, seen_most, seen_deleted, seen_moved,
        seen_more);
    END IF;
    EXIT WHEN CASE
      WHEN counter.name IS NULL THEN seen_epoch IS NULL AND create_limit IS NULL
      WHEN writing THEN true
      ELSE more.name IS NULL AND (counter.deleted_until IS NULL OR create_limit IS NULL) AND stale IS NOT TRUE
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
    moment := pythonricing.clock();
    CALL pythonricing.renew(counter, moment, calendar, over);
    IF over IS NOT NULL THEN
      outcome := 'OVER';
      reply := over;
      ROLLBACK;
      RETURN;
    END IF;
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
    counter := pythonricing.begin_epoch(counter, pythonricing.new_epoch(greatest(counter.epoch, seen_epoch)));
    IF counter.began IS NOT NULL THEN
      counter.began := NULL;
      counter := pythonricing.special(counter);
    END IF;
    counter."limit" := create_limit;
    counter.most := 0;
    counter.deleted_until := NULL;
    raised := NULL;
    PERFORM pythonricing.save(counter, tombstone_seconds, true);
    receipt.held := NULL;
    changed := true;
  END IF;

  IF counter.began IS NOT NULL OR wishes IS NOT NULL THEN
    special := true;
    runs := '{}';
    place := 0;
    expired := 0;
    ripe := false;
    moment := coalesce(moment, pythonricing.clock());
    IF counter.began IS NULL THEN
      counter := pythonricing.special(counter);
      PERFORM pythonricing.save(counter, tombstone_seconds, false);
    ELSIF counter.due <= moment / 1000000 THEN
      CALL pythonricing.expire(counter, moment, expired, ripe);
      changed := true;
    END IF;
    gone := counter.given;
    spare := gone;
    IF gone > 0 AND batch_sequence > 0 THEN
      counter."limit" := least(counter."limit", 9007199254740991 - gone); -- there are no more numbers
    END IF;
  END IF;

  outcome := 'OK';
  IF batch_sequence = 0 THEN
    reply := pythonricing.told(counter, raised, expired);
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
      run := receipt.held * int8multirange(int8range(back[i], back[i + 1], '[]'));
      IF NOT isempty(run) THEN
        receipt.held := receipt.held - run;
        counter.free := coalesce(counter.free, '{}') + run;
        counter.moved := counter.moved + pythonricing.total(run);
      END IF;
    END LOOP;
    FOR i IN 1..coalesce(cardinality(still), 0) BY 2 LOOP
      run := receipt.held * int8multirange(int8range(still[i], still[i + 1], '[]'));
      IF NOT isempty(run) THEN
        receipt.held := receipt.held - run;
        held := coalesce(held, '{}') + run;
      END IF;
    END LOOP;
    IF counter.free IS NOT NULL THEN
      runs := '{}';
      spare := pythonricing.total(counter.free) + coalesce(gone, 0);
      changed := true;
    END IF;
  END IF;

  before := counter.issued - spare;
  FOR claim IN SELECT * FROM unnest(times, sizes, keys) AS claims (times, size, key) LOOP
    -- As a rule; `runs` is never null where there is more.
    IF claim.key IS NULL AND runs IS NULL AND (counter.most = 0 OR claim.size <= counter.most)
        AND claim.times <= (counter."limit" - counter.issued) / claim.size THEN
      counter.issued := counter.issued + claim.size * claim.times;
      CONTINUE;
    END IF;
    IF special THEN
      place := place + 1;
      hold_id := wishes[3 * place - 2];
      claimant_id := coalesce(wishes[3 * place], '');
      capped := false;
    END IF;
    IF claim.key IS NOT NULL THEN
      SELECT k.record, k.words INTO known, words FROM pythonricing.key k
        WHERE k.name = counter_name AND k.key = claim.key AND k.expires > clock_timestamp()
          -- Of an earlier window an admission counts, a refusal doesn't.
          AND k.epoch >= CASE WHEN k.record[4] = 1 THEN coalesce(counter.began, counter.epoch) ELSE counter.epoch END;
      IF FOUND AND special THEN
        told := told || (cardinality(known) + 3)::text || known[1:4]::text[] || coalesce(words, ARRAY['', '0', ''])
          || known[5:]::text[];
        CONTINUE;
      ELSIF FOUND THEN
        records := records || cardinality(known)::bigint || known;
        CONTINUE;
      ELSIF special THEN
        told := told || '0'::text;
      ELSE
        records := records || 0::bigint;
      END IF;
    END IF;
    CONTINUE WHEN counter.most > 0 AND claim.size > counter.most;
    IF special THEN
      -- Each claim names a claimant just where there are claimants.
      CONTINUE WHEN (counter.each > 0) <> (claimant_id <> '')
        OR (claim.size > 1024 AND (hold_id <> '' OR claimant_id <> ''));
      IF claimant_id <> '' THEN
        share := (
          SELECT c.share FROM pythonricing.claimant c
          WHERE c.name = counter_name AND c.epoch = counter.epoch AND c.claimant = claimant_id);
        capped := coalesce(share, 0) + claim.size > counter.each;
      END IF;
    END IF;
    admitted := greatest(0, least(claim.times, (counter."limit" - counter.issued + spare) / claim.size));
    IF capped THEN
      admitted := 0;
      refused := refused || (place - 1)::text;
    ELSIF runs IS NULL THEN
      counter.issued := counter.issued + admitted * claim.size;
    ELSIF admitted > 0 THEN
      FOR n IN 1..admitted LOOP
        CALL pythonricing.take(counter, claim.size, got);
        FOR i IN 1..cardinality(got) BY 2 LOOP
          runs := pythonricing.add(runs, got[i], got[i + 1]);
        END LOOP;
      END LOOP;
      spare := pythonricing.total(counter.free) + coalesce(gone, 0);
    END IF;
    IF waited IS NULL AND admitted < claim.times AND capped IS NOT TRUE THEN
      waited := CASE WHEN counter.lent IS NULL THEN 0
        ELSE pythonricing.leased(counter_name, counter.lent, worker_id, held, receipt.lent) END;
    END IF;
    IF special AND wishes IS NOT NULL THEN
      expires := 0;
      IF admitted > 0 AND (hold_id <> '' OR claimant_id <> '') THEN
        CALL pythonricing.own(counter, got, hold_id, wishes[3 * place - 1]::bigint, claimant_id, moment, expires);
      END IF;
    END IF;
    -- A refusal is remembered once neither a lease nor a hold can make room any more.
    IF claim.key IS NOT NULL
        AND (admitted > 0 OR CASE
          WHEN capped THEN counter.held = 0
          ELSE counter.issued - spare + claim.size - waited - coalesce(counter.held, 0) > counter."limit" END) THEN
      known := ARRAY[claim.size, counter.issued, counter."limit", admitted];
      IF admitted = 0 THEN
        known[2] := counter.issued - spare;
      ELSIF runs IS NOT NULL THEN
        known[2] := got[cardinality(got)];
        known := known || CASE WHEN cardinality(got) > 2 THEN got END;
      END IF;
      IF special THEN
        known[4] := CASE WHEN capped THEN 2 ELSE admitted END;
        words := CASE
          WHEN hold_id <> '' OR claimant_id <> ''
          THEN ARRAY[CASE WHEN admitted > 0 THEN hold_id ELSE '' END, expires::text, claimant_id] END;
      END IF;
      INSERT INTO pythonricing.key AS k (name, key, epoch, record, expires, words) VALUES (
          counter_name, claim.key, counter.epoch, known,
          clock_timestamp()
            + make_interval(secs => CASE WHEN admitted > 0 THEN key_seconds ELSE refused_key_seconds END),
          words)
        ON CONFLICT (name, key) DO UPDATE
          SET epoch = excluded.epoch, record = excluded.record, expires = excluded.expires, words = excluded.words;
    END IF;
  END LOOP;

  IF waited IS NULL AND counter.issued - spare >= counter."limit" THEN
    waited := pythonricing.leased(counter_name, counter.lent, worker_id, held, receipt.lent);
  END IF;

  -- A lease is at most 1/64 of what is left and at least 4 numbers, of at most 8 free runs; none is given above 64 of
  -- those, nor so late that it would be used beyond the window, nor where each claim has a claimant.
  IF want >= 4 AND NOT (
      special IS TRUE AND (counter.each > 0 OR (counter.ends > 0 AND moment + 100000 >= counter.ends))) THEN
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
      counter.lent := greatest(counter.lent, receipt.lent); -- where the clock went back
      changed := true;
    END IF;
  END IF;

  answer := ARRAY[
    batch_attempt, counter.epoch, counter.revision, counter."limit", counter.most, before, counter.issued,
    counter.moved, coalesce(waited + CASE WHEN ripe THEN counter.held ELSE 0 END, 0), raised, 0] || CASE
      WHEN runs IS NOT NULL THEN cardinality(runs)::bigint || runs || coalesce(cardinality(lent), 0)::bigint || lent
      WHEN counter.issued > before THEN ARRAY[2, before + 1, counter.issued, 0] -- nothing was lent, see above
      ELSE ARRAY[0::bigint, 0]
    END || records;
  IF special THEN
    UPDATE pythonricing.counter c
      SET issued = counter.issued, moved = counter.moved, free = nullif(counter.free, '{}'), lent = counter.lent,
        held = counter.held, due = counter.due
      WHERE c.name = counter_name;
    reply := answer[1:10]::text[] || (9 + coalesce(cardinality(refused), 0))::text || ARRAY[
      counter.each::text, counter.every, counter.zone, counter.ends::text, counter.resolved::text,
      CASE WHEN counter.held > 0 THEN counter.due ELSE 0 END::text,
      CASE WHEN counter.ends > 0 OR counter.held > 0 THEN moment ELSE 0 END::text, expired::text,
      counter.held::text
      ] || refused || answer[12:]::text[] || told;
    INSERT INTO pythonricing.receipt AS r (name, worker, number, reply, expires, held, lent, told) VALUES (
        counter_name, worker_id, batch_sequence, ARRAY[batch_attempt],
        clock_timestamp() + make_interval(secs => receipt_seconds),
        held, CASE WHEN held IS NOT NULL THEN receipt.lent END, reply)
      ON CONFLICT (name, worker) DO UPDATE
        SET number = excluded.number, reply = excluded.reply, expires = excluded.expires, held = excluded.held,
          lent = excluded.lent, told = excluded.told;
  ELSE
    IF changed OR counter.issued > before THEN
      UPDATE pythonricing.counter c
        SET issued = counter.issued, moved = counter.moved, free = nullif(counter.free, '{}'), lent = counter.lent
        WHERE c.name = counter_name;
    END IF;
    INSERT INTO pythonricing.receipt AS r (name, worker, number, reply, expires, held, lent) VALUES (
        counter_name, worker_id, batch_sequence, answer, clock_timestamp() + make_interval(secs => receipt_seconds),
        held, CASE WHEN held IS NOT NULL THEN receipt.lent END)
      ON CONFLICT (name, worker) DO UPDATE
        SET number = excluded.number, reply = excluded.reply, expires = excluded.expires, held = excluded.held,
          lent = excluded.lent;
    reply := answer;
  END IF;
  COMMIT;
END $$;

-- Begin to execute a word of an operator: lock the counter's row, made if need be. `outcome` is null if it is to be
-- executed; or else the transaction has ended: OK, it was executed before and replied `reply`; LOST or NEVER (see
-- give_back), so it was answered before; or LATE.
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
DECLARE
  told text[];
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
    WHERE r.name = counter_name AND r.worker = word_id AND r.expires > clock_timestamp()
    RETURNING r.reply, r.told INTO reply, told;
  IF FOUND THEN
    outcome := CASE reply WHEN '{}' THEN 'LOST' WHEN '{0}' THEN 'NEVER' ELSE 'OK' END;
    reply := coalesce(told, reply);
    COMMIT;
  ELSIF pythonricing.clock() > not_after THEN
    -- Asked under the lock: whoever claims or speaks later finds this executed, or never.
    outcome := 'LATE';
    ROLLBACK;
  END IF;
END $$;

-- Leave the receipt of an operator's word: its reply (LOST: '{}', NEVER: '{0}'), or what was told.
CREATE OR REPLACE FUNCTION pythonricing.leave_receipt(
  counter_name text, word_id text, receipt_seconds int, answer bigint[], what text[]
) RETURNS void LANGUAGE sql AS $$
  INSERT INTO pythonricing.receipt (name, worker, number, reply, expires, told) VALUES (
    counter_name, word_id, 0, answer, clock_timestamp() + make_interval(secs => receipt_seconds), what)
    ON CONFLICT (name, worker) DO UPDATE SET reply = excluded.reply, expires = excluded.expires, told = excluded.told
$$;

-- Go on with a word about a counter that has to be there, as it is or as it was seen: renew it, recover it, and let what
-- is due expire. `outcome` is null then; or LOST, MISSING with `reply`, or OVER (see claim), and nothing has ended yet.
CREATE OR REPLACE PROCEDURE pythonricing.meet(
  INOUT counter pythonricing.counter,
  INOUT raised bigint,
  INOUT expired bigint,
  INOUT changed boolean, -- whether there is something to be committed
  INOUT moment bigint,
  calendar text[],
  tombstone_seconds int,
  on_loss text,
  seen_epoch bigint,
  seen_revision bigint,
  seen_issued bigint,
  seen_limit bigint,
  seen_most bigint,
  seen_deleted boolean,
  seen_moved bigint,
  seen_more text[],
  INOUT outcome text,
  INOUT reply text[]
) LANGUAGE plpgsql AS $$
DECLARE
  before bigint := counter.epoch;
  more pythonricing.counter;
  over text[];
  ripe boolean;
BEGIN
  moment := pythonricing.clock();
  CALL pythonricing.renew(counter, moment, calendar, over);
  IF over IS NULL THEN
    changed := counter.epoch > before;
    more := pythonricing.recover(
      counter, on_loss, seen_epoch, seen_revision, seen_issued, seen_limit, seen_most, seen_deleted, seen_moved,
      seen_more);
  END IF;
  IF more.name IS NOT NULL THEN
    raised := CASE WHEN NOT more.lost THEN counter.issued END;
    counter := more;
    changed := true;
    PERFORM pythonricing.save(counter, tombstone_seconds, true);
    CALL pythonricing.renew(counter, moment, calendar, over);
  END IF;
  IF over IS NOT NULL THEN
    outcome := 'OVER';
    reply := over;
  ELSIF counter.lost THEN
    outcome := 'LOST';
  ELSIF counter.epoch = 0 OR counter.deleted_until IS NOT NULL THEN
    outcome := 'MISSING';
    reply := CASE WHEN counter.epoch > 0 THEN ARRAY[counter.epoch, counter.revision] END;
  ELSIF counter.due <= moment / 1000000 THEN
    CALL pythonricing.expire(counter, moment, expired, ripe);
    changed := true;
  END IF;
END $$;

-- Create a counter, change its limit and rules, or start it over: once, however often it is sent.
--
-- `how`: "change" keeps the count and ends the state of a lost counter, but not of one of which nobody knew that it is
-- lost; "restart" begins a new epoch at 0; "configure" is the settings' word, which leaves a lost counter lost.
-- `outcome` is OK, LATE, LOST, MISSING or OVER (see claim); `reply` is created (1 or 0), and what is told of the counter.
CREATE OR REPLACE PROCEDURE pythonricing.put(
  patience int,
  calendar text[],
  counter_name text,
  word_id text,
  not_after bigint,   -- the moment after which it has no effect
  receipt_seconds int,
  tombstone_seconds int,
  new_limit bigint,   -- each of these null keeps the one it has
  new_most bigint,
  new_each bigint,
  new_every text,
  new_zone text,
  how text,
  on_loss text,       -- and what was seen, as in claim
  seen_epoch bigint,
  seen_revision bigint,
  seen_issued bigint,
  seen_limit bigint,
  seen_most bigint,
  seen_deleted boolean,
  seen_moved bigint,
  seen_more text[],
  OUT outcome text,
  OUT reply text[]
) LANGUAGE plpgsql AS $$
DECLARE
  counter pythonricing.counter;
  last pythonricing.counter;
  marked boolean;
  was_lost boolean;
  missed boolean;
  starts boolean;
  otherwise boolean; -- whether it renews in another way
  raised bigint;
  expired bigint;
  changed boolean := false;
  moment bigint;
  over text[];
  time_window record;
BEGIN
  CALL pythonricing.hear(patience, counter_name, word_id, not_after, receipt_seconds, counter, outcome, reply);
  IF outcome IS NOT NULL THEN
    RETURN;
  END IF;
  marked := counter.lost;
  moment := pythonricing.clock();
  IF how <> 'restart' THEN
    CALL pythonricing.meet(
      counter, raised, expired, changed, moment, calendar, tombstone_seconds, on_loss, seen_epoch, seen_revision,
      seen_issued, seen_limit, seen_most, seen_deleted, seen_moved, seen_more, outcome, reply);
    IF outcome = 'OVER' THEN
      ROLLBACK;
      RETURN;
    ELSIF outcome = 'LOST' AND (how = 'configure' OR NOT marked) THEN
      -- With a receipt: sent again, it must not end the loss that it was the first to notice.
      PERFORM pythonricing.leave_receipt(counter_name, word_id, receipt_seconds, '{}', NULL);
      COMMIT;
      RETURN;
    END IF;
    outcome := NULL;
    reply := NULL;
  END IF;

  missed := counter.epoch = 0 OR counter.deleted_until IS NOT NULL;
  starts := missed OR how = 'restart';
  -- What is kept: of a counter that is gone nothing, but if it starts over, what was seen.
  last := counter;
  IF missed THEN
    last."limit" := NULL;
    last.most := 0;
    last.each := 0;
    last.every := '';
    last.zone := '';
  END IF;
  IF counter.epoch = 0 AND how = 'restart' AND NOT seen_deleted THEN
    last."limit" := seen_limit;
    last.most := seen_most;
    last.each := coalesce(seen_more[2], '0');
    last.every := coalesce(seen_more[3], '');
    last.zone := coalesce(seen_more[4], '');
  END IF;
  new_limit := coalesce(new_limit, last."limit");
  IF new_limit IS NULL THEN
    outcome := 'MISSING';
    reply := CASE WHEN counter.epoch > 0 THEN ARRAY[counter.epoch, counter.revision] END;
    CALL pythonricing.finish(changed);
    RETURN;
  END IF;
  new_most := coalesce(new_most, last.most);
  new_each := coalesce(new_each, last.each, 0);
  new_every := coalesce(new_every, last.every, '');
  new_zone := coalesce(new_zone, last.zone, '');
  otherwise := new_every <> coalesce(last.every, '') OR new_zone <> coalesce(last.zone, '');

  IF starts THEN
    counter.revision := CASE
      WHEN how = 'configure' AND counter.epoch = 0 THEN 0
      ELSE greatest(counter.revision, seen_revision) + 1
    END;
    counter.base := CASE WHEN how = 'restart' THEN 9007199254740992 ELSE -counter.epoch END;
    counter := pythonricing.begin_epoch(counter, pythonricing.new_epoch(greatest(counter.epoch, seen_epoch)));
    IF counter.began IS NOT NULL THEN
      counter.began := NULL;
      counter := pythonricing.special(counter);
    END IF;
    counter.deleted_until := NULL;
    raised := NULL;
  ELSIF counter.lost OR otherwise OR (new_limit, new_most, new_each)
      <> (counter."limit", counter.most, coalesce(counter.each, 0)) THEN
    counter.revision := counter.revision + 1;
    counter.base := CASE
      WHEN counter.lost AND counter.base >= 0 THEN greatest(counter.base, counter.issued)
      ELSE counter.base
    END;
  END IF;
  was_lost := counter.lost;
  counter.lost := false;
  counter."limit" := new_limit;
  counter.most := new_most;
  IF counter.began IS NOT NULL OR new_each > 0 OR new_every <> '' THEN
    counter := pythonricing.special(counter);
    counter.each := new_each;
    counter.every := new_every;
    counter.zone := new_zone;
    IF starts OR otherwise THEN
      time_window := pythonricing.time_window(new_every, new_zone, moment, calendar);
      counter.ends := CASE WHEN new_every = '' THEN 0 ELSE time_window.ends END;
      IF counter.ends IS NULL THEN
        outcome := 'OVER';
        reply := ARRAY[moment::text, new_every, new_zone];
        ROLLBACK;
        RETURN;
      END IF;
    END IF;
  END IF;
  PERFORM pythonricing.save(counter, tombstone_seconds, starts);
  IF NOT starts THEN
    -- One that was lost hasn't renewed meanwhile, nor has anything expired.
    CALL pythonricing.renew(counter, moment, calendar, over);
    IF over IS NOT NULL THEN
      outcome := 'OVER';
      reply := over;
      ROLLBACK;
      RETURN;
    END IF;
    IF was_lost AND counter.due <= moment / 1000000 THEN
      CALL pythonricing.expire(counter, moment, expired, changed);
    END IF;
  END IF;

  outcome := 'OK';
  reply := missed::int::text || pythonricing.told(counter, raised, expired);
  PERFORM pythonricing.leave_receipt(counter_name, word_id, receipt_seconds, '{1}', reply);
  COMMIT;
END $$;

-- Confirm a hold, in part too, or release it: once, whatever is said how often. So there is no receipt.
--
-- `outcome` is OK, LATE, LOST, MISSING or OVER (see claim); `reply` is what became of the hold: "confirmed", "released",
-- "expired", "held" if it has fewer numbers than should be confirmed, or "none" if no such hold is known, and "+" after
-- it if that is of this time; its size; how many first and last numbers of confirmed runs follow, and these; and what is told of the counter.
CREATE OR REPLACE PROCEDURE pythonricing.resolve(
  patience int,
  calendar text[],
  counter_name text,
  word_id text,
  not_after bigint,
  receipt_seconds int,
  tombstone_seconds int,
  hold_id text,
  action text,        -- "confirm" or "release"
  number bigint,      -- how many of its numbers are confirmed, null: all; the others go back
  on_loss text,
  seen_epoch bigint,
  seen_revision bigint,
  seen_issued bigint,
  seen_limit bigint,
  seen_most bigint,
  seen_deleted boolean,
  seen_moved bigint,
  seen_more text[],
  OUT outcome text,
  OUT reply text[]
) LANGUAGE plpgsql AS $$
DECLARE
  counter pythonricing.counter;
  hold pythonricing.hold;
  raised bigint;
  expired bigint;
  given bigint;
  moment bigint;
  kept int8multirange := '{}';
  changed boolean := false;
  settled text := '';
BEGIN
  CALL pythonricing.hear(patience, counter_name, word_id, not_after, receipt_seconds, counter, outcome, reply);
  IF outcome IS NOT NULL THEN
    RETURN;
  END IF;
  CALL pythonricing.meet(
    counter, raised, expired, changed, moment, calendar, tombstone_seconds, on_loss, seen_epoch, seen_revision,
    seen_issued, seen_limit, seen_most, seen_deleted, seen_moved, seen_more, outcome, reply);
  IF outcome IS NOT NULL THEN
    CALL pythonricing.finish(changed AND outcome <> 'OVER');
    RETURN;
  END IF;
  SELECT * INTO hold FROM pythonricing.hold h
    WHERE h.name = counter_name AND h.id = hold_id AND h.epoch >= counter.began
      AND CASE WHEN h.outcome IS NULL THEN h.losses = counter.losses ELSE h.due > moment / 1000000 END;
  outcome := 'OK';
  IF NOT FOUND THEN
    reply := ARRAY['none', '0', '0'] || pythonricing.told(counter, raised, expired);
    CALL pythonricing.finish(changed);
    RETURN;
  END IF;
  IF hold.outcome IS NULL AND (action = 'release' OR hold.due * 1000000 <= moment OR coalesce(number, 0) <= hold.size) THEN
    IF hold.due * 1000000 <= moment THEN
      hold.outcome := 'expired';
      hold.due := hold.due + 86400;
    ELSE
      hold.outcome := CASE action WHEN 'confirm' THEN 'confirmed' ELSE 'released' END;
      hold.due := moment / 1000000 + 86400;
      kept := CASE
        WHEN action = 'confirm' THEN pythonricing.first(hold.runs, coalesce(number, hold.size)) ELSE '{}' END;
      counter.resolved := counter.resolved + 1;
      settled := '+';
    END IF;
    IF hold.epoch = counter.epoch THEN
      CALL pythonricing.mark(counter, hold.runs - kept, given);
      counter.held := counter.held - hold.size;
    END IF;
    counter.moved := counter.moved + hold.size;
    hold.runs := kept;
    UPDATE pythonricing.counter c
      SET moved = counter.moved, held = counter.held, given = counter.given, resolved = counter.resolved
      WHERE c.name = counter_name;
  END IF;
  -- A write, also where it was resolved before (see claim).
  UPDATE pythonricing.hold h SET outcome = hold.outcome, due = hold.due, runs = hold.runs
    WHERE h.name = counter_name AND h.id = hold_id;
  kept := CASE WHEN hold.outcome IS NULL THEN '{}' ELSE hold.runs END;
  reply := ARRAY[coalesce(hold.outcome, 'held') || settled, hold.size::text, cardinality(pythonricing.numbers(kept))::text]
    || pythonricing.numbers(kept)::text[] || pythonricing.told(counter, raised, expired);
  COMMIT;
END $$;

-- Give numbers back that somebody owns: once, however often it is sent.
--
-- `outcome` is OK, LATE, LOST, MISSING or OVER (see claim); NEVER, if one of them was never given in the epoch that was
-- seen; LEASED, while it may be that a worker has one and will give it. `reply` is how many had not been given back before,
-- and what is told of the counter.
CREATE OR REPLACE PROCEDURE pythonricing.give_back(
  patience int,
  calendar text[],
  counter_name text,
  word_id text,
  not_after bigint,
  receipt_seconds int,
  tombstone_seconds int,
  numbers bigint[],   -- runs, as pairs of the first and the last one
  on_loss text,
  seen_epoch bigint,
  seen_revision bigint,
  seen_issued bigint,
  seen_limit bigint,
  seen_most bigint,
  seen_deleted boolean,
  seen_moved bigint,
  seen_more text[],
  OUT outcome text,
  OUT reply text[]
) LANGUAGE plpgsql AS $$
DECLARE
  counter pythonricing.counter;
  wanted int8multirange := pythonricing.runs(numbers);
  raised bigint;
  expired bigint;
  given bigint;
  moment bigint;
  changed boolean := false;
BEGIN
  CALL pythonricing.hear(patience, counter_name, word_id, not_after, receipt_seconds, counter, outcome, reply);
  IF outcome IS NOT NULL THEN
    RETURN;
  END IF;
  CALL pythonricing.meet(
    counter, raised, expired, changed, moment, calendar, tombstone_seconds, on_loss, seen_epoch, seen_revision,
    seen_issued, seen_limit, seen_most, seen_deleted, seen_moved, seen_more, outcome, reply);
  IF outcome IS NULL AND (counter.epoch > seen_epoch OR lower(wanted) < 1 OR upper(wanted) - 1 > counter.issued
      OR coalesce(wanted && counter.free, false)) THEN
    outcome := 'NEVER';
  ELSIF outcome IS NULL THEN
    -- What is on a lease that may come back may be given or not.
    PERFORM FROM pythonricing.receipt r
      WHERE r.name = counter_name AND r.held && wanted AND r.lent > moment - 300000;
    outcome := CASE WHEN FOUND THEN 'LEASED' END;
  END IF;
  IF outcome IS NOT NULL THEN
    IF outcome IN ('LOST', 'NEVER') THEN
      -- Sent again, it must not be executed once this is over.
      PERFORM pythonricing.leave_receipt(
        counter_name, word_id, receipt_seconds, CASE outcome WHEN 'LOST' THEN '{}' ELSE '{0}' END::bigint[], NULL);
      changed := true;
    END IF;
    CALL pythonricing.finish(changed AND outcome <> 'OVER');
    RETURN;
  END IF;
  -- What is still on a lease won't be given any more, and counts for nothing if it comes back.
  UPDATE pythonricing.receipt r SET held = r.held - wanted WHERE r.name = counter_name AND r.held && wanted;
  counter := pythonricing.special(counter);
  IF counter.held > 0 THEN
    -- They leave their holds; one that has no others is released.
    WITH met AS (
      SELECT h.id, h.size, h.runs - wanted AS runs FROM pythonricing.hold h
      WHERE h.name = counter_name AND h.outcome IS NULL AND h.epoch = counter.epoch AND h.losses = counter.losses
        AND h.runs && wanted
    ), cut AS (
      UPDATE pythonricing.hold h
        SET size = pythonricing.total(met.runs), runs = met.runs,
          outcome = CASE WHEN isempty(met.runs) THEN 'released' END,
          due = CASE WHEN isempty(met.runs) THEN moment / 1000000 + 86400 ELSE h.due END
        FROM met WHERE h.name = counter_name AND h.id = met.id
        RETURNING met.size - h.size AS size, h.outcome
    )
    SELECT counter.held - coalesce(sum(cut.size), 0), counter.resolved + count(cut.outcome)
      INTO counter.held, counter.resolved FROM cut;
  END IF;
  CALL pythonricing.mark(counter, wanted, given);
  counter.moved := counter.moved + given;
  PERFORM pythonricing.save(counter, tombstone_seconds, false);

  outcome := 'OK';
  reply := given::text || pythonricing.told(counter, raised, expired);
  PERFORM pythonricing.leave_receipt(counter_name, word_id, receipt_seconds, '{1}', reply);
  COMMIT;
END $$;

-- Forget a counter, and leave a tombstone that tells deletion from loss: once, however often it is sent.
-- `outcome` is OK, LATE, MISSING or OVER (see claim); `reply` is epoch and revision of the deletion.
CREATE OR REPLACE PROCEDURE pythonricing.delete(
  patience int,
  calendar text[],
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
  seen_more text[],
  OUT outcome text,
  OUT reply text[]
) LANGUAGE plpgsql AS $$
DECLARE
  counter pythonricing.counter;
  more pythonricing.counter;
  answer bigint[];
  over text[];
BEGIN
  CALL pythonricing.hear(patience, counter_name, word_id, not_after, receipt_seconds, counter, outcome, reply);
  IF outcome IS NOT NULL THEN
    RETURN;
  END IF;
  CALL pythonricing.renew(counter, pythonricing.clock(), calendar, over);
  IF over IS NOT NULL THEN
    outcome := 'OVER';
    reply := over;
    ROLLBACK;
    RETURN;
  END IF;
  more := pythonricing.reconcile(
    counter, seen_epoch, seen_revision, seen_issued, seen_limit, seen_most, seen_deleted, seen_moved, seen_more);
  IF more.name IS NOT NULL THEN
    counter := more;
  END IF;
  IF (counter.epoch = 0 OR counter.deleted_until IS NOT NULL) AND NOT counter.lost THEN
    outcome := 'MISSING';
    reply := CASE WHEN counter.epoch > 0 THEN ARRAY[counter.epoch, counter.revision] END;
    ROLLBACK;
    RETURN;
  END IF;
  counter := pythonricing.begin_epoch(counter, counter.epoch);
  IF counter.began IS NOT NULL THEN
    counter.began := NULL;
    counter := pythonricing.special(counter);
  END IF;
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
  PERFORM pythonricing.leave_receipt(counter_name, word_id, receipt_seconds, answer, NULL);
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
  second bigint := pythonricing.clock() / 1000000;
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
  DELETE FROM pythonricing.hold WHERE ctid = ANY (ARRAY(
    SELECT h.ctid FROM pythonricing.hold h WHERE h.outcome IS NOT NULL AND h.due <= second
    ORDER BY h.due LIMIT at_most FOR UPDATE SKIP LOCKED));
  GET DIAGNOSTICS removed = ROW_COUNT;
  total := total + removed;
  busy := busy OR removed = at_most;
  -- What counts for nothing any more: open holds of before a loss, and all that is of a state that is over.
  DELETE FROM pythonricing.hold WHERE ctid = ANY (ARRAY(
    SELECT h.ctid FROM pythonricing.counter c JOIN pythonricing.hold h ON h.name = c.name
    WHERE c.began IS NOT NULL AND h.outcome IS NULL AND h.due <= second
      AND (h.epoch < c.began OR h.losses <> c.losses OR c.deleted_until IS NOT NULL)
    LIMIT at_most FOR UPDATE OF h SKIP LOCKED));
  GET DIAGNOSTICS removed = ROW_COUNT;
  total := total + removed;
  busy := busy OR removed = at_most;
  DELETE FROM pythonricing.given_back WHERE ctid = ANY (ARRAY(
    SELECT g.ctid FROM pythonricing.counter c JOIN pythonricing.given_back g ON g.name = c.name
      AND g.epoch < c.epoch + CASE WHEN c.deleted_until IS NULL THEN 0 ELSE 1 END
    WHERE c.began IS NOT NULL LIMIT at_most FOR UPDATE OF g SKIP LOCKED));
  GET DIAGNOSTICS removed = ROW_COUNT;
  total := total + removed;
  busy := busy OR removed = at_most;
  DELETE FROM pythonricing.owner WHERE ctid = ANY (ARRAY(
    SELECT o.ctid FROM pythonricing.counter c JOIN pythonricing.owner o ON o.name = c.name
      AND o.epoch < c.epoch + CASE WHEN c.deleted_until IS NULL THEN 0 ELSE 1 END
    WHERE c.began IS NOT NULL LIMIT at_most FOR UPDATE OF o SKIP LOCKED));
  GET DIAGNOSTICS removed = ROW_COUNT;
  total := total + removed;
  busy := busy OR removed = at_most;
  DELETE FROM pythonricing.claimant WHERE ctid = ANY (ARRAY(
    SELECT o.ctid FROM pythonricing.counter c JOIN pythonricing.claimant o ON o.name = c.name
      AND o.epoch < c.epoch + CASE WHEN c.deleted_until IS NULL THEN 0 ELSE 1 END
    WHERE c.began IS NOT NULL LIMIT at_most FOR UPDATE OF o SKIP LOCKED));
  GET DIAGNOSTICS removed = ROW_COUNT;
  total := total + removed;
  busy := busy OR removed = at_most;
  -- A tombstone goes last: it is what the others are found by.
  DELETE FROM pythonricing.counter WHERE ctid = ANY (ARRAY(
    SELECT c.ctid FROM pythonricing.counter c WHERE c.deleted_until < moment
      AND NOT EXISTS (SELECT FROM pythonricing.hold h WHERE h.name = c.name)
      AND NOT EXISTS (SELECT FROM pythonricing.given_back g WHERE g.name = c.name)
      AND NOT EXISTS (SELECT FROM pythonricing.owner o WHERE o.name = c.name)
    LIMIT at_most FOR UPDATE SKIP LOCKED));
  GET DIAGNOSTICS removed = ROW_COUNT;
  total := total + removed;
  busy := busy OR removed = at_most;
  IF NOT busy THEN
    UPDATE pythonricing.installation SET swept = moment;
  END IF;
  reply := ARRAY[total];
  COMMIT;
END $$;

INSERT INTO pythonricing.installation AS i (version) VALUES (5)
  ON CONFLICT (only_row) DO UPDATE SET version = greatest(i.version, excluded.version);
COMMIT;
