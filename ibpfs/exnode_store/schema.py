"""The exNode store's tables: what is stored where, sealed how, until when.

This text is the document of the on-disk format (format 1). Conventions: times are nanoseconds since the
epoch as signed 64-bit integers (`*_ns`) or Unix seconds as REAL (`*_at`, `lease_end`); sizes, offsets and
lengths are bytes; names, targets and keys are BLOBs. `seq` in any row is the commit sequence number of the
transaction that last wrote it (table `state`), so that increments can be cut from the tables.
"""

FORMAT = 1

#: Incompatible features this program understands; a volume that names another one is refused.
IMPORTS = "imports"  # table imported has, or had, rows
TRASH = "trash"  # inodes without a name may be in the trash: who does not look would delete them
PINS = "pins"  # something was pinned or held: who does not look would release it
SHARDS = "shards"  # table coded has, or had, rows: who takes a shard for a copy would read and copy nonsense
FEATURES: frozenset[str] = frozenset({IMPORTS, PINS, SHARDS, TRASH})

ROOT_INO = 1

#: Inode numbers stay below this, so that a snapshot number fits above them in a FUSE node id.
MAX_INO = 1 << 48

#: How a replica, an open segment and the like are spelled in the tables.
OPEN, CLOSED = 0, 1

TABLES = """
-- One row per fact about the volume: uuid, format, features (JSON list of incompatible ones), policy_epoch,
-- digest_seed (hex; seeds the digests of stored bytes, never told to a depot), frame_size, function (name for
-- new slices), volume_toml (a copy, from which fsck restores a damaged one), created_at, root_owner; scrub_period
-- (seconds within which every replica is verified; 0: never; no row: 30 days). Of checkpoints: checkpoint_key (hex; it
-- seals what this file holds anyway), checkpoint_key_wrapped (by the master key), checkpoint_writer, root_records (how
-- many were written), checkpoint_seq, checkpoint_at (of the last one that is on depots), recovery_printed (JSON: short
-- hashes of the root's copies that the last printed string names). Of the trash: trash_keep (seconds that deleted names
-- are kept; 0: not at all; no row: a week), trash_lived (seconds that they must have lived; no row: 600).
CREATE TABLE volume (
    key   TEXT PRIMARY KEY,
    value TEXT NOT NULL
) WITHOUT ROWID;

-- Exactly one row. seq: the number of the last transaction. next_ino: never handed out twice. clean: 1 after an
-- orderly end, 0 while an owner runs (then a mount counts what a crash may have left).
CREATE TABLE state (
    id       INTEGER PRIMARY KEY CHECK (id = 1),
    seq      INTEGER NOT NULL,
    next_ino INTEGER NOT NULL,
    files    INTEGER NOT NULL,   -- inodes with at least one name, the root included
    clean    INTEGER NOT NULL
);

-- Servers that may hold replicas. A depot that moves changes one row here and no exNode. 'draining' takes no new
-- bytes, what is on it is moved off, and it is removed when it holds nothing any more; imported files stay, and a depot
-- that only they are on is so from the start.
CREATE TABLE depots (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    address     TEXT NOT NULL UNIQUE,      -- ibp[s]://HOST:PORT, as it was given
    embedded    INTEGER NOT NULL,          -- 1: the mount starts it, over VOLUME/depot's Unix socket
    fingerprint BLOB,                      -- of its TLS certificate, NULL when it speaks plain IBP
    labels      TEXT NOT NULL,             -- JSON object: {"site": "...", "owner": "..."}
    role        TEXT NOT NULL CHECK (role IN ('active', 'draining', 'removed')),
    seq         INTEGER NOT NULL
);

-- What an inode asks of its segments. Row 1 is the volume's default.
CREATE TABLE policies (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    copies     INTEGER NOT NULL CHECK (copies >= 1),
    min_copies INTEGER NOT NULL CHECK (min_copies BETWEEN 1 AND copies),
    code       TEXT,                       -- erasure code 'K+M', NULL = whole copies
    labels     TEXT NOT NULL,              -- JSON list of labels that copies must differ in
    cache      TEXT,                       -- wishes about the local cache, NULL = none
    seq        INTEGER NOT NULL
);

-- A file seen from the kernel. nlink = 0: unlinked but perhaps open, or in the trash; else reaped by its last user or
-- the next mount.
CREATE TABLE inodes (
    ino        INTEGER PRIMARY KEY CHECK (ino > 0 AND ino < 281474976710656),
    generation INTEGER NOT NULL,           -- differs whenever a number is used again
    version    INTEGER NOT NULL,           -- counts changes; a spool record's seq is drawn from it
    policy     INTEGER NOT NULL REFERENCES policies (id),
    mode       INTEGER NOT NULL,           -- type and permission bits, as st_mode
    nlink      INTEGER NOT NULL CHECK (nlink >= 0),
    uid        INTEGER NOT NULL,
    gid        INTEGER NOT NULL,
    rdev       INTEGER NOT NULL,           -- device nodes only, else 0
    size       INTEGER NOT NULL CHECK (size >= 0),  -- what is committed; the spool may hold more (I3)
    allocated  INTEGER NOT NULL CHECK (allocated >= 0),  -- sum of the lengths of the inode's mappings
    atime_ns   INTEGER NOT NULL,
    mtime_ns   INTEGER NOT NULL,
    ctime_ns   INTEGER NOT NULL,
    birth_ns   INTEGER NOT NULL,
    spooled    INTEGER NOT NULL,           -- spool records of it up to this seq are in its mappings or void
    seq        INTEGER NOT NULL
);
CREATE INDEX inodes_unlinked ON inodes (ino) WHERE nlink = 0;

-- A name in a directory. id is never used twice: it is the cookie of readdir.
CREATE TABLE dentries (
    id     INTEGER PRIMARY KEY AUTOINCREMENT,
    parent INTEGER NOT NULL REFERENCES inodes (ino),
    name   BLOB NOT NULL CHECK (length(name) BETWEEN 1 AND 255),
    ino    INTEGER NOT NULL REFERENCES inodes (ino),
    seq    INTEGER NOT NULL,
    UNIQUE (parent, name)
);
CREATE INDEX dentries_parent ON dentries (parent, id);
CREATE INDEX dentries_ino ON dentries (ino);

CREATE TABLE symlinks (
    ino    INTEGER PRIMARY KEY REFERENCES inodes (ino),
    target BLOB NOT NULL,                  -- 1 to 4095 bytes
    seq    INTEGER NOT NULL
);

CREATE TABLE xattrs (
    ino   INTEGER NOT NULL REFERENCES inodes (ino),
    name  BLOB NOT NULL,                   -- with its namespace: user.*, trusted.*, security.*, system.posix_acl_*
    value BLOB NOT NULL,                   -- at most 65536 bytes
    seq   INTEGER NOT NULL,
    PRIMARY KEY (ino, name)
) WITHOUT ROWID;

-- One continuous run of file bytes, sealed once under its own key, never changed (I2). Where compaction made it, it
-- may be several runs of a file, one behind the other.
CREATE TABLE slices (
    id             INTEGER PRIMARY KEY AUTOINCREMENT,
    slice_id       BLOB NOT NULL UNIQUE CHECK (length(slice_id) = 16),  -- random; the key is derived from it
    epoch          INTEGER NOT NULL,       -- of the volume key
    origin         BLOB NOT NULL,          -- uuid of the volume that sealed it (associated data of every frame)
    function       INTEGER NOT NULL,       -- code of the mapping function, sealing.FUNCTIONS
    frame_size     INTEGER NOT NULL,
    length         INTEGER NOT NULL CHECK (length > 0),         -- bytes of the file
    stored_length  INTEGER NOT NULL CHECK (stored_length > 0),  -- bytes in the segment, header included
    digest         BLOB NOT NULL,          -- of the stored bytes
    digest_name    TEXT NOT NULL,          -- 'xxh3-128-seeded'; 'none' when imported: the digest is empty
    segment        INTEGER NOT NULL REFERENCES segments (id),
    segment_offset INTEGER NOT NULL,       -- where its header begins
    mapped         INTEGER NOT NULL,       -- file bytes that mappings still refer to; 0: dead
    born           INTEGER NOT NULL,       -- commit seq
    died           INTEGER,                -- commit seq, NULL while mapped > 0; a dead one stays while it is pinned or
                                           -- its segment is held
    seq            INTEGER NOT NULL
);
CREATE INDEX slices_segment ON slices (segment, segment_offset);

-- Extent of a file -> part of a slice. Mappings of one inode never overlap: a later one cuts the earlier (I1: a row
-- stands here only when min_copies depots have acknowledged the bytes).
CREATE TABLE mappings (
    ino          INTEGER NOT NULL REFERENCES inodes (ino),
    start        INTEGER NOT NULL CHECK (start >= 0),
    stop         INTEGER NOT NULL CHECK (stop > start),   -- half-open
    slice        INTEGER NOT NULL REFERENCES slices (id),
    slice_offset INTEGER NOT NULL,         -- in file bytes, from the slice's first
    covers       INTEGER NOT NULL,         -- spool records of this inode up to this seq are contained
    seq          INTEGER NOT NULL,
    PRIMARY KEY (ino, start)
) WITHOUT ROWID;
CREATE INDEX mappings_slice ON mappings (slice);

-- A truncation: what lies at `start` and beyond and is no younger than `covers` is void. That holds for spool
-- records (record seq <= covers) and for mappings (mapping.covers <= covers) that the cleaner has not deleted yet.
-- A row goes when the inode has neither.
CREATE TABLE voids (
    ino    INTEGER NOT NULL REFERENCES inodes (ino),
    covers INTEGER NOT NULL,
    start  INTEGER NOT NULL,
    seq    INTEGER NOT NULL,
    PRIMARY KEY (ino, covers)
) WITHOUT ROWID;

-- Sealed slices back to back; one allocation per replica. The id is never used again.
CREATE TABLE segments (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    policy     INTEGER NOT NULL REFERENCES policies (id),
    state      INTEGER NOT NULL CHECK (state IN (0, 1)),  -- 0 open for append by the owner, 1 closed for good
    length     INTEGER NOT NULL,           -- bytes that are committed
    live       INTEGER NOT NULL,           -- stored bytes of its slices, of dead ones that stay, too
    created_at REAL NOT NULL,
    born       INTEGER NOT NULL,
    died       INTEGER,                    -- commit seq of its release, NULL while it stands
    seq        INTEGER NOT NULL
);

-- One allocation that holds one segment (or one shard of it).
CREATE TABLE replicas (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    segment     INTEGER NOT NULL REFERENCES segments (id),
    depot       INTEGER NOT NULL REFERENCES depots (id),
    read_key    TEXT NOT NULL,             -- 'KEY/TYPEKEY'; host and port come from the depot's row
    write_key   TEXT NOT NULL,
    manage_key  TEXT NOT NULL,
    shard       INTEGER,                   -- NULL = a whole copy
    lease_end   REAL,                      -- as the depot last told it; NULL = permanent
    told_at     REAL NOT NULL,             -- when it told
    verified_at REAL,
    suspect     INTEGER NOT NULL,          -- 1: not to be trusted before it is verified
    seq         INTEGER NOT NULL
);
CREATE INDEX replicas_segment ON replicas (segment);
CREATE INDEX replicas_depot ON replicas (depot);

-- Allocations whose lease is being extended, not yet in a committed segment (I4). The next mount releases them.
CREATE TABLE pending (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    depot      INTEGER NOT NULL REFERENCES depots (id),
    read_key   TEXT NOT NULL,
    write_key  TEXT NOT NULL,
    manage_key TEXT NOT NULL,
    created_at REAL NOT NULL,
    seq        INTEGER NOT NULL
);

-- Allocations to release, once the transaction that wrote the row is synced (I5).
CREATE TABLE orphans (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    depot      INTEGER NOT NULL REFERENCES depots (id),
    manage_key TEXT NOT NULL,
    read_key   TEXT NOT NULL,
    segment    INTEGER,                    -- which it held, NULL when none was committed
    since      REAL NOT NULL,
    seq        INTEGER NOT NULL
);

-- Nothing whose [born, died) contains a pinned seq is released: snapshots, shares.
CREATE TABLE pins (
    id     INTEGER PRIMARY KEY AUTOINCREMENT,
    kind   TEXT NOT NULL,
    name   TEXT NOT NULL,
    pinned INTEGER NOT NULL,               -- commit seq
    until  REAL,
    seq    INTEGER NOT NULL,
    UNIQUE (kind, name)
);

CREATE TABLE shares (
    id      TEXT PRIMARY KEY,
    record  BLOB NOT NULL,                 -- sealed
    expires REAL,
    seq     INTEGER NOT NULL
) WITHOUT ROWID;

-- Reserved, and empty: a checkpoint's increment carries the pages of the database file that changed, whatever rows they
-- hold, so nobody has to note what is deleted.
CREATE TABLE tombstones (
    table_name TEXT NOT NULL,
    row_key    TEXT NOT NULL,
    seq        INTEGER NOT NULL,
    PRIMARY KEY (table_name, row_key)
) WITHOUT ROWID;

-- One per checkpoint, full or increment: written, and synced, before it is on any depot. A chain by digest; the last
-- thousand are kept. A store that does not know the last one on the depots is older than them.
CREATE TABLE commits (
    seq         INTEGER PRIMARY KEY,
    volume      TEXT NOT NULL,
    epoch       INTEGER NOT NULL,
    writer      TEXT NOT NULL,             -- random, new with each recovery
    versions    TEXT NOT NULL,             -- version vector, JSON object writer -> how many commits it has made
    root_digest BLOB NOT NULL,             -- SHA-256 of the commit record
    previous    BLOB NOT NULL,             -- root_digest of the one before; 32 zeros: there is none
    signature   BLOB
);
"""

#: Made when a volume is opened that has them not yet: the first release had none of these.
ADDED_TABLES = """
-- Replicas that came in with an exNode document (feature 'imports'): in allocations that this volume did not make. They
-- are renewed where their manage key is known, and never copied, compacted or, unless `owned`, released.
CREATE TABLE IF NOT EXISTS imported (
    replica    INTEGER PRIMARY KEY REFERENCES replicas (id),  -- its write_key and manage_key are '-/0' when not known
    segment    INTEGER NOT NULL REFERENCES segments (id),
    base       INTEGER NOT NULL CHECK (base >= 0),  -- where in the allocation the segment's first byte lies
    owned      INTEGER NOT NULL,           -- 1: released with the last segment that lies in it
    allocation TEXT NOT NULL,              -- the short hash of its read key: several replicas may lie in one
    seq        INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS imported_segment ON imported (segment);
CREATE INDEX IF NOT EXISTS imported_allocation ON imported (allocation);

-- The replica that was verified longest ago is found at once.
CREATE INDEX IF NOT EXISTS replicas_verified ON replicas (verified_at);

-- Segments that exported exNodes have windows on: not compacted until then, or the windows would close.
CREATE TABLE IF NOT EXISTS windows (
    segment INTEGER PRIMARY KEY REFERENCES segments (id),
    until   REAL NOT NULL,                 -- Unix seconds at which the last window closes
    seq     INTEGER NOT NULL
);

-- Names that were deleted and may come back: the oldest have the lowest ids. A directory that was deleted is named by
-- its own row; what was in it, deleted before, has its inode as parent.
CREATE TABLE IF NOT EXISTS trash (
    id         INTEGER PRIMARY KEY,
    parent     INTEGER NOT NULL REFERENCES inodes (ino),
    name       BLOB NOT NULL,
    ino        INTEGER NOT NULL REFERENCES inodes (ino),  -- nlink 0, unless it has other names
    deleted_at REAL NOT NULL,              -- Unix seconds
    seq        INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS trash_parent ON trash (parent, name);
CREATE INDEX IF NOT EXISTS trash_ino ON trash (ino);

-- Segments that are to stay where they are, whole, though their slices die: shared with others. Several may hold one.
CREATE TABLE IF NOT EXISTS held_segments (
    kind    TEXT NOT NULL,
    name    TEXT NOT NULL,                 -- whose hold it is; kind and name together
    segment INTEGER NOT NULL REFERENCES segments (id),
    until   REAL,                          -- Unix seconds; NULL: until it is let go of
    seq     INTEGER NOT NULL,
    PRIMARY KEY (kind, name, segment)
);
CREATE INDEX IF NOT EXISTS held_segments_segment ON held_segments (segment);
CREATE INDEX IF NOT EXISTS slices_dead ON slices (id, stored_length) WHERE died IS NOT NULL;

-- A tree that is being put under a policy: directories whose entries behind `after` (a dentry's id) still are to be.
CREATE TABLE IF NOT EXISTS policy_walks (
    directory INTEGER PRIMARY KEY REFERENCES inodes (ino),
    policy    INTEGER NOT NULL REFERENCES policies (id),
    after     INTEGER NOT NULL,
    seq       INTEGER NOT NULL
);

-- At most one row, from then on until all stored bytes are under the policy of their file: closed segments up to number
-- `last` (NULL: as long as trees are walked through) and behind `after` are still to be looked at.
CREATE TABLE IF NOT EXISTS policy_settling (
    id    INTEGER PRIMARY KEY CHECK (id = 1),
    after INTEGER NOT NULL,
    last  INTEGER,
    seq   INTEGER NOT NULL
);

-- Keys of slices that another volume sealed and that were imported with their keys.
CREATE TABLE IF NOT EXISTS imported_keys (
    slice   INTEGER PRIMARY KEY REFERENCES slices (id),
    epoch   INTEGER NOT NULL,              -- of this volume's key under which it is wrapped
    wrapped BLOB NOT NULL,                 -- nonce (12 bytes), then AES-256-GCM; associated data: slice_id
    seq     INTEGER NOT NULL
);

-- Copies of record logs on depots: 'root' (where the checkpoint is), 'checkpoint' (the pages), 'snapshot' (the pages of
-- a snapshot's file). All but a root's hold the same bytes; one that is shorter, or that holds something else, gets no
-- more before it has caught up.
CREATE TABLE IF NOT EXISTS record_logs (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    log        BLOB NOT NULL CHECK (length(log) = 16),  -- random; the newest of a kind is the one in use
    kind       TEXT NOT NULL CHECK (kind IN ('root', 'checkpoint', 'snapshot')),
    name       TEXT,                       -- of a snapshot: its number; NULL for the others
    depot      INTEGER NOT NULL REFERENCES depots (id),
    read_key   TEXT NOT NULL,
    write_key  TEXT NOT NULL,
    manage_key TEXT NOT NULL,
    size       INTEGER NOT NULL,           -- of the allocation
    length     INTEGER NOT NULL,           -- acknowledged bytes
    lease_end  REAL,                       -- as the depot last told it; NULL = permanent
    told_at    REAL NOT NULL,
    seq        INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS record_logs_depot ON record_logs (depot);

-- Checkpoint logs that a root may still name though they are no news: those that this store had and let go of and, with
-- `given_up`, those that a recovery did without; whatever becomes readable there later. The latest thousand.
CREATE TABLE IF NOT EXISTS past_logs (
    log      BLOB PRIMARY KEY,             -- 16 random bytes
    given_up INTEGER NOT NULL CHECK (given_up IN (0, 1)),
    seq      INTEGER NOT NULL
);

-- Slices that came in with a link, and lie in windows that close when it ends: copied to our own depots soon. A row
-- goes when that is done.
CREATE TABLE IF NOT EXISTS adopted (
    slice INTEGER PRIMARY KEY REFERENCES slices (id),
    seq   INTEGER NOT NULL
);

-- Segments that are stored as shards of an erasure code (feature 'shards'): each of their replicas is one, none a whole
-- copy. Any k shards give the segment's bytes; shards 0 to k-1 are those bytes, one behind the other, the last
-- filled up with zeros. The code is that of module erasure.
CREATE TABLE IF NOT EXISTS coded (
    segment      INTEGER PRIMARY KEY REFERENCES segments (id),
    k            INTEGER NOT NULL CHECK (k >= 2),
    m            INTEGER NOT NULL CHECK (m >= 1),
    shard_length INTEGER NOT NULL CHECK (shard_length > 0),  -- the segment's length / k, rounded up
    seq          INTEGER NOT NULL
);

-- The shards that are wanted of a coded segment, in the volume's own store all k + m of them.
CREATE TABLE IF NOT EXISTS shards (
    segment INTEGER NOT NULL REFERENCES segments (id),
    shard   INTEGER NOT NULL CHECK (shard >= 0),
    digest  BLOB NOT NULL,                 -- of its bytes, as that of a slice
    seq     INTEGER NOT NULL,
    PRIMARY KEY (segment, shard)
);

-- What links that are in force have on depots, for whoever renews it: table shares is sealed. Windows on replicas, and
-- allocations of a link's own; a lease without an end has no row.
CREATE TABLE IF NOT EXISTS share_leases (
    share      TEXT NOT NULL,              -- its id, as in table shares
    depot      TEXT NOT NULL,              -- ibp[s]://HOST:PORT, perhaps none of the volume's
    manage_key TEXT NOT NULL,
    segment    INTEGER,                    -- that the window is on; NULL: an allocation of the link's own
    parent_key TEXT,                       -- of a window: the manage key of the replica that it is on
    start      INTEGER NOT NULL,           -- of a window: where in the replica's allocation it begins
    length     INTEGER NOT NULL,           -- of the window; the size of an own allocation
    expires    REAL NOT NULL,              -- Unix seconds at which the link ends: no lease is asked for beyond it
    lease_end  REAL NOT NULL,              -- as it was granted last; 0: its depot does not know it any more
    told_at    REAL NOT NULL,              -- when; 0: not known
    seq        INTEGER NOT NULL,
    PRIMARY KEY (share, depot, manage_key)
);
CREATE INDEX IF NOT EXISTS share_leases_due ON share_leases (told_at + lease_end) WHERE lease_end < expires - 2;
CREATE INDEX IF NOT EXISTS share_leases_expires ON share_leases (expires);
"""
