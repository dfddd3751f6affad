"""What an operator can say about a depot."""

from dataclasses import dataclass, field
from pathlib import Path

from ibpfs.depot.server.access import Access
from ibpfs.depot.server.reach import Reach
from ibpfs.depot.wire.protocol import MAX_LINE

DAY = 86400
DEFAULT_MAX_LEASE = 30 * DAY
#: The rest may be changed while the depot runs.
AT_START = frozenset(
    {"store", "listen", "unix", "public", "resources", "tls", "metrics", "inherited", "exit_when_unused"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Sizes in bytes, times in seconds. `listen`: HOST, PORT pairs, port 0 = the one recorded in the store, or a new
    one. `max_lease` None = no limit. `public`: the HOST, PORT that capabilities name, None = the address itself.
    `resources`: further directories, each with its capacity. `reach`: the operator's lists and admin ports; the rest of
    it follows from where the depot listens. `password`: of STATUS CHANGE, None refuses it. `tls`: also
    speak TLS where TCP is listened on. `max_connections_per_address` None: 256, but any number from this machine
    itself. `max_in_flight`: memory for what waits for peers. `min_rate`: bytes a second, 0 = any. `longest_timeout`: of
    those that clients name. `metrics`: where they are served. `inherited`: descriptors of listening sockets."""

    store: Path
    listen: tuple[tuple[str, int], ...] = ()
    unix: Path | None = None
    public: tuple[str, int] | None = None
    capacity: int | None = None
    max_lease: int | None = DEFAULT_MAX_LEASE
    permanent: bool = False
    grace: float = DAY
    max_connections: int = 4096
    max_connections_per_address: int | None = None
    max_line: int = MAX_LINE
    max_in_flight: int = 256 << 20
    min_rate: float = 1024.0
    idle_timeout: float = 120.0
    longest_timeout: float = 3600.0
    exit_when_unused: float | None = None
    tls: bool = True
    metrics: tuple[str, int] | None = None
    inherited: tuple[int, ...] = ()
    resources: tuple[tuple[Path, int | None], ...] = ()
    access: Access = field(default_factory=Access)
    reach: Reach = field(default_factory=Reach)
    password: str | None = field(default=None, repr=False)
